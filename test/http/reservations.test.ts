import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterAll, beforeAll, describe, expect, test } from "vitest"
import { shell, startFleet, type Client, type Fleet, type FleetOptions, type Json } from "../support/fleet.ts"
import type { PlainReply } from "../support/http-door.ts"

/** Capacity that belongs to jobs, seen by clients of real coordinators with real agents (V-*, SC-*). */

/** Says that it runs by a file, and runs until another is there. */
const RUN_PY = `import json, os, time
payload = json.load(open(os.environ["COMPUTALOT_TASK_PAYLOAD"]))
marks = os.environ["MARKS"]
open(os.path.join(marks, "started-" + payload["name"]), "w").close()
while payload.get("until") and not os.path.exists(os.path.join(marks, payload["until"])):
    time.sleep(0.02)
json.dump({"name": payload["name"]}, open(os.environ["COMPUTALOT_TASK_RESULT"], "w"))
`

/** Programs are started, on machines that are shared and slow. */
const STARTS_WITHIN_MS = 240_000
const ENDS_WITHIN_MS = 300_000

interface World extends AsyncDisposable {
  fleet: Fleet
  /** Two accounts, each with the project `run`; the first has the project `other` too. */
  one: Client
  two: Client
  go: (name: string) => void
}

async function startWorld(options: FleetOptions): Promise<World> {
  const marks = mkdtempSync(join(tmpdir(), "computalot-marks-"))
  const fleet = await startFleet(options)
  const [one, two] = [await fleet.member(), await fleet.member()]
  const projects: [Client, string][] = [
    [one, "run"],
    [two, "run"],
    [one, "other"],
  ]
  for (const [client, name] of projects) await client.project(name, { "run.py": RUN_PY }, { env: { MARKS: marks } })
  return {
    fleet,
    one,
    two,
    go: (name) => writeFileSync(join(marks, name), ""),
    async [Symbol.asyncDispose]() {
      await fleet[Symbol.asyncDispose]()
      rmSync(marks, { recursive: true, force: true })
    },
  }
}

const node = (cpus: number, more: string[] = []): { flags: string[] } => ({ flags: [`--cpus=${cpus}`, ...more] })

const jobOf = (payload: Json, more: Json = {}): Json => ({
  type: "structured_runner",
  project: "run",
  runner_command: ["python3", "run.py"],
  timeout_s: 120,
  requirements: { memory_mb: 128 },
  payload,
  ...more,
})
const guaranteed = (parallelism: number, more: Json = {}): Json => ({
  reservation: { mode: "guaranteed", parallelism, ...more },
})
const post = (client: Client, body: Json): Promise<PlainReply> => client.call("POST", "/api/v1/jobs", body)
const running = (client: Client, id: string): Promise<Json> =>
  client.until(id, (job) => (job["task_counts"] as Json)["running"] === 1)
const waitsWith = async (client: Client, id: string, code: string): Promise<Json> => {
  const job = await client.until(id, (now) => (now["queue_reason"] as Json | null)?.["code"] === code)
  return job["queue_reason"] as Json
}
async function leaseOf(client: Client, id: string): Promise<{ leases: Json; reservation?: Json }> {
  const reply = await client.call("GET", `/api/v1/leases/${id}`)
  expect(reply.status, reply.text).toBe(200)
  return reply.json as { leases: Json; reservation?: Json }
}
const isQueued = async (client: Client, id: string): Promise<boolean> =>
  (await client.call("GET", `/api/v1/jobs/${id}`)).json["status"] === "queued"

