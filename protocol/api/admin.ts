import { z } from "zod"
import { ROLES } from "../domain/statuses.ts"
import { balance, ledgerEntry } from "./account.ts"
import { listOf, numericId, timestamp, usdAmount, usdInput } from "./common.ts"
import { endpoint } from "./endpoint.ts"

// The admin API (interfaces.md): the bootstrap token or a key of role admin.

const role = z.enum(ROLES)
const label = z.string().trim().min(1).max(200)

export const user = z.object({
  id: z.int(),
  account_id: z.int(),
  name: z.string(),
  email: z.string().nullable(),
  role,
  created_at: timestamp,
})

const newKey = z.object({
  id: z.string(),
  name: z.string().nullable(),
  role,
  prefix: z.string(),
  created_at: timestamp,
  expires_at: timestamp.nullable(),
})
export const key = newKey.extend({ revoked_at: timestamp.nullable() })

/** The fields of `/account/balance` stand flat in the row (rulings, Admin lists). */
export const account = balance.extend({ id: z.int(), name: z.string(), created_at: timestamp })

export const createUser = endpoint({
  id: "admin-users-create",
  method: "POST",
  path: "/api/v1/admin/users",
  access: "admin",
  summary: "Makes a user, and an account where none is named.",
  creates: true,
  body: z.object({
    name: label,
    email: z.email().max(320).optional(),
    role: role.default("member"),
    account_id: z.int().min(1).optional(),
  }),
  status: 201,
  reply: z.object({ user }),
})

export const listUsers = endpoint({
  id: "admin-users-list",
  method: "GET",
  path: "/api/v1/admin/users",
  access: "admin",
  summary: "All users, oldest first.",
  reply: listOf("users", user),
})

export const createKey = endpoint({
  id: "admin-keys-create",
  method: "POST",
  path: "/api/v1/admin/users/:id/keys",
  access: "admin",
  summary: "Issues an API key; its token is shown once.",
  creates: true,
  params: z.object({ id: numericId }),
  body: z.object({
    name: label.optional(),
    role: role.optional(),
    expires_at: z.iso
      .datetime({ offset: true })
      .transform((text) => Date.parse(text))
      .optional(),
  }),
  status: 201,
  reply: z.object({ key: newKey, token: z.string().nullable() }),
})

export const listKeys = endpoint({
  id: "admin-keys-list",
  method: "GET",
  path: "/api/v1/admin/users/:id/keys",
  access: "admin",
  summary: "A user's keys, revoked ones included.",
  params: z.object({ id: numericId }),
  reply: listOf("keys", key),
})

export const revokeKey = endpoint({
  id: "admin-keys-revoke",
  method: "DELETE",
  path: "/api/v1/admin/keys/:id",
  access: "admin",
  summary: "Ends a key at once.",
  reply: z.object({ status: z.literal("revoked"), id: z.string() }),
})

export const creditAccount = endpoint({
  id: "admin-credits-create",
  method: "POST",
  path: "/api/v1/admin/accounts/:id/credits",
  access: "admin",
  summary: "Adds credit, or takes it back where the amount is negative; never below what is held.",
  creates: true,
  params: z.object({ id: numericId }),
  body: z.object({
    amount_usd: usdInput(-1_000_000_000_000n, 1_000_000_000_000n),
    description: z.string().max(500).optional(),
  }),
  status: 201,
  reply: z.object({ entry: ledgerEntry, balance }),
  replies: { 409: { description: "what would be taken back is held for running work" } },
})

export const listAccounts = endpoint({
  id: "admin-accounts-list",
  method: "GET",
  path: "/api/v1/admin/accounts",
  access: "admin",
  summary: "All accounts with their balances.",
  reply: listOf("accounts", account),
})

export const getAccount = endpoint({
  id: "admin-accounts-get",
  method: "GET",
  path: "/api/v1/admin/accounts/:id",
  access: "admin",
  summary: "One account with its balance.",
  params: z.object({ id: numericId }),
  reply: z.object({ account }),
})

export const getAudit = endpoint({
  id: "admin-audit",
  method: "GET",
  path: "/api/v1/admin/audit",
  access: "admin",
  summary: "The ledger's sums, and whether they agree.",
  reply: z.object({
    ok: z.boolean(),
    sums: z.record(z.string(), usdAmount),
    checks: z.array(z.object({ name: z.string(), ok: z.boolean(), expected: usdAmount, actual: usdAmount })),
  }),
})

const blobAtFault = z.object({
  sha256: z.string(),
  /** One of the records that need it: an artifact, a revision's tarball or listing, an image's layer, … */
  needed_by: z.object({ kind: z.string(), id: z.string() }),
})

export const getStorage = endpoint({
  id: "admin-storage",
  method: "GET",
  path: "/api/v1/admin/storage",
  access: "admin",
  summary: "Stored bytes that records need and that are not there (after a restore, say), or that were found damaged.",
  reply: z.object({
    ok: z.boolean(),
    blobs: z.int(),
    /** The first thousand. */
    missing: z.array(blobAtFault),
    missing_count: z.int(),
    damaged: z.array(blobAtFault.extend({ problem: z.string() })),
  }),
})

export const adminEndpoints = [
  createUser,
  listUsers,
  createKey,
  listKeys,
  revokeKey,
  creditAccount,
  listAccounts,
  getAccount,
  getAudit,
  getStorage,
] as const
