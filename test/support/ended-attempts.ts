import type { Outbox, StoredEnd } from "../../node-agent/outbox/outbox.ts"
import { claimNumber } from "../../protocol/domain/ids.ts"
import type { ResultItem, RuntimeSpec } from "../../protocol/wire/control.ts"
import { taskSpec } from "./agent.ts"

/** Grants, starts and ends attempts, each with these files. */
export function endAttempts(outbox: Outbox, claims: readonly number[], files: StoredEnd["files"] = []): void {
  const spec = taskSpec(RUNTIME, ["true"])
  const grants = claims.map((claim) => ({
    spec,
    task: { claim, spec: 0, index: 0, attempt: 1, payload: { text: "{}" }, gpus: [] },
  }))
  outbox.acceptGrants(grants, 0)
  outbox.markRunning(claims.map((claim) => ({ claim: claimNumber(claim), attemptDir: `/attempts/c${claim}` })))
  outbox.storeResults(claims.map((claim) => ({ item: itemOf(claim), files })))
}

function itemOf(claim: number): ResultItem {
  return {
    claim,
    digest: "d".repeat(64),
    failure_kind: null,
    exit_code: 0,
    signal: null,
    message: null,
    runtime_ms: 1,
    cpu_ms: null,
    peak_memory_bytes: null,
    output: "",
    error_tail: "",
    result: null,
    result_problem: null,
    artifacts: [],
  }
}

const RUNTIME: RuntimeSpec = {
  revision: "rev_1",
  tarball: { digest: "d".repeat(64), size: 1, piece_list: null },
  image: null,
  workdir: null,
  remote_dir: null,
  setup_timeout_ms: 1_000,
  validation: null,
  content_grant: "",
  holders: [],
}
