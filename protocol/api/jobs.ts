import { z } from "zod"
import { isJsonObject, type JsonObject } from "../base/json-text.ts"
import { LONGEST_COMMAND } from "../domain/runner.ts"
import {
  FAILURE_KINDS,
  JOB_STATUSES,
  JOB_TYPES,
  PRIORITIES,
  RELIABILITY_MODES,
  TASK_STATUSES,
  TERMINAL_JOB_STATUSES,
} from "../domain/statuses.ts"
import { listOf, pageOf, paging, timestamp, usdAmount, wholeNumberText } from "./common.ts"

// What is submitted. Each field stands as the client sent it: defaults, and what one field means for another, are resolved
// in coordinator/jobs/submission.ts, so that `request` shows the submission and no more.

const MERGE_STRATEGIES = ["collect", "keyed", "weighted_avg"] as const
/** What `result_schema.field_types` may name (rulings, Fields). */
export const FIELD_TYPES = ["number", "integer", "string", "boolean", "array", "object", "null"] as const
export type FieldType = (typeof FIELD_TYPES)[number]

/** GAP-70: seven days. */
const LONGEST_TIMEOUT_S = 7 * 24 * 3600
/** GAP-70. */
const MOST_RETRIES = 100
/** GAP-70: a day. */
const LONGEST_GUARANTEE_S = 24 * 3600
/** GAP-70. */
const LARGEST_PARALLELISM = 1000
/** J-012. */
const MOST_TAGS = 20
/** GAP-25; tags are search labels of the same kind. */
const LONGEST_LABEL = 256
/** BM-002. */
const MOST_REPLICAS = 100
/** Far above any machine, and small enough that sums over tasks stay exact. */
const LARGEST_REQUIREMENT = 1_000_000_000
/** A second of a core's tenth: less makes no progress (rulings, Fields). */
const SMALLEST_CPU = 0.1

/** An object that is data: kept as sent, whatever its keys. */
const data = z.custom<JsonObject>(isJsonObject, mustBe("an object")).meta({ type: "object" })
const flag = z.boolean(mustBe("true or false"))

/** Minimums of one task, and its enforced limits (J-014). */
const requirementsBody = z
  .looseObject(
    {
      cpu: z
        .number(mustBe(`a number of cores of at least ${SMALLEST_CPU}`))
        .min(SMALLEST_CPU, mustBe(`a number of cores of at least ${SMALLEST_CPU}`))
        .max(LARGEST_REQUIREMENT, mustBe(`at most ${LARGEST_REQUIREMENT}`)),
      memory_mb: whole(1, LARGEST_REQUIREMENT),
      storage_gb: whole(1, LARGEST_REQUIREMENT),
      gpu_count: whole(0, 1024),
      gpu_memory_mb: whole(0, LARGEST_REQUIREMENT),
      profile: oneOf(["cpu", "gpu"]),
    },
    mustBe("an object such as {cpu: 2, memory_mb: 1024}"),
  )
  .partial()

const reservationBody = z
  .looseObject(
    {
      mode: oneOf(["best_effort", "guaranteed"]),
      parallelism: whole(1, LARGEST_PARALLELISM),
      guaranteed_for_s: whole(1, LONGEST_GUARANTEE_S),
      max_wait_s: whole(0, LONGEST_TIMEOUT_S),
    },
    mustBe('an object such as {mode: "best_effort"}'),
  )
  .partial()

const checkpointingBody = z
  .looseObject(
    { enabled: flag, resume_from_latest: flag, payload_key: text(1, LONGEST_LABEL) },
    mustBe("an object such as {enabled: true}"),
  )
  .partial()

/** Exactly one shape: `{by}`, `{items}` or `{chunks, total}` (SR-002); which one is checked where the fields meet. */
const fanOutBody = z
  .looseObject(
    {
      by: text(1, LONGEST_LABEL),
      items: z.array(z.unknown(), mustBe("a list of objects, one for each task")),
      chunks: whole(1),
      total: whole(1),
      start: whole(-Number.MAX_SAFE_INTEGER),
      range_field: text(1, LONGEST_LABEL),
      batch_size: whole(1),
      batch_per_task: whole(1),
      value_field: text(1, LONGEST_LABEL),
      weight_field: text(1, LONGEST_LABEL),
    },
    mustBe("an object: {by}, {items} or {chunks, total}"),
  )
  .partial()

