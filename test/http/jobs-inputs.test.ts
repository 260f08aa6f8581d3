import { execFileSync } from "node:child_process"
import { createHash, randomBytes } from "node:crypto"
import { readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { afterAll, beforeAll, describe, expect, test } from "vitest"
import type { Client, Fleet, FleetNode, Json } from "../support/fleet.ts"
import { doing, runPy, startMarkedFleet, type MarkedFleet } from "../support/marked-fleet.ts"

/** What tasks are given and hand on, from the request to the program and back, with the process runtime. */

const RUN_PY = runPy(`import hashlib
artifacts = os.environ["COMPUTALOT_ARTIFACT_DIR"]
def keep(path, text):
    os.makedirs(os.path.dirname(os.path.join(artifacts, path)), exist_ok=True)
    with open(os.path.join(artifacts, path), "w") as file:
        file.write(text)
def given(prefix):
    return {name: value for name, value in os.environ.items() if name.startswith(prefix)}`)

let world: MarkedFleet
let fleet: Fleet
let client: Client
let marks: string
beforeAll(async () => {
  world = await startMarkedFleet({ project: "run", files: { "run.py": RUN_PY }, creditUsd: 100 })
  ;({ fleet, client, marks } = world)
}, 120_000)
afterAll(() => world[Symbol.asyncDispose]())

const run = async (program: string, more: Json = {}): Promise<Json> => {
  const id = await client.submit(doing(program, more))
  await client.ended(id)
  const [task] = await client.tasks(id)
  if (!task) throw new Error("the job has a task")
  return task
}
const put = async (key: string, value: unknown): Promise<void> => {
  const reply = await client.call("PUT", `/api/v1/projects/run/kv/${key}`, { value })
  expect(reply.status, reply.text).toBe(200)
}
const valueOf = async (key: string): Promise<unknown> =>
  (await client.call("GET", `/api/v1/projects/run/kv/${key}`)).json["value"]
const upload = async (bytes: string | Buffer, filename: string, as: Client = client): Promise<string> => {
  const headers = { "x-artifact-filename": filename }
  const reply = await as.call("POST", "/api/v1/artifacts", Buffer.from(bytes), headers)
  expect(reply.status, reply.text).toBe(201)
  return String(reply.get("id"))
}
const billedUsd = async (id: string): Promise<unknown> => {
  const holds = (await client.call("GET", "/api/v1/account/holds?limit=200")).json["holds"] as Json[]
  return holds.find(({ job_id: of }) => of === id)?.["settled_amount_usd"]
}
const fetchesOn = (node: FleetNode): { blob: string; from_peers: number; from_origin: number }[] =>
  readFileSync(node.logFile, "utf8")
    .split("\n")
    .filter((line) => line.includes('"content fetched"'))
    .map((line) => JSON.parse(line) as { blob: string; from_peers: number; from_origin: number })

const TELL = `write({"values": payload["_shared"]["values"], "env": given("COMPUTALOT_SHARED_")})`

describe("shared values", () => {
  test("SS-001, SS-003: what the project's state holds is in the payload, and scalars are variables", async () => {
    await put("dataset_ready", { status: "ready" })
    await put("lr", 0.25)
    await put("name", 'a "b" ü')
    await put("off", false)
    await put("none", null)
    const resolve = {
      dataset_ready: { key: "dataset_ready" },
      lr: { key: "lr" },
      Name: { key: "name" },
      off: { key: "off" },
      none: { key: "none" },
    }
    const task = await run(TELL, { payload: { _shared: { resolve } } })
    expect(task["result"], JSON.stringify(task)).toEqual({
      values: { dataset_ready: { status: "ready" }, lr: 0.25, Name: 'a "b" ü', off: false, none: null },
      env: {
        COMPUTALOT_SHARED_LR: "0.25",
        COMPUTALOT_SHARED_lr: "0.25",
        COMPUTALOT_SHARED_NAME: 'a "b" ü',
        COMPUTALOT_SHARED_Name: 'a "b" ü',
        COMPUTALOT_SHARED_OFF: "false",
        COMPUTALOT_SHARED_off: "false",
      },
    })
    // The client's own payload is shown as it was submitted.
    expect((task["payload"] as Json)["_shared"]).toEqual({ resolve })
  })

  test("SS-001: each attempt gets what stands there at its grant", async () => {
    await put("round", 1)
    const id = await client.submit(
      doing(
        `
value = payload["_shared"]["values"]["round"]
if value == 1:
    open(os.path.join(marks, "round-one"), "w").close()
    wait_for("round-two")
    sys.exit(1)
write({"round": value})`,
        { payload: { _shared: { resolve: { round: { key: "round" } } } }, max_retries: 1 },
      ),
    )
    await expect.poll(() => exists("round-one"), { timeout: 30_000 }).toBe(true)
    await put("round", 2)
    world.go("round-two")
    expect(await client.ended(id)).toMatchObject({ status: "completed" })
    expect(await client.tasks(id)).toMatchObject([{ attempt: 2, result: { round: 2 } }])
  })

  test("SS-001, GAP-32: with a payload too large for a grant they arrive too", async () => {
    const text = "x".repeat(60_000)
    await put("large", text)
    const resolve = { a: { key: "large" }, b: { key: "large" } }
    const task = await run(
      `write({"sizes": [len(v) for v in payload["_shared"]["values"].values()], "pad": len(payload["pad"])})`,
      {
        payload: { pad: "y".repeat(900_000), _shared: { resolve } },
      },
    )
    expect(task["result"], JSON.stringify(task).slice(0, 2000)).toEqual({ sizes: [60_000, 60_000], pad: 900_000 })
  })

  test("rulings, Shared state: an unresolved alias fails the task, is not tried again and costs nothing", async () => {
    const id = await client.submit(
      doing("write(1)", { payload: { _shared: { resolve: { x: { key: "never_set" } } } }, max_retries: 3 }),
    )
    const ended = await client.ended(id)
    expect(ended).toMatchObject({ status: "failed", task_counts: { failed: 1 } })
    expect(String(ended["error"])).toContain("never_set")
    expect(String(ended["recommended_action"])).toContain("shared value")
    const [task] = await client.tasks(id)
    expect(task).toMatchObject({ status: "failed", failure_kind: "shared_unresolved", output: "" })
    expect(String(task?.["error"])).toContain("_shared.resolve.x")
    expect(await billedUsd(id)).toBe(0)
    const events = (await client.call("GET", `/api/v1/jobs/${id}/events`)).json["events"] as Json[]
    expect(events.map(({ type }) => type)).not.toContain("task.started")
    await fleet.expectAudit()
  })

  test("rulings, Shared state: of a fan-out only the tasks that ask in vain fail", async () => {
    await put("there", "yes")
    const ask = (key: string) => ({ do: TELL, _shared: { resolve: { it: { key } } } })
    const id = await client.submit({
      project: "run",
      runner_command: ["python3", "run.py"],
      fan_out: { items: [ask("there"), ask("not_there"), { do: "write(3)" }, ask("there")] },
    })
    expect(await client.ended(id)).toMatchObject({ status: "partial", task_counts: { completed: 3, failed: 1 } })
    const rows = await client.tasks(id)
    expect(rows.map(({ failure_kind: kind }) => kind)).toEqual([null, "shared_unresolved", null, null])
    expect(rows[3]).toMatchObject({ result: { values: { it: "yes" }, env: { COMPUTALOT_SHARED_IT: "yes" } } })
  })

  test("SS-004: what a job publishes is there when it has ended, and a later job finds it", async () => {
    const state = { publish: { best: { path: "results.0.score" }, published: { value: { ok: [true] } } } }
    await run(`write({"score": 0.75})`, { state })
    expect(await valueOf("best")).toBe(0.75)
    expect(await valueOf("published")).toEqual({ ok: [true] })
    const task = await run(TELL, { payload: { _shared: { resolve: { best: { key: "best" } } } } })
    expect(task["result"]).toMatchObject({ values: { best: 0.75 }, env: { COMPUTALOT_SHARED_BEST: "0.75" } })
  })
})

describe("files that are given", () => {
  const LOOK = `
paths = payload["_artifacts"]["local_paths"]
digests = {name: hashlib.sha256(open(path, "rb").read()).hexdigest() for name, path in paths.items()}
modes = {name: oct(os.stat(path).st_mode & 0o222) for name, path in paths.items()}
write({"paths": paths, "digests": digests, "modes": modes, "env": given("COMPUTALOT_ARTIFACT_")})`
  const sha256 = (bytes: string | Buffer): string => createHash("sha256").update(bytes).digest("hex")

  test("AW-003, AW-005, AW-006: an artifact is a read-only file that payload and environment name", async () => {
    const bytes = randomBytes(3_000_000)
    const [data, empty, packed] = [
      await upload(bytes, "train set.parquet"),
      await upload("", "none"),
      await upload("zip", "a.tar.gz"),
    ]
    const task = await run(LOOK, { payload: { _artifacts: { download: { "my-data": data, empty, packed } } } })
    const result = task["result"] as { paths: Json; digests: Json; modes: Json; env: Json }
    expect(result.digests, JSON.stringify(task)).toEqual({
      "my-data": sha256(bytes),
      empty: sha256(""),
      packed: sha256("zip"),
    })
    expect(Object.values(result.modes)).toEqual(["0o0", "0o0", "0o0"])
    expect(String(result.paths["my-data"])).toMatch(/\/train_set\.parquet$/)
    const { COMPUTALOT_ARTIFACT_DIR: own, ...named } = result.env
    expect(own).toBeTruthy()
    expect(named).toEqual({
      COMPUTALOT_ARTIFACT_MY_DATA: result.paths["my-data"],
      COMPUTALOT_ARTIFACT_EMPTY: result.paths["empty"],
      COMPUTALOT_ARTIFACT_empty: result.paths["empty"],
      COMPUTALOT_ARTIFACT_PACKED: result.paths["packed"],
      COMPUTALOT_ARTIFACT_packed: result.paths["packed"],
    })
  })

  test("AW-003: two tasks of one node fetch once, and another node fetches from it", { timeout: 120_000 }, async () => {
    const bytes = randomBytes(5_000_000)
    const id = await upload(bytes, "once.bin")
    const first = fleet.nodes[0]
    if (!first) throw new Error("there is a node")
    const request = doing(LOOK, {
      payload: { which: [1, 2, 3], _artifacts: { download: { d: id } } },
      fan_out: { by: "which" },
    })
    const ended = async (): Promise<void> => {
      const of = await client.submit(request)
      expect(await client.ended(of)).toMatchObject({ status: "completed" })
      for (const { result } of await client.tasks(of)) expect(result).toMatchObject({ digests: { d: sha256(bytes) } })
    }
    await ended()
    expect(fetchesOn(first).filter(({ blob }) => blob === sha256(bytes))).toMatchObject([{ from_origin: 5_000_000 }])
    const second = await fleet.addNode()
    await fleet.admin("PUT", `/api/v1/admin/nodes/${first.id}`, { state: "draining" })
    await ended()
    await fleet.admin("PUT", `/api/v1/admin/nodes/${first.id}`, { state: "active" })
    expect(fetchesOn(second).filter(({ blob }) => blob === sha256(bytes))).toMatchObject([
      { from_peers: 5_000_000, from_origin: 0 },
    ])
    await second.end("SIGTERM")
  })

  test("AR-019, rulings: an unknown artifact and another account's are 404 at submit, and nothing is made", async () => {
    const stranger = await fleet.member()
    const theirs = await upload("theirs", "theirs.bin", stranger)
    const before = (await client.call("GET", "/api/v1/jobs?limit=1")).json["total"]
    for (const id of [theirs, "art_unknown"]) {
      const body = { type: "structured_runner", ...doing(LOOK, { payload: { _artifacts: { download: { d: id } } } }) }
      const reply = await client.call("POST", "/api/v1/jobs", body)
      expect([reply.status, reply.json["code"]]).toEqual([404, "not_found"])
      expect(reply.text).toContain(id)
    }
    expect((await client.call("GET", "/api/v1/jobs?limit=1")).json["total"]).toBe(before)
  })

  test("rulings: an artifact that is gone by then fails the task as artifact_unavailable, without a retry or a bill", async () => {
    const [going, staying] = [await upload("going", "going.bin"), await upload("staying", "staying.bin")]
    const blocker = await client.submit(doing(`wait_for("unblock")`, { requirements: { cpu: 4, memory_mb: 128 } }))
    await client.until(blocker, ({ status }) => status === "running")
    const id = await client.submit(
      doing(LOOK, { payload: { _artifacts: { download: { staying, going } } }, max_retries: 2 }),
    )
    expect((await client.call("DELETE", `/api/v1/artifacts/${going}`)).status).toBe(200)
    world.go("unblock")
    expect(await client.ended(id)).toMatchObject({ status: "failed" })
    const [task] = await client.tasks(id)
    expect(task).toMatchObject({ failure_kind: "artifact_unavailable", attempt: 1, max_attempts: 3 })
    expect(String(task?.["error"])).toContain(going)
    expect(await billedUsd(id)).toBe(0)
    await fleet.expectAudit()
  })
})

describe("files that are handed on", () => {
  const MAKE = `
keep("model.pt", "the model")
keep("logs/run 1.txt", "a log")
keep("rest/other.bin", "the rest")
write({"ok": True})`

  test("AW-001, AW-002, AW-009, C-23: declared files are artifacts of their own, the others one archive", async () => {
    const task = await run(MAKE, {
      payload: {
        _artifacts: {
          upload: {
            model: "model.pt",
            "the log": { path: "logs/run 1.txt", filename: "run.log", content_type: "text/plain" },
          },
        },
      },
    })
    const named = task["artifacts"] as Record<string, string>
    expect(Object.keys(named), JSON.stringify(task)).toEqual(["model", "the log"])
    const ids = task["artifact_ids"] as string[]
    expect(ids).toHaveLength(3)
    expect(ids).toEqual(expect.arrayContaining(Object.values(named)))
    expect((await client.call("GET", `/api/v1/artifacts/${named["model"]}`)).text).toBe("the model")
    const meta = (await client.call("GET", `/api/v1/artifacts/${named["model"]}/meta`)).json
    expect(meta).toMatchObject({ name: "model", filename: "model.pt", task_id: task["task_id"], source: "local" })
    const log = (await client.call("GET", `/api/v1/artifacts/${named["the log"]}/meta`)).json
    expect(log).toMatchObject({ name: "the log", filename: "run.log", content_type: "text/plain" })
    const archive = ids.find((id) => !Object.values(named).includes(id))
    const archiveMeta = (await client.call("GET", `/api/v1/artifacts/${archive}/meta`)).json
    expect(archiveMeta).toMatchObject({ name: null, filename: "artifacts.tar.gz" })
    const bytes = await fetch(`${fleet.origin}/api/v1/artifacts/${archive}`, {
      headers: { authorization: `Bearer ${client.token}` },
    })
    const file = join(marks, "archive.tar.gz")
    writeFileSync(file, Buffer.from(await bytes.arrayBuffer()))
    const listed = execFileSync("tar", ["-tzf", file], { encoding: "utf8" }).split("\n")
    expect(listed).toContain("rest/other.bin")
    expect(listed).not.toContain("model.pt")
    expect(listed.join()).not.toContain("run 1.txt")
    // The result rows name them too.
    const results = (await client.call("GET", `/api/v1/results?limit=1&include_tasks=true`)).get("results", 0) as Json
    expect(results["artifact_ids"]).toHaveLength(3)
  })

  test("GAP-54, rulings: a declared file that is not there, or leads out, is a warning, and the job completes", async () => {
    const id = await client.submit(
      doing(
        `
keep("there.txt", "x")
os.symlink("/etc/passwd", os.path.join(artifacts, "out"))
os.mkdir(os.path.join(artifacts, "folder"))
write({"ok": True})`,
        {
          payload: { _artifacts: { upload: { there: "there.txt", missing: "no.txt", out: "out", folder: "folder" } } },
        },
      ),
    )
    expect(await client.ended(id)).toMatchObject({ status: "completed" })
    const [task] = await client.tasks(id)
    expect(Object.keys(task?.["artifacts"] as Json)).toEqual(["there"])
    const warnings = task?.["result_warnings"] as string[]
    expect(warnings).toHaveLength(3)
    expect(warnings.map((warning) => warning.split(":")[0])).toEqual([
      "artifact missing",
      "artifact out",
      "artifact folder",
    ])
    expect(task).toMatchObject({ result_quality: 1, result: { ok: true } })
    expect(warnings.join()).not.toContain(fleet.folder)
  })

  test("AW-002, GAP-54: an upload to elsewhere is not available yet, and a path outside is 422", async () => {
    const ask = async (entry: unknown): Promise<Json> => {
      const body = doing(MAKE, { payload: { _artifacts: { upload: { m: entry } } } })
      const reply = await client.call("POST", "/api/v1/jobs", { type: "structured_runner", ...body })
      expect(reply.status).toBe(422)
      return reply.json
    }
    const elsewhere = await ask({ path: "model.pt", url: "https://s3.example.com/model.pt" })
    expect(elsewhere).toMatchObject({ code: "not_available_yet" })
    expect(String(elsewhere["error"])).toContain("not available yet: payload._artifacts.upload.m.url")
    for (const path of ["/etc/passwd", "../x", "a/../../x"])
      expect(await ask(path)).toMatchObject({ code: "invalid_request" })
  })

  test(
    "AW-002: a failed task hands nothing on, and an agent that was killed meanwhile does",
    { timeout: 120_000 },
    async () => {
      const upload = { payload: { _artifacts: { upload: { model: "model.pt" } } } }
      const failed = await run(`keep("model.pt", "x")\nsys.exit(3)`, upload)
      expect(failed).toMatchObject({ failure_kind: "exit_code", artifacts: {}, artifact_ids: [] })
      const id = await client.submit(
        doing(
          `
keep("model.pt", "kept")
open(os.path.join(marks, "kept"), "w").close()
wait_for("go-on")
write({"ok": True})`,
          upload,
        ),
      )
      await expect.poll(() => exists("kept"), { timeout: 30_000 }).toBe(true)
      const node = fleet.nodes[0]
      await node?.end("SIGKILL")
      await node?.start()
      world.go("go-on")
      expect(await client.ended(id)).toMatchObject({ status: "completed" })
      const [task] = await client.tasks(id)
      const named = task?.["artifacts"] as Record<string, string>
      expect((await client.call("GET", `/api/v1/artifacts/${named["model"]}`)).text).toBe("kept")
    },
  )

  test("AW-008, AW-009: a spilled result is an artifact of the program's own text, beside the declared ones", async () => {
    const task = await run(`keep("m", "m")\nwrite({"pad": "z" * 400000, "n": 1.50})`, {
      payload: { _artifacts: { upload: { m: "m" } } },
      state: { publish: { spilled: { path: "results.0.n" } } },
    })
    const { result_artifact_id: id } = task["result"] as { result_artifact_id: string }
    expect(task["result"]).toEqual({ result_spilled: true, result_artifact_id: id, result_filename: "result.json" })
    expect(task["result_artifact_id"]).toBe(id)
    expect(task["artifact_ids"]).toContain(id)
    expect(task["artifacts"]).toEqual({ m: expect.stringMatching(/^art_/) as unknown })
    const text = (await client.call("GET", `/api/v1/artifacts/${id}`)).text
    expect(text).toBe(`{"pad": "${"z".repeat(400_000)}", "n": 1.5}`)
    expect(await valueOf("spilled")).toBe(1.5)
  })
})

function exists(name: string): boolean {
  try {
    readFileSync(join(marks, name))
    return true
  } catch {
    return false
  }
}
