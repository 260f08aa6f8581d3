import { spawn } from "node:child_process"
import { EventSource } from "eventsource"
import { afterEach, beforeEach, expect, test, vi } from "vitest"
import type { JobRow } from "../../coordinator/store/jobs.ts"
import { openSocket, send, untilClosed } from "../support/http-door.ts"
import { TEST_TOKENS } from "../support/identities.ts"
import { failedItem, type JobRig } from "../support/job-rig.ts"
import { startStreamRig, until, type StreamRig } from "../support/stream-rig.ts"
import { idsOf, namesOf, type Frame, type Stream } from "../support/streams.ts"

let streams: StreamRig
let rig: JobRig

beforeEach(async () => {
  streams = await startStreamRig({ ssePingMs: 150 })
  rig = streams.rig
})
afterEach(() => streams[Symbol.asyncDispose]())

const pathOf = (job: JobRow): string => `/api/v1/jobs/${job.id}/stream`
const follow = (job: JobRow, lastId?: string): Stream =>
  streams.follow(pathOf(job), { ...(lastId !== undefined && { lastId }) })

async function whole(): Promise<JobRow> {
  const job = await rig.queued(streams.alice, {})
  await rig.runWhole(job, () => ({ v: 1 }))
  return job
}

test("ST-007: of a job that has ended there are a snapshot and done, and then the end", async () => {
  const job = await whole()
  const stream = follow(job)
  await until(() => expect(stream.closed()).toBe(true))
  expect(namesOf(stream.frames)).toEqual(["snapshot", "done"])
  expect(stream.frames[0]?.data).toMatchObject({
    job: { id: job.id, status: "completed" },
    total: 1,
    tasks: [{ index: 0 }],
  })
  expect(stream.frames[1]?.data).toEqual({ reason: "all_terminal", statuses: { [job.id]: "completed" } })
})

test("ST-001, ST-002, ST-008: a whole run as it happens: each event once and in order, live words between", async () => {
  const job = await rig.queued(streams.alice, {})
  const stream = follow(job)
  await until(() => expect(namesOf(stream.frames)).toEqual(["snapshot"]))
  const [claim] = await rig.grant(job, 1)
  if (claim === undefined) throw new Error("granted")
  await rig.start([claim])
  await until(() => expect(namesOf(stream.frames)).toContain("task"))
  rig.say(claim, { progress: { percent: 10 }, tail: "one\n" })
  const live = () => stream.frames.filter(({ event, id }) => event === "task" && id === null)
  await until(() => expect(live()).not.toEqual([]))
  expect(live()[0]?.data).toMatchObject({
    task: { status: "running", live_feedback: { output_tail: "one\n" }, latest_progress: { percent: 10 } },
  })
  await rig.report(claim, { output: "one\ntwo\n", result: { text: '{\n"v": 1\n}' } })
  await rig.finish(job)
  await until(() => expect(stream.closed()).toBe(true))
  const rest = stream.frames.filter(({ event, id }) => event !== "ping" && id !== null)
  expect(rest.map(({ event, data }) => (event === "event" ? data["type"] : event))).toEqual([
    "snapshot",
    "job",
    "job.running",
    "task",
    "task.started",
    "task",
    "task.completed",
    "job",
    "job.completed",
    "done",
  ])
  const ids = idsOf(stream.frames)
  expect(ids).toEqual([...new Set(ids)].sort((a, b) => a - b))
  const listed = await send(streams.origin, "GET", `/api/v1/jobs/${job.id}/events`, { token: TEST_TOKENS.alice })
  const rows = listed.get("events") as { id: number }[]
  const streamed = stream.frames.filter(({ event }) => event === "event").map(({ data }) => data)
  expect(streamed).toEqual(rows.slice(2))
})