describe("guaranteed reservations on one machine of two slots", () => {
  let world: World
  beforeAll(async () => {
    world = await startWorld({ nodes: [node(2)] })
  }, STARTS_WITHIN_MS)
  afterAll(() => world[Symbol.asyncDispose](), STARTS_WITHIN_MS)

  test("V-002: more than fits is refused at once and creates nothing; a missing parallelism is 422, an unknown project 404", async () => {
    const { one } = world
    const refused = await post(one, jobOf({ name: "three" }, guaranteed(3)))
    expect(refused.status, refused.text).toBe(409)
    expect(refused.json).toMatchObject({
      code: "no_capacity",
      error: expect.any(String),
      recommended_action: expect.any(String),
      details: { parallelism: 3, available_parallelism: 2, eligible_slots: 2 },
    })
    expect((await one.call("GET", "/api/v1/jobs")).json).toMatchObject({ total: 0 })
    expect((await one.call("GET", "/api/v1/account/holds")).json).toMatchObject({ holds: [] })
    expect((await post(one, jobOf({ name: "x" }, { reservation: { mode: "guaranteed" } }))).status).toBe(422)
    expect((await post(one, jobOf({ name: "x" }, { ...guaranteed(3), project: "nowhere" }))).status).toBe(404)
  })

  test("V-004: max_wait_s is kept and shown, and changes nothing", async () => {
    const { one } = world
    expect((await post(one, jobOf({ name: "three" }, guaranteed(3, { max_wait_s: 600 })))).status).toBe(409)
    const id = await one.submit(jobOf({ name: "waits" }, guaranteed(2, { max_wait_s: 600 })))
    expect(await one.ended(id)).toMatchObject({
      status: "completed",
      reservation: { mode: "guaranteed", parallelism: 2, guaranteed_for_s: 3600, max_wait_s: 600 },
    })
  })

  test("V-005, V-006, V-007: an idle reserved slot is lent to nobody until its job has ended", async () => {
    const { one, two, go } = world
    const admitted = await post(one, jobOf({ name: "a", until: "a-ends" }, guaranteed(2, { guaranteed_for_s: 1800 })))
    expect(admitted.status, admitted.text).toBe(201)
    expect(admitted.json["reservation"]).toEqual({
      mode: "guaranteed",
      parallelism: 2,
      guaranteed_for_s: 1800,
      max_wait_s: 0,
    })
    const id = String(admitted.json["id"])
    await running(one, id)
    const lease = await leaseOf(one, id)
    expect(lease).toEqual({
      leases: { total: 1, done: 0, failed: 0, requeued: 0 },
      reservation: {
        mode: "guaranteed",
        parallelism: 2,
        guaranteed_for_s: 1800,
        max_wait_s: 0,
        routing_profile: "cpu",
        requirements: { cpu: 1, memory_mb: 128, storage_gb: 1, gpu_count: 0, profile: "cpu" },
        active: true,
        admitted_at: expect.any(String),
        expires_at: expect.any(String),
        available_parallelism: 1,
      },
    })
    const { admitted_at, expires_at } = lease.reservation ?? {}
    expect(Date.parse(String(expires_at)) - Date.parse(String(admitted_at))).toBe(1_800_000)

    const others = [
      await two.submit(jobOf({ name: "b" }, { priority: "high" })),
      await one.submit(jobOf({ name: "c" }, { priority: "high" })),
    ]
    for (const [client, other] of [
      [two, others[0]],
      [one, others[1]],
    ] as const) {
      expect(await waitsWith(client, other ?? "", "capacity_busy")).toMatchObject({ eligible_slots: 2, busy_slots: 2 })
    }
    // Nothing is left to be promised to another.
    const second = await post(two, jobOf({ name: "x" }, guaranteed(1)))
    expect([second.status, second.get("details", "available_parallelism")]).toEqual([409, 0])
    await new Promise((resolve) => setTimeout(resolve, 700))
    expect(await Promise.all([isQueued(two, others[0] ?? ""), isQueued(one, others[1] ?? "")])).toEqual([true, true])

    go("a-ends")
    expect(await one.ended(id)).toMatchObject({ status: "completed" })
    expect((await leaseOf(one, id)).leases).toEqual({ total: 1, done: 1, failed: 0, requeued: 0 })
    expect((await leaseOf(one, id)).reservation).toMatchObject({ active: false, available_parallelism: 0 })
    expect(await two.ended(others[0] ?? "")).toMatchObject({ status: "completed" })
    expect(await one.ended(others[1] ?? "")).toMatchObject({ status: "completed" })
  })

  test("V-007, J-040: a cancelled job gives its capacity back, and the same can be reserved again", async () => {
    const { one, two } = world
    const first = await one.submit(jobOf({ name: "d", until: "never" }, guaranteed(2)))
    await running(one, first)
    expect((await post(two, jobOf({ name: "e" }, guaranteed(2)))).status).toBe(409)
    expect((await one.call("PUT", `/api/v1/jobs/${first}/cancel`, { reason: "enough" })).status).toBe(200)
    expect((await leaseOf(one, first)).reservation).toMatchObject({ active: false, available_parallelism: 0 })
    const again = await two.submit(jobOf({ name: "e" }, guaranteed(2)))
    expect(await two.ended(again)).toMatchObject({ status: "completed" })
  })

  test("V-003: after guaranteed_for_s the slots are for everybody, and the job goes on", async () => {
    const { one, two, go } = world
    const first = await one.submit(jobOf({ name: "f", until: "f-ends" }, guaranteed(2, { guaranteed_for_s: 3 })))
    await running(one, first)
    const other = await two.submit(jobOf({ name: "g" }))
    await waitsWith(two, other, "capacity_busy")
    expect((await leaseOf(one, first)).reservation).toMatchObject({ active: true })
    expect(await two.ended(other)).toMatchObject({ status: "completed" })
    expect((await leaseOf(one, first)).reservation).toMatchObject({ active: false, available_parallelism: 0 })
    go("f-ends")
    expect(await one.ended(first)).toMatchObject({ status: "completed" })
  })

  test("V-001, V-005: best effort shows its mode, never null, and has a lease without a reservation; foreign ones are 404", async () => {
    const { one, two } = world
    const id = await one.submit(jobOf({ name: "h" }))
    expect(await one.ended(id)).toMatchObject({ reservation: { mode: "best_effort" } })
    expect(await leaseOf(one, id)).toEqual({ leases: { total: 1, done: 1, failed: 0, requeued: 0 } })
    expect((await two.call("GET", `/api/v1/leases/${id}`)).status).toBe(404)
    expect((await two.call("GET", "/api/v1/leases/job_x")).status).toBe(404)
  })

  test("V-005: a fan-out's own tasks fill its slots, further ones wait, and the counts move as they end", async () => {
    const { one, go } = world
    const names = ["i0", "i1", "i2", "i3"]
    const id = await one.submit(
      jobOf(
        {},
        {
          ...guaranteed(2),
          fan_out: { items: names.map((name) => ({ name, until: `${name}-ends` })) },
        },
      ),
    )
    await one.until(id, (job) => (job["task_counts"] as Json)["running"] === 2)
    expect((await leaseOf(one, id)).reservation).toMatchObject({ active: true, available_parallelism: 0 })
    go("i0-ends")
    await one.until(id, (job) => (job["task_counts"] as Json)["completed"] === 1)
    expect((await leaseOf(one, id)).leases).toMatchObject({ total: 4, done: 1 })
    for (const name of names) go(`${name}-ends`)
    expect(await one.ended(id)).toMatchObject({ status: "completed" })
  })

  test("V-002: a crash of the coordinator forgets no promise", async () => {
    const { fleet, one, two, go } = world
    const id = await one.submit(jobOf({ name: "j", until: "j-ends" }, guaranteed(2)))
    await running(one, id)
    const waiting = await two.submit(jobOf({ name: "k" }))
    await fleet.endCoordinator("SIGKILL")
    await fleet.startCoordinator()
    await waitsWith(two, waiting, "capacity_busy")
    expect((await leaseOf(one, id)).reservation).toMatchObject({ active: true, available_parallelism: 1 })
    expect((await post(two, jobOf({ name: "x" }, guaranteed(1)))).status).toBe(409)
    await new Promise((resolve) => setTimeout(resolve, 700))
    expect(await isQueued(two, waiting)).toBe(true)
    go("j-ends")
    expect(await one.ended(id)).toMatchObject({ status: "completed" })
    expect(await two.ended(waiting)).toMatchObject({ status: "completed" })
    await fleet.expectAudit()
  })
})

