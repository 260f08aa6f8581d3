import { readdirSync, readFileSync } from "node:fs"
import { join } from "node:path"
import { afterAll, afterEach, beforeAll, expect, test } from "vitest"
import type { Client, Fleet, FleetNode, Json } from "../support/fleet.ts"
import { startMarkedFleet, type MarkedFleet } from "../support/marked-fleet.ts"

/** Programs die while tasks leave checkpoints: the work before the last durable one is not done again. */

/**
 * Counts a step each 0.2 s, in MARKS/NAME too (an x before the first of each attempt), until MARKS/NAME-go is there. With a file: each step leaves a checkpoint of 100 kB
 * that tells it, and the latest ten are kept.
 */
const STEPS_PY = `import json, os, time
payload = json.load(open(os.environ["COMPUTALOT_TASK_PAYLOAD"]))
resume = payload.get("_resume") or {}
marks = os.path.join(os.environ["MARKS"], payload["name"])
first = resume.get("step", -1) + 1
read = int(open(resume["checkpoint"]["path"]).read(12)) if "checkpoint" in resume else None
step = first
open(marks, "a").write("x\\n")
while not os.path.exists(marks + "-go"):
    told = {"step": step}
    if payload["file"]:
        model = os.path.join(os.environ["COMPUTALOT_ARTIFACT_DIR"], "model-%d.bin")
        with open(model % step, "w") as file:
            file.write(("%d" % step).ljust(100000, " "))
        if step - 10 >= first:
            os.remove(model % (step - 10))
        told["checkpoint"] = {"path": "model-%d.bin" % step}
    print("COMPUTALOT_PROGRESS:" + json.dumps(told), flush=True)
    open(marks, "a").write("%d\\n" % step)
    step += 1
    time.sleep(0.2)
json.dump({"first": first, "read": read}, open(os.environ["COMPUTALOT_TASK_RESULT"], "w"))
`

let world: MarkedFleet
let fleet: Fleet
let client: Client
let marks: string
beforeAll(async () => {
  world = await startMarkedFleet({
    nodes: [{ flags: ["--cpus=1", "--drain=checkpoint"] }, { flags: ["--cpus=1", "--drain=checkpoint"] }],
    coordinatorFlags: ["--claim-lifetime-s=12", "--lost-after-s=1"],
    project: "steps",
    files: { "steps.py": STEPS_PY },
  })
  ;({ fleet, client, marks } = world)
})
afterAll(() => world[Symbol.asyncDispose]())
afterEach(() => world.cancelActive())

async function stepping(name: string, file: boolean, more: Json = {}): Promise<string> {
  return await client.submit({
    project: "steps",
    runner_command: ["python3", "steps.py"],
    payload: { name, file },
    checkpointing: { enabled: true, resume_from_latest: true },
    ...more,
  })
}

/** The steps of each attempt. */
const attempts = (name: string): number[][] => {
  const text = readdirSync(marks).includes(name) ? readFileSync(join(marks, name), "utf8") : ""
  return text
    .split("x\n")
    .slice(1)
    .map((lines) => lines.split("\n").slice(0, -1).map(Number))
}
const steps = (name: string): number[] => attempts(name).at(-1) ?? []
const go = (name: string): void => world.go(`${name}-go`)
const taskOf = async (id: string): Promise<Json> => (await client.tasks(id))[0] ?? {}
/** What the next attempt would go on from. */
const stored = async (id: string): Promise<number> =>
  Number(((await taskOf(id))["resume_state"] as Json | null)?.["step"] ?? -1)

/** The node that runs the job's one task. */
async function busyNode(id: string): Promise<FleetNode> {
  const rows = (await fleet.admin("GET", "/api/v1/admin/nodes")).json["nodes"] as { id: string; running: Json[] }[]
  const row = rows.find(({ running }) => running.some(({ job_id: job }) => job === id))
  const found = fleet.nodes.find((node) => node.id === row?.id)
  if (!found) throw new Error("a node runs the task")
  return found
}

