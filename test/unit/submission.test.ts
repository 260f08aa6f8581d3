import { expect, test } from "vitest"
import { editDistance } from "../../coordinator/jobs/submission/field-warnings.ts"
import { parseSubmission } from "../../coordinator/jobs/submission/parse-submission.ts"
import { submitJobBody } from "../../protocol/api/jobs.ts"
import { parseFields } from "../../protocol/api/parse.ts"
import { ComputalotError, type FieldProblem } from "../../protocol/domain/errors.ts"
import { ALLOWED_EXECUTABLES } from "../../protocol/domain/runner.ts"

const least = { type: "structured_runner", project: "my-proj", runner_command: ["python3", "job.py"] }
const mapReduce = {
  type: "map_reduce",
  project: "p",
  runner_command: ["python", "x.py"],
  split: { field: "seed", total: 10, chunks: 2 },
  reduce: { a: "sum" },
}

function refusal(body: unknown): ComputalotError {
  try {
    parseSubmission(body)
  } catch (error) {
    expect(error).toBeInstanceOf(ComputalotError)
    return error as ComputalotError
  }
  throw new Error(`was accepted: ${JSON.stringify(body)}`)
}

function problemPaths(body: unknown): string[] {
  const error = refusal(body)
  expect(error.status).toBe(422)
  return (error.details as FieldProblem[]).map(({ path }) => path)
}

test("the least submission gets the documented defaults", () => {
  expect(parseSubmission(least)).toEqual({
    submission: {
      project: "my-proj",
      command: ["python3", "job.py"],
      payload: {},
      work: { type: "structured_runner", fanOut: null, merge: { strategy: "collect" } },
      timeoutSeconds: 3600,
      runtimeHintSeconds: null,
      maxRetries: 0,
      priority: "normal",
      reliabilityMode: "best_effort",
      requirements: { cpu: 1, memoryMb: 512, storageGb: 1, gpuCount: 0, profile: "cpu" },
      reservation: { mode: "best_effort" },
      executionPolicy: "sandboxed",
      placementPolicy: "shared",
      tags: [],
      clientRef: null,
      meta: null,
      variant: null,
      resultSchema: { requiredFields: [], fieldTypes: [], fieldRanges: [] },
    },
    warnings: [],
  })
})

test("J-026: A21, A22, A23, A24, A25, A31, A32: the documented submissions are accepted as they are printed", () => {
  const documented = [
    '{"type":"structured_runner","runner_command":["python3","job.py"],"payload":{"test_case":"getting-started"},"project":"my-ml-project","timeout_s":120,"requirements":{"cpu":1,"memory_mb":256,"profile":"cpu"},"reliability_mode":"strict_complete"}',
    '{"type":"structured_runner","runner_command":["python3","script.py"],"payload":{"test":true},"project":"my-proj","timeout_s":120}',
    '{"type":"structured_runner","runner_command":["python","evaluate.py"],"payload":{"models":["model-a","model-b","model-c","model-d"],"config":{"n_trials":100}},"fan_out":{"by":"models","batch_size":2},"merge_strategy":"keyed","project":"my-ml-project","timeout_s":600}',
    '{"type":"structured_runner","runner_command":["python","evaluate.py"],"fan_out":{"items":[{"params":[0.1,0.5,0.3],"generation":12},{"params":[0.2,0.4,0.6],"generation":12},{"params":[0.3,0.3,0.1],"generation":12}]},"project":"my-proj"}',
    '{"type":"structured_runner","runner_command":["python","simulate.py"],"payload":{"total_seeds":10000},"fan_out":{"chunks":20,"range_field":"total_seeds","total":10000},"merge_strategy":"collect","project":"my-ml-project","timeout_s":1800}',
    '{"type":"map_reduce","runner_command":["python","evaluate_seeds.py"],"project":"my-project","payload":{"strategy":"momentum"},"split":{"field":"seed","start":0,"total":10000,"chunks":50},"reduce":{"total_pnl":"sum","sharpe_ratio":"weighted_avg:sample_count","max_drawdown":"max"},"timeout_s":7200}',
    '{"type":"map_reduce","runner_command":["python","evaluate_seeds.py"],"project":"my-project","payload":{"strategy":"momentum"},"split":{"field":"seed","ranges":[{"start":860791000,"count":1000},{"start":200000000,"count":1000},{"start":500000000,"count":1000}]},"reduce":{"avg_edge":"mean"}}',
  ]
  for (const text of documented) expect(parseSubmission(JSON.parse(text)).warnings).toEqual([])
})

