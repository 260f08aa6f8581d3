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
  no_capacity: 409,
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

/** What each code means and what to do about it: the documents list it, and a refusal that names no step of its own says it. */
export const ERROR_GUIDE: Readonly<Record<ErrorCode, { meaning: string; next: string }>> = {
  invalid_request: {
    meaning: "A field, parameter or header is wrong.",
    next: "Correct the fields named in details and send the request again.",
  },
  not_available_yet: {
    meaning: "The documents promise it, this version does not do it yet.",
    next: "Leave these fields out, or keep their defaults, until this deployment offers them.",
  },
  invalid_tarball: {
    meaning: "The pushed bytes are no usable tar archive.",
    next: "Mend the entry that details names and push again.",
  },
  invalid_manifest: {
    meaning: "computalot.project.json is wrong, or names what is not in the tarball.",
    next: "Mend the manifest as details say and push again.",
  },
  command_not_allowed: {
    meaning: "runner_command starts with something that is not started here.",
    next: "Start an interpreter or tool of the list directly; put shell steps into a script of the project.",
  },
  payload_too_large: {
    meaning: "The payload of one task is larger than 1 MiB.",
    next: "Upload large inputs as artifacts and name them in the payload.",
  },
  idempotency_key_reused: {
    meaning: "The Idempotency-Key stands for another request.",
    next: "Use a new key for a new request; a key belongs to one method, path and body.",
  },
  not_gzip: {
    meaning: "The pushed body is not gzip.",
    next: "Send the bytes of a .tar.gz as the body: curl --data-binary @code.tar.gz.",
  },
  malformed_path: {
    meaning: "The address holds a percent sign that starts no valid escape.",
    next: "Escape each percent sign in the address as %25.",
  },
  unauthenticated: {
    meaning: "There is no valid bearer token.",
    next: "Send the header Authorization: Bearer <token> with a key that an administrator issued.",
  },
  enrolment_refused: {
    meaning: "A node's join token or signature does not hold.",
    next: "Ask the administrator for a new join token.",
  },
  insufficient_funds: {
    meaning: "The account cannot cover what the request may cost; nothing was created.",
    next: "Fund the account, then send the same request again.",
  },
  forbidden: { meaning: "The role of the token does not reach so far.", next: "Use a key of the role that is named." },
  registration_closed: {
    meaning: "Nobody can register by themselves.",
    next: "Ask an administrator of this deployment for a key.",
  },
  key_revoked: {
    meaning: "The node's key was revoked, and that is final.",
    next: "Enrol the machine anew, with an empty data directory and a new join token.",
  },
  not_found: {
    meaning: "It does not exist, or belongs to another account.",
    next: "Check the id or name; things of other accounts are not visible.",
  },
  method_not_allowed: {
    meaning: "The address exists, but not with this method.",
    next: "Use a method that the Allow header names.",
  },
  conflict: {
    meaning: "The state of the thing does not allow it.",
    next: "Look at its present state first, then decide again.",
  },
  no_revision: {
    meaning: "Nothing has been pushed to the project yet.",
    next: "POST /api/v1/projects/:name/push first.",
  },
  project_busy: {
    meaning: "The project is initializing or refreshing.",
    next: "Follow GET /api/v1/projects/:name/status and push again once init_state is another.",
  },
  no_capacity: {
    meaning: "So much capacity cannot be reserved now.",
    next: "Ask for less parallelism, try again later, or submit the job as best_effort.",
  },
  request_in_flight: {
    meaning: "A request with this Idempotency-Key is still being worked on.",
    next: "Wait a moment and send the same request again: it then gives the first answer.",
  },
  held_funds: {
    meaning: "The money is held for running work.",
    next: "Take back at most what is available, or wait until jobs have ended.",
  },
  gone: { meaning: "It was there and is no longer wanted.", next: "Give it up: nobody waits for it any more." },
  body_too_large: {
    meaning: "The body is larger than this route takes.",
    next: "Send a smaller body; large inputs belong into artifacts.",
  },
  range_not_satisfiable: {
    meaning: "The asked range lies outside the file.",
    next: "Ask for a range inside it; the Content-Range header tells its size.",
  },
  too_many_requests: {
    meaning: "Too many requests came from this address.",
    next: "Wait as long as the Retry-After header says, then send it again.",
  },
  internal: {
    meaning: "The coordinator failed; the fault is its own.",
    next: "Send the request again; if it fails again, report the request_id.",
  },
  unavailable: {
    meaning: "The coordinator starts or stops.",
    next: "Send the same request again after the seconds that Retry-After names.",
  },
  payments_not_configured: {
    meaning: "This deployment takes no payments.",
    next: "Ask an administrator of this deployment for credit.",
  },
  storage_full: {
    meaning: "The coordinator cannot store anything at the moment.",
    next: "Send the same request again later; an operator must make room.",
  },
  busy: {
    meaning: "More is asked at once than can be taken.",
    next: "Send the same request again after the seconds that Retry-After names.",
  },
}

/**
 * A refusal that was to be expected: what went wrong, for whoever must act, and the next step.
 * The HTTP door renders it as `{error, code, recommended_action?, details?, request_id}` (rulings, HTTP).
 */
export class ComputalotError extends Error {
  override name = "ComputalotError"
  readonly code: ErrorCode
  /** Every refusal names the next step: where whoever throws has no better one, that of its code. */
  readonly recommendedAction: string
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
    this.recommendedAction = facts.recommendedAction ?? ERROR_GUIDE[code].next
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
    ...(recommendedAction === undefined ? {} : { recommendedAction }),
    details: problems,
  })
}

export function invalidField(path: string, problem: string): ComputalotError {
  return invalidRequest([{ path, problem }])
}

export function notFound(what: string): ComputalotError {
  return new ComputalotError("not_found", `${what} was not found`)
}