describe("reservations while machines come and go", () => {
  test(
    "V-006: a slot whose machine is gone is owed, and the next machine's room is for it alone",
    async () => {
      await using world = await startWorld({ nodes: [node(1), node(1)] })
      const { fleet, one, two, go } = world
      const id = await one.submit(
        jobOf({}, { ...guaranteed(2), fan_out: { items: [{ name: "a", until: "a-ends" }] }, max_retries: 0 }),
      )
      await running(one, id)
      const nodes = (await fleet.admin("GET", "/api/v1/admin/nodes")).json["nodes"] as Json[]
      const idle = nodes.find(({ running: its }) => (its as unknown[]).length === 0)
      const lost = fleet.nodes.find(({ id: its }) => its === idle?.["id"])
      await lost?.end("SIGTERM")
      const other = await two.submit(jobOf({ name: "b" }))
      await waitsWith(two, other, "capacity_busy")
      await fleet.addNode(node(1))
      // The slot moved to the new machine: nothing of it is free for others.
      expect((await post(two, jobOf({ name: "x" }, guaranteed(1)))).status).toBe(409)
      await new Promise((resolve) => setTimeout(resolve, 700))
      expect(await isQueued(two, other)).toBe(true)
      await fleet.addNode(node(1))
      expect(await two.ended(other)).toMatchObject({ status: "completed" })
      go("a-ends")
      expect(await one.ended(id)).toMatchObject({ status: "completed" })
    },
    ENDS_WITHIN_MS,
  )
})

