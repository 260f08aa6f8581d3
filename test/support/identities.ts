import { accountId, keyId, userId } from "../../protocol/domain/ids.ts"
import type { Role } from "../../protocol/domain/statuses.ts"
import type { Caller } from "../../coordinator/accounts/authenticate.ts"
import type { Identities } from "../../coordinator/http/auth.ts"

/** Tokens for tests of routes that do not test tokens: three accounts, a viewer of the first, and the bootstrap token. */
export const TEST_TOKENS = {
  alice: "flk_alice",
  bob: "flk_bob",
  carol: "flk_carol",
  viewer: "flk_viewer_of_alice",
  bootstrap: "bootstrap",
} as const

const caller = (role: Role, account: number): Caller => ({
  role,
  account: accountId(account),
  user: userId(account),
  key: keyId(`key_${account}`),
})

const CALLERS: Readonly<Record<string, Caller>> = {
  [TEST_TOKENS.alice]: caller("member", 1),
  [TEST_TOKENS.bob]: caller("member", 2),
  [TEST_TOKENS.carol]: caller("member", 3),
  [TEST_TOKENS.viewer]: caller("viewer", 1),
  [TEST_TOKENS.bootstrap]: { role: "admin", account: null, user: null, key: "bootstrap" },
}

export const testIdentities: Identities = { identify: async (token) => CALLERS[token] ?? null }
