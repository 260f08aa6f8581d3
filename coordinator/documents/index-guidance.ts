import { ifThere, type DocumentFacts } from "./facts.ts"

// The parts of the index that advise (D-023, D-026, D-029).

export const PLATFORM_MODEL = {
  summary:
    "You meet projects and jobs. Which machines there are, which one prepares or runs what, is decided inside and changes without notice.",
  placement_note: "No answer of the API names a machine or a place.",
  user_visible_primitives: [
    "a project is code and the environment it runs in",
    "a job is work to be done",
    "requirements are the least that one task needs",
    "a reservation says how a job is admitted",
    "checkpointing says whether a task that is tried again gets what it had reached",
  ],
}

export const PROJECT_LIFECYCLE = {
  summary:
    "Register, push a tarball (Dockerfile, computalot.project.json, code), submit jobs. init may prepare nodes ahead of them.",
  setup:
    "A push publishes the revision at once and builds its image in the background; jobs wait for it and prepare their node by themselves. The manifest is described at /docs/projects/project-manifest.",
  update_flow:
    "Push again. The next job uses the new revision and may wait while it is prepared. invalidate drops what was prepared before.",
  debugging_init:
    "GET /api/v1/projects/:name/status says how it stands, GET /api/v1/projects/:name/status/details adds logs and the next step.",
}

export const PROJECT_RUNTIME = {
  summary: "Tasks of a project run in its own image, in a sandbox, on a machine that other tenants use too.",
  setup: PROJECT_LIFECYCLE.setup,
  validation:
    "The manifest's validation names executables, files and commands that must be there; commands run in the image with the project's environment, so that they can try imports and credentials. Where one fails the node does not take the project.",
  task_env:
    "Layers, later ones win: the image, the tarball's .computalot.env, computalot.env and .env, the project's env, meta.env of the job. COMPUTALOT_* is set by the platform.",
}

export const PROJECT_READINESS = {
  summary: "Readiness is told about the active revision, never about machines.",
  diagnostics:
    "GET /api/v1/projects/:name/status/details repeats the summary and adds entries with id, status, phase, message, log_tail, content_hash, inserted_at, updated_at, initialized_at and recommended_action.",
  fields: {
    project_ready: "true while the project can run: published, and not blocked by a failed set-up",
    can_accept_new_jobs: "true once a revision is published; the first job may wait while it is prepared",
    ready_for_jobs:
      "true once a node is prepared, so that a job need not wait; it proves nothing about your imports and credentials unless validation checks them",
    init_state: '"not_initialized", "published", "initializing", "ready", "refreshing" or "attention_required"',
    availability_status: '"cold", "warming", "ready", "degraded" or "mixed": the prepared nodes together',
    progress_phase:
      '"queued", "running", "failed", "refreshing", "refresh_pending", "ready" or "idle": what is being done at the moment',
    pending_init: "true while preparation is waiting or under way",
    requested_state: "what was asked for last, where something was",
    content_hash: "sha256 of the current upload's files",
    status_message: "the state in one sentence",
    next_action: "what to do next, in one sentence",
    latest_issue: "what went wrong last, where attention is needed",
    last_ready_at: "when it was ready last",
    latest_activity_at: "when set-up did something last",
    latest_failure_at: "when set-up failed last",
    ready_replicas: "nodes that are prepared for the active revision",
    initializing_replicas: "nodes that are being prepared",
    failed_replicas: "nodes on which preparing failed",
    stale_replicas: "nodes prepared for an older revision, or gone",
    total_replicas: "all of these",
  },
}

export const JOBS_VS_TASKS = {
  summary:
    "A job is what you submit; tasks are the parts that run at once. A thousand inputs can be one job of a thousand tasks, or a thousand jobs of one.",
  rule_of_thumb:
    "One answer wanted at the end: one job. A thousand answers that live on their own: a thousand jobs. In doubt, one job.",
  many_jobs: {
    description: "Each input is a job with an id, a status and an end of its own.",
    behaviors: [
      "One that fails does not touch the others.",
      "Each can be cancelled, tried again and looked at alone.",
      "Each calls its own webhook.",
      "depends_on joins them into graphs.",
      "Lists count them by status: GET /api/v1/jobs?status=completed&limit=1 has the total.",
      "Accounts get equal shares, and so do the jobs of an account; priority (high, normal, low) decides inside the account, guaranteed reservations come before all.",
    ],
    best_for: [
      "inputs that have nothing to do with each other",
      "work that is cancelled or repeated one by one",
      "pipelines in which one step waits for another",
      "work that arrives over time",
    ],
  },
  one_job_many_tasks: {
    description: "fan_out, parameters, split or candidates make many tasks out of one job.",
    behaviors: [
      "One id to follow.",
      "One cancel ends everything.",
      "One webhook at the end.",
      "completed: all tasks succeeded. partial: some failed, or a result was of low quality. failed: all failed.",
      "GET /api/v1/results/:job_id has a row for each task.",
      "What depends on the job waits for all of its tasks.",
      "Results are put together: ranked, reduced or compared.",
    ],
    best_for: [
      "a grid search, a simulation in parts, a comparison",
      "work of which one result is wanted",
      "many small inputs that need no life of their own",
    ],
  },
}

