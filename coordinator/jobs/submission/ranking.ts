import type { SubmitJobBody } from "../../../protocol/api/jobs.ts"
import type { FieldProblem } from "../../../protocol/domain/errors.ts"
import { missing } from "./missing.ts"
import type { Ranking } from "./submission.ts"

/** SW-005, BM-005: what a sweep or benchmark is ranked by; the largest value is the best unless it says otherwise. */
export function ranking(fields: SubmitJobBody, problems: FieldProblem[]): Ranking {
  const by = fields.rank_by ?? missing(problems, "rank_by", "the name of a number in the results", "")
  return { by, order: fields.rank_order ?? "desc" }
}
