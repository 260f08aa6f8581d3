import type { z } from "zod"
import {
  getBalance,
  listHolds,
  listLedger,
  listQuotes,
  payQuote,
  topUp,
  type balance,
  type hold,
  type ledgerEntry,
} from "../../../protocol/api/account.ts"
import { timestampText } from "../../../protocol/api/common.ts"
import type { Clock } from "../../../protocol/base/clock.ts"
import { ComputalotError } from "../../../protocol/domain/errors.ts"
import type { AccountId } from "../../../protocol/domain/ids.ts"
import { usd } from "../../../protocol/domain/money.ts"
import type { Caller } from "../../accounts/authenticate.ts"
import * as holds from "../../billing/holds.ts"
import * as ledger from "../../billing/ledger.ts"
import * as quotes from "../../billing/quotes.ts"
import type { Store } from "../../store/store.ts"
import { mount, type HttpApp } from "../app.ts"

export interface AccountRouteParts {
  store: Store
  clock: Clock
}

/** What an account has, holds and did (B-002…B-014). */
export function mountAccount(app: Pick<HttpApp, "add">, parts: AccountRouteParts): void {
  mount(app, getBalance, async (request) => {
    const account = await ledger.getAccountBalance(parts, request.account())
    return balanceBody(account.balance)
  })

  mount(app, listLedger, async (request) => {
    const { limit, offset } = request.query
    const entries = await ledger.listLedger(parts.store, await knownAccount(parts, request), { limit, offset })
    return { entries: entries.map(entryRow), count: entries.length, limit, offset }
  })

  mount(app, listHolds, async (request) => {
    const { limit, offset, status = null } = request.query
    const page = await holds.listHolds(parts.store, await knownAccount(parts, request), { status, limit, offset })
    return { holds: page.map(holdRow), count: page.length, limit, offset }
  })

  mount(app, listQuotes, async (request) => {
    const { limit, offset } = request.query
    const page = await quotes.listQuotes(parts.store, await knownAccount(parts, request), { limit, offset })
    const at = parts.clock.now()
    return { quotes: page.map((quote) => quotes.quoteBody(quote, at)), count: page.length, limit, offset }
  })

  mount(app, topUp, async () => {
    throw notConfigured()
  })
  mount(app, payQuote, async () => {
    throw notConfigured()
  })
}

export function balanceBody(of: ledger.Balance): z.output<typeof balance> {
  return {
    ledger_balance_usd: usd(of.ledger),
    held_usd: usd(of.held),
    available_usd: usd(of.available),
    active_hold_count: of.activeHolds,
    open_quote_count: of.openQuotes,
  }
}

export function entryRow(entry: ledger.LedgerEntry): z.output<typeof ledgerEntry> {
  return {
    id: `entry_${entry.seq}`,
    type: entry.type,
    amount_usd: usd(entry.amount),
    balance_after_usd: usd(entry.balanceAfter),
    description: entry.description,
    ...(entry.job === null ? {} : { job_id: entry.job }),
    ...(entry.quote === null ? {} : { quote_id: entry.quote }),
    created_at: timestampText(entry.createdAt),
  }
}

function holdRow(row: holds.Hold): z.output<typeof hold> {
  return {
    id: row.id,
    job_id: row.job,
    amount_usd: usd(row.amount),
    status: row.status,
    settled_amount_usd: row.settledAmount === null ? null : usd(row.settledAmount),
    created_at: timestampText(row.createdAt),
    settled_at: timestampText(row.settledAt),
  }
}

/** The account a list is about. One that an administrator named and that does not exist is 404, not an empty list. */
async function knownAccount(
  parts: AccountRouteParts,
  request: { caller: Caller; account: () => AccountId },
): Promise<AccountId> {
  const account = request.account()
  return account === request.caller.account ? account : (await ledger.getAccountBalance(parts, account)).id
}

/** x402 is a later part: until then nobody can pay here (rulings, x402 not configured). */
function notConfigured(): ComputalotError {
  return new ComputalotError("payments_not_configured", "this deployment takes no payments", {
    recommendedAction: "Ask an administrator of this deployment for credit.",
  })
}
