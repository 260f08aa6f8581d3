import { readFileSync, rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { afterAll, beforeAll, describe, expect, test } from "vitest"
import type { Client, Fleet, Json } from "../support/fleet.ts"
import { runPy, startMarkedFleet, type MarkedFleet } from "../support/marked-fleet.ts"

/** What a task leaves for its next attempt, from the request to the next attempt's payload, with the process runtime. */

/** Does what its payload says. Files in MARKS, which the test can see, count attempts and let a task wait. */
const RUN_PY = runPy(`artifacts = os.environ["COMPUTALOT_ARTIFACT_DIR"]
def attempts():
    with open(os.path.join(marks, payload["name"]), "a") as file:
        file.write("x")
    return os.path.getsize(os.path.join(marks, payload["name"]))
def tell(**fields):
    print("COMPUTALOT_PROGRESS:" + json.dumps(fields), flush=True)
def keep(name, text):
    path = os.path.join(artifacts, name)
    with open(path + ".part", "w") as file:
        file.write(text)
    os.rename(path + ".part", path)
    return path
resume = payload.get("_resume")`)

/** The documents' own loop (CK-004), with the training left out and a crash in the middle of the first attempt. */
const TRAIN_PY = `import json, os
payload = json.load(open(os.environ["COMPUTALOT_TASK_PAYLOAD"]))
resume_state = payload.get("_resume") or {}
start_epoch = resume_state.get("epoch", 0)
for epoch in range(start_epoch, 10):
    loss = 1 / (epoch + 1)
    # Computalot captures COMPUTALOT_PROGRESS lines and streams them to the SSE endpoint
    print(
        f"COMPUTALOT_PROGRESS:{json.dumps({'epoch': epoch, 'loss': loss, 'percent': epoch})}",
        flush=True,
    )
    if epoch == 5 and start_epoch == 0:
        raise SystemExit(3)
json.dump({"started_at": start_epoch}, open(os.environ["COMPUTALOT_TASK_RESULT"], "w"))
`

const ON = { enabled: true, resume_from_latest: true }

let world: MarkedFleet
let fleet: Fleet
let client: Client
beforeAll(async () => {
  world = await startMarkedFleet({ project: "run", files: { "run.py": RUN_PY, "train.py": TRAIN_PY } })
  ;({ fleet, client } = world)
})
afterAll(() => world[Symbol.asyncDispose]())

let names = 0
const job = (program: string, more: Json = {}): Json => ({
  project: "run",
  runner_command: ["python3", "run.py"],
  payload: { do: program, name: `job-${++names}` },
  checkpointing: ON,
  ...more,
})
const taskOf = async (id: string): Promise<Json> => {
  const [task] = await client.tasks(id)
  if (!task) throw new Error("the job has a task")
  return task
}
const eventsOf = async (id: string): Promise<Json[]> =>
  (await client.call("GET", `/api/v1/jobs/${id}/events?limit=200`)).json["events"] as Json[]
const checkpointEvents = async (id: string): Promise<Json[]> =>
  (await eventsOf(id)).filter(({ type }) => type === "task.checkpoint")

describe("from one attempt to the next", () => {
  test("C-08, CK-004: the documents' own loop resumes at the epoch its progress told last", async () => {
    const id = await client.submit({
      project: "run",
      runner_command: ["python", "train.py"],
      checkpointing: ON,
      max_retries: 1,
    })
    expect(await client.ended(id)).toMatchObject({ status: "completed", checkpointing: ON })
    expect(await taskOf(id)).toMatchObject({ attempt: 2, result: { started_at: 5 } })
  })

  test("CK-002, CK-003, CK-005, CK-006, CK-007, CK-009: the next attempt gets the latest checkpoint and its file", async () => {
    const id = await client.submit(
      job(
        `
if attempts() == 1:
    tell(epoch=1, loss=0.5, checkpoint={"epoch": 1, "path": keep("a.bin", "after 1")})
    wait_for("first")
    tell(epoch=2, loss=0.25, checkpoint={"epoch": 2, "lr": 1.50, "path": "b.bin" if keep("b.bin", "after 2") else ""})
    wait_for("second")
    keep("b.bin", "overwritten later")
    tell(epoch=3, best=7)
    sys.exit(4)
write({"resume": resume, "read": open(resume["checkpoint"]["path"]).read()})`,
        { max_retries: 1 },
      ),
    )
    await expect.poll(async () => (await taskOf(id))["checkpoint"]).toMatchObject({ epoch: 1, path: "a.bin" })
    world.go("first")
    await expect.poll(async () => (await taskOf(id))["checkpoint"]).toMatchObject({ epoch: 2 })
    const running = await taskOf(id)
    expect(running["checkpoint"]).toEqual({
      epoch: 2,
      lr: 1.5,
      path: "b.bin",
      artifact_id: expect.stringMatching(/^art_/) as unknown,
      artifact_source: "local",
      publish_status: "published",
      published_at: expect.stringMatching(/Z$/) as unknown,
    })
    expect(running["resume_state"]).toMatchObject({ epoch: 2, loss: 0.25, checkpoint: { epoch: 2, path: "b.bin" } })
    const { artifact_id: artifact } = running["checkpoint"] as Json
    expect((await client.call("GET", `/api/v1/artifacts/${String(artifact)}`)).text).toBe("after 2")
    expect((await client.call("GET", `/api/v1/jobs/${id}`)).json["checkpoint_summary"]).toMatchObject({
      tasks_with_checkpoint: 1,
      tasks_with_durable_checkpoint: 1,
      latest: { task_id: running["task_id"], checkpoint: { epoch: 2, artifact_id: artifact } },
    })
    world.go("second")
    expect(await client.ended(id)).toMatchObject({ status: "completed" })
    const ended = await taskOf(id)
    const { resume, read } = ended["result"] as { resume: Json; read: string }
    // What the checkpoint's own line told stands above what a later line told; what only that one told stays.
    expect(resume).toMatchObject({ epoch: 2, loss: 0.25, best: 7, lr: 1.5 })
    expect(resume["checkpoint"]).toMatchObject({ epoch: 2, artifact_id: artifact, publish_status: "published" })
    expect((resume["checkpoint"] as Json)["path"]).toMatch(/^\/.*\/resume\/b\.bin$/)
    expect(read).toBe("after 2")
    // The client's own payload is shown as it was submitted.
    expect(ended["payload"]).not.toHaveProperty("_resume")
    expect((await checkpointEvents(id)).map(({ data }) => data)).toMatchObject([
      { attempt: 1, publish_status: "published" },
      { attempt: 1, publish_status: "published", artifact_id: artifact },
    ])
    await fleet.expectAudit()
  })

  test("CK-002, rulings: a last checkpoint, in a failing program's result, is there for the next attempt", async () => {
    const id = await client.submit(
      job(
        `
if attempts() == 1:
    keep("c.bin", "at the very end")
    write({"score": 1, "checkpoint": {"step": 9, "path": "c.bin"}})
    sys.exit(1)
write({"resume": resume, "read": open(resume["checkpoint"]["path"]).read()})`,
        { max_retries: 1 },
      ),
    )
    expect(await client.ended(id)).toMatchObject({ status: "completed" })
    const { result } = await taskOf(id)
    expect(result).toMatchObject({ resume: { step: 9, checkpoint: { step: 9 } }, read: "at the very end" })
    expect((result as { resume: Json }).resume).not.toHaveProperty("score")
    const types = (await eventsOf(id)).map(({ type }) => type)
    expect(types.indexOf("task.checkpoint")).toBeLessThan(types.indexOf("task.retried"))
  })

  test("CK-003: another key of the payload, and without resume_from_latest a retry starts anew", async () => {
    const program = `
if attempts() == 1:
    tell(epoch=4, checkpoint={"epoch": 4})
    sys.exit(1)
write({"resume": resume, "state": payload.get("state")})`
    const [named, anew] = await Promise.all([
      client.submit(job(program, { max_retries: 1, checkpointing: { ...ON, payload_key: "state" } })),
      client.submit(job(program, { max_retries: 1, checkpointing: { enabled: true } })),
    ])
    expect(await client.ended(named)).toMatchObject({ checkpointing: { ...ON, payload_key: "state" } })
    const { result } = await taskOf(named)
    expect(result).toMatchObject({ resume: null, state: { epoch: 4, checkpoint: { epoch: 4 } } })
    expect(await client.ended(anew)).toMatchObject({ checkpointing: { enabled: true, resume_from_latest: false } })
    expect(await taskOf(anew)).toMatchObject({
      result: { resume: null, state: null },
      checkpoint: { epoch: 4, artifact_id: null, publish_status: null },
      resume_state: null,
    })
  })

  test("CK-001: without enabled no checkpoint is kept, and nothing is handed on", async () => {
    const program = `
if attempts() == 1:
    tell(epoch=4, checkpoint={"epoch": 4, "path": keep("x", "x")})
    sys.exit(1)
write({"resume": resume})`
    const id = await client.submit(job(program, { max_retries: 1, checkpointing: null }))
    expect(await client.ended(id)).toMatchObject({ status: "completed", checkpointing: null })
    expect(await taskOf(id)).toMatchObject({ result: { resume: null }, checkpoint: null, resume_state: null })
    expect((await client.call("GET", `/api/v1/jobs/${id}`)).json).not.toHaveProperty("checkpoint_summary")
    expect(await checkpointEvents(id)).toEqual([])
  })
})

describe("what may be published", () => {
  test("GAP-47: a path outside, a link out, a missing file and a directory are not published, and it is said", async () => {
    for (const [make, path] of [
      ["", "/etc/passwd"],
      ["", "../../../../etc/passwd"],
      ['os.symlink("/etc/passwd", os.path.join(artifacts, "out"))', "out"],
      ['os.symlink("/etc", os.path.join(artifacts, "etc"))', "etc/passwd"],
      ["", "missing.bin"],
      ['os.mkdir(os.path.join(artifacts, "folder"))', "folder"],
      ['os.mkfifo(os.path.join(artifacts, "pipe"))', "pipe"],
    ]) {
      const id = await client.submit(
        job(
          `
if attempts() == 1:
    tell(epoch=1, checkpoint={"epoch": 1})
    wait_for(payload["name"] + "-go")
    ${make === "" ? "pass" : make}
    tell(epoch=2, checkpoint={"epoch": 2, "path": ${JSON.stringify(path)}})
    sys.exit(1)
write({"resume": resume})`,
          { max_retries: 1 },
        ),
      )
      const name = `job-${names}`
      await expect.poll(async () => (await taskOf(id))["checkpoint"]).toMatchObject({ epoch: 1 })
      world.go(`${name}-go`)
      expect(await client.ended(id), path).toMatchObject({ status: "completed" })
      const task = await taskOf(id)
      expect(task["checkpoint"], path).toMatchObject({ path, publish_status: "failed", artifact_id: null })
      expect(String((task["checkpoint"] as Json)["publish_error"])).toMatch(/outside|no plain file/)
      // A program that went on from it would look for a file that is not there: the one before stands.
      expect((task["result"] as { resume: Json }).resume, path).toMatchObject({ epoch: 1, checkpoint: { epoch: 1 } })
      expect((await checkpointEvents(id)).at(-1)).toMatchObject({ data: { publish_status: "failed" } })
    }
  })

  test("GAP-47: a link to a file inside and a file in the scratch directory are published", async () => {
    const id = await client.submit(
      job(
        `
if attempts() == 1:
    keep("epoch-1.bin", "linked")
    os.symlink("epoch-1.bin", os.path.join(artifacts, "latest.bin"))
    tell(checkpoint={"path": "latest.bin"})
    wait_for("linked")
    path = os.path.join(os.environ["COMPUTALOT_TASK_SCRATCH_DIR"], "s.bin")
    open(path, "w").write("scratch")
    tell(checkpoint={"path": path})
    sys.exit(1)
write({"read": open(resume["checkpoint"]["path"]).read()})`,
        { max_retries: 1 },
      ),
    )
    await expect.poll(async () => (await taskOf(id))["checkpoint"]).toMatchObject({ publish_status: "published" })
    const { artifact_id: artifact } = (await taskOf(id))["checkpoint"] as Json
    expect((await client.call("GET", `/api/v1/artifacts/${String(artifact)}`)).text).toBe("linked")
    world.go("linked")
    expect(await client.ended(id)).toMatchObject({ status: "completed" })
    expect(await taskOf(id)).toMatchObject({ result: { read: "scratch" }, checkpoint: { path: "s.bin" } })
  })

  test("CK-005: an artifact that the program names is the checkpoint's file; one that is not there is told", async () => {
    const uploaded = await client.call("POST", "/api/v1/artifacts", Buffer.from("uploaded before"))
    const artifact = String(uploaded.get("id"))
    const program = `
if attempts() == 1:
    tell(epoch=1, checkpoint={"epoch": 1, "artifact_id": payload["artifact"]})
    sys.exit(1)
path = (resume or {}).get("checkpoint", {}).get("path")
write({"read": open(path).read() if path else None})`
    const submit = (id: string): Promise<string> => {
      const body = job(program, { max_retries: 1 })
      return client.submit({ ...body, payload: { ...(body["payload"] as Json), artifact: id } })
    }
    const [there, missing] = await Promise.all([submit(artifact), submit("art_unknown")])
    expect(await client.ended(there)).toMatchObject({ status: "completed" })
    expect(await taskOf(there)).toMatchObject({
      result: { read: "uploaded before" },
      checkpoint: { artifact_id: artifact, artifact_source: "local", publish_status: "published" },
    })
    expect(await client.ended(missing)).toMatchObject({ status: "completed" })
    expect(await taskOf(missing)).toMatchObject({ result: { read: null }, checkpoint: { publish_status: "failed" } })
  })
})

test("architecture §5.6: the two latest checkpoints are kept, and the latest of many that come at once wins", async () => {
  const id = await client.submit(
    job(`
for step in range(200):
    tell(step=step, checkpoint={"step": step, "path": keep("s.bin", str(step))})
wait_for("many")
for step in range(200, 203):
    tell(step=step, checkpoint={"step": step, "path": keep("s.bin", str(step))})
    time.sleep(1.3)`),
  )
  const step = async (): Promise<unknown> => ((await taskOf(id))["checkpoint"] as Json | null)?.["step"]
  await expect.poll(step).toBe(199)
  expect((await checkpointEvents(id)).length).toBeLessThan(10)
  world.go("many")
  expect(await client.ended(id)).toMatchObject({ status: "completed" })
  expect(await step()).toBe(202)
  const rows = (await client.call("GET", `/api/v1/artifacts?job_id=${id}`)).json["artifacts"] as Json[]
  expect(rows.filter(({ filename }) => filename === "s.bin")).toHaveLength(2)
  const texts = await Promise.all(
    rows
      .filter(({ filename }) => filename === "s.bin")
      .map(async ({ id: of }) => (await client.call("GET", `/api/v1/artifacts/${String(of)}`)).text),
  )
  expect(texts.toSorted()).toEqual(["201", "202"])
})

describe("a checkpoint that cannot be read", () => {
  const PROGRAM = `
if attempts() == 1:
    for step in (1, 2):
        tell(step=step, checkpoint={"step": step, "path": keep("s.bin", payload["name"] + " step %d" % step)})
        wait_for(payload["name"] + "-%d" % step)
    sys.exit(1)
write({"step": (resume or {}).get("step"), "read": open(resume["checkpoint"]["path"]).read() if resume else None})`

  /** Spoils stored checkpoints between two attempts; how the second one went on. */
  async function spoilt(steps: readonly number[], spoil: (blob: string) => void): Promise<[Json, Json[]]> {
    const id = await client.submit(job(PROGRAM, { max_retries: 1 }))
    const name = `job-${names}`
    const stored: Record<number, string> = {}
    for (const step of [1, 2]) {
      await expect.poll(async () => (await taskOf(id))["checkpoint"]).toMatchObject({ step })
      const { artifact_id: artifact } = (await taskOf(id))["checkpoint"] as Json
      const meta = (await client.call("GET", `/api/v1/artifacts/${String(artifact)}/meta`)).json
      stored[step] = String(meta["sha256"])
      if (step === 1) world.go(`${name}-1`)
    }
    for (const step of steps) {
      const digest = stored[step] ?? ""
      spoil(join(fleet.folder, "coordinator", "blobs", digest.slice(0, 2), digest))
    }
    world.go(`${name}-2`)
    expect(await client.ended(id)).toMatchObject({ status: "completed" })
    const told = (await checkpointEvents(id)).filter(({ data }) => (data as Json)["unreadable"] === true)
    return [(await taskOf(id))["result"] as Json, told]
  }

  test("corrupt: the one before is gone on from, with an event", async () => {
    const [result, told] = await spoilt([2], (blob) => writeFileSync(blob, readFileSync(blob, "utf8").toUpperCase()))
    expect(result).toEqual({ step: 1, read: expect.stringMatching(/^job-\d+ step 1$/) as unknown })
    expect(told).toHaveLength(1)
  })

  test("missing: likewise", async () => {
    const [result, told] = await spoilt([2], (blob) => rmSync(blob))
    expect(result).toMatchObject({ step: 1 })
    expect(told).toHaveLength(1)
  })

  test("neither can be read: the attempt starts anew, with an event for each, and does not fail", async () => {
    const [result, told] = await spoilt([1, 2], (blob) => writeFileSync(blob, "rubbish"))
    expect(result).toEqual({ step: null, read: null })
    expect(told).toHaveLength(2)
  })
})
