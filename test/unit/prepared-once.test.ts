import { expect, onTestFinished, test } from "vitest"
import { openDependencies } from "../../coordinator/store/dependencies.ts"
import { jobEvents } from "../../coordinator/store/events.ts"
import { jobHeadById, jobHeadBySeq, jobTexts } from "../../coordinator/store/jobs.ts"
import { findHold, outcomeAndHold, textsAndHold } from "../../coordinator/store/holds.ts"
import { findProject, findProjectById } from "../../coordinator/store/projects.ts"
import { artifactIdsOfJob, leftBehind, shortestBudgetMs, taskOutputs } from "../../coordinator/store/task-reads.ts"
import type { View } from "../../coordinator/store/store.ts"
import { fundedAccount } from "../support/accounts.ts"
import { startJobRig } from "../support/job-rig.ts"

test("architecture §4: what every submission and every poll reads is planned by SQLite once, not at each run", async () => {
  await using rig = await startJobRig()
  const account = await fundedAccount(rig.store, 1_000_000_000n)
  await rig.project(account)
  const upstream = await rig.queued(account, {})
  const job = await rig.queued(account, { depends_on: [upstream.id], fan_out: { chunks: 3, total: 3 } })
  await rig.runWhole(upstream, () => null)
  const waiting = await rig.queued(account, {})
  const dependent = await rig.queued(account, { depends_on: [waiting.id] })
  const project = await rig.store.read((view) => findProject(view, account, "p"))

  const reads: Record<string, (view: View) => Promise<unknown>> = {
    findProject: (view) => findProject(view, account, "p"),
    findProjectById: (view) => findProjectById(view, project?.id ?? 0),
    openDependencies: (view) => openDependencies(view, dependent.seq),
    jobHeadById: (view) => jobHeadById(view, job.id, account),
    jobHeadBySeq: (view) => jobHeadBySeq(view, job.seq),
    jobTexts: (view) => jobTexts(view, job.seq),
    findHold: (view) => findHold(view, job.hold),
    textsAndHold: (view) => textsAndHold(view, job),
    outcomeAndHold: (view) => outcomeAndHold(view, job),
    leftBehind: (view) => leftBehind(view, upstream.seq),
    taskOutputs: (view) => taskOutputs(view, job.seq, 0, 100),
    shortestBudgetMs: (view) => shortestBudgetMs(view, upstream.seq, 1),
    jobEvents: (view) => jobEvents(view, job.seq, 0, 100),
  }
  const made = countRowShapes()
  for (const [name, read] of Object.entries(reads)) {
    const found = await rig.store.read(read)
    expect(found, `${name} finds something, else it shows nothing`).not.toEqual([])
    const before = made()
    for (let n = 0; n < 5; n++) await rig.store.read(read)
    expect(made() - before, `${name} is planned once`).toBe(0)
  }
  expect(await rig.store.read((view) => artifactIdsOfJob(view, job.id, 0, 10))).toEqual([])
  // That the count tells it: a bare parameter in an ordered statement is planned again each time.
  const before = made()
  const bare = (view: View) => view.all("SELECT id FROM events WHERE job = ? ORDER BY id LIMIT ?", job.seq, 100)
  for (let n = 0; n < 5; n++) await rig.store.read(bare)
  expect(made() - before).toBe(5)
})

/** The driver makes the shape of a statement's rows by `Function`, anew whenever SQLite has planned the statement again. */
function countRowShapes(): () => number {
  const real = globalThis.Function
  let count = 0
  globalThis.Function = new Proxy(real, {
    apply(target, self, args) {
      count += 1
      return Reflect.apply(target, self, args) as unknown
    },
  })
  onTestFinished(() => {
    globalThis.Function = real
  })
  return () => count
}
