/** A key of a project's shared state (GAP-18). */
export const STATE_KEY_PATTERN = /^[A-Za-z0-9._:-]{1,128}$/
export const STATE_KEY_RULE = "must have 1 to 128 characters of A-Z, a-z, 0-9, dot, underscore, colon and hyphen"
/** A value as UTF-8 JSON (GAP-18). */
export const LARGEST_STATE_VALUE_BYTES = 64 * 1024
/** What one job may publish. */
export const MOST_PUBLISHED = 100

/**
 * The steps of a path into a job's outcome, such as `results.0.score` (SS-002); null where it is none. A number is an index
 * where a list stands, and a name where an object does.
 */
export function outcomePath(path: string): string[] | null {
  const steps = path.split(".")
  const isPath = path.length <= LONGEST_PATH && steps.length <= MOST_STEPS && steps.every((step) => step !== "")
  return isPath ? steps : null
}

export const PATH_RULE = "must be a dotted path such as results.0.score, of at most 512 characters and 32 steps"
const LONGEST_PATH = 512
const MOST_STEPS = 32
