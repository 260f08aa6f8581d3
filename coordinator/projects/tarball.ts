import { rm } from "node:fs/promises"
import type { Clock } from "../../protocol/base/clock.ts"
import { createThreads, threadSource } from "../../protocol/base/threads.ts"
import { ComputalotError } from "../../protocol/domain/errors.ts"
import { invalidTarball, type Scan, type ScanInput } from "./scan-tarball.ts"
import type { ScanAnswer } from "./scan-worker.ts"

/** Scans tarballs off the main thread, so that a hostile or large one delays nobody else's request. */
export interface TarballScanner extends AsyncDisposable {
  /**
   * `scanTarball` in a thread that has seen nothing but good and small tarballs. Refuses with `busy` when too many wait, and
   * with `invalid tarball` what takes longer than two minutes to read. An abort ends the scan; a scan that failed leaves no
   * file behind.
   */
  scan(input: ScanInput, signal?: AbortSignal): Promise<Scan>
}

export function createTarballScanner(clock: Clock): TarballScanner {
  const threads = createThreads<ScanInput, ScanAnswer>({
    source: threadSource("./scan-worker.ts", import.meta.url),
    resourceLimits: { maxOldGenerationSizeMb: 512 },
    clock,
    atOnce: MOST_AT_ONCE,
    waiting: MOST_WAITING,
    limitMs: LONGEST_SCAN_MS,
    refusals: {
      tooManyWait,
      takesTooLong: () => invalidTarball(null, "it takes longer than two minutes to read"),
      stopping: () => new ComputalotError("unavailable", "the coordinator is stopping"),
    },
    idleMs: IDLE_MS,
    isReusable: ({ size }, answer) => answer.kind === "scanned" && size <= LARGEST_BEFORE_ANOTHER_BYTES,
  })

  return {
    async scan(input, signal) {
      try {
        return scanOf(await threads.run(input, signal))
      } catch (error) {
        await rm(input.tarballPath, { force: true })
        await rm(input.listingPath, { force: true })
        throw error
      }
    },
    [Symbol.asyncDispose]: () => threads[Symbol.asyncDispose](),
  }
}

/** Each takes a core while it runs, and a coordinator has other work. */
const MOST_AT_ONCE = 2
const MOST_WAITING = 32
/** 100 MB of honest input take about ten seconds on a slow machine. */
const LONGEST_SCAN_MS = 120_000
/** Whoever works on a project pushes every few seconds or minutes; an idle thread takes some 20 MB. */
const IDLE_MS = 30_000
/** What a larger one leaves in the heap goes with its thread, whose start is little against the scan. */
const LARGEST_BEFORE_ANOTHER_BYTES = 2 ** 20

function tooManyWait(): ComputalotError {
  return new ComputalotError("busy", "too many pushes are being read", {
    recommendedAction: "Push again in a few seconds.",
    headers: { "Retry-After": "5" },
  })
}

function scanOf(answer: ScanAnswer): Scan {
  switch (answer.kind) {
    case "scanned":
      return answer.scan
    case "refused": {
      const { code, message, recommendedAction, details } = answer
      throw new ComputalotError(code, message, { details, ...(recommendedAction && { recommendedAction }) })
    }
    case "failed":
      throw Object.assign(new Error(`the tarball could not be read: ${answer.message}`), { code: answer.errorCode })
  }
}