test("a body that is no object is refused", () => {
  for (const body of [null, undefined, [], "x", 5, true]) expect(problemPaths(body)).toEqual([""])
})

test("J-001, J-042: what is required is named when it is missing, all at once", () => {
  expect(problemPaths({})).toEqual(["project", "runner_command", "type"])
  expect(problemPaths({ type: null, project: null, runner_command: null })).toEqual([
    "project",
    "runner_command",
    "type",
  ])
  expect(problemPaths({ ...least, type: "map_reduce" })).toEqual(["split", "reduce"])
})

test("J-002: a type that is none, and every other wrong field, is refused by its path", () => {
  const wrong: [string, unknown][] = [
    ["type", "x"],
    ["project", 5],
    ["project", ""],
    ["runner_command", "python3 job.py"],
    ["runner_command", []],
    ["payload", []],
    ["payload", "x"],
    ["timeout_s", 0],
    ["timeout_s", -1],
    ["timeout_s", 1.5],
    ["timeout_s", "120"],
    ["timeout_s", 604_801],
    ["runtime_hint_s", 0],
    ["runtime_hint_s", 3601],
    ["max_retries", -1],
    ["max_retries", 101],
    ["priority", "urgent"],
    ["reliability_mode", "sometimes"],
    ["tags", "x"],
    ["tags", Array.from({ length: 21 }, String)],
    ["client_ref", "x".repeat(257)],
    ["meta", []],
    ["meta", { text: "x".repeat(16 * 1024) }],
    ["meta.env", { env: ["A=1"] }],
    ["meta.env.A", { env: { A: 1 } }],
    ["variant", [1]],
    ["gpu_required", "yes"],
    ["fan_out", "models"],
    ["result_schema", []],
    ["depends_on", "job_1"],
    ["callback_url", 5],
    ["callback_url", "nowhere"],
    ["callback_url", "ftp://example.com/x"],
  ]
  for (const [path, value] of wrong) {
    const field = path.split(".")[0] ?? ""
    expect(problemPaths({ ...least, [field]: value })).toEqual([path])
  }
  expect(problemPaths({ ...least, runner_command: ["python3", 1] })).toEqual(["runner_command[1]"])
  expect(problemPaths({ ...least, tags: ["a", 1] })).toEqual(["tags[1]"])
})

test("a refusal says what was wrong and what would be right", () => {
  expect(refusal({ ...least, timeout_s: 0 }).message).toBe("timeout_s: must be a whole number from 1 to 604800, not 0")
  expect(refusal({ ...least, priority: "urgent" }).message).toBe(
    'priority: must be one of high, normal, low, not "urgent"',
  )
})

test("GAP-70: the limits themselves are accepted", () => {
  const { submission } = parseSubmission({
    ...least,
    timeout_s: 604_800,
    runtime_hint_s: 604_800,
    max_retries: 100,
    tags: Array.from({ length: 20 }, String),
    client_ref: "x".repeat(256),
    runner_command: ["node", ...Array.from({ length: 255 }, String)],
  })
  expect(submission.command).toHaveLength(256)
  expect(submission.runtimeHintSeconds).toBe(604_800)
})

