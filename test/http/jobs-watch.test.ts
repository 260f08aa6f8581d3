import { spawn } from "node:child_process"
import { ServerResponse } from "node:http"
import { EventSource } from "eventsource"
import { afterEach, expect, test, vi } from "vitest"
import type { JobRow } from "../../coordinator/store/jobs.ts"
import { openSocket, send, untilClosed } from "../support/http-door.ts"
import { TEST_TOKENS } from "../support/identities.ts"
import { startStreamRig, until, type StreamRig } from "../support/stream-rig.ts"
import { idsOf, namesOf, type Frame } from "../support/streams.ts"

afterEach(() => vi.restoreAllMocks())

type Job = Record<string, unknown>
const watchPath = (jobs: readonly Pick<JobRow, "id">[]): string =>
  `/api/v1/jobs/watch?ids=${jobs.map(({ id }) => id).join(",")}`
const jobOf = (frame: Frame | undefined): Job => (frame?.data["job"] ?? {}) as Job
const labelled = (frames: readonly Frame[]): Frame[] => frames.filter(({ id }) => id !== null)

async function queued({ rig, alice }: StreamRig, count: number, body: object = {}): Promise<JobRow[]> {
  const jobs: JobRow[] = []
  for (let n = 0; n < count; n++) jobs.push(await rig.queued(alice, body))
  return jobs
}

test("ST-003, E-010, C-26: a hundred jobs are watched, counted without duplicates; one more is 422, and so is none", async () => {
  await using rig = await startStreamRig()
  const jobs = await queued(rig, 101)
  const all = rig.follow(watchPath(jobs))
  await until(() => expect(all.status()).toBe(422))
  const [first] = jobs
  if (!first) throw new Error("there are jobs")
  const hundred = rig.follow(watchPath([...jobs.slice(0, 100), first, first]))
  await until(() => expect(hundred.frames).toHaveLength(1))
  const listed = hundred.frames[0]?.data["jobs"] as Job[]
  expect(listed.map(({ id }) => id)).toEqual(jobs.slice(0, 100).map(({ id }) => id))
  for (const query of ["", "?ids=", "?ids=,%20,"]) {
    const reply = await send(rig.origin, "GET", `/api/v1/jobs/watch${query}`, { token: TEST_TOKENS.alice })
    expect([reply.status, reply.get("code")], query).toEqual([422, "invalid_request"])
  }
})

test("ST-003, A-022: unknown ids and other accounts' jobs are 404, named; an administrator sees all", async () => {
  await using rig = await startStreamRig()
  const [mine] = await queued(rig, 1)
  const theirs = await rig.rig.queued(rig.bob, {})
  if (!mine) throw new Error("there is a job")
  const path = watchPath([mine, { id: "job_unknown" as JobRow["id"] }, theirs])
  const refused = await send(rig.origin, "GET", path, { token: TEST_TOKENS.alice })
  expect(refused.status).toBe(404)
  expect(refused.get("details")).toEqual({ missing: ["job_unknown", theirs.id] })
  expect(refused.get("error")).not.toContain(mine.id)
  const seen = rig.follow(watchPath([mine, theirs]), { token: TEST_TOKENS.bootstrap })
  await until(() => expect((seen.frames[0]?.data["jobs"] as Job[] | undefined)?.length).toBe(2))
  const anonymous = await send(rig.origin, "GET", watchPath([mine]))
  expect(anonymous.status).toBe(401)
})