describe("placement_policy dedicated", () => {
  let world: World
  beforeAll(async () => {
    world = await startWorld({ nodes: [node(2)] })
  }, STARTS_WITHIN_MS)
  afterAll(() => world[Symbol.asyncDispose](), STARTS_WITHIN_MS)

  test("SC-006: while a dedicated job runs, only its project shares the machine", async () => {
    const { one, two, go } = world
    const id = await one.submit(jobOf({ name: "a", until: "a-ends" }, { placement_policy: "dedicated" }))
    expect(await running(one, id)).toMatchObject({
      placement_policy: "dedicated",
      reservation: { mode: "best_effort" },
    })
    expect((await leaseOf(one, id)).reservation).toBeUndefined()
    const foreign = await two.submit(jobOf({ name: "b" }))
    const otherProject = await one.submit(jobOf({ name: "c" }, { project: "other" }))
    expect(await waitsWith(two, foreign, "capacity_busy")).toMatchObject({ eligible_slots: 2, busy_slots: 2 })
    const sameProject = await one.submit(jobOf({ name: "d" }))
    expect(await one.ended(sameProject)).toMatchObject({ status: "completed" })
    expect(await Promise.all([isQueued(two, foreign), isQueued(one, otherProject)])).toEqual([true, true])
    go("a-ends")
    expect(await one.ended(id)).toMatchObject({ status: "completed" })
    expect(await two.ended(foreign)).toMatchObject({ status: "completed" })
    expect(await one.ended(otherProject)).toMatchObject({ status: "completed" })
  })

  test("SC-006, rulings: it waits with reservation_wait for a machine free of others; with a guarantee it is 409 at once", async () => {
    const { one, two, go } = world
    const foreign = await two.submit(jobOf({ name: "e", until: "e-ends" }))
    await running(two, foreign)
    const refused = await post(one, jobOf({ name: "x" }, { ...guaranteed(1), placement_policy: "dedicated" }))
    expect([refused.status, refused.json["code"]]).toEqual([409, "no_capacity"])
    const submitted = await post(one, jobOf({ name: "f" }, { placement_policy: "dedicated" }))
    expect(submitted.status, submitted.text).toBe(201)
    const id = String(submitted.json["id"])
    expect(await waitsWith(one, id, "reservation_wait")).toMatchObject({ eligible_slots: 2 })
    go("e-ends")
    expect(await one.ended(id)).toMatchObject({ status: "completed" })
    const both = await one.submit(
      jobOf({ name: "g", until: "g-ends" }, { ...guaranteed(1), placement_policy: "dedicated" }),
    )
    await running(one, both)
    const kept = await two.submit(jobOf({ name: "h" }))
    await waitsWith(two, kept, "capacity_busy")
    go("g-ends")
    expect(await two.ended(kept)).toMatchObject({ status: "completed" })
    expect(await one.ended(both)).toMatchObject({ status: "completed" })
  })

  test("GAP-65: who has a machine alone pays for all of it, each task its share; what it gets costs what was said", async () => {
    const { one, go } = world
    // Two cores at $0.01 and 4 GiB at $0.001 an hour: $0.0008 in two minutes.
    const estimateOf = async (more: Json): Promise<unknown[]> => {
      const reply = await post(one, jobOf({ name: "p", until: "never" }, { placement_policy: "dedicated", ...more }))
      expect(reply.status, reply.text).toBe(201)
      await one.call("PUT", `/api/v1/jobs/${String(reply.get("id"))}/cancel`)
      const { estimated_hold_usd: hold, resource_class: of } = reply.get("summary", "billing_estimate") as Json
      return [hold, of, reply.get("summary", "billing_hold", "amount_usd")]
    }
    expect(await estimateOf({})).toEqual([0.0008, "cpu_medium", 0.0008])
    const items = (count: number): Json => ({ fan_out: { items: Array.from({ length: count }, () => ({})) } })
    expect(await estimateOf(items(2))).toEqual([0.0008, "cpu_medium", 0.0008])
    expect(await estimateOf(items(6))).toEqual([0.0024, "cpu_medium", 0.0024])
    expect(await estimateOf({ placement_policy: "shared" })).toEqual([0.000338, "cpu_small", 0.000338])
    // No machine does: as if there were one of just this size.
    expect(await estimateOf({ requirements: { cpu: 8, memory_mb: 1024 } })).toEqual([0.0027, "cpu_large", 0.0027])

    const id = await one.submit(jobOf({ name: "paid", until: "paid-ends" }, { placement_policy: "dedicated" }))
    await running(one, id)
    await new Promise((resolve) => setTimeout(resolve, 2_000))
    go("paid-ends")
    expect(await one.ended(id)).toMatchObject({ status: "completed" })
    const metrics = (await one.call("GET", `/api/v1/jobs/${id}/metrics`)).json
    const seconds = Number((metrics["runtime_s"] as Json)["sum"])
    expect(seconds).toBeGreaterThan(2)
    const microUsd = Number(metrics["billed_usd"]) * 1e6
    expect(Math.abs(microUsd - (seconds * 24_000) / 3_600)).toBeLessThanOrEqual(1.1)
  })

  test(
    "SC-006: in a busy fleet a machine is made free after an ageing interval, and a crash does not end the wait",
    async () => {
      await using busy = await startWorld({
        nodes: [node(2)],
        coordinatorFlags: ["--priority-ageing-s=1"],
      })
      const { fleet, one, two, go } = busy
      const first = await two.submit(jobOf({ name: "a", until: "a-ends" }))
      await running(two, first)
      const id = await one.submit(jobOf({ name: "b" }, { placement_policy: "dedicated" }))
      await waitsWith(one, id, "reservation_wait")
      await fleet.endCoordinator("SIGKILL")
      await fleet.startCoordinator()
      await waitsWith(one, id, "reservation_wait")
      await new Promise((resolve) => setTimeout(resolve, 1_500))
      // There is room for it beside the first, and it is kept for the one that waits.
      const second = await two.submit(jobOf({ name: "c", until: "a-ends" }))
      await waitsWith(two, second, "capacity_busy")
      go("a-ends")
      expect(await one.ended(id)).toMatchObject({ status: "completed" })
      expect(await two.ended(second)).toMatchObject({ status: "completed" })
    },
    ENDS_WITHIN_MS,
  )
})

