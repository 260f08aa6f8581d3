import type { IncomingMessage } from "node:http"
import { unreachable } from "../../protocol/base/assert.ts"
import { ComputalotError, invalidField } from "../../protocol/domain/errors.ts"
import { accountId, type AccountId, type NodeId } from "../../protocol/domain/ids.ts"
import type { Role } from "../../protocol/domain/statuses.ts"
import type { Access, Endpoint } from "../../protocol/api/endpoint.ts"
import type { Caller } from "../accounts/authenticate.ts"

export interface NodeCaller {
  node: NodeId
}

/** Looks tokens up. Null for what is unknown, expired or revoked; the three look alike from outside. */
export interface Identities {
  identify: (token: string) => Promise<Caller | null>
  identifyNode?: (token: string) => Promise<NodeCaller | null>
}

export type CallerOf<Row extends Endpoint> = Row["access"] extends "public"
  ? null
  : Row["access"] extends "node"
    ? NodeCaller
    : Caller

/** 401 without a valid token, 403 when its role is not enough (GAP-01). */
export async function authorize(
  identities: Identities,
  access: Access,
  request: IncomingMessage,
): Promise<Caller | NodeCaller | null> {
  if (access === "public") return null
  const token = bearerToken(request)
  const caller = await identities[access === "node" ? "identifyNode" : "identify"]?.(token)
  if (caller === null || caller === undefined) throw unauthenticated("the bearer token is not valid, or no longer")
  if ("role" in caller && !isAllowed(caller.role, access)) {
    throw new ComputalotError("forbidden", `the role ${caller.role} may not do this`, {
      recommendedAction: `Use a key of the role ${access}.`,
    })
  }
  return caller
}

/** The account a request is about: the caller's own; administrators may name another by `?account_id=`. */
export function accountOf(caller: Caller, query: Record<string, unknown>): AccountId {
  const named = query["account_id"]
  if (caller.role === "admin" && named !== undefined) {
    if (typeof named !== "string" || !/^\d{1,15}$/.test(named))
      throw invalidField("account_id", "must be the whole number of an account")
    return accountId(Number(named))
  }
  if (caller.account !== null) return caller.account
  throw invalidField("account_id", "is required: this token has no account of its own, so name one with ?account_id=")
}

/** The token that the request carries; 401 without one. */
export function bearerToken(request: IncomingMessage): string {
  const match = /^Bearer +([\x21-\x7e]{1,512}) *$/i.exec(request.headers.authorization ?? "")
  if (match?.[1] === undefined) throw unauthenticated("a bearer token is required")
  return match[1]
}

function unauthenticated(why: string): ComputalotError {
  return new ComputalotError("unauthenticated", why, {
    recommendedAction: "Send the header Authorization: Bearer <token> with a key that an administrator issued.",
  })
}

/** Viewers read, members change what is theirs, administrators do both and more. */
function isAllowed(role: Role, access: Exclude<Access, "public">): boolean {
  switch (access) {
    case "viewer":
      return true
    case "member":
      return role === "member" || role === "admin"
    case "admin":
      return role === "admin"
    case "node":
      return false
    default:
      return unreachable(access)
  }
}
