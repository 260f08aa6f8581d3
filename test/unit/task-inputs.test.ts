import { afterEach, beforeEach, describe, expect, test } from "vitest"
import { ComputalotError, type FieldProblem } from "../../protocol/domain/errors.ts"
import type { AccountId } from "../../protocol/domain/ids.ts"
import { ARTIFACT_PREFIX, inputVariables, nameProblems, SHARED_PREFIX } from "../../protocol/domain/task-inputs.ts"
import { outcomePath } from "../../protocol/domain/shared-state.ts"
import { checkInputs, inputsOf, withSharedValues } from "../../coordinator/jobs/inputs.ts"
import { planTasks } from "../../coordinator/jobs/plan/plan.ts"
import { parseSubmission } from "../../coordinator/jobs/submission/parse-submission.ts"
import { insertArtifact } from "../../coordinator/store/artifacts.ts"
import { payloadWithFiles, variablesOfInputs } from "../../node-agent/tasks/inputs.ts"
import { artifactId, digest } from "../../protocol/domain/ids.ts"
import { fundedAccount } from "../support/accounts.ts"
import { LEAST_JOB, startJobRig, type JobRig } from "../support/job-rig.ts"

let rig: JobRig
let account: AccountId
beforeEach(async () => {
  rig = await startJobRig()
  account = await fundedAccount(rig.store, 50_000_000n)
  await rig.project(account)
})
afterEach(async () => rig[Symbol.asyncDispose]())

/** What the submission is refused with, or null; `dependsOn` as if dependencies were there already. */
async function refusal(body: object, dependsOn: string[] = []): Promise<ComputalotError | null> {
  const { submission } = parseSubmission({ ...LEAST_JOB, ...body })
  try {
    await checkInputs(rig, submission, planTasks(submission), { account, dependsOn, at: rig.clock.now() })
    return null
  } catch (error) {
    expect(error).toBeInstanceOf(ComputalotError)
    return error as ComputalotError
  }
}

const pathsOf = async (body: object, dependsOn?: string[]): Promise<string[]> => {
  const error = await refusal(body, dependsOn)
  expect(error?.status, JSON.stringify(body)).toBe(422)
  return ((error?.details ?? []) as FieldProblem[]).map(({ path }) => path)
}

async function artifact(id: string, of: AccountId, lastsMs = 60_000): Promise<void> {
  await rig.store.write((tx) =>
    insertArtifact(tx, {
      id: artifactId(id),
      account: of,
      job: null,
      task: null,
      name: null,
      filename: "f",
      contentType: "text/plain",
      source: "local",
      digest: digest("a".repeat(64)),
      size: 1,
      createdAt: rig.clock.now(),
      expiresAt: rig.clock.now() + lastsMs,
    }),
  )
}

