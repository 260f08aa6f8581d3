import { execFileSync } from "node:child_process"
import { createHash } from "node:crypto"
import { existsSync, readFileSync, writeFileSync } from "node:fs"
import { hostname } from "node:os"
import { join } from "node:path"
import { afterAll, beforeAll, describe, expect, test } from "vitest"
import { present } from "../../protocol/base/assert.ts"
import { readSse } from "../../protocol/client/sse.ts"
import type { Client, Fleet, Json } from "../support/fleet.ts"
import { doing, runPy, startMarkedFleet, type MarkedFleet } from "../support/marked-fleet.ts"

/** Whole jobs, from the request to the last row of the ledger, on one node of four cores with the process runtime. */

/** Does what its payload says. Files in MARKS, which the test can see, tell attempts apart and let a task wait. */
const RUN_PY = runPy(`import signal, subprocess
def attempts(name):
    with open(os.path.join(marks, name), "a") as file:
        file.write("x")
    return os.path.getsize(os.path.join(marks, name))`)

let world: MarkedFleet
let fleet: Fleet
let client: Client
let marks: string
beforeAll(async () => {
  world = await startMarkedFleet({ project: "run", files: { "run.py": RUN_PY } })
  ;({ fleet, client, marks } = world)
})
afterAll(() => world[Symbol.asyncDispose]())

const run = async (program: string, more: Json = {}): Promise<Json> =>
  client.ended(await client.submit(doing(program, more)))
const marked = (name: string): string => readFileSync(join(marks, name), "utf8")
const summaryOf = (of: Json): Json => of["summary"] as Json
const micros = (usd: unknown): number => Math.round(Number(usd) * 1e6)

