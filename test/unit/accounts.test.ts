import { readFileSync, rmSync, statSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { expect, test } from "vitest"
import { createAuthenticator } from "../../coordinator/accounts/authenticate.ts"
import { bootstrapToken } from "../../coordinator/accounts/bootstrap-token.ts"
import { createKey, listKeys, revokeKey } from "../../coordinator/accounts/keys.ts"
import { createUser, getUser, listUsers, type NewUser } from "../../coordinator/accounts/users.ts"
import type { Store } from "../../coordinator/store/store.ts"
import { systemClock } from "../../protocol/base/clock.ts"
import { systemRandom } from "../../protocol/base/random.ts"
import { accountId, keyId, userId, type AccountId, type UserId } from "../../protocol/domain/ids.ts"
import { newDataDir, openTestStore } from "../support/store.ts"

const ADA: NewUser = { name: "Ada", email: "ada@example.org", role: "member", account: null }

function partsOf(store: Store) {
  let stepped = 0
  const clock = { ...systemClock, now: () => systemClock.now() + stepped }
  const authenticator = createAuthenticator({ store, clock, bootstrapToken: "fla_first" })
  const step = (ms: number): void => void (stepped += ms)
  return { store, clock, random: systemRandom, authenticator, step }
}

const keyFor = (user: UserId) => ({ user, name: null, role: null, expiresAt: null })

test("a user gets an account of its own, or joins a named one", async () => {
  await using store = await openTestStore()
  const parts = partsOf(store)
  const ada = await createUser(parts, ADA)
  const ben = await createUser(parts, { ...ADA, name: "Ben", email: null, account: ada.account })
  const eve = await createUser(parts, { ...ADA, name: "Eve", role: "admin" })
  expect(ada).toMatchObject({ name: "Ada", email: "ada@example.org", role: "member" })
  expect(ben.account).toBe(ada.account)
  expect(eve.account).not.toBe(ada.account)
  expect(await listUsers(store)).toEqual([ada, ben, eve])
  expect(await getUser(store, ben.id)).toEqual(ben)
  await expect(createUser(parts, { ...ADA, account: accountId(999) })).rejects.toMatchObject({ code: "not_found" })
  await expect(getUser(store, userId(999))).rejects.toMatchObject({ code: "not_found" })
})

test("a new account is welcomed in the write that makes it, and a user who joins one is not", async () => {
  await using store = await openTestStore()
  const welcomed = new Set<AccountId>()
  const parts = { ...partsOf(store), welcome: async (_: unknown, account: AccountId) => void welcomed.add(account) }
  const ada = await createUser(parts, ADA)
  expect([...welcomed]).toEqual([ada.account])
  welcomed.clear()
  await createUser(parts, { ...ADA, account: ada.account })
  expect([...welcomed]).toEqual([])
})

test("A-002: a key starts with flk_, stands for its user's account, and is kept as a hash only", async () => {
  await using store = await openTestStore()
  const parts = partsOf(store)
  const ada = await createUser(parts, ADA)
  const { key, token } = await createKey(parts, { ...keyFor(ada.id), name: "laptop" })
  expect(token).toMatch(/^flk_[a-z0-9]{40}$/)
  expect(key).toMatchObject({
    user: ada.id,
    name: "laptop",
    role: "member",
    prefix: token.slice(0, 10),
    revokedAt: null,
  })
  const caller = { role: "member", account: ada.account, user: ada.id, key: key.id }
  for (let time = 0; time < 2; time++) expect(await parts.authenticator.identify(token)).toEqual(caller)
  expect(await listKeys(store, ada.id)).toEqual([key])
  const stored = await store.read((view) => view.all("SELECT * FROM api_keys"))
  expect(JSON.stringify(stored)).not.toContain(token.slice(10))
})

test("GAP-01: unknown, revoked and expired tokens stand for nobody, also right after they were used", async () => {
  await using store = await openTestStore()
  const parts = partsOf(store)
  const ada = await createUser(parts, ADA)
  const revoked = await createKey(parts, keyFor(ada.id))
  const expiring = await createKey(parts, { ...keyFor(ada.id), expiresAt: parts.clock.now() + 60_000 })
  for (const { token } of [revoked, expiring]) expect(await parts.authenticator.identify(token)).not.toBeNull()
  expect(await parts.authenticator.identify(`${revoked.token}x`)).toBeNull()
  expect(await parts.authenticator.identify("")).toBeNull()

  const asked = parts.authenticator.identify(revoked.token)
  await revokeKey(parts, revoked.key.id)
  await asked
  await revokeKey(parts, revoked.key.id)
  expect(await parts.authenticator.identify(revoked.token)).toBeNull()
  expect(await parts.authenticator.identify(expiring.token)).not.toBeNull()
  parts.step(60_000)
  expect(await parts.authenticator.identify(expiring.token)).toBeNull()
  expect(await createAuthenticator({ ...parts, bootstrapToken: "x" }).identify(expiring.token)).toBeNull()
  await expect(revokeKey(parts, keyId("key_none"))).rejects.toMatchObject({ code: "not_found" })
})

test("a look-up that began before a revocation is not remembered after it", async () => {
  await using store = await openTestStore()
  const parts = partsOf(store)
  const ada = await createUser(parts, ADA)
  const { key, token } = await createKey(parts, keyFor(ada.id))
  const slowStore: Store = {
    ...store,
    async read(look) {
      const seen = await store.read(look)
      await revokeKey({ ...parts, authenticator: slow }, key.id)
      return seen
    },
  }
  const slow = createAuthenticator({ ...parts, store: slowStore, bootstrapToken: "x" })
  await slow.identify(token)
  expect(await slow.identify(token)).toBeNull()
})

test("a key's role is not above its user's (422), and its expiry not in the past (422)", async () => {
  await using store = await openTestStore()
  const parts = partsOf(store)
  const ada = await createUser(parts, ADA)
  const viewer = await createKey(parts, { ...keyFor(ada.id), role: "viewer" })
  expect(await parts.authenticator.identify(viewer.token)).toMatchObject({ role: "viewer" })
  const refused = [
    { ...keyFor(ada.id), role: "admin" as const },
    { ...keyFor(ada.id), expiresAt: parts.clock.now() },
  ]
  for (const wanted of refused)
    await expect(createKey(parts, wanted)).rejects.toMatchObject({ code: "invalid_request" })
  await expect(createKey(parts, keyFor(userId(999)))).rejects.toMatchObject({ code: "not_found" })
  await expect(listKeys(store, userId(999))).rejects.toMatchObject({ code: "not_found" })
  expect(await listKeys(store, ada.id)).toHaveLength(1)
})

test("the bootstrap token is an administrator without an account", async () => {
  await using store = await openTestStore()
  const { authenticator } = partsOf(store)
  expect(await authenticator.identify("fla_first")).toEqual({
    role: "admin",
    account: null,
    user: null,
    key: "bootstrap",
  })
  expect(await authenticator.identify("fla_firs")).toBeNull()
})

test("the bootstrap token is made once, readable by its owner only; a given one wins", () => {
  const dataDir = newDataDir()
  const made = bootstrapToken(dataDir, null, systemRandom)
  const file = join(dataDir, "admin-token")
  expect(made).toMatch(/^fla_[a-z0-9]{40}$/)
  expect(readFileSync(file, "utf8")).toBe(`${made}\n`)
  expect(statSync(file).mode & 0o777).toBe(0o600)
  expect(bootstrapToken(dataDir, null, systemRandom)).toBe(made)
  expect(bootstrapToken(dataDir, "given", systemRandom)).toBe("given")
  writeFileSync(file, "")
  expect(() => bootstrapToken(dataDir, null, systemRandom)).toThrow("is empty")
  rmSync(dataDir, { recursive: true })
})