test("null for an optional field is the same as leaving it out", () => {
  const nulls = Object.fromEntries(Object.keys(submitJobBody.shape).map((name) => [name, null]))
  expect(parseSubmission({ ...nulls, ...least })).toEqual(parseSubmission(least))
  expect(parseSubmission({ ...least, requirements: { cpu: null, profile: null } })).toEqual(parseSubmission(least))
  expect(parseSubmission({ ...least, payload: { kept: null } }).submission.payload).toEqual({ kept: null })
})

test("J-004: each of the allowed executables is accepted, and nothing else", () => {
  for (const name of ALLOWED_EXECUTABLES)
    expect(parseSubmission({ ...least, runner_command: [name] }).submission.command).toEqual([name])
  for (const name of [
    "perl",
    "/usr/bin/python3",
    "./python3",
    "python3.11",
    "Python3",
    "python3 ",
    "rscript",
    "",
    "constructor",
  ]) {
    expect(refusal({ ...least, runner_command: [name, "x"] })).toMatchObject({
      code: "command_not_allowed",
      status: 422,
    })
  }
})

test("J-005: shells are refused with advice", () => {
  for (const shell of ["bash", "sh", "zsh", "/bin/sh"]) {
    expect(refusal({ ...least, runner_command: [shell, "-c", "python train.py"] }).message).toContain("is a shell")
  }
})

test("GAP-22: commands are bounded, and cannot carry what no program can be given", () => {
  expect(problemPaths({ ...least, runner_command: Array.from({ length: 257 }, () => "python") })).toEqual([
    "runner_command",
  ])
  expect(problemPaths({ ...least, runner_command: ["python", "a\0b"] })).toEqual(["runner_command[1]"])
})

test("J-014: requirements are resolved with their defaults", () => {
  const resolved = (fields: object): unknown => parseSubmission({ ...least, ...fields }).submission.requirements
  const cpu = { cpu: 1, memoryMb: 512, storageGb: 1, gpuCount: 0, profile: "cpu" }
  expect(resolved({ requirements: { cpu: 0.1, memory_mb: 256, storage_gb: 5 } })).toEqual({
    ...cpu,
    cpu: 0.1,
    memoryMb: 256,
    storageGb: 5,
  })
  expect(resolved({ requirements: { gpu_count: 0, gpu_memory_mb: 0 } })).toEqual(cpu)
  expect(resolved({ gpu_required: true })).toEqual({ ...cpu, gpuCount: 1, profile: "gpu" })
  expect(resolved({ requirements: { profile: "gpu" } })).toEqual({ ...cpu, gpuCount: 1, profile: "gpu" })
  expect(resolved({ requirements: { gpu_count: 2 } })).toEqual({ ...cpu, gpuCount: 2, profile: "gpu" })
  expect(resolved({ requirements: { gpu_memory_mb: 16384 } })).toEqual({
    ...cpu,
    gpuCount: 1,
    gpuMemoryMb: 16384,
    profile: "gpu",
  })
  for (const wrong of [
    { profile: "tpu" },
    { cpu: 0 },
    { cpu: 0.05 },
    { memory_mb: -1 },
    { memory_mb: 1.5 },
    { storage_gb: 0 },
    { gpu_count: -1 },
  ]) {
    expect(problemPaths({ ...least, requirements: wrong })).toEqual([`requirements.${Object.keys(wrong)[0]}`])
  }
})

test("C-18: asking for a GPU and against one is a contradiction", () => {
  expect(problemPaths({ ...least, gpu_required: true, requirements: { profile: "cpu" } })).toEqual([
    "requirements.profile",
  ])
  expect(problemPaths({ ...least, gpu_required: true, requirements: { gpu_count: 0 } })).toEqual([
    "requirements.gpu_count",
  ])
  expect(problemPaths({ ...least, requirements: { profile: "cpu", gpu_count: 1 } })).toEqual(["requirements.profile"])
  expect(
    parseSubmission({ ...least, gpu_required: false, requirements: { profile: "cpu", gpu_count: 0 } }).warnings,
  ).toEqual([])
})