describe("ends and attempts", () => {
  test("J-007, GAP-45: a task over its time is killed with all it started; so is one by a signal", async () => {
    const program = `
if payload["how"] == "slow":
    child = subprocess.Popen(["sleep", "61.25"])
    open(os.path.join(marks, "slow-pid"), "w").write(f"{os.getpid()} {child.pid}")
    time.sleep(60)
os.kill(os.getpid(), signal.SIGKILL)`
    const id = await client.submit(
      doing(program, { fan_out: { by: "how" }, payload: { how: ["slow", "killed"] }, timeout_s: 1 }),
    )
    expect(await client.ended(id)).toMatchObject({ status: "failed", task_counts: { failed: 2 } })
    const [slow, killed] = await client.tasks(id)
    expect(slow).toMatchObject({ status: "failed", failure_kind: "timeout", result: { failure_kind: "timeout" } })
    expect(Number(slow?.["runtime_s"])).toBeLessThan(10)
    expect(killed).toMatchObject({ status: "failed", failure_kind: "signal" })
    for (const pid of marked("slow-pid").split(" ")) await expect.poll(() => existsSync(`/proc/${pid}`)).toBe(false)
    // B-018: its whole timeout is used, and it costs no more than was held.
    const hold = summaryOf(await client.ended(id))["billing_hold"] as Json
    const holds = (await client.call("GET", "/api/v1/account/holds")).json["holds"] as Json[]
    const settled = holds.find(({ job_id: of }) => of === id)
    expect(settled).toMatchObject({ status: "settled", amount_usd: hold["amount_usd"] })
    expect(micros(settled?.["settled_amount_usd"])).toBeGreaterThan(0)
    expect(micros(settled?.["settled_amount_usd"])).toBeLessThanOrEqual(micros(hold["amount_usd"]))
  })

  test("J-009, L-004: a task that fails twice completes with max_retries 2 and fails with 1", async () => {
    const program = `
tries = attempts(payload["name"])
if tries < 3: sys.exit(1)
write({"tries": tries})`
    const [enough, tooFew] = await Promise.all([
      client.submit(doing(program, { payload: { name: "enough" }, max_retries: 2 })),
      client.submit(doing(program, { payload: { name: "too-few" }, max_retries: 1 })),
    ])
    expect(await client.ended(enough)).toMatchObject({ status: "completed" })
    expect(await client.tasks(enough)).toMatchObject([
      { attempt: 3, max_attempts: 3, result: { tries: 3 }, error: null },
    ])
    expect(await client.ended(tooFew)).toMatchObject({ status: "failed" })
    expect(await client.tasks(tooFew)).toMatchObject([{ attempt: 2, max_attempts: 2, failure_kind: "exit_code" }])
    expect([marked("enough"), marked("too-few")]).toEqual(["xxx", "xx"])
    const events = (await client.call("GET", `/api/v1/jobs/${enough}/events?limit=200`)).json["events"] as Json[]
    const types = events.map(({ type }) => type)
    expect(types.filter((type) => type === "task.retried")).toHaveLength(2)
    expect(types.filter((type) => String(type).startsWith("job."))).toEqual([
      "job.planning",
      "job.queued",
      "job.running",
      "job.completed",
    ])
  })

  test("J-032, J-037, L-011: what a failed attempt printed stays until the next one prints", async () => {
    const id = await client.submit(
      doing(
        `
if attempts("kept") == 1:
    print("first A", flush=True)
    sys.exit(4)
wait_for("kept-print")
print("then B", flush=True)
wait_for("kept-end")`,
        { max_retries: 1 },
      ),
    )
    const second = async (): Promise<boolean> =>
      (await client.tasks(id)).every(({ attempt, status }) => attempt === 2 && status === "running")
    await expect.poll(second).toBe(true)
    const output = async (): Promise<Json> => (await client.call("GET", `/api/v1/jobs/${id}/output`)).json
    expect((await output())["output"]).toBe("first A\n")
    expect(await client.tasks(id)).toMatchObject([
      { output: "first A\n", error: expect.stringContaining("exit_code_4") as unknown },
    ])
    world.go("kept-print")
    await expect.poll(async () => (await output())["output"]).toBe("then B\n")
    expect(await client.tasks(id)).toMatchObject([{ live_feedback: { output_tail: "then B\n" } }])
    world.go("kept-end")
    expect(await client.ended(id)).toMatchObject({ status: "completed", output: "then B\n" })
  })

  test("J-035, RP-009: of a megabyte the last 10 KB stay, and the error is its last 1000 characters", async () => {
    const failed = await run(`
for line in range(20000): print("x" * 50)
sys.stdout.flush()
raise ValueError("the very last line")`)
    expect(failed["status"]).toBe("failed")
    const [task] = await client.tasks(String(failed["id"]))
    expect(Buffer.byteLength(String(task?.["output"]))).toBeLessThanOrEqual(10_240)
    expect(Buffer.byteLength(String(task?.["output"]))).toBeGreaterThan(9_000)
    expect(String(task?.["error"]).length).toBeLessThanOrEqual(1_000)
    expect(String(task?.["error"]).trimEnd()).toMatch(/^exit_code_1: [^]*ValueError: the very last line$/)
  })

  test("J-036, J-046, RP-006: how a failed task ended stands in its record", async () => {
    const id = await client.submit(
      doing(`print("before"); write({"half": 1}); sys.exit(payload["code"])`, {
        fan_out: { by: "code" },
        payload: { code: [3, 1, 137, 0] },
      }),
    )
    const ended = await client.ended(id)
    expect(ended).toMatchObject({ status: "partial", task_counts: { completed: 1, failed: 3 } })
    expect(ended["error"]).toContain("3 of 4 tasks failed; first: exit_code_3")
    const [three, one, large, none] = await client.tasks(id)
    expect(three).toMatchObject({
      failure_kind: "exit_code",
      result_present: false,
      result: {
        failure_kind: "exit_code",
        exit_code: 3,
        command: ["python3", "run.py"],
        cwd: "/workspace",
        combined_output: "before\n",
        partial_result: { half: 1 },
      },
    })
    expect(one?.["error"]).toContain("exit_code_1")
    expect(large).toMatchObject({ status: "failed", result: { exit_code: 137 } })
    expect(none).toMatchObject({ status: "completed", result: { half: 1 } })
  })

  test("GAP-45: no result, an unreadable one and one that is no object", async () => {
    const id = await client.submit(
      doing(
        `
if payload["how"] == "unreadable": open(os.environ["COMPUTALOT_TASK_RESULT"], "w").write("{nothing")
if payload["how"] == "list": write([1, "zwei", None])`,
        { fan_out: { by: "how" }, payload: { how: ["none", "unreadable", "list"] } },
      ),
    )
    expect(await client.ended(id)).toMatchObject({ status: "partial", summary: { quality: { suspect_count: 1 } } })
    const [none, unreadable, list] = await client.tasks(id)
    expect(none).toMatchObject({ status: "completed", result: null, result_present: false, result_quality: 0.5 })
    expect(none?.["result_warnings"]).toHaveLength(1)
    expect(unreadable).toMatchObject({ status: "completed", result: null, result_quality: 0 })
    expect(list).toMatchObject({ status: "completed", result: [1, "zwei", null], result_present: true })
  })

  test("L-002, L-003, L-010: how three tasks end decides how their job ends", async () => {
    const program = `sys.exit(payload["code"])`
    const mix = (codes: number[], more: Json = {}): Promise<string> =>
      client.submit(doing(`write({})\n${program}`, { fan_out: { by: "code" }, payload: { code: codes }, ...more }))
    const ids = await Promise.all([
      mix([0, 0, 0]),
      mix([0, 2, 0]),
      mix([2, 2, 2]),
      mix([0, 2, 0], { reliability_mode: "strict_complete" }),
    ])
    const statuses = await Promise.all(ids.map(async (id) => (await client.ended(id))["status"]))
    expect(statuses).toEqual(["completed", "partial", "failed", "failed"])
  })

  test("Q-004, Q-006, Q-007, C-25: a result without its required field makes the job partial, and is kept", async () => {
    const schema = { required_fields: ["score"], field_ranges: { score: [0, 1] } }
    const id = await client.submit(
      doing(`write(payload["gives"])`, {
        fan_out: { by: "gives" },
        payload: { gives: [{ score: 0.5 }, { other: 1 }] },
        result_schema: schema,
        max_retries: 3,
      }),
    )
    const ended = await client.ended(id)
    const [good, suspect] = await client.tasks(id)
    expect(ended).toMatchObject({
      status: "partial",
      summary: { quality: { suspect_count: 1, suspect_task_ids: [suspect?.["task_id"]] } },
    })
    expect(good).toMatchObject({ result_quality: 1, result_warnings: [] })
    expect(suspect).toMatchObject({ status: "completed", attempt: 1, result: { other: 1 } })
    expect(Number(suspect?.["result_quality"])).toBeLessThan(0.5)
  })
})

