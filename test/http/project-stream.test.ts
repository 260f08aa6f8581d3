import { EventSource } from "eventsource"
import { expect, test } from "vitest"
import type { JobRow } from "../../coordinator/store/jobs.ts"
import { send } from "../support/http-door.ts"
import { TEST_TOKENS } from "../support/identities.ts"
import { startStreamRig, until, type StreamRig } from "../support/stream-rig.ts"
import { idsOf, namesOf, type Frame } from "../support/streams.ts"

const PATH = "/api/v1/projects/p/stream"

type Job = Record<string, unknown>
const jobsIn = (frame: Frame | undefined, list: string): unknown[] =>
  ((frame?.data[list] ?? []) as Job[]).map(({ id }) => id)
const told = (frames: readonly Frame[]): [unknown, unknown][] =>
  frames
    .filter(({ event }) => event === "job")
    .map(({ data }) => data["job"] as Job)
    .map(({ id, status }) => [id, status])
const ids = (jobs: readonly JobRow[]): unknown[] => jobs.map(({ id }) => id)

async function runTo(rig: StreamRig, job: JobRow, status: "running" | "completed"): Promise<void> {
  if (status === "completed") return await rig.rig.runWhole(job, () => 1)
  await rig.rig.start(await rig.rig.grant(job, 1))
}

test("ST-005: a snapshot of what runs, waits and ended, then each change of its jobs; timeout is the last frame", async () => {
  await using rig = await startStreamRig({ sseLimitMs: 5_000 })
  const [ended, running, waiting] = [
    await rig.rig.queued(rig.alice, {}),
    await rig.rig.queued(rig.alice, {}),
    await rig.rig.queued(rig.alice, {}),
  ]
  await runTo(rig, ended, "completed")
  await runTo(rig, running, "running")
  const stream = rig.follow(PATH)
  await until(() => expect(namesOf(stream.frames)).toEqual(["snapshot"]))
  const [snapshot] = stream.frames
  expect([jobsIn(snapshot, "active"), jobsIn(snapshot, "queued"), jobsIn(snapshot, "recent")]).toEqual([
    [running.id],
    [waiting.id],
    [ended.id],
  ])
  expect(snapshot?.data["totals"]).toEqual({ active: 1, queued: 1, recent: 1 })
  // Whole objects as GET gives them.
  const got = await send(rig.origin, "GET", `/api/v1/jobs/${ended.id}`, { token: TEST_TOKENS.alice })
  expect(snapshot?.data["recent"]).toEqual([got.json])

  const [first, second] = [await rig.rig.queued(rig.alice, {}), await rig.rig.queued(rig.alice, {})]
  for (const job of [first, second]) await rig.rig.runWhole(job, () => 1)
  await until(() => {
    expect(told(stream.frames)).toContainEqual([first.id, "completed"])
    expect(told(stream.frames)).toContainEqual([second.id, "completed"])
  })
  const last = stream.frames.findLast(({ data }) => (data["job"] as Job | undefined)?.["id"] === second.id)
  const now = await send(rig.origin, "GET", `/api/v1/jobs/${second.id}`, { token: TEST_TOKENS.alice })
  expect(last?.data["job"]).toEqual(now.json)
  await until(() => expect(stream.closed()).toBe(true))
  expect(stream.frames.at(-1)).toMatchObject({ event: "timeout", id: null, data: { reason: "limit", reconnect: true } })
  const all = idsOf(stream.frames)
  expect(all).toEqual([...new Set(all)].sort((a, b) => a - b))
})

test("ST-006, A-022, A-024, C-27: members see their account's jobs, administrators everybody's", async () => {
  await using rig = await startStreamRig()
  const [mine, theirs] = [await rig.rig.queued(rig.alice, {}), await rig.rig.queued(rig.bob, {})]
  const [alice, bob, admin, named] = [
    rig.follow(PATH),
    rig.follow(PATH, { token: TEST_TOKENS.bob }),
    rig.follow(PATH, { token: TEST_TOKENS.bootstrap }),
    rig.follow(`${PATH}?account_id=${rig.bob}`, { token: TEST_TOKENS.bootstrap }),
  ]
  // Another key of the same account.
  const colleague = rig.follow(PATH, { token: TEST_TOKENS.viewer })
  if (!alice || !bob || !admin || !named) throw new Error("four streams")
  await until(() => expect([alice, bob, admin, named, colleague].every(({ frames }) => frames.length === 1)).toBe(true))
  expect(jobsIn(colleague.frames[0], "queued")).toEqual([mine.id])
  expect([alice, bob, admin, named].map(({ frames }) => jobsIn(frames[0], "queued"))).toEqual([
    [mine.id],
    [theirs.id],
    [theirs.id, mine.id],
    [theirs.id],
  ])
  for (const job of [mine, theirs]) await rig.rig.runWhole(job, () => 1)
  const ended = (frames: readonly Frame[]): unknown[] =>
    told(frames).flatMap(([id, status]) => (status === "completed" ? [id] : []))
  await until(() => expect(new Set(ended(admin.frames))).toEqual(new Set([mine.id, theirs.id])))
  await until(() => expect(new Set(ended(alice.frames))).toEqual(new Set([mine.id])))
  await until(() => expect(new Set(ended(bob.frames))).toEqual(new Set([theirs.id])))
  expect(told(alice.frames).some(([id]) => id === theirs.id)).toBe(false)
  expect(told(named.frames).some(([id]) => id === mine.id)).toBe(false)
  for (const token of [TEST_TOKENS.carol, TEST_TOKENS.bootstrap]) {
    const path = token === TEST_TOKENS.carol ? PATH : "/api/v1/projects/unknown/stream"
    expect((await send(rig.origin, "GET", path, { token })).status).toBe(404)
  }
  expect((await send(rig.origin, "GET", PATH)).status).toBe(401)
})