describe("GPUs and roles", () => {
  let world: World
  beforeAll(async () => {
    world = await startWorld({ nodes: [{ ...node(2), roles: "sealed" }] })
  }, STARTS_WITHIN_MS)
  afterAll(() => world[Symbol.asyncDispose](), STARTS_WITHIN_MS)

  test(
    "R-018, SC-005, SC-007: a machine for sealed recipes alone gets no project work; a sealed project job is 422",
    async () => {
      const { fleet, one } = world
      expect((await post(one, jobOf({ name: "a" }, { execution_policy: "sealed" }))).status).toBe(422)
      expect((await post(one, jobOf({ name: "a" }, guaranteed(1)))).status).toBe(409)
      const id = await one.submit(jobOf({ name: "a" }))
      await waitsWith(one, id, "no_matching_capacity")
      await new Promise((resolve) => setTimeout(resolve, 500))
      expect(await isQueued(one, id)).toBe(true)
      await fleet.addNode(node(4))
      expect(await one.ended(id)).toMatchObject({
        status: "completed",
        execution_policy: "sandboxed",
        placement_policy: "shared",
      })
    },
    ENDS_WITHIN_MS,
  )

  test(
    "A33, SC-002, V-002: the documented reservation is refused without GPUs and admitted with them; cpu work spills",
    async () => {
      const { fleet, one: client } = world
      await client.project("my-ml-project", {
        "train.py": `import json, os\njson.dump({"ok": True}, open(os.environ["COMPUTALOT_TASK_RESULT"], "w"))\n`,
      })
      const home = join(fleet.folder, "home")
      mkdirSync(home)
      const literal = `curl -sS "$BASE_URL/api/v1/jobs" -X POST -H "Authorization: Bearer $TOKEN" \\
  -H "Content-Type: application/json" -d '{"type":"structured_runner","project":"my-ml-project","runner_command":["python","train.py"],"payload":{"epochs":3},"requirements":{"cpu":8,"memory_mb":16384,"storage_gb":40,"gpu_count":1,"gpu_memory_mb":12288,"profile":"gpu"},"reservation":{"mode":"guaranteed","parallelism":2,"guaranteed_for_s":1800,"max_wait_s":0}}'`
      const where = { token: client.token, origin: fleet.origin, folder: fleet.folder, cwd: home }
      const refused = await shell(literal, where)
      expect([refused.status, (JSON.parse(refused.stdout) as Json)["code"]]).toEqual([409, "no_capacity"])

      const train = { project: "my-ml-project", runner_command: ["python3", "train.py"] }
      const gpuWork = await client.submit({ ...train, gpu_required: true })
      await waitsWith(client, gpuWork, "no_matching_capacity")
      await fleet.nodes[1]?.end("SIGTERM")
      const cpuWork = await client.submit(train)
      await waitsWith(client, cpuWork, "no_matching_capacity")

      await fleet.addNode(node(16, ["--gpus=2:24576", "--memory-mb=65536", "--storage-gb=100"]))
      expect(await client.ended(cpuWork)).toMatchObject({ status: "completed" })
      expect(await client.ended(gpuWork)).toMatchObject({ status: "completed" })
      const admitted = await shell(literal, where)
      expect(admitted.status, admitted.stdout).toBe(201)
      const id = String((JSON.parse(admitted.stdout) as Json)["id"])
      expect((await leaseOf(client, id)).reservation).toMatchObject({ routing_profile: "gpu", guaranteed_for_s: 1800 })
      expect(await client.ended(id)).toMatchObject({ status: "completed" })
    },
    ENDS_WITHIN_MS,
  )
})
