import type { Clock, Instant } from "../../protocol/base/clock.ts"
import { sha256Hex } from "../../protocol/base/digest.ts"
import { randomText, type Random } from "../../protocol/base/random.ts"
import { invalidField, notFound } from "../../protocol/domain/errors.ts"
import { newKeyId, type KeyId, type UserId } from "../../protocol/domain/ids.ts"
import { ROLES, type Role } from "../../protocol/domain/statuses.ts"
import * as rows from "../store/accounts.ts"
import type { Store, Tx } from "../store/store.ts"

export type Key = rows.KeyRow

export interface NewKey {
  user: UserId
  name: string | null
  /** Null: the user's. */
  role: Role | null
  /** Null: never. */
  expiresAt: Instant | null
}

/** A key and its token, which exists nowhere else: it is shown once. */
export interface IssuedKey {
  key: Key
  token: string
}

/**
 * Issues a key `flk_…`. Refuses: an unknown user (404), a role above the user's and an expiry in the past (422).
 * `also` runs in the same write. A second call issues a second key.
 */
export async function createKey(
  parts: { store: Store; clock: Clock; random: Random },
  wanted: NewKey,
  also: (tx: Tx, issued: IssuedKey) => Promise<void> = async () => {},
): Promise<IssuedKey> {
  const at = parts.clock.now()
  const secret = newSecret(parts.random)
  if (wanted.expiresAt !== null && wanted.expiresAt <= at) throw invalidField("expires_at", "must lie in the future")
  return parts.store.write(async (tx) => {
    const user = await rows.findUser(tx, wanted.user)
    if (user === null) throw notFound(`user ${wanted.user}`)
    const role = wanted.role ?? user.role
    if (ROLES.indexOf(role) > ROLES.indexOf(user.role)) {
      throw invalidField("role", `must not be above the user's, which is ${user.role}`)
    }
    const issued = await issueKey(tx, secret, { user, name: wanted.name, role, expiresAt: wanted.expiresAt, at })
    await also(tx, issued)
    return issued
  })
}

/** The id and the token of a key that is to be: made outside the write that issues it, which may be run again. */
export interface Secret {
  id: KeyId
  token: string
}

export const newSecret = (random: Random): Secret => ({
  id: newKeyId(random),
  token: KEY_PREFIX + randomText(random, TOKEN_CHARACTERS),
})

/** Stores a key. Whoever calls has checked that the role is not above the user's. */
export async function issueKey(
  tx: Tx,
  { id, token }: Secret,
  wanted: { user: Pick<rows.UserRow, "id">; name: string | null; role: Role; expiresAt: Instant | null; at: Instant },
): Promise<IssuedKey> {
  const key: Key = {
    id,
    user: wanted.user.id,
    name: wanted.name,
    role: wanted.role,
    prefix: token.slice(0, SHOWN_CHARACTERS),
    createdAt: wanted.at,
    expiresAt: wanted.expiresAt,
    revokedAt: null,
  }
  await rows.insertKey(tx, { ...key, hash: sha256Hex(token) })
  return { key, token }
}

/** A user's keys, oldest first, revoked ones included. 404 for an unknown user. */
export async function listKeys(store: Store, user: UserId): Promise<Key[]> {
  return store.read(async (view) => {
    if ((await rows.findUser(view, user)) === null) throw notFound(`user ${user}`)
    return rows.listKeys(view, user)
  })
}

/** Ends a key at once, for good. 404 for an unknown key; a second call changes nothing. */
export async function revokeKey(
  parts: { store: Store; clock: Clock; authenticator: { forget(key: KeyId): void } },
  id: KeyId,
): Promise<void> {
  const at = parts.clock.now()
  const known = await parts.store.write((tx) => rows.markKeyRevoked(tx, id, at))
  if (!known) throw notFound(`key ${id}`)
  parts.authenticator.forget(id)
}

const KEY_PREFIX = "flk_"
/** 206 bits: beyond guessing, and a plain hash of it is beyond guessing too. */
const TOKEN_CHARACTERS = 40
/** The prefix and six characters: enough to tell keys apart, 175 bits stay secret. */
const SHOWN_CHARACTERS = 10