test("jobs of other projects stay out of a project's stream", async () => {
  await using rig = await startStreamRig()
  await rig.rig.project(rig.alice, "q")
  const stream = rig.follow(PATH)
  await until(() => expect(stream.frames).toHaveLength(1))
  const other = await rig.rig.queued(rig.alice, { project: "q" })
  await rig.rig.runWhole(other, () => 1)
  const own = await rig.rig.queued(rig.alice, {})
  await until(() => expect(told(stream.frames).map(([id]) => id)).toContain(own.id))
  expect(told(stream.frames).map(([id]) => id)).not.toContain(other.id)
})

test("rulings, Resume: a known id gives the jobs that changed since, each once; an unknown one a snapshot", async () => {
  await using rig = await startStreamRig()
  const before = await rig.rig.queued(rig.alice, {})
  const first = rig.follow(PATH)
  await until(() => expect(first.frames).toHaveLength(1))
  first.close()
  const jobs = [await rig.rig.queued(rig.alice, {}), await rig.rig.queued(rig.alice, {})]
  for (const job of jobs) await rig.rig.runWhole(job, () => 1)
  await rig.rig.runWhole(await rig.rig.queued(rig.bob, {}), () => 1)
  const resumed = rig.follow(PATH, { lastId: first.frames[0]?.id ?? "" })
  await until(() => expect(resumed.frames).toHaveLength(2))
  expect(told(resumed.frames)).toEqual(jobs.map(({ id }) => [id, "completed"]))
  const [one] = idsOf(resumed.frames)
  const later = rig.follow(PATH, { lastId: String(one) })
  await until(() => expect(later.frames).toHaveLength(1))
  expect(told(later.frames)).toEqual([[jobs[1]?.id, "completed"]])
  const fresh = rig.follow(PATH, { lastId: "99999999" })
  await until(() => expect(namesOf(fresh.frames)).toEqual(["snapshot"]))
  expect(jobsIn(fresh.frames[0], "queued")).toEqual([before.id])
  // It goes on where it stands.
  await rig.rig.cancel(before)
  for (const stream of [resumed, later, fresh])
    await until(() => expect(told(stream.frames).at(-1)).toEqual([before.id, "cancelled"]))
})

test("rulings, Streams: at most 200 jobs of a kind and the 20 latest ended ones are listed; totals count all", async () => {
  await using rig = await startStreamRig()
  const waiting: JobRow[] = []
  for (let n = 0; n < 203; n++) waiting.push(await rig.rig.queued(rig.alice, {}))
  const ended = waiting.splice(0, 22)
  for (const job of ended) await rig.rig.runWhole(job, () => 1)
  for (let n = 0; n < 21; n++) waiting.push(await rig.rig.queued(rig.alice, {}))
  const stream = rig.follow(PATH)
  await until(() => expect(stream.frames).toHaveLength(1))
  const [snapshot] = stream.frames
  expect(jobsIn(snapshot, "queued")).toEqual(ids(waiting.toReversed().slice(0, 200)))
  expect(new Set(jobsIn(snapshot, "recent"))).toEqual(new Set(ids(ended.slice(2))))
  expect(snapshot?.data["totals"]).toEqual({ active: 0, queued: 202, recent: 22 })
}, 60_000)

test("an EventSource that comes back after timeout gets no second snapshot and misses nothing", async () => {
  await using rig = await startStreamRig({ sseLimitMs: 400, ssePingMs: 150 })
  const source = new EventSource(`${rig.origin}${PATH}`, {
    fetch: (url, init) =>
      fetch(url, { ...init, headers: { ...init.headers, authorization: `Bearer ${TEST_TOKENS.alice}` } }),
  })
  rig.onEnd(() => source.close())
  const seen: string[] = []
  for (const name of ["snapshot", "timeout"]) source.addEventListener(name, () => seen.push(name))
  const ended: string[] = []
  source.addEventListener("job", ({ data }) => {
    const { id, status } = (JSON.parse(data as string) as { job: Job }).job
    if (status === "completed") ended.push(String(id))
  })
  await until(() => expect(seen).toEqual(["snapshot", "timeout"]))
  const job = await rig.rig.queued(rig.alice, {})
  await rig.rig.runWhole(job, () => 1)
  await until(() => expect(ended).toEqual([job.id]))
  expect(seen.filter((name) => name === "snapshot")).toHaveLength(1)
}, 60_000)
