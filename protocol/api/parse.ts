import { z } from "zod"
import { invalidRequest, type FieldProblem } from "../domain/errors.ts"

/**
 * Parses untrusted JSON by its schema. `null` for an optional field counts as left out (rulings, Fields); unknown fields are
 * dropped. Throws `invalid_request` naming every wrong field by its path below `root`.
 */
export function parseFields<S extends z.ZodType>(schema: S, value: unknown, root = ""): z.output<S> {
  const parsed = schema.safeParse(withoutNulls(schema, value), { reportInput: true })
  if (parsed.success) return parsed.data
  throw invalidRequest(fieldProblems(parsed.error, root))
}

/** One problem for each issue zod found, with paths as `payload.items[3].name`. */
export function fieldProblems(error: z.ZodError, root = ""): FieldProblem[] {
  return error.issues
    .slice(0, MOST_PROBLEMS)
    .map((issue) => ({ path: pathText(issue.path, root), problem: issueText(issue) }))
}

/** A list of a million wrong items needs no million sentences. */
const MOST_PROBLEMS = 50

function issueText(issue: z.core.$ZodIssue): string {
  if (issue.code === "invalid_union" && issue.errors.length > 0) return issue.errors.map(branchText).join(", or ")
  const text = issue.message.replace(/^Invalid (input|option): /, "").replace(/, received undefined$/, "")
  return issue.input === undefined && issue.code !== "custom" ? `is required (${text})` : text
}

/** What one branch of a union would have wanted, with the path inside it. */
function branchText(issues: readonly z.core.$ZodIssue[]): string {
  const first = issues[0]
  if (first === undefined) return "another form"
  const path = pathText(first.path, "")
  return path === "" ? issueText(first) : `${path}: ${issueText(first)}`
}

function pathText(path: readonly PropertyKey[], root: string): string {
  let text = root
  for (const step of path) {
    if (typeof step === "number") text += `[${step}]`
    else text += text === "" ? String(step) : `.${String(step)}`
  }
  return text
}

/**
 * The value without the nulls of optional fields, at every level the schema describes; data below is left as it is. Most values
 * have none and come back themselves: a copy of each body costs more than all else that is checked of it.
 */
function withoutNulls(schema: z.core.$ZodType, value: unknown): unknown {
  if (typeof value !== "object" || value === null || isFlat(value)) return value
  const inner = unwrapped(schema)
  if (inner instanceof z.ZodArray && Array.isArray(value)) {
    const items = value.map((item) => withoutNulls(inner.element, item))
    return items.every((item, at) => item === value[at]) ? value : items
  }
  if (!(inner instanceof z.ZodObject) || !isRecord(value)) return value
  const shape: Readonly<Record<string, z.core.$ZodType>> = inner.shape
  const dropped = new Set<string>()
  const changed = new Map<string, unknown>()
  for (const name of Object.keys(value)) {
    const field = Object.hasOwn(shape, name) ? shape[name] : undefined
    if (field === undefined) continue
    const item = value[name]
    if (item === null && mayBeLeftOut(field) && !mayBeNull(field)) dropped.add(name)
    const kept = withoutNulls(field, item)
    if (kept !== item) changed.set(name, kept)
  }
  if (dropped.size === 0 && changed.size === 0) return value
  // Not by assignments: a field named __proto__ would change the object itself.
  return Object.fromEntries(
    Object.entries(value)
      .filter(([name]) => !dropped.has(name))
      .map(([name, item]) => [name, changed.has(name) ? changed.get(name) : item]),
  )
}

/** Nothing in it is null or has parts of its own, as in the parameters of most addresses. */
const isFlat = (value: object): boolean => Object.values(value).every((item) => typeof item !== "object")

function unwrapped(schema: z.core.$ZodType): z.core.$ZodType {
  if (schema instanceof z.ZodOptional || schema instanceof z.ZodExactOptional) return unwrapped(schema.unwrap())
  if (schema instanceof z.ZodDefault || schema instanceof z.ZodPrefault || schema instanceof z.ZodNullable) {
    return unwrapped(schema.unwrap())
  }
  return schema
}

const mayBeLeftOut = (field: z.core.$ZodType): boolean => field._zod.optin !== undefined
const mayBeNull = (field: z.core.$ZodType): boolean => z.safeParse(field, null).success

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value)
}
