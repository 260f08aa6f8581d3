import { afterEach, beforeEach, expect, test } from "vitest"
import type { AccountId } from "../../protocol/domain/ids.ts"
import { createGroupCache } from "../../coordinator/jobs/read/groups.ts"
import type { JobFilter } from "../../coordinator/jobs/read/list.ts"
import { fundedAccount } from "../support/accounts.ts"
import { startJobRig, type JobRig } from "../support/job-rig.ts"
import { watchStatements, type Statements } from "../support/watched-store.ts"

let rig: JobRig
let alice: AccountId
let every: JobFilter
const statements: Statements = new Map()
beforeEach(async () => {
  rig = await startJobRig({ wrap: (store) => watchStatements(store, statements) })
  alice = await fundedAccount(rig.store, 50_000_000n)
  await rig.project(alice)
  const nothing = { statuses: null, project: null, type: null, tag: null, clientRef: null, userId: null, ids: null }
  every = { account: alice, ...nothing }
})
afterEach(() => rig[Symbol.asyncDispose]())

const group = (key: string | null, statuses: Record<string, number>) => ({
  key,
  count: Object.values(statuses).reduce((sum, one) => sum + one, 0),
  statuses,
})

test("GAP-58: groups are counted once until a job is submitted or changes; each question has its own answer", async () => {
  const groupCache = createGroupCache(rig)
  const job = await rig.queued(alice, { tags: ["a", "b"] })
  await rig.queued(alice, {})
  const asked = [group(null, { queued: 1 }), group("a", { queued: 1 }), group("b", { queued: 1 })]
  expect(await groupCache.groups(every, "tag")).toEqual(asked)
  statements.clear()
  expect(await groupCache.groups({ ...every }, "tag")).toEqual(asked)
  expect(statements.size, "nothing was counted again").toBe(0)
  expect(await groupCache.groups({ ...every, tag: "a" }, "status")).toEqual([group("queued", { queued: 1 })])
  expect(await groupCache.groups({ ...every, account: 999 as AccountId }, "tag")).toEqual([])

  await rig.queued(alice, { tags: ["a"] })
  expect(await groupCache.groups(every, "tag"), "one was submitted").toContainEqual(group("a", { queued: 2 }))
  await rig.runWhole(job, () => 1)
  expect(await groupCache.groups(every, "tag"), "one ended").toContainEqual(group("a", { completed: 1, queued: 1 }))
})

test("a job that is submitted while groups are counted is not hidden by what was counted", async () => {
  const groupCache = createGroupCache(rig)
  await rig.queued(alice, {})
  await Promise.all([groupCache.groups(every, "status"), rig.queued(alice, {})])
  expect(await groupCache.groups(every, "status")).toEqual([group("queued", { queued: 2 })])
})