test("ST-003, ST-004: snapshot, changes and done; the terminal frame says what GET /results says", async () => {
  await using rig = await startStreamRig()
  const body = {
    fan_out: { items: [{ w: 1 }, { w: 3 }] },
    merge_strategy: "weighted_avg",
    value_field: "edge",
    weight_field: "w",
    client_ref: "run-7",
    tags: ["a", "b"],
    meta: { note: "x" },
    variant: { k: 1 },
  }
  const [one, two] = await queued(rig, 2, body)
  if (!one || !two) throw new Error("there are jobs")
  const stream = rig.follow(watchPath([one, two]))
  await until(() => expect(namesOf(stream.frames)).toEqual(["snapshot"]))
  await rig.rig.runWhole(one, (index) => ({ edge: index + 1, w: index === 0 ? 1 : 3 }))
  await until(() =>
    expect(
      labelled(stream.frames)
        .map(jobOf)
        .some(({ status }) => status === "completed"),
    ).toBe(true),
  )
  expect(namesOf(stream.frames)).not.toContain("done")
  await rig.rig.cancel(two)
  await until(() => expect(stream.closed()).toBe(true))
  expect(stream.frames.at(-1)).toMatchObject({
    event: "done",
    data: { reason: "all_terminal", statuses: { [one.id]: "completed", [two.id]: "cancelled" } },
  })
  const last = (id: string): Job => stream.frames.map(jobOf).findLast((job) => job["id"] === id) ?? {}
  const results = await send(rig.origin, "GET", `/api/v1/results/${one.id}`, { token: TEST_TOKENS.alice })
  const plain = await send(rig.origin, "GET", `/api/v1/jobs/${one.id}`, { token: TEST_TOKENS.alice })
  for (const key of [
    "client_ref",
    "tags",
    "meta",
    "variant",
    "summary",
    "aggregate_result",
    "aggregate_aliases",
    "completeness",
    "result_persisted",
    "output_persisted",
  ])
    expect(last(one.id)[key], key).toEqual(results.get(key))
  expect(last(one.id)).toMatchObject({ client_ref: "run-7", avg_edge: 1.75, aggregate_aliases: { avg_edge: 1.75 } })
  expect(last(one.id)).toMatchObject(plain.json)
  // A job that runs has the same keys, with what they are so far.
  const [before] = (stream.frames[0]?.data["jobs"] ?? []) as Job[]
  expect(Object.keys(before ?? {}).sort()).toEqual(Object.keys(last(one.id)).sort())
  expect(before).toMatchObject({ status: "queued", result_persisted: false, completeness: { complete: false } })
})

test("ST-007: of jobs that have ended there are a snapshot and done, and then the end", async () => {
  await using rig = await startStreamRig()
  const jobs = await queued(rig, 2)
  for (const job of jobs) await rig.rig.runWhole(job, () => 1)
  const stream = rig.follow(watchPath(jobs))
  await until(() => expect(stream.closed()).toBe(true))
  expect(namesOf(stream.frames)).toEqual(["snapshot", "done"])
})

test("what tasks do is told as whole jobs, without ids; changes of status have one each, in order", async () => {
  await using rig = await startStreamRig()
  const [job] = await queued(rig, 1, { fan_out: { chunks: 3, total: 3 } })
  if (!job) throw new Error("there is a job")
  const stream = rig.follow(watchPath([job]))
  await until(() => expect(namesOf(stream.frames)).toEqual(["snapshot"]))
  const claims = await rig.rig.grant(job, 3)
  await rig.rig.start(claims)
  await until(() => expect(labelled(stream.frames).map(jobOf).at(-1)).toMatchObject({ status: "running" }))
  const [first = claims[0], ...rest] = claims
  if (first === undefined) throw new Error("granted")
  rig.rig.say(first, { progress: { percent: 40 } })
  await until(() =>
    expect(jobOf(stream.frames.at(-1))).toMatchObject({ feedback_summary: { latest_progress: { percent: 40 } } }),
  )
  expect(stream.frames.at(-1)?.id).toBe(null)
  await rig.rig.report(first)
  await until(() =>
    expect(jobOf(stream.frames.at(-1))).toMatchObject({
      task_counts: { completed: 1 },
      completeness: { completed_tasks: 1 },
    }),
  )
  expect(stream.frames.at(-1)?.id).toBe(null)
  for (const claim of rest) await rig.rig.report(claim)
  await rig.rig.finish(job)
  await until(() => expect(stream.closed()).toBe(true))
  const ids = idsOf(stream.frames)
  expect(ids).toEqual([...new Set(ids)].sort((a, b) => a - b))
  expect(
    labelled(stream.frames).map(({ event, data }) => (event === "job" ? (data["job"] as Job)["status"] : event)),
  ).toEqual(["snapshot", "running", "completed", "done"])
})

