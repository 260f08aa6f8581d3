import { afterEach, beforeEach, expect, test } from "vitest"
import { fundedAccount } from "../support/accounts.ts"
import { startJobRig, type JobRig } from "../support/job-rig.ts"
import type { JobRow } from "../../coordinator/store/jobs.ts"

let rig: JobRig
let job: JobRow
let heard: number[][]
beforeEach(async () => {
  rig = await startJobRig()
  const account = await fundedAccount(rig.store, 50_000_000n)
  await rig.project(account)
  await rig.queued(account, {})
  job = await rig.queued(account, {})
  await rig.runWhole(job, () => 1)
  heard = []
  rig.store.onJobsChanged((jobs) => heard.push([...jobs]))
})
afterEach(() => rig[Symbol.asyncDispose]())

/** Of the tasks that have none yet: a job of one task had its result taken away. */
const RESULT = `INSERT INTO task_results (task, claim, output) SELECT id, 1, '' FROM tasks WHERE id / 131072 = ?`
const CHECKPOINT = `INSERT INTO checkpoints (task, claim, n, item_digest, own_artifact, durable, held, created_at, state, line)
  SELECT id, 1, 1, 'd', 0, 1, 0, 1, '{}', '{}' FROM tasks WHERE id / 131072 = ?`

test.each([
  "UPDATE jobs SET error = 'x' WHERE seq = ?",
  "UPDATE holds SET charged = 0, status = 'released', settled_amount = 0 WHERE job_id = (SELECT id FROM jobs WHERE seq = ?)",
  "UPDATE tasks SET state = 'lost' WHERE id / 131072 = ?",
  "UPDATE tasks SET claim = 7 WHERE id / 131072 = ?",
  "DELETE FROM tasks WHERE id / 131072 = ?",
  "UPDATE attempts SET state = 'lost', budget_ms = 5 WHERE task / 131072 = ?",
  "UPDATE task_results SET output = 'x' WHERE task / 131072 = ?",
  RESULT,
  CHECKPOINT,
  "DELETE FROM jobs WHERE seq = ?",
])("the store tells of whatever changes what is stored of a job: %s", async (sql) => {
  if (sql === RESULT) await rig.store.write((tx) => tx.run("DELETE FROM task_results WHERE task / 131072 = ?", job.seq))
  const { changes } = await rig.store.write((tx) => tx.run(sql, job.seq))
  expect(changes).toBe(1)
  expect(heard).toEqual([[job.seq]])
})

test("the store tells of a job that is submitted", async () => {
  const { account, seq } = await rig.row(job)
  const made = await rig.queued(account, {})
  expect(made.seq).toBeGreaterThan(seq)
  expect(heard.flat()).toContain(made.seq)
})

test("it tells after the COMMIT and before the writer has its answer, and of nothing else", async () => {
  let known: unknown = null
  rig.store.onJobsChanged(
    () =>
      void rig.store
        .read((view) => view.get("SELECT error FROM jobs WHERE seq = ?", job.seq))
        .then((row) => (known = row)),
  )
  const order: string[] = []
  using _listening = rig.store.onJobsChanged(() => order.push("heard"))
  await rig.store
    .write((tx) => tx.run("UPDATE jobs SET error = 'x' WHERE seq = ?", job.seq))
    .then(() => order.push("answered"))
  expect(order).toEqual(["heard", "answered"])
  await expect.poll(() => known).toEqual({ error: "x" })

  heard = []
  await rig.store.write((tx) => tx.run("UPDATE accounts SET name = 'other'"))
  await rig.store.write((tx) => tx.run("UPDATE attempts SET contact_lost_at = 5 WHERE task / 131072 = ?", job.seq))
  expect(heard).toEqual([])
})

test("who stopped listening is told no more; an act that failed hides no other act's change", async () => {
  const listening = rig.store.onJobsChanged(() => heard.push([0]))
  listening[Symbol.dispose]()
  const failing = rig.store.write(async (tx) => {
    await tx.run("UPDATE jobs SET error = 'y' WHERE seq = 1")
    throw new Error("no")
  })
  const good = rig.store.write((tx) => tx.run("UPDATE jobs SET error = 'x' WHERE seq = ?", job.seq))
  await expect(failing).rejects.toThrow("no")
  await good
  expect(heard).toHaveLength(1)
  expect(heard[0]).toContain(job.seq)
})
