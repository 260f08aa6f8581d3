import { z } from "zod"

/** As much of JSON Schema as zod writes. */
export interface JsonSchema {
  [key: string]: unknown
  $ref?: string
  type?: string | string[]
  enum?: unknown[]
  const?: unknown
  anyOf?: JsonSchema[]
  items?: JsonSchema
  properties?: Record<string, JsonSchema>
  additionalProperties?: JsonSchema | boolean
  required?: string[]
  default?: unknown
  description?: string
  minimum?: number
  maximum?: number
  $defs?: Record<string, JsonSchema>
}

/**
 * A schema as JSON Schema 2020-12. `input`: what a client sends; `output`: what it gets. Schemas with an id stand under `$defs`.
 * Where a parser takes more than it should say, its `meta.shown` stands instead; fields with `meta.hidden` are left out.
 */
export function jsonSchemaOf(schema: z.ZodType, io: "input" | "output"): JsonSchema {
  const known = WRITTEN[io].get(schema)
  if (known) return known
  const { $schema: _, ...written } = z.toJSONSchema(schema, {
    io,
    unrepresentable: "any",
    // Of what is parsed further on, zod leaves the default out.
    override: ({ zodSchema, jsonSchema }) => {
      const { def } = zodSchema._zod
      if (def.type === "default" && typeof def.defaultValue !== "object") jsonSchema.default = def.defaultValue
    },
  }) as JsonSchema
  const shown = asShown(written)
  WRITTEN[io].set(schema, shown)
  return shown
}

/** Writing one takes milliseconds, and every document asks for all of them. Nobody changes what stands here. */
const WRITTEN = { input: new WeakMap<z.ZodType, JsonSchema>(), output: new WeakMap<z.ZodType, JsonSchema>() }

function asShown(schema: JsonSchema): JsonSchema {
  const { shown, default: preset, ...rest } = schema
  if (isSchema(shown)) return { ...shown, ...(preset === undefined ? {} : { default: preset }) }
  const tidied: JsonSchema = { ...rest, ...(preset === undefined ? {} : { default: preset }) }
  // Clients of an older description must not break when a reply gets a new field.
  if (tidied.additionalProperties === false) delete tidied.additionalProperties
  for (const name of ["items", "additionalProperties", "not", "propertyNames"]) {
    const inner = tidied[name]
    if (isSchema(inner)) tidied[name] = asShown(inner)
  }
  for (const name of ["anyOf", "oneOf", "allOf", "prefixItems"]) {
    const inner = tidied[name]
    if (Array.isArray(inner)) tidied[name] = inner.map((branch: JsonSchema) => asShown(branch))
  }
  for (const name of ["properties", "$defs"] as const) {
    const inner = tidied[name]
    if (inner === undefined) continue
    const kept = Object.entries(inner).filter(([, field]) => field["hidden"] !== true)
    tidied[name] = Object.fromEntries(kept.map(([key, field]) => [key, asShown(field)]))
  }
  return tidied
}

const isSchema = (value: unknown): value is JsonSchema =>
  typeof value === "object" && value !== null && !Array.isArray(value)

/** `{id, tags?, jobs: [{…}]}`: the keys of a reply, lists of objects opened one level deep. */
export function shapeText(schema: z.ZodType): string {
  const root = jsonSchemaOf(schema, "output")
  const open = resolved(root, root)
  return open.properties === undefined ? "object" : keysText(open, root, 1)
}

function keysText(schema: JsonSchema, root: JsonSchema, depth: number): string {
  const required = new Set(schema.required)
  const keys = Object.entries(schema.properties ?? {}).map(([name, field]) => {
    const key = required.has(name) ? name : `${name}?`
    const item = resolved(field.items ?? {}, root)
    return depth > 0 && item.properties !== undefined ? `${key}: [${keysText(item, root, depth - 1)}]` : key
  })
  return `{${keys.join(", ")}}`
}

/** What each field of a body is, in a few words; `notes` say what a type cannot. */
export function fieldTexts(schema: z.ZodType, notes: Readonly<Record<string, string>> = {}): Record<string, string> {
  const root = jsonSchemaOf(schema, "input")
  const open = resolved(root, root)
  const required = new Set(open.required)
  return Object.fromEntries(
    Object.entries(open.properties ?? {}).map(([name, field]) => {
      const optional = required.has(name) ? "" : "optional "
      const note = notes[name] ?? field.description
      const type = typeText(field, root)
      // The note says what is in it.
      return [name, `${optional}${note === undefined ? type : `${type.replace(/ \{.*\}$/, "")} — ${note}`}`]
    }),
  )
}

/** `integer from 1 to 100 (default 1)`, `high | normal | low`, `list of strings`. */
function typeText(given: JsonSchema, root: JsonSchema): string {
  const schema = resolved(given, root)
  const preset = schema.default === undefined ? "" : ` (default ${JSON.stringify(schema.default)})`
  return `${bareTypeText(schema, root)}${preset}`
}

function bareTypeText(schema: JsonSchema, root: JsonSchema): string {
  if (schema.enum !== undefined) return schema.enum.map(String).join(" | ")
  if (schema.const !== undefined) return JSON.stringify(schema.const)
  if (schema.anyOf !== undefined) return schema.anyOf.map((branch) => typeText(branch, root)).join(" or ")
  if (schema.type === "array") return `list of ${plural(typeText(schema.items ?? {}, root))}`
  if (schema.type === "integer" || schema.type === "number") return `${schema.type}${boundsText(schema)}`
  if (schema.type === "boolean") return "true or false"
  if (schema.type === "object" && schema.properties !== undefined) {
    return `object {${Object.keys(schema.properties).join(", ")}}`
  }
  return typeof schema.type === "string" ? schema.type : "any JSON"
}

function boundsText({ minimum, maximum }: JsonSchema): string {
  const least = minimum !== undefined && minimum > -Number.MAX_SAFE_INTEGER ? minimum : null
  const most = maximum !== undefined && maximum < Number.MAX_SAFE_INTEGER ? maximum : null
  if (least !== null && most !== null) return ` from ${least} to ${most}`
  return least !== null ? ` of at least ${least}` : most !== null ? ` of at most ${most}` : ""
}

const plural = (text: string): string =>
  /^(?:string|object|integer|number)\b/.test(text) ? text.replace(/^\w+/, "$&s") : text

/** The schema that a reference means. */
export function resolved(schema: JsonSchema, root: JsonSchema): JsonSchema {
  if (schema.$ref === undefined) return schema
  const name = schema.$ref.slice(schema.$ref.lastIndexOf("/") + 1)
  const found = schema.$ref === "#" ? root : root.$defs?.[name]
  return found === undefined ? {} : resolved(found, root)
}
