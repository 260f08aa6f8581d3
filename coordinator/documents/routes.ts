import type { Endpoint } from "../../protocol/api/endpoint.ts"
import { BODY_NOTES } from "./field-notes.ts"
import { CATALOGUE, GROUPS, type CatalogueEntry, type Group } from "./catalogue.ts"
import { missingMark, type DocumentFacts } from "./facts.ts"
import { fieldTexts, jsonSchemaOf, shapeText } from "./schema-text.ts"

/** A route as the index shows it (D-016). */
export interface RouteText {
  method: string
  path: string
  purpose: string
  body?: Record<string, string>
  query_params?: string
  query?: string
  headers?: string
  response?: string
  note?: string
  available?: false
  unavailable_reason?: string
}

/** Every route a client may use, by group: those of the catalogue, and behind them what is served besides. */
export function routesByGroup(facts: DocumentFacts): Record<Group, RouteText[]> {
  const listed = new Set(CATALOGUE.map(({ route }) => nameless(route)))
  const more = facts.rows
    .filter((row) => !listed.has(nameless(`${row.method} ${row.path}`)))
    .flatMap((row) => {
      const group = groupOf(row)
      return group === null ? [] : [{ group, text: textOf(row) }]
    })
  const known = CATALOGUE.map((entry) => ({ group: entry.group, text: entryText(entry, facts) }))
  const grouped = Map.groupBy([...known, ...more], ({ group }) => group)
  return Object.fromEntries(
    GROUPS.map((group) => [group, (grouped.get(group) ?? []).map(({ text }) => text)]),
  ) as Record<Group, RouteText[]>
}

function entryText(entry: CatalogueEntry, facts: DocumentFacts): RouteText {
  const row = facts.rows.find((each) => nameless(`${each.method} ${each.path}`) === nameless(entry.route))
  const [method = "", path = ""] = entry.route.split(" ")
  const { purpose = "", ...later } = entry.later ?? {}
  const said: RouteText = row ? { ...textOf(row), path } : { method, path, purpose, ...later }
  if (entry.query !== undefined) delete said.query_params
  return {
    ...said,
    ...(entry.query !== undefined && { query: entry.query }),
    ...(entry.headers !== undefined && { headers: entry.headers }),
    ...(entry.note !== undefined && { note: entry.note }),
    ...(entry.feature !== undefined && missingMark(facts, entry.feature)),
  }
}

function textOf(row: Endpoint): RouteText {
  const body = row.body === undefined ? {} : fieldTexts(row.body, BODY_NOTES[row.id])
  const query = queryText(row)
  return {
    method: row.method,
    path: row.path,
    purpose: row.summary,
    ...(Object.keys(body).length > 0 && { body }),
    ...(query !== "" && { query_params: query }),
    ...(row.reply !== undefined && { response: responseText(row) }),
    ...(row.stream === "events" && { response: "200: text/event-stream" }),
  }
}

function responseText(row: Endpoint): string {
  const success = row.reply === undefined ? "" : `${row.status ?? 200}: ${shapeText(row.reply)}`
  const others = Object.entries(row.replies ?? {}).map(([status, { description }]) => `${status}: ${description}`)
  return [success, ...others].join(". ")
}

/** `?status=&limit=50&offset=0`. The account is named by administrators alone. */
function queryText(row: Endpoint): string {
  const fields = row.query === undefined ? {} : (jsonSchemaOf(row.query, "input").properties ?? {})
  const names = Object.entries(fields)
    .filter(([name]) => name !== "account_id")
    .map(([name, { default: preset }]) => `${name}=${typeof preset === "number" ? preset : ""}`)
  return names.length === 0 ? "" : `?${names.join("&")}`
}

/** Where a route belongs that the catalogue does not name; null: it is no client's (administration, nodes, documents). */
function groupOf({ path }: Endpoint): Group | null {
  const first = /^\/api\/v1\/(?<group>[a-z]+)/.exec(path)?.groups?.["group"] ?? ""
  return GROUPS.find((group) => group === first) ?? null
}

const nameless = (route: string): string => route.replaceAll(/:[a-z_]+/g, ":")
