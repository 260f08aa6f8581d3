import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterAll, beforeAll, describe, expect, test } from "vitest"
import { chooseDriver } from "../../node-agent/runtime/choose-driver.ts"
import { errorText } from "../../protocol/base/error-text.ts"
import { startFleet, type Client, type Fleet, type FleetNode, type Json } from "../support/fleet.ts"
import { makeBases, missingTools } from "../support/images.ts"

/** A builder with bases and workers without any: base layers travel between nodes, and never by the coordinator (architecture §5.6). */

const home = mkdtempSync(join(tmpdir(), "computalot-base-layers-"))
const bases = join(home, "bases")
const driver = await sandbox()
const skipped = driver === null || missingTools("buildah", "mmdebstrap", "zstd") !== null || (await withoutBases())

/** The python base is some 60 MB as a blob; nothing else of the project is above a few hundred bytes. */
const BASE_AT_LEAST_BYTES = 10_000_000
const FILES = {
  Dockerfile: "FROM python:3.11-slim\nWORKDIR /workspace\nCOPY . .\n",
  "job.py":
    'import json, os, sys\njson.dump({"python": sys.version_info[1]}, open(os.environ["COMPUTALOT_TASK_RESULT"], "w"))\n',
}
const JOB = { project: "based", runner_command: ["python", "job.py"], requirements: { memory_mb: 256 } }

describe.skipIf(skipped)("base layers", () => {
  let fleet: Fleet
  let client: Client
  let builder: FleetNode
  let base: string
  const workers: FleetNode[] = []
  beforeAll(async () => {
    fleet = await startFleet({ nodes: [] })
    builder = await fleet.addNode({ runtime: driver ?? "process", roles: "builder", bases })
    client = await fleet.member()
    await client.project("based", FILES)
  }, 120_000)
  afterAll(async () => {
    await fleet?.[Symbol.asyncDispose]()
    rmSync(home, { recursive: true, force: true })
  })

  /** Its bases directory is empty. */
  async function addWorker(): Promise<FleetNode> {
    const worker = await fleet.addNode({ runtime: driver ?? "process", bases: join(home, "none") })
    workers.push(worker)
    return worker
  }

  async function endWorkers(): Promise<void> {
    await Promise.all(workers.splice(0).map((worker) => worker.end("SIGTERM")))
  }

  const status = async (): Promise<Json> => (await client.call("GET", "/api/v1/projects/based/status")).json

  async function expectCompleted(id: string): Promise<void> {
    const job = await client.ended(id).catch(() => client.ended(id))
    expect(job, JSON.stringify(job["queue_reason"])).toMatchObject({ status: "completed" })
    expect((await client.tasks(id))[0]).toMatchObject({ result: { python: 11 } })
  }

  test(
    "a worker without bases runs a revision: it has the base from the builder, and the coordinator never had it",
    {
      timeout: 180_000,
    },
    async () => {
      const worker = await addWorker()
      await expectCompleted(await client.submit(JOB))
      const [largest] = fetchedBy(worker)
      expect(largest?.from_peers).toBeGreaterThan(BASE_AT_LEAST_BYTES)
      expect(largest?.from_origin).toBe(0)
      base = largest?.blob ?? ""
      const kept = readdirSync(join(fleet.folder, "coordinator"), { recursive: true, encoding: "utf8" })
      expect(kept.filter((path) => path.includes(base))).toEqual([])
      expect(kept.length).toBeGreaterThan(0)
    },
  )

  test("a worker that fetched the base serves it on when the builder is gone", { timeout: 120_000 }, async () => {
    expect(await builder.end("SIGTERM")).toBe(0)
    const second = await addWorker()
    expect((await client.call("POST", "/api/v1/projects/based/init", {})).status).toBe(200)
    await expect.poll(async () => (await status())["ready_replicas"], { timeout: 90_000 }).toBe(2)
    expect(fetchedBy(second)[0]).toMatchObject({ blob: base, from_origin: 0 })
    await endWorkers()
  })

  test(
    "while nobody has the base the job and the project say so; the builder's return brings it, made again",
    {
      timeout: 180_000,
    },
    async () => {
      const worker = await addWorker()
      const id = await client.submit(JOB)
      const waiting = await client.until(
        id,
        (job) => (job["queue_reason"] as Json | null)?.["code"] === "runtime_failed",
      )
      const why =
        /base layer of the image \(\d+ MB\) is not in this node's bases directory, and no connected node could give it/
      expect((waiting["queue_reason"] as Json)["message"]).toMatch(why)
      expect((await status())["status_message"]).toMatch(why)
      const details = await client.call("GET", "/api/v1/projects/based/status/details")
      const messages = (details.json["diagnostics"] as Json[]).map(({ message }) => message)
      expect(messages).toContainEqual(expect.stringMatching(why))
      for (const secret of [fleet.folder, home, worker.id, builder.id]) expect(details.text).not.toContain(secret)

      // Evicted from its cache, and trimmed from what it packed.
      for (const folder of ["blobs", "builder/packed"]) {
        for (const name of readdirSync(join(builder.dataDir, folder))) {
          if (name.endsWith(".blob") || name.endsWith(".zst")) rmSync(join(builder.dataDir, folder, name))
        }
      }
      await builder.start()
      await expectCompleted(id)
      expect(linesOf(builder, "blob made again")).toMatchObject([{ blob: base }])
      expect(fetchedBy(worker)[0]).toMatchObject({ blob: base, from_origin: 0 })
      expect(linesOf(builder, "build started")).toHaveLength(1)
      await fleet.expectAudit()
    },
  )
})

interface Fetched {
  blob: string
  from_peers: number
  from_origin: number
}

/** Largest first. */
function fetchedBy(node: FleetNode): Fetched[] {
  const size = (one: Fetched): number => one.from_peers + one.from_origin
  return (linesOf(node, "content fetched") as unknown as Fetched[]).toSorted((a, b) => size(b) - size(a))
}

function linesOf(node: FleetNode, event: string): Json[] {
  return readFileSync(node.logFile, "utf8")
    .split("\n")
    .filter((line) => line.includes(`"${event}"`))
    .map((line) => JSON.parse(line) as Json)
}

async function sandbox(): Promise<"bubblewrap" | "gvisor" | null> {
  for (const name of ["bubblewrap", "gvisor"] as const) {
    const dataDir = join(home, name)
    const attemptsDir = join(dataDir, "attempts")
    mkdirSync(attemptsDir, { recursive: true })
    try {
      const { driver: found } = await chooseDriver(name, { dataDir, attemptsDir }, { allowUnsandboxed: true })
      await found[Symbol.asyncDispose]()
      return name
    } catch (error) {
      console.warn(`base layers with ${name} are not tested: ${errorText(error)}`)
    }
  }
  return null
}

/** True where no base can be made; says why. */
async function withoutBases(): Promise<boolean> {
  try {
    await makeBases(bases, "python")
    return false
  } catch (error) {
    console.warn(`base layers are not tested: ${errorText(error)}`)
    return true
  }
}