const splitBody = z
  .looseObject(
    {
      field: text(1, LONGEST_LABEL),
      start: whole(-Number.MAX_SAFE_INTEGER),
      total: whole(1),
      chunks: whole(1),
      ranges: z.array(
        z.looseObject({ start: whole(-Number.MAX_SAFE_INTEGER), count: whole(1) }, mustBe("an object {start, count}")),
        mustBe("a list of {start, count}"),
      ),
    },
    mustBe("an object: {field, start, total, chunks} or {field, ranges}"),
  )
  .partial()

/** BM-004: a field whose value grows by `stride` with every replica. */
const replicaVaryBody = z
  .looseObject(
    { field: text(1, LONGEST_LABEL), stride: z.number(mustBe("a number")) },
    mustBe('an object such as {field: "seed_base", stride: 1000}'),
  )
  .partial()

const resultSchemaBody = z
  .looseObject(
    {
      required_fields: z.array(text(1, LONGEST_LABEL), mustBe("a list of field names")),
      field_types: data,
      field_ranges: data,
    },
    mustBe("an object {required_fields, field_types, field_ranges}"),
  )
  .partial()

const stateBody = z
  .looseObject({ publish: data }, mustBe('an object such as {publish: {best_score: {path: "results.0.score"}}}'))
  .partial()

/** POST /jobs. Unknown fields stay in, also in the objects below, so that they can be named in `warnings` (interfaces). */
export const submitJobBody = z
  .looseObject({
    type: oneOf(JOB_TYPES),
    project: text(1, LONGEST_LABEL),
    runner_command: z
      .array(z.string(mustBe("a string")), mustBe('a list of strings such as ["python3", "job.py"]'))
      .min(1, mustBe('a list of strings such as ["python3", "job.py"]'))
      .max(LONGEST_COMMAND, `must have at most ${LONGEST_COMMAND} elements: pass more in the payload`),
    payload: data,
    fan_out: fanOutBody,
    merge_strategy: oneOf(MERGE_STRATEGIES),
    value_field: text(1, LONGEST_LABEL),
    weight_field: text(1, LONGEST_LABEL),
    split: splitBody,
    reduce: data,
    timeout_s: whole(1, LONGEST_TIMEOUT_S),
    runtime_hint_s: whole(1, LONGEST_TIMEOUT_S),
    max_retries: whole(0, MOST_RETRIES),
    priority: oneOf(PRIORITIES),
    reliability_mode: oneOf(RELIABILITY_MODES),
    requirements: requirementsBody,
    gpu_required: flag,
    reservation: reservationBody,
    execution_policy: oneOf(["sandboxed", "sealed"]),
    placement_policy: oneOf(["shared", "dedicated"]),
    tags: z
      .array(text(1, LONGEST_LABEL), mustBe(`a list of at most ${MOST_TAGS} strings`))
      .max(MOST_TAGS, `must have at most ${MOST_TAGS} elements`),
    client_ref: text(0, LONGEST_LABEL),
    meta: data,
    variant: z.unknown(),
    result_schema: resultSchemaBody,
    checkpointing: checkpointingBody,
    depends_on: z.array(text(1, LONGEST_LABEL), mustBe("a list of job ids")),
    callback_url: z.string(mustBe("a string")),
    recipe: z.string(mustBe("a string")),
    state: stateBody,
    max_cost_usd: z.number(mustBe("an amount in dollars")).positive(mustBe("an amount above 0")),
    parameters: data,
    fixed_payload: data,
    rank_by: text(1, LONGEST_LABEL),
    rank_order: oneOf(["desc", "asc"]),
    candidates: data,
    shared_payload: data,
    replicas: whole(1, MOST_REPLICAS),
    replica_vary: replicaVaryBody,
  })
  .partial()
  .meta({ id: "SubmitJob" })
export type SubmitJobBody = z.output<typeof submitJobBody>

export const cancelJobBody = z.object({ reason: text(0, 1000).optional() })

