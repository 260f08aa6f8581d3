import { timingSafeEqual } from "node:crypto"
import type { Clock, Instant } from "../../protocol/base/clock.ts"
import { sha256Hex } from "../../protocol/base/digest.ts"
import type { AccountId, KeyId, UserId } from "../../protocol/domain/ids.ts"
import type { Role } from "../../protocol/domain/statuses.ts"
import { findKeyOwner } from "../store/accounts.ts"
import type { Store } from "../store/store.ts"

/** Whoever a bearer token stands for. */
export interface Caller {
  role: Role
  /** Null for the bootstrap token, which has no account and no user of its own. */
  account: AccountId | null
  user: UserId | null
  key: KeyId | "bootstrap"
}

export interface Authenticator {
  /** Null for what is unknown, expired or revoked. */
  identify(token: string): Promise<Caller | null>
  /** To be called once a key is revoked: from then on its token is refused. */
  forget(key: KeyId): void
}

/** Knows whose token it is. Keeps what it looked up in a small memory, which a revocation clears. */
export function createAuthenticator(parts: { store: Store; clock: Clock; bootstrapToken: string }): Authenticator {
  const bootstrapHash = Buffer.from(sha256Hex(parts.bootstrapToken))
  const known = new Map<string, { caller: Caller; expiresAt: Instant | null }>()
  let revocations = 0

  async function lookUp(hash: string): Promise<Caller | null> {
    const before = revocations
    const owner = await parts.store.read((view) => findKeyOwner(view, hash))
    if (owner === null || owner.revokedAt !== null) return null
    const caller: Caller = { role: owner.role, account: owner.account, user: owner.user, key: owner.key }
    // What was read before a revocation may be out of date by now: it counts for this call and is not kept.
    if (revocations === before) remember(hash, caller, owner.expiresAt)
    return hasEnded(owner.expiresAt) ? null : caller
  }

  function remember(hash: string, caller: Caller, expiresAt: Instant | null): void {
    for (const [oldest] of known) {
      if (known.size < MOST_REMEMBERED) break
      known.delete(oldest)
    }
    known.set(hash, { caller, expiresAt })
  }

  const hasEnded = (expiresAt: Instant | null): boolean => expiresAt !== null && expiresAt <= parts.clock.now()

  return {
    async identify(token) {
      const hash = sha256Hex(token)
      const remembered = known.get(hash)
      if (remembered !== undefined) return hasEnded(remembered.expiresAt) ? null : remembered.caller
      return timingSafeEqual(Buffer.from(hash), bootstrapHash) ? BOOTSTRAP : lookUp(hash)
    },
    forget(key) {
      revocations += 1
      for (const [hash, { caller }] of known) if (caller.key === key) known.delete(hash)
    },
  }
}

const BOOTSTRAP: Caller = { role: "admin", account: null, user: null, key: "bootstrap" }

/** More keys than are in use at one time on one coordinator; 300 bytes each. */
const MOST_REMEMBERED = 1_000
