import { systemClock, type Clock } from "../../protocol/base/clock.ts"
import { silentLog } from "../../protocol/base/log.ts"
import { systemRandom } from "../../protocol/base/random.ts"
import { createAuthenticator, type Authenticator } from "../../coordinator/accounts/authenticate.ts"
import { creditSignup } from "../../coordinator/billing/ledger.ts"
import { mountAccount } from "../../coordinator/http/routes/account.ts"
import { mountAdmin } from "../../coordinator/http/routes/admin.ts"
import type { HttpApp } from "../../coordinator/http/app.ts"
import type { StoreOptions } from "../../coordinator/store/open-store.ts"
import type { Store } from "../../coordinator/store/store.ts"
import { send, startHttpDoor, type PlainReply } from "./http-door.ts"
import { openTestStore } from "./store.ts"

export interface CoordinatorHttp extends AsyncDisposable {
  origin: string
  port: number
  app: HttpApp
  store: Store & { dataDir: string }
  authenticator: Authenticator
  admin: string
  call(
    token: string | undefined,
    method: string,
    path: string,
    options?: Parameters<typeof send>[3],
  ): Promise<PlainReply>
  /** A new user with a key of its role, in a new account unless one is named. */
  person(role?: "member" | "viewer" | "admin", account?: number): Promise<Person>
}

export interface Person {
  token: string
  key: string
  user: number
  account: number
}

const ADMIN_TOKEN = "fla_the_first_admin"

/** The real door over the real store, with accounts and billing behind it. `mountMore` adds further groups. */
export async function startHttp(
  options: {
    clock?: Clock
    signupCredit?: bigint
    trustProxy?: readonly string[]
    store?: Partial<StoreOptions>
    mountMore?: (app: HttpApp, store: Store) => void
  } = {},
): Promise<CoordinatorHttp> {
  const clock = options.clock ?? systemClock
  const store = await openTestStore({ clock, ...options.store })
  const authenticator = createAuthenticator({ store, clock, bootstrapToken: ADMIN_TOKEN })
  const door = await startHttpDoor(silentLog, clock, options.trustProxy)
  const parts = { store, clock, random: systemRandom, authenticator }
  const credit = options.signupCredit ?? 0n
  mountAdmin(door.app, { ...parts, welcome: (tx, account, at) => creditSignup(tx, account, credit, at) })
  mountAccount(door.app, parts)
  options.mountMore?.(door.app, store)
  door.app.open({ store, identify: (token) => authenticator.identify(token) })

  const call: CoordinatorHttp["call"] = (token, method, path, more = {}) =>
    send(door.server.origin, method, path, { ...more, ...(token === undefined ? {} : { token }) })
  return {
    origin: door.server.origin,
    port: door.server.port,
    app: door.app,
    store,
    authenticator,
    admin: ADMIN_TOKEN,
    call,
    async person(role = "member", account) {
      const body = { name: "someone", role, account_id: account ?? null }
      const made = await call(ADMIN_TOKEN, "POST", "/api/v1/admin/users", { body })
      const user = Number(made.get("user", "id"))
      const issued = await call(ADMIN_TOKEN, "POST", `/api/v1/admin/users/${user}/keys`, { body: {} })
      const token = String(issued.get("token"))
      return {
        token,
        key: String(issued.get("key", "id")),
        user,
        account: Number(made.get("user", "account_id")),
      }
    },
    async [Symbol.asyncDispose]() {
      await door[Symbol.asyncDispose]()
      await store[Symbol.asyncDispose]()
    },
  }
}