describe("what a submission asks for", () => {
  test("SS-001: keys, and jobs that it depends on; anything else is 422 by its path", async () => {
    const resolve = { ready: { key: "dataset_ready" }, best: { job_id: "job_a", path: "results.0.score" } }
    expect(await refusal({ payload: { _shared: { resolve } } }, ["job_a"])).toBe(null)
    expect(await pathsOf({ payload: { _shared: { resolve } } }, ["job_b"])).toEqual(["payload._shared.resolve.best"])
    const wrong: [string, unknown][] = [
      ["payload._shared", []],
      ["payload._shared", "x"],
      ["payload._shared.values", { values: {} }],
      ["payload._shared.resolve", { resolve: ["x"] }],
      ["payload._shared.resolve.x", { resolve: { x: "dataset_ready" } }],
      ["payload._shared.resolve.x", { resolve: { x: {} } }],
      ["payload._shared.resolve.x", { resolve: { x: { key: "a b" } } }],
      ["payload._shared.resolve.x", { resolve: { x: { key: "a", path: "results" } } }],
      ["payload._shared.resolve.x", { resolve: { x: { job_id: "job_a" } } }],
      ["payload._shared.resolve.x", { resolve: { x: { path: "results" } } }],
      ["payload._shared.resolve.x", { resolve: { x: { job_id: "job_a", path: "a..b" } } }],
      ["payload._shared.resolve.a-b", { resolve: { a_b: { key: "a" }, "a-b": { key: "b" } } }],
      ["payload._shared.resolve.A", { resolve: { a: { key: "a" }, A: { key: "b" } } }],
      ["payload._shared.resolve.", { resolve: { "": { key: "a" } } }],
    ]
    for (const [path, shared] of wrong)
      expect(await pathsOf({ payload: { _shared: shared } }, ["job_a"])).toEqual([path])
    const many = Object.fromEntries(Array.from({ length: 65 }, (_, n) => [`a${n}`, { key: "k" }]))
    expect(await pathsOf({ payload: { _shared: { resolve: many } } })).toEqual(["payload._shared.resolve"])
  })

  test("AW-003, AR-019: artifacts of the account; an unknown, expired or foreign one is 404", async () => {
    await artifact("art_mine", account)
    await artifact("art_over", account, -1)
    await artifact("art_theirs", await fundedAccount(rig.store, 1n))
    const ask = (id: string) => ({ payload: { _artifacts: { download: { dataset: id } } } })
    expect(await refusal(ask("art_mine"))).toBe(null)
    for (const id of ["art_theirs", "art_over", "art_abc123"]) {
      const error = await refusal(ask(id))
      expect([error?.code, error?.message]).toEqual(["not_found", `the artifact ${id} was not found`])
    }
    // One of many tasks is enough.
    const items = Array.from({ length: 500 }, (_, n) => ask(n === 321 ? "art_theirs" : "art_mine").payload)
    expect((await refusal({ fan_out: { items } }))?.code).toBe("not_found")
  })

  test("AW-004, C-24: named artifacts of jobs that it depends on; names that make no variable are 422", async () => {
    const from = { job_id: "job_a", artifact: "dataset" }
    const ask = (download: unknown) => ({ payload: { _artifacts: { download } } })
    expect(await refusal(ask({ dataset: from, second: { ...from, task_index: 3 } }), ["job_a"])).toBe(null)
    expect(await pathsOf(ask({ dataset: from }))).toEqual(["payload._artifacts.download.dataset"])
    const wrong: [string, unknown][] = [
      ["payload._artifacts.download", ["art_1"]],
      ["payload._artifacts.download.x", { x: 5 }],
      ["payload._artifacts.download.x", { x: "art 1" }],
      ["payload._artifacts.download.x", { x: { job_id: "job_a" } }],
      ["payload._artifacts.download.x", { x: { ...from, task_index: -1 } }],
      ["payload._artifacts.download.dir", { dir: from }],
      ["payload._artifacts.download.DIR", { DIR: from }],
      ["payload._artifacts.download.a.b", { a_b: from, "a.b": from }],
    ]
    for (const [path, download] of wrong) expect(await pathsOf(ask(download), ["job_a"])).toEqual([path])
    expect(await pathsOf({ payload: { _artifacts: { local_paths: {} } } })).toEqual(["payload._artifacts.local_paths"])
  })

  test("AW-002, GAP-54, rulings: uploads lie below the artifact directory", async () => {
    const ask = (upload: unknown) => ({ payload: { _artifacts: { upload } } })
    const good = {
      model: "model.pt",
      log: { path: "logs/a b/run.txt", filename: "run.txt", content_type: "text/plain" },
    }
    expect(await refusal(ask(good))).toBe(null)
    const wrong: unknown[] = [
      5,
      "",
      "/etc/passwd",
      "../x",
      "a/../../x",
      "a//b",
      "./a",
      "a/.",
      "a\0b",
      "x".repeat(513),
      {},
      { path: 5 },
      { path: "/a" },
      { path: "a", filename: "a/b" },
      { path: "a", filename: "" },
      { path: "a", filename: "\ud800" },
      "\udc00",
      { path: "a", content_type: "text" },
    ]
    for (const one of wrong) {
      expect(await pathsOf(ask({ m: one })), JSON.stringify(one)).toEqual(["payload._artifacts.upload.m"])
    }
    const many = Object.fromEntries(Array.from({ length: 33 }, (_, n) => [`a${n}`, "x"]))
    expect(await pathsOf(ask(many))).toEqual(["payload._artifacts.upload"])
    const large = Object.fromEntries(Array.from({ length: 32 }, (_, n) => [`a${n}`, `${n}`.padEnd(500, "x")]))
    expect(await pathsOf(ask(large))).toEqual(["payload._artifacts.upload"])
  })

  test("SR-007, SR-010: an item may ask for itself; one of several in a task may not", async () => {
    await artifact("art_mine", account)
    const own = { _artifacts: { download: { d: "art_mine" } } }
    const fanOut = { items: [{ n: 0 }, own, { _shared: { resolve: { x: 1 } } }] }
    expect(await pathsOf({ fan_out: fanOut })).toEqual(["fan_out.items[2]._shared.resolve.x"])
    expect(await refusal({ fan_out: { items: [{ n: 0 }, own] } })).toBe(null)
    expect(await pathsOf({ fan_out: { items: [{ n: 0 }, own], batch_size: 2 } })).toEqual([
      "fan_out.items[1]._artifacts",
    ])
    expect(await refusal({ payload: own, fan_out: { items: [{ n: 1 }, { n: 0 }], batch_size: 2 } })).toBe(null)
    expect(await refusal({ payload: own, fan_out: { chunks: 1000, total: 100_000 } })).toBe(null)
    const { submission } = parseSubmission({ ...LEAST_JOB, payload: { a: 1 }, fan_out: { items: [{ n: 0 }, own] } })
    const plan = planTasks(submission)
    expect(inputsOf(plan, 0)).toBe(null)
    expect(inputsOf(plan, 1)?.downloads).toEqual([{ name: "d", from: { artifactId: "art_mine" } }])
  })

  test("null and empty members ask for nothing", async () => {
    expect(await refusal({ payload: { _artifacts: {}, _shared: null } })).toBe(null)
    expect(await refusal({ payload: { _artifacts: { download: null }, _shared: { resolve: {} } } })).toBe(null)
  })
})

