import type { IncomingMessage, ServerResponse } from "node:http"
import type { Log } from "../../protocol/base/log.ts"
import { errorText } from "../../protocol/base/error-text.ts"
import { ComputalotError } from "../../protocol/domain/errors.ts"
import type { ErrorBody } from "../../protocol/api/common.ts"
import { sendJson } from "./send-json.ts"

/** Writes a refusal in its one shape. What is no `ComputalotError` is our own fault: 500, logged, and its text stays inside. */
export function sendError(
  request: IncomingMessage,
  response: ServerResponse,
  error: unknown,
  requestId: string,
  log: Log,
): void {
  const refusal = asRefusal(error)
  if (refusal.status === 500)
    log.error("request failed", { request_id: requestId, error: errorText(error), stack: stackOf(error) })
  if (response.headersSent) return void response.destroy()
  for (const [name, value] of Object.entries(headersOf(refusal))) response.setHeader(name, value)
  sendJson(request, response, refusal.status, JSON.stringify(errorBodyOf(refusal, requestId)))
}

/** For servers that answer while they start or stop, and for those that cannot store anything just now. */
export const RETRY_AFTER_S = 2

export function unavailable(why: string): ComputalotError {
  return new ComputalotError("unavailable", why, { recommendedAction: "Send the request again in a moment." })
}

/** The body of a refusal. */
function errorBodyOf(refusal: ComputalotError, requestId: string): ErrorBody {
  return {
    error: refusal.message,
    code: refusal.code,
    recommended_action: refusal.recommendedAction,
    ...(refusal.details === undefined ? {} : { details: refusal.details }),
    ...refusal.body,
    request_id: requestId,
  }
}

export function asRefusal(error: unknown): ComputalotError {
  if (error instanceof ComputalotError) return error
  // Express' router refuses undecodable parameters with an error of its own.
  if (error instanceof URIError)
    return new ComputalotError("malformed_path", "the path holds a percent sign that starts no valid escape")
  return new ComputalotError("internal", "the coordinator failed at this request; the fault is its own", {
    cause: error,
  })
}

function headersOf(refusal: ComputalotError): Record<string, string> {
  const headers: Record<string, string> = { ...refusal.headers }
  if (refusal.status === 401) headers["www-authenticate"] ??= "Bearer"
  // Payments that nobody set up do not come by waiting.
  if (refusal.status === 503 && refusal.code !== "payments_not_configured")
    headers["retry-after"] ??= String(RETRY_AFTER_S)
  return headers
}

const stackOf = (error: unknown): string | undefined => (error instanceof Error ? error.stack : undefined)
