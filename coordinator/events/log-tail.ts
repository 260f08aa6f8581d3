import { ComputalotError } from "../../protocol/domain/errors.ts"
import type { Clock } from "../../protocol/base/clock.ts"
import { logEndId, logLines, type LogLine } from "../store/events.ts"
import type { Store } from "../store/store.ts"
import type { JobWatch } from "./watch.ts"

export interface LogTailParts {
  store: Store
  clock: Clock
  watch: JobWatch
}

/** Lines read at a time. */
const PAGE = 1_000
/** A busy log is read at most this often: what happened in between comes together. */
const READ_EVERY_MS = 10
/** After a read that was refused because others wait. */
const READ_AGAIN_MS = 100

/**
 * Reads the log as it grows, once for all who want to know, and calls `heard` with its new lines in order. Resolves when every
 * line that is written from then on will be heard.
 */
export async function tailLog(parts: LogTailParts, heard: (lines: readonly LogLine[]) => void): Promise<Disposable> {
  const { store, clock, watch } = parts
  let over = false
  let grown = false
  let reading = true
  let position = 0

  const listening = watch.listen({
    changed() {
      grown = true
      if (!reading) setImmediate(() => void readOn())
      reading = true
    },
  })

  async function readOn(): Promise<void> {
    reading = true
    grown = false
    const lines = await store.read((view) => logLines(view, position, PAGE)).catch(tryAgain)
    if (over || lines === null) return
    position = lines.at(-1)?.id ?? position
    if (lines.length > 0) heard(lines)
    if (lines.length === PAGE) return void setImmediate(() => void readOn())
    clock.after(READ_EVERY_MS, () => {
      if (over) return
      if (grown) void readOn()
      else reading = false
    })
  }

  /** Refused because too many wait: later. The store is closing: never. */
  function tryAgain(error: unknown): null {
    if (over || (error instanceof ComputalotError && error.code === "unavailable")) return null
    clock.after(READ_AGAIN_MS, () => over || void readOn())
    return null
  }

  try {
    position = await store.read(logEndId)
  } catch (error) {
    listening[Symbol.dispose]()
    throw error
  }
  reading = false
  if (grown) void readOn()
  return {
    [Symbol.dispose]() {
      over = true
      listening[Symbol.dispose]()
    },
  }
}