test("what a later version brings is refused by name, never accepted and ignored", () => {
  const later: [string, object][] = [
    ["recipe", { recipe: "packing" }],
    [
      "payload._artifacts.upload.m.url",
      { payload: { _artifacts: { upload: { m: { path: "m", url: "https://s3.example.com/m" } } } } },
    ],
    [
      "fan_out.items[1]._artifacts.upload.m.url",
      { fan_out: { items: [{}, { _artifacts: { upload: { m: { path: "m", url: "https://s3.example.com/m" } } } }] } },
    ],
  ]
  for (const [name, fields] of later) {
    const error = refusal({ ...least, ...fields })
    expect(error).toMatchObject({ code: "not_available_yet", status: 422, message: `not available yet: ${name}` })
  }
})

test("J-011, GAP-62: depends_on names up to 100 jobs, each counted once", () => {
  const ids = Array.from({ length: 100 }, (_, n) => `job_20260312_143000_${String(n).padStart(6, "0")}`)
  const dependsOn = (depends_on: unknown) => parseSubmission({ ...least, depends_on }).submission.dependsOn
  expect(dependsOn(ids)).toEqual(ids)
  expect(dependsOn([...ids, ...ids.toReversed()])).toEqual(ids)
  for (const nothing of [undefined, null, []]) expect(dependsOn(nothing)).toBe(undefined)
  expect(problemPaths({ ...least, depends_on: [...ids, "job_20260312_143000_one_more"] })).toEqual(["depends_on"])
  expect(problemPaths({ ...least, depends_on: [ids[0], 7] })).toEqual(["depends_on[1]"])
  expect(problemPaths({ ...least, depends_on: [""] })).toEqual(["depends_on[0]"])
})

test("V-001, V-002, V-004: a guarantee needs its parallelism, has documented defaults and bounds, and best effort is the default", () => {
  const reservationOf = (reservation: object | undefined) =>
    parseSubmission({ ...least, ...(reservation && { reservation }) }).submission.reservation
  expect(reservationOf({ mode: "guaranteed", parallelism: 2 })).toEqual({
    mode: "guaranteed",
    parallelism: 2,
    guaranteedForSeconds: 3600,
    maxWaitSeconds: 0,
  })
  expect(reservationOf({ mode: "guaranteed", parallelism: 1, guaranteed_for_s: 1800, max_wait_s: 600 })).toEqual({
    mode: "guaranteed",
    parallelism: 1,
    guaranteedForSeconds: 1800,
    maxWaitSeconds: 600,
  })
  for (const nothing of [undefined, {}, { mode: "best_effort" }]) {
    expect(reservationOf(nothing)).toEqual({ mode: "best_effort" })
  }
  for (const [wrong, path] of [
    [{ mode: "guaranteed" }, "reservation.parallelism"],
    [{ mode: "guaranteed", parallelism: 0 }, "reservation.parallelism"],
    [{ mode: "guaranteed", parallelism: 1001 }, "reservation.parallelism"],
    [{ mode: "guaranteed", parallelism: 1, guaranteed_for_s: 0 }, "reservation.guaranteed_for_s"],
    [{ mode: "guaranteed", parallelism: 1, guaranteed_for_s: 86_401 }, "reservation.guaranteed_for_s"],
    [{ mode: "certain" }, "reservation.mode"],
  ] as const) {
    expect(problemPaths({ ...least, reservation: wrong }), JSON.stringify(wrong)).toEqual([path])
  }
})

test("SC-005, SC-007: sealed is for recipes only; shared and sandboxed are the defaults; dedicated is accepted", () => {
  expect(problemPaths({ ...least, execution_policy: "sealed" })).toEqual(["execution_policy"])
  expect(parseSubmission(least).submission).toMatchObject({ executionPolicy: "sandboxed", placementPolicy: "shared" })
  const asked = { ...least, execution_policy: "sandboxed", placement_policy: "dedicated" }
  expect(parseSubmission(asked).submission).toMatchObject({ placementPolicy: "dedicated" })
  expect(problemPaths({ ...least, placement_policy: "alone" })).toEqual(["placement_policy"])
})

