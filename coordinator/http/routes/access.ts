import type { z } from "zod"
import { approveWaitlist, joinWaitlist, listWaitlist, register } from "../../../protocol/api/access.ts"
import { timestampText } from "../../../protocol/api/common.ts"
import type { Random } from "../../../protocol/base/random.ts"
import { ComputalotError, invalidField } from "../../../protocol/domain/errors.ts"
import { waitlistId } from "../../../protocol/domain/ids.ts"
import type { UserParts } from "../../accounts/users.ts"
import * as waitlist from "../../accounts/waitlist.ts"
import { mount, type HttpApp } from "../app.ts"
import { createRateLimit, MOST_OF_ALL } from "../rate-limit.ts"
import { newKeyRow, userRow } from "./admin.ts"

export interface AccessRouteParts extends UserParts {
  random: Random
}

/** The waitlist and its approval, and the registration that there is not. */
export function mountAccess(app: Pick<HttpApp, "add">, parts: AccessRouteParts): void {
  const limit = createRateLimit(parts.clock, { exemptLoopback: false, mostOfAll: MOST_OF_ALL })

  mount(app, register, async () => {
    throw new ComputalotError("registration_closed", "accounts are not made by registration", {
      recommendedAction: "Join the waitlist (POST /api/v1/waitlist), or ask an administrator for an API key.",
      details: { waitlist: { method: "POST", path: "/api/v1/waitlist" }, api_keys: "issued by administrators" },
    })
  })

  mount(
    app,
    joinWaitlist,
    async ({ body: { email, wallet_address: wallet, note } }) => {
      if (email === undefined && wallet === undefined)
        throw invalidField("email", "is required where there is no wallet_address")
      await waitlist.joinWaitlist(parts, {
        // As they are compared: an address is one, however it is written.
        email: email?.toLowerCase() ?? null,
        walletAddress: wallet?.toLowerCase() ?? null,
        note: note ?? null,
      })
      return { status: "received" as const }
    },
    { before: async ({ origin }) => limit.count(origin) },
  )

  mount(app, listWaitlist, async ({ query: { limit: most, offset } }) => {
    const { rows, total } = await waitlist.listWaitlist(parts.store, { limit: most, offset })
    return { waitlist: rows.map(entryRow), count: rows.length, limit: most, offset, total }
  })

  mount(app, approveWaitlist, async ({ params, idempotency }) => {
    const reply = ({ entry, user, key, token }: waitlist.Approval) => ({
      entry: entryRow(entry),
      user: userRow(user),
      key: newKeyRow(key),
      token,
    })
    const again = (approval: waitlist.Approval) => ({ status: 200, body: reply({ ...approval, token: null }) })
    return reply(await waitlist.approveEntry(parts, waitlistId(params.id), idempotency.remember(again)))
  })
}

function entryRow(entry: waitlist.WaitlistEntry): z.output<typeof listWaitlist.reply>["waitlist"][number] {
  return {
    id: entry.id,
    email: entry.email,
    wallet_address: entry.walletAddress,
    note: entry.note,
    status: entry.approvedAt === null ? "waiting" : "approved",
    created_at: timestampText(entry.createdAt),
    approved_at: timestampText(entry.approvedAt),
  }
}
