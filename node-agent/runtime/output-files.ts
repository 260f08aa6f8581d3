import { statSync } from "node:fs"
import { open } from "node:fs/promises"
import { systemClock } from "../../protocol/base/clock.ts"
import type { RunningAttempt } from "./driver.ts"

export type OutputStream = "stdout" | "stderr"

/**
 * Of each file the supervisor keeps the last 16 MiB on disk and frees what lies before. Offsets stay; freed bytes would read
 * as zeros.
 */
const KEPT_BYTES = 16 * 1024 * 1024
/** Memory of one read; nothing else is held. */
const CHUNK_BYTES = 256 * 1024
/** People watch this, programs do not: ten looks a second. */
const LOOK_INTERVAL_MS = 100

/**
 * Follows both output files until the attempt is done and everything was handed over, with bounded memory. `onChunk` gets the
 * bytes of each stream in order and is awaited; its buffer is reused afterwards. A reader that falls behind by more than is
 * kept on disk goes on at the oldest kept byte: `skipped` says how many bytes of that stream were left out before this chunk.
 * Rejects only with the signal's reason, when it is aborted first.
 */
export async function tailOutput(
  attempt: Pick<RunningAttempt, "done" | "stdoutPath" | "stderrPath">,
  onChunk: (stream: OutputStream, bytes: Uint8Array, skipped: number) => void | Promise<void>,
  signal?: AbortSignal,
): Promise<void> {
  const look = createAlarm()
  const aborted = (): void => look.ring()
  signal?.addEventListener("abort", aborted, { once: true })
  let over = false
  void attempt.done.then(() => {
    over = true
    look.ring()
  })
  const readers = [fileReader("stdout", attempt.stdoutPath), fileReader("stderr", attempt.stderrPath)]
  const buffer = { bytes: new Uint8Array(0) }
  try {
    while (true) {
      // The end first, the files second: what is read after the end is all there is.
      const last = over
      for (const reader of readers) await reader.read(buffer, onChunk, signal)
      if (last) return
      await look.wait(LOOK_INTERVAL_MS)
      signal?.throwIfAborted()
    }
  } finally {
    signal?.removeEventListener("abort", aborted)
    for (const reader of readers) await reader.close()
  }
}

function fileReader(stream: OutputStream, path: string) {
  let file: Awaited<ReturnType<typeof open>> | null = null
  let offset = 0
  return {
    async read(
      buffer: { bytes: Uint8Array },
      onChunk: Parameters<typeof tailOutput>[1],
      signal: AbortSignal | undefined,
    ): Promise<void> {
      let size = sizeOf(path)
      let skipped = 0
      while (offset < size) {
        signal?.throwIfAborted()
        file ??= await open(path, "r")
        if (buffer.bytes.length === 0) buffer.bytes = new Uint8Array(CHUNK_BYTES)
        const { bytesRead } = await file.read(buffer.bytes, 0, Math.min(CHUNK_BYTES, size - offset), offset)
        // Asked again after reading: only bytes that the supervisor cannot have freed meanwhile count.
        size = sizeOf(path)
        const oldest = size - KEPT_BYTES
        if (offset < oldest) {
          skipped += oldest - offset
          offset = oldest
          continue
        }
        if (bytesRead === 0) return
        await onChunk(stream, buffer.bytes.subarray(0, bytesRead), skipped)
        skipped = 0
        offset += bytesRead
      }
    },
    async close(): Promise<void> {
      await file?.close()
    },
  }
}

/** The supervisor makes the file at the first byte. Asked in place: the thread pool would take ten times as long. */
function sizeOf(path: string): number {
  return statSync(path, { throwIfNoEntry: false })?.size ?? 0
}

/** A wait that a ring ends early; a ring while nobody waits is remembered. */
function createAlarm() {
  let rung = false
  let wake: (() => void) | null = null
  return {
    ring(): void {
      rung = true
      wake?.()
    },
    wait(ms: number): Promise<void> {
      return new Promise((resolve) => {
        if (rung) {
          rung = false
          return resolve()
        }
        const timer = systemClock.after(ms, done)
        wake = done
        function done(): void {
          timer.cancel()
          wake = null
          rung = false
          resolve()
        }
      })
    },
  }
}