test("defaults of what a later version brings are accepted", () => {
  const { warnings } = parseSubmission({
    ...least,
    depends_on: [],
    callback_url: null,
    reservation: { mode: "best_effort", parallelism: 2, max_wait_s: 600 },
    execution_policy: "sandboxed",
    placement_policy: "shared",
    checkpointing: { enabled: false },
    state: { publish: {} },
    payload: { _artifacts: {}, _shared: null },
  })
  expect(warnings).toEqual([])
})

test("rulings, Holds: max_cost_usd is an amount above 0 with at most six decimals", () => {
  expect(parseSubmission(least).submission).not.toHaveProperty("maxCostUsd")
  expect(parseSubmission({ ...least, max_cost_usd: null }).submission).not.toHaveProperty("maxCostUsd")
  for (const amount of [0.000001, 0.5, 3, 1_000_000]) {
    expect(parseSubmission({ ...least, max_cost_usd: amount }).submission.maxCostUsd).toBe(amount)
  }
  for (const wrong of [0, -0, -1, 0.0000001, 1.2345678, 1e300, "1", true, [1], {}]) {
    expect(problemPaths({ ...least, max_cost_usd: wrong })).toEqual(["max_cost_usd"])
  }
})

test("SS-004: state.publish takes paths and values under keys of the shared state, and names what is wrong", () => {
  const publish = {
    best_score: { path: "results.0.score" },
    ready: { value: true },
    nothing: { value: null },
    "a.b:c-1": { path: "aggregate_result", value: null },
  }
  expect(parseSubmission({ ...least, state: { publish } }).submission.publish).toEqual([
    { key: "best_score", path: "results.0.score" },
    { key: "ready", value: true },
    { key: "nothing", value: null },
    { key: "a.b:c-1", path: "aggregate_result" },
  ])
  expect(parseSubmission({ ...least, state: { publish: null } }).submission).not.toHaveProperty("publish")
  expect(parseSubmission({ ...least, state: { publsh: {} } }).warnings).toMatchObject([
    { field: "state.publsh", did_you_mean: "state.publish" },
  ])
  const wrong: [string, unknown][] = [
    ["state", true],
    ["state.publish", []],
    ["state.publish.a b", { "a b": { value: 1 } }],
    ["state.publish.", { "": { value: 1 } }],
    ["state.publish.k", { k: 5 }],
    ["state.publish.k", { k: {} }],
    ["state.publish.k", { k: { path: 5 } }],
    ["state.publish.k", { k: { path: "" } }],
    ["state.publish.k", { k: { path: "results..score" } }],
    ["state.publish.k", { k: { path: "x".repeat(513) } }],
    ["state.publish.k", { k: { path: "results.0", value: 1 } }],
    ["state.publish", Object.fromEntries(Array.from({ length: 101 }, (_, n) => [`k${n}`, { value: n }]))],
  ]
  for (const [path, value] of wrong) {
    const state = path === "state" ? value : { publish: value }
    expect(problemPaths({ ...least, state }), JSON.stringify(value)).toEqual([path])
  }
})

