import type { FieldProblem } from "../../../protocol/domain/errors.ts"

/** Notes that a required field is missing; the placeholder only keeps the check going and is never part of a submission. */
export function missing<T>(problems: FieldProblem[], path: string, right: string, placeholder: T): T {
  problems.push({ path, problem: `is required: must be ${right}` })
  return placeholder
}