/** Resolves once the program has begun again; gives the step it began with, and the last one before. */
async function begunAgain(name: string): Promise<{ last: number; first: number }> {
  await expect.poll(() => attempts(name)[1]?.length ?? 0, { timeout: 45_000 }).toBeGreaterThan(0)
  const [before, after] = attempts(name)
  return { last: before?.at(-1) ?? -1, first: after?.[0] ?? -1 }
}

test("CK-008: kill -9 of a node with its task: it goes on elsewhere from the latest durable checkpoint", async () => {
  const id = await stepping("lost", true)
  await expect.poll(() => stored(id)).toBeGreaterThan(9)
  const node = await busyNode(id)
  await node.loseAll()
  const kept = await stored(id)
  const again = await begunAgain("lost")
  await node.start()
  expect(again.first).toBeGreaterThan(kept)
  // Of steps of 0.2 s: less than three seconds of work are done again.
  expect(again.last - again.first).toBeLessThan(15)
  go("lost")
  expect(await client.ended(id)).toMatchObject({ status: "completed" })
  expect(await taskOf(id)).toMatchObject({
    attempt: 2,
    result: { first: again.first, read: again.first - 1 },
  })
  const types = ((await client.call("GET", `/api/v1/jobs/${id}/events?limit=1000`)).json["events"] as Json[]).map(
    ({ type }) => type,
  )
  expect(types.filter((type) => type === "task.lost")).toHaveLength(1)
  await fleet.expectAudit()
})

test("CK-004: what progress told outlives the coordinator and the node together", async () => {
  const id = await stepping("told", false)
  await expect.poll(() => steps("told").length).toBeGreaterThan(10)
  const node = await busyNode(id)
  await Promise.all([fleet.endCoordinator("SIGKILL"), node.loseAll()])
  await fleet.startCoordinator()
  const again = await begunAgain("told")
  await node.start()
  expect(again.first).toBeGreaterThan(0)
  expect(again.last - again.first).toBeLessThan(15)
  go("told")
  expect(await client.ended(id)).toMatchObject({ status: "completed" })
})

test("kill -9 of the agent alone: what it had not delivered is delivered by the next one, and its task goes on", async () => {
  // No other node could take the task meanwhile.
  const node = await fleet.addNode({ flags: ["--cpus=1", "--gpus=1:1000"] })
  const id = await stepping("agent", true, { gpu_required: true })
  await expect.poll(() => stored(id)).toBeGreaterThan(4)
  await node.end("SIGKILL")
  const before = steps("agent").length
  await expect.poll(() => steps("agent").length).toBeGreaterThan(before + 5)
  const meanwhile = steps("agent").at(-1) ?? 0
  await node.start()
  await expect.poll(() => stored(id)).toBeGreaterThan(meanwhile)
  go("agent")
  expect(await client.ended(id)).toMatchObject({ status: "completed" })
  expect(await taskOf(id)).toMatchObject({ attempt: 1, result: { first: 0 } })
  // The output is read again by the next agent; no checkpoint of it is taken twice.
  const events = (await client.call("GET", `/api/v1/jobs/${id}/events?limit=1000`)).json["events"] as Json[]
  const artifacts = events.flatMap(({ type, data }) =>
    type === "task.checkpoint" ? [(data as Json)["artifact_id"]] : [],
  )
  expect(new Set(artifacts).size).toBe(artifacts.length)
  expect(await node.end("SIGTERM")).toBe(0)
})

test("rulings, Drain: checkpoint waits for one, then gives the task back, and it goes on elsewhere without a loss", async () => {
  const id = await stepping("drain", true)
  await expect.poll(() => stored(id)).toBeGreaterThan(4)
  const node = await busyNode(id)
  const startedAt = performance.now()
  expect(await node.end("SIGTERM")).toBe(0)
  expect(performance.now() - startedAt).toBeLessThan(20_000)
  const again = await begunAgain("drain")
  expect(again.first).toBeGreaterThan(4)
  expect(again.last - again.first).toBeLessThan(15)
  go("drain")
  expect(await client.ended(id)).toMatchObject({ status: "completed" })
  const events = (await client.call("GET", `/api/v1/jobs/${id}/events?limit=1000`)).json["events"] as Json[]
  expect(events.map(({ type }) => type)).not.toContain("task.lost")
  await node.start()
})
