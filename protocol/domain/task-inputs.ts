import type { FieldProblem } from "./errors.ts"

// What a task is given beside its payload: shared values, files of artifacts; and what it hands on under a name.

/** Aliases of shared values, and names of artifacts. */
export const isInputName = (name: string): boolean => /^[^\p{Cc}]{1,64}$/u.test(name) && name.isWellFormed()
export const INPUT_NAME_RULE = "has 1 to 64 characters and no control characters"
/** Of one task, of each kind: what a grant, its answer and its report can carry. */
export const MOST_SHARED_ALIASES = 64
export const MOST_DOWNLOADS = 64
export const MOST_UPLOADS = 32
/** The declared uploads of one task as JSON: they travel in its grant. */
export const LARGEST_UPLOADS_BYTES = 16 * 1024
/** The shared values of one task together, as UTF-8 JSON: larger things are artifacts. */
export const LARGEST_SHARED_BYTES = 1024 * 1024

/** A value as a variable: what Linux takes as one string is 128 KiB, what it takes in all 2 MiB. */
const LONGEST_VARIABLE_BYTES = 64 * 1024
const LARGEST_VARIABLES_BYTES = 512 * 1024

export const SHARED_PREFIX = "COMPUTALOT_SHARED_"
export const ARTIFACT_PREFIX = "COMPUTALOT_ARTIFACT_"
/** `dir` would be the artifact directory itself (C-24). */
const RESERVED_VARIABLES: ReadonlySet<string> = new Set(["COMPUTALOT_ARTIFACT_DIR"])

/** `my-data` → `MY_DATA` (C-24). */
const variableName = (name: string): string => name.toUpperCase().replaceAll(/[^A-Z0-9]/g, "_")

/** The variables of one name: in upper case, and as it is written where a variable can be called so (C-24). */
function variablesOf(prefix: string, name: string): string[] {
  const upper = prefix + variableName(name)
  const verbatim = prefix + name
  return /^\w+$/.test(name) && verbatim !== upper && !RESERVED_VARIABLES.has(verbatim) ? [upper, verbatim] : [upper]
}

/** What is wrong with these names as names of variables; `path` leads to the object that holds them. */
export function nameProblems(prefix: string, names: readonly string[], path: string): FieldProblem[] {
  const problems: FieldProblem[] = []
  const taken = new Map<string, string>()
  for (const name of names) {
    const at = `${path}.${name.slice(0, 80)}`
    if (!isInputName(name)) {
      problems.push({ path: at, problem: `is no name: it ${INPUT_NAME_RULE}` })
      continue
    }
    const variable = prefix + variableName(name)
    const other = taken.get(variable)
    if (RESERVED_VARIABLES.has(variable)) {
      problems.push({ path: at, problem: `would be the variable ${variable}, which the platform sets: rename it` })
    } else if (other !== undefined) {
      problems.push({ path: at, problem: `would be the same variable ${variable} as ${other}: rename one of them` })
    }
    taken.set(variable, name)
  }
  return problems
}

/**
 * The variables of these values, by name. Left out is what no variable can hold: a NUL character, or more than 64 KiB; and
 * what comes after 512 KiB in all. It stands in the payload all the same.
 */
export function inputVariables(prefix: string, values: Iterable<readonly [string, string]>): Record<string, string> {
  const variables: Record<string, string> = {}
  let room = LARGEST_VARIABLES_BYTES
  for (const [name, value] of values) {
    if (value.includes("\0") || Buffer.byteLength(value) > LONGEST_VARIABLE_BYTES) continue
    for (const variable of variablesOf(prefix, name)) {
      room -= Buffer.byteLength(variable) + Buffer.byteLength(value) + 2
      if (room >= 0) variables[variable] = value
    }
  }
  return variables
}
