/** What the fields of a submission mean, beyond their types. */
const SUBMISSION_NOTES: Readonly<Record<string, string>> = {
  type: "required for projects: structured_runner runs a program on a payload, sweep tries combinations, map_reduce splits a range, benchmark compares candidates",
  project: "name of one of your projects",
  runner_command: 'required for projects, such as ["python", "script.py"]; the first element is an allowed executable',
  payload: "input of the tasks (structured_runner, map_reduce); the program reads it from $COMPUTALOT_TASK_PAYLOAD",
  fan_out:
    'structured_runner only: {by: "field"}, {items: [{...}, ...]} or {chunks: N, total: N}, exactly one of them, else 422. batch_size (or batch_per_task) puts several items into one task and describes them in payload._batch',
  merge_strategy: "structured_runner only; collect unless said otherwise",
  value_field: "weighted_avg: the field of the results that is averaged",
  weight_field: "weighted_avg: the field that weighs each result",
  split: "map_reduce only: {field, start, total, chunks}, or {field, ranges: [{start, count}, ...]}",
  reduce:
    "map_reduce only: field -> operator out of sum, mean, max, min, weighted_avg:<weight_field>, concat, count, collect",
  parameters: "sweep only: name -> list of values; every combination is a task, at most 1000",
  fixed_payload: "sweep only: goes into every task",
  rank_by: "sweep and benchmark: the numeric field of the results that ranks them",
  rank_order: "sweep and benchmark; desc unless said otherwise",
  candidates: "benchmark only: name -> settings, at least 2",
  shared_payload: "benchmark only: goes into every task",
  replicas: "benchmark only: runs of each candidate; 1 unless said otherwise",
  replica_vary: "benchmark only: {field, stride} gives each replica a value of its own",
  timeout_s: "seconds that one task may run; 3600 unless said otherwise",
  runtime_hint_s: "how long you expect a task to run: it lowers the hold, timeout_s stays the limit",
  max_retries: "how often a failed task is tried again; 0 unless said otherwise",
  priority: "normal unless said otherwise; guaranteed reservations come first",
  reliability_mode: "best_effort unless said otherwise; strict_complete: one task that fails for good fails the job",
  requirements: "minimum of cpu, memory_mb, storage_gb, gpu_count, gpu_memory_mb and profile for each task",
  gpu_required: "the same as requirements.profile gpu with at least one GPU",
  reservation: "{mode, parallelism, guaranteed_for_s, max_wait_s}; guaranteed is admitted at once or refused with 409",
  execution_policy: "sandboxed for projects, sealed for recipes",
  placement_policy:
    "shared unless said otherwise; dedicated keeps a node for the project, and the whole node is paid for",
  tags: "labels to search by: GET /api/v1/jobs?tag=sweep_72",
  client_ref: "your own label to search by; no identifier",
  meta: "kept and shown as it is; meta.env goes into the environment of the tasks",
  variant: "kept and shown as it is",
  result_schema:
    '{required_fields: ["score"], field_types: {"score": "number"}, field_ranges: {"score": [0.0, 1.0]}}: added to what the type expects of results; what falls short gets a low result_quality',
  checkpointing: "structured_runner only: {enabled, resume_from_latest, payload_key}",
  depends_on: "ids of jobs that must have completed before this one starts",
  callback_url: "is called once when the job has ended",
  recipe: "name of a sealed recipe instead of a project",
  state:
    'publish: {name: {path: "results.0.score"} or {value: true}} is written into the project\'s shared state at the end',
  max_cost_usd: "the hold is never larger, and nothing new starts when it is spent",
}

/** The same for other bodies, by the id of their route. */
export const BODY_NOTES: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  "jobs-create": SUBMISSION_NOTES,
  "projects-create": {
    remote_dir: "absolute path at which tasks find the code besides the working directory",
    env: "environment of the tasks: behind the env files of the tarball, before a job's meta.env",
    setup_timeout_s: "seconds that preparing a node may take",
    runtime_kind: "OCI images are what projects run as",
    manifest: "the runtime contract, where the tarball has none",
  },
  "projects-init": { max_nodes: "how many nodes to prepare at most" },
  "jobs-cancel": { reason: "becomes the job's error" },
}
