import { spawn } from "node:child_process"
import { request as httpRequest } from "node:http"
import { EventSource } from "eventsource"
import { afterEach, beforeEach, expect, test, vi } from "vitest"
import type { AccountId } from "../../protocol/domain/ids.ts"
import { mountJobs } from "../../coordinator/http/routes/jobs.ts"
import type { JobRow } from "../../coordinator/store/jobs.ts"
import { fundedAccount } from "../support/accounts.ts"
import { openSocket, send, startHttpDoor, untilClosed, type HttpDoor } from "../support/http-door.ts"
import { TEST_TOKENS, testIdentities } from "../support/identities.ts"
import { failedItem, startJobRig, type JobRig } from "../support/job-rig.ts"

let rig: JobRig
let door: HttpDoor
let alice: AccountId
let allowed = true
/** Streams that watch a job now. */
let watching = 0
const open: (() => void)[] = []

beforeEach(async () => {
  allowed = true
  watching = 0
  rig = await startJobRig()
  alice = await fundedAccount(rig.store, 50_000_000n)
  await rig.project(alice)
  door = await openDoor({ ssePingMs: 150, sseLimitMs: 60_000 })
})
afterEach(async () => {
  for (const close of open.splice(0)) close()
  await door[Symbol.asyncDispose]()
  await rig[Symbol.asyncDispose]()
})

async function openDoor(timing: { ssePingMs: number; sseLimitMs: number }): Promise<HttpDoor> {
  const opened = await startHttpDoor()
  const waits = { message: "m", eligible_slots: 0, busy_slots: 0, suggestion: "s" }
  mountJobs(opened.app, {
    ...rig,
    ...timing,
    watch: {
      ...rig.watch,
      watch(job, woken) {
        watching++
        const watch = rig.watch.watch(job, woken)
        return {
          [Symbol.dispose]() {
            watching--
            watch[Symbol.dispose]()
          },
        }
      },
    },
    queueReasons: {
      job: () => ({ code: "capacity_busy", ...waits }),
      contactLost: () => ({ code: "node_contact_lost", ...waits }),
    },
    submit: (request) => rig.submit(request),
    cancel: (id, account, why) => rig.cancel({ id, seq: 1 }, account, why),
  })
  opened.app.open({
    store: rig.store,
    identify: async (token) => (allowed ? testIdentities.identify(token) : null),
  })
  return opened
}

interface Frame {
  event: string
  id: string | null
  data: Record<string, never>
}

/** Frames of one connection as they come, and whether the server closed it. */
function follow(job: JobRow, lastId?: string): { frames: Frame[]; status: () => number; closed: () => boolean } {
  const frames: Frame[] = []
  let text = ""
  let status = 0
  let closed = false
  const headers = {
    authorization: `Bearer ${TEST_TOKENS.alice}`,
    ...(lastId !== undefined && { "last-event-id": lastId }),
  }
  const sent = httpRequest(
    `${door.server.origin}/api/v1/jobs/${job.id}/stream`,
    { headers, agent: false },
    (response) => {
      status = response.statusCode ?? 0
      response.setEncoding("utf8")
      response.on("data", (chunk: string) => {
        text += chunk
        for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
          const frame = frameOf(text.slice(0, end))
          text = text.slice(end + 2)
          if (frame) frames.push(frame)
        }
      })
      response.on("close", () => (closed = true))
    },
  )
  sent.on("error", () => (closed = true))
  sent.end()
  open.push(() => sent.destroy())
  return { frames, status: () => status, closed: () => closed }
}

function frameOf(text: string): Frame | null {
  const fields = new Map(
    text
      .split("\n")
      .filter((line) => !line.startsWith(":"))
      .map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)]),
  )
  const data = fields.get("data")
  if (data === undefined) return null
  return {
    event: fields.get("event") ?? "",
    id: fields.get("id") ?? null,
    data: JSON.parse(data) as Record<string, never>,
  }
}

const until = (check: () => void): Promise<void> => vi.waitFor(check, { timeout: 20_000, interval: 20 })
const names = (frames: Frame[]): string[] => frames.map(({ event }) => event).filter((name) => name !== "ping")
const withIds = (frames: Frame[]): number[] => frames.flatMap(({ id }) => (id === null ? [] : [Number(id)]))

async function whole(): Promise<JobRow> {
  const job = await rig.queued(alice, {})
  await rig.runWhole(job, () => ({ v: 1 }))
  return job
}

test("ST-007: of a job that has ended there are a snapshot and done, and then the end", async () => {
  const job = await whole()
  const stream = follow(job)
  await until(() => expect(stream.closed()).toBe(true))
  expect(names(stream.frames)).toEqual(["snapshot", "done"])
  expect(stream.frames[0]?.data).toMatchObject({
    job: { id: job.id, status: "completed" },
    total: 1,
    tasks: [{ index: 0 }],
  })
  expect(stream.frames[1]?.data).toEqual({ reason: "all_terminal", statuses: { [job.id]: "completed" } })
})