describe("what a program is given", () => {
  test("SS-001: values are written into the payload just as they were", () => {
    const given = withSharedValues('{"n":1.0,"_shared":{"resolve":{"x":{"key":"k"}}}}', '{"x":12345678901234567890}')
    expect(given).toBe('{"n":1.0,"_shared":{"resolve":{"x":{"key":"k"}},"values":{"x":12345678901234567890}}}')
  })

  test("SS-003: scalars are variables: strings as they are, numbers and booleans as JSON; null, lists and objects are not", () => {
    const values =
      '{"best_score":0.50,"Name":"a \\"b\\" ü","ok":false,"no":null,"list":[1],"object":{"a":1},"my-key":-1e9}'
    const payload = `{"_shared":{"values":${values}}}`
    expect(variablesOfInputs(payload, { shares: true, files: [] })).toEqual({
      COMPUTALOT_SHARED_BEST_SCORE: "0.50",
      COMPUTALOT_SHARED_best_score: "0.50",
      COMPUTALOT_SHARED_NAME: 'a "b" ü',
      COMPUTALOT_SHARED_Name: 'a "b" ü',
      COMPUTALOT_SHARED_OK: "false",
      COMPUTALOT_SHARED_ok: "false",
      COMPUTALOT_SHARED_MY_KEY: "-1e9",
    })
    expect(variablesOfInputs(payload, { shares: false, files: [] })).toEqual({})
  })

  test("SS-003: what no variable can hold is left out, and all together stay below what a program can be started with", () => {
    const kib = (n: number): string => "x".repeat(n * 1024)
    expect(inputVariables(SHARED_PREFIX, [["a", "b\0c"]])).toEqual({})
    expect(inputVariables(SHARED_PREFIX, [["A", kib(64)]])).toEqual({ COMPUTALOT_SHARED_A: kib(64) })
    expect(inputVariables(SHARED_PREFIX, [["A", `${kib(64)}x`]])).toEqual({})
    const many = Array.from({ length: 20 }, (_, n) => [`A${n}`, kib(60)] as const)
    const bytes = Object.entries(inputVariables(SHARED_PREFIX, many)).reduce(
      (sum, [k, v]) => sum + k.length + v.length,
      0,
    )
    expect(bytes).toBeGreaterThan(400 * 1024)
    expect(bytes).toBeLessThan(512 * 1024)
  })

  test("AW-005, AW-006, C-24: paths stand in the payload and as variables", () => {
    const files = [
      { name: "my-data.v2", path: "/computalot/inputs/0/d.parquet" },
      { name: "model", path: "/computalot/inputs/1/model.pt" },
    ]
    const payload = payloadWithFiles('{"_artifacts":{"download":{"model":"art_1"}},"x":1}', files)
    expect(JSON.parse(payload)).toEqual({
      _artifacts: {
        download: { model: "art_1" },
        local_paths: { "my-data.v2": "/computalot/inputs/0/d.parquet", model: "/computalot/inputs/1/model.pt" },
      },
      x: 1,
    })
    expect(variablesOfInputs(payload, { shares: false, files })).toEqual({
      COMPUTALOT_ARTIFACT_MY_DATA_V2: "/computalot/inputs/0/d.parquet",
      COMPUTALOT_ARTIFACT_MODEL: "/computalot/inputs/1/model.pt",
      COMPUTALOT_ARTIFACT_model: "/computalot/inputs/1/model.pt",
    })
    expect(nameProblems(ARTIFACT_PREFIX, ["model", "data"], "p")).toEqual([])
  })

  test("SS-002: a path is dotted, and has neither empty steps nor too many", () => {
    expect(outcomePath("results.0.score")).toEqual(["results", "0", "score"])
    expect(outcomePath("status")).toEqual(["status"])
    for (const path of ["", ".", "a.", ".a", "a..b", "x".repeat(513), Array(33).fill("a").join(".")]) {
      expect(outcomePath(path), path).toBe(null)
    }
  })
})
