import type { IncomingHttpHeaders, IncomingMessage, RequestListener, ServerResponse } from "node:http"
import type { Readable } from "node:stream"
import express, { type Request, type Response, type Router } from "express"
import { assert } from "../../protocol/base/assert.ts"
import { every, type Clock } from "../../protocol/base/clock.ts"
import { errorText } from "../../protocol/base/error-text.ts"
import { stringifyJson } from "../../protocol/base/json-text.ts"
import type { Log } from "../../protocol/base/log.ts"
import { randomText, type Random } from "../../protocol/base/random.ts"
import type { BodyOf, Endpoint, ParamsOf, QueryOf, ReplyOf } from "../../protocol/api/endpoint.ts"
import { parseFields } from "../../protocol/api/parse.ts"
import { ComputalotError } from "../../protocol/domain/errors.ts"
import { quoteId, type AccountId } from "../../protocol/domain/ids.ts"
import type { Store } from "../store/store.ts"
import { authorize, type CallerOf, type Identities } from "./auth.ts"
import { createRequestOrigins, type RequestOrigin } from "./client-address.ts"
import { ClientGone, JSON_LIMIT_BYTES, newBodyMemory, PUBLIC_JSON_LIMIT_BYTES, requestBody } from "./body.ts"
import { asRefusal, sendError, unavailable } from "./errors.ts"
import { createIdempotencyKeys, type HeldKey, type Idempotency, type IdempotencyKeys } from "./idempotency.ts"
import { asCaller, ParsedRequest } from "./parsed-request.ts"
import { JsonPieces, Reply } from "./reply.ts"
import { createRouteTable, type RouteTable } from "./route-table.ts"
import { sendJson, sendPieces } from "./send-json.ts"
import { createWriteProbe } from "./write-probe.ts"

/** The client-facing door. It answers from its creation on; `/api/v1` does once `open` was called. */
export interface HttpApp {
  /** For `http.createServer` and its `checkContinue` event. */
  readonly listener: RequestListener
  /** What `/ready` says (O-003). */
  readiness(): Promise<Readiness>
  /** Adds one route. Order does not matter: static words win over parameters (E-010). */
  add(route: Route): void
  /** Every row that is served. */
  rows(): readonly Endpoint[]
  /** Is the core running? Rows are still missing before. */
  isOpen(): boolean
  /** The core runs: `/api/v1` is served from now on. */
  open(core: HttpCore): void
  /** The core is about to stop: `/api/v1` answers 503, streams end. A second call does nothing. */
  close(): void
}

/** What the door needs of the running core. */
export interface HttpCore extends Identities {
  store: Store
  /** Changes something, so that `/ready` knows whether changes are stored; left out, only the store's own word counts. */
  probe?: () => Promise<unknown>
}

interface Readiness {
  status: "ready" | "unavailable"
  checks: { repo: "ok" | "down"; api_supervisor: "ok" | "down"; controller_core: "ok" | "down" }
}

/** A request and what became of it. */
export interface Answered {
  method: string
  /** The path as the endpoint table has it, `/api/v1/jobs/:id`; `unmatched` where there is nothing. */
  route: string
  /** 499: the client left before the answer was whole. */
  status: number
  ms: number
  isStream: boolean
}

export interface HttpAppParts {
  clock: Clock
  random: Random
  log: Log
  /** Proxies whose `X-Forwarded-For` counts: addresses and CIDR ranges. */
  trustProxy?: readonly string[]
  /** Told of every request that has its answer, or whose client has left. */
  onAnswered?: (answered: Answered) => void
  /** Compares every reply with its schema and fails where they differ: for tests. */
  checkReplies?: boolean
}