test("J-017, CK-001, CK-003: checkpointing is off unless enabled, and resumes only where it is asked to", () => {
  const parsed = (checkpointing: unknown) => parseSubmission({ ...least, checkpointing })
  expect(parsed(undefined).submission).not.toHaveProperty("checkpointing")
  expect(parsed(null).submission).not.toHaveProperty("checkpointing")
  expect(parsed({}).submission.checkpointing).toEqual({ enabled: false, resumeFromLatest: false })
  expect(parsed({ enabled: true }).submission.checkpointing).toEqual({ enabled: true, resumeFromLatest: false })
  expect(parsed({ enabled: true, resume_from_latest: true, payload_key: "state" }).submission.checkpointing).toEqual({
    enabled: true,
    resumeFromLatest: true,
    payloadKey: "state",
  })
  expect(parsed({ resume_from_latest: true }).warnings).toMatchObject([{ field: "checkpointing.resume_from_latest" }])
  expect(parsed({ enabled: true, every_s: 5 }).warnings).toMatchObject([{ field: "checkpointing.every_s" }])
  const wrong: [string, unknown][] = [
    ["checkpointing", true],
    ["checkpointing.enabled", { enabled: "yes" }],
    ["checkpointing.resume_from_latest", { enabled: true, resume_from_latest: 1 }],
    ["checkpointing.payload_key", { enabled: true, payload_key: "" }],
    ["checkpointing.payload_key", { enabled: true, payload_key: "_artifacts" }],
    ["checkpointing.payload_key", { enabled: true, payload_key: "_batch" }],
  ]
  for (const [path, checkpointing] of wrong) expect(problemPaths({ ...least, checkpointing })).toEqual([path])
})

test("GAP-23: a field that shapes another type is refused", () => {
  expect(problemPaths({ ...mapReduce, fan_out: { by: "x" } })).toEqual(["fan_out"])
  expect(problemPaths({ ...mapReduce, checkpointing: { enabled: false } })).toEqual(["checkpointing"])
  for (const field of ["split", "reduce", "parameters", "candidates"]) {
    expect(problemPaths({ ...least, [field]: { x: "sum" } })).toContain(field)
  }
})

test("C-30: unknown fields are accepted and named, with the one that was meant", () => {
  const { warnings } = parseSubmission({
    ...least,
    timeout: 5,
    timeoutS: 5,
    prioritty: "low",
    colour: "red",
    requirements: { memroy_mb: 5 },
    payload: { anything: 1 },
  })
  expect(warnings.map(({ field, did_you_mean }) => [field, did_you_mean])).toEqual([
    ["colour", undefined],
    ["prioritty", "priority"],
    ["requirements.memroy_mb", "requirements.memory_mb"],
    ["timeout", "timeout_s"],
    ["timeoutS", "timeout_s"],
  ])
})

test("fields without effect on this type are named, not as unknown", () => {
  const { warnings } = parseSubmission({ ...mapReduce, merge_strategy: "keyed", rank_by: "x" })
  expect(warnings.map(({ field }) => field)).toEqual(["merge_strategy", "rank_by"])
  expect(warnings[0]?.message).toContain("structured_runner")
})

test("keys that JavaScript treats specially are ordinary data", () => {
  const body = JSON.parse(
    '{"type":"structured_runner","project":"p","runner_command":["node"],"__proto__":{"priority":"high"},"constructor":1,"payload":{"__proto__":{"a":1},"toString":2},"meta":{"__proto__":{"env":5}}}',
  ) as unknown
  const { submission, warnings } = parseSubmission(body)
  expect(submission.priority).toBe("normal")
  expect(JSON.stringify(submission.payload)).toBe('{"__proto__":{"a":1},"toString":2}')
  expect(JSON.stringify(submission.meta)).toBe('{"__proto__":{"env":5}}')
  expect(warnings.map(({ field }) => field)).toEqual(["__proto__", "constructor"])
})

test("SR-002, SR-003: exactly one fan-out shape", () => {
  const payload = { m: [1, 2], n: 10 }
  for (const shape of [{ by: "m" }, { items: [{}] }, { chunks: 2, total: 4 }, { chunks: 2, range_field: "n" }]) {
    expect(parseSubmission({ ...least, payload, fan_out: shape }).warnings).toEqual([])
  }
  const mixed = [
    { by: "m", items: [{}] },
    { items: [{}], chunks: 1, total: 1 },
    { by: "m", chunks: 1, total: 1 },
    { by: "m", start: 0 },
    {},
  ]
  for (const shape of mixed) expect(problemPaths({ ...least, payload, fan_out: shape })).toEqual(["fan_out"])
})

