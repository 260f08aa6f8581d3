import { present } from "../../../protocol/base/assert.ts"
import type { Candidate } from "../submission/submission.ts"
import type { Items } from "./items.ts"

/** Every candidate's replicas, candidate by candidate; replicas count from 1 (BM-003, BM-004, GAP-40). */
export function benchmarkItems(candidates: readonly Candidate[], replicas: number): Items {
  return {
    count: candidates.length * replicas,
    fieldsOf: (item) => {
      const { name, config, vary } = present(candidates[candidateOf(item, replicas)], "the candidate")
      const replica = item % replicas
      return {
        ...config,
        ...(vary && { [vary.field]: vary.base + replica * vary.stride }),
        _candidate: name,
        _replica: replica + 1,
      }
    },
  }
}

/** Which candidate, by its place, the task of this index tries. */
export const candidateOf = (index: number, replicas: number): number => Math.floor(index / replicas)