test("rulings, Ids: one change has comparable ids in the three streams, and each resumes what another began", async () => {
  await using rig = await startStreamRig()
  const [job] = await queued(rig, 1)
  if (!job) throw new Error("there is a job")
  const paths = [`/api/v1/jobs/${job.id}/stream`, watchPath([job]), "/api/v1/projects/p/stream"]
  const streams = paths.map((path) => rig.follow(path))
  await until(() =>
    expect(streams.map(({ frames }) => namesOf(frames)[0])).toEqual(["snapshot", "snapshot", "snapshot"]),
  )
  await rig.rig.runWhole(job, () => 1)
  const ended = (frames: Frame[]): Frame | undefined =>
    labelled(frames).find((frame) => frame.event === "job" && jobOf(frame)["status"] === "completed")
  await until(() => expect(streams.every(({ frames }) => ended(frames) !== undefined)).toBe(true))
  expect(new Set(streams.map(({ frames }) => ended(frames)?.id)).size).toBe(1)
  // The job stream's frame of the change before leads each stream to this one, without a snapshot.
  const started = streams[0]?.frames.find(({ data }) => data["type"] === "task.started")?.id ?? ""
  for (const path of paths) {
    const resumed = rig.follow(path, { lastId: started })
    await until(() => expect(ended(resumed.frames)).toBeDefined())
    expect(namesOf(resumed.frames)).not.toContain("snapshot")
    expect(Math.min(...idsOf(resumed.frames))).toBeGreaterThan(Number(started))
  }
})

test("rulings, Resume: a known id gives what was missed and no snapshot; the id of done ends it with 204", async () => {
  await using rig = await startStreamRig()
  const jobs = await queued(rig, 3)
  const first = rig.follow(watchPath(jobs))
  await until(() => expect(first.frames).toHaveLength(1))
  for (const job of jobs) {
    await rig.rig.start(await rig.rig.grant(job, 1))
    await until(() => expect(labelled(first.frames).map(jobOf).at(-1)).toMatchObject({ id: job.id, status: "running" }))
  }
  const [from = ""] = labelled(first.frames)
    .slice(-1)
    .map(({ id }) => id ?? "")
  first.close()
  for (const job of jobs) await rig.rig.cancel(job)
  const resumed = rig.follow(watchPath(jobs), { lastId: from })
  await until(() => expect(resumed.closed()).toBe(true))
  const told = labelled(resumed.frames)
  expect(told.map(({ event }) => event)).toEqual(["job", "job", "job", "done"])
  expect(
    told
      .map(jobOf)
      .map(({ id }) => id)
      .slice(0, 3),
  ).toEqual(jobs.map(({ id }) => id))
  for (const [index, { id }] of told.slice(0, -1).entries()) {
    const later = rig.follow(watchPath(jobs), { lastId: id ?? "" })
    await until(() => expect(later.closed()).toBe(true))
    expect(later.frames.map((frame) => frame.id)).toEqual(told.slice(index + 1).map((frame) => frame.id))
  }
  const over = rig.follow(watchPath(jobs), { lastId: told.at(-1)?.id ?? "" })
  await until(() => expect(over.status()).toBe(204))
})

test("rulings, Resume: nothing missed is nothing sent, whatever happened to other jobs", async () => {
  await using rig = await startStreamRig({ ssePingMs: 100 })
  const [job, other] = await queued(rig, 2)
  if (!job || !other) throw new Error("there are jobs")
  const first = rig.follow(watchPath([job]))
  await until(() => expect(first.frames.length).toBeGreaterThan(0))
  await rig.rig.runWhole(other, () => 1)
  const resumed = rig.follow(watchPath([job]), { lastId: first.frames[0]?.id ?? "" })
  await until(() => expect(resumed.frames.length).toBeGreaterThan(2))
  expect(resumed.frames.every(({ event }) => event === "ping")).toBe(true)
  expect(namesOf(first.frames)).toEqual(["snapshot"])
})

test("rulings, Resume: ids that are unknown, future or no ids give a fresh snapshot", async () => {
  await using rig = await startStreamRig()
  const jobs = await queued(rig, 1)
  for (const job of jobs) await rig.rig.runWhole(job, () => 1)
  for (const lastId of ["abc", "0", "-4", "3", "99999999", "9".repeat(40), "1.5"]) {
    const stream = rig.follow(watchPath(jobs), { lastId })
    await until(() => expect(stream.closed()).toBe(true))
    expect([stream.status(), ...namesOf(stream.frames)], lastId).toEqual([200, "snapshot", "done"])
  }
})