/** One request of `Row`, parsed. */
export interface HttpRequest<Row extends Endpoint = Endpoint> {
  /** Stands in logs and errors as `request_id`. */
  readonly id: string
  /** Where it comes from: what strangers are limited by. */
  readonly origin: RequestOrigin
  readonly caller: CallerOf<Row>
  readonly params: ParamsOf<Row>
  readonly query: QueryOf<Row>
  readonly body: BodyOf<Row>
  /** The JSON body as it came, for what must be kept as it was written; `{}` without one. */
  readonly bodyText: string
  readonly headers: IncomingHttpHeaders
  readonly method: string
  /** Aborted when the client is gone, and for streams also when the coordinator stops. */
  signal(): AbortSignal
  /** The account this request is about: the caller's, or the one an administrator names by `?account_id=` (422 without). */
  account(): AccountId
  /** Is the token still good for this? Streams ask again while they run. */
  stillAllowed(): Promise<boolean>
  /** The bytes of a `rawBody` endpoint; `100 Continue` and the first read happen now, so check everything else before. */
  openBody(): Readable
  /** Of a `creates` endpoint: hand `remember(…)` to the act, so that the answer is stored in the act's own write. */
  readonly idempotency: Idempotency
  /** For `stream` endpoints, which write their reply themselves. */
  readonly response: ServerResponse
}

export type Handler<Row extends Endpoint> = (
  request: HttpRequest<Row>,
) => Promise<(Row extends { stream: string } ? void : ReplyOf<Row>) | Reply>

/**
 * Looks at the resource before the body is read: its refusals come before `100 Continue`, 413 and 422 of the body. Owner
 * checks of endpoints with large bodies belong here.
 */
export type BeforeBody<Row extends Endpoint> = (
  request: Omit<HttpRequest<Row>, "body" | "bodyText" | "openBody">,
) => Promise<void>

/** Serves one row of the endpoint table: token → role → parameters → `before` → size → body → `handle` → reply. */
export function mount<Row extends Endpoint>(
  app: Pick<HttpApp, "add">,
  row: Row,
  handle: Handler<Row>,
  options: { before?: BeforeBody<Row> } = {},
): void {
  // The types were checked against this row; behind the table they no longer differ.
  app.add({ row, handle, before: options.before } as unknown as Route)
}

/** A mounted row, its types forgotten. */
interface Route {
  row: Endpoint
  handle: Handler<Endpoint>
  before: BeforeBody<Endpoint> | undefined
}