test("SR-006, GAP-33, GAP-34: a fan-out without anything to fan out is refused", () => {
  expect(problemPaths({ ...least, fan_out: { by: "m" } })).toEqual(["payload.m"])
  expect(problemPaths({ ...least, payload: { m: "a" }, fan_out: { by: "m" } })).toEqual(["payload.m"])
  expect(problemPaths({ ...least, payload: { m: [] }, fan_out: { by: "m" } })).toEqual(["payload.m"])
  expect(problemPaths({ ...least, fan_out: { by: "constructor" } })).toEqual(["payload.constructor"])
  expect(problemPaths({ ...least, fan_out: { items: [] } })).toEqual(["fan_out.items"])
  expect(problemPaths({ ...least, fan_out: { items: [{}, 5] } })).toEqual(["fan_out.items[1]"])
  expect(problemPaths({ ...least, fan_out: { chunks: 2 } })).toEqual(["fan_out.total"])
  expect(problemPaths({ ...least, fan_out: { total: 2 } })).toEqual(["fan_out.chunks"])
  expect(problemPaths({ ...least, fan_out: { chunks: 2, total: 0 } })).toEqual(["fan_out.total"])
  expect(problemPaths({ ...least, fan_out: { chunks: 2, total: 10, start: Number.MAX_SAFE_INTEGER } })).toEqual([
    "fan_out",
  ])
  expect(problemPaths({ ...least, payload: { n: "10" }, fan_out: { chunks: 2, range_field: "n" } })).toEqual([
    "fan_out.total",
  ])
})

test("SR-010: batch_per_task is another name of batch_size", () => {
  const batched = (fields: object): unknown =>
    parseSubmission({ ...least, fan_out: { items: [{}], ...fields } }).submission.work
  expect(batched({ batch_per_task: 3 })).toEqual(batched({ batch_size: 3 }))
  expect(batched({ batch_per_task: 3, batch_size: 3 })).toEqual(batched({ batch_size: 3 }))
  expect(problemPaths({ ...least, fan_out: { items: [{}], batch_size: 2, batch_per_task: 3 } })).toEqual([
    "fan_out.batch_per_task",
  ])
  expect(problemPaths({ ...least, fan_out: { items: [{}], batch_size: 0 } })).toEqual(["fan_out.batch_size"])
})

test("SR-012, SR-014, SR-015, GAP-37: merge strategies and what they need", () => {
  const items = { fan_out: { items: [{}] } }
  expect(problemPaths({ ...least, ...items, merge_strategy: "x" })).toEqual(["merge_strategy"])
  expect(problemPaths({ ...least, ...items, merge_strategy: "keyed" })).toEqual(["merge_strategy"])
  expect(problemPaths({ ...least, merge_strategy: "weighted_avg", value_field: "v" })).toEqual(["weight_field"])
  expect(problemPaths({ ...least, merge_strategy: "weighted_avg", weight_field: "w" })).toEqual(["value_field"])
  const merge = { strategy: "weighted_avg", valueField: "v", weightField: "w" }
  const inside = {
    ...least,
    fan_out: { items: [{}], value_field: "v", weight_field: "w" },
    merge_strategy: "weighted_avg",
  }
  expect(parseSubmission(inside).submission.work).toMatchObject({ merge })
  const outside = { ...least, value_field: "v", weight_field: "w", merge_strategy: "weighted_avg" }
  expect(parseSubmission(outside).submission.work).toMatchObject({ merge })
})