test("ST-003, GAP-60: an idle watch pings, without ids; a limited one says timeout and ends", async () => {
  await using rig = await startStreamRig({ ssePingMs: 150, sseLimitMs: 700 })
  const stream = rig.follow(watchPath(await queued(rig, 1)))
  await until(() => expect(stream.closed()).toBe(true))
  const pings = stream.frames.filter(({ event }) => event === "ping")
  expect(pings.length).toBeGreaterThan(1)
  expect(pings.every(({ id, data }) => id === null && typeof data["at"] === "string")).toBe(true)
  expect(stream.frames.at(-1)).toMatchObject({ event: "timeout", id: null, data: { reason: "limit", reconnect: true } })
})

test("a revoked key closes watch and project stream within the ping interval; a good one keeps them", async () => {
  await using rig = await startStreamRig({ ssePingMs: 2_000 })
  const jobs = await queued(rig, 1)
  const streams = [rig.follow(watchPath(jobs)), rig.follow("/api/v1/projects/p/stream")]
  await until(() => expect(streams.every(({ frames }) => frames.some(({ event }) => event === "ping"))).toBe(true))
  rig.allow(false)
  const before = performance.now()
  await until(() => expect(streams.every((stream) => stream.closed())).toBe(true))
  expect(performance.now() - before).toBeLessThan(2_000)
})

test("HEAD answers as GET does, without frames", async () => {
  await using rig = await startStreamRig()
  const jobs = await queued(rig, 1)
  for (const path of [watchPath(jobs), "/api/v1/projects/p/stream", `/api/v1/jobs/${jobs[0]?.id}/stream`]) {
    const reply = await send(rig.origin, "HEAD", path, { token: TEST_TOKENS.alice })
    expect([reply.status, reply.headers["content-type"], reply.text]).toEqual([
      200,
      "text/event-stream; charset=utf-8",
      "",
    ])
  }
  const refused = await send(rig.origin, "HEAD", "/api/v1/jobs/watch?ids=job_unknown", { token: TEST_TOKENS.alice })
  expect(refused.status).toBe(404)
})

test("an unmodified EventSource follows a watch to its end and stops by itself", async () => {
  await using rig = await startStreamRig()
  const jobs = await queued(rig, 2)
  const source = new EventSource(`${rig.origin}${watchPath(jobs)}`, {
    fetch: (url, init) =>
      fetch(url, { ...init, headers: { ...init.headers, authorization: `Bearer ${TEST_TOKENS.alice}` } }),
  })
  rig.onEnd(() => source.close())
  const seen: string[] = []
  for (const name of ["snapshot", "job", "done"]) source.addEventListener(name, () => seen.push(name))
  await until(() => expect(seen).toEqual(["snapshot"]))
  for (const job of jobs) await rig.rig.runWhole(job, () => 1)
  await until(() => expect(seen.at(-1)).toBe("done"))
  await until(() => expect(source.readyState).toBe(EventSource.CLOSED))
  expect(seen.filter((name) => name === "done")).toHaveLength(1)
})

test("an EventSource that is cut off comes back by its id: no gap and no repeat", async () => {
  await using rig = await startStreamRig({ sseLimitMs: 300, ssePingMs: 100 })
  const jobs = await queued(rig, 6)
  const source = new EventSource(`${rig.origin}${watchPath(jobs)}`, {
    fetch: (url, init) =>
      fetch(url, { ...init, headers: { ...init.headers, authorization: `Bearer ${TEST_TOKENS.alice}` } }),
  })
  rig.onEnd(() => source.close())
  const statuses: string[] = []
  let snapshots = 0
  let connections = 0
  source.addEventListener("open", () => (connections += 1))
  source.addEventListener("snapshot", () => (snapshots += 1))
  source.addEventListener("job", ({ data }) => {
    const { id, status } = (JSON.parse(data as string) as { job: Job }).job
    if (status === "completed") statuses.push(String(id))
  })
  let isDone = false
  source.addEventListener("done", () => (isDone = true))
  await until(() => expect(snapshots).toBe(1))
  for (const job of jobs) {
    const seen = connections
    await rig.rig.runWhole(job, () => 1)
    // The library waits three seconds before it comes back.
    if (job === jobs[1] || job === jobs[3]) await until(() => expect(connections).toBeGreaterThan(seen))
  }
  await until(() => expect(isDone).toBe(true))
  expect(snapshots).toBe(1)
  expect(statuses).toEqual(jobs.map(({ id }) => id))
}, 60_000)

