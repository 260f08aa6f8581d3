import { execFileSync } from "node:child_process"
import { existsSync, mkdirSync, mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterAll, beforeAll, beforeEach, describe, expect, onTestFinished, test } from "vitest"
import { createHasher } from "../../node-agent/cache/hasher.ts"
import { createProcessDriver } from "../../node-agent/runtime/process.ts"
import type { AttemptEnd, AttemptRunner, AttemptWatch } from "../../node-agent/tasks/attempt-runner.ts"
import { createAttemptRunner } from "../../node-agent/tasks/run-attempt.ts"
import { createRuntimes, type Runtimes } from "../../node-agent/tasks/runtimes.ts"
import { assert } from "../../protocol/base/assert.ts"
import { systemClock } from "../../protocol/base/clock.ts"
import { sha256Hex } from "../../protocol/base/digest.ts"
import { silentLog } from "../../protocol/base/log.ts"
import { claimNumber } from "../../protocol/domain/ids.ts"
import { toWireRef } from "../../protocol/wire/content-source.ts"
import {
  CONTROL_PROTOCOL,
  encodeMessage,
  type GrantedTask,
  type ResultItem,
  type RuntimeSpec,
  type TaskSpec,
  type ToCoordinator,
} from "../../protocol/wire/control.ts"
import { taskSpec } from "../support/agent.ts"
import { startCheckpointRig } from "../support/checkpoints.ts"
import { openTestBlobs, type TestBlobs } from "../support/content.ts"
import { startInputsRig } from "../support/inputs.ts"
import { tarballOf, type Member } from "../support/tarball.ts"

const home = mkdtempSync(join(tmpdir(), "computalot-run-"))
const hasher = createHasher(systemClock)
const left = startCheckpointRig({ blobs: () => blobs, hasher })
const given = startInputsRig(() => blobs)
const said: ToCoordinator[] = []
const payloads = new Map<number, string>()
let blobs: TestBlobs
let runtimes: Runtimes
let runner: AttemptRunner
let tree: RuntimeSpec
let outboxFull = false
let claims = 0
let revisions = 0
const attemptsDir = join(home, "attempts")
const driver = createProcessDriver({ dataDir: home, attemptsDir })

beforeAll(async () => {
  blobs = await openTestBlobs()
  const machineEnv = { PATH: "/usr/bin:/bin", HOME: home }
  runtimes = createRuntimes({
    directory: join(home, "runtimes"),
    blobs,
    // The blobs are all here already.
    fetch: { fetchBlob: async (blob) => ({ blob, bytesFromPeers: 0, bytesFromOrigin: 0, culprits: [] }) },
    images: null,
    validate: { driver, attemptsDir, network: "none", machineEnv },
    origin: () => null,
    holdersOf: () => [],
    send: (message) => said.push(message),
    changed: () => {},
    treeQuotaBytes: 1024 ** 3,
    clock: systemClock,
    log: silentLog,
  })
  await runtimes.restore()
  runner = createAttemptRunner({
    driver,
    runtimes,
    attemptsDir,
    network: "none",
    machineEnv,
    hasher,
    downloadPayload: async (claim) => chunk(payloads.get(claim) ?? ""),
    checkpoints: left.checkpoints,
    resume: left.resume,
    inputs: given.fetch,
    outboxFull: () => outboxFull,
    clock: systemClock,
    log: silentLog,
  })
  await runner.sweep([])
  tree = await revision([{ name: "data.txt", content: "from the project" }])
})

afterAll(async () => {
  await runtimes[Symbol.asyncDispose]()
  await runner.sweep([])
  await driver[Symbol.asyncDispose]()
  await left[Symbol.asyncDispose]()
  await hasher[Symbol.asyncDispose]()
  await blobs[Symbol.asyncDispose]()
  rmSync(home, { recursive: true, force: true })
})

async function* chunk(content: string | Uint8Array): AsyncGenerator<Uint8Array> {
  yield typeof content === "string" ? Buffer.from(content) : content
}

async function revision(files: Member[], changes: Partial<RuntimeSpec> = {}): Promise<RuntimeSpec> {
  const ref = await blobs.put({ stream: chunk(await tarballOf(files)) })
  return {
    revision: `rev_${++revisions}`,
    tarball: toWireRef(ref),
    image: null,
    workdir: "/workspace",
    remote_dir: null,
    setup_timeout_ms: 30_000,
    validation: null,
    content_grant: "",
    holders: [],
    ...changes,
  }
}

