import { isJsonObject, type JsonObject, type JsonValue } from "../../../protocol/base/json-text.ts"
import type { FieldProblem } from "../../../protocol/domain/errors.ts"
import { outcomePath, PATH_RULE, STATE_KEY_PATTERN, STATE_KEY_RULE } from "../../../protocol/domain/shared-state.ts"
import {
  ARTIFACT_PREFIX,
  INPUT_NAME_RULE,
  isInputName,
  LARGEST_UPLOADS_BYTES,
  MOST_DOWNLOADS,
  MOST_SHARED_ALIASES,
  MOST_UPLOADS,
  nameProblems,
  SHARED_PREFIX,
} from "../../../protocol/domain/task-inputs.ts"

// `payload._shared` and `payload._artifacts` of one task: read the same at the submission, which refuses what is wrong, and
// at dispatch, where nothing wrong is left.

/** Where a shared value comes from (SS-001): the project's state, or the outcome of a job that this one depends on. */
export type SharedSource = { key: string } | { jobId: string; path: string }

/** Where a file comes from (AW-003, AW-004). */
export type DownloadSource = { artifactId: string } | { jobId: string; artifact: string; taskIndex: number | null }

export interface Download {
  name: string
  from: DownloadSource
}

/** A file of the artifact directory that becomes an artifact of its own (AW-002, GAP-54). */
export interface DeclaredUpload {
  name: string
  /** Relative to the artifact directory. */
  path: string
  filename: string | null
  contentType: string | null
}

export interface TaskInputs {
  shared: { alias: string; from: SharedSource }[]
  downloads: Download[]
  uploads: DeclaredUpload[]
}

/** Members of a payload that the platform reads. */
export const INPUT_MEMBERS = ["_shared", "_artifacts"] as const
export type InputMember = (typeof INPUT_MEMBERS)[number]

/** Does this ask for something? Null, `{}` and the like pass as nothing asked. */
export const asksForInputs = (value: JsonValue | undefined): boolean =>
  value !== undefined && value !== null && !(isJsonObject(value) && Object.keys(value).length === 0)

/**
 * What the two members ask for. What is wrong is added to `problems`, by its path below `path`, and left out. `dependsOn` are
 * the jobs whose results and artifacts may be named.
 */
export function taskInputs(
  members: Partial<Record<InputMember, JsonValue | undefined>>,
  { path, dependsOn }: { path: string; dependsOn: (jobId: string) => boolean },
  problems: FieldProblem[],
): TaskInputs {
  const shared = objectAt(members._shared, `${path}._shared`, problems)
  const artifacts = objectAt(members._artifacts, `${path}._artifacts`, problems)
  refuseOurs(shared, "values", `${path}._shared`, problems)
  refuseOurs(artifacts, "local_paths", `${path}._artifacts`, problems)
  return {
    shared: sharedOf(objectAt(shared["resolve"], `${path}._shared.resolve`, problems), `${path}._shared.resolve`),
    downloads: downloadsOf(objectAt(artifacts["download"], `${path}._artifacts.download`, problems)),
    uploads: uploadsOf(objectAt(artifacts["upload"], `${path}._artifacts.upload`, problems)),
  }

  function sharedOf(asked: JsonObject, at: string): TaskInputs["shared"] {
    const entries = Object.entries(asked)
    refuseMany(entries.length, MOST_SHARED_ALIASES, at, problems)
    problems.push(...nameProblems(SHARED_PREFIX, Object.keys(asked).slice(0, MOST_SHARED_ALIASES), at))
    return entries.slice(0, MOST_SHARED_ALIASES).flatMap(([alias, entry]) => {
      const from = sharedSource(entry, dependsOn)
      if (typeof from !== "string") return [{ alias, from }]
      problems.push({ path: `${at}.${shown(alias)}`, problem: from })
      return []
    })
  }

  function downloadsOf(asked: JsonObject): Download[] {
    const at = `${path}._artifacts.download`
    const entries = Object.entries(asked)
    refuseMany(entries.length, MOST_DOWNLOADS, at, problems)
    problems.push(...nameProblems(ARTIFACT_PREFIX, Object.keys(asked).slice(0, MOST_DOWNLOADS), at))
    return entries.slice(0, MOST_DOWNLOADS).flatMap(([name, entry]) => {
      const from = downloadSource(entry, dependsOn)
      if (typeof from !== "string") return [{ name, from }]
      problems.push({ path: `${at}.${shown(name)}`, problem: from })
      return []
    })
  }

  function uploadsOf(asked: JsonObject): DeclaredUpload[] {
    const at = `${path}._artifacts.upload`
    const entries = Object.entries(asked)
    refuseMany(entries.length, MOST_UPLOADS, at, problems)
    const uploads = entries.slice(0, MOST_UPLOADS).flatMap(([name, entry]): DeclaredUpload[] => {
      const one = declaredUpload(name, entry)
      if (typeof one !== "string") return [one]
      problems.push({ path: `${at}.${shown(name)}`, problem: one })
      return []
    })
    const bytes = Buffer.byteLength(JSON.stringify(uploads))
    if (bytes > LARGEST_UPLOADS_BYTES)
      problems.push({ path: at, problem: `has ${bytes} bytes: must have at most ${LARGEST_UPLOADS_BYTES}` })
    return uploads
  }
}