test("rulings, Resume: a known id gives what was missed and no snapshot; the id of done ends it", async () => {
  const job = await rig.queued(streams.alice, { max_retries: 1 })
  const first = follow(job)
  await until(() => expect(first.frames.length).toBeGreaterThan(0))
  const from = first.frames[0]?.id ?? ""
  const [claim] = await rig.grant(job, 1)
  if (claim === undefined) throw new Error("granted")
  await rig.start([claim])
  await rig.report(claim, failedItem("exit_code"))
  const [again] = await rig.grant(job, 1)
  if (again === undefined) throw new Error("granted")
  await rig.start([again])
  await rig.report(again)
  await rig.finish(job)
  await until(() => expect(first.closed()).toBe(true))
  const resumed = follow(job, from)
  await until(() => expect(resumed.closed()).toBe(true))
  expect(namesOf(resumed.frames)).not.toContain("snapshot")
  expect(idsOf(resumed.frames)).toEqual(idsOf(first.frames).slice(1))
  expect(namesOf(resumed.frames).at(-1)).toBe("done")
  for (const id of idsOf(first.frames).slice(0, -1)) {
    const later = follow(job, String(id))
    await until(() => expect(later.closed()).toBe(true))
    expect(idsOf(later.frames)).toEqual(idsOf(first.frames).filter((other) => other > id))
  }
  const over = follow(job, first.frames.at(-1)?.id ?? "")
  await until(() => expect(over.status()).toBe(204))
})

test("rulings, Resume: ids that are unknown, future or no ids give a fresh snapshot", async () => {
  const job = await whole()
  for (const id of ["abc", "0", "-4", "3", "99999999", "9".repeat(40), "1.5"]) {
    const stream = follow(job, id)
    await until(() => expect(stream.closed()).toBe(true))
    expect([stream.status(), ...namesOf(stream.frames)], id).toEqual([200, "snapshot", "done"])
  }
})

test("ids survive a restart of the reader and a job's log has no holes for it", async () => {
  const job = await rig.queued(streams.alice, { fan_out: { items: Array.from({ length: 150 }, (_, n) => ({ n })) } })
  const first = follow(job)
  await until(() => expect(first.frames.length).toBe(1))
  await rig.runWhole(job, (n) => ({ n }))
  await until(() => expect(first.closed()).toBe(true))
  const resumed = follow(job, first.frames[0]?.id ?? "")
  await until(() => expect(resumed.closed()).toBe(true))
  const events = (frames: Frame[]) => frames.filter(({ event }) => event === "event").map(({ id }) => id)
  expect(events(resumed.frames)).toEqual(events(first.frames))
  expect(events(resumed.frames)).toHaveLength(302)
})

test("C-28: a cancelled job's stream ends with its status", async () => {
  const job = await rig.queued(streams.alice, {})
  const [claim] = await rig.grant(job, 1)
  if (claim === undefined) throw new Error("granted")
  await rig.start([claim])
  const stream = follow(job)
  await until(() => expect(namesOf(stream.frames)).toEqual(["snapshot"]))
  await rig.cancel(job)
  await until(() => expect(stream.closed()).toBe(true))
  expect(stream.frames.filter(({ event }) => event === "event").map(({ data }) => data["type"])).toEqual([
    "task.cancelled",
    "job.cancelled",
  ])
  expect(stream.frames.at(-1)?.data).toEqual({ reason: "all_terminal", statuses: { [job.id]: "cancelled" } })
})

test("GAP-60: an idle stream pings, without ids; a limited one says timeout and ends", async () => {
  await using limited = await startStreamRig({ ssePingMs: 150, sseLimitMs: 700 })
  const stream = limited.follow(pathOf(await limited.rig.queued(limited.alice, {})))
  await until(() => expect(stream.closed()).toBe(true))
  const pings = stream.frames.filter(({ event }) => event === "ping")
  expect(pings.length).toBeGreaterThan(1)
  expect(pings.every(({ id }) => id === null)).toBe(true)
  expect(stream.frames.at(-1)).toMatchObject({ event: "timeout", id: null, data: { reason: "limit", reconnect: true } })
})