const UNWATCHED: AttemptWatch = { started: () => {}, progressed: () => {}, exited: () => {} }

interface Ran {
  item: ResultItem
  end: AttemptEnd
  progress: string[]
  dir: string
}

async function run(
  python: string,
  changes: Partial<TaskSpec> & { payload?: unknown; task?: Partial<GrantedTask> } = {},
): Promise<Ran> {
  const { payload = {}, task = {}, ...spec } = changes
  const claim = ++claims
  const progress: string[] = []
  const work = runner.start(
    {
      task: { claim, spec: 0, index: 0, attempt: 1, payload: payloadOf(claim, payload), gpus: [], ...task },
      spec: taskSpec(tree, ["python3", "-c", python], { memory_mb: 512, ...spec }),
    },
    { ...UNWATCHED, progressed: (news) => news.progress !== null && progress.push(news.progress) },
  )
  const end = await work.done
  if (end.kind !== "result")
    return { item: {} as ResultItem, end, progress, dir: runner.attemptDir(claimNumber(claim)) }
  return { item: end.end.item, end, progress, dir: runner.attemptDir(claimNumber(claim)) }
}

function payloadOf(claim: number, payload: unknown) {
  const text = JSON.stringify(payload)
  if (text.length < 1000) return { text }
  payloads.set(claim, text)
  return { digest: sha256Hex(text), size: text.length }
}

const ECHO = `
import json, os
payload = json.load(open(os.environ["COMPUTALOT_TASK_PAYLOAD"]))
json.dump({"payload": payload, "file": open("data.txt").read()}, open(os.environ["COMPUTALOT_TASK_RESULT"], "w"))
`

test("RP-002, RP-003: the program reads its payload and its project, and its result comes back", async () => {
  const { item } = await run(ECHO, { payload: { a: 1 } })
  expect(item).toMatchObject({ failure_kind: null, exit_code: 0, result_problem: null, artifacts: [] })
  expect(item.result).toEqual({ text: '{"payload": {"a": 1}, "file": "from the project"}' })
  const large = { text: "x".repeat(5000) }
  expect((await run(ECHO, { payload: large })).item.result).toEqual({
    text: JSON.stringify({ payload: large, file: "from the project" }).replaceAll('":', '": ').replaceAll(',"', ', "'),
  })
})

test("RP-006: an exit code other than 0 is a failure that names it, with the end of standard error", async () => {
  const { item } = await run("import sys; print('out'); print('wrong', file=sys.stderr); sys.exit(3)")
  expect(item).toMatchObject({ failure_kind: "exit_code", exit_code: 3, error_tail: "wrong\n" })
  expect(item.output).toContain("out\n")
})

test("GAP-45: a result that is no JSON, a link or a pipe is no result, and why is said", async () => {
  const path = 'os.environ["COMPUTALOT_TASK_RESULT"]'
  const notJson = await run(`import os; open(${path}, "w").write("nope")`)
  expect(notJson.item).toMatchObject({ failure_kind: null, result: null })
  expect(notJson.item.result_problem).toContain("not JSON")
  expect((await run(`import os; os.symlink("/etc/passwd", ${path})`)).item.result_problem).toContain("a link")
  expect((await run(`import os; os.mkfifo(${path})`)).item.result_problem).toContain("no plain file")
  expect((await run("pass")).item).toMatchObject({ result: null, result_problem: null })
})

test("a large result becomes a file of its own, named by its digest, which stays until the attempt is discarded", async () => {
  const { item, end, dir } = await run(
    'import os; open(os.environ["COMPUTALOT_TASK_RESULT"], "w").write(\'"\' + "x" * 300000 + \'"\')',
  )
  const text = `"${"x".repeat(300_000)}"`
  expect(item.result).toEqual({ digest: sha256Hex(text), size: text.length })
  const file = end.kind === "result" ? end.end.files[0] : undefined
  expect(file).toMatchObject({ digest: sha256Hex(text), path: join(dir, "result.json") })
  await runner.discard(claimNumber(claims))
  expect(existsSync(dir)).toBe(false)
})

