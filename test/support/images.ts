import { execFile, spawnSync } from "node:child_process"
import { createHash } from "node:crypto"
import { mkdtemp, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { buffer } from "node:stream/consumers"
import { promisify } from "node:util"
import { zstdCompressSync } from "node:zlib"
import { pack, type Header } from "tar-stream"
import { onTestFinished } from "vitest"
import { systemClock } from "../../protocol/base/clock.ts"
import { silentLog } from "../../protocol/base/log.ts"
import { digest, type Digest } from "../../protocol/domain/ids.ts"
import { openLayerStore, type LayerLimits, type LayerStore } from "../../node-agent/runtime/images/layer-store.ts"

/** Why these tests cannot run here, or null. Prints the reason, so that a skipped test is no secret. */
export function missingTools(...tools: string[]): string | null {
  const missing = tools.filter((tool) => spawnSync("sh", ["-c", `command -v ${tool}`]).status !== 0)
  const reason =
    process.geteuid?.() !== 0 ? "not root" : missing.length > 0 ? `not installed: ${missing.join(", ")}` : null
  if (reason !== null) console.warn(`image tests skipped: ${reason}`)
  return reason
}

/** A directory that goes with the test. */
export async function scratchDirectory(): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), "computalot-images-"))
  onTestFinished(() => rm(directory, { recursive: true, force: true }))
  return directory
}

export async function layerStore(
  directory: string,
  options: { limits?: LayerLimits; quotaBytes?: number } = {},
): Promise<LayerStore> {
  const store = await openLayerStore({ directory, quotaBytes: 2 ** 30, clock: systemClock, log: silentLog, ...options })
  onTestFinished(() => store[Symbol.asyncDispose]())
  return store
}

export type Entry = Partial<Header> & { name: string; content?: string }

/** A layer of these entries as a zstd blob in a file, and its diff_id. */
export async function layerOf(directory: string, entries: Entry[]): Promise<{ diffId: Digest; path: string }> {
  const writing = pack()
  for (const { content, ...header } of entries) writing.entry({ mtime: new Date(0), ...header }, content ?? "")
  writing.finalize()
  return await blobOf(directory, await buffer(writing as unknown as NodeJS.ReadableStream))
}

export async function blobOf(directory: string, tar: Buffer): Promise<{ diffId: Digest; path: string }> {
  const diffId = digest(createHash("sha256").update(tar).digest("hex"))
  const path = join(directory, `${diffId}.zst`)
  await writeFile(path, zstdCompressSync(tar))
  return { diffId, path }
}

/** The machine's base images, made once (scripts/make-bases keeps them in its cache). */
export async function makeBases(directory: string, ...only: string[]): Promise<void> {
  const script = new URL("../../scripts/make-bases", import.meta.url).pathname
  await promisify(execFile)(script, [directory, ...only.flatMap((name) => ["--only", name])])
}
