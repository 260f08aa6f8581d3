import RealDatabase from "better-sqlite3"
import { readFileSync } from "node:fs"
import { join } from "node:path"
import { auditMoney } from "../../coordinator/billing/audit.ts"
import { planTasks } from "../../coordinator/jobs/plan/plan.ts"
import type { Submission } from "../../coordinator/jobs/submission/submission.ts"
import { Connection, ActHandle } from "../../coordinator/store/statements.ts"
import { EPOCH_MS } from "./machine.ts"
import type { NodeMachine } from "./node-machine.ts"
import type { ImageRecord } from "../../protocol/domain/image.ts"
import { layerOf } from "./scripted-builder.ts"
import { artifactOf, resultFor, scriptOf } from "./scripted-runner.ts"
import { TERMINAL, type Watch } from "./watch.ts"

const TASKS_OF_A_JOB = 131_072

interface JobRow {
  seq: number
  id: string
  status: string
  task_count: number
  completed: number
  failed: number
  cancelled: number
  submission: string
}

/** What must hold once everything was mended and has come to rest: the list, by its numbers. */
export async function checkAtTheEnd(world: {
  directory: string
  watch: Watch
  nodes: readonly NodeMachine[]
}): Promise<void> {
  const { watch } = world
  const database = new RealDatabase(join(world.directory, "computalot.db"), { readonly: true })
  try {
    const all = <Row>(sql: string, ...parameters: unknown[]): Row[] => database.prepare(sql).all(...parameters) as Row[]
    const jobs = all<JobRow>("SELECT * FROM jobs")
    checkJobs(jobs, watch)
    for (const job of jobs) checkTasks(world.directory, job, all, watch)
    for (const { text } of all<{ text: string }>(OFFENDERS)) watch.wrong(text)
    checkStored(all, watch)
    checkCharges(all, watch)
    checkStreams(all, watch)
    checkPushes(world.directory, all, watch)
    const view = new ActHandle(
      new Connection(database, (error) => watch.wrong(`6: the database is damaged: ${String(error)}`)),
    )
    const audit = await auditMoney({ readAside: (read, ...args) => read.run(view, ...args) })
    for (const check of audit.checks) {
      if (!check.ok) watch.wrong(`4: ${check.name}: ${check.actual} instead of ${check.expected}`)
    }
  } finally {
    database.close()
  }
  for (const node of world.nodes) checkOutbox(node, watch)
}

function checkJobs(jobs: readonly JobRow[], watch: Watch): void {
  const byId = new Map(jobs.map((job) => [job.id, job]))
  for (const job of jobs) {
    if (!TERMINAL.has(job.status)) watch.wrong(`1: job ${job.id} is still ${job.status}`)
  }
  for (const [id, { name }] of watch.accepted) {
    const job = byId.get(id)
    if (!job) watch.wrong(`6: ${name} was accepted as ${id} and is gone`)
    else watch.jobSeen(id, job.status, Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY)
  }
  const names = [...watch.accepted.values()].map(({ name }) => name)
  for (const name of new Set(names)) {
    if (names.filter((other) => other === name).length > 1) watch.wrong(`6: ${name} was accepted twice`)
  }
}

interface TaskRow {
  id: number
  state: string
  claim: number | null
  result_claim: number | null
  result: string | null
  result_digest: string | null
  attempt_state: string | null
}

type All = <Row>(sql: string, ...parameters: unknown[]) => Row[]