test("ST-001, ST-002, ST-008: a whole run as it happens: each event once and in order, live words between", async () => {
  const job = await rig.queued(alice, {})
  const stream = follow(job)
  await until(() => expect(names(stream.frames)).toEqual(["snapshot"]))
  const [claim] = await rig.grant(job, 1)
  if (claim === undefined) throw new Error("granted")
  await rig.start([claim])
  await until(() => expect(names(stream.frames)).toContain("task"))
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
  const ids = withIds(stream.frames)
  expect(ids).toEqual([...new Set(ids)].sort((a, b) => a - b))
  const listed = await send(door.server.origin, "GET", `/api/v1/jobs/${job.id}/events`, { token: TEST_TOKENS.alice })
  const rows = listed.get("events") as { id: number }[]
  const streamed = stream.frames.filter(({ event }) => event === "event").map(({ data }) => data)
  expect(streamed).toEqual(rows.slice(2))
})

test("rulings, Resume: a known id gives what was missed and no snapshot; the id of done ends it", async () => {
  const job = await rig.queued(alice, { max_retries: 1 })
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
  expect(names(resumed.frames)).not.toContain("snapshot")
  expect(withIds(resumed.frames)).toEqual(withIds(first.frames).slice(1))
  expect(names(resumed.frames).at(-1)).toBe("done")
  for (const id of withIds(first.frames).slice(0, -1)) {
    const later = follow(job, String(id))
    await until(() => expect(later.closed()).toBe(true))
    expect(withIds(later.frames)).toEqual(withIds(first.frames).filter((other) => other > id))
  }
  const over = follow(job, first.frames.at(-1)?.id ?? "")
  await until(() => expect(over.status()).toBe(204))
})

test("rulings, Resume: ids that are unknown, future or no ids give a fresh snapshot", async () => {
  const job = await whole()
  for (const id of ["abc", "0", "-4", "3", "99999999", "9".repeat(40), "1.5"]) {
    const stream = follow(job, id)
    await until(() => expect(stream.closed()).toBe(true))
    expect([stream.status(), ...names(stream.frames)], id).toEqual([200, "snapshot", "done"])
  }
})

test("ids survive a restart of the reader and a job's log has no holes for it", async () => {
  const job = await rig.queued(alice, { fan_out: { items: Array.from({ length: 150 }, (_, n) => ({ n })) } })
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
  const job = await rig.queued(alice, {})
  const [claim] = await rig.grant(job, 1)
  if (claim === undefined) throw new Error("granted")
  await rig.start([claim])
  const stream = follow(job)
  await until(() => expect(names(stream.frames)).toEqual(["snapshot"]))
  await rig.cancel(job)
  await until(() => expect(stream.closed()).toBe(true))
  expect(stream.frames.filter(({ event }) => event === "event").map(({ data }) => data["type"])).toEqual([
    "task.cancelled",
    "job.cancelled",
  ])
  expect(stream.frames.at(-1)?.data).toEqual({ reason: "all_terminal", statuses: { [job.id]: "cancelled" } })
})

test("GAP-60: an idle stream pings, without ids; a limited one says timeout and ends", async () => {
  const job = await rig.queued(alice, {})
  await door[Symbol.asyncDispose]()
  door = await openDoor({ ssePingMs: 150, sseLimitMs: 700 })
  const stream = follow(job)
  await until(() => expect(stream.closed()).toBe(true))
  const pings = stream.frames.filter(({ event }) => event === "ping")
  expect(pings.length).toBeGreaterThan(1)
  expect(pings.every(({ id }) => id === null)).toBe(true)
  expect(stream.frames.at(-1)).toMatchObject({ event: "timeout", id: null, data: { reason: "limit", reconnect: true } })
})

test("a revoked key closes its streams within the ping interval", async () => {
  const job = await rig.queued(alice, {})
  const stream = follow(job)
  await until(() => expect(names(stream.frames)).toEqual(["snapshot"]))
  allowed = false
  await until(() => expect(stream.closed()).toBe(true))
})

test("an idle stream asks the database nothing", async () => {
  const job = await rig.queued(alice, {})
  const read = vi.spyOn(rig.store, "read")
  const stream = follow(job)
  await until(() => expect(stream.frames.length).toBeGreaterThan(2))
  read.mockClear()
  const pings = stream.frames.length
  await until(() => expect(stream.frames.length).toBeGreaterThan(pings + 2))
  expect(read).not.toHaveBeenCalled()
})

test("a browser's EventSource follows a job to its end and stops by itself", async () => {
  const job = await rig.queued(alice, {})
  const source = new EventSource(`${door.server.origin}/api/v1/jobs/${job.id}/stream`, {
    fetch: (url, init) =>
      fetch(url, { ...init, headers: { ...init.headers, authorization: `Bearer ${TEST_TOKENS.alice}` } }),
  })
  open.push(() => source.close())
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
    `${door.server.origin}/api/v1/jobs/${job.id}/stream`,
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

test("a reader that takes nothing is cut off, and what it missed is still there by id", async () => {
  const job = await rig.queued(alice, { fan_out: { items: Array.from({ length: 100 }, (_, n) => ({ n })) } })
  const socket = await openSocket(door.server.port)
  socket.pause()
  socket.write(
    `GET /api/v1/jobs/${job.id}/stream HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${TEST_TOKENS.alice}\r\n\r\n`,
  )
  await until(() => expect(watching).toBe(1))
  await rig.runWhole(job, (n) => ({ n, large: "x".repeat(200_000) }))
  await until(() => expect(watching).toBe(0))
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
  await until(() => expect(names(rest.frames).at(-1)).toBe("done"))
  expect(names(rest.frames)).not.toContain("snapshot")
})