test("AW-001, C-23: what lies in the artifact directory is one tar.gz, links as links; nothing there: no artifact", async () => {
  const { item, dir } = await run(`
import os
at = os.environ["COMPUTALOT_ARTIFACT_DIR"]
os.makedirs(at + "/sub")
open(at + "/one.txt", "w").write("1")
open(at + "/sub/--two", "w").write("2")
os.symlink("/etc/passwd", at + "/link")
os.mkfifo(at + "/pipe")
`)
  expect(item.artifacts).toMatchObject([{ name: null, filename: "artifacts.tar.gz", content_type: "application/gzip" }])
  const listed = execFileSync("tar", ["-tvzf", join(dir, "artifacts.tar.gz")], { encoding: "utf8" })
  expect(listed).toContain("one.txt")
  expect(listed).toContain("sub/--two")
  expect(listed).toContain("link -> /etc/passwd")
  expect(listed).not.toContain("pipe")
  const failed = await run(
    'import os,sys; open(os.environ["COMPUTALOT_ARTIFACT_DIR"] + "/x", "w").write("1"); sys.exit(1)',
  )
  expect(failed.item.artifacts).toEqual([])
})

const uploadsOf = (...paths: string[]): GrantedTask["uploads"] =>
  paths.map((path, n) => ({ name: `n${n}`, path, filename: null, content_type: null }))
const KEEP = `
import os
at = os.environ["COMPUTALOT_ARTIFACT_DIR"]
def keep(path, text):
    os.makedirs(os.path.dirname(at + "/" + path), exist_ok=True)
    open(at + "/" + path, "w").write(text)
`

test("AW-002, C-23: declared files are files of their own, and no part of the archive; without others there is none", async () => {
  const made = `${KEEP}
keep("b.c", "1")
keep("b/in", "2")
keep("a\\nb", "3")
keep("sub/x y", "in sub")
keep("-z", "4")`
  const { item, dir } = await run(made, { task: { uploads: uploadsOf("sub/x y", "-z", "a\nb") ?? [] } })
  expect(item, item.error_tail).toMatchObject({ failure_kind: null })
  expect(item.artifacts.map(({ name, filename }) => [name, filename])).toEqual([
    ["n0", "x y"],
    ["n1", "-z"],
    ["n2", "a\nb"],
    [null, "artifacts.tar.gz"],
  ])
  expect(item.artifacts[0]).toMatchObject({ digest: sha256Hex("in sub"), size: 6 })
  const listed = execFileSync("tar", ["-tzf", join(dir, "artifacts.tar.gz")], { encoding: "utf8" })
    .trim()
    .split("\n")
  expect(listed).toEqual(["b/", "b.c", "b/in", "sub/"])
  const alone = await run(`${KEEP}\nkeep("deep/er/model.pt", "m")`, {
    task: { uploads: uploadsOf("deep/er/model.pt") ?? [] },
  })
  expect(alone.item.artifacts).toMatchObject([{ name: "n0", filename: "model.pt" }])
})

test("AW-002, GAP-54: a link to a file inside is taken, one that leads out is a warning; so is what is not there", async () => {
  const { item, end } = await run(
    `${KEEP}
keep("epoch-1.pt", "one")
os.symlink("epoch-1.pt", at + "/latest.pt")
os.symlink("/etc/passwd", at + "/out")
os.symlink("/etc", at + "/etc")
os.mkfifo(at + "/pipe")`,
    { task: { uploads: uploadsOf("latest.pt", "out", "etc/passwd", "pipe", "nothing") ?? [] } },
  )
  expect(item.artifacts).toMatchObject([{ name: "n0", digest: sha256Hex("one") }, { name: null }])
  expect(item.warnings?.map((one) => one.slice(0, 11))).toEqual([
    "artifact n1",
    "artifact n2",
    "artifact n3",
    "artifact n4",
  ])
  expect(end.kind === "result" && end.end.files).toHaveLength(2)
  expect((await run(KEEP, { task: { uploads: uploadsOf("x") ?? [] } })).item.warnings).toHaveLength(1)
  expect((await run(KEEP)).item).not.toHaveProperty("warnings")
  const failed = await run(`${KEEP}\nkeep("x", "x")\nraise SystemExit(1)`, { task: { uploads: uploadsOf("x") ?? [] } })
  expect(failed.item.artifacts).toEqual([])
})

