import type { SubmitJobBody } from "../../../protocol/api/jobs.ts"
import type { FieldProblem } from "../../../protocol/domain/errors.ts"
import { jobId } from "../../../protocol/domain/ids.ts"
import type { Submission } from "./submission.ts"

/** GAP-62. */
const MOST_DEPENDENCIES = 100

/** The jobs that `depends_on` names, each once and in its order. Whether they are there is seen where the job is written. */
export function dependencies(fields: SubmitJobBody, problems: FieldProblem[]): Pick<Submission, "dependsOn"> {
  const ids = [...new Set(fields.depends_on)].map(jobId)
  if (ids.length > MOST_DEPENDENCIES) {
    const problem = `names ${ids.length} jobs: must name at most ${MOST_DEPENDENCIES}; depend on a job that depends on them`
    problems.push({ path: "depends_on", problem })
  }
  return ids.length === 0 ? {} : { dependsOn: ids }
}
