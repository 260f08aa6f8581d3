import { mkdirSync, readFileSync } from "node:fs"
import { join } from "node:path"
import { afterAll, beforeAll, describe, expect, test } from "vitest"
import { PROJECT_FILES, shell, startFleet, type Client, type Fleet, type Json } from "../support/fleet.ts"
import { send } from "../support/http-door.ts"

/**
 * What the served documents print is run as it stands, against the coordinator that serves them and a node: shell lines as one
 * script in their order, JSON submissions through the API. Only the key's placeholder is filled in.
 */

/** What the documents' largest example asks for, twice; a process node may say more than its machine has. */
const LARGE = ["--cpus=32", "--memory-mb=65536", "--storage-gb=400", "--gpus=4:24576"]
const MINUTES = 60_000

let fleet: Fleet
let client: Client
let index: Json
beforeAll(async () => {
  fleet = await startFleet({ nodes: [{ flags: LARGE }] })
  client = await fleet.member(100)
  index = JSON.parse(await document("/api/v1/docs")) as Json
}, 3 * MINUTES)
afterAll(() => fleet[Symbol.asyncDispose]())

async function document(path: string): Promise<string> {
  const reply = await send(fleet.origin, "GET", path)
  expect(reply.status, path).toBe(200)
  return reply.text
}

const blocksOf = (text: string, language: string): string[] =>
  [...text.matchAll(/^```(?<language>\w+)\n(?<block>[\s\S]*?)^```$/gm)]
    .filter(({ groups }) => groups?.["language"] === language)
    .map(({ groups }) => groups?.["block"] ?? "")

const hasFeature = (name: string): boolean => ((index["features"] as Json)[name] as Json)["available"] === true

/** Runs all shell blocks of a document in one shell; gives what they printed and the status of each answer, by block. */
async function runDocument(path: string): Promise<{ stdout: string; statuses: string[][] }> {
  const blocks = blocksOf(await document(path), "bash")
  expect(blocks.length, path).toBeGreaterThan(0)
  const cwd = join(fleet.folder, `reader-of-${path.replaceAll(/\W/g, "-")}`)
  mkdirSync(cwd, { recursive: true })
  const script = [
    "set -eu",
    // The documents wait as long as a client should; a test need not.
    "sleep() { command sleep 0.2; }",
    ...blocks.map((block) => `echo block >> "$STATUSES"\n${block.replaceAll("flk_...", client.token)}`),
  ].join("\n")
  const { stdout } = await shell(script, { token: client.token, origin: fleet.origin, folder: fleet.folder, cwd })
  const told = readFileSync(join(fleet.folder, "statuses"), "utf8").split("block\n").slice(1)
  return { stdout, statuses: told.map((text) => text.split("\n").filter((line) => /^\d{3}$/.test(line))) }
}

/** What a document prints is long: a failure need not repeat it. */
const printed = (ran: { stdout: string }, what: RegExp): boolean => what.test(ran.stdout)

/** Every answer was a success, and every job that was followed to its end completed. */
function expectAllWell({ stdout, statuses }: { stdout: string; statuses: string[][] }): void {
  for (const [block, answers] of statuses.entries()) {
    for (const answer of answers) expect([block, answer]).toEqual([block, expect.stringMatching(/^2\d\d$/)])
  }
  const waitedFor = [...stdout.matchAll(/^(job_\S+) (\w+)$/gm)].map(([, id, status]) => [id, status])
  expect(waitedFor.filter(([, status]) => status !== "completed")).toEqual([])
  const streamed = [...stdout.matchAll(/^data: (\{"reason":"all_terminal".*\})$/gm)].flatMap(([, data]) =>
    Object.values((JSON.parse(data ?? "{}") as { statuses: Json }).statuses),
  )
  expect(streamed.filter((status) => status !== "completed")).toEqual([])
  expect(waitedFor.length + streamed.length).toBeGreaterThan(0)
}

test("RP-013: an agent that follows /skill.md gets from nothing to results", { timeout: 3 * MINUTES }, async () => {
  const ran = await runDocument("/skill.md")
  expectAllWell(ran)
  expect(printed(ran, /"hello": "ada"/)).toBe(true)
  expect(printed(ran, /"hello": "grace"/)).toBe(true)
})

test("the quickstart of /llms.txt works as it stands", { timeout: 3 * MINUTES }, async () => {
  const ran = await runDocument("/llms.txt")
  expectAllWell(ran)
  expect(printed(ran, /"score": 0.95/)).toBe(true)
})

test("J-026, C-04: every shell line of /llms-full.txt works as it stands", { timeout: 8 * MINUTES }, async () => {
  const ran = await runDocument("/llms-full.txt")
  expectAllWell(ran)
  expect(ran.statuses.flat().length).toBeGreaterThan(40)
  expect(printed(ran, /"source": "getting-started"/)).toBe(true)
  // The weighted average of Journey 2 and the numbers of Journey 7.
  const reduced = await client.call("GET", "/api/v1/results?project=my-ml-project&type=map_reduce")
  expect(reduced.get("results", 0, "summary")).toMatchObject({
    reduced: { total_pnl: 15_000, sharpe_ratio: 4.5, max_drawdown: 0.2 },
  })
  const weighted = await client.call("GET", "/api/v1/results?project=my-ml-project&limit=100")
  expect((weighted.json["results"] as Json[]).map((row) => row["aggregate_aliases"])).toContainEqual({
    avg_sharpe_ratio: 4.75,
  })
})

