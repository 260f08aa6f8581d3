import { createHash } from "node:crypto"
import { mkdtempSync, mkdirSync, readFileSync, rmSync } from "node:fs"
import { hostname, tmpdir } from "node:os"
import { join } from "node:path"
import { afterAll, beforeAll, expect, onTestFinished, test } from "vitest"
import { chooseDriver } from "../../node-agent/runtime/choose-driver.ts"
import { errorText } from "../../protocol/base/error-text.ts"
import { startFleet, type Client, type Fleet, type FleetNode, type Json } from "../support/fleet.ts"
import { makeBases, missingTools } from "../support/images.ts"

/** One builder and one worker for each driver: a pushed Dockerfile is built once, and its image runs everywhere. */

const DRIVERS = ["gvisor", "bubblewrap", "process"] as const
type Driver = (typeof DRIVERS)[number]

const home = mkdtempSync(join(tmpdir(), "computalot-path-"))
const usable = await usableDrivers()
const builder = usable.find((driver) => driver !== "process")
const tools = missingTools("buildah", "mmdebstrap", "zstd")
const withoutImages = builder === undefined ? "no sandbox works here" : (tools ?? (await withoutBases()))
if (withoutImages !== null) console.warn(`building and running images is not tested: ${withoutImages}`)

let fleet: Fleet
let client: Client
let built: FleetNode
beforeAll(async () => {
  fleet = await startFleet({ nodes: [] })
  if (withoutImages === null)
    built = await fleet.addNode({ runtime: builder ?? "process", roles: "builder", bases: join(home, "bases") })
  client = await fleet.member()
}, 120_000)
afterAll(async () => {
  await fleet[Symbol.asyncDispose]()
  rmSync(home, { recursive: true, force: true })
})

const MANIFEST = JSON.stringify({
  version: 1,
  runtime: { kind: "oci", sandbox: "gvisor", workdir: "/workspace" },
  entrypoint: { command: ["python", "job.py"] },
  validation: { executables: ["python"], files: ["job.py"], commands: [{ command: ["python", "-c", "import json"] }] },
})
const DOCKERFILE = `FROM python:3.11-slim
WORKDIR /workspace
ENV FROM_IMAGE=yes
COPY . .
RUN python -c "import random; open('made-by-run', 'wb').write(random.Random(7).randbytes(3000000))"
`
const JOB_PY = `import json, os, socket
payload = json.load(open(os.environ["COMPUTALOT_TASK_PAYLOAD"]))
open(os.path.join(os.environ["COMPUTALOT_ARTIFACT_DIR"], "left.txt"), "w").write("left")
print("number", payload["n"])
made = os.path.getsize("made-by-run") if os.path.exists("made-by-run") else None
json.dump({"n": payload["n"] ** 2, "cwd": os.getcwd(), "made": made, "from_image": os.environ.get("FROM_IMAGE"),
           "host": socket.gethostname(), "job_env": os.environ.get("JOB_ENV")}, open(os.environ["COMPUTALOT_TASK_RESULT"], "w"))
`
/** Leaves a checkpoint and fails; with one to go on from it tells what it found. */
const LEFT_PY = `import json, os, sys
payload = json.load(open(os.environ["COMPUTALOT_TASK_PAYLOAD"]))
resume = payload.get("_resume")
if resume is None:
    path = os.path.join(os.environ["COMPUTALOT_ARTIFACT_DIR"], "model.bin")
    open(path, "w").write("trained so far")
    print("COMPUTALOT_PROGRESS:" + json.dumps({"epoch": 5, "checkpoint": {"path": path}}), flush=True)
    sys.exit(1)
read = open(resume["checkpoint"]["path"]).read()
json.dump({"epoch": resume["epoch"], "read": read}, open(os.environ["COMPUTALOT_TASK_RESULT"], "w"))
`
/** Reads what it is given, tries to change it, and hands on a file under a name. */
const GIVEN_PY = `import json, os
payload = json.load(open(os.environ["COMPUTALOT_TASK_PAYLOAD"]))
path = os.environ["COMPUTALOT_ARTIFACT_DATASET"]
read = open(path, "rb").read()
try:
    open(path, "ab").write(b"x")
    changed = True
except OSError:
    changed = False
open(os.path.join(os.environ["COMPUTALOT_ARTIFACT_DIR"], "model.pt"), "wb").write(read[::-1])
json.dump({"same": path == payload["_artifacts"]["local_paths"]["dataset"], "size": len(read), "changed": changed,
           "shared": payload["_shared"]["values"]["lr"], "env": os.environ["COMPUTALOT_SHARED_LR"]},
          open(os.environ["COMPUTALOT_TASK_RESULT"], "w"))
`
const FILES = {
  Dockerfile: DOCKERFILE,
  "computalot.project.json": MANIFEST,
  "job.py": JOB_PY,
  "left.py": LEFT_PY,
  "given.py": GIVEN_PY,
}
const JOB = {
  project: "path",
  runner_command: ["python", "job.py"],
  fan_out: { by: "n" },
  payload: { n: [1, 2, 3] },
  requirements: { memory_mb: 256 },
  meta: { env: { JOB_ENV: "job" } },
}

