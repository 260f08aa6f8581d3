import { setImmediate } from "node:timers/promises"
import { z } from "zod"
import { sha256Hex } from "../../protocol/base/digest.ts"
import type { Endpoint } from "../../protocol/api/endpoint.ts"
import { ERROR_GUIDE, ERROR_STATUS, type ErrorCode } from "../../protocol/domain/errors.ts"
import { manifestSchema } from "../../protocol/domain/manifest.ts"
import { usd } from "../../protocol/domain/money.ts"
import { ALLOWED_EXECUTABLES } from "../../protocol/domain/runner.ts"
import type { Prices } from "../billing/pricing.ts"
import { docsIndex } from "./docs-index.ts"
import { documentFacts, type DocumentFacts } from "./facts.ts"
import { FEATURE_NAMES, FEATURES } from "./features.ts"
import { htmlPage } from "./html-page.ts"
import { openApi } from "./openapi.ts"
import { routesByGroup } from "./routes.ts"
import { jsonSchemaOf } from "./schema-text.ts"
import { renderText, type Insertions, type TextName } from "./template.ts"

/** One document, ready to be sent. */
export interface RenderedDocument {
  body: Buffer
  etag: string
}

export interface Documents {
  /**
   * The document of one of the rows in protocol/api/documents.ts, made at its first request and kept. `origin` is the one that
   * clients reach this deployment at: it stands in every document (D-031).
   */
  get(id: DocumentId, origin: string): Promise<RenderedDocument>
}

export type DocumentId = keyof typeof MAKERS

/** `rows`: every route that is served, asked for at the first request. */
export function createDocuments(parts: {
  rows: () => readonly Endpoint[]
  prices: Prices
  version: string
}): Documents {
  const byOrigin = new Map<string, { facts: Facts; made: Map<DocumentId, RenderedDocument> }>()
  let schemas: Promise<void> | null = null
  return {
    async get(id, origin) {
      await (schemas ??= writeSchemas(parts.rows()))
      const known = byOrigin.get(origin) ?? {
        facts: { ...documentFacts(origin, parts.rows()), prices: parts.prices, version: parts.version },
        made: new Map<DocumentId, RenderedDocument>(),
      }
      byOrigin.set(origin, known)
      if (byOrigin.size > MOST_ORIGINS) byOrigin.delete(byOrigin.keys().next().value ?? origin)
      const made = known.made.get(id) ?? rendered(MAKERS[id](known.facts))
      known.made.set(id, made)
      return made
    },
  }
}

/** All schemas together take half a second to write: one after the other, so that others are served between. */
async function writeSchemas(rows: readonly Endpoint[]): Promise<void> {
  for (const { params, query, body, reply, replies = {} } of rows) {
    const others = Object.values(replies).map(({ schema }) => schema)
    for (const input of [params, query, body]) if (input) await nextTurn(() => jsonSchemaOf(input, "input"))
    for (const output of [reply, ...others]) if (output) await nextTurn(() => jsonSchemaOf(output, "output"))
  }
}

async function nextTurn(work: () => unknown): Promise<void> {
  await setImmediate()
  work()
}

/** A machine has few addresses; with a configured origin there is one. */
const MOST_ORIGINS = 16

interface Facts extends DocumentFacts {
  prices: Prices
  version: string
}

function rendered(text: string): RenderedDocument {
  return { body: Buffer.from(text), etag: `"${sha256Hex(text).slice(0, 32)}"` }
}

const MAKERS = {
  landing: (facts) => htmlPage(textOf("landing", facts)),
  "docs-web": (facts) => htmlPage(textOf("docs", facts)),
  "docs-manifest": (facts) => htmlPage(textOf("manifest", facts)),
  "docs-manifest-schema": (facts) => jsonText(manifestJsonSchema(facts)),
  "docs-errors": (facts) => htmlPage(textOf("errors", facts)),
  "docs-reference": (facts) => htmlPage(textOf("llms-full", facts)),
  skill: (facts) => textOf("skill", facts),
  llms: (facts) => textOf("llms", facts),
  "llms-full": (facts) => textOf("llms-full", facts),
  openapi: (facts) => jsonText(openApi(facts, facts.version)),
  "docs-index": (facts) => jsonText(docsIndex(facts)),
  "docs-workflows": (facts) => textOf("workflows", facts),
  "docs-recipes": (facts) => textOf("recipes", facts),
  "docs-python-sdk": (facts) => textOf("python-sdk", facts),
} satisfies Record<string, (facts: Facts) => string>

const jsonText = (value: unknown): string => `${JSON.stringify(value, null, 1)}\n`

function textOf(name: TextName, facts: Facts): string {
  return renderText(name, facts, insertions(facts))
}

function insertions(facts: Facts): Insertions {
  return {
    executables: () => ALLOWED_EXECUTABLES.map((name) => `\`${name}\``).join(", "),
    price: (of) => priceText(facts.prices, of),
    errors: () => errorTable(),
    routes: () => routeTables(facts),
    missing: () => missingList(facts),
    "manifest-schema": () => `\`\`\`json\n${JSON.stringify(manifestJsonSchema(facts), null, 2)}\n\`\`\``,
    "waitlist-form": () => WAITLIST_FORM,
  }
}

function priceText(prices: Prices, of: string): string {
  if (of === "cpu") return String(usd(prices.cpuCoreHour))
  if (of === "memory") return String(usd(prices.memoryGbHour))
  const hours = Object.values(prices.gpuHour)
  const least = hours.reduce((a, b) => (a < b ? a : b))
  const most = hours.reduce((a, b) => (a > b ? a : b))
  return `${usd(least)} to $${usd(most)}, by its memory`
}

/** By status, then as they stand in the list. */
function errorTable(): string {
  const codes = (Object.keys(ERROR_STATUS) as ErrorCode[]).toSorted((a, b) => ERROR_STATUS[a] - ERROR_STATUS[b])
  const rows = codes.map((code) => {
    const { meaning, next } = ERROR_GUIDE[code]
    return `| ${ERROR_STATUS[code]} | \`${code}\` | ${meaning} | ${next} |`
  })
  return ["| Status | Code | Meaning | Next step |", "|---|---|---|---|", ...rows].join("\n")
}

function routeTables(facts: DocumentFacts): string {
  return Object.entries(routesByGroup(facts))
    .map(([group, routes]) => {
      const rows = routes.map(
        ({ method, path, query_params, query, purpose, available }) =>
          `| ${method} | \`${path}${query_params ?? (query === undefined ? "" : `?${query.split(" ")[0] ?? ""}`)}\` | ${purpose}${available === false ? " (Not available yet.)" : ""} |`,
      )
      return [`### ${group}`, "", "| Method | Path | What it does |", "|---|---|---|", ...rows].join("\n")
    })
    .join("\n\n")
}

function missingList(facts: DocumentFacts): string {
  const missing = FEATURE_NAMES.filter((name) => !facts.has(name))
  return missing.map((name) => `- ${FEATURES[name].otherwise}`).join("\n")
}

function manifestJsonSchema(facts: DocumentFacts): Record<string, unknown> {
  const { id: _id, ...schema } = z.toJSONSchema(manifestSchema, { io: "input" })
  return {
    $id: `${facts.origin}/docs/projects/project-manifest/schema.json`,
    title: "computalot.project.json",
    ...schema,
  }
}

/** Plain HTML: it works without a script (rulings, Waitlist). */
const WAITLIST_FORM = `<form method="post" action="/api/v1/waitlist"><label>E-mail <input type="email" name="email"></label><label>or wallet <input name="wallet_address"></label><button>Join the waitlist</button></form>`
