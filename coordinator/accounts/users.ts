import type { Clock, Instant } from "../../protocol/base/clock.ts"
import { notFound } from "../../protocol/domain/errors.ts"
import type { AccountId, UserId } from "../../protocol/domain/ids.ts"
import type { Role } from "../../protocol/domain/statuses.ts"
import * as rows from "../store/accounts.ts"
import type { Store, Tx } from "../store/store.ts"

export type User = rows.UserRow

export interface UserParts {
  store: Store
  clock: Clock
  /** What every new account gets in the write that makes it (the sign-up credit). */
  welcome?: (tx: Tx, account: AccountId, at: Instant) => Promise<void>
}

export interface NewUser {
  name: string
  email: string | null
  role: Role
  /** Null: the user gets an account of its own, of the same name. */
  account: AccountId | null
}

/**
 * Makes a user, and an account where none is named. 404 for an unknown account. `also` runs in the same write.
 * A second call makes a second user.
 */
export async function createUser(
  parts: UserParts,
  user: NewUser,
  also: (tx: Tx, user: User) => Promise<void> = async () => {},
): Promise<User> {
  const at = parts.clock.now()
  return parts.store.write(async (tx) => {
    const account = user.account ?? (await openAccount(tx, parts, user.name, at))
    if ((await rows.findAccount(tx, account)) === null) throw notFound(`account ${account}`)
    const created = await rows.insertUser(tx, { ...user, account, at })
    await also(tx, created)
    return created
  })
}

/** All users, oldest first. */
export async function listUsers(store: Store): Promise<User[]> {
  return store.read((view) => rows.listUsers(view))
}

/** The user of this id, or 404. */
export async function getUser(store: Store, id: UserId): Promise<User> {
  const user = await store.read((view) => rows.findUser(view, id))
  if (user === null) throw notFound(`user ${id}`)
  return user
}

/** A new account with what every new one gets. */
export async function openAccount(
  tx: Tx,
  parts: Pick<UserParts, "welcome">,
  name: string,
  at: Instant,
): Promise<AccountId> {
  const account = await rows.insertAccount(tx, { name, at })
  await parts.welcome?.(tx, account, at)
  return account
}