describe("fan-out and its merging", () => {
  test("SR-009, SR-010, SR-011, SR-014, GAP-35: batches get sub-lists, and keyed results come back by item", async () => {
    const models = ["model-a", "model-b", "model-c", "model-d"]
    const program = `write([m.upper() for m in payload["models"]])`
    const more = { payload: { models, config: { n: 1 } }, merge_strategy: "keyed" }
    const [packed, alias] = await Promise.all([
      client.submit(doing(program, { ...more, fan_out: { by: "models", batch_size: 2 } })),
      client.submit(doing(program, { ...more, fan_out: { by: "models", batch_per_task: 2 } })),
    ])
    for (const id of [packed, alias]) {
      expect(await client.ended(id)).toMatchObject({ status: "completed" })
      const payloads = (await client.tasks(id)).map(({ payload }) => payload)
      expect(payloads).toMatchObject([
        { models: ["model-a", "model-b"], config: { n: 1 }, _batch: { index: 0, count: 2, size: 2 } },
        { models: ["model-c", "model-d"], config: { n: 1 }, _batch: { index: 1, count: 2, size: 2 } },
      ])
      const results = await client.results(id)
      expect(results["aggregate_result"]).toEqual(
        Object.fromEntries(models.map((model) => [model, model.toUpperCase()])),
      )
    }
  })

  test("SR-008, SR-015, SR-016: a weighted average over chunks, with its alias and its coverage", async () => {
    const id = await client.submit(
      doing(`write({"edge": payload["start"] / 7, "n": payload["count"]})`, {
        fan_out: { chunks: 3, total: 10 },
        merge_strategy: "weighted_avg",
        value_field: "edge",
        weight_field: "n",
      }),
    )
    const ended = await client.ended(id)
    const payloads = (await client.tasks(id)).map(({ payload }) => payload as Json)
    expect(payloads.map(({ start, count }) => [start, count])).toEqual([
      [0, 4],
      [4, 3],
      [7, 3],
    ])
    expect(payloads[1]).toMatchObject({ chunk_index: 1, chunk_count: 3, seed_range: { start: 4, count: 3, end: 7 } })
    const mean = (3 * (4 / 7) + 3 * 1) / 10
    expect(summaryOf(ended)["avg_edge"]).toBeCloseTo(mean, 9)
    expect((await client.results(id))["completeness"]).toMatchObject({
      weight_field: "n",
      expected_weight: 10,
      completed_weight: 10,
      pending_weight: 0,
    })
    const refused = await client.call("POST", "/api/v1/jobs", {
      type: "structured_runner",
      ...doing("pass", { fan_out: { chunks: 3, total: 10 }, merge_strategy: "weighted_avg", value_field: "edge" }),
    })
    expect(refused.status).toBe(422)
  })

  test("SR-007: items are laid over the payload", async () => {
    const id = await client.submit(
      doing(`write(payload)`, { payload: { kept: 1, over: 1 }, fan_out: { items: [{ over: 2 }, { more: 3 }] } }),
    )
    await client.ended(id)
    expect((await client.results(id))["aggregate_result"]).toMatchObject([
      { kept: 1, over: 2 },
      { kept: 1, over: 1, more: 3 },
    ])
  })

  test("MR-002, MR-004, MR-005: explicit ranges and every operator", async () => {
    const program = `
at = payload["seed_start"]
write({"a": at, "b": at, "c": at, "d": at, "e": at, "w": payload["seed_count"], "f": [at], "g": at, "h": {"at": at}})`
    const reduce = {
      a: "sum",
      b: "mean",
      c: "max",
      d: "min",
      e: "weighted_avg:w",
      f: "concat",
      g: "count",
      h: "collect",
    }
    const id = await client.submit(
      doing(program, {
        type: "map_reduce",
        split: {
          field: "seed",
          ranges: [
            { start: 10, count: 1 },
            { start: 40, count: 3 },
            { start: 20, count: 1 },
          ],
        },
        reduce,
      }),
    )
    const ended = await client.ended(id)
    expect(ended["status"]).toBe("completed")
    expect(summaryOf(ended)["reduced"]).toEqual({
      a: 70,
      b: 70 / 3,
      c: 40,
      d: 10,
      e: 30,
      f: [10, 40, 20],
      g: 3,
      h: [{ at: 10 }, { at: 40 }, { at: 20 }],
    })
    const payloads = (await client.tasks(id)).map(({ payload }) => payload)
    expect(payloads).toMatchObject([
      { seed_start: 10, seed_count: 1 },
      { seed_start: 40, seed_count: 3 },
      { seed_start: 20, seed_count: 1 },
    ])
  })
})

