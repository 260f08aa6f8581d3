import type { Instant } from "../../protocol/base/clock.ts"
import { present } from "../../protocol/base/assert.ts"
import { accountId, keyId, userId, type AccountId, type KeyId, type UserId } from "../../protocol/domain/ids.ts"
import type { Role } from "../../protocol/domain/statuses.ts"
import type { Tx, View } from "./store.ts"

export interface AccountRow {
  id: AccountId
  name: string
  createdAt: Instant
}

export interface UserRow {
  id: UserId
  account: AccountId
  name: string
  email: string | null
  role: Role
  createdAt: Instant
}

export interface KeyRow {
  id: KeyId
  user: UserId
  name: string | null
  role: Role
  prefix: string
  createdAt: Instant
  expiresAt: Instant | null
  revokedAt: Instant | null
}

export async function insertAccount(tx: Tx, account: { name: string; at: Instant }): Promise<AccountId> {
  const row = await tx.get<{ id: number }>(
    "INSERT INTO accounts (name, created_at) VALUES (?, ?) RETURNING id",
    account.name,
    account.at,
  )
  return accountId(present(row, "the new account").id)
}

/** Oldest first. */
export async function listAccounts(view: View): Promise<AccountRow[]> {
  return (await view.all<RawAccount>("SELECT id, name, created_at FROM accounts ORDER BY id")).map(toAccount)
}

export async function findAccount(view: View, id: AccountId): Promise<AccountRow | null> {
  const row = await view.get<RawAccount>("SELECT id, name, created_at FROM accounts WHERE id = ?", id)
  return row ? toAccount(row) : null
}

export async function insertUser(
  tx: Tx,
  user: { account: AccountId; name: string; email: string | null; role: Role; at: Instant },
): Promise<UserRow> {
  const row = await tx.get<RawUser>(
    `INSERT INTO users (account, name, email, role, created_at) VALUES (?, ?, ?, ?, ?)
     RETURNING id, account, name, email, role, created_at`,
    user.account,
    user.name,
    user.email,
    user.role,
    user.at,
  )
  return toUser(present(row, "the new user"))
}

/** Oldest first. */
export async function listUsers(view: View): Promise<UserRow[]> {
  return (await view.all<RawUser>(`${SELECT_USER} ORDER BY id`)).map(toUser)
}

export async function findUser(view: View, id: UserId): Promise<UserRow | null> {
  const row = await view.get<RawUser>(`${SELECT_USER} WHERE id = ?`, id)
  return row ? toUser(row) : null
}

export async function insertKey(tx: Tx, key: KeyRow & { hash: string }): Promise<void> {
  await tx.run(
    `INSERT INTO api_keys (id, user_id, name, role, prefix, hash, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
    key.id,
    key.user,
    key.name,
    key.role,
    key.prefix,
    key.hash,
    key.createdAt,
    key.expiresAt,
  )
}

/** Oldest first, revoked ones included. */
export async function listKeys(view: View, user: UserId): Promise<KeyRow[]> {
  const rows = await view.all<RawKey>(`${SELECT_KEY} WHERE user_id = ? ORDER BY created_at, id`, user)
  return rows.map(toKey)
}

export async function findKey(view: View, id: KeyId): Promise<KeyRow | null> {
  const row = await view.get<RawKey>(`${SELECT_KEY} WHERE id = ?`, id)
  return row ? toKey(row) : null
}

/** Marks a key revoked; the time of the first revocation stays. False when there is no such key. */
export async function markKeyRevoked(tx: Tx, id: KeyId, at: Instant): Promise<boolean> {
  const { changes } = await tx.run("UPDATE api_keys SET revoked_at = coalesce(revoked_at, ?) WHERE id = ?", at, id)
  return changes === 1
}

export interface KeyOwner {
  key: KeyId
  user: UserId
  account: AccountId
  /** The key's own, which is never above its user's. */
  role: Role
  expiresAt: Instant | null
  revokedAt: Instant | null
}

/** Who presents a token of this hash; also for expired and revoked keys. */
export async function findKeyOwner(view: View, hash: string): Promise<KeyOwner | null> {
  const row = await view.get<RawKeyOwner>(
    `SELECT api_keys.id AS key, users.id AS user, users.account AS account, api_keys.role AS role,
       api_keys.expires_at AS expires_at, api_keys.revoked_at AS revoked_at
     FROM api_keys JOIN users ON users.id = api_keys.user_id WHERE api_keys.hash = ?`,
    hash,
  )
  if (!row) return null
  return {
    key: keyId(row.key),
    user: userId(row.user),
    account: accountId(row.account),
    role: row.role,
    expiresAt: row.expires_at,
    revokedAt: row.revoked_at,
  }
}

interface RawAccount {
  id: number
  name: string
  created_at: number
}

interface RawUser {
  id: number
  account: number
  name: string
  email: string | null
  role: Role
  created_at: number
}

interface RawKey {
  id: string
  user_id: number
  name: string | null
  role: Role
  prefix: string
  created_at: number
  expires_at: number | null
  revoked_at: number | null
}

interface RawKeyOwner {
  key: string
  user: number
  account: number
  role: Role
  expires_at: number | null
  revoked_at: number | null
}

const SELECT_USER = "SELECT id, account, name, email, role, created_at FROM users"
const SELECT_KEY = "SELECT id, user_id, name, role, prefix, created_at, expires_at, revoked_at FROM api_keys"

function toAccount(row: RawAccount): AccountRow {
  return { id: accountId(row.id), name: row.name, createdAt: row.created_at }
}

function toUser(row: RawUser): UserRow {
  return {
    id: userId(row.id),
    account: accountId(row.account),
    name: row.name,
    email: row.email,
    role: row.role,
    createdAt: row.created_at,
  }
}

function toKey(row: RawKey): KeyRow {
  return {
    id: keyId(row.id),
    user: userId(row.user_id),
    name: row.name,
    role: row.role,
    prefix: row.prefix,
    createdAt: row.created_at,
    expiresAt: row.expires_at,
    revokedAt: row.revoked_at,
  }
}
