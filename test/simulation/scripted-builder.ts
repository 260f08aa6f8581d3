import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { sleep } from "../../protocol/base/clock.ts"
import { sha256Hex } from "../../protocol/base/digest.ts"
import { claimNumber, digest } from "../../protocol/domain/ids.ts"
import { imageDigest, type ImageRecord } from "../../protocol/domain/image.ts"
import type { BuildOrder, ToCoordinator } from "../../protocol/wire/control.ts"
import type { Scan, ScanInput } from "../../coordinator/projects/scan-tarball.ts"
import type { TarballScanner } from "../../coordinator/projects/tarball.ts"
import type { BuildOrders, BuildOrdersParts } from "../../node-agent/tasks/build-orders.ts"
import { UploadRefused } from "../../node-agent/tasks/deliver.ts"
import type { Program } from "./machine.ts"

type Built = Extract<ToCoordinator, { type: "built" }>

/** The one layer that a tarball gives, whoever builds it. */
export const layerOf = (tarball: string): string => `a layer made of ${tarball}`

/** Images of nothing: each takes its time, and ends in a layer of its tarball or in a failure. */
export function scriptedBuilds(
  program: Program,
  directory: string,
): (parts: Pick<BuildOrdersParts, "upload" | "send">) => Promise<BuildOrders> {
  const { clock, chance } = program
  return async ({ upload, send }) => {
    const running = new Map<number, AbortController>()
    const ends = new Map<number, Built>()

    async function build(order: BuildOrder, signal: AbortSignal): Promise<Built["outcome"]> {
      await sleep(clock, chance.between(50, 5_000), signal)
      if (chance.happens(0.08)) return { ok: false, kind: "node", message: "this machine could not" }
      if (chance.happens(0.04)) return { ok: false, kind: "project", message: "its Dockerfile is wrong" }
      const text = layerOf(order.tarball.digest)
      const layer = { digest: digest(sha256Hex(text)), size: text.length }
      const path = join(directory, `layer-${order.claim}`)
      mkdirSync(directory, { recursive: true })
      writeFileSync(path, text)
      try {
        await uploadUntilTaken(order.claim, { ...layer, path }, signal)
      } finally {
        rmSync(path, { force: true })
      }
      return { ok: true, image: imageOf(layer) }
    }

    async function uploadUntilTaken(
      claim: number,
      file: { digest: string; size: number; path: string },
      signal: AbortSignal,
    ): Promise<void> {
      for (;;) {
        try {
          return await upload(claimNumber(claim), file, signal)
        } catch (error) {
          signal.throwIfAborted()
          if (error instanceof UploadRefused) throw error
        }
        await sleep(clock, RETRY_MS, signal)
      }
    }

    return {
      order(order) {
        if (running.has(order.claim) || ends.has(order.claim)) return
        const abort = new AbortController()
        running.set(order.claim, abort)
        build(order, AbortSignal.any([abort.signal, program.ended.signal])).then(
          (outcome) => ended(order.claim, outcome),
          (error: unknown) => {
            running.delete(order.claim)
            // As the real one: what was not taken ends as this node's trouble, and nobody waits for a cancelled build.
            if (error instanceof UploadRefused) ended(order.claim, { ok: false, kind: "node", message: error.message })
          },
        )
      },
      cancel(claim) {
        running.get(claim)?.abort(new Error("a newer push made this build pointless"))
        running.delete(claim)
        ends.delete(claim)
      },
      welcome() {
        for (const end of ends.values()) send(end)
      },
      verdicts(items) {
        for (const { claim } of items) ends.delete(claim)
      },
      remakes: () => false,
      async [Symbol.asyncDispose]() {
        for (const abort of running.values()) abort.abort(new Error("the agent stops"))
      },
    }

    function ended(claim: number, outcome: Built["outcome"]): void {
      running.delete(claim)
      const end: Built = { type: "built", claim, outcome, log_tail: "" }
      ends.set(claim, end)
      send(end)
    }
  }
}

function imageOf(layer: { digest: ReturnType<typeof digest>; size: number }): ImageRecord {
  const config = { env: {}, workdir: "/workspace", user: "" }
  const blob = { ...layer, piece_list: null }
  return {
    digest: imageDigest(config, [layer.digest]),
    config,
    layers: [{ diff_id: layer.digest, unpacked_bytes: layer.size, base: false, blob }],
  }
}

/** Takes any bytes for a tarball that is in order: what hostile ones do has tests of its own. */
export const scannerAtOnce: TarballScanner = {
  async scan({ path, tarballPath, listingPath }: ScanInput): Promise<Scan> {
    const bytes = readFileSync(path)
    const listing = Buffer.from(`a listing of ${sha256Hex(bytes)}`)
    writeFileSync(tarballPath, bytes)
    writeFileSync(listingPath, listing)
    const named = (file: string, its: Uint8Array) => ({ path: file, digest: digest(sha256Hex(its)), size: its.length })
    const written = named(listingPath, listing)
    return {
      contentHash: written.digest,
      tarball: named(tarballPath, bytes),
      listing: written,
      manifest: null,
      hasDockerfile: true,
      env: {},
      diff: null,
    }
  },
  async [Symbol.asyncDispose]() {},
}

const RETRY_MS = 1_000