for (const driver of DRIVERS) {
  const withImages = driver !== "process"
  const left = !usable.includes(driver) || (withImages && withoutImages !== null)
  test.skipIf(left)(
    `M-001, P-023: a small job runs on a worker of the ${driver} runtime`,
    { timeout: 180_000 },
    async () => {
      const worker = await fleet.addNode({ runtime: driver, bases: join(home, "bases") })
      // The next driver's worker has its job to itself.
      onTestFinished(async () => void (await worker.end("SIGTERM")))
      if ((await client.call("GET", "/api/v1/projects/path")).status === 404) await client.project("path", FILES)
      const id = await client.submit(JOB)
      expect(await endedSlowly(id)).toMatchObject({ status: "completed", task_counts: { completed: 3 } })
      const rows = await client.tasks(id)
      expect(rows.map(({ output }) => output)).toEqual(["number 1\n", "number 2\n", "number 3\n"])
      const results = rows.map(({ result }) => result as Json)
      expect(results.map(({ n, job_env: env }) => [n, env])).toEqual([
        [1, "job"],
        [4, "job"],
        [9, "job"],
      ])
      if (withImages) {
        for (const result of results)
          expect(result).toMatchObject({ cwd: "/workspace", made: 3_000_000, from_image: "yes" })
        expect(results.map(({ host }) => host)).not.toContain(hostname())
        expectFromPeer(worker)
      }
      for (const { artifact_ids: artifacts } of rows) expect(artifacts).toHaveLength(1)
      // CK-005, CK-006: what one attempt left, the next one reads.
      const resuming = await client.submit({
        project: "path",
        requirements: JOB.requirements,
        runner_command: ["python", "left.py"],
        max_retries: 1,
        checkpointing: { enabled: true, resume_from_latest: true },
      })
      expect(await endedSlowly(resuming)).toMatchObject({ status: "completed" })
      expect(await client.tasks(resuming)).toMatchObject([
        { attempt: 2, result: { epoch: 5, read: "trained so far" }, checkpoint: { path: "model.bin" } },
      ])
      // AW-002, AW-003, AW-006, SS-003: what a task is given, and what it hands on.
      await client.call("PUT", "/api/v1/projects/path/kv/lr", { value: 0.5 })
      const dataset = Buffer.from(Array.from({ length: 70_000 }, (_, n) => n % 251))
      const uploaded = await client.call("POST", "/api/v1/artifacts", dataset, { "x-artifact-filename": "d.bin" })
      const given = await client.submit({
        project: "path",
        requirements: JOB.requirements,
        runner_command: ["python", "given.py"],
        payload: {
          _artifacts: { download: { dataset: String(uploaded.get("id")) }, upload: { model: "model.pt" } },
          _shared: { resolve: { lr: { key: "lr" } } },
        },
      })
      expect(await endedSlowly(given)).toMatchObject({ status: "completed" })
      const [row] = await client.tasks(given)
      expect(row).toMatchObject({ result: { same: true, size: 70_000, shared: 0.5, env: "0.5" } })
      if (withImages) expect(row).toMatchObject({ result: { changed: false } })
      const { model } = (row?.["artifacts"] ?? {}) as { model?: string }
      const meta = await client.call("GET", `/api/v1/artifacts/${model}/meta`)
      const reversed = createHash("sha256").update(dataset.toReversed()).digest("hex")
      expect(meta.json).toMatchObject({ name: "model", filename: "model.pt", sha256: reversed })
      const nodes = (await fleet.admin("GET", "/api/v1/admin/nodes")).json["nodes"] as Json[]
      const isolation = { gvisor: "gvisor", bubblewrap: "namespaces", process: "none" }[driver]
      expect(nodes.find(({ id: of }) => of === worker.id)).toMatchObject({
        runtime: driver,
        isolation,
        tasks_ended: 6,
        warm_revisions: 1,
      })
      const status = (await client.call("GET", "/api/v1/projects/path/status")).json
      expect(status).toMatchObject({ ready_for_jobs: true, init_state: "ready" })
      expect(await worker.end("SIGTERM")).toBe(0)
      await fleet.expectAudit()
    },
  )
}

