import { readFileSync } from "node:fs"
import { connect, type Socket } from "node:net"
import { join } from "node:path"
import { afterAll, afterEach, beforeAll, expect, test } from "vitest"
import { commandOf, processesOf } from "../../scripts/lib/processes.ts"
import type { Client, Fleet, Json } from "../support/fleet.ts"
import { startMarkedFleet, WORK_PY, type MarkedFleet } from "../support/marked-fleet.ts"
import { storedRows } from "../support/stored-rows.ts"

/** Programs die in the middle of jobs; each task still stands once in the results and once in the money. */

let world: MarkedFleet
let fleet: Fleet
let client: Client
beforeAll(async () => {
  // A node that stays away is given up soon after its claims have run out.
  world = await startMarkedFleet({
    nodes: [{ flags: ["--cpus=2"] }, { flags: ["--cpus=2"] }],
    coordinatorFlags: ["--claim-lifetime-s=12", "--lost-after-s=1"],
    project: "wait",
    files: { "wait.py": WORK_PY },
  })
  ;({ fleet, client } = world)
})
afterAll(() => world[Symbol.asyncDispose]())
afterEach(() => world.cancelActive())

/** A job of tasks that all wait; resolves once as many run as the fleet has room for. */
async function waitingJob(label: string, tasks: number, running = Math.min(tasks, 4)): Promise<Waiting> {
  const names = Array.from({ length: tasks }, (_, index) => `${label}-${index}`)
  const go = `${label}-go`
  const id = await client.submit({
    project: "wait",
    runner_command: ["python3", "wait.py"],
    fan_out: { by: "name" },
    payload: { name: names, go },
  })
  await expect.poll(() => names.filter((name) => world.runs(name) > 0).length).toBe(running)
  return {
    id,
    names,
    runs: () => names.map((name) => world.runs(name)),
    go: () => world.go(go),
  }
}

interface Waiting {
  id: string
  names: string[]
  /** How often each task's program ran. */
  runs(): number[]
  go(): void
}

/** Each task once in the results, once charged; one debit, a settled hold, and sums that agree. */
async function expectOnce({ id, names }: Waiting): Promise<void> {
  expect(await client.ended(id)).toMatchObject({ status: "completed", task_counts: { completed: names.length } })
  const rows = (await client.results(id))["results"] as Json[]
  expect(rows.map(({ result }) => result)).toEqual(names.map((name) => ({ name })))
  const entries = (await client.call("GET", "/api/v1/account/ledger?limit=500")).json["entries"] as Json[]
  expect(entries.filter(({ job_id: job }) => job === id)).toHaveLength(1)
  const holds = (await client.call("GET", "/api/v1/account/holds?limit=500")).json["holds"] as Json[]
  const [hold] = holds.filter(({ job_id: job }) => job === id)
  expect(hold).toMatchObject({ status: "settled" })
  expect(chargesOf(String(hold?.["id"]))).toBe(names.length)
  await fleet.expectAudit()
}

function chargesOf(hold: string): number {
  const dataDir = join(fleet.folder, "coordinator")
  const [row] = storedRows<{ charges: number }>(dataDir, "SELECT count(*) AS charges FROM charges WHERE hold = ?", hold)
  return Number(row?.charges)
}

test("kill -9 of a node that comes back: its tasks went on and are adopted", async () => {
  const job = await waitingJob("adopted", 5)
  await world.node(0).end("SIGKILL")
  await world.node(0).start()
  job.go()
  await expectOnce(job)
  expect(job.runs()).toEqual([1, 1, 1, 1, 1])
  expect(readFileSync(world.node(0).logFile, "utf8")).toContain("attempt adopted")
})

test("kill -9 of a node with its tasks: they run once more when it is back", async () => {
  const job = await waitingJob("again", 4)
  await world.node(0).loseAll()
  await world.node(0).start()
  await expect.poll(() => job.runs().toSorted((a, b) => a - b)).toEqual([1, 1, 2, 2])
  job.go()
  await expectOnce(job)
  expect(job.runs().toSorted((a, b) => a - b)).toEqual([1, 1, 2, 2])
})

test("kill -9 of the coordinator in the middle of a job", async () => {
  const job = await waitingJob("coordinator", 7)
  await fleet.endCoordinator("SIGKILL")
  await fleet.startCoordinator()
  job.go()
  await expectOnce(job)
  expect(job.runs()).toEqual(Array.from({ length: 7 }, () => 1))
})

test("results that ended while no coordinator ran are reported to the next one", async () => {
  const job = await waitingJob("meanwhile", 4)
  await fleet.endCoordinator("SIGKILL")
  job.go()
  await expect.poll(waitPrograms).toBe(0)
  await fleet.startCoordinator()
  await expectOnce(job)
  expect(job.runs()).toEqual([1, 1, 1, 1])
})

test("kill -9 of the coordinator and of every node at once", async () => {
  const job = await waitingJob("both", 6)
  await Promise.all([fleet.endCoordinator("SIGKILL"), world.node(0).end("SIGKILL"), world.node(1).end("SIGKILL")])
  const starting = [world.node(0).start(), world.node(1).start()]
  await fleet.startCoordinator()
  await Promise.all(starting)
  job.go()
  await expectOnce(job)
  expect(job.runs()).toEqual([1, 1, 1, 1, 1, 1])
})