describe("files that are given", () => {
  beforeEach(() => {
    given.given = { files: [], content_grant: "grant", unavailable: null }
    given.asked = 0
  })
  const READ = `
import json, os
payload = json.load(open(os.environ["COMPUTALOT_TASK_PAYLOAD"]))
paths = payload["_artifacts"]["local_paths"]
read = {name: open(path).read() for name, path in paths.items()}
json.dump({"payload": payload, "read": read, "env": os.environ.get("COMPUTALOT_ARTIFACT_DATA_SET")},
  open(os.environ["COMPUTALOT_TASK_RESULT"], "w"))`
  const resultOf = ({ item }: Ran): Record<string, unknown> => {
    expect(item, item.error_tail).toMatchObject({ failure_kind: null })
    return JSON.parse(item.result && "text" in item.result ? item.result.text : "{}") as Record<string, unknown>
  }

  test("AW-003, AW-005, AW-006: they lie below the attempt's folder, and what a program does to them is its own", async () => {
    await given.give("data set", "../../d ü.csv", "a,b")
    await given.give("empty", "empty", "")
    const spoils = `${READ}
for path in paths.values():
    os.chmod(path, 0o644)
    open(path, "w").write("spoilt")`
    const payload = { _artifacts: { download: { "data set": "art_1" } }, n: 1 }
    for (const _ of [1, 2]) {
      const ran = await run(spoils, { payload, task: { downloads: true } })
      const { payload: seen, read, env } = resultOf(ran)
      const path = join(ran.dir, "inputs", "0", "d__.csv")
      expect(seen).toEqual({
        n: 1,
        _artifacts: {
          download: { "data set": "art_1" },
          local_paths: { "data set": path, empty: join(ran.dir, "inputs", "1", "empty") },
        },
      })
      expect([read, env]).toEqual([{ "data set": "a,b", empty: "" }, path])
    }
  })

  test("rulings: what is unavailable fails the attempt at once; what cannot be fetched is asked for again, then fails it", async () => {
    await given.give("data set", "d.csv", "a,b")
    given.failing = 2
    expect(resultOf(await run(READ, { task: { downloads: true } }))["read"]).toEqual({ "data set": "a,b" })
    expect(given.asked).toBe(3)
    given.failing = 99
    const never = await run(READ, { task: { downloads: true } })
    given.failing = 0
    expect(never.item).toMatchObject({ failure_kind: "sandbox_error", runtime_ms: 0 })
    expect(never.item.message).not.toContain(home)
    given.given.unavailable = "data set: the artifact art_1 is not there, or no longer"
    given.asked = 0
    const gone = await run(READ, { task: { downloads: true } })
    expect(gone.item).toMatchObject({ failure_kind: "artifact_unavailable", message: given.given.unavailable })
    expect(given.asked).toBe(1)
  })

  test("SS-003: a grant that says so makes variables of the shared values, large payloads included", async () => {
    const tell = `
import json, os
json.dump({n: v for n, v in os.environ.items() if n.startswith("COMPUTALOT_SHARED_")}, open(os.environ["COMPUTALOT_TASK_RESULT"], "w"))`
    const payload = { _shared: { values: { a: "x", B: 2 } }, pad: "y".repeat(2_000) }
    expect(resultOf(await run(tell, { payload, task: { shares: true } }))).toEqual({
      COMPUTALOT_SHARED_A: "x",
      COMPUTALOT_SHARED_a: "x",
      COMPUTALOT_SHARED_B: "2",
    })
    expect(resultOf(await run(tell, { payload }))).toEqual({})
  })
})

test("RP-007: every progress line is handed on and none is left in the output", async () => {
  const { item, progress } = await run(
    'for i in range(3): print("COMPUTALOT_PROGRESS:{\\"percent\\": %d}" % i)\nprint("done")',
  )
  expect(progress).toEqual(['{"percent": 0}', '{"percent": 1}', '{"percent": 2}'])
  expect(item.output).toBe("done\n")
})

test("architecture §5.3: a report with the last checkpoint, progress, output and result fits into its frame", async () => {
  left.answering = false
  onTestFinished(() => void (left.answering = true))
  // JSON in JSON: nearly every character of these takes two.
  const { item, end } = await run(
    `
import json, os, sys
quotes = '"' * 15_000
print("COMPUTALOT_PROGRESS:" + json.dumps({"line": quotes, "checkpoint": {"state": quotes}}))
print("COMPUTALOT_PROGRESS:" + json.dumps({"last": '"' * 3_000}))
for stream in (sys.stdout, sys.stderr): stream.write('"' * 20_000)
json.dump('"' * 30_000, open(os.environ["COMPUTALOT_TASK_RESULT"], "w"))`,
    { checkpoints: true },
  )
  expect(item.checkpoint).toMatchObject({ file: null, problem: null })
  expect(JSON.parse(item.progress ?? "")).toEqual({ last: '"'.repeat(3_000) })
  expect(item.result).toMatchObject({ size: 60_002 })
  expect(end.kind === "result" && end.end.files).toHaveLength(1)
  expect(encodeMessage({ type: "report", items: [item] }).length).toBeLessThan(CONTROL_PROTOCOL.largestFrameBytes)
  // Without checkpoints the result stays in the report.
  expect(
    (
      await run(`import json, os
print('COMPUTALOT_PROGRESS:{"checkpoint": {}}')
json.dump(1, open(os.environ["COMPUTALOT_TASK_RESULT"], "w"))`)
    ).item,
  ).not.toMatchObject({ checkpoint: {} })
})

