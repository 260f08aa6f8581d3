import { z } from "zod"
import { pageOf, paging, timestamp, usdAmount, usdInput } from "./common.ts"
import { endpoint } from "./endpoint.ts"

/** B-002, B-003: `available = ledger balance − held`. */
export const balance = z.object({
  ledger_balance_usd: usdAmount,
  held_usd: usdAmount,
  available_usd: usdAmount,
  active_hold_count: z.int(),
  open_quote_count: z.int(),
})

/** The amount is positive, the sign is the type (rulings, Ledger). */
export const ledgerEntry = z.object({
  id: z.string(),
  type: z.enum(["credit", "debit"]),
  amount_usd: usdAmount,
  balance_after_usd: usdAmount,
  description: z.string(),
  job_id: z.string().optional(),
  quote_id: z.string().optional(),
  created_at: timestamp,
})

export const hold = z.object({
  id: z.string(),
  job_id: z.string(),
  amount_usd: usdAmount,
  status: z.enum(["active", "settled", "released"]),
  settled_amount_usd: usdAmount.nullable(),
  created_at: timestamp,
  settled_at: timestamp.nullable(),
})

const quote = z.object({
  id: z.string(),
  kind: z.enum(["topup", "shortfall"]),
  amount_usd: usdAmount,
  status: z.enum(["open", "paid", "expired"]),
  description: z.string(),
  expires_at: timestamp,
  created_at: timestamp,
  paid_at: timestamp.nullable(),
})

const pages = paging(50, 500)

export const getBalance = endpoint({
  id: "account-balance",
  method: "GET",
  path: "/api/v1/account/balance",
  access: "viewer",
  summary: "What the account has, what is held for running work, and what is left to spend.",
  reply: balance,
})

export const listLedger = endpoint({
  id: "account-ledger",
  method: "GET",
  path: "/api/v1/account/ledger",
  access: "viewer",
  summary: "Credits and debits, newest first.",
  query: z.object(pages),
  reply: pageOf("entries", ledgerEntry),
})

export const listHolds = endpoint({
  id: "account-holds",
  method: "GET",
  path: "/api/v1/account/holds",
  access: "viewer",
  summary: "Money reserved for work, now and in the past, newest first.",
  query: z.object({ ...pages, status: hold.shape.status.optional() }),
  reply: pageOf("holds", hold),
})

export const listQuotes = endpoint({
  id: "account-quotes",
  method: "GET",
  path: "/api/v1/account/quotes",
  access: "viewer",
  summary: "Quotes for top-ups and shortfalls, newest first.",
  query: z.object(pages),
  reply: pageOf("quotes", quote),
})

export const topUp = endpoint({
  id: "quotes-topup",
  method: "POST",
  path: "/api/v1/account/quotes/topup",
  access: "member",
  summary: "Asks for a quote to add credit; 402 with the quote is the success (B-008).",
  body: z.object({ amount_usd: usdInput(1n, 10_000_000_000n), description: z.string().max(500).optional() }),
  status: 402,
  reply: z.object({ error: z.string(), quote }),
  replies: { 503: { description: "payments are not configured in this deployment" } },
})

export const payQuote = endpoint({
  id: "quotes-pay",
  method: "POST",
  path: "/api/v1/account/quotes/:quote_id/pay/x402",
  access: "member",
  summary: "Settles a quote with the payment in the PAYMENT-SIGNATURE header.",
  status: 201,
  reply: z.object({ quote, replay: z.boolean() }),
  replies: { 503: { description: "payments are not configured in this deployment" } },
})

/** What calls of `callback_url` are signed with (Standard Webhooks); the secret before signs too until then. */
const webhookSecret = z.object({ secret: z.string(), previous_valid_until: timestamp.optional() })
const account = z.object({ account_id: z.string().optional() })

export const getWebhookSecret = endpoint({
  id: "account-webhook-secret",
  method: "GET",
  path: "/api/v1/account/webhook-secret",
  // Whoever knows it can pretend to be this deployment: reading jobs is not enough.
  access: "member",
  summary: "The secret that signs calls of callback_url. Made when it is asked for the first time.",
  query: account,
  reply: webhookSecret,
})

export const rotateWebhookSecret = endpoint({
  id: "account-webhook-secret-rotate",
  method: "POST",
  path: "/api/v1/account/webhook-secret",
  access: "member",
  summary: "Makes a new secret. The one before signs too for 24 hours, and the one before that no longer.",
  query: account,
  body: z.object({}),
  reply: webhookSecret,
  creates: true,
})

export const accountEndpoints = [
  getBalance,
  listLedger,
  listHolds,
  listQuotes,
  topUp,
  payQuote,
  getWebhookSecret,
  rotateWebhookSecret,
] as const