const RETRY_FILTERS = ["failed", "low_quality", "indexes"] as const
/** Which tasks of a job that has ended run again (rulings, Retry of a finished job). */
export const retryJobBody = z.object({
  filter: oneOf(RETRY_FILTERS),
  indexes: z.array(whole(0), mustBe("a list of the indexes of tasks")).optional(),
})

// What is asked for.

export const jobsQuery = z.object({
  status: oneOf(JOB_STATUSES).optional(),
  project: z.string().optional(),
  type: oneOf(JOB_TYPES).optional(),
  tag: z.string().optional(),
  client_ref: z.string().optional(),
  ...paging(50, 500),
})
export const tasksQuery = z.object({ status: oneOf(TASK_STATUSES).optional(), ...paging(1000, 1000) })
/** `after` names the last event already seen; rows are the oldest ones behind it (rulings, Events). */
export const eventsQuery = z.object({ after: wholeNumberText(0).optional(), limit: paging(200, 1000).limit })
export const jobResultsQuery = z.object(paging(1000, 1000))
export const resultsQuery = z.object({
  job_id: z.string().optional(),
  /** Job ids, separated by commas. */
  ids: z.string().optional(),
  project: z.string().optional(),
  client_ref: z.string().optional(),
  tag: z.string().optional(),
  type: oneOf(JOB_TYPES).optional(),
  status: oneOf(TERMINAL_JOB_STATUSES).optional(),
  user_id: wholeNumberText(0).optional(),
  recipe_cache_key: z.string().optional(),
  recipe_cache_scope: z.string().optional(),
  recipe_cache_hit: oneOf(["true", "false"]).optional(),
  group_by: oneOf(["project", "client_ref", "tag", "type", "status", "recipe_cache_key"]).optional(),
  include_tasks: oneOf(["true", "false"]).optional(),
  ...paging(20, 100),
})

// What is answered. A `z.unknown()` below is the client's or its program's own JSON; the server may write it as JSON text.

const requirements = z.object({
  cpu: z.number(),
  memory_mb: z.int(),
  storage_gb: z.int(),
  gpu_count: z.int(),
  gpu_memory_mb: z.int().optional(),
  profile: z.enum(["cpu", "gpu"]),
})
const reservation = z.object({
  mode: z.enum(["best_effort", "guaranteed"]),
  parallelism: z.int().optional(),
  guaranteed_for_s: z.int().optional(),
  max_wait_s: z.int().optional(),
})

/** Why a job or task waits (interfaces); names no machine. */
export const QUEUE_REASONS = [
  "waiting_for_dependency",
  "no_matching_capacity",
  "capacity_busy",
  "runtime_preparing",
  "runtime_failed",
  "reservation_wait",
  "held_by_priority",
  "waiting_for_budget",
  "node_contact_lost",
] as const
export type QueueReasonCode = (typeof QUEUE_REASONS)[number]
const queueReason = z.object({
  code: z.enum(QUEUE_REASONS),
  message: z.string(),
  blocked_by: z.array(z.string()).optional(),
  /** Slots on live nodes that could ever fit a task of this job, and how many of them are taken. */
  eligible_slots: z.int(),
  busy_slots: z.int(),
  eta_s: z.number().optional(),
  suggestion: z.string(),
})

export const submissionWarning = z.object({
  field: z.string(),
  did_you_mean: z.string().optional(),
  message: z.string().optional(),
})
export type SubmissionWarning = z.output<typeof submissionWarning>

const taskCounts = z.object({
  total: z.int(),
  queued: z.int(),
  running: z.int(),
  completed: z.int(),
  failed: z.int(),
  cancelled: z.int(),
})

/** How much of the job its aggregate stands for (SR-016, RS-005). */
export const completeness = z.object({
  complete: z.boolean(),
  total_tasks: z.int(),
  completed_tasks: z.int(),
  failed_tasks: z.int(),
  cancelled_tasks: z.int(),
  pending_tasks: z.int(),
  /** Items before batching (C-03). */
  total_items: z.int(),
  completed_items: z.int(),
  weight_field: z.string().optional(),
  expected_weight: z.number().optional(),
  completed_weight: z.number().optional(),
  pending_weight: z.number().optional(),
})

