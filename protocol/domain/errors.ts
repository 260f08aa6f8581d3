/** Every code the API may answer with, and its HTTP status. One closed list: the documents and the client read it. */
export const ERROR_STATUS = {
  invalid_request: 422,
  not_available_yet: 422,
  invalid_tarball: 422,
  invalid_manifest: 422,
  command_not_allowed: 422,
  payload_too_large: 422,
  idempotency_key_reused: 422,
  not_gzip: 400,
  malformed_path: 400,
  unauthenticated: 401,
  enrolment_refused: 401,
  insufficient_funds: 402,
  forbidden: 403,
  registration_closed: 403,
  key_revoked: 403,
  not_found: 404,
  method_not_allowed: 405,
  conflict: 409,
  no_revision: 409,
  project_busy: 409,
  request_in_flight: 409,
  held_funds: 409,
  gone: 410,
  body_too_large: 413,
  range_not_satisfiable: 416,
  too_many_requests: 429,
  internal: 500,
  unavailable: 503,
  payments_not_configured: 503,
  storage_full: 503,
  busy: 503,
} as const
export type ErrorCode = keyof typeof ERROR_STATUS

/**
 * A refusal that was to be expected: what went wrong, for whoever must act, and the next step.
 * The HTTP door renders it as `{error, code, recommended_action?, details?, request_id}` (rulings, HTTP).
 */
export class ComputalotError extends Error {
  override name = "ComputalotError"
  readonly code: ErrorCode
  readonly recommendedAction: string | undefined
  /** Machine-readable facts, already in the wire's snake_case. */
  readonly details: unknown
  /** Further top-level keys of the reply body (`quote`, `init_state`, …), snake_case. */
  readonly body: Record<string, unknown> | undefined
  /** Further reply headers (`Retry-After`, `Allow`, …). */
  readonly headers: Record<string, string> | undefined

  constructor(
    code: ErrorCode,
    message: string,
    facts: {
      recommendedAction?: string
      details?: unknown
      body?: Record<string, unknown>
      headers?: Record<string, string>
      cause?: unknown
    } = {},
  ) {
    super(message, facts.cause === undefined ? undefined : { cause: facts.cause })
    this.code = code
    this.recommendedAction = facts.recommendedAction
    this.details = facts.details
    this.body = facts.body
    this.headers = facts.headers
  }

  get status(): number {
    return ERROR_STATUS[this.code]
  }
}

/** One wrong field: 422 with its path, what was wrong and what would be right. */
export interface FieldProblem {
  /** `payload.items[3].name`; empty for the body itself. */
  path: string
  problem: string
}

export function invalidRequest(problems: FieldProblem[], recommendedAction?: string): ComputalotError {
  const first = problems[0]
  const message = first
    ? `${first.path === "" ? "the body" : first.path}: ${first.problem}`
    : "the request is not valid"
  return new ComputalotError("invalid_request", message, {
    recommendedAction: recommendedAction ?? "Correct the fields named in details and send the request again.",
    details: problems,
  })
}

export function invalidField(path: string, problem: string): ComputalotError {
  return invalidRequest([{ path, problem }])
}

export function notFound(what: string): ComputalotError {
  return new ComputalotError("not_found", `${what} was not found`, {
    recommendedAction: "Check the id or name; things of other accounts are not visible.",
  })
}
