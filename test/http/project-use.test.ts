import { mkdtempSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterAll, beforeAll, describe, expect, test } from "vitest"
import { PROJECT_FILES, startFleet, type Client, type Fleet, type Json } from "../support/fleet.ts"

/** What a project's owner does with it from the first push to the next, against one live node. */

const RUN = `import json, os, sys, time
payload = json.load(open(os.environ["COMPUTALOT_TASK_PAYLOAD"]))
if payload.get("fails"): sys.exit("it went wrong")
time.sleep(payload.get("sleep", 0))
json.dump({"host": os.environ.get("CLICKHOUSE_HOST"), "code": payload.get("code", "v1")}, open(os.environ["COMPUTALOT_TASK_RESULT"], "w"))
`

let fleet: Fleet
let client: Client
let marks: string
beforeAll(async () => {
  marks = mkdtempSync(join(tmpdir(), "computalot-use-"))
  fleet = await startFleet()
  client = await fleet.member(20)
})
afterAll(async () => {
  await fleet[Symbol.asyncDispose]()
  rmSync(marks, { recursive: true, force: true })
})

const job = (project: string, fields: Json = {}): Json => ({
  type: "structured_runner",
  project,
  runner_command: ["python3", "job.py"],
  ...fields,
})
const run = async (project: string, fields: Json = {}): Promise<Json> =>
  client.ended(await client.submit(job(project, fields)))
const on = (method: string, project: string, path: string, body?: unknown) =>
  client.call(method, `/api/v1/projects/${project}${path}`, body)
const statusOf = async (project: string): Promise<Json> => (await on("GET", project, "/status")).json

async function untilStatus(project: string, fits: Json): Promise<Json> {
  await expect.poll(() => statusOf(project), { timeout: 30_000 }).toMatchObject(fits)
  return await statusOf(project)
}
const manifestWith = (commands: Json[]): string =>
  JSON.stringify({
    ...(JSON.parse(PROJECT_FILES["computalot.project.json"] ?? "") as Json),
    validation: { commands },
  })
/** A manifest whose validation runs this Python once on each node. */
const validatedBy = (...programs: string[]): string =>
  manifestWith(programs.map((program) => ({ command: ["python3", "-c", program] })))

const STATUS_KEYS =
  "project project_ready can_accept_new_jobs ready_for_jobs init_state availability_status progress_phase pending_init content_hash status_message next_action last_ready_at ready_replicas initializing_replicas failed_replicas stale_replicas total_replicas queue_depth queued_tasks active_jobs active_tasks"
const OPTIONAL_KEYS = ["requested_state", "latest_issue", "latest_activity_at", "latest_failure_at"]

