import type { JsonText, JsonValue } from "../../../protocol/base/json-text.ts"

/** Takes tasks in order of their indexes and can tell what it has at any moment. */
export interface Merge {
  /** A completed task: its result as JSON text, or null where the program left none that can be read. */
  takeResult(index: number, resultText: string | null): void
  /** A task that failed or was cancelled, or has not ended while later ones have. */
  takeGap(index: number, ended: boolean): void
  merged(): Merged
}

export interface Merged {
  /** `aggregate_result`; null where it would be too large. */
  result: JsonText | null
  /** The type's own keys of `summary`, by their names on the wire. */
  summary: Record<string, JsonText | JsonValue>
  aliases: Record<string, number | null>
  weights: Weights | null
}

/** How much of a weighted job its average stands for (SR-016). pending = expected − completed. */
export interface Weights {
  weightField: string
  expected: number
  completed: number
  pending: number
}

/** What one aggregate may hold in memory and send in one reply; above it the rows of /results tell the same. */
const LARGEST_AGGREGATE_BYTES = 16 * 1024 * 1024

/** Counts what an aggregate collects, and notes once that it became too large. */
export class Budget {
  #bytes = 0
  readonly #warn: (warning: string) => void

  constructor(warn: (warning: string) => void) {
    this.#warn = warn
  }

  /** False once the aggregate is too large: then it is left out. */
  get holds(): boolean {
    return this.#bytes <= LARGEST_AGGREGATE_BYTES
  }

  spend(text: string): boolean {
    const held = this.holds
    // UTF-16 length: within a factor of three of the bytes, and free to ask for.
    this.#bytes += text.length + 1
    if (held && !this.holds) {
      this.#warn(
        `the merged result is left out: it has more than ${LARGEST_AGGREGATE_BYTES} characters; read the task rows`,
      )
    }
    return this.holds
  }
}