export function heavyJobGuidance(facts: DocumentFacts): Record<string, unknown> {
  return {
    summary: "For large data and long runs the payload says what to do; the data itself travels as artifacts.",
    inputs: [
      "Keep data out of the payload: a task's payload has at most 1 MiB.",
      ifThere(
        facts,
        "artifacts_in_jobs",
        "payload._artifacts.download {name: artifact id} puts files beside the task before it starts; nodes keep them for the next one.",
      ),
      ifThere(
        facts,
        "manifest_data",
        "Data that never changes belongs into the manifest's data_sources: it is prepared before the program starts. Models and datasets of Hugging Face: source huggingface, with delivery mount to read them without a copy.",
      ),
      ifThere(
        facts,
        "artifacts_in_jobs",
        'A later job takes a named artifact of an earlier one: {_artifacts: {download: {dataset: {job_id: "job_...", artifact: "dataset"}}}}, with the earlier one in depends_on.',
      ),
      ifThere(
        facts,
        "shared_state",
        'Small values: payload._shared.resolve {best_score: {job_id: "job_...", path: "results.0.score"}} or {dataset_ready: {key: "dataset_ready"}}.',
      ),
      ifThere(
        facts,
        "shared_state",
        "A project's shared state lies behind /api/v1/projects/:name/kv/:key; what was resolved stands in payload._shared.values and, for single values, in COMPUTALOT_SHARED_<NAME>.",
      ),
      ifThere(
        facts,
        "artifacts_in_jobs",
        "Paths of downloads stand in payload._artifacts.local_paths and in COMPUTALOT_ARTIFACT_<NAME>.",
      ),
    ],
    outputs: [
      "Write checkpoints and other files into $COMPUTALOT_ARTIFACT_DIR.",
      ifThere(
        facts,
        "artifacts_in_jobs",
        "payload._artifacts.upload gives files names, so that later jobs can ask for them.",
      ),
      "A result too large for a row becomes an artifact: result_spilled, result_artifact_id and result_filename stand in its place.",
    ],
    operational_defaults: [
      "Checkpoint long work and set checkpointing.resume_from_latest: a task that is tried again goes on from there, also on another machine.",
      "Leave room in timeout_s: it ends a task for good.",
      ifThere(
        facts,
        "manifest_data",
        "Caches that your program fills belong into cache_mounts; one of kind huggingface sets HF_HOME and TRANSFORMERS_CACHE. hf-mount serves data_sources only; what the program downloads by itself goes its own way.",
      ),
      "storage_gb counts the data, caches, temporary files and checkpoints together.",
      "Before a burst, init prepares nodes, so that the first tasks do not wait.",
    ],
  }
}

export const DEBUGGING = {
  summary: "When something fails, look in this order.",
  steps: [
    "1. GET /api/v1/jobs/:id: error, recommended_action, and queue_reason while it waits",
    "2. GET /api/v1/jobs/:id/tasks: error, output and failure record of each task",
    "3. GET /api/v1/jobs/:id/output: what the tasks printed, together",
    "4. GET /api/v1/projects/:name/status: is the project published and ready?",
    "5. GET /api/v1/projects/:name/status/details: logs of building and preparing it, and what to do",
  ],
  common_issues: {
    "402 Payment Required": "Fund the account and send the same request again.",
    "Setup fails": "Mend the Dockerfile or the manifest, push, and submit again.",
    "Tasks stuck in queued": "queue_reason of the job says what it waits for; a new revision is prepared first.",
    "exit_code_1 with no useful error": "The task's output has its last 10 KB.",
  },
}