export function createHttpApp(parts: HttpAppParts): HttpApp {
  const routes: Route[] = []
  const stopping = new AbortController()
  /** Those that are told when the coordinator stops. */
  const streams = new Set<ParsedRequest>()
  let running: RunningCore | null = null
  let router: Router | null = null
  let table: RouteTable<Route> | null = null
  const memory = newBodyMemory()
  const originOf = createRequestOrigins(parts.trustProxy ?? [])

  const app = express()
  app.disable("x-powered-by")
  app.disable("etag")
  app.set("case sensitive routing", true)
  app.use((request, response, next) => {
    const exchange = begin(request, response)
    response.locals[EXCHANGE] = exchange
    checkAddress(request.originalUrl, request.path)
    exchange.query = request.query
    next()
  })
  app.use((request, response, next) => (router ??= buildRouter(routes, serve))(request, response, next))
  app.use((request) => {
    throw new ComputalotError("not_found", `there is nothing at ${request.path}`, {
      recommendedAction: "GET /api/v1/docs lists what there is.",
    })
  })
  app.use((error: unknown, _request: Request, response: Response, _next: unknown) =>
    refuse(exchangeOf(response), error),
  )

  /** What has a row and a plain address is served at once; Express says what is wrong with everything else. */
  function listener(request: IncomingMessage, response: ServerResponse): void {
    table ??= createRouteTable(routes, ({ row }) => row)
    const found = table.find(request.method ?? "", request.url ?? "")
    if (found === null) return void app(request, response)
    const exchange = begin(request, response)
    exchange.params = found.params
    exchange.query = found.query
    answerStraight(found.route, exchange)
      .catch((error: unknown) => refuse(exchange, error))
      .catch((error: unknown) => {
        parts.log.error("refusal failed", { request_id: exchange.id, error: errorText(error) })
        response.destroy()
      })
  }

  async function answerStraight(route: Route, exchange: Exchange): Promise<void> {
    checkAddress(exchange.url, exchange.url)
    await serve(route, exchange)
  }

  /** Every answer names its request, and every request is counted and logged once its answer is whole. */
  function begin(request: IncomingMessage, response: ServerResponse): Exchange {
    const id = requestIdOf(request, parts.random)
    const url = request.url ?? ""
    const exchange = { request, response, id, url, route: "unmatched", isStream: false, params: {}, query: {} }
    response.setHeader("x-request-id", id)
    // Artifacts are what strangers made: a browser shall not guess what they are.
    response.setHeader("x-content-type-options", "nosniff")
    if (stopping.signal.aborted) response.setHeader("connection", "close")
    const startedAtMs = parts.clock.monotonicMs()
    // It comes once: `once` would only wrap the function.
    response.on("close", () => noteAnswer(exchange, parts.clock.monotonicMs() - startedAtMs))
    return exchange
  }

  function checkAddress(url: string, path: string): void {
    if (!isDecodable(url))
      throw new ComputalotError("malformed_path", "a percent sign in the address starts no valid escape")
    if (running === null && path.startsWith("/api/v1"))
      throw unavailable(`the coordinator is ${stopping.signal.aborted ? "stopping" : "starting"}`)
  }

  function refuse({ request, response, id }: Exchange, error: unknown): void {
    if (error instanceof ClientGone || isGone(request, response)) {
      if (!(error instanceof ClientGone)) parts.log.debug("client left", { request_id: id, error: errorText(error) })
      return void response.destroy()
    }
    sendError(request, response, error, id, parts.log)
  }

  function noteAnswer({ request, response, id, route, isStream }: Exchange, ms: number): void {
    const { method = "" } = request
    const status = response.writableFinished ? response.statusCode : CLIENT_LEFT
    parts.onAnswered?.({ method, route, status, ms, isStream })
    const isRead = (method === "GET" || method === "HEAD") && status < 500
    parts.log[isRead ? "debug" : "info"]("request", {
      request_id: id,
      method,
      route,
      status,
      ms: Math.round(ms * 10) / 10,
    })
  }

  async function serve({ row, handle, before }: Route, exchange: Exchange): Promise<void> {
    exchange.route = row.path
    exchange.isStream = row.stream === "events"
    const { request, response } = exchange
    const core = running
    const identities: Identities = core ?? { identify: async () => null }
    const caller = await authorize(identities, row.access, request)
    const jsonLimit = row.access === "public" ? PUBLIC_JSON_LIMIT_BYTES : JSON_LIMIT_BYTES
    const bodyLimit = row.rawBody?.limitBytes ?? jsonLimit
    // What is open for hours keeps nothing that it does not need.
    const content = exchange.isStream ? null : requestBody(request, response, bodyLimit, awaitsContinue(request))
    const parsed = new ParsedRequest({
      id: exchange.id,
      row,
      request,
      response,
      identities,
      origin: originOf(request),
      caller,
      params: row.params === undefined ? exchange.params : parseFields(row.params, exchange.params),
      rawQuery: exchange.query,
      query: row.query === undefined ? {} : parseFields(row.query, exchange.query),
      content,
    })
    const asRequest = parsed as unknown as HttpRequest
    if (row.stream !== undefined) streams.add(parsed)
    response.on("close", () => {
      streams.delete(parsed)
      // Whoever had the whole answer is not gone early; most requests end here, and an abort costs as much as a small read.
      const isWhole = response.writableFinished && row.stream === undefined
      if (!isWhole) parsed.abort(new ClientGone("the client closed the connection"))
      content?.release()
    })
    // What is said of a request before its body is read is not said of one that was answered already: its answer is.
    if (before && !(await isAnswered(core, row, caller, request))) await before(asRequest)
    if (content === null) return follow({ row, handle }, asRequest, exchange)
    if (row.body !== undefined || row.rawBody !== undefined) content.checkDeclaredSize()
    if (row.body !== undefined) {
      const { value, text } = await content.readJson(memory, { form: row.form === true })
      parsed.body = parseFields(row.body, value)
      parsed.bodyText = text
    }

    const key = request.headers["idempotency-key"]
    if (core === null || row.creates === undefined || typeof key !== "string") {
      return answer(row, request, response, await handle(asRequest))
    }
    const taken = await core.keys.take(asCaller(caller), key, {
      line: `${request.method} ${exchange.url}`,
      bodyDigest: () => content.digest(),
      toJson: stringifyJson,
    })
    if (taken.kind === "answered") {
      response.setHeader("idempotent-replayed", "true")
      return sendJson(request, response, taken.status, taken.bodyJson)
    }
    parsed.idempotency = taken.held
    const reply = await withHeldKey(taken.held, row, () => handle(asRequest))
    return answer(row, request, response, reply)
  }

  /** An event stream is open for hours: nobody waits for it. */
  function follow({ row, handle }: Pick<Route, "row" | "handle">, parsed: HttpRequest, exchange: Exchange): void {
    handle(parsed)
      .then((result) => answer(row, exchange.request, exchange.response, result))
      .catch((error: unknown) => refuse(exchange, error))
  }

  async function isAnswered(
    core: RunningCore | null,
    row: Endpoint,
    caller: Parameters<typeof asCaller>[0],
    request: IncomingMessage,
  ): Promise<boolean> {
    const key = request.headers["idempotency-key"]
    if (core === null || row.creates === undefined || typeof key !== "string") return false
    return await core.keys.isAnswered(asCaller(caller), key)
  }

  async function answer(
    row: Endpoint,
    request: IncomingMessage,
    response: ServerResponse,
    result: unknown,
  ): Promise<void> {
    if (result === undefined && row.stream !== undefined) return
    const reply = result instanceof Reply ? result : new Reply(row.status ?? 200, result)
    for (const [name, value] of Object.entries(reply.headers)) response.setHeader(name, value)
    if (reply.status === 204) return void response.writeHead(204).end()
    if (reply.body instanceof JsonPieces && !parts.checkReplies) {
      return await sendPieces(request, response, reply.status, reply.body)
    }
    const text = reply.body instanceof JsonPieces ? await wholeText(reply.body) : stringifyJson(reply.body)
    if (parts.checkReplies) assertDocumented(row, reply.status, text)
    sendJson(request, response, reply.status, text)
  }

  async function readiness(): Promise<Readiness> {
    const stores = running !== null && running.store.writeProblem() === null && (await running.isWritable())
    const repo = stores ? "ok" : "down"
    const controller_core = running === null ? "down" : "ok"
    const api_supervisor = stopping.signal.aborted ? "down" : "ok"
    const status = repo === "ok" && controller_core === "ok" && api_supervisor === "ok" ? "ready" : "unavailable"
    return { status, checks: { repo, api_supervisor, controller_core } }
  }

  return {
    listener,
    readiness,
    add(route) {
      assert(
        !routes.some((other) => sameRoute(other.row, route.row)),
        `${route.row.method} ${route.row.path} is mounted once`,
      )
      routes.push(route)
      router = null
      table = null
    },
    rows: () => routes.map(({ row }) => row),
    isOpen: () => running !== null,
    open(core) {
      assert(running === null && !stopping.signal.aborted, "the door is opened once")
      running = runCore(core, parts)
    },
    close() {
      running?.sweeping[Symbol.dispose]()
      running = null
      const reason = new Error("the coordinator is stopping")
      stopping.abort(reason)
      for (const stream of streams) stream.abort(reason)
    },
  }
}