describe("from the first push on", () => {
  test("P-021, P-023, PR-007: before a push nothing is taken, after it a job runs without init", async () => {
    const made = await client.call("POST", "/api/v1/projects", { name: "fresh", remote_dir: "/root/fresh" })
    expect(made.status).toBe(201)
    expect(await statusOf("fresh")).toMatchObject({ init_state: "not_initialized", can_accept_new_jobs: false })
    const early = await client.call("POST", "/api/v1/jobs", job("fresh"))
    expect([early.status, early.get("code")]).toEqual([409, "no_revision"])
    const pushed = await client.push("fresh", { "job.py": RUN })
    expect([pushed.status, pushed.get("content_hash")]).toEqual([200, (await statusOf("fresh"))["content_hash"]])
    expect(await statusOf("fresh")).toMatchObject({ can_accept_new_jobs: true, ready_for_jobs: false })
    expect(await run("fresh")).toMatchObject({ status: "completed" })
  })

  test("P-030: the project's env reaches its tasks", async () => {
    await client.project("env", { "job.py": RUN }, { env: { CLICKHOUSE_HOST: "db.internal" } })
    expect(await run("env")).toMatchObject({ summary: { results: [{ host: "db.internal" }] } })
  })

  test("P-024, PR-008, PR-009, PR-012, GAP-14, A16, A17: init answers at once, and the status comes to ready", async () => {
    await client.project("warm", {
      "job.py": RUN,
      "computalot.project.json": validatedBy("import time; time.sleep(1)"),
    })
    const asked = await on("POST", "warm", "/init", {})
    expect(asked.json).toMatchObject({
      status: expect.any(String) as string,
      ready_for_jobs: false,
      status_message: expect.any(String) as string,
      init_status: { init_state: "initializing", pending_init: true, requested_state: "ready" },
    })
    // A17: no body at all, while the first is under way.
    expect((await on("POST", "warm", "/init")).status).toBe(200)
    const ready = await untilStatus("warm", { init_state: "ready", ready_for_jobs: true, can_accept_new_jobs: true })
    expect(ready).toMatchObject({ pending_init: false, ready_replicas: 1, total_replicas: 1 })
    expect(ready).not.toHaveProperty("requested_state")
    expect((await on("POST", "warm", "/init", {})).json).toMatchObject({ ready_for_jobs: true })
  })

  test("P-029, C-13, A18: a push alone is enough, and push, invalidate, init and a job go back to back", async () => {
    const ran = async (): Promise<unknown> => {
      const id = await client.submit(job("update"))
      expect(await client.ended(id)).toMatchObject({ status: "completed" })
      return (await client.tasks(id))[0]?.["result"]
    }
    await client.project("update", { "job.py": RUN })
    expect(await ran()).toMatchObject({ code: "v1" })
    await untilStatus("update", { init_state: "ready" })
    expect((await client.push("update", { "job.py": RUN.replace(`"v1"`, `"v2"`) })).status).toBe(200)
    expect(await ran()).toMatchObject({ code: "v2" })
    await untilStatus("update", { init_state: "ready" })
    expect((await client.push("update", { "job.py": RUN.replace(`"v1"`, `"v3"`) })).status).toBe(200)
    const stale = await on("POST", "update", "/invalidate")
    expect([stale.status, stale.get("ready_for_jobs"), stale.get("status")]).toEqual([200, false, expect.any(String)])
    expect((await on("POST", "update", "/init", {})).status).toBe(200)
    expect(await ran()).toMatchObject({ code: "v3" })
  })

  test("SC-008: a node prepares a revision once, for all its tasks and the next job", async () => {
    const mark = join(marks, "prepared")
    const counts = `open(${JSON.stringify(mark)}, "a").write("x")`
    await client.project("once", { "job.py": RUN, "computalot.project.json": validatedBy(counts) })
    expect(await run("once", { fan_out: { items: [{}, {}, {}, {}] } })).toMatchObject({ status: "completed" })
    expect(await run("once")).toMatchObject({ status: "completed" })
    expect(readFileSync(mark, "utf8")).toBe("x")
    expect(
      (await client.push("once", { "job.py": `${RUN}\n`, "computalot.project.json": validatedBy(counts) })).status,
    ).toBe(200)
    expect(await run("once")).toMatchObject({ status: "completed" })
    expect(readFileSync(mark, "utf8")).toBe("xx")
  })

  test("M-005, M-009: a check runs in its cwd, with the env files, the project's env and its own above them", async () => {
    const mark = join(marks, "checked")
    const check = `import os, json
seen = {name: os.environ.get(name) for name in ("FROM_FILE", "FROM_PROJECT", "OWN", "COMPUTALOT_MINE")}
json.dump({**seen, "cwd": os.listdir(".")}, open(${JSON.stringify(mark)}, "w"))`
    const own = { FROM_PROJECT: "by the check", OWN: "too", COMPUTALOT_MINE: "the platform's" }
    const manifest = manifestWith([{ command: ["python3", "-c", check], cwd: "sub", env: own }])
    const files = {
      "job.py": RUN,
      "sub/data.txt": "x",
      ".env": "FROM_FILE=file\n",
      "computalot.project.json": manifest,
    }
    await client.project("checked", files, { env: { FROM_PROJECT: "project" } })
    expect(await run("checked")).toMatchObject({ status: "completed" })
    expect(JSON.parse(readFileSync(mark, "utf8"))).toEqual({
      FROM_FILE: "file",
      FROM_PROJECT: "by the check",
      OWN: "too",
      COMPUTALOT_MINE: null,
      cwd: ["data.txt"],
    })
  })

  test("rulings, Manifest: a check's directory that is not there is told, at the push or at preparation", async () => {
    const outside = manifestWith([{ label: "imports", command: ["python3", "-c", "pass"], cwd: "/no/such/place" }])
    await client.project("nowhere", { "job.py": RUN, "computalot.project.json": outside })
    await on("POST", "nowhere", "/init", {})
    await untilStatus("nowhere", { init_state: "attention_required" })
    const details = await on("GET", "nowhere", "/status/details")
    expect(JSON.stringify(details.json)).toContain(
      "the directory /no/such/place, in which the check imports is to run, is missing",
    )
    const inside = manifestWith([{ command: ["python3", "-c", "pass"], cwd: "sub" }])
    const refused = await client.push("nowhere", { "job.py": RUN, "computalot.project.json": inside })
    expect([refused.status, JSON.stringify(refused.json)]).toEqual([
      422,
      expect.stringContaining("validation.commands[0].cwd") as string,
    ])
  })

  test("C-31: what preparing takes is no part of a task's time", async () => {
    await client.project("slow", {
      "job.py": RUN,
      "computalot.project.json": validatedBy("import time; time.sleep(3)"),
    })
    const id = await client.submit(job("slow", { timeout_s: 2 }))
    expect(await client.ended(id)).toMatchObject({ status: "completed" })
    expect(Number((await client.tasks(id))[0]?.["runtime_s"])).toBeLessThan(2)
  })
})

