import { createServer, type Server } from "node:http"
import { once } from "node:events"
import type { AddressInfo } from "node:net"
import { afterEach, beforeEach, expect, test, vi } from "vitest"
import type { AccountId } from "../../protocol/domain/ids.ts"
import { renderJobFrame, type Follower } from "../../coordinator/http/job-feed.ts"
import { readLog } from "../../coordinator/jobs/read/events.ts"
import { createAggregates } from "../../coordinator/jobs/read/aggregates.ts"
import { serveFollowed, type Following, type FollowedStreamParts } from "../../coordinator/http/followed-stream.ts"
import { serveJobStream } from "../../coordinator/http/job-stream.ts"
import { createSharedSnapshots } from "../../coordinator/http/shared-snapshots.ts"
import { createSharedWork } from "../../coordinator/http/shared-work.ts"
import { eventFrame } from "../../coordinator/http/sse.ts"
import { frameId } from "../../coordinator/http/stream-position.ts"
import { createSnapshotTurns } from "../../coordinator/http/snapshot-turns.ts"
import { fundedAccount } from "../support/accounts.ts"
import { openSocket, untilClosed } from "../support/http-door.ts"
import { startJobRig, type JobRig } from "../support/job-rig.ts"

/** What streams owe to readers of all sorts, at moments that a real feed meets by chance only. */

let rig: JobRig
let alice: AccountId
let server: Server
beforeEach(async () => {
  rig = await startJobRig()
  alice = await fundedAccount(rig.store, 50_000_000n)
  await rig.project(alice)
  server = createServer().listen(0, "127.0.0.1")
  await once(server, "listening")
})
afterEach(async () => {
  server.closeAllConnections()
  server.close()
  await rig[Symbol.asyncDispose]()
})

const port = (): number => (server.address() as AddressInfo).port
const parts = () => ({
  ...rig,
  aggregates: createAggregates(rig),
  queueReasons: {
    job: () => ({ code: "capacity_busy" as const, message: "m", eligible_slots: 0, busy_slots: 0, suggestion: "s" }),
    contactLost: () => {
      throw new Error("no contact is lost")
    },
  },
  snapshots: createSharedSnapshots(rig.clock, rig.watch),
  snapshotTurns: createSnapshotTurns(rig.clock),
  ssePingMs: 100,
  sseLimitMs: 60_000,
})
const allowed = {
  caller: { account: null },
  signal: () => new AbortController().signal,
  stillAllowed: async () => true,
}

test("of a large snapshot no more waits than of anything else, and who reads nothing of it is cut off", async () => {
  // Of a map_reduce the job itself stays small.
  const split = { field: "part", total: 80, chunks: 80 }
  const job = await rig.queued(alice, { type: "map_reduce", split, reduce: { n: "sum" } })
  await rig.runWhole(job, (n) => ({ n, large: "x".repeat(200_000) }))
  let mostWaiting = 0
  let ended = false
  server.on("request", ({ headers, method = "GET" }, response) => {
    const write = response.write.bind(response) as (chunk: string) => boolean
    response.write = (chunk: string) => {
      const took = write(chunk)
      mostWaiting = Math.max(mostWaiting, response.writableLength)
      return took
    }
    const shared = createSharedWork()
    void serveJobStream({ ...parts(), shared }, job.seq, { headers, method, response, ...allowed }).then(() => {
      ended = true
    })
  })
  const socket = await openSocket(port())
  socket.pause()
  socket.write("GET / HTTP/1.1\r\nhost: x\r\n\r\n")
  await vi.waitFor(() => expect(ended).toBe(true), { timeout: 30_000 })
  expect(mostWaiting).toBeGreaterThan(0)
  expect(mostWaiting).toBeLessThan(2 * 1024 * 1024)
  socket.destroy()
  const whole = await fetch(`http://127.0.0.1:${port()}/`).then((reply) => reply.text())
  const [, data = ""] = /^event: snapshot\nid: \d+\ndata: (.*)$/m.exec(whole) ?? []
  const { tasks, total } = JSON.parse(data) as { tasks: { index: number }[]; total: number }
  expect(total).toBe(80)
  // As many as 16 MiB hold.
  expect(tasks.map(({ index }) => index)).toEqual(Array.from({ length: tasks.length }, (_, n) => n))
  expect(tasks.length).toBeGreaterThan(70)
}, 60_000)

test("ST-003: a change that comes at the very moment in which a stream has caught up is told", async () => {
  const job = await rig.queued(alice, {})
  const id = frameId(1_000_000, "job")
  const frame = {
    job: job.seq,
    status: "queued" as const,
    id,
    text: eventFrame({ event: "job", id: `${id}`, data: {} }),
  }
  for (let turns = 0; turns < 12; turns++) {
    server.removeAllListeners("request")
    server.on("request", ({ headers, method = "GET" }, response) => {
      let follower: Follower | null = null
      const feed: FollowedStreamParts["feed"] = {
        async follow(one) {
          follower = one
          return { [Symbol.dispose]() {} }
        },
      }
      let told = false
      const following: Following = {
        interest: { jobs: new Set([job.seq]) },
        withResults: false,
        async *snapshot() {
          yield "{}"
        },
        async missed() {
          const change = async (): Promise<void> => {
            for (let turn = 0; turn < turns; turn++) await Promise.resolve()
            follower?.take(frame)
          }
          void change()
          return []
        },
        told: () => {
          told = true
        },
        done: () => (told ? { reason: "all_terminal" } : null),
      }
      void serveFollowed({ ...parts(), feed }, following, { headers, method, response, ...allowed })
    })
    const socket = await openSocket(port())
    socket.write("GET / HTTP/1.1\r\nhost: x\r\nlast-event-id: 2\r\nconnection: close\r\n\r\n")
    expect(await untilClosed(socket), `${turns} turns later`).toContain("event: done")
  }
})

test("ST-003: the end of a job is told once, under its own event, however late earlier changes are written", async () => {
  const job = await rig.queued(alice, {})
  await rig.runWhole(job, () => 1)
  const { events } = await readLog(rig.store, job.seq, 0, 100)
  const changes = events.filter(({ type }) => type.startsWith("job."))
  const told: unknown[] = []
  for (const { id, type } of changes) {
    const frame = await renderJobFrame(parts(), job.seq, frameId(id, "job"), false)
    if (frame) told.push([type, frame.status])
  }
  expect(changes.length).toBeGreaterThan(2)
  expect(told).toEqual([["job.completed", "completed"]])
})