describe("what the program finds and leaves", () => {
  test("RP-002–RP-005, RP-012, AW-001, B-023: payload, result, folders, and the archive of what it left", async () => {
    const ended = await run(
      `
env = os.environ
print(os.getcwd())
open(os.path.join(env["COMPUTALOT_ARTIFACT_DIR"], "one.txt"), "w").write("eins")
os.makedirs(os.path.join(env["COMPUTALOT_ARTIFACT_DIR"], "deep"))
open(os.path.join(env["COMPUTALOT_ARTIFACT_DIR"], "deep", "two.bin"), "wb").write(bytes(range(256)))
open(os.path.join(env["COMPUTALOT_TASK_SCRATCH_DIR"], "scratch"), "w").write("s")
import tempfile
tempfile.NamedTemporaryFile().write(b"t")
write({"payload": payload, "cwd": os.listdir("."), "ünïcode": ["\\u00e9", {"deep": [None, True, 1.5]}]})`,
      { payload: { nested: { list: [1, "zwei", null], text: "ß\n" } } },
    )
    expect(ended["status"]).toBe("completed")
    const id = String(ended["id"])
    expect(ended["output"]).toBe("/workspace\n")
    const results = await client.results(id)
    const [row] = results["results"] as Json[]
    const result = row?.["result"] as Json
    expect(result["payload"]).toEqual((ended["request"] as Json)["payload"])
    expect(result["ünïcode"]).toEqual(["é", { deep: [null, true, 1.5] }])
    expect(result["cwd"]).toContain("run.py")
    const artifacts = row?.["artifact_ids"] as string[]
    expect(artifacts).toHaveLength(1)
    expect(results["artifact_ids"]).toEqual(artifacts)
    const before = await client.balance()
    const archive = await fetchBytes(`/api/v1/artifacts/${String(artifacts[0])}`)
    writeFileSync(join(marks, "artifact.tar.gz"), archive)
    const listed = execFileSync("tar", ["tzf", "artifact.tar.gz"], { cwd: marks, encoding: "utf8" })
    const files = listed.split("\n").map((name) => name.replace(/^\.\//, ""))
    expect(files.filter((name) => name !== "" && !name.endsWith("/")).sort()).toEqual(["deep/two.bin", "one.txt"])
    execFileSync("tar", ["xzf", "artifact.tar.gz"], { cwd: marks })
    expect(readFileSync(join(marks, "one.txt"), "utf8")).toBe("eins")
    expect(readFileSync(join(marks, "deep", "two.bin"))).toHaveLength(256)
    expect(await client.balance()).toEqual(before)
  })

  test("RP-007, RP-008, ST-002, ST-008: progress and output are seen while the task runs", async () => {
    const id = await client.submit(
      doing(`
print("an ordinary line", flush=True)
wait_for("progress-1")
for percent in (10, 20, 30):
    print("COMPUTALOT_PROGRESS:" + json.dumps({"percent": percent, "note": "n"}), flush=True)
print("COMPUTALOT_PROGRESS:{not json", flush=True)
wait_for("progress-2")`),
    )
    const seen = { tails: new Set<string>(), percents: new Set<unknown>() }
    const response = await fetch(`${fleet.origin}/api/v1/jobs/${id}/stream`, {
      headers: { authorization: `Bearer ${client.token}` },
    })
    for await (const { event, data } of readSse(present(response.body, "a body"))) {
      fleet.replies.push({ request: `stream ${id}`, text: data })
      const frame = JSON.parse(data) as Json
      const rows = event === "task" ? [frame["task"] as Json] : event === "snapshot" ? (frame["tasks"] as Json[]) : []
      for (const row of rows) {
        const tail = (row["live_feedback"] as { output_tail: string } | null)?.output_tail ?? ""
        seen.tails.add(tail)
        if (tail.includes("an ordinary line")) world.go("progress-1")
        const percent = (row["latest_progress"] as Json | null)?.["percent"]
        seen.percents.add(percent)
        if (percent === 30 && !existsSync(join(marks, "progress-2"))) {
          expect(await client.until(id, ({ progress }) => progress === 30)).toMatchObject({ status: "running" })
          world.go("progress-2")
        }
      }
    }
    expect(seen.tails).toContain("an ordinary line\n")
    expect(seen.percents).toContain(30)
    const [task] = await client.tasks(id)
    expect(task).toMatchObject({ status: "completed", latest_progress: { percent: 30, note: "n" } })
    // GAP-46: lines that are progress are no output; the one that is no JSON stays.
    expect(task?.["output"]).toBe("an ordinary line\nCOMPUTALOT_PROGRESS:{not json\n")
  })

  test("M-009, M-010, M-011, RP-010: environment layers, the platform's own names, and .venv/bin", async () => {
    const files = {
      "run.py": RUN_PY,
      ".computalot.env":
        "V1=dot-computalot\nV2=dot-computalot\nV3=dot-computalot\nV4=dot-computalot\nV5=dot-computalot\n",
      "computalot.env": "export V2='computalot'\nV3=computalot\nV4=computalot\nV5=computalot\n",
      ".env": 'V3="dot"\nV4=dot\nV5=dot\nCOMPUTALOT_TASK_RESULT=/nowhere\n',
      ".venv/bin/python": '#!/bin/sh\nVENV=yes exec python3 "$@"\n',
    }
    await client.project("layers", files, { env: { V4: "project", V5: "project", COMPUTALOT_TASK_RESULT: "/nowhere" } })
    const names = `write({**{name: os.environ.get(name) for name in ("V1", "V2", "V3", "V4", "V5", "VENV")}, "first": os.environ["PATH"].split(":")[0][-9:]})`
    const ended = await run(names, {
      project: "layers",
      runner_command: ["python", "run.py"],
      meta: { env: { V5: "job" } },
    })
    expect(ended["status"], JSON.stringify(ended)).toBe("completed")
    const [task] = await client.tasks(String(ended["id"]))
    expect(task?.["result"]).toEqual({
      V1: "dot-computalot",
      V2: "computalot",
      V3: "dot",
      V4: "project",
      V5: "job",
      VENV: "yes",
      first: ".venv/bin",
    })
  })

  test("GAP-32, AW-008, AW-009: a large payload arrives, a large result comes back, a larger one as an artifact", async () => {
    const id = await client.submit(
      doing(`write({"read": len(payload["text"]), "text": "y" * payload["size"]})`, {
        payload: { text: "x".repeat(150_000) },
        fan_out: { items: [{ size: 100_000 }, { size: 600_000 }] },
      }),
    )
    expect(await client.ended(id)).toMatchObject({ status: "completed" })
    const [inline, spilled] = await client.tasks(id)
    expect(inline).toMatchObject({ result: { read: 150_000, text: "y".repeat(100_000) } })
    expect(spilled).toMatchObject({ result: { result_spilled: true }, result_present: true })
    const artifact = String((spilled as unknown as Spilled).result.result_artifact_id)
    expect(spilled?.["artifact_ids"]).toContain(artifact)
    const text = (await fetchBytes(`/api/v1/artifacts/${artifact}`)).toString("utf8")
    expect(createHash("sha256").update(text).digest("hex")).toBe(
      createHash("sha256")
        .update(
          JSON.stringify({ read: 150_000, text: "y".repeat(600_000) })
            .replaceAll('":', '": ')
            .replaceAll(',"', ', "'),
        )
        .digest("hex"),
    )
  })

  test("an allowed command that the machine does not have fails without a retry and costs nothing", async () => {
    const id = await client.submit({ project: "run", runner_command: ["Rscript", "x.R"], max_retries: 3 })
    expect(await client.ended(id)).toMatchObject({ status: "failed" })
    const [task] = await client.tasks(id)
    expect(task).toMatchObject({
      failure_kind: "preparation_failed",
      error: expect.stringContaining("Rscript") as unknown,
    })
    const holds = (await client.call("GET", "/api/v1/account/holds")).json["holds"] as Json[]
    expect(holds.find(({ job_id: of }) => of === id)).toMatchObject({ status: "released", settled_amount_usd: 0 })
  })
})

describe("money while a job runs", () => {
  test("B-015, B-021, RS-006, RS-007: hold and results in the middle, and two revisions side by side", async () => {
    const before = await client.balance()
    const id = await client.submit(
      doing(
        `wait_for("revision-" + payload["of"])\nwrite({"v": open("version").read() if os.path.exists("version") else "one"})`,
        { fan_out: { by: "of" }, payload: { of: ["a", "b"] } },
      ),
    )
    const submitted = await client.until(id, ({ task_counts: counts }) => (counts as Json)["running"] === 2)
    const { billing_estimate: estimate, billing_hold: hold } = summaryOf(submitted) as {
      billing_estimate: Json
      billing_hold: Json
    }
    expect(hold["amount_usd"]).toBe(estimate["estimated_hold_usd"])
    expect(micros((await client.balance())["held_usd"]) - micros(before["held_usd"])).toBe(micros(hold["amount_usd"]))
    await fleet.expectAudit()
    expect((await client.push("run", { "run.py": RUN_PY, version: "two" })).status).toBe(200)
    const later = await client.submit(doing(`write({"v": open("version").read()})`))
    world.go("revision-a")
    await client.until(id, ({ task_counts: counts }) => (counts as Json)["completed"] === 1)
    const half = await client.results(id)
    expect(half).toMatchObject({
      status: "running",
      total: 1,
      results: [{ status: "completed", result: { v: "one" } }],
    })
    await fleet.expectAudit()
    world.go("revision-b")
    const [first, second] = [await client.ended(id), await client.ended(later)]
    expect([first["status"], second["status"]]).toEqual(["completed", "completed"])
    expect(first["project_content_hash"]).not.toBe(second["project_content_hash"])
    const hashes = ((await client.results(id))["results"] as Json[]).map(({ project_content_hash: hash }) => hash)
    expect(hashes).toEqual([first["project_content_hash"], first["project_content_hash"]])
    expect((await client.tasks(id)).map(({ result }) => result)).toEqual([{ v: "one" }, { v: "one" }])
    expect((await client.tasks(later)).map(({ result }) => result)).toEqual([{ v: "two" }])
    expect(await client.balance()).toMatchObject({ held_usd: before["held_usd"] })
    const entries = (await client.call("GET", "/api/v1/account/ledger")).json["entries"] as Json[]
    expect(entries.filter(({ job_id: of }) => of === id)).toHaveLength(1)
  })

  test("B-016, B-017, B-024: the estimate follows tasks, time and hint; short money creates nothing, the gap admits", async () => {
    const poor = await fleet.member(0)
    await poor.project("run", { "run.py": RUN_PY })
    const asked = async (more: Json): Promise<Json> => {
      const reply = await poor.call("POST", "/api/v1/jobs", { type: "structured_runner", ...doing("write({})", more) })
      expect(reply.status, reply.text).toBe(402)
      return reply.json["details"] as Json
    }
    const items = (count: number): Json => ({ fan_out: { items: Array.from({ length: count }, () => ({})) } })
    const one = micros((await asked({ ...items(10), timeout_s: 600 }))["required_usd"])
    expect(micros((await asked({ ...items(20), timeout_s: 600 }))["required_usd"])).toBe(2 * one)
    expect(micros((await asked({ ...items(10), timeout_s: 1200 }))["required_usd"])).toBe(2 * one)
    expect(micros((await asked({ ...items(10), timeout_s: 600, runtime_hint_s: 100 }))["required_usd"])).toBeLessThan(
      one,
    )
    const body = { type: "structured_runner", ...doing("write({})", { ...items(2), timeout_s: 60 }) }
    const refused = await poor.call("POST", "/api/v1/jobs", body)
    expect([refused.status, refused.get("quote", "status"), refused.get("quote", "kind")]).toEqual([
      402,
      "open",
      "shortfall",
    ])
    expect((await poor.call("GET", "/api/v1/jobs")).json["total"]).toBe(0)
    expect(await poor.balance()).toMatchObject({ held_usd: 0 })
    const gap = Number(refused.get("quote", "amount_usd"))
    expect(gap).toBe(Number(refused.get("details", "shortfall_usd")))
    await fleet.admin("POST", `/api/v1/admin/accounts/${poor.account}/credits`, { amount_usd: gap })
    const admitted = await poor.call("POST", "/api/v1/jobs", body)
    expect(admitted.status, admitted.text).toBe(201)
    expect(await poor.ended(String(admitted.get("id")))).toMatchObject({ status: "completed" })
  })
})

describe("order", () => {
  test("SC-001: what no machine can hold waits and says why", async () => {
    const id = await client.submit(doing("pass", { requirements: { cpu: 16 } }))
    const waiting = await client.until(id, ({ queue_reason: reason }) => reason !== null)
    expect(waiting).toMatchObject({
      status: "queued",
      queue_reason: { code: "no_matching_capacity", eligible_slots: 0 },
    })
    expect(await client.tasks(id)).toMatchObject([
      { status: "queued", attempt: 0, queue_reason: { code: "no_matching_capacity" } },
    ])
    expect((await client.call("PUT", `/api/v1/jobs/${id}/cancel`)).status).toBe(200)
  })

  test("SC-004: on one slot high goes before normal, and normal before low", async () => {
    const whole = { cpu: 4 }
    const blocker = await client.submit(doing(`wait_for("order-go")`, { requirements: whole }))
    await client.until(blocker, ({ status }) => status === "running")
    const ids: Record<string, string> = {}
    for (const priority of ["low", "normal", "high"])
      ids[priority] = await client.submit(doing("write({})", { priority, requirements: whole }))
    const reason = await client.until(String(ids["low"]), ({ queue_reason: why }) => why !== null)
    expect(["capacity_busy", "held_by_priority"]).toContain((reason["queue_reason"] as Json)["code"])
    world.go("order-go")
    const started: string[] = []
    for (const id of Object.values(ids)) started.push(String((await client.ended(id))["started_at"]))
    expect(started.toSorted()).toEqual(started.toReversed())
  })

  test("SC-003: a small job behind a large one does not wait for its end", async () => {
    const large = await client.submit(
      doing("time.sleep(0.05)", { fan_out: { chunks: 60, total: 60 }, requirements: { cpu: 4 } }),
    )
    await client.until(large, ({ status }) => status === "running")
    const small = await client.submit(doing("write({})", { requirements: { cpu: 4 } }))
    expect(await client.ended(small)).toMatchObject({ status: "completed" })
    const now = await client.until(large, () => true)
    expect(now["status"]).toBe("running")
    expect((now["task_counts"] as Json)["completed"]).toBeLessThan(30)
    await client.call("PUT", `/api/v1/jobs/${large}/cancel`, { reason: "seen enough" })
    expect(await client.ended(large)).toMatchObject({ status: "cancelled", error: "seen enough" })
  })
})

test("X-001, X-003: no reply of all of this names a machine, a peer, a host path or an image digest", async () => {
  const nodes = (await fleet.admin("GET", "/api/v1/admin/nodes")).json["nodes"] as Json[]
  const secrets = [fleet.folder, "computalot-fleet", "sha256:", "peer_id", "current_node", "node_id"]
  for (const node of nodes) secrets.push(String(node["id"]), String(node["peer_id"]))
  // A name of a few letters stands in other words too.
  if (hostname().length > 5) secrets.push(hostname())
  const tells = (text: string): string[] => secrets.filter((secret) => text.includes(secret))
  const found = fleet.replies.flatMap(({ request, text }) =>
    tells(text).map((secret) => `${secret} in ${request}: ${text.slice(0, 300)}`),
  )
  expect(fleet.replies.length).toBeGreaterThan(100)
  expect(found).toEqual([])
  await fleet.expectAudit()
})

interface Spilled {
  result: { result_artifact_id: string }
}

async function fetchBytes(path: string): Promise<Buffer> {
  const response = await fetch(`${fleet.origin}${path}`, { headers: { authorization: `Bearer ${client.token}` } })
  expect(response.status).toBe(200)
  return Buffer.from(await response.arrayBuffer())
}
