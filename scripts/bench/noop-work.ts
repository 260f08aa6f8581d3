import type { Json } from "./bench-fleet.ts"

/** Work that costs nothing, so that all that is measured is ours: tasks that `noop-agent.ts` ends without a program. */

export const NOOP_PROJECT = { Dockerfile: "FROM scratch\n", "job.py": "pass\n" }

export const NOOP_JOB: Json = {
  type: "structured_runner",
  project: "noop",
  runner_command: ["python3", "job.py"],
  requirements: { cpu: 1, memory_mb: 64 },
  timeout_s: 60,
  runtime_hint_s: 1,
}

/** Of one node with room for 64 of them. */
export const NOOP_NODE = [
  "--runtime=process",
  "--allow-unsandboxed",
  "--cpus=64",
  "--memory-mb=65536",
  "--storage-gb=64",
] as const
