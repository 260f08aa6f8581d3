import { z } from "zod"
import { key, user } from "./admin.ts"
import { pageOf, paging, timestamp } from "./common.ts"
import { endpoint } from "./endpoint.ts"

// How strangers get in: by the waitlist and an administrator, never by themselves.

const waiting = z.object({
  id: z.string(),
  email: z.string().nullable(),
  wallet_address: z.string().nullable(),
  note: z.string().nullable(),
  status: z.enum(["waiting", "approved"]),
  created_at: timestamp,
  approved_at: timestamp.nullable(),
})

export const register = endpoint({
  id: "auth-register",
  method: "POST",
  path: "/api/v1/auth/register",
  access: "public",
  summary: "Always 403, and says how to get access instead: accounts are made by administrators (A-007).",
  status: 403,
  reply: z.object({ error: z.string() }),
})

export const joinWaitlist = endpoint({
  id: "waitlist-join",
  method: "POST",
  path: "/api/v1/waitlist",
  access: "public",
  summary: "Asks for access, by an e-mail address, a wallet address or both. Asking again changes nothing.",
  form: true,
  body: z.object({
    email: z.email("must be an e-mail address").max(320).optional(),
    wallet_address: z
      .string()
      .regex(/^0x[0-9a-fA-F]{40}$/, "must be 0x and 40 hex digits")
      .optional(),
    note: z.string().max(1000).optional(),
  }),
  status: 201,
  reply: z.object({ status: z.literal("received") }),
  replies: { 429: { description: "too much from one address: come back after Retry-After seconds" } },
})

export const listWaitlist = endpoint({
  id: "admin-waitlist",
  method: "GET",
  path: "/api/v1/admin/waitlist",
  access: "admin",
  summary: "Who asked for access, newest first.",
  query: z.object(paging(100, 500)),
  reply: z.object({ ...pageOf("waitlist", waiting).shape, total: z.int() }),
})

export const approveWaitlist = endpoint({
  id: "admin-waitlist-approve",
  method: "POST",
  path: "/api/v1/admin/waitlist/:id/approve",
  access: "admin",
  summary: "Gives an e-mail address access: makes an account, a member and a key, whose token is shown once.",
  creates: true,
  reply: z.object({
    entry: waiting,
    user,
    key: key.omit({ revoked_at: true }),
    token: z.string().nullable(),
  }),
  replies: {
    404: { description: "there is no such entry" },
    422: { description: "the entry has a wallet address only: not available yet" },
  },
})

export const accessEndpoints = [register, joinWaitlist, listWaitlist, approveWaitlist] as const