test("rulings, Redaction: the attempt's folder is shown as the workdir", async () => {
  const { item } = await run("import os; print(os.getcwd())")
  expect(item.output).toBe("/workspace\n")
})

test("400 MB of output cost bounded memory and keep their end", async () => {
  const before = process.memoryUsage().rss
  const { item } = await run(
    'import sys\nfor i in range(400): sys.stdout.write("x" * 999_999 + "\\n")\nprint("the end")',
  )
  expect(item.failure_kind).toBe(null)
  expect(item.output.endsWith("x\nthe end\n")).toBe(true)
  expect(item.output).toMatch(/^\[cut: /)
  expect(process.memoryUsage().rss - before).toBeLessThan(200_000_000)
})

test("rulings, Holds: reaching what the hold buys is budget_spent, reaching the timeout is timeout", async () => {
  const sleeps = "import time; time.sleep(30)"
  expect((await run(sleeps, { timeout_ms: 300 })).item.failure_kind).toBe("timeout")
  expect((await run(sleeps, { timeout_ms: 60_000, budget_ms: 300 })).item.failure_kind).toBe("budget_spent")
})

test("a command that the machine lacks is preparation_failed; a tarball that is none is setup_failed", async () => {
  expect((await run("", { command: ["no-such-command"] })).item.failure_kind).toBe("preparation_failed")
  const broken = await blobs.put({ stream: chunk("this is no tarball") })
  const runtime = { ...tree, revision: "rev_broken", tarball: toWireRef(broken) }
  const { item } = await run("pass", { runtime })
  expect(item).toMatchObject({ failure_kind: "setup_failed", runtime_ms: 0 })
})

test("rulings, Projects: a failed validation gives the grant back and tells the coordinator, with the check's output", async () => {
  const commands = [{ label: "imports", command: ["python3", "-c", "import no_such_module"] }]
  const runtime = await revision([{ name: "x", content: "" }], {
    validation: { executables: ["python3"], files: [], commands },
  })
  expect((await run("pass", { runtime })).end).toMatchObject({ kind: "returned" })
  const replica = said.findLast((message) => message.type === "replica" && message.revision === runtime.revision)
  expect(replica).toMatchObject({ state: "failed" })
  expect(JSON.stringify(replica)).toContain("no_such_module")
})

test("attempts do not see what others wrote into their copy of the tree, and .venv/bin comes first (M-010)", async () => {
  const runtime = await revision([{ name: ".venv/bin/python", content: "#!/bin/sh\necho mine\n", mode: 0o755 }])
  await run("open('left', 'w').write('x')", { runtime })
  const { item } = await run("import os; print(os.path.exists('left')); os.system('python')", { runtime })
  expect(item.output.split("\n").toSorted()).toEqual(["", "False", "mine"])
})

test("an attempt that is stopped ends soon, and a collected end is found again by another agent", async () => {
  const claim = ++claims
  const grant = {
    task: { claim, spec: 0, index: 0, attempt: 1, payload: { text: "{}" }, gpus: [] },
    spec: taskSpec(tree, ["python3", "-c", "import time; time.sleep(60)"]),
  }
  const { promise: started, resolve } = Promise.withResolvers<void>()
  const work = runner.start(grant, { ...UNWATCHED, started: resolve })
  await started
  work.stop("cancelled")
  const end = await work.done
  expect(end).toMatchObject({ kind: "result", end: { item: { failure_kind: "cancelled" } } })
  const dir = runner.attemptDir(claimNumber(claim))
  const held = { ...grant, claim: claimNumber(claim), state: "running" as const, attemptDir: dir }
  const adopted = await (await runner.adopt(held, UNWATCHED))?.done
  expect(adopted).toMatchObject({ kind: "result", end: end.kind === "result" ? end.end : {} })
  // Besides, an attempt that nobody keeps, and what a killed agent had put aside.
  const left = ["c0", ".trash-1", ".trash-1.2/3"].map((name) => join(attemptsDir, name))
  for (const path of left) mkdirSync(path, { recursive: true })
  await runner.sweep([])
  expect(existsSync(dir)).toBe(false)
  for (const path of left) expect(existsSync(path)).toBe(false)
})

test("an end is found again by another agent until it is stored, with its result and with its files; then its disk goes", async () => {
  const results = [
    `import os; open(os.environ["COMPUTALOT_TASK_RESULT"], "w").write("[1]"); print("said")`,
    `import os; open(os.environ["COMPUTALOT_TASK_RESULT"], "w").write('"' + "x" * 300000 + '"')`,
  ]
  for (const program of results) {
    const { end, dir } = await run(program)
    assert(end.kind === "result", "it ran")
    const claim = claimNumber(claims)
    const spec = taskSpec(tree, ["python3", "-c", program])
    const task = { claim, spec: 0, index: 0, attempt: 1, payload: { text: "{}" }, gpus: [] }
    const adopted = await runner.adopt({ task, spec, claim, state: "running", attemptDir: dir }, UNWATCHED)
    expect(await adopted?.done).toMatchObject({ end: end.end })
    end.stored?.()
    await expect.poll(() => existsSync(join(dir, "disk"))).toBe(false)
    await runner.discard(claim)
    expect(existsSync(dir)).toBe(false)
  }
})

test("what an attempt leaves on its disk is not there for the next, which may find its directories", async () => {
  const leaves = `
import os
for name in ["COMPUTALOT_TASK_RESULT", "COMPUTALOT_ARTIFACT_DIR", "COMPUTALOT_TASK_SCRATCH_DIR"]:
    at = os.environ[name]
    print([entry for entry in os.scandir(at if os.path.isdir(at) else os.path.dirname(at))])
    open(at + "/left" if os.path.isdir(at) else at, "w").write("[1]")
open("left", "w").write("x")
print(sorted(os.listdir(".")))
print(os.stat("..").st_ino)
`
  const inodes = new Set<string | undefined>()
  for (let n = 0; n < 3; n++) {
    const { item, end } = await run(leaves)
    const lines = item.output.trim().split("\n")
    inodes.add(lines.pop())
    expect(lines).toEqual(["[]", "[]", "[]", "['data.txt', 'left']"])
    if (end.kind === "result") end.stored?.()
    await runner.discard(claimNumber(claims))
  }
  expect(inodes.size).toBe(1)
})

test("architecture §5.3: while the outbox is full an ended attempt is held, kept whole, and collected when there is room", async () => {
  onTestFinished(() => void (outboxFull = false))
  outboxFull = true
  const claim = ++claims
  const spec = taskSpec(tree, ["python3", "-c", `${ECHO}print("said")`])
  const task = { claim, spec: 0, index: 0, attempt: 1, payload: { text: "{}" }, gpus: [] }
  const { promise: exited, resolve } = Promise.withResolvers<void>()
  const work = runner.start({ task, spec }, { ...UNWATCHED, exited: resolve })
  let ended = false
  void work.done.then(() => (ended = true))
  await exited
  await new Promise((later) => setTimeout(later, 700))
  const dir = runner.attemptDir(claimNumber(claim))
  expect([ended, existsSync(join(dir, "end.json")), existsSync(join(dir, "stdout"))]).toEqual([false, false, true])
  // An agent that starts now finds it as it ended, and holds it too.
  const adopted = await runner.adopt(
    { task, spec, claim: claimNumber(claim), state: "running", attemptDir: dir },
    UNWATCHED,
  )
  expect(existsSync(join(dir, "end.json"))).toBe(false)
  outboxFull = false
  const end = await work.done
  expect(end).toMatchObject({ kind: "result", end: { item: { failure_kind: null, output: "said\n" } } })
  expect(await adopted?.done).toMatchObject({ kind: "result", end: { item: { failure_kind: null } } })
})

test("an attempt that is held and then cancelled ends at once", async () => {
  onTestFinished(() => void (outboxFull = false))
  outboxFull = true
  const task = { claim: ++claims, spec: 0, index: 0, attempt: 1, payload: { text: "{}" }, gpus: [] }
  const { promise: exited, resolve } = Promise.withResolvers<void>()
  const work = runner.start({ task, spec: taskSpec(tree, ["true"]) }, { ...UNWATCHED, exited: resolve })
  await exited
  work.stop("cancelled")
  expect(await work.done).toMatchObject({ kind: "result" })
})
