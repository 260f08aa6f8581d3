import { afterEach, beforeEach, expect, test } from "vitest"
import { sha256Hex } from "../../protocol/base/digest.ts"
import { present } from "../../protocol/base/assert.ts"
import { send, type PlainReply } from "../support/http-door.ts"
import { startTestCoordinator, startWorker, type TestCoordinator } from "../support/scripted-node.ts"

/** What grants say of shared values and files, and what a node is answered when it asks, frame by frame. */

let rig: TestCoordinator
beforeEach(async () => {
  rig = await startTestCoordinator()
})
afterEach(async () => rig[Symbol.asyncDispose]())

const put = async (key: string, value: unknown): Promise<void> => {
  expect((await rig.as("PUT", `/projects/p/kv/${key}`, { value })).status).toBe(200)
}
const taskOf = async (job: string): Promise<Record<string, unknown>> =>
  ((await rig.as("GET", `/jobs/${job}/tasks`)).get("tasks") as Record<string, unknown>[])[0] ?? {}
const fetchAs = (token: string, path: string): Promise<PlainReply> =>
  send(rig.coordinator.origin, "GET", path, { token })
const shared = { resolve: { it: { key: "it" } } }

test("SS-001: values are in the granted payload, which says that they are variables too; other tasks are told nothing", async () => {
  await put("it", { a: [1.5] })
  const node = await startWorker(rig)
  await rig.submit({ payload: { n: 1, _shared: shared } })
  await rig.submit({ payload: { n: 2 } })
  await node.next()
  await node.next()
  const tasks = node.granted.map((task) => ({ ...task, text: "text" in task.payload ? task.payload.text : "" }))
  const [given, plain] = tasks.toSorted((a, b) => b.text.length - a.text.length)
  expect(given?.text).toBe('{"n":1,"_shared":{"resolve":{"it":{"key":"it"}},"values":{"it":{"a":[1.5]}}}}')
  expect(given).toMatchObject({ shares: true })
  expect(given).not.toHaveProperty("downloads")
  expect(plain?.text).toBe('{"n":2}')
  for (const name of ["shares", "downloads", "uploads"]) expect(plain).not.toHaveProperty(name)
})

test("SS-001: asked for again after changes and a restart, a granted payload is the same; the next attempt's is new", async () => {
  await put("it", "before")
  const node = await startWorker(rig)
  const job = await rig.submit({ payload: { pad: "x".repeat(100_000), _shared: shared }, max_retries: 1 })
  const claim = await node.next()
  const { payload } = present(node.granted[0], "a granted task")
  if (!("digest" in payload)) throw new Error("the payload is too large for the grant")
  const asked = async (of: number): Promise<string> => {
    const reply = await fetchAs(node.transferToken, `/api/v1/nodes/payloads/${of}`)
    expect(reply.status, reply.text.slice(0, 200)).toBe(200)
    return reply.text
  }
  const first = await asked(claim)
  expect([sha256Hex(first), Buffer.byteLength(first)]).toEqual([payload.digest, payload.size])
  expect(first).toContain('"values":{"it":"before"}')
  await put("it", "after")
  expect(await asked(claim)).toBe(first)
  await rig.restart()
  await node.connect({ attempts: [{ claim, state: "running" }] })
  await node.claim()
  expect(await asked(claim)).toBe(first)
  await node.report(claim, { failure_kind: "exit_code", exit_code: 1, result: null })
  await expect.poll(() => node.granted.length).toBe(2)
  const again = node.granted[1]?.claim ?? 0
  expect(await asked(again)).toContain('"values":{"it":"after"}')
  const other = await startWorker(rig)
  expect((await fetchAs(other.transferToken, `/api/v1/nodes/payloads/${again}`)).status).toBe(404)
  expect((await rig.job(job))["status"]).toBe("running")
})

test("rulings, Shared state: what cannot be resolved is sent to no node, takes no room and is billed to nobody", async () => {
  const node = await startWorker(rig, { cpu: 1 })
  const failing = await rig.submit({ payload: { _shared: shared }, max_retries: 5 })
  await expect.poll(async () => (await rig.job(failing))["status"]).toBe("failed")
  expect(await taskOf(failing)).toMatchObject({ failure_kind: "shared_unresolved", max_attempts: 6 })
  const good = await rig.submit()
  const claim = await node.next()
  expect(node.granted).toHaveLength(1)
  await node.report(claim)
  await expect.poll(async () => (await rig.job(good))["status"]).toBe("completed")
  expect((await rig.call("GET", "/admin/audit")).json).toMatchObject({ ok: true })
  const holds = (await rig.as("GET", "/account/holds")).get("holds") as Record<string, unknown>[]
  expect(holds.find(({ job_id: of }) => of === failing)).toMatchObject({ status: "released", settled_amount_usd: 0 })
})

test("AW-003: a node asks for the files of a task that it holds; another node and another task are not answered", async () => {
  const uploaded = await rig.as("POST", "/artifacts", Buffer.from("some bytes"))
  const id = String(uploaded.get("id"))
  const [node, other] = [await startWorker(rig, { cpu: 1 }), await rig.node()]
  await other.connect()
  await rig.submit({
    payload: { _artifacts: { download: { "my data": id }, upload: { m: { path: "m.pt", filename: "n.pt" } } } },
  })
  const claim = await node.next()
  expect(node.granted[0]).toMatchObject({
    downloads: true,
    uploads: [{ name: "m", path: "m.pt", filename: "n.pt", content_type: null }],
  })
  const reply = await fetchAs(node.transferToken, `/api/v1/nodes/inputs/${claim}`)
  expect(reply.json).toEqual({
    files: [
      {
        name: "my data",
        filename: "artifact.bin",
        file: { digest: sha256Hex("some bytes"), size: 10, piece_list: null },
        holders: [],
      },
    ],
    content_grant: expect.any(String) as unknown,
    unavailable: null,
  })
  expect((await fetchAs(other.transferToken, `/api/v1/nodes/inputs/${claim}`)).status).toBe(404)
  expect((await fetchAs(node.transferToken, `/api/v1/nodes/inputs/${claim + 1}`)).status).toBe(404)
  expect((await fetchAs("nds_nobody", `/api/v1/nodes/inputs/${claim}`)).status).toBe(401)
  expect((await rig.as("GET", `/nodes/inputs/${claim}`)).status).toBe(401)
  await rig.as("DELETE", `/artifacts/${id}`)
  const gone = await fetchAs(node.transferToken, `/api/v1/nodes/inputs/${claim}`)
  expect(gone.json).toMatchObject({ files: [], content_grant: null })
  expect(String(gone.json["unavailable"])).toContain(id)
})

test("GAP-54: declared files that were not there are warnings of the result", async () => {
  const node = await startWorker(rig)
  const job = await rig.submit({ payload: { _artifacts: { upload: { m: "m.pt" } } } })
  const claim = await node.next()
  await node.report(claim, { warnings: ["artifact m: there is no plain file at m.pt"] })
  await expect.poll(async () => (await rig.job(job))["status"]).toBe("completed")
  expect(await taskOf(job)).toMatchObject({
    result_quality: 1,
    result_warnings: ["artifact m: there is no plain file at m.pt"],
  })
})
