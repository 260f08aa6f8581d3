import type { z } from "zod"

/**
 * One row of the endpoint table: what a request and its replies look like, written once and used by the server (mount), the
 * client (callEndpoint), OpenAPI and the documents.
 */
export interface Endpoint {
  /** Stable name, `jobs-create`: the one of contract/endpoints.json where it is listed there. */
  id: string
  method: "GET" | "POST" | "PUT" | "DELETE"
  /** `/api/v1/jobs/:id`. Static words win over parameters, whatever the order of mounting (E-010). */
  path: `/${string}`
  access: Access
  /** One sentence for the documents. */
  summary: string
  /** Of the path's parameters. Left out: each is a text. */
  params?: Schema
  /** Of the query's parameters, which arrive as texts (see `common.ts` for numbers). Unknown ones are ignored (C-19). */
  query?: Schema
  /** Of the JSON body. No body at all counts as `{}` (E-007), so an object without required fields may be left out. */
  body?: Schema
  /** Also takes what a plain HTML form sends; fields that were left empty count as left out. */
  form?: true
  /** Takes raw bytes instead of JSON, whatever their Content-Type (E-008). */
  rawBody?: RawBody
  /** Of the JSON reply. Left out where the endpoint streams. */
  reply?: Schema
  /** Of the successful reply; 200 when left out. */
  status?: number
  /** Further documented statuses and, where it is not the error body, what they carry (207, 402 with a quote, …). */
  replies?: Readonly<Record<number, OtherReply>>
  /** Creates something: `Idempotency-Key` makes a repetition give the first answer again (GAP-69). POST only. */
  creates?: true
  /** The reply is no JSON: an event stream, or bytes of the given kind. The handler writes it itself. */
  stream?: "events" | "bytes" | "text"
  /** Of a stream's reply, without its charset; left out where the bytes are of any kind. */
  contentType?: string
}

/** Who may call: everybody, any key, keys that may change things, administrators, enrolled nodes. */
export type Access = "public" | "viewer" | "member" | "admin" | "node"

interface RawBody {
  /** Inclusive; one byte more is 413, by Content-Length before anything is read and by counting while it streams (GAP-13). */
  limitBytes: number
  contentType: string
}

interface OtherReply {
  description: string
  schema?: Schema
}

type Schema = z.ZodType

/** Writes one row. The type stays as narrow as written, so that handlers and callers are checked against it. */
export function endpoint<const Row extends Endpoint>(row: Row): Row {
  return row
}

/** What a handler gets after parsing. */
export type ParamsOf<Row extends Endpoint> = Row extends { params: infer S extends Schema }
  ? z.output<S>
  : PathParams<Row["path"]>
export type QueryOf<Row extends Endpoint> = Row extends { query: infer S extends Schema } ? z.output<S> : NoFields
export type BodyOf<Row extends Endpoint> = Row extends { body: infer S extends Schema } ? z.output<S> : undefined

/** What a caller passes: the same before parsing. */
export type ParamsInput<Row extends Endpoint> = Row extends { params: infer S extends Schema }
  ? z.input<S>
  : PathParams<Row["path"]>
export type QueryInput<Row extends Endpoint> = Row extends { query: infer S extends Schema } ? z.input<S> : NoFields
export type BodyInput<Row extends Endpoint> = Row extends { body: infer S extends Schema } ? z.input<S> : undefined

/** What the server writes, and what the client reads. */
export type ReplyOf<Row extends Endpoint> = Row extends { reply: infer S extends Schema } ? z.output<S> : undefined

type NoFields = Record<never, never>

/** `/a/:id/b/:key` gives `{ id: string; key: string }`. */
type PathParams<Path extends string> = { [Name in ParamNames<Path>]: string }
type ParamNames<Path extends string> = Path extends `${string}:${infer Rest}`
  ? Rest extends `${infer Name}/${infer Tail}`
    ? Name | ParamNames<`/${Tail}`>
    : Rest
  : never
