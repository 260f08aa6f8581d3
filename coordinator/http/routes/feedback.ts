import { timestampText } from "../../../protocol/api/common.ts"
import { listFeedback, sendFeedback } from "../../../protocol/api/feedback.ts"
import type { Clock } from "../../../protocol/base/clock.ts"
import { JsonText } from "../../../protocol/base/json-text.ts"
import type { Random } from "../../../protocol/base/random.ts"
import * as feedback from "../../accounts/feedback.ts"
import type { Store } from "../../store/store.ts"
import { mount, type HttpApp } from "../app.ts"
import { createRateLimit, MOST_OF_ALL } from "../rate-limit.ts"

export interface FeedbackRouteParts {
  store: Store
  clock: Clock
  random: Random
}

/** Feedback from anybody, for administrators (F-001, F-002). */
export function mountFeedback(app: Pick<HttpApp, "add">, parts: FeedbackRouteParts): void {
  const limit = createRateLimit(parts.clock, { exemptLoopback: true, mostOfAll: MOST_OF_ALL })
  mount(
    app,
    sendFeedback,
    async ({ body }) => {
      const { type, title, description, job_id: job = null, metadata } = body
      const text = metadata === undefined ? null : JSON.stringify(metadata)
      const id = await feedback.keepFeedback(parts, { type, title, description, job, metadata: text })
      return { id, status: "received" as const }
    },
    { before: async ({ origin }) => limit.count(origin) },
  )

  mount(app, listFeedback, async ({ query: { limit: most, offset } }) => {
    const { rows, total } = await feedback.listFeedback(parts.store, { limit: most, offset })
    const shown = rows.map((row) => ({
      id: row.id,
      type: row.type,
      title: row.title,
      description: row.description,
      job_id: row.job,
      metadata: row.metadata === null ? null : new JsonText(row.metadata),
      created_at: timestampText(row.createdAt),
    }))
    return { feedback: shown, count: shown.length, limit: most, offset, total }
  })
}
