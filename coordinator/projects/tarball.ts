import { rm } from "node:fs/promises"
import { extname } from "node:path"
import { Worker } from "node:worker_threads"
import { ComputalotError } from "../../protocol/domain/errors.ts"
import { invalidTarball, type Scan, type ScanInput } from "./scan-tarball.ts"
import type { ScanAnswer } from "./scan-worker.ts"

/** Scans tarballs off the main thread, so that a hostile or large one delays nobody else's request. */
export interface TarballScanner extends AsyncDisposable {
  /**
   * `scanTarball` in a thread of its own. Refuses with `busy` when too many wait, and with `invalid tarball` what takes
   * longer than two minutes to read. An abort ends the scan; no file is left behind either way.
   */
  scan(input: ScanInput, signal?: AbortSignal): Promise<Scan>
}

export function createTarballScanner(): TarballScanner {
  const waiting: (() => void)[] = []
  const stopping = new AbortController()
  let running = 0

  async function turn(): Promise<void> {
    if (running < MOST_AT_ONCE) running++
    else if (waiting.length < MOST_WAITING) await new Promise<void>((resolve) => waiting.push(resolve))
    else {
      throw new ComputalotError("busy", "too many pushes are being read", {
        recommendedAction: "Push again in a few seconds.",
        headers: { "Retry-After": "5" },
      })
    }
  }

  return {
    async scan(input, signal) {
      await turn()
      try {
        return await scanInWorker(input, signal ? AbortSignal.any([signal, stopping.signal]) : stopping.signal)
      } catch (error) {
        await rm(input.tarballPath, { force: true })
        await rm(input.listingPath, { force: true })
        throw error
      } finally {
        // Whoever waits inherits the place.
        const next = waiting.shift()
        if (next) next()
        else running--
      }
    },
    async [Symbol.asyncDispose]() {
      stopping.abort(new ComputalotError("unavailable", "the coordinator is stopping"))
    },
  }
}

/** Each takes a core while it runs, and a coordinator has other work. */
const MOST_AT_ONCE = 2
const MOST_WAITING = 32
/** 100 MB of honest input take about ten seconds on a slow machine. */
const LONGEST_SCAN_MS = 120_000

async function scanInWorker(input: ScanInput, signal: AbortSignal): Promise<Scan> {
  signal.throwIfAborted()
  // The ending is that of this very file: .ts in a checkout, .js once built.
  const source = new URL(`./scan-worker${extname(import.meta.url)}`, import.meta.url)
  const worker = new Worker(source, { workerData: input, resourceLimits: { maxOldGenerationSizeMb: 512 } })
  const answered = Promise.withResolvers<ScanAnswer>()
  const aborted = (): void => answered.reject(signal.reason)
  signal.addEventListener("abort", aborted, { once: true })
  worker.once("message", answered.resolve)
  worker.once("error", answered.reject)
  worker.once("exit", () => answered.reject(new Error("the tarball scan ended without an answer")))
  const limit = setTimeout(
    () => answered.reject(invalidTarball(null, "it takes longer than two minutes to read")),
    LONGEST_SCAN_MS,
  )
  try {
    return scanOf(await answered.promise)
  } finally {
    clearTimeout(limit)
    signal.removeEventListener("abort", aborted)
    await worker.terminate()
  }
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
