import { join } from "node:path"
import { afterAll, beforeAll, expect, test } from "vitest"
import { startFleet, type Client, type Fleet, type Json } from "../support/fleet.ts"
import { startReceiver, type Receiver } from "../support/receiver.ts"
import { storedRows } from "../support/stored-rows.ts"

/** The coordinator dies between a job's end and its call, and between two attempts; no call is lost. */

let fleet: Fleet
let client: Client
let receiver: Receiver
beforeAll(async () => {
  receiver = await startReceiver((response, { path }, before) => {
    // Never answered the first time: the coordinator is killed while it waits.
    if (path === "/hangs" && before === 0) return
    if (path === "/fails" && before === 0) response.writeHead(500)
    response.end()
  })
  fleet = await startFleet({ coordinatorFlags: ["--webhook-retry-s=2"] })
  client = await fleet.member()
  await client.project("p", { "run.py": "import sys\n" })
})
afterAll(async () => {
  await fleet[Symbol.asyncDispose]()
  await receiver[Symbol.asyncDispose]()
})

const submit = (path: string): Promise<string> =>
  client.submit({ project: "p", runner_command: ["python3", "run.py"], callback_url: `${receiver.url}${path}` })

/** Attempts made of each call that is still in the outbox. */
function outbox(): number[] {
  const dataDir = join(fleet.folder, "coordinator")
  return storedRows<{ attempts: number }>(dataDir, "SELECT attempts FROM webhook_calls").map(({ attempts }) => attempts)
}

async function restart(): Promise<void> {
  await fleet.endCoordinator("SIGKILL")
  await fleet.startCoordinator()
}

test("W-002: kill -9 between two attempts: the second comes at its time, under the same id, and it is the second", async () => {
  const id = await submit("/fails")
  await expect.poll(() => receiver.at("/fails").length, { timeout: 20_000 }).toBe(1)
  // Before the failure is stored the first attempt would only be repeated.
  await expect.poll(outbox, { timeout: 20_000 }).toEqual([1])
  await restart()
  await expect.poll(() => receiver.at("/fails").length, { timeout: 50_000 }).toBe(2)
  const calls = receiver.at("/fails")
  expect(new Set(calls.map(({ headers }) => headers["webhook-id"])).size).toBe(1)
  expect(new Set(calls.map(({ body }) => body)).size).toBe(1)
  expect((calls[1]?.atMs ?? 0) - (calls[0]?.atMs ?? 0)).toBeGreaterThan(1_500)
  const events = (await client.call("GET", `/api/v1/jobs/${id}/events?limit=1000`)).json["events"] as Json[]
  expect(events.filter(({ type }) => String(type).startsWith("webhook."))).toEqual([])
}, 120_000)

test("W-001: kill -9 while a receiver is being waited for: the attempt is repeated, at least once means once or twice", async () => {
  const id = await submit("/hangs")
  await expect.poll(() => receiver.at("/hangs").length, { timeout: 20_000 }).toBe(1)
  await restart()
  await expect.poll(() => receiver.at("/hangs").length, { timeout: 50_000 }).toBe(2)
  const [first, second] = receiver.at("/hangs")
  expect(second?.headers["webhook-id"]).toBe(first?.headers["webhook-id"])
  expect(JSON.parse(second?.body ?? "{}")).toMatchObject({ job_id: id, event: "job.completed" })
  await expect.poll(outbox, { timeout: 20_000 }).toEqual([])
  await restart()
  await new Promise((resolve) => setTimeout(resolve, 1_500))
  expect(receiver.at("/hangs")).toHaveLength(2)
}, 120_000)