const shown = (name: string): string => name.slice(0, 80)

function objectAt(value: JsonValue | undefined, path: string, problems: FieldProblem[]): JsonObject {
  if (isJsonObject(value)) return value
  if (value !== undefined && value !== null) problems.push({ path, problem: "must be an object" })
  return {}
}

function refuseOurs(object: JsonObject, name: string, path: string, problems: FieldProblem[]): void {
  if (!Object.hasOwn(object, name)) return
  problems.push({ path: `${path}.${name}`, problem: "is written by the platform for the program: leave it out" })
}

function refuseMany(count: number, most: number, path: string, problems: FieldProblem[]): void {
  if (count > most) problems.push({ path, problem: `has ${count} entries: must have at most ${most}` })
}

/** Or what is wrong with it. */
function sharedSource(entry: JsonValue, dependsOn: (jobId: string) => boolean): SharedSource | string {
  const rule = 'must be {key: "dataset_ready"} or {job_id, path: "results.0.score"}'
  if (!isJsonObject(entry)) return rule
  const [key, jobId, path] = [textIn(entry, "key"), textIn(entry, "job_id"), textIn(entry, "path")]
  if (key !== undefined && jobId === undefined && path === undefined) {
    return STATE_KEY_PATTERN.test(key) ? { key } : `has a key that is none: it ${STATE_KEY_RULE}`
  }
  if (key !== undefined || jobId === undefined || path === undefined) return rule
  if (outcomePath(path) === null) return `has a path that is none: it ${PATH_RULE}`
  return dependsOn(jobId) ? { jobId, path } : notDependedOn(jobId)
}

function downloadSource(entry: JsonValue, dependsOn: (jobId: string) => boolean): DownloadSource | string {
  const rule = 'must be an artifact id such as "art_abc123", or {job_id, artifact: "its name"}'
  if (typeof entry === "string") return /^[\w-]{1,64}$/.test(entry) ? { artifactId: entry } : rule
  if (!isJsonObject(entry)) return rule
  const [jobId, artifact] = [textIn(entry, "job_id"), textIn(entry, "artifact")]
  const index = Object.hasOwn(entry, "task_index") ? entry["task_index"] : null
  if (jobId === undefined || artifact === undefined) return rule
  if (index !== null && !(typeof index === "number" && Number.isInteger(index) && index >= 0))
    return "has a task_index that is no whole number from 0"
  return dependsOn(jobId) ? { jobId, artifact, taskIndex: index } : notDependedOn(jobId)
}

const notDependedOn = (jobId: string): string =>
  `names the job ${shown(jobId)}, which is not in depends_on: add it there, so that it has ended before this job starts`

function declaredUpload(name: string, entry: JsonValue): DeclaredUpload | string {
  if (!isInputName(name)) return `has a name that is none: it ${INPUT_NAME_RULE}`
  if (typeof entry === "string") return pathProblem(entry) ?? { name, path: entry, filename: null, contentType: null }
  const rule = 'must be a path such as "model.pt", or {path, filename?, content_type?}'
  if (!isJsonObject(entry)) return rule
  if (textIn(entry, "url") !== undefined) return "has a url, which is not available yet: leave it out"
  const [path, filename, type] = [textIn(entry, "path"), textIn(entry, "filename"), textIn(entry, "content_type")]
  if (path === undefined) return rule
  if (filename !== undefined && !(FILENAME.test(filename) && filename.isWellFormed()))
    return "has a filename that is none: it has 1 to 120 characters, no slash and no control characters"
  if (type !== undefined && !CONTENT_TYPE.test(type)) return "has a content_type that is none, such as text/csv"
  return pathProblem(path) ?? { name, path, filename: filename ?? null, contentType: type ?? null }
}

/** Only what lies in the artifact directory can be named (rulings, Downloads into tasks). */
function pathProblem(path: string): string | null {
  const steps = path.split("/")
  if (path === "" || path.length > LONGEST_UPLOAD_PATH || path.includes("\0") || !path.isWellFormed())
    return `has a path that is none: it has 1 to ${LONGEST_UPLOAD_PATH} characters`
  if (path.startsWith("/") || steps.includes("..")) return "has a path that leaves the artifact directory"
  return steps.some((step) => step === "" || step === ".") ? "has a path with an empty step, or a single dot" : null
}

const FILENAME = /^[^/\\\p{Cc}]{1,120}$/u
const CONTENT_TYPE = /^[\w!#$&^.+-]{1,60}\/[\w!#$&^.+-]{1,60}$/
const LONGEST_UPLOAD_PATH = 512

/** An own text member; undefined where there is none, or null. Another kind of value is no text, and so not what is asked for. */
function textIn(object: JsonObject, name: string): string | undefined {
  const value = Object.hasOwn(object, name) ? object[name] : undefined
  return typeof value === "string" ? value : undefined
}
