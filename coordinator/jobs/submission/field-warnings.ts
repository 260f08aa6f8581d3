import { z } from "zod"
import { submitJobBody, type SubmissionWarning, type SubmitJobBody } from "../../../protocol/api/jobs.ts"
import { isJsonObject } from "../../../protocol/base/json-text.ts"
import type { JobType } from "../../../protocol/domain/statuses.ts"

/**
 * Names the fields that have no effect: unknown ones, with the known one that was probably meant, and those of another job
 * type. They are accepted, so that old clients work and typing errors still show (interfaces, C-30). Sorted by field.
 */
export function fieldWarnings(body: SubmitJobBody, sent: unknown): SubmissionWarning[] {
  const warnings = [...unknownFields(sent, submitJobBody, "")]
  for (const [field, ...types] of TYPED_FIELDS) {
    if (body[field] === undefined || body.type === undefined || types.includes(body.type)) continue
    const meant = field === "payload" ? COMMON_PAYLOADS[body.type] : undefined
    const message = `belongs to jobs of type ${types.join(" or ")}; it has no effect on this one`
    warnings.push({ field, ...(meant && { did_you_mean: meant }), message })
  }
  const { enabled, resume_from_latest: resumes } = body.checkpointing ?? {}
  if (resumes && !enabled) {
    const message = "has no effect: no checkpoint is kept unless checkpointing.enabled is true"
    warnings.push({ field: "checkpointing.resume_from_latest", message })
  }
  return warnings.toSorted((a, b) => (a.field < b.field ? -1 : 1)).slice(0, MOST_WARNINGS)
}

/** Fields without effect elsewhere. The ones that would change what a job does are refused instead (GAP-23). */
const TYPED_FIELDS: [field: string, ...types: JobType[]][] = [
  ["payload", "structured_runner", "map_reduce"],
  ["merge_strategy", "structured_runner"],
  ["value_field", "structured_runner"],
  ["weight_field", "structured_runner"],
  ["fixed_payload", "sweep"],
  ["rank_by", "sweep", "benchmark"],
  ["rank_order", "sweep", "benchmark"],
  ["shared_payload", "benchmark"],
  ["replicas", "benchmark"],
  ["replica_vary", "benchmark"],
]

/** Where such a job has what another's `payload` is: in every task. */
const COMMON_PAYLOADS: Partial<Record<JobType, string>> = { sweep: "fixed_payload", benchmark: "shared_payload" }

const MOST_WARNINGS = 50

/** The top level and the objects whose fields we define; what lies in a payload or `meta` is the client's. */
function* unknownFields(value: unknown, schema: z.ZodObject, path: string): Generator<SubmissionWarning> {
  if (!isJsonObject(value)) return
  const known = Object.keys(schema.shape)
  for (const [name, member] of Object.entries(value)) {
    if (!Object.hasOwn(schema.shape, name)) {
      const meant = closest(name, known)
      const message = "is not a field of a submission; it has no effect"
      yield { field: `${path}${name}`, ...(meant && { did_you_mean: `${path}${meant}` }), message }
      continue
    }
    const field: unknown = schema.shape[name]
    const inner: unknown = field instanceof z.ZodOptional ? field.unwrap() : field
    if (inner instanceof z.ZodObject) yield* unknownFields(member, inner, `${path}${name}.`)
  }
}

function closest(name: string, known: string[]): string | undefined {
  if (name.length > LONGEST_NAME_COMPARED) return undefined
  const wanted = plain(name)
  const near = known
    .map((candidate) => ({ candidate, distance: editDistance(wanted, plain(candidate)) }))
    .filter(({ candidate, distance }) => distance <= Math.min(2, Math.floor(candidate.length / 3)))
    .toSorted((a, b) => a.distance - b.distance)
  return near[0]?.candidate
}

/** `timeoutS`, `Timeout-s` and `timeout_s` are one name to whoever types them. */
const plain = (name: string): string => name.toLowerCase().replaceAll(/[^a-z0-9]/g, "")
const LONGEST_NAME_COMPARED = 64

/** Insertions, deletions, replacements and swaps of neighbours that lead from `a` to `b`. */
export function editDistance(a: string, b: string): number {
  let beforePrevious: number[] = []
  let previous = Array.from({ length: b.length + 1 }, (_, j) => j)
  for (let i = 1; i <= a.length; i++) {
    const current = [i]
    for (let j = 1; j <= b.length; j++) {
      const same = a[i - 1] === b[j - 1]
      let least = Math.min(at(previous, j) + 1, at(current, j - 1) + 1, at(previous, j - 1) + (same ? 0 : 1))
      if (a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) least = Math.min(least, at(beforePrevious, j - 2) + 1)
      current.push(least)
    }
    beforePrevious = previous
    previous = current
  }
  return at(previous, b.length)
}

const at = (row: number[], index: number): number => row[index] ?? Number.POSITIVE_INFINITY