/** `avg_edge` and its like; null where there was no weight to divide by. */
const aggregateAliases = z.record(z.string(), z.number().nullable())

/** Carries the type's own keys (`results`, `reduced`) and alias fields beside these. */
const summary = z.looseObject({
  billing_estimate: z.object({
    resource_class: z.string(),
    runtime_class: z.string(),
    reliability_mode: z.enum(RELIABILITY_MODES),
    estimated_hold_usd: usdAmount,
  }),
  billing_admission: z.object({
    admitted: z.boolean(),
    available_usd: usdAmount,
    required_usd: usdAmount,
    shortfall_usd: usdAmount,
  }),
  billing_hold: z
    .object({ id: z.string(), amount_usd: usdAmount, status: z.enum(["active", "settled", "released"]) })
    .optional(),
  quality: z
    .object({ mean_quality: z.number().nullable(), suspect_count: z.int(), suspect_task_ids: z.array(z.string()) })
    .optional(),
  logical_items: z.int().optional(),
  aggregate_result: z.unknown().optional(),
  aggregate_aliases: aggregateAliases.optional(),
  completeness: completeness.optional(),
  task_outcome_counts: taskCounts.optional(),
  result_persisted: z.boolean().optional(),
  output_persisted: z.boolean().optional(),
  aggregate_warnings: z.array(z.string()).optional(),
})

const jobFields = {
  id: z.string(),
  status: z.enum(JOB_STATUSES),
  type: z.enum(JOB_TYPES),
  project: z.string(),
  project_content_hash: z.string().nullable(),
  /** The number of the account (GAP-73). */
  user_id: z.int(),
  client_ref: z.string().nullable(),
  tags: z.array(z.string()),
  meta: z.unknown(),
  variant: z.unknown(),
  payload: z.unknown(),
  priority: z.enum(PRIORITIES),
  reliability_mode: z.enum(RELIABILITY_MODES),
  execution_policy: z.enum(["sandboxed", "sealed"]),
  placement_policy: z.enum(["shared", "dedicated"]),
  timeout_s: z.int(),
  runtime_hint_s: z.int().nullable(),
  /** As submitted: no hold of the job exceeds it. */
  max_cost_usd: usdAmount.nullable(),
  max_retries: z.int(),
  depends_on: z.array(z.string()),
  callback_url: z.string().nullable(),
  requirements,
  reservation,
  /** As submitted, defaults resolved; null where the submission says nothing of it. */
  checkpointing: z
    .object({ enabled: z.boolean(), resume_from_latest: z.boolean(), payload_key: z.string().optional() })
    .nullable(),
  /** 0 to 100, or null where nothing tells. */
  progress: z.number().nullable(),
  task_counts: taskCounts,
  queue_reason: queueReason.nullable(),
  created_at: timestamp,
  started_at: timestamp.nullable(),
  completed_at: timestamp.nullable(),
}

const liveFeedback = z.object({ output_tail: z.string(), updated_at: timestamp.nullable() })

/** Where checkpointing is on (CK-007). A task is counted once. */
export const checkpointSummary = z.object({
  tasks_with_checkpoint: z.int(),
  /** Those that could go on from it elsewhere. */
  tasks_with_durable_checkpoint: z.int(),
  latest: z.object({ task_id: z.string(), checkpoint: z.unknown(), created_at: timestamp }).nullable(),
})

/** A job in full (J-001, J-030, GAP-26). `warnings` stands in the answer to its submission only. */
export const jobObject = z
  .object({
    ...jobFields,
    request: z.unknown(),
    output: z.string(),
    error: z.string().nullable(),
    recommended_action: z.string().nullable(),
    summary,
    /** What a task of it was given, where its hold bought less than `timeout_s` (rulings, Holds). */
    effective_timeout_s: z.number().optional(),
    feedback_summary: z.object({ latest_progress: z.unknown(), live_feedback: liveFeedback.nullable() }).nullable(),
    checkpoint_summary: checkpointSummary.optional(),
    warnings: z.array(submissionWarning).optional(),
  })
  .meta({ id: "Job" })

