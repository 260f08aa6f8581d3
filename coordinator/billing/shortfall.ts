import type { Instant } from "../../protocol/base/clock.ts"
import { ComputalotError } from "../../protocol/domain/errors.ts"
import type { AccountId } from "../../protocol/domain/ids.ts"
import { usd, type MicroUsd } from "../../protocol/domain/money.ts"
import { readAvailable } from "../store/ledger.ts"
import type { View } from "../store/store.ts"
import { quoteBody, type Quote } from "./quotes.ts"

/** Project init costs nothing, but needs this much available (B-022). */
export const INIT_FLOOR: MicroUsd = 5_000_000n

/** `missing` = `required` − `available`, above zero. */
export interface Shortfall {
  available: MicroUsd
  required: MicroUsd
  missing: MicroUsd
}

/** What the account lacks to cover `required`, or null when it has it. */
export async function missingFunds(view: View, account: AccountId, required: MicroUsd): Promise<Shortfall | null> {
  const available = await readAvailable(view, account)
  return available >= required ? null : { available, required, missing: required - available }
}

/** The 402 of GAP-08: what is missing, the stored quote for exactly that, and where it is paid. */
export function insufficientFunds(shortfall: Shortfall, quote: Quote, at: Instant): ComputalotError {
  return new ComputalotError(
    "insufficient_funds",
    `the account has $${usd(shortfall.available)} available and this needs $${usd(shortfall.required)}`,
    {
      recommendedAction: `Pay the quote ${quote.id} or have the account credited, then send the same request again.`,
      details: {
        available_usd: usd(shortfall.available),
        required_usd: usd(shortfall.required),
        shortfall_usd: usd(shortfall.missing),
      },
      body: {
        quote: quoteBody(quote, at),
        pay: { method: "POST", path: `/api/v1/account/quotes/${quote.id}/pay/x402` },
      },
    },
  )
}
