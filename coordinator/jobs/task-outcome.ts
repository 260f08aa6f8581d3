import { digest } from "../../protocol/domain/ids.ts"
import type { ObjectFiles } from "../artifacts/object-files.ts"
import type { TaskWithResult } from "../store/tasks.ts"
import type { TaskOutcome } from "./aggregate/fold.ts"

/** What an ended task came to, a spilled result by its content (GAP-55); null while the task has not ended. */
export async function outcomeOfTask(
  files: Pick<ObjectFiles, "read">,
  { index, state, end }: TaskWithResult,
): Promise<TaskOutcome | null> {
  if (state !== "completed" && state !== "failed" && state !== "cancelled") return null
  if (state !== "completed" || !end) return { index, status: state, resultText: null }
  if (end.resultDigest === null) return { index, status: state, resultText: end.result }
  const spilled = await files.read(digest(end.resultDigest), end.resultBytes ?? 0)
  return { index, status: state, resultText: spilled?.toString("utf8") ?? null }
}