describe("status", () => {
  test("PR-001, PR-010, PR-011, PR-014, GAP-15: its fields, before, while and after it is used", async () => {
    const name = "fields"
    await client.call("POST", "/api/v1/projects", { name, remote_dir: "/root/fields" })
    const seen = [await statusOf(name)]
    const pushed = await client.push(name, { "job.py": RUN })
    seen.push(await statusOf(name))
    expect(seen[1]?.["content_hash"]).toBe(pushed.get("content_hash"))
    const id = await client.submit(job(name, { payload: { sleep: 0.5 } }))
    await client.until(id, ({ status }) => status === "running")
    const busy = await statusOf(name)
    expect(busy).toMatchObject({ active_jobs: 1, active_tasks: 1, queue_depth: 0 })
    await client.ended(id)
    seen.push(busy, await untilStatus(name, { init_state: "ready", active_jobs: 0 }))
    for (const status of seen) {
      const keys = Object.keys(status).filter((key) => !OPTIONAL_KEYS.includes(key))
      expect(keys.toSorted()).toEqual(STATUS_KEYS.split(" ").toSorted())
      expect([status["status_message"], status["next_action"]]).toEqual([
        expect.stringMatching(/\w/),
        expect.stringMatching(/\w/),
      ])
      expect(status["project_ready"]).toBe(
        status["can_accept_new_jobs"] === true && status["init_state"] !== "attention_required",
      )
      for (const [key, value] of Object.entries(status)) {
        if (/_replicas$|_depth$|_tasks$|_jobs$/.test(key) && typeof value !== "boolean")
          expect([key, Number.isInteger(value) && Number(value) >= 0]).toEqual([key, true])
      }
    }
  })

  test("M-005, P-031, DB-004, C-15, A20: set-up over its time limit, or with a check that fails, says what and how to go on", async () => {
    const bad: [name: string, program: string, settings: Json, said: RegExp][] = [
      ["too-slow", "import time; time.sleep(60)", { setup_timeout_s: 1 }, /checks did not end within 1 s/],
      ["unfit", `raise SystemExit("no such table: prices")`, {}, /no such table: prices/],
    ]
    for (const [name, program, settings, said] of bad) {
      await client.project(name, { "job.py": RUN, "computalot.project.json": validatedBy(program) }, settings)
      const id = await client.submit(job(name, { max_retries: 2 }))
      expect(await client.ended(id), name).toMatchObject({ status: "failed" })
      expect(await client.tasks(id)).toMatchObject([{ failure_kind: "setup_failed", attempt: 0 }])
      const details = await on("GET", name, "/status/details")
      expect(details.json).toMatchObject({
        init_state: "attention_required",
        progress_phase: "failed",
        project_ready: false,
        failed_replicas: 1,
        latest_issue: expect.stringMatching(/\w/) as string,
        next_action: expect.stringMatching(/\w/) as string,
      })
      const [entry] = (details.json["diagnostics"] as Json[]).filter(({ status }) => status === "failed")
      expect(Object.keys(entry ?? {}).toSorted()).toEqual(
        "content_hash id initialized_at inserted_at log_tail message phase recommended_action status updated_at".split(
          " ",
        ),
      )
      expect(`${String(entry?.["message"])} ${String(entry?.["log_tail"])}`).toMatch(said)
      expect(String(entry?.["recommended_action"])).toMatch(/\w/)
      // The same summary stands in status alone.
      const { diagnostics: _, ...summary } = details.json
      expect(await statusOf(name)).toEqual(summary)
    }
  })

  test("PR-003, X-003: neither status names a machine, a peer or its folders", async () => {
    const nodes = (await fleet.admin("GET", "/api/v1/admin/nodes")).json["nodes"] as Json[]
    const secrets = [fleet.folder, ...nodes.flatMap(({ id, peer_id, name }) => [id, peer_id, name].map(String))]
    const names = ((await client.call("GET", "/api/v1/projects")).json["projects"] as Json[]).map(({ name }) =>
      String(name),
    )
    expect(names.length).toBeGreaterThan(5)
    for (const name of names) {
      for (const path of ["/status", "/status/details"]) {
        const { status, text } = await on("GET", name, path)
        expect([status, secrets.filter((secret) => text.includes(secret))]).toEqual([200, []])
      }
    }
  })
})