/** 2: each task that completed has one effective result, and it is what its program made of its payload. */
function checkTasks(directory: string, job: JobRow, all: All, watch: Watch): void {
  const tasks = all<TaskRow>(
    `SELECT tasks.id, tasks.state, tasks.claim, r.claim AS result_claim, r.result, r.result_digest, a.state AS attempt_state
     FROM tasks LEFT JOIN task_results r ON r.task = tasks.id LEFT JOIN attempts a ON a.claim = r.claim
     WHERE tasks.id / ${TASKS_OF_A_JOB} = ?`,
    job.seq,
  )
  const plan = planTasks(JSON.parse(job.submission) as Submission)
  for (const task of tasks) {
    const index = task.id % TASKS_OF_A_JOB
    const name = `task ${index} of ${job.id}`
    if (!TERMINAL.has(task.state)) watch.wrong(`1: ${name} is still ${task.state}`)
    if (task.state !== "completed") continue
    if (task.attempt_state !== "completed" || task.claim !== task.result_claim) {
      watch.wrong(`2: ${name} completed by attempt ${task.claim}, its result is of ${task.result_claim}`)
    }
    const payload = plan.payloadText(index)
    const expected = resultFor(payload, scriptOf(payload))
    const given = task.result_digest === null ? task.result : readBlob(directory, task.result_digest)
    if (given !== expected && !watch.lied.has(task.claim ?? 0))
      watch.wrong(`2: the result of ${name} is not what its program made: ${given?.slice(0, 60)}`)
    const { artifactBytes } = scriptOf(payload)
    if (artifactBytes && !watch.lied.has(task.claim ?? 0)) {
      const left = artifactsOf(directory, job.id, index, all)
      // A task that is run again keeps what it left before.
      const ran = all<{ claim: number }>("SELECT claim FROM attempts WHERE task = ? AND state = 'completed'", task.id)
      // What a node lied about may have left one or not.
      const wanted = ran.filter(({ claim }) => !watch.lied.has(claim)).length
      const isCount = left.length >= wanted && left.length <= ran.length
      const isIts = isCount && left.every((one) => one === artifactOf(payload, artifactBytes))
      if (!isIts) watch.wrong(`2: ${name} left ${wanted} artifacts, there are ${left.length}: ${left[0]?.slice(0, 60)}`)
    }
  }
  const ended = tasks.filter(({ state }) => state === "completed").length
  if (ended !== job.completed) watch.wrong(`2: ${job.id} counts ${job.completed} completed tasks, there are ${ended}`)
}

/** The bytes of what the task's records name; null where they are not there. */
function artifactsOf(directory: string, job: string, index: number, all: All): (string | null)[] {
  const rows = all<{ digest: string }>(
    "SELECT digest FROM artifacts WHERE job = ? AND task = ? AND filename = 'artifacts.tar.gz'",
    job,
    `task_${job.slice("job_".length)}_${index}`,
  )
  return rows.map(({ digest }) => readBlob(directory, digest))
}

function readBlob(directory: string, digest: string): string | null {
  try {
    return readFileSync(join(directory, "blobs", digest.slice(0, 2), digest), "utf8")
  } catch {
    return null
  }
}

/** 6: what a node was told to be stored is. */
function checkStored(all: All, watch: Watch): void {
  const ended = new Map(
    all<{ claim: number; state: string }>("SELECT claim, state FROM attempts").map(({ claim, state }) => [
      claim,
      state,
    ]),
  )
  for (const claim of watch.stored.keys()) {
    const state = ended.get(claim)
    if (state !== "completed" && state !== "failed") {
      watch.wrong(`6: the node was told that the result of claim ${claim} is stored; its attempt is ${state ?? "gone"}`)
    }
  }
}

/** 7: who followed a job to an end saw every event of its log between the snapshot and that end, live words excepted. */
function checkStreams(all: All, watch: Watch): void {
  for (const { job, from, upto, seen } of watch.followed) {
    const logged = all<{ id: number }>(
      `SELECT e.id FROM events e JOIN jobs j ON j.seq = e.job
       WHERE j.id = ? AND e.id > ? AND e.id <= ? AND e.type <> 'task.progress'`,
      job,
      from,
      upto,
    )
    const missed = logged.filter(({ id }) => !seen.has(id)).map(({ id }) => id)
    if (missed.length > 0) watch.wrong(`7: the stream of ${job} never showed events ${missed.slice(0, 5).join(", ")}`)
    if (seen.size > logged.length) watch.wrong(`7: the stream of ${job} showed ${seen.size} events of ${logged.length}`)
  }
}