describe("after /llms-full.txt made its project", () => {
  test(
    "every submission that /api/v1/docs/workflows prints is accepted and completes",
    { timeout: 5 * MINUTES },
    async () => {
      const bodies = blocksOf(await document("/api/v1/docs/workflows"), "json").map(
        (block) => JSON.parse(block) as Json,
      )
      expect(bodies.length).toBeGreaterThanOrEqual(6)
      for (const body of bodies) {
        const reply = await client.call("POST", "/api/v1/jobs", body)
        expect([reply.status, reply.json["warnings"]], reply.text).toEqual([201, []])
        expect(await client.ended(String(reply.get("id")))).toMatchObject({ status: "completed" })
      }
    },
  )

  test("M-003, GAP-20: the manifests that the manifest page prints are accepted", async () => {
    const text = await document("/docs/projects/project-manifest")
    const printed = [...text.matchAll(/<pre><code>(\{[\s\S]*?)<\/code><\/pre>/g)].map(
      ([, json]) =>
        JSON.parse(
          (json ?? "")
            .replaceAll("&quot;", '"')
            .replaceAll("&lt;", "<")
            .replaceAll("&gt;", ">")
            .replaceAll("&amp;", "&"),
        ) as Json,
    )
    const manifests = printed.filter((json) => json["version"] === 1)
    expect(manifests.length).toBe(2)
    for (const [number, manifest] of manifests.entries()) {
      const name = `manifest-${number}`
      expect((await client.call("POST", "/api/v1/projects", { name, remote_dir: "/root/x" })).status).toBe(201)
      const pushed = await client.push(name, {
        "computalot.project.json": JSON.stringify(manifest),
        "job.py": "pass\n",
        "train.py": "pass\n",
      })
      expect(pushed.status, pushed.text).toBe(200)
    }
  })
})

const SCRIPTS = {
  "evaluate.py": `import json, os
payload = json.load(open(os.environ["COMPUTALOT_TASK_PAYLOAD"]))
json.dump({"score": 0.5, "seen": payload}, open(os.environ["COMPUTALOT_TASK_RESULT"], "w"))
`,
  "train.py": `import json, os
payload = json.load(open(os.environ["COMPUTALOT_TASK_PAYLOAD"]))
json.dump({"accuracy": payload.get("learning_rate", 0)}, open(os.environ["COMPUTALOT_TASK_RESULT"], "w"))
`,
  "simulate.py": `import json, os
payload = json.load(open(os.environ["COMPUTALOT_TASK_PAYLOAD"]))
json.dump({"total_pnl": 1, "sharpe": 2, "max_dd": 3, "sample_count": payload["seed_count"]}, open(os.environ["COMPUTALOT_TASK_RESULT"], "w"))
`,
}

describe("the examples of the JSON index", () => {
  beforeAll(async () => {
    for (const name of ["my-proj", "ml-training", "monte-carlo"]) {
      await client.call("POST", "/api/v1/projects", { name, remote_dir: `/root/${name}` })
      const pushed = await client.push(name, { ...PROJECT_FILES, ...SCRIPTS })
      expect(pushed.status, pushed.text).toBe(200)
    }
  })

  test(
    "D-019, A30, A34…A36: the example of each type of job is accepted and completes",
    { timeout: 5 * MINUTES },
    async () => {
      const examples = (index["getting_started"] as Json)["job_type_examples"] as { example: Json }[]
      for (const { example } of examples) {
        const { method, path, body } = example["request"] as { method: string; path: string; body: Json }
        const reply = await client.call(method, path, body)
        if (example["available"] === false) {
          expect([reply.status, reply.json["code"]]).toEqual([422, "not_available_yet"])
          continue
        }
        expect(reply.status, reply.text).toBe(201)
        expect(await client.ended(String(reply.get("id")))).toMatchObject({ status: "completed", type: body["type"] })
      }
    },
  )

  test("D-021: the valid command is accepted, the invalid one is 422", async () => {
    const { example_valid: valid, example_invalid: invalid } = index["command_validation"] as Json
    const submit = (command: unknown) =>
      client.call("POST", "/api/v1/jobs", {
        type: "structured_runner",
        project: "ml-training",
        runner_command: command,
      })
    expect((await submit(valid)).status).toBe(201)
    const refused = await submit(invalid)
    expect([refused.status, refused.json["code"]]).toEqual([422, "command_not_allowed"])
  })

  test("D-022: the examples of requirements and reservation are accepted", { timeout: 3 * MINUTES }, async () => {
    const { requirements } = (index["resource_requirements"] as Json)["example"] as Json
    const { reservation } = (index["reservations"] as Json)["example"] as Json
    const base = {
      type: "structured_runner",
      project: "my-proj",
      runner_command: ["python", "evaluate.py"],
      requirements,
    }
    const plain = await client.call("POST", "/api/v1/jobs", base)
    expect(plain.status, plain.text).toBe(201)
    expect(plain.json["requirements"]).toMatchObject(requirements as Json)
    expect(await client.ended(String(plain.get("id")))).toMatchObject({ status: "completed" })
    const guaranteed = await client.call("POST", "/api/v1/jobs", { ...base, reservation })
    expect(guaranteed.status, guaranteed.text).toBe(hasFeature("reservations") ? 201 : 422)
    if (guaranteed.status === 201) await client.call("PUT", `/api/v1/jobs/${String(guaranteed.get("id"))}/cancel`)
  })

  test("RP-013: the program of runner_protocol runs unchanged", async () => {
    const program = String((index["runner_protocol"] as Json)["example"])
    await client.project("runner", { "runner.py": program })
    const id = await client.submit({ project: "runner", runner_command: ["python3", "runner.py"], payload: { a: 1 } })
    expect(await client.ended(id)).toMatchObject({ status: "completed" })
    expect((await client.tasks(id))[0]?.["result"]).toEqual({ score: 0.95, seen: { a: 1 } })
  })
})

test("the money of all of it adds up", async () => {
  await fleet.expectAudit()
})
