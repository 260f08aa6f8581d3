/** A deliberate fault in our own code, put in as the source is loaded: the simulator must notice it. */
export interface Mutant {
  name: string
  edits: { file: string; from: string; to: string }[]
}

const REPORT = "coordinator/jobs/report.ts"
const JOB_END = "coordinator/jobs/job-end.ts"
const DEPENDENCIES = "coordinator/jobs/dependencies.ts"
const OUTBOX = "node-agent/outbox/outbox.ts"

/** What memory does not hold any more is refused too: without that the check in the write stands alone. */
const LOOK_UP_THE_JOB = [
  {
    file: REPORT,
    from: 'import { rateOfJob, type JobFacts } from "./job-facts.ts"',
    to: 'import { jobFacts, rateOfJob, type JobFacts } from "./job-facts.ts"\nimport { jobBySeq } from "../store/jobs.ts"',
  },
  {
    file: REPORT,
    from: "const { item, job } = end\n  const { at } = batch",
    to: "let { item, job } = end\n  const { at } = batch",
  },
  {
    file: REPORT,
    from: "  if (!task || !job) return",
    to: "  if (task) job ??= jobFacts(await jobBySeq(tx, Math.floor(task.key / 131072)))\n  if (!task || !job) return",
  },
]

/** Each is a slip that somebody could make, at a place on which a promise rests. */
export const MUTANTS: readonly Mutant[] = [
  {
    name: "the fencing check is skipped",
    edits: [
      { file: REPORT, from: "if (attempt.endedAt !== null) {", to: "if (attempt.itemDigest === item.digest) {" },
      ...LOOK_UP_THE_JOB,
    ],
  },
  {
    name: "anybody reports for any claim",
    edits: [{ file: REPORT, from: "if (!attempt || attempt.node !== node)", to: "if (!attempt)" }, ...LOOK_UP_THE_JOB],
  },
  {
    name: "a spent number is answered as stored",
    edits: [
      {
        file: REPORT,
        from: `keepLateDigest(tx, claim, item.digest)
    return { verdict: "spent", reason: null }`,
        to: `keepLateDigest(tx, claim, item.digest)
    return { verdict: "stored", reason: null }`,
      },
    ],
  },
  {
    name: "writes are acknowledged before COMMIT",
    edits: [
      {
        file: "coordinator/store/group-commit.ts",
        from: "const refusal = (await this.#runActs(settled)) ?? this.#commit()",
        to: `let refusal = await this.#runActs(settled)
    for (const { waiting, outcome } of settled) if (outcome.ok) waiting.resolve(outcome.value)
    await new Promise((resolve) => setImmediate(resolve))
    refusal ??= this.#commit()`,
      },
    ],
  },
  {
    name: "a finished job's hold is not settled",
    edits: [{ file: JOB_END, from: "  await settleHold", to: '  if (end.from !== "running") await settleHold' }],
  },
  {
    name: "a cancelled job's hold is not settled",
    edits: [{ file: JOB_END, from: "  await settleHold", to: '  if (end.from === "running") await settleHold' }],
  },
  {
    name: "a node is believed how long it ran",
    edits: [
      {
        file: "coordinator/billing/pricing.ts",
        from: "Math.ceil(Math.min(attempt.measuredMs, seen))",
        to: "Math.ceil(seen > 0 ? attempt.measuredMs : 0)",
      },
    ],
  },
  {
    name: "lost attempts are charged",
    edits: [
      {
        file: REPORT,
        from: "  if (ran) {\n    const amount",
        to: '  if (ran || item.failure_kind === "node_lost" || item.failure_kind === "sandbox_error") {\n    const amount',
      },
    ],
  },
  {
    name: "one row in seven of the outbox is lost",
    edits: [
      {
        file: OUTBOX,
        from: "if (sql.done.run(end.item.claim).changes === 1) sql.store.run",
        to: "if (sql.done.run(end.item.claim).changes === 1 && end.item.claim % 7 !== 0) sql.store.run",
      },
    ],
  },
  {
    name: "an agent starts again what ran before its crash",
    edits: [
      {
        file: "node-agent/tasks/claim-loop.ts",
        from: 'if (one.state === "accepted") attempts.set',
        to: 'if (one.state !== "done") attempts.set',
      },
      {
        file: "node-agent/tasks/claim-loop.ts",
        from: 'const running = held.filter(({ state }) => state === "running")',
        to: "const running: HeldAttempt[] = []",
      },
      { file: OUTBOX, from: "WHERE claim = ? AND state = 'accepted'\"", to: 'WHERE claim = ?"' },
    ],
  },
  {
    name: "a job that has ended can be cancelled",
    edits: [
      {
        file: "coordinator/store/jobs.ts",
        from: "WHERE seq = ? AND status IN ('planning', 'queued', 'running', 'finishing')`",
        to: "WHERE seq = ?`",
      },
    ],
  },
  {
    name: "claims are not restored at a start",
    edits: [
      {
        file: "coordinator/scheduler/restore-claims.ts",
        from: "    if (!job || !member) continue",
        to: "    if (job || !job || !member) continue",
      },
    ],
  },
  {
    name: "a job that was finishing is forgotten at a start",
    edits: [
      {
        file: "coordinator/scheduler/job-life.ts",
        from: 'else if (job.status === "finishing") finish([job.seq])',
        to: 'else if (job.status === "finishing") void 0',
      },
    ],
  },
  {
    name: "the answer to a submission is remembered in a write of its own",
    edits: [
      {
        file: "coordinator/http/routes/jobs.ts",
        from: "      also: request.idempotency.remember(",
        to: "      also: true ? async () => {} : request.idempotency.remember(",
      },
    ],
  },
  {
    name: "one completion in five is not told",
    edits: [
      {
        file: REPORT,
        from: "  if (kind === null) {\n",
        to: "  if (kind === null && end.task.key % 5 === 0) return\n  if (kind === null) {\n",
      },
    ],
  },
  {
    name: "time without contact is billed",
    edits: [
      {
        file: "coordinator/billing/pricing.ts",
        from: "  return attempt.lostContactMs + (attempt",
        to: "  return 0 * (attempt",
      },
    ],
  },
  {
    name: "a spent claim is renewed",
    edits: [
      {
        file: "coordinator/scheduler/claims.ts",
        from: "          spent.push(claim)\n          continue",
        to: "          renewed.push(claim)\n          continue",
      },
    ],
  },
  {
    name: "a task that was started is given back",
    edits: [
      {
        file: "node-agent/tasks/claim-loop.ts",
        from: 'if (state !== "accepted") started.push(claim)',
        to: 'if (state === "done") started.push(claim)',
      },
    ],
  },
  {
    name: "a checkpoint is answered before COMMIT",
    edits: [
      {
        file: "coordinator/scheduler/checkpoints.ts",
        from: "const { verdict, reason, durable } = await storeCheckpoint(parts, member.id, item, job)",
        to: `storeCheckpoint(parts, member.id, item, job).catch(() => {})
      const { verdict, reason, durable } = { verdict: "stored", reason: null, durable: true }`,
      },
    ],
  },
  {
    name: "an unanswered checkpoint is dropped when the agent starts again",
    edits: [{ file: "node-agent/agent.ts", from: "=> link?.send(message)", to: "=> link!.send(message)" }],
  },
  {
    name: "a silent clone keeps the original out",
    edits: [
      {
        file: "coordinator/fleet/fleet.ts",
        from: "      isInReach(members.contact(member)) &&\n      boots",
        to: "      boots",
      },
    ],
  },
  {
    name: "what cannot be prepared is forgotten at the first look",
    edits: [
      {
        file: "coordinator/scheduler/runtime-specs.ts",
        from: "if (found && (!before || blobNames(found.revision) === blobNames(before.revision))) return",
        to: "if (found && before && blobNames(found.revision) === blobNames(before.revision)) return",
      },
    ],
  },
  {
    name: "a node that was taken back is not told",
    edits: [
      {
        file: "coordinator/mesh/control-door.ts",
        from: '    session.send({ type: "node_state", state: member.state })',
        to: '    if (member.state === "draining") session.send({ type: "node_state", state: member.state })',
      },
    ],
  },
  {
    name: "any end releases who waits for it",
    edits: [{ file: DEPENDENCIES, from: 'if (end.status === "completed") {', to: 'if (end.status !== "cancelled") {' }],
  },
  {
    name: "an older copy of the data starts again as if nothing were",
    edits: [
      {
        file: "coordinator/store/meta.ts",
        from: "  if (isOlderCopy && !takeOver) throw new OlderCopy(last, later)\n",
        to: "",
      },
    ],
  },
  {
    name: "a result is reported before its files are sent",
    edits: [
      {
        file: "node-agent/tasks/deliver.ts",
        from: "if (files.length === 0) ready.push(item)",
        to: "if (files.length >= 0) ready.push(item)",
      },
    ],
  },
  {
    name: "an attempt goes on from a checkpoint without its file",
    edits: [
      {
        file: "node-agent/tasks/resume.ts",
        from: "if (point.file === null) return null",
        to: "if (point.n > 0 || point.file === null) return null",
      },
    ],
  },
  {
    name: "a GPU is lent twice",
    edits: [
      {
        file: "coordinator/fleet/members.ts",
        from: "      for (const uuid of attempt.gpus) member.used.gpus.add(uuid)\n",
        to: "",
      },
      {
        file: "node-agent/tasks/claim-loop.ts",
        from: "task.gpus.every((uuid) => room.gpus.has(uuid))",
        to: "task.gpus.length >= 0",
      },
    ],
  },
  {
    name: "the old number lives on when a task is granted again",
    edits: [
      { file: "coordinator/scheduler/grant.ts", from: "outcome.spent.push(await endLost(tx, task, at))", to: "" },
    ],
  },
]

/** The file's source with the mutant's edits for it. Each place must be found once: a fault that is put nowhere proves nothing. */
export function mutated({ name, edits }: Mutant, file: string, source: string): string {
  let text = source
  for (const { from, to } of edits.filter((edit) => edit.file === file)) {
    if (text.split(from).length !== 2) throw new Error(`"${name}": its place in ${file} is not found once`)
    text = text.replace(from, () => to)
  }
  return text
}
