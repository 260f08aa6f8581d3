import type { AccountId } from "../../protocol/domain/ids.ts"

/**
 * The account whose things a caller may name. Null for an administrator without an account who names none by `?account_id=`:
 * ids and names then resolve whosever they are (rulings, Money and identity).
 */
export function scopeOf(request: {
  caller: { account: AccountId | null }
  query: { account_id?: string | undefined }
  account: () => AccountId
}): AccountId | null {
  return request.caller.account === null && request.query.account_id === undefined ? null : request.account()
}