test.skipIf(withoutImages !== null)(
  "J-033, C-12, PR-002, PR-013, PR-016: a Dockerfile that does not build says so, and a new push recovers",
  { timeout: 180_000 },
  async () => {
    await fleet.addNode({ runtime: builder ?? "process", bases: join(home, "bases") })
    const broken = {
      ...FILES,
      Dockerfile: `FROM python:3.11-slim\nWORKDIR /workspace\nCOPY . .\nRUN echo it broke here && exit 7\n`,
    }
    await client.project("broken", broken)
    const id = await client.submit({ ...JOB, project: "broken", max_retries: 2 })
    expect(await endedSlowly(id)).toMatchObject({ status: "failed" })
    for (const task of await client.tasks(id))
      expect(task).toMatchObject({ status: "failed", failure_kind: "setup_failed", attempt: 0 })
    const output = (await client.call("GET", `/api/v1/jobs/${id}/output`)).json
    expect(`${String(output["output"])}${String(output["error"])}`).toContain("it broke here")
    const holds = (await client.call("GET", "/api/v1/account/holds")).json["holds"] as Json[]
    expect(holds.find(({ job_id: job }) => job === id)).toMatchObject({ status: "released", settled_amount_usd: 0 })

    const status = (await client.call("GET", "/api/v1/projects/broken/status")).json
    expect(status).toMatchObject({
      init_state: "attention_required",
      progress_phase: "failed",
      project_ready: false,
      ready_for_jobs: false,
    })
    expect(String(status["latest_issue"])).not.toBe("")
    const details = await client.call("GET", "/api/v1/projects/broken/status/details")
    const diagnostics = details.json["diagnostics"] as Json[]
    expect(diagnostics[0]).toMatchObject({ status: "failed", content_hash: status["content_hash"] })
    expect(String(diagnostics[0]?.["log_tail"])).toContain("it broke here")
    for (const secret of [fleet.folder, built.id, home]) expect(details.text).not.toContain(secret)

    expect((await client.push("broken", FILES)).status).toBe(200)
    expect((await client.call("POST", "/api/v1/projects/broken/invalidate")).status).toBe(200)
    expect(await endedSlowly(await client.submit({ ...JOB, project: "broken" }))).toMatchObject({ status: "completed" })
    const recovered = (await client.call("GET", "/api/v1/projects/broken/status")).json
    expect(recovered).toMatchObject({
      init_state: "ready",
      ready_for_jobs: true,
      project_ready: true,
    })
    expect(recovered).not.toHaveProperty("latest_issue")
    await fleet.expectAudit()
  },
)

/** A build and an unpacking come before the job. */
async function endedSlowly(id: string): Promise<Json> {
  try {
    return await client.ended(id)
  } catch {
    return await client.ended(id)
  }
}

/** What the worker fetched came from the builder; the coordinator would have been the last resort. The base it had itself. */
function expectFromPeer(worker: FleetNode): void {
  const fetched = readFileSync(worker.logFile, "utf8")
    .split("\n")
    .filter((line) => line.includes('"content fetched"'))
    .map((line) => JSON.parse(line) as { from_peers: number; from_origin: number })
  const [peers, origin] = fetched.reduce(([a, b], one) => [a + one.from_peers, b + one.from_origin], [0, 0])
  expect(peers).toBeGreaterThan(3_000_000)
  expect(peers).toBeLessThan(10_000_000)
  expect(origin).toBeLessThan(100_000)
}

async function usableDrivers(): Promise<Driver[]> {
  const found: Driver[] = []
  for (const name of DRIVERS) {
    const dataDir = join(home, name)
    const attemptsDir = join(dataDir, "attempts")
    mkdirSync(attemptsDir, { recursive: true })
    try {
      const { driver } = await chooseDriver(name, { dataDir, attemptsDir }, { allowUnsandboxed: true })
      await driver[Symbol.asyncDispose]()
      found.push(name)
    } catch (error) {
      console.warn(`the whole path with ${name} is not tested: ${errorText(error)}`)
    }
  }
  return found
}

async function withoutBases(): Promise<string | null> {
  try {
    await makeBases(join(home, "bases"), "python")
    return null
  } catch (error) {
    return `no base image can be made here: ${errorText(error)}`
  }
}
