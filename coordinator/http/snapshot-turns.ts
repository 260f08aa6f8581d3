import type { Clock } from "../../protocol/base/clock.ts"
import { present } from "../../protocol/base/assert.ts"
import type { AccountId } from "../../protocol/domain/ids.ts"
import { createTurns } from "../../protocol/mesh/turns.ts"

/**
 * Lets few streams at a time make their snapshots, accounts in turn. When a thousand opened together each held some rows of
 * its own, and the heap kept the size that all of them took.
 */
export interface SnapshotTurns {
  /** Resolves when it is the account's turn; over when disposed. */
  take(account: AccountId | null): Promise<SnapshotTurn>
}

export interface SnapshotTurn extends Disposable {
  /** Others may go first from here on: the reader is waited for. */
  pause(): void
  /** Resolves when it is our turn again; at once where it still is and has not lasted long. */
  goOn(): Promise<void>
}

/** Enough to use the processor while reads wait beside a write; each holds some fifty rows. */
const AT_ONCE = 4
/** Those who come behind a large one wait no longer than this for each of its parts. */
const LONG_MS = 20
/** Longer than any stream lives: one that has opened gets its snapshot. */
const PATIENCE_MS = 24 * 60 * 60 * 1000

export function createSnapshotTurns(clock: Clock): SnapshotTurns {
  const turns = createTurns(AT_ONCE, clock)

  async function enter(party: string): Promise<Disposable> {
    return present(await turns.enter(party, PATIENCE_MS), "a place to make a snapshot")
  }

  return {
    async take(account) {
      const party = String(account)
      let place: Disposable | null = await enter(party)
      let sinceMs = clock.monotonicMs()
      const pause = (): void => {
        place?.[Symbol.dispose]()
        place = null
      }
      return {
        pause,
        async goOn() {
          if (place !== null && clock.monotonicMs() - sinceMs < LONG_MS) return
          pause()
          place = await enter(party)
          sinceMs = clock.monotonicMs()
        },
        [Symbol.dispose]: pause,
      }
    },
  }
}
