import type { Random } from "../../protocol/base/random.ts"
import { assert, present } from "../../protocol/base/assert.ts"
import { ComputalotError, notFound } from "../../protocol/domain/errors.ts"
import { newWaitlistId, type WaitlistId } from "../../protocol/domain/ids.ts"
import { findKey, findUser, insertUser } from "../store/accounts.ts"
import type { Store, Tx } from "../store/store.ts"
import * as rows from "../store/waitlist.ts"
import { issueKey, newSecret, type Key } from "./keys.ts"
import { openAccount, type User, type UserParts } from "./users.ts"

export type WaitlistEntry = rows.WaitlistRow

/** Strangers fill this too, and nobody who waits may be forgotten for others. */
const MOST_WAITING = 20_000

/**
 * Notes who asks for access. Asking again changes nothing, and answers nothing about who else has asked. 429 while more wait
 * than an administrator could look through.
 */
export async function joinWaitlist(
  parts: { store: Store; clock: UserParts["clock"]; random: Random },
  who: Pick<WaitlistEntry, "email" | "walletAddress" | "note">,
): Promise<void> {
  const entry = { ...who, id: newWaitlistId(parts.random), createdAt: parts.clock.now() }
  await parts.store.write(async (tx) => {
    if ((await rows.countWaiting(tx)) >= MOST_WAITING) throw tooManyWait()
    await rows.insertWaiting(tx, entry)
  })
}

/** Newest first, and how many there are. */
export function listWaitlist(
  store: Store,
  page: { limit: number; offset: number },
): Promise<{ rows: WaitlistEntry[]; total: number }> {
  return store.read((view) => rows.pageOfWaitlist(view, page))
}

export interface Approval {
  entry: WaitlistEntry
  user: User
  key: Key
  /** Null when the entry was approved before: a token is shown once. */
  token: string | null
}

/**
 * Gives an e-mail address access: one write makes an account, a member and a key. `also` runs in it. A second call gives the
 * same user and key, without the token. 404 for an unknown entry; one without an e-mail address is refused (422), since
 * wallets cannot sign in yet.
 */
export async function approveEntry(
  parts: UserParts & { random: Random },
  id: WaitlistId,
  also: (tx: Tx, approval: Approval) => Promise<void> = async () => {},
): Promise<Approval> {
  const at = parts.clock.now()
  const secret = newSecret(parts.random)
  return parts.store.write(async (tx) => {
    const waiting = await rows.findWaiting(tx, id)
    if (waiting === null) throw notFound(`waitlist entry ${id}`)
    const approval = await approve(tx, waiting)
    await also(tx, approval)
    return approval
  })

  async function approve(tx: Tx, waiting: WaitlistEntry): Promise<Approval> {
    const { email } = waiting
    if (waiting.user !== null && waiting.key !== null) {
      const user = present(await findUser(tx, waiting.user), "the user of an approved entry")
      const key = present(await findKey(tx, waiting.key), "the key of an approved entry")
      return { entry: waiting, user, key, token: null }
    }
    if (email === null) throw walletsLater()
    const account = await openAccount(tx, parts, email, at)
    const user = await insertUser(tx, { account, name: email, email, role: "member", at })
    const { key, token } = await issueKey(tx, secret, { user, name: null, role: user.role, expiresAt: null, at })
    assert(await rows.markApproved(tx, id, { user: user.id, key: key.id, at }), "an entry is approved once")
    return { entry: { ...waiting, approvedAt: at, user: user.id, key: key.id }, user, key, token }
  }
}

function tooManyWait(): ComputalotError {
  return new ComputalotError("too_many_requests", "the waitlist is full", {
    recommendedAction: "Ask an administrator of this deployment for a user and a key.",
  })
}

function walletsLater(): ComputalotError {
  return new ComputalotError("not_available_yet", "not available yet: access by wallet", {
    recommendedAction: "Approve an entry with an e-mail address, or make a user and a key.",
  })
}
