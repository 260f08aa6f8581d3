import type { z } from "zod"
import { sha256Hex } from "../../protocol/base/digest.ts"
import { errorBody } from "../../protocol/api/common.ts"
import type { Endpoint } from "../../protocol/api/endpoint.ts"
import { ERROR_GUIDE, ERROR_STATUS, type ErrorCode } from "../../protocol/domain/errors.ts"
import { BODY_EXAMPLES } from "./examples.ts"
import type { DocumentFacts } from "./facts.ts"
import { isFeatureName } from "./features.ts"
import { BODY_NOTES } from "./field-notes.ts"
import { jsonSchemaOf, resolved, type JsonSchema } from "./schema-text.ts"

type Json = Record<string, unknown>

/** Every route that is served as OpenAPI 3.1: requests, replies, each status that may come, and where an answer leads. */
export function openApi(facts: DocumentFacts, version: string): Json {
  const components = new Components()
  const paths: Record<string, Json> = {}
  for (const row of facts.rows) {
    const path = row.path.replaceAll(/:(?<name>[a-z_]+)/g, "{$<name>}")
    paths[path] = { ...paths[path], [row.method.toLowerCase()]: operation(row, facts, components) }
  }
  const tags = [...new Set(facts.rows.map(tagOf))]
  return {
    openapi: "3.1.0",
    info: {
      title: "Computalot",
      version,
      summary: "Spare CPU and GPU machines as one compute service.",
      description: `Read ${facts.origin}/llms-full.txt for how the parts fit together.`,
      license: { name: "Apache-2.0", identifier: "Apache-2.0" },
    },
    servers: [{ url: facts.origin }],
    tags: tags.map((name) => ({ name, description: TAGS[name] ?? `Routes of ${name}.` })),
    security: [{ bearer: [] }],
    paths,
    components: {
      schemas: components.schemas(),
      responses: components.responses(),
      securitySchemes: {
        bearer: { type: "http", scheme: "bearer", description: "A key (flk_…) that an administrator issued." },
        node: { type: "http", scheme: "bearer", description: "What an enrolled node was given for its transfers." },
      },
    },
  }
}

const TAGS: Readonly<Record<string, string>> = {
  ops: "Is the service there?",
  documents: "What is written about it.",
  account: "Money.",
  projects: "Code, and how ready it is.",
  jobs: "Work.",
  results: "What it came to.",
  artifacts: "Files.",
  leases: "Reservations.",
  presets: "Common shapes of requirements.",
  feedback: "What you miss.",
  admin: "For administrators.",
  nodes: "For the machines of the fleet.",
}

function tagOf({ path, stream, access }: Endpoint): string {
  const group = /^\/api\/v1\/(?<group>[a-z]+)/.exec(path)?.groups?.["group"]
  if (group !== undefined && group !== "docs") return group
  return stream === "text" && access === "public" && path !== "/metrics" ? "documents" : "ops"
}

function operation(row: Endpoint, facts: DocumentFacts, components: Components): Json {
  const body = requestBody(row, facts, components)
  const links = linksFrom(row, facts.rows)
  const success = String(row.status ?? 200)
  const responses = responsesOf(row, components)
  if (Object.keys(links).length > 0) responses[success] = { ...responses[success], links }
  return {
    operationId: row.id,
    summary: row.summary,
    tags: [tagOf(row)],
    // A public route that may refuse a caller takes a token as well.
    ...(row.access === "public" && { security: row.replies?.[401] ? [{}, { bearer: [] }] : [] }),
    ...(row.access === "node" && { security: [{ node: [] }] }),
    parameters: [...pathParameters(row), ...queryParameters(row), ...headerParameters(row)],
    ...(body && { requestBody: body }),
    responses,
  }
}

function pathParameters(row: Endpoint): Json[] {
  const fields = row.params === undefined ? {} : (jsonSchemaOf(row.params, "input").properties ?? {})
  return [...row.path.matchAll(/:(?<name>[a-z_]+)/g)].map((match) => {
    const name = match.groups?.["name"] ?? ""
    const example = PATH_EXAMPLES[name]
    return {
      name,
      in: "path",
      required: true,
      schema: fields[name] ?? { type: "string", minLength: 1 },
      ...(example !== undefined && { example }),
    }
  })
}

const PATH_EXAMPLES: Readonly<Record<string, string>> = { name: "my-proj", key: "dataset_ready" }

function queryParameters(row: Endpoint): Json[] {
  if (row.query === undefined) return []
  const { properties = {}, required = [] } = jsonSchemaOf(row.query, "input")
  return Object.entries(properties).map(([name, schema]) => ({
    name,
    in: "query",
    ...(required.includes(name) && { required: true }),
    ...(name === "account_id" && { description: "Administrators name an account by it." }),
    schema,
  }))
}