test("M-003, C-14: the manifest and image references come back as they were submitted, and nothing of the image that was built", async () => {
  const manifest = JSON.parse(PROJECT_FILES["computalot.project.json"] ?? "") as Json
  const settings = { image_ref: "registry.example.org/team/image:7", image_digest: `sha256:${"a".repeat(64)}` }
  await client.project("images", { "job.py": RUN }, settings)
  expect((await on("GET", "images", "")).json).toMatchObject({ ...settings, manifest })
  await client.project("built", { "job.py": RUN })
  expect(await run("built")).toMatchObject({ status: "completed" })
  expect((await on("GET", "built", "")).json).toMatchObject({ image_ref: null, image_digest: null, manifest })
})

test("DB-001, DB-002, DB-003, DB-005: a job that failed says why, in itself, its task, its events and its bill", async () => {
  await client.project("faults", { "job.py": RUN })
  const id = await client.submit(job("faults", { payload: { fails: true } }))
  const ended = await client.ended(id)
  expect(ended).toMatchObject({
    status: "failed",
    error: expect.stringContaining("it went wrong") as string,
    recommended_action: expect.stringMatching(/\w/) as string,
  })
  const [task] = await client.tasks(id)
  expect(task).toMatchObject({
    error: expect.stringContaining("exit_code_1") as string,
    output: expect.stringContaining("it went wrong") as string,
    result: { failure_kind: "exit_code", exit_code: 1 },
    latest_progress: null,
    checkpoint: null,
    resume_state: null,
  })
  const events = (await client.call("GET", `/api/v1/jobs/${id}/events`)).json["events"] as Json[]
  const types = events.map(({ type }) => String(type))
  expect(types.filter((type) => type.startsWith("job."))).toEqual([
    "job.planning",
    "job.queued",
    "job.running",
    "job.failed",
  ])
  expect(types).toContain("task.failed")
  const holds = (await client.call("GET", "/api/v1/account/holds")).json["holds"] as Json[]
  const debits = (await client.call("GET", "/api/v1/account/ledger")).json["entries"] as Json[]
  const hold = holds.find(({ job_id: of }) => of === id)
  expect(hold).toMatchObject({ status: "settled" })
  expect(debits.find(({ job_id: of }) => of === id)).toMatchObject({
    type: "debit",
    amount_usd: hold?.["settled_amount_usd"],
  })
  const balance = await client.balance()
  expect(Number(balance["available_usd"])).toBeCloseTo(
    Number(balance["ledger_balance_usd"]) - Number(balance["held_usd"]),
    6,
  )
  expect((await client.call("GET", "/api/v1/account/quotes")).status).toBe(200)
})

test("DB-006: the program's own failure, its time limit and what the platform could not provide are told apart", async () => {
  await client.project("kinds", { "job.py": RUN })
  await client.project("unfit-too", { "job.py": RUN, "computalot.project.json": validatedBy("raise SystemExit(1)") })
  const ids = await Promise.all([
    client.submit(job("kinds", { payload: { fails: true } })),
    client.submit(job("kinds", { payload: { sleep: 60 }, timeout_s: 1 })),
    client.submit(job("kinds", { runner_command: ["Rscript", "job.R"] })),
    client.submit(job("unfit-too")),
  ])
  const kinds = await Promise.all(
    ids.map(async (id) => {
      await client.ended(id)
      return (await client.tasks(id))[0]?.["failure_kind"]
    }),
  )
  expect(kinds).toEqual(["exit_code", "timeout", "preparation_failed", "setup_failed"])
})