/** A request on its way to its answer. */
interface Exchange {
  readonly request: IncomingMessage
  readonly response: ServerResponse
  readonly id: string
  /** As it came, with its query. */
  readonly url: string
  /** As the endpoint table has it; `unmatched` where there is nothing. */
  route: string
  isStream: boolean
  params: Record<string, unknown>
  query: Record<string, unknown>
}

const EXCHANGE = "exchange"
const exchangeOf = (response: Response): Exchange => response.locals[EXCHANGE] as Exchange
/** As nginx calls it. */
const CLIENT_LEFT = 499

interface RunningCore extends HttpCore {
  keys: IdempotencyKeys
  isWritable: () => Promise<boolean>
  sweeping: Disposable
}

function runCore(core: HttpCore, parts: HttpAppParts): RunningCore {
  const keys = createIdempotencyKeys({ store: core.store, clock: parts.clock })
  const sweep = (): void => {
    keys.sweep().catch((error: unknown) => parts.log.warn("idempotency keys not swept", { error: errorText(error) }))
  }
  return {
    ...core,
    keys,
    isWritable: core.probe === undefined ? async () => true : createWriteProbe(parts.clock, core.probe),
    sweeping: every(parts.clock, SWEEP_EVERY_MS, sweep),
  }
}

/** Old keys cost only room, so they may wait for the next ten minutes. */
const SWEEP_EVERY_MS = 10 * 60 * 1000

