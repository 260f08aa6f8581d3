import type { Clock } from "../../protocol/base/clock.ts"
import type { Random } from "../../protocol/base/random.ts"
import { newFeedbackId, type FeedbackId } from "../../protocol/domain/ids.ts"
import * as rows from "../store/feedback.ts"
import type { Store } from "../store/store.ts"

export type Feedback = rows.FeedbackRow

/** Strangers write this: what they fill is bounded (at some 46 KB each), and the newest are worth most. */
const MOST_KEPT = 20_000

/** Keeps what somebody sent; sent again it is kept again. */
export async function keepFeedback(
  parts: { store: Store; clock: Clock; random: Random },
  sent: Omit<Feedback, "id" | "createdAt">,
): Promise<FeedbackId> {
  const row = { ...sent, id: newFeedbackId(parts.random), createdAt: parts.clock.now() }
  await parts.store.write((tx) => rows.insertFeedback(tx, row, MOST_KEPT))
  return row.id
}

/** Newest first, and how many there are. */
export function listFeedback(
  store: Store,
  page: { limit: number; offset: number },
): Promise<{ rows: Feedback[]; total: number }> {
  return store.read((view) => rows.pageOfFeedback(view, page))
}