function headerParameters(row: Endpoint): Json[] {
  const header = (name: string, description: string, schema: JsonSchema = { type: "string" }): Json => ({
    name,
    in: "header",
    description,
    schema,
  })
  return [
    ...(row.creates ? [header("Idempotency-Key", "A repetition gives the first answer again.", KEY_SCHEMA)] : []),
    ...(row.stream === "events" ? [header("Last-Event-ID", "The last id that was seen: goes on behind it.")] : []),
    ...(row.stream === "text" && row.replies?.[304]
      ? [header("If-None-Match", "The ETag that is already there.")]
      : []),
    ...(row.id === "artifacts-upload"
      ? [
          header("X-Artifact-Filename", "The file's name."),
          header("X-Artifact-Job-Id", "Links the artifact to a job of yours."),
        ]
      : []),
    ...(row.id === "artifacts-download"
      ? [
          header("Range", "A part of the bytes: bytes=0-99."),
          header("If-None-Match", "The ETag that is already there."),
        ]
      : []),
  ]
}

const KEY_SCHEMA: JsonSchema = { type: "string", minLength: 1, maxLength: 255 }

function requestBody(row: Endpoint, facts: DocumentFacts, components: Components): Json | null {
  if (row.rawBody !== undefined) {
    const schema = { type: "string", format: "binary" }
    return {
      description: `The bytes themselves, at most ${row.rawBody.limitBytes}.`,
      required: true,
      // Whatever kind the client names: nobody looks at it (E-008).
      content: { "application/octet-stream": { schema } },
    }
  }
  if (row.body === undefined) return null
  const named = Object.entries(BODY_EXAMPLES[row.id] ?? {}).filter(([name]) => !isFeatureName(name) || facts.has(name))
  const examples = Object.fromEntries(named.map(([name, value]) => [name, { value }]))
  const schema = components.use(row.body, "input", BODY_NOTES[row.id])
  return {
    // No body at all counts as {} (E-007).
    required: !row.body.safeParse({}).success,
    content: {
      "application/json": { schema, ...(named.length > 0 && { examples }) },
      ...(row.form && { "application/x-www-form-urlencoded": { schema } }),
    },
  }
}

function responsesOf(row: Endpoint, components: Components): Record<string, Json> {
  const responses: Record<string, Json> = {
    [row.status ?? 200]: { description: "Success.", ...contentOf(row, row.reply, components) },
  }
  for (const status of expectedRefusals(row)) responses[status] = components.refusal(status)
  for (const [status, { description, schema }] of Object.entries(row.replies ?? {})) {
    const said = `${description.charAt(0).toUpperCase()}${description.slice(1)}.`
    if (schema !== undefined) responses[status] = { description: said, ...contentOf(row, schema, components) }
    else if (Number(status) >= 400) responses[status] = { description: said, ...components.refusalContent() }
    else responses[status] = { description: said, ...(status === "206" && contentOf(row, undefined, components)) }
  }
  return responses
}

/** What any route of this kind may answer besides, whatever it is about. */
function expectedRefusals(row: Endpoint): number[] {
  const isApi = row.path.startsWith("/api/v1")
  const takesSomething = row.query !== undefined || row.body !== undefined || row.rawBody !== undefined
  return [
    400,
    ...(row.access === "public" ? [] : [401]),
    ...(row.access === "member" || row.access === "admin" ? [403] : []),
    ...(row.access === "public" ? [] : [404]),
    // A name that another route has for itself: GET /jobs/batch.
    ...(row.path.includes(":") ? [405] : []),
    ...(row.creates ? [409] : []),
    ...(row.body !== undefined || row.rawBody !== undefined ? [413] : []),
    ...(row.access !== "public" || takesSomething ? [422] : []),
    ...(row.access === "public" && row.method === "POST" ? [429] : []),
    ...(isApi || row.stream === "text" ? [503] : []),
  ]
}

function contentOf(row: Endpoint, schema: z.ZodType | undefined, components: Components): Json {
  if (schema !== undefined) return { content: { "application/json": { schema: components.use(schema, "output") } } }
  if (row.stream === undefined) return {}
  const kind = row.contentType ?? { events: "text/event-stream", bytes: "*/*", text: "text/plain" }[row.stream]
  return { content: { [kind]: { schema: STREAMED[kind] ?? { type: "string" } } } }
}

const STREAMED: Readonly<Record<string, JsonSchema>> = {
  "application/json": {},
  // Of one event.
  "text/event-stream": {
    type: "object",
    properties: {
      event: { type: "string" },
      id: { type: "string" },
      data: { type: "string", description: "JSON" },
    },
  },
}

