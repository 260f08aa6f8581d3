import { z } from "zod"
import { parseUsd, usd, type MicroUsd } from "../domain/money.ts"
import { ERROR_STATUS, type ErrorCode } from "../domain/errors.ts"

/** The one shape of every refusal (E-002; rulings, Errors). Some carry further keys: `quote`, `init_state`, … */
export const errorBody = z
  .looseObject({
    error: z.string(),
    code: z.enum(Object.keys(ERROR_STATUS) as [ErrorCode, ...ErrorCode[]]),
    recommended_action: z.string().optional(),
    details: z.unknown().optional(),
    request_id: z.string(),
  })
  .meta({ id: "Error" })
export type ErrorBody = z.output<typeof errorBody>

/** UTC with milliseconds and `Z` (rulings, HTTP). */
export const timestamp = z.iso.datetime({ precision: 3 }).meta({ description: "UTC, ISO 8601 with milliseconds and Z" })

/** A time as the API shows it; null stays null, since an always-present `*_at` key is null and not absent. */
export function timestampText(at: number): string
export function timestampText(at: number | null): string | null
export function timestampText(at: number | null): string | null {
  return at === null ? null : new Date(at).toISOString()
}

/** Dollars as a JSON number, exact to six decimals (GAP-07). Inside we count whole micro-dollars. */
export const usdAmount = z.number()

/** An amount in a request, as micro-dollars. Never zero; at most six decimals (rulings, Ledger). */
export function usdInput(least: MicroUsd, most: MicroUsd) {
  const wanted = `must be an amount in dollars from ${usd(least)} to ${usd(most)}, not 0, with at most six decimals`
  const shown = { type: "number", minimum: usd(least), maximum: usd(most) }
  return z
    .number({ error: wanted })
    .meta({ shown })
    .transform((amount, context): MicroUsd => {
      const micro = parseUsd(amount)
      if (micro !== null && micro !== 0n && micro >= least && micro <= most) return micro
      context.addIssue({ code: "custom", message: wanted })
      return z.NEVER
    })
}

/** A whole number that arrives as text in a path or query. */
export function wholeNumberText(least: number, most = Number.MAX_SAFE_INTEGER): z.ZodType<number, string | number> {
  return z
    .union([z.number(), z.string()])
    .meta({ shown: { type: "integer", minimum: least, ...(most < Number.MAX_SAFE_INTEGER && { maximum: most }) } })
    .transform((text) => (typeof text === "number" || /^-?\d{1,16}$/.test(text) ? Number(text) : Number.NaN))
    .refine((value) => Number.isSafeInteger(value) && value >= least && value <= most, {
      error:
        most === Number.MAX_SAFE_INTEGER
          ? `must be a whole number of at least ${least}`
          : `must be a whole number from ${least} to ${most}`,
    })
}

/** An id that is a whole number, in a path. One that is none names nothing, so handlers answer 404, not 422. */
export const numericId = z
  .union([z.number(), z.string()])
  .meta({ shown: { type: "integer", minimum: 1 } })
  .transform((text) => (/^\d{1,15}$/.test(String(text)) ? Number(text) : 0))

/** `limit` above the largest is cut to it, below 1 refused (GAP-57); `offset` counts from 0. */
export function paging(defaultLimit: number, largestLimit: number) {
  return {
    limit: wholeNumberText(1)
      .transform((limit) => Math.min(limit, largestLimit))
      .default(defaultLimit),
    offset: wholeNumberText(0).default(0),
  }
}

/** A page of rows in their named array, with the number returned (E-011) and where the page lies. */
export function pageOf<Name extends string, Row extends z.ZodType>(name: Name, row: Row) {
  return z.object({ ...namedArray(name, row), count: z.int(), limit: z.int(), offset: z.int() })
}

/** All rows in their named array, with their number (E-011). */
export function listOf<Name extends string, Row extends z.ZodType>(name: Name, row: Row) {
  return z.object({ ...namedArray(name, row), count: z.int() })
}

function namedArray<Name extends string, Row extends z.ZodType>(
  name: Name,
  row: Row,
): { [key in Name]: z.ZodArray<Row> } {
  return { [name]: z.array(row) } as { [key in Name]: z.ZodArray<Row> }
}