test("a revoked key closes its streams within the ping interval", async () => {
  const job = await rig.queued(streams.alice, {})
  const stream = follow(job)
  await until(() => expect(namesOf(stream.frames)).toEqual(["snapshot"]))
  streams.allow(false)
  await until(() => expect(stream.closed()).toBe(true))
})

test("an idle stream asks the database nothing", async () => {
  const job = await rig.queued(streams.alice, {})
  const read = vi.spyOn(rig.store, "read")
  const stream = follow(job)
  await until(() => expect(stream.frames.length).toBeGreaterThan(2))
  read.mockClear()
  const pings = stream.frames.length
  await until(() => expect(stream.frames.length).toBeGreaterThan(pings + 2))
  expect(read).not.toHaveBeenCalled()
})

test("a browser's EventSource follows a job to its end and stops by itself", async () => {
  const job = await rig.queued(streams.alice, {})
  const source = new EventSource(`${streams.origin}${pathOf(job)}`, {
    fetch: (url, init) =>
      fetch(url, { ...init, headers: { ...init.headers, authorization: `Bearer ${TEST_TOKENS.alice}` } }),
  })
  streams.onEnd(() => source.close())
  const seen: string[] = []
  for (const name of ["snapshot", "job", "task", "event", "done"]) source.addEventListener(name, () => seen.push(name))
  await until(() => expect(seen).toEqual(["snapshot"]))
  await rig.runWhole(job, () => 1)
  await until(() => expect(seen.at(-1)).toBe("done"))
  // It comes back with the id of done, and 204 tells it to stay away.
  await until(() => expect(source.readyState).toBe(EventSource.CLOSED))
  expect(seen.filter((name) => name === "done")).toHaveLength(1)
})

test("ST-009, A42: the documented curl line works", async () => {
  const job = await whole()
  const curl = spawn("curl", [
    "-sN",
    `${streams.origin}${pathOf(job)}`,
    "-H",
    `Authorization: Bearer ${TEST_TOKENS.alice}`,
  ])
  let text = ""
  curl.stdout.on("data", (chunk: Buffer) => (text += chunk.toString()))
  const code = await new Promise((resolve) => curl.on("close", resolve))
  expect(code).toBe(0)
  expect(text.startsWith(": connected\n\nevent: snapshot\nid: ")).toBe(true)
  expect(text).toContain("event: done\n")
})

/** Streams that watch a job now. */
function countWatching(): () => number {
  let watching = 0
  const watch = rig.watch.watch.bind(rig.watch)
  vi.spyOn(rig.watch, "watch").mockImplementation((job, woken) => {
    watching++
    const watched = watch(job, woken)
    return {
      [Symbol.dispose]() {
        watching--
        watched[Symbol.dispose]()
      },
    }
  })
  return () => watching
}

test("a reader that takes nothing is cut off, and what it missed is still there by id", async () => {
  const job = await rig.queued(streams.alice, { fan_out: { items: Array.from({ length: 100 }, (_, n) => ({ n })) } })
  const watching = countWatching()
  const socket = await openSocket(streams.door.server.port)
  socket.pause()
  socket.write(`GET ${pathOf(job)} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${TEST_TOKENS.alice}\r\n\r\n`)
  await until(() => expect(watching()).toBe(1))
  await rig.runWhole(job, (n) => ({ n, large: "x".repeat(200_000) }))
  await until(() => expect(watching()).toBe(0))
  const closed = untilClosed(socket)
  socket.resume()
  const text = await closed
  expect(text).toContain("event: snapshot")
  expect(text).not.toContain("event: done")
  const lastSeen = text
    .match(/^id: (\d+)$/gm)
    ?.at(-1)
    ?.slice(4)
  const rest = follow(job, lastSeen)
  await until(() => expect(namesOf(rest.frames).at(-1)).toBe("done"))
  expect(namesOf(rest.frames)).not.toContain("snapshot")
})
