import { beforeAll, afterAll, expect, test } from "vitest"
import type { AccountId } from "../../protocol/domain/ids.ts"
import { TERMINAL_JOB_STATUSES } from "../../protocol/domain/statuses.ts"
import { groupJobs, pageOfJobs, type JobFilter } from "../../coordinator/store/jobs.ts"
import { fundedAccount } from "../support/accounts.ts"
import { startJobRig, type JobRig } from "../support/job-rig.ts"
import { EVERY_JOB } from "../support/job-filter.ts"

const COPIES = 1_500
let rig: JobRig
let account: AccountId
let stored: Stored[]

interface Stored {
  seq: number
  account: number
  status: string
  created_at: number
  completed_at: number | null
  tags: string[]
}

/** More jobs of one tag than a list is made of; every fifth has ended, every tenth has another tag as well, one is a stranger's. */
beforeAll(async () => {
  rig = await startJobRig()
  account = await fundedAccount(rig.store, 1_000_000_000n)
  await rig.project(account)
  const { seq } = await rig.queued(account, { tags: ["common"] })
  await rig.store.write(async (tx) => {
    const columns = (await tx.all<{ name: string }>("SELECT name FROM pragma_table_info('jobs')")).map(
      ({ name }) => name,
    )
    const others: Record<string, string> = {
      seq: "NULL",
      id: "'job_20260101_000000_c' || n",
      hold: "'hold_c' || n",
      account: "CASE WHEN n = 7 THEN account + 1000 ELSE account END",
      created_at: "created_at - (n * 7919) % 1000",
      status: "CASE WHEN n % 5 = 0 THEN 'failed' ELSE status END",
      completed_at: "CASE WHEN n % 5 = 0 THEN created_at + n ELSE NULL END",
    }
    await tx.run(
      `INSERT INTO jobs (${columns.join(", ")})
       WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < ?)
       SELECT ${columns.map((name) => others[name] ?? name).join(", ")} FROM c CROSS JOIN jobs WHERE seq = ?`,
      COPIES,
      seq,
    )
    await tx.run("INSERT INTO job_tags (account, tag, job) SELECT account, 'common', seq FROM jobs WHERE seq > ?", seq)
    await tx.run("INSERT INTO job_tags (account, tag, job) SELECT account, 'rare', seq FROM jobs WHERE seq % 10 = 0")
  })
  const rows = await rig.store.read((view) =>
    view.all<Omit<Stored, "tags"> & { tags: string }>(
      `SELECT seq, account, status, created_at, completed_at,
         (SELECT group_concat(tag) FROM job_tags WHERE job = jobs.seq) AS tags
       FROM jobs ORDER BY created_at DESC, id DESC`,
    ),
  )
  stored = rows.map((row) => ({ ...row, tags: row.tags.split(",") }))
})
afterAll(() => rig[Symbol.asyncDispose]())

/** What a page shall hold, told by all rows one by one. */
function expected(filter: JobFilter): number[] {
  const { account: whose, statuses, tag, expiredUpto = -1 } = filter
  return stored
    .filter((row) => whose === null || row.account === whose)
    .filter((row) => statuses === null || statuses.some((status) => status === row.status))
    .filter((row) => tag === null || row.tags.includes(tag))
    .filter((row) => row.completed_at === null || row.completed_at > expiredUpto)
    .map(({ seq }) => seq)
}

test("RS-009, J-028: pages and totals are the same however many jobs have the tag, and whether or not some have expired", async () => {
  const ends = stored.flatMap(({ completed_at: at }) => (at === null ? [] : [at])).toSorted((a, b) => a - b)
  expect(ends.length).toBe(COPIES / 5)
  for (const tag of ["common", "rare", "nobody's", null]) {
    for (const statuses of [null, ["queued" as const], TERMINAL_JOB_STATUSES]) {
      // None has expired, none could, half have.
      for (const expiredUpto of [0, undefined, ends[ends.length / 2] ?? 0]) {
        for (const whose of [account, null]) {
          const filter = {
            ...EVERY_JOB,
            account: whose,
            tag,
            statuses,
            ...(expiredUpto !== undefined && { expiredUpto }),
          }
          const all = expected(filter)
          for (const [limit, offset] of [
            [20, 0],
            [100, 1_150],
            [500, 30],
          ] as const) {
            const page = await rig.store.read((view) => pageOfJobs(view, filter, limit, offset))
            expect(page).toEqual({ seqs: all.slice(offset, offset + limit), total: all.length })
          }
          const groups = await rig.store.read((view) => groupJobs(view, filter, "status"))
          expect(groups.reduce((sum, { jobs }) => sum + jobs, 0)).toBe(all.length)
        }
      }
    }
  }
})

test("a tag together with another filter counts both", async () => {
  const first = expected({ ...EVERY_JOB, account, tag: "common" })[0] ?? 0
  const head = await rig.store.read((view) => view.get<{ id: string }>("SELECT id FROM jobs WHERE seq = ?", first))
  const { id } = head ?? { id: "" }
  for (const other of [{ project: "elsewhere" }, { type: "sweep" as const }, { clientRef: "x" }, { userId: 999 }]) {
    const page = await rig.store.read((view) =>
      pageOfJobs(view, { ...EVERY_JOB, account, tag: "common", ...other }, 10, 0),
    )
    expect(page).toEqual({ seqs: [], total: 0 })
  }
  const ids = [id as NonNullable<JobFilter["ids"]>[number]]
  expect(
    await rig.store.read((view) => pageOfJobs(view, { ...EVERY_JOB, account, tag: "common", ids }, 10, 0)),
  ).toEqual({
    seqs: [first],
    total: 1,
  })
})