/** One Express route for each path, static words first, and 405 with `Allow` for the methods it lacks. */
function buildRouter(routes: Route[], serve: (route: Route, exchange: Exchange) => Promise<void>): Router {
  const router = express.Router({ caseSensitive: true, strict: true })
  const byPath = Map.groupBy(routes, (route) => route.row.path)
  for (const [path, group] of [...byPath].sort(([a], [b]) => compareSpecificity(a, b))) {
    const one = router.route(path)
    for (const route of group)
      one[METHODS[route.row.method]](({ params }: Request, response: Response) =>
        serve(route, Object.assign(exchangeOf(response), { params })),
      )
    const allowed = group.flatMap(({ row }) => (row.method === "GET" ? ["GET", "HEAD"] : [row.method])).join(", ")
    one.all((request: Request, response: Response) => {
      exchangeOf(response).route = path
      throw new ComputalotError("method_not_allowed", `${request.method} is not possible here`, {
        recommendedAction: `Use ${allowed}.`,
        headers: { allow: allowed },
      })
    })
  }
  return router
}

const METHODS = { GET: "get", POST: "post", PUT: "put", DELETE: "delete" } as const

const sameRoute = (a: Endpoint, b: Endpoint): boolean => a.method === b.method && a.path === b.path

/** Segment by segment, words before parameters. */
function compareSpecificity(a: string, b: string): number {
  const [left, right] = [a, b].map((path) => path.replaceAll(/:[a-z_]+/g, "￿"))
  return (left ?? "") < (right ?? "") ? -1 : 1
}

async function withHeldKey(held: HeldKey, row: Endpoint, act: () => Promise<unknown>): Promise<unknown> {
  try {
    const result = await act()
    const reply = result instanceof Reply ? result : new Reply(row.status ?? 200, result)
    const isGood = reply.status >= 200 && reply.status < 300
    if (isGood && !held.isRemembered() && !held.staysOpen()) await held.storeReply(reply)
    return result
  } catch (error) {
    const quote = quoteNamedBy(asRefusal(error))
    if (quote !== null) await held.storeQuote(quoteId(quote))
    throw error
  } finally {
    held.release()
  }
}

/** The quote in the body of a 402: the key keeps it until the request can be admitted (rulings, Idempotency). */
function quoteNamedBy(refusal: ComputalotError): string | null {
  const quote = refusal.status === 402 ? refusal.body?.["quote"] : undefined
  return typeof quote === "object" && quote !== null && "id" in quote && typeof quote.id === "string" ? quote.id : null
}

async function wholeText({ pieces }: JsonPieces): Promise<string> {
  let text = ""
  for await (const piece of pieces) text += piece
  return text
}

function assertDocumented(row: Endpoint, status: number, text: string): void {
  const schema = status === (row.status ?? 200) ? row.reply : row.replies?.[status]?.schema
  assert(schema !== undefined, `${row.id} documents a reply with status ${status}`)
  const checked = schema.safeParse(JSON.parse(text))
  assert(checked.success, `the reply of ${row.id} is as documented: ${checked.error?.message}`)
}

/** A client's own id is echoed when it is harmless in logs and headers (GAP-68). */
function requestIdOf(request: IncomingMessage, random: Random): string {
  const given = request.headers["x-request-id"]
  return typeof given === "string" && /^[\w.:-]{1,128}$/.test(given) ? given : `req_${randomText(random, 16)}`
}

function isDecodable(address: string): boolean {
  if (!address.includes("%")) return true
  try {
    decodeURIComponent(address)
    return true
  } catch {
    return false
  }
}

const awaitsContinue = (request: IncomingMessage): boolean => /^100-continue$/i.test(request.headers.expect ?? "")

const isGone = (request: IncomingMessage, response: ServerResponse): boolean => request.destroyed && response.destroyed
