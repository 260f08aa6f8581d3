import type { AccountId } from "../../protocol/domain/ids.ts"
import type { Caller } from "../accounts/authenticate.ts"

export interface ScopedRequest {
  caller: Caller
  query: { account_id?: string | undefined }
  account: () => AccountId
}

/** The account whose jobs the caller sees; null for an administrator who names none: everybody's. */
export function scopeOf(request: ScopedRequest): AccountId | null {
  return request.caller.role === "admin" && request.query.account_id === undefined ? null : request.account()
}