/** 6: a push that was answered counts until a later one; and an image that was built can be had. */
function checkPushes(directory: string, all: All, watch: Watch): void {
  const active = all<{ account: number; content_hash: string }>(
    "SELECT p.account, r.content_hash FROM projects p JOIN revisions r ON r.id = p.active_revision WHERE p.name = 'p'",
  )
  for (const { account, content_hash } of active) {
    const its = watch.pushed.filter((push) => push.account === account)
    const latest = its.filter(({ atMs }) => !its.some(({ askedMs }) => askedMs > atMs))
    if (latest.length > 0 && !latest.some(({ hash }) => hash === content_hash) && !watch.unsurePushes.has(account))
      watch.wrong(`6: account ${account} pushed ${latest[0]?.hash}, and its project runs ${content_hash}`)
  }
  for (const { id, tarball_digest, image } of all<{ id: string; tarball_digest: string; image: string }>(
    "SELECT id, tarball_digest, image FROM revisions WHERE build = 'built'",
  )) {
    const [layer] = (JSON.parse(image) as ImageRecord).layers
    if (readBlob(directory, layer?.blob?.digest ?? "none") !== layerOf(tarball_digest))
      watch.wrong(`6: revision ${id} is built, and its layer is not there`)
  }
}

/** 4: nobody pays for more than ran, by the world's own clock; what a node lied about is bounded by the rows alone. */
function checkCharges(all: All, watch: Watch): void {
  const charges = all<{ claim: number; milliseconds: number; granted_at: number; ended_at: number; peer_id: string }>(
    `SELECT c.claim, c.milliseconds, a.granted_at, a.ended_at, n.peer_id FROM charges c
     JOIN attempts a ON a.claim = c.claim JOIN nodes n ON n.id = a.node`,
  )
  for (const { claim, milliseconds, granted_at, ended_at, peer_id } of charges) {
    if (watch.cloned.has(claim)) continue
    const lived = ended_at - granted_at
    const silentMs = watch.silentMs(peer_id, granted_at - EPOCH_MS, ended_at - EPOCH_MS)
    if (!watch.clockStepped && silentMs > 0 && milliseconds > lived - silentMs + UNDER_WAY_MS)
      watch.wrong(
        `4: attempt ${claim} lived ${lived} ms, ${silentMs} of them without contact, and was charged ${milliseconds}`,
      )
    const ranMs = watch.lied.has(claim) ? (watch.clockStepped ? Number.POSITIVE_INFINITY : lived) : watch.ranMs(claim)
    if (milliseconds > ranMs * CLOCKS_DIFFER_BY + 1) {
      watch.wrong(`4: attempt ${claim} was charged ${milliseconds} ms and ran ${Math.ceil(ranMs)} ms`)
    }
  }
}

/** What was said before the silence is taken up after it began. */
const UNDER_WAY_MS = 500

/** Machines' clocks run up to 0.02 % too fast. */
const CLOCKS_DIFFER_BY = 1.0002

/** 8, and 6 from the other side: nothing waits in an outbox for ever. */
function checkOutbox(node: NodeMachine, watch: Watch): void {
  const database = new RealDatabase(join(node.directory, "outbox.sqlite"), { readonly: true })
  try {
    const { left } = database.prepare("SELECT count(*) AS left FROM results").get() as { left: number }
    if (left > 0) watch.wrong(`8: ${left} results still wait in the outbox of ${node.machine.name}`)
    const held = database.prepare("SELECT claim, state FROM attempts").all() as { claim: number; state: string }[]
    for (const { claim, state } of held) watch.wrong(`8: ${node.machine.name} still holds claim ${claim} as ${state}`)
  } finally {
    database.close()
  }
}

