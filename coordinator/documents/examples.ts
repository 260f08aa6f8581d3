/** A submission of each type as the index prints it (D-019). Each is sent by a test to a live coordinator. */
export const JOB_EXAMPLES = {
  structured_runner: {
    type: "structured_runner",
    runner_command: ["python", "evaluate.py"],
    payload: { model: "gpt4", dataset: "test_v3" },
    project: "my-proj",
    timeout_s: 600,
  },
  sweep: {
    type: "sweep",
    runner_command: ["python", "train.py"],
    project: "ml-training",
    parameters: { learning_rate: [0.001, 0.01, 0.1], batch_size: [32, 64, 128] },
    fixed_payload: { dataset: "cifar10", epochs: 5 },
    rank_by: "accuracy",
    rank_order: "desc",
    gpu_required: true,
    timeout_s: 3600,
  },
  map_reduce: {
    type: "map_reduce",
    runner_command: ["python", "simulate.py"],
    project: "monte-carlo",
    payload: { strategy: "momentum" },
    split: { field: "seed", start: 0, total: 10_000, chunks: 50 },
    reduce: { total_pnl: "sum", sharpe: "weighted_avg:sample_count", max_dd: "max" },
    timeout_s: 7200,
  },
  benchmark: {
    type: "benchmark",
    runner_command: ["python", "evaluate.py"],
    project: "my-proj",
    candidates: {
      strategy_a: { model: "gpt4", temperature: 0.7 },
      strategy_b: { model: "claude", temperature: 0.5 },
      baseline: { model: "random" },
    },
    shared_payload: { dataset: "test_set_v3", n_trials: 100 },
    replicas: 3,
    rank_by: "score",
    timeout_s: 1800,
  },
} as const

export const REQUIREMENTS_EXAMPLE = {
  cpu: 8,
  memory_mb: 16_384,
  storage_gb: 40,
  gpu_count: 1,
  gpu_memory_mb: 12_288,
  profile: "gpu",
} as const

export const RESERVATION_EXAMPLE = {
  mode: "guaranteed",
  parallelism: 2,
  guaranteed_for_s: 1800,
  max_wait_s: 0,
} as const

/** A program of the runner protocol, in full (RP-013). */
export const RUNNER_EXAMPLE = `import json, os
payload = json.load(open(os.environ["COMPUTALOT_TASK_PAYLOAD"]))
result = {"score": 0.95, "seen": payload}
json.dump(result, open(os.environ["COMPUTALOT_TASK_RESULT"], "w"))
`

/** Bodies that the OpenAPI document shows, by the id of their route. */
export const BODY_EXAMPLES: Readonly<Record<string, Readonly<Record<string, unknown>>>> = {
  "jobs-create": JOB_EXAMPLES,
  "projects-create": { project: { name: "my-proj", remote_dir: "/root/projects/my-proj" } },
  "projects-update": { environment: { env: { LOG_LEVEL: "debug" } } },
  "projects-init": { two: { max_nodes: 2 } },
  "projects-cancel-queued": { tagged: { tag: "sweep_72", reason: "superseded" } },
  "jobs-cancel": { reason: { reason: "no longer needed" } },
  "jobs-retry": { failed: { filter: "failed" } },
  "jobs-batch": { one: { jobs: [JOB_EXAMPLES.structured_runner] } },
  "projects-kv-put": { flag: { value: { status: "ready" } } },
  feedback: { bug: { type: "bug", title: "Brief summary", description: "What happened, what you expected" } },
  "quotes-topup": { five: { amount_usd: 5, description: "first jobs" } },
}