test("ST-009, A43: the documented curl line works", async () => {
  await using rig = await startStreamRig()
  const jobs = await queued(rig, 3)
  for (const job of jobs) await rig.rig.runWhole(job, () => 1)
  const curl = spawn("curl", [
    "-sS",
    "-N",
    "-H",
    `Authorization: Bearer ${TEST_TOKENS.alice}`,
    `${rig.origin}${watchPath(jobs)}`,
  ])
  let text = ""
  curl.stdout.on("data", (chunk: Buffer) => (text += chunk.toString()))
  expect(await new Promise((resolve) => curl.on("close", resolve))).toBe(0)
  expect(text.startsWith(": connected\n\nevent: snapshot\nid: ")).toBe(true)
  expect(text).toContain("event: done\n")
})

test("twenty watchers of a job cost as many reads as one, and none while nothing happens", async () => {
  await using rig = await startStreamRig({ ssePingMs: 50 })
  const [alone, shared] = await queued(rig, 2)
  if (!alone || !shared) throw new Error("there are jobs")
  const read = vi.spyOn(rig.rig.store, "read")
  const readsOf = async (job: JobRow, watchers: number): Promise<number> => {
    const streams = Array.from({ length: watchers }, () => rig.follow(watchPath([job])))
    await until(() => expect(streams.every(({ frames }) => frames.some(({ event }) => event === "ping"))).toBe(true))
    read.mockClear()
    await until(() =>
      expect(streams.every(({ frames }) => frames.filter(({ event }) => event === "ping").length > 3)).toBe(true),
    )
    expect(read).not.toHaveBeenCalled()
    await rig.rig.runWhole(job, () => 1)
    await until(() => expect(streams.every((stream) => stream.closed())).toBe(true))
    return read.mock.calls.length
  }
  const reads = [await readsOf(alone, 1), await readsOf(shared, 20)]
  // How many rounds there are depends on the machine; twenty times as many would be twenty readers.
  expect(reads[1]).toBeLessThan((reads[0] ?? 0) * 4)
})

test("a reader that takes nothing is cut off, others go on; what it missed is still there by id", async () => {
  await using rig = await startStreamRig({ ssePingMs: 60_000 })
  const jobs = await queued(rig, 40)
  const socket = await openSocket(rig.door.server.port)
  socket.pause()
  socket.write(`GET ${watchPath(jobs)} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${TEST_TOKENS.alice}\r\n\r\n`)
  const other = rig.follow(watchPath(jobs))
  await until(() => expect(other.frames.length).toBeGreaterThan(0))
  const cut = vi.spyOn(ServerResponse.prototype, "destroy")
  const last = jobs.pop()
  if (!last) throw new Error("there are jobs")
  for (const job of jobs) {
    await rig.rig.runWhole(job, () => "x".repeat(200_000))
    await until(() => expect(jobOf(labelled(other.frames).at(-1))).toMatchObject({ id: job.id, status: "completed" }))
  }
  expect(cut).toHaveBeenCalledOnce()
  const closed = untilClosed(socket)
  socket.resume()
  const text = await closed
  expect(text).toContain("event: snapshot")
  const lastSeen =
    text
      .match(/^id: (\d+)$/gm)
      ?.at(-1)
      ?.slice(4) ?? ""
  await rig.rig.runWhole(last, () => 1)
  await until(() => expect(namesOf(other.frames).at(-1)).toBe("done"))
  const rest = rig.follow(watchPath([...jobs, last]), { lastId: lastSeen })
  await until(() => expect(namesOf(rest.frames).at(-1)).toBe("done"))
  expect(namesOf(rest.frames)).not.toContain("snapshot")
  // Each end that it was not told is told now, once.
  expect(idsOf(rest.frames)).toEqual(
    labelled(other.frames)
      .filter((frame) => Number(frame.id) > Number(lastSeen))
      .filter((frame) => frame.event === "done" || jobOf(frame)["status"] === "completed")
      .map(({ id }) => Number(id)),
  )
}, 60_000)