/** A row of GET /jobs (J-028): no `request`, `output`, `summary`, `error`. */
export const jobListRow = z.object({
  ...jobFields,
  has_error: z.boolean(),
  has_output: z.boolean(),
  error_snippet: z.string().nullable(),
})
export const jobsReply = z.object({ ...pageOf("jobs", jobListRow).shape, total: z.int() })

export const jobOutputReply = z.object({ output: z.string(), error: z.string().nullable() })

const taskFields = {
  task_id: z.string(),
  index: z.int(),
  status: z.enum(TASK_STATUSES),
  payload: z.unknown(),
  result: z.unknown(),
  result_present: z.boolean(),
  result_artifact_id: z.string().optional(),
  /** 0 to 1; null for tasks that did not complete. */
  result_quality: z.number().nullable(),
  result_warnings: z.array(z.string()),
  artifact_ids: z.array(z.string()),
  artifacts: z.record(z.string(), z.string()),
  output: z.string(),
  output_present: z.boolean(),
  error: z.string().nullable(),
  project_content_hash: z.string().nullable(),
  started_at: timestamp.nullable(),
  completed_at: timestamp.nullable(),
}

/** A row of GET /jobs/:id/tasks (J-034, GAP-27). */
export const taskRow = z
  .object({
    ...taskFields,
    /** 0 before the first start. */
    attempt: z.int(),
    /** 1 + `max_retries`, and the attempts made before the job was last retried; node losses are not counted. */
    max_attempts: z.int(),
    /** What its attempt may run: `timeout_s`, or less where the job's hold bought no more; null while it waits. */
    effective_timeout_s: z.number().nullable(),
    failure_kind: z.enum(FAILURE_KINDS).nullable(),
    live_feedback: liveFeedback.nullable(),
    latest_progress: z.unknown(),
    checkpoint: z.unknown(),
    resume_state: z.unknown(),
    runtime_s: z.number().nullable(),
    /** Seconds since the last sign of life of a running task. */
    stale_for_s: z.number().nullable(),
    health_status: z.enum(["healthy", "stale", "unknown", "terminal"]).nullable(),
    queue_reason: queueReason.nullable(),
  })
  .meta({ id: "Task" })
export const tasksReply = z.object({ ...pageOf("tasks", taskRow).shape, total: z.int() })

/** What a failed task shows as its `result` (J-036). Paths and commands are those inside the sandbox (C-21). */
export const failureRecord = z.object({
  failure_kind: z.enum(FAILURE_KINDS),
  exit_code: z.int().nullable(),
  signal: z.string().nullable(),
  command: z.array(z.string()),
  cwd: z.string().nullable(),
  combined_output: z.string(),
  /** What the program had written before it failed. */
  partial_result: z.unknown(),
})

export const JOB_EVENT_TYPES = [
  ...(["planning", "queued", "running", "completed", "partial", "failed", "cancelled", "retried"] as const).map(
    (name) => `job.${name}` as const,
  ),
  ...(
    [
      "started",
      "progress",
      "checkpoint",
      "failed",
      "retried",
      "completed",
      "cancelled",
      "contact_lost",
      "contact_restored",
      "lost",
    ] as const
  ).map((name) => `task.${name}` as const),
  "webhook.failed",
  "webhook.refused",
  "state.publish_failed",
] as const
export type JobEventType = (typeof JOB_EVENT_TYPES)[number]

/** A row of GET /jobs/:id/events (GAP-29). */
export const jobEvent = z.object({
  id: z.int(),
  type: z.enum(JOB_EVENT_TYPES),
  job_id: z.string(),
  task_id: z.string().optional(),
  message: z.string(),
  data: z.unknown(),
  inserted_at: timestamp,
})
export const jobEventsReply = listOf("events", jobEvent)

/** GAP-30. */
export const jobMetricsReply = z.object({
  job_id: z.string(),
  tasks: z.object({ total: z.int(), by_status: z.record(z.enum(TASK_STATUSES), z.int()) }),
  queue_s: z.number().nullable(),
  runtime_s: z.object({ sum: z.number(), mean: z.number().nullable(), max: z.number().nullable() }),
  attempts: z.int(),
  cpu_seconds: z.number(),
  billed_usd: usdAmount,
})