test("a node that stays away: its tasks run elsewhere once its claims have run out", async () => {
  const job = await waitingJob("elsewhere", 2)
  const nodes = (await fleet.admin("GET", "/api/v1/admin/nodes")).json["nodes"] as { id: string; running: Json[] }[]
  const busy =
    fleet.nodes.find(({ id }) => nodes.some((row) => row.id === id && row.running.length > 0)) ?? world.node(0)
  const mine = nodes.find(({ id }) => id === busy.id)?.running.length ?? 0
  await busy.loseAll()
  await expect.poll(() => job.runs().reduce((sum, runs) => sum + runs, 0), { timeout: 45_000 }).toBe(2 + mine)
  const events = (await client.call("GET", `/api/v1/jobs/${job.id}/events?limit=200`)).json["events"] as Json[]
  const lost = events.filter(({ type }) => type === "task.lost")
  expect(lost).toHaveLength(mine)
  job.go()
  await expectOnce(job)
  await busy.start()
})

test("SIGTERM: the task that runs is finished, its result arrives, and the agent ends with 0", async () => {
  const added = await fleet.addNode({ flags: ["--drain=finish", "--cpus=1", "--gpus=1:1000"] })
  const id = await client.submit({
    project: "wait",
    runner_command: ["python3", "wait.py"],
    payload: { name: "drain-0", go: "drain-go" },
    gpu_required: true,
  })
  await expect.poll(() => world.runs("drain-0")).toBe(1)
  const ended = added.end("SIGTERM")
  const state = async (): Promise<unknown> => {
    const rows = (await fleet.admin("GET", "/api/v1/admin/nodes")).json["nodes"] as Json[]
    return rows.find(({ id: of }) => of === added.id)?.["state"]
  }
  await expect.poll(() => readFileSync(added.logFile, "utf8")).toContain("draining")
  expect(await state()).toBeDefined()
  world.go("drain-go")
  expect(await ended).toBe(0)
  expect(await client.ended(id)).toMatchObject({ status: "completed" })
  expect(world.runs("drain-0")).toBe(1)
})

test("a revoked node ends its tasks and itself, non-zero, with one line", async () => {
  const added = await fleet.addNode({ flags: ["--cpus=1", "--gpus=1:1000"] })
  const id = await client.submit({
    project: "wait",
    runner_command: ["python3", "wait.py"],
    payload: { name: "revoked-0", go: "never" },
    gpu_required: true,
  })
  await expect.poll(() => world.runs("revoked-0")).toBe(1)
  const reply = await fleet.admin("PUT", `/api/v1/admin/nodes/${added.id}`, { state: "revoked", reason: "not ours" })
  expect(reply.status, reply.text).toBe(200)
  expect(await added.program.ended).toBe(1)
  const lines = readFileSync(added.logFile, "utf8")
    .split("\n")
    .filter((line) => line.startsWith("computalot-node:"))
  expect(lines).toEqual(["computalot-node: this node was revoked"])
  await expect.poll(waitPrograms).toBe(0)
  await expect
    .poll(async () => (await client.tasks(id))[0]?.["queue_reason"])
    .toMatchObject({ code: "no_matching_capacity" })
  expect((await fleet.admin("PUT", `/api/v1/admin/nodes/${added.id}`, { state: "active" })).status).toBe(409)
  expect((await client.call("PUT", `/api/v1/jobs/${id}/cancel`)).status).toBe(200)
})

test("a thousand strangers on the mesh port and half-open requests: service goes on", async () => {
  const mesh = Number(/\/tcp\/(\d+)/.exec(String((fleet.coordinator.ready["mesh"] as string[])[0]))?.[1])
  const http = Number(new URL(fleet.origin).port)
  const sockets: Socket[] = []
  try {
    const openings = Array.from({ length: 1000 }, (_, index) => {
      const [port, bytes] =
        index % 5 === 0 ? [http, HALF_OPEN[(index / 5) % HALF_OPEN.length]] : [mesh, GARBAGE[index % GARBAGE.length]]
      return new Promise<void>((resolve) => {
        const socket = connect(port, "127.0.0.1", () => {
          socket.write(bytes ?? "")
          resolve()
        })
        socket.on("error", () => resolve())
        sockets.push(socket)
      })
    })
    await Promise.all(openings)
    const job = await waitingJob("strangers", 4)
    job.go()
    await expectOnce(job)
    expect((await fleet.admin("GET", "/ready")).status).toBe(200)
  } finally {
    for (const socket of sockets) socket.destroy()
  }
  const rows = (await fleet.admin("GET", "/api/v1/admin/nodes")).json["nodes"] as Json[]
  expect(rows.filter(({ contact }) => contact === "connected")).toHaveLength(2)
})

/** Nothing, noise, the first half of a multistream greeting, a huge length, and TLS where none is spoken. */
const GARBAGE = [
  "",
  "\0\xff\xfe garbage",
  "\x13/multistream/1.",
  "\xff\xff\xff\xff\x7f",
  "\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
]
const HALF_OPEN = [
  "POST /api/v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
  "GET /health HT",
  "POST /api/v1/projects/wait/push HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n",
  "\0\0\0\0",
]

const waitPrograms = (): number => processesOf(fleet.folder).filter((pid) => commandOf(pid).includes("wait.py")).length