/** From what was created to the routes about it: `POST /jobs` leads to all below `/jobs/:id`, `/results/:job_id`, … */
function linksFrom(row: Endpoint, rows: readonly Endpoint[]): Json {
  if (row.method !== "POST" || row.reply === undefined || row.path.includes(":")) return {}
  const reply = jsonSchemaOf(row.reply, "output")
  const fields = resolved(reply, reply).properties ?? {}
  const key = ["id", "name"].find((name) => fields[name] !== undefined)
  if (key === undefined) return {}
  const noun = row.path.split("/").at(-1)?.replace(/s$/, "") ?? ""
  const about = rows.flatMap((other) => {
    const [param] = /:[a-z_]+/.exec(other.path) ?? []
    if (param === undefined) return []
    const before = other.path.slice(0, other.path.indexOf(param) - 1)
    return before === row.path || param === `:${noun}_id` ? [{ other, param: param.slice(1) }] : []
  })
  return Object.fromEntries(
    about.map(({ other, param }) => [
      other.id,
      { operationId: other.id, parameters: { [param]: `$response.body#/${key}` } },
    ]),
  )
}

/** Schemas and refusals that several operations share. */
class Components {
  readonly #schemas = new Map<string, JsonSchema>()
  readonly #statuses = new Set<number>()

  /** The schema, or a reference to it where it has a name; `notes` describe its fields. */
  use(schema: z.ZodType, io: "input" | "output", notes: Readonly<Record<string, string>> = {}): JsonSchema {
    const { $defs = {}, ...written } = withNotes(jsonSchemaOf(schema, io), notes)
    const names = new Map(
      Object.entries($defs).map(([name, definition]) => [name, this.#nameFor(name, io, definition)]),
    )
    for (const [name, definition] of Object.entries($defs)) {
      this.#schemas.set(names.get(name) ?? name, pointed(definition, names))
    }
    return pointed(written, names)
  }

  refusal(status: number): Json {
    this.#statuses.add(status)
    return { $ref: `#/components/responses/Refused${status}` }
  }

  refusalContent(): Json {
    return { content: { "application/json": { schema: this.use(errorBody, "output") } } }
  }

  responses(): Json {
    return Object.fromEntries(
      [...this.#statuses]
        .toSorted((a, b) => a - b)
        .map((status) => {
          const codes = (Object.keys(ERROR_STATUS) as ErrorCode[]).filter((code) => ERROR_STATUS[code] === status)
          const description = codes.map((code) => `\`${code}\`: ${ERROR_GUIDE[code].meaning}`).join(" ")
          return [`Refused${status}`, { description, ...this.refusalContent() }]
        }),
    )
  }

  schemas(): Json {
    return Object.fromEntries([...this.#schemas].toSorted(([a], [b]) => (a < b ? -1 : 1)))
  }

  /** A request and a reply of one name may differ; parts that zod found to be shared have no name of their own. */
  #nameFor(name: string, io: "input" | "output", definition: JsonSchema): string {
    if (name.startsWith("__")) return `Shared${sha256Hex(JSON.stringify(definition)).slice(0, 8)}`
    const known = this.#schemas.get(name)
    const text = JSON.stringify(pointed(definition, new Map()))
    if (known === undefined || JSON.stringify(known) === text) return name
    return io === "input" ? `${name}Input` : `${name}Reply`
  }
}

/** The fields described, where nobody described them already. */
function withNotes(schema: JsonSchema, notes: Readonly<Record<string, string>>): JsonSchema {
  if (schema.$ref !== undefined && schema.$defs !== undefined) {
    const name = schema.$ref.slice(schema.$ref.lastIndexOf("/") + 1)
    const named = schema.$defs[name]
    return named === undefined ? schema : { ...schema, $defs: { ...schema.$defs, [name]: withNotes(named, notes) } }
  }
  if (schema.properties === undefined) return schema
  const described = Object.entries(schema.properties).map(([field, said]) => {
    const note = notes[field]
    return [field, note === undefined ? said : { description: note, ...said }] as const
  })
  return { ...schema, properties: Object.fromEntries(described) }
}

/** References into `$defs` as references into the components; the names that zod leaves in schemas go. */
function pointed(schema: JsonSchema, names: ReadonlyMap<string, string>): JsonSchema {
  const text = JSON.stringify(schema, (key, value: unknown) => {
    if (key !== "$ref" || typeof value !== "string") return value
    const name = value.slice(value.lastIndexOf("/") + 1)
    return `#/components/schemas/${names.get(name) ?? name}`
  })
  const { id: _id, ...plain } = JSON.parse(text) as JsonSchema
  return plain
}
