/** First elements a `runner_command` may have: exact names, no paths (J-004, GAP-22). */
export const ALLOWED_EXECUTABLES = [
  "python",
  "python3",
  "node",
  "deno",
  "bun",
  "ruby",
  "julia",
  "Rscript",
  "uv",
  "pip",
  "npm",
  "npx",
  "cargo",
  "rustc",
] as const

/** Elements a command may have (GAP-22). */
export const LONGEST_COMMAND = 256

/** The variables a task finds (RP-002 … RP-005). Set last, so that no layer can change them (RP-010). */
export const RUNNER_ENV = {
  payload: "COMPUTALOT_TASK_PAYLOAD",
  result: "COMPUTALOT_TASK_RESULT",
  artifacts: "COMPUTALOT_ARTIFACT_DIR",
  scratch: "COMPUTALOT_TASK_SCRATCH_DIR",
} as const

/** A line of standard output that starts so is live progress, not output (RP-007). */
export const PROGRESS_PREFIX = "COMPUTALOT_PROGRESS:"
/** Longer progress lines stay ordinary output (GAP-46). */
export const LONGEST_PROGRESS_LINE_BYTES = 64 * 1024
/** What is kept of a task's output: the last bytes, the marker line included (J-035, GAP-28, rulings). */
export const OUTPUT_TAIL_BYTES = 10_240
/** What is kept of a task's error text (J-035). */
export const ERROR_TAIL_CHARACTERS = 1000
/** The largest payload of one task, as UTF-8 JSON (GAP-32). */
export const LARGEST_PAYLOAD_BYTES = 1024 * 1024
/** A checkpoint object may be this large as JSON; a progress line is no longer either. */
export const LARGEST_CHECKPOINT_STATE_BYTES = 64 * 1024
/** The file of a checkpoint: as much as a node may upload in one piece (AR-003). */
export const LARGEST_CHECKPOINT_BYTES = 2 * 1024 ** 3
/** Where a next attempt finds what an earlier one left, unless the job names another key (CK-003). */
export const DEFAULT_RESUME_KEY = "_resume"
/** A result file may be this large; a larger one counts as unreadable, before anything of it is uploaded. */
export const LARGEST_RESULT_BYTES = 64 * 1024 * 1024