/** GET /leases/:job_id (V-005). */
export const leaseReply = z.object({
  leases: z.object({
    total: z.int(),
    /** Completed. */
    done: z.int(),
    failed: z.int(),
    /** Because contact with a machine was lost; retries of failed tasks are not counted. */
    requeued: z.int(),
  }),
  /** Absent where nothing is guaranteed; it stays when it is over. */
  reservation: z
    .object({
      mode: z.literal("guaranteed"),
      parallelism: z.int(),
      guaranteed_for_s: z.int(),
      max_wait_s: z.int(),
      routing_profile: z.enum(["cpu", "gpu"]),
      requirements,
      active: z.boolean(),
      admitted_at: timestamp,
      expires_at: timestamp,
      /** Of `parallelism`, what the job's own tasks do not use at this moment; 0 when it is not active. */
      available_parallelism: z.int(),
    })
    .optional(),
})

const links = z.object({
  job: z.string(),
  tasks: z.string(),
  output: z.string(),
  events: z.string(),
  stream: z.string(),
  results: z.string(),
})

const jobResultFields = {
  job_id: z.string(),
  project: z.string(),
  type: z.enum(JOB_TYPES),
  status: z.enum(JOB_STATUSES),
  client_ref: z.string().nullable(),
  tags: z.array(z.string()),
  meta: z.unknown(),
  variant: z.unknown().optional(),
  user_id: z.int(),
  artifact_ids: z.array(z.string()),
  links,
  summary,
  aggregate_result: z.unknown(),
  aggregate_aliases: aggregateAliases,
  completeness,
  result_persisted: z.boolean(),
  output_persisted: z.boolean(),
  created_at: timestamp,
  completed_at: timestamp.nullable(),
}

export const resultRow = z.object(taskFields)
/** GET /results/:job_id (RS-001). Rows are tasks in a final state; `total` counts those over all pages. */
export const jobResultsReply = z.object({
  ...jobResultFields,
  results: z.array(resultRow),
  count: z.int(),
  total: z.int(),
  limit: z.int(),
  offset: z.int(),
  /** Over all rows, not the page. */
  result_count: z.int(),
  output_count: z.int(),
})

/** GET /results (RS-009). */
export const resultsReply = z.object({
  ...pageOf("results", z.object({ ...jobResultFields, tasks: z.array(taskRow).optional() })).shape,
  total: z.int(),
  applied_filters: z.record(z.string(), z.unknown()),
  result_guide: z.unknown(),
  group_by: z.string().optional(),
  /** Over all matches, not the page. */
  groups: z
    .array(z.object({ key: z.string().nullable(), count: z.int(), statuses: z.record(z.string(), z.int()) }))
    .optional(),
})

// How wrong fields are told: what was wrong, what would be right.

function whole(least: number, most = Number.MAX_SAFE_INTEGER): z.ZodInt {
  const right = mustBe(
    most === Number.MAX_SAFE_INTEGER
      ? least === -Number.MAX_SAFE_INTEGER
        ? "a whole number"
        : `a whole number of at least ${least}`
      : `a whole number from ${least} to ${most}`,
  )
  return z.int(right).min(least, right).max(most, right)
}

function text(shortest: number, longest: number): z.ZodString {
  const right = mustBe(`a string of ${shortest === 0 ? "at most" : `${shortest} to`} ${longest} characters`)
  return z.string(right).min(shortest, right).max(longest, right)
}

function oneOf<const Values extends readonly string[]>(values: Values): z.ZodEnum<{ [V in Values[number]]: V }> {
  return z.enum(values, mustBe(`one of ${values.join(", ")}`))
}

function mustBe(right: string): { error: (issue: { input?: unknown }) => string } {
  return { error: ({ input }) => (input === undefined ? `must be ${right}` : `must be ${right}, not ${shown(input)}`) }
}

/** The value in a few characters: enough to recognise it, too little to repeat a secret or a body. */
function shown(value: unknown): string {
  if (Array.isArray(value)) return value.length === 0 ? "an empty list" : "a list"
  if (isJsonObject(value)) return "an object"
  const written = JSON.stringify(value) ?? String(value)
  return written.length > LONGEST_SHOWN ? `${written.slice(0, LONGEST_SHOWN)}…` : written
}
const LONGEST_SHOWN = 40