/** Each row is something wrong. */
const OFFENDERS = `
  SELECT '6: ' || client_ref || ' was submitted once and is there ' || count(*) || ' times' AS text FROM jobs
    GROUP BY client_ref HAVING count(*) > 1
  UNION ALL
  SELECT '1: attempt ' || claim || ' is still ' || state FROM attempts WHERE ended_at IS NULL
  UNION ALL
  SELECT '1: job ' || j.id || ' still waits for ' || u.id FROM job_dependencies d
    JOIN jobs j ON j.seq = d.job JOIN jobs u ON u.seq = d.upstream WHERE d.ended IS NULL
  UNION ALL
  SELECT '1: job ' || j.id || ' was cancelled by one that completed' FROM job_dependencies d
    JOIN jobs j ON j.seq = d.job JOIN jobs u ON u.seq = d.upstream
    WHERE u.status = 'completed' AND j.error LIKE 'dependency ' || u.id || ' ended%' AND u.round = 1 AND j.round = 1
  UNION ALL
  SELECT '2: job ' || j.id || ' started before ' || u.id || ' had completed' FROM job_dependencies d
    JOIN jobs j ON j.seq = d.job JOIN jobs u ON u.seq = d.upstream
    WHERE EXISTS (SELECT 1 FROM attempts a WHERE a.task / 131072 = j.seq) AND (u.status <> 'completed' OR EXISTS (
      SELECT 1 FROM events e WHERE e.job = j.seq AND e.type = 'task.started' AND e.id <
        (SELECT id FROM events c WHERE c.job = u.seq AND c.type = 'job.completed'))) AND u.round = 1 AND j.round = 1
  UNION ALL
  SELECT '2: task ' || task || ' completed by ' || count(*) || ' attempts' FROM attempts
    WHERE state = 'completed' GROUP BY task, round HAVING count(*) > 1
  UNION ALL
  SELECT '4: attempt ' || c.claim || ' is ' || a.state || ' and was charged' FROM charges c
    JOIN attempts a ON a.claim = c.claim WHERE a.state IN ('lost', 'returned')
  UNION ALL
  SELECT '4: attempt ' || a.claim || ' failed by ' || a.failure_kind || ' and was charged' FROM charges c
    JOIN attempts a ON a.claim = c.claim WHERE a.failure_kind IN ('node_lost', 'sandbox_error', 'setup_failed')
  UNION ALL
  SELECT '4: attempt ' || a.claim || ' completed and was not charged' FROM attempts a
    WHERE a.state = 'completed' AND NOT EXISTS (SELECT 1 FROM charges c WHERE c.claim = a.claim)
  UNION ALL
  SELECT '4: hold ' || id || ' is still active' FROM holds WHERE status = 'active'
  UNION ALL
  SELECT '4: job ' || job_id || ' has ' || count(*) || ' holds' FROM holds h GROUP BY job_id
    HAVING count(*) <> (SELECT round FROM jobs WHERE id = h.job_id)
  UNION ALL
  SELECT '2: job ' || id || ' counts ' || (completed + failed + cancelled) || ' ended tasks of ' || task_count FROM jobs
    WHERE status IN ('completed', 'partial', 'failed') AND completed + failed + cancelled > task_count
  UNION ALL
  SELECT '7: job ' || j.id || ' has ' || (SELECT count(*) FROM events e WHERE e.job = j.seq
      AND e.type IN ('job.completed', 'job.partial', 'job.failed', 'job.cancelled')) || ' last events' FROM jobs j
    WHERE j.status IN ('completed', 'partial', 'failed', 'cancelled') AND j.round <> (SELECT count(*) FROM events e WHERE e.job = j.seq
      AND e.type IN ('job.completed', 'job.partial', 'job.failed', 'job.cancelled'))
  UNION ALL
  SELECT '7: task ' || t.id || ' has ' || (SELECT count(*) FROM events e WHERE e.job = t.id / 131072
      AND e.task_index = t.id % 131072 AND e.type = 'task.completed') || ' events of its completion' FROM tasks t
    WHERE t.state = 'completed' AND (SELECT count(*) FROM attempts a WHERE a.task = t.id AND a.state = 'completed') <>
      (SELECT count(*) FROM events e WHERE e.job = t.id / 131072
        AND e.task_index = t.id % 131072 AND e.type = 'task.completed')
  UNION ALL
  SELECT '8: task ' || task || ' keeps ' || count(*) || ' checkpoints' FROM checkpoints GROUP BY task HAVING count(*) > 3
  UNION ALL
  SELECT '6: the file of checkpoint ' || c.claim || '/' || c.n || ' has no record' FROM checkpoints c
    WHERE c.own_artifact = 1 AND NOT EXISTS (SELECT 1 FROM artifacts a WHERE a.id = c.artifact AND a.digest = c.blob)
  UNION ALL
  SELECT '8: blob ' || digest || ' of claim ' || claim || ' is still staged' FROM staged_blobs`