test("MR-001, MR-002, MR-004, MR-007: split and reduce are checked", () => {
  const wrong: [string, object][] = [
    ["split.field", { split: { total: 1, chunks: 1 } }],
    ["split.total", { split: { field: "s", chunks: 1 } }],
    ["split.chunks", { split: { field: "s", total: 1 } }],
    ["split.total", { split: { field: "s", ranges: [{ start: 0, count: 1 }], total: 5 } }],
    ["split.ranges", { split: { field: "s", ranges: [] } }],
    ["split.ranges[0].count", { split: { field: "s", ranges: [{ start: 0, count: 0 }] } }],
    [
      "split.ranges[1]",
      {
        split: {
          field: "s",
          ranges: [
            { start: 0, count: 1 },
            { start: Number.MAX_SAFE_INTEGER, count: 1 },
          ],
        },
      },
    ],
    ["reduce", { reduce: {} }],
    ["reduce", { reduce: null }],
    ["reduce.a", { reduce: { a: "median" } }],
    ["reduce.a", { reduce: { a: "weighted_avg:" } }],
    ["reduce.a", { reduce: { a: "weighted_avg" } }],
    ["reduce.a", { reduce: { a: 5 } }],
  ]
  for (const [path, fields] of wrong) expect(problemPaths({ ...mapReduce, ...fields })).toEqual([path])
  const all = { a: "sum", b: "mean", c: "max", d: "min", e: "weighted_avg:n", f: "concat", g: "count", h: "collect" }
  expect(parseSubmission({ ...mapReduce, reduce: all }).warnings).toEqual([])
})

test("J-019: the result schema is checked", () => {
  const accepted = { required_fields: ["score"], field_types: { score: "number" }, field_ranges: { score: [0.0, 1.0] } }
  expect(parseSubmission({ ...least, result_schema: accepted }).submission.resultSchema).toEqual({
    requiredFields: ["score"],
    fieldTypes: [["score", "number"]],
    fieldRanges: [["score", 0, 1]],
  })
  expect(problemPaths({ ...least, result_schema: { required_fields: "x" } })).toEqual(["result_schema.required_fields"])
  expect(problemPaths({ ...least, result_schema: { field_types: { a: "float" } } })).toEqual([
    "result_schema.field_types.a",
  ])
  for (const range of [[1, 0], [0], "0-1", [0, "1"], null]) {
    expect(problemPaths({ ...least, result_schema: { field_ranges: { a: range } } })).toEqual([
      "result_schema.field_ranges.a",
    ])
  }
})

test("a body that the door has parsed already gives the same submission and warnings", () => {
  const body = {
    ...least,
    tags: null,
    colour: 1,
    requirements: { cpu: 2, memroy_mb: 5 },
    fan_out: { items: [{ a: null }], bacth_size: 2 },
  }
  const parsed = parseSubmission(parseFields(submitJobBody, body))
  expect(parsed).toEqual(parseSubmission(body))
  expect(parsed.warnings.map(({ field }) => field)).toEqual(["colour", "fan_out.bacth_size", "requirements.memroy_mb"])
})

test("C-30: no documented field is called unknown", () => {
  // contract/endpoints.json, jobs-create.
  const documented =
    "type project recipe runner_command payload fan_out merge_strategy value_field weight_field parameters fixed_payload rank_by rank_order split reduce candidates shared_payload replicas replica_vary timeout_s runtime_hint_s max_retries priority reliability_mode requirements gpu_required reservation checkpointing depends_on tags callback_url result_schema state execution_policy placement_policy client_ref meta variant"
  expect(Object.keys(submitJobBody.shape)).toEqual(expect.arrayContaining(documented.split(" ")))
  expect(JOB_TYPES_SHOWN).toEqual(["structured_runner", "sweep", "map_reduce", "benchmark"])
})
const JOB_TYPES_SHOWN = submitJobBody.shape.type.unwrap().options

test("edit distance counts insertions, deletions, replacements and swaps", () => {
  const distances = [
    ["", ""],
    ["abc", "abc"],
    ["abc", ""],
    ["abc", "acb"],
    ["tag", "tags"],
    ["kitten", "sitting"],
  ].map(([a = "", b = ""]) => editDistance(a, b))
  expect(distances).toEqual([0, 0, 3, 1, 1, 3])
})
