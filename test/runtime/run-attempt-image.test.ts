import { execFileSync } from "node:child_process"
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest"
import { createHasher } from "../../node-agent/cache/hasher.ts"
import { createBubblewrapDriver } from "../../node-agent/runtime/bubblewrap.ts"
import type { RuntimeDriver } from "../../node-agent/runtime/driver.ts"
import { createImageStore } from "../../node-agent/runtime/images/images.ts"
import { openLayerStore } from "../../node-agent/runtime/images/layer-store.ts"
import { readBases } from "../../node-agent/runtime/images/bases.ts"
import type { AttemptWatch, AttemptRunner } from "../../node-agent/tasks/attempt-runner.ts"
import { createAttemptRunner } from "../../node-agent/tasks/run-attempt.ts"
import { createRuntimes, type Runtimes } from "../../node-agent/tasks/runtimes.ts"
import { systemClock } from "../../protocol/base/clock.ts"
import { silentLog } from "../../protocol/base/log.ts"
import { ComputalotError } from "../../protocol/domain/errors.ts"
import { claimNumber, digest, peerId } from "../../protocol/domain/ids.ts"
import { imageDigest } from "../../protocol/domain/image.ts"
import { toWireRef } from "../../protocol/wire/content-source.ts"
import type { ResultItem, RuntimeSpec, TaskSpec, ToCoordinator } from "../../protocol/wire/control.ts"
import { taskSpec } from "../support/agent.ts"
import { startCheckpointRig } from "../support/checkpoints.ts"
import { openTestBlobs, type TestBlobs } from "../support/content.ts"
import { layerOf, makeBases, missingTools } from "../support/images.ts"
import { startInputsRig } from "../support/inputs.ts"

const skipped = missingTools("bwrap", "mmdebstrap", "setpriv", "tar") !== null

/** A project's image on the python base, its attempts in bubblewrap, as a node runs them. */
const CHECK = `import os
seen = [os.getcwd(), *(os.environ.get(name) for name in ("FROM_IMAGE", "FROM_PROJECT", "OWN"))]
assert seen == ["/workspace/deep", "yes", "project", "own"], seen`

describe.skipIf(skipped)("attempts in an image", () => {
  const home = mkdtempSync(join(tmpdir(), "computalot-image-run-"))
  const attemptsDir = join(home, "attempts")
  const basesDirectory = join(home, "bases")
  const hasher = createHasher(systemClock)
  const left = startCheckpointRig({ blobs: () => blobs, hasher })
  const given = startInputsRig(() => blobs)
  const cleanUp = new AsyncDisposableStack()
  let driver: RuntimeDriver
  let blobs: TestBlobs
  let runtimes: Runtimes
  let runner: AttemptRunner
  let runtime: RuntimeSpec
  let works = false
  let claims = 0

  beforeAll(async () => {
    chmodSync(home, 0o711)
    mkdirSync(attemptsDir, { mode: 0o711 })
    cleanUp.defer(() => rmSync(home, { recursive: true, force: true }))
    driver = cleanUp.use(await createBubblewrapDriver({ dataDir: home, attemptsDir }))
    const probe = await driver.probe()
    works = probe.available
    if (!works) return console.warn(`attempts in an image are not tested: ${probe.problems.join("; ")}`)
    await makeBases(basesDirectory, "python")
    cleanUp.use(hasher)
    cleanUp.use(left)
    blobs = cleanUp.use(await openTestBlobs())
    const layers = cleanUp.use(
      await openLayerStore({
        directory: join(home, "layers"),
        quotaBytes: 2 ** 31,
        clock: systemClock,
        log: silentLog,
      }),
    )
    runtimes = cleanUp.use(
      createRuntimes({
        directory: join(home, "runtimes"),
        blobs,
        // The blobs are all here already.
        fetch: { fetchBlob: async (blob) => ({ blob, bytesFromPeers: 0, bytesFromOrigin: 0, culprits: [] }) },
        images: { layers, store: createImageStore({ layers, basesDirectory }) },
        validate: { driver, attemptsDir, network: "none", machineEnv: {} },
        origin: () => null,
        holdersOf: () => [],
        send: () => {},
        changed: () => {},
        treeQuotaBytes: 1024 ** 3,
        clock: systemClock,
        log: silentLog,
      }),
    )
    await runtimes.restore()
    runner = createAttemptRunner({
      driver,
      runtimes,
      attemptsDir,
      network: "none",
      machineEnv: { SECRET_OF_THE_MACHINE: "1" },
      hasher,
      downloadPayload: () => Promise.reject(new Error("payloads are small here")),
      checkpoints: left.checkpoints,
      resume: left.resume,
      inputs: given.fetch,
      outboxFull: () => false,
      clock: systemClock,
      log: silentLog,
    })
    await runner.sweep([])
    cleanUp.defer(() => runner.sweep([]))
    runtime = await projectImage()
  }, 300_000)
  afterAll(() => cleanUp.disposeAsync())

  async function projectImage(): Promise<RuntimeSpec> {
    const base = (await readBases(basesDirectory)).find("python:3.11-slim")
    if (base === null) throw new Error("the python base was made")
    const code = await layerOf(home, [
      { name: "workspace/", type: "directory", mode: 0o755 },
      { name: "workspace/data.txt", content: "from the image", mode: 0o644 },
      { name: "workspace/deep/", type: "directory", mode: 0o755 },
    ])
    const blob = await blobs.put({ file: code.path })
    const config = { env: { ...base.image.config.env, FROM_IMAGE: "yes" }, workdir: "/workspace", user: "" }
    const diffIds = [...base.image.layers.map(({ diffId }) => diffId), digest(code.diffId)]
    return {
      revision: "rev_image",
      tarball: toWireRef(blob),
      image: {
        digest: imageDigest(config, diffIds),
        config,
        layers: diffIds.map((diff_id) => ({
          diff_id,
          unpacked_bytes: 1024 ** 2,
          base: diff_id !== code.diffId,
          blob: diff_id === code.diffId ? toWireRef(blob) : null,
        })),
      },
      workdir: null,
      remote_dir: "/root/project",
      setup_timeout_ms: 120_000,
      // Nothing below runs where this fails.
      validation: {
        executables: ["python3"],
        files: ["/workspace/data.txt"],
        commands: [{ label: "cwd and env", command: ["python3", "-c", CHECK], cwd: "deep", env: { OWN: "own" } }],
        env: { FROM_PROJECT: "project" },
      },
      content_grant: "",
      holders: [],
    }
  }

  interface Ran {
    item: ResultItem
    progress: string[]
    dir: string
  }

  async function run(python: string, changes: Partial<TaskSpec> = {}): Promise<Ran> {
    const claim = ++claims
    const progress: string[] = []
    const watch: AttemptWatch = {
      started: () => {},
      exited: () => {},
      progressed: (news) => void (news.progress !== null && progress.push(news.progress)),
    }
    const resumes = left.remains.points.length > 0
    const downloads = given.given.files.length > 0
    const task = { claim, spec: 0, index: 0, attempt: 1, payload: { text: '{"a":1}' }, gpus: [], resumes, downloads }
    const spec = taskSpec(runtime, ["python3", "-c", python], { memory_mb: 256, storage_gb: 0.05, ...changes })
    const end = await runner.start({ task, spec }, watch).done
    if (end.kind !== "result") throw new Error(`given back: ${end.reason}`)
    return { item: end.end.item, progress, dir: runner.attemptDir(claimNumber(claim)) }
  }

  test("RP-002, RP-003, C-06, M-012: the program runs in the image with its payload, and result, artifacts and progress come back", async ({
    skip,
  }) => {
    if (!works) skip()
    const { item, progress, dir } = await run(`
import json, os
payload = json.load(open(os.environ["COMPUTALOT_TASK_PAYLOAD"]))
seen = {"payload": payload, "file": open("data.txt").read(), "cwd": os.getcwd(), "env": os.environ.get("FROM_IMAGE"),
  "linked": open("/root/project/data.txt").read(), "secret": os.environ.get("SECRET_OF_THE_MACHINE"),
  "home": os.path.exists(${JSON.stringify(home)})}
open("/tmp/left", "w").write("x")
json.dump(seen, open(os.environ["COMPUTALOT_TASK_RESULT"], "w"))
open(os.environ["COMPUTALOT_ARTIFACT_DIR"] + "/one.txt", "w").write("1")
print('COMPUTALOT_PROGRESS:{"percent": 50}')
print(os.environ["COMPUTALOT_TASK_RESULT"])
`)
    expect(item, item.error_tail).toMatchObject({ failure_kind: null, exit_code: 0, result_problem: null })
    expect(item.result && "text" in item.result && JSON.parse(item.result.text)).toMatchObject({
      payload: { a: 1 },
      file: "from the image",
      cwd: "/workspace",
      env: "yes",
      linked: "from the image",
      secret: null,
      home: false,
    })
    expect(progress).toEqual(['{"percent": 50}'])
    expect(item.output).not.toContain(home)
    expect(item.artifacts).toMatchObject([{ filename: "artifacts.tar.gz" }])
    expect(execFileSync("tar", ["-tzf", join(dir, "artifacts.tar.gz")], { encoding: "utf8" })).toContain("one.txt")
    // What one attempt wrote, the next does not see.
    expect((await run("import os; print(os.path.exists('/tmp/left'))")).item.output).toBe("False\n")
    await runner.discard(claimNumber(claims))
    expect(existsSync(runner.attemptDir(claimNumber(claims)))).toBe(false)
  })

  test("RP-006: a failing program, one out of memory and one that fills its disk each say what happened", async ({
    skip,
  }) => {
    if (!works) skip()
    const { enforces } = await driver.probe()
    expect((await run("import sys; sys.exit(3)")).item).toMatchObject({ failure_kind: "exit_code", exit_code: 3 })
    if (enforces.includes("memory")) {
      expect((await run("len(b'x' * 10**9)")).item).toMatchObject({ failure_kind: "oom" })
    }
    if (enforces.includes("disk")) {
      const writes = "f = open('/tmp/large', 'wb')\nfor i in range(200): f.write(b'x' * 10**6)\nf.flush()"
      expect((await run(writes)).item).toMatchObject({ failure_kind: "disk_full" })
    }
  })

  test("architecture §5.6: a node that nobody gives the base says which blob is missing; other blobs are tried at once", async ({
    skip,
  }) => {
    if (!works) skip()
    const said: ToCoordinator[] = []
    const asked: { blob: string; origin: unknown }[] = []
    const directory = join(home, "without-bases")
    const layers = await openLayerStore({ directory, quotaBytes: 2 ** 31, clock: systemClock, log: silentLog })
    await using lacking = createRuntimes({
      directory: join(home, "lacking"),
      blobs,
      fetch: {
        fetchBlob(blob, { origin }) {
          if (blob.digest.startsWith("c")) return Promise.reject(new Error(`EACCES: no access, open '${home}/blobs'`))
          asked.push({ blob: blob.digest, origin })
          return Promise.reject(new ComputalotError("unavailable", `no source could give blob ${blob.digest}`))
        },
      },
      images: { layers, store: createImageStore({ layers, basesDirectory: directory }) },
      validate: { driver, attemptsDir, network: "none", machineEnv: {} },
      origin: () => ({ peer: peerId("12D3KooWOrigin"), addresses: [] }),
      holdersOf: () => [],
      send: (message) => said.push(message),
      changed: () => {},
      treeQuotaBytes: 1024 ** 3,
      clock: systemClock,
      log: silentLog,
    })
    const inBlob = (name: string): RuntimeSpec => {
      const blob = { digest: name.repeat(64), size: 41_000_000, piece_list: "f".repeat(64) }
      const made = runtime.image?.layers.map((layer) => (layer.base ? { ...layer, blob } : layer)) ?? []
      return { ...runtime, image: runtime.image && { ...runtime.image, layers: made } }
    }
    const ready = (spec: RuntimeSpec) => lacking.ready(spec, AbortSignal.timeout(30_000))
    await expect(ready(inBlob("a"))).rejects.toThrow("base layer of the image (41 MB)")
    expect(said.at(-1)).toMatchObject({
      type: "replica",
      state: "unable",
      message: expect.stringContaining("no connected node could give it") as string,
      missing: "a".repeat(64),
    })
    await expect(ready(inBlob("a"))).rejects.toThrow("base layer")
    await expect(ready(inBlob("b"))).rejects.toThrow("base layer")
    // The coordinator is never asked for a base.
    expect(asked).toEqual([
      { blob: "a".repeat(64), origin: null },
      { blob: "b".repeat(64), origin: null },
    ])
    // What else goes wrong here is told without this machine's paths.
    await expect(ready(inBlob("c"))).rejects.toThrow(home)
    expect(said.at(-1)).toMatchObject({ state: "unable", message: "EACCES: no access, open '[path]'" })
    expect(said.at(-1)).not.toHaveProperty("missing")
    await layers[Symbol.asyncDispose]()
  })

  test("CK-005, CK-006: a checkpoint's file leaves the sandbox, no other file does, and the next attempt reads it", async ({
    skip,
  }) => {
    if (!works) skip()
    const leaves = `
import json, os, time
artifacts = os.environ["COMPUTALOT_ARTIFACT_DIR"]
def tell(**fields): print("COMPUTALOT_PROGRESS:" + json.dumps(fields), flush=True)
open(artifacts + "/model.bin", "w").write("as it was")
os.symlink(artifacts + "/model.bin", artifacts + "/latest")
tell(epoch=3, checkpoint={"path": artifacts + "/latest", "epoch": 3})
time.sleep(4)
tell(epoch=4, checkpoint={"path": "/workspace/data.txt"})
time.sleep(4)
os.symlink("/etc/shadow", artifacts + "/shadow")
tell(epoch=5, checkpoint={"path": "shadow"})`
    const { item } = await run(leaves, { checkpoints: true })
    expect(item, item.error_tail).toMatchObject({ failure_kind: null })
    // The last goes with the end, unless the machine was so slow that it was sent before.
    const [first, second, third = item.checkpoint] = left.items()
    if (!first) throw new Error("the first checkpoint is sent")
    expect(first.file).toMatchObject({ filename: "latest" })
    for (const outside of [second, third]) expect(outside).toMatchObject({ file: null, problem: { status: "failed" } })
    left.remains = { ...left.remains, points: [await left.pointOf(first, blobs)] }
    onTestFinished(() => void (left.remains.points = []))
    const reads = `
import json, os
payload = json.load(open(os.environ["COMPUTALOT_TASK_PAYLOAD"]))
resume = payload["_resume"]
json.dump({"a": payload["a"], "epoch": resume["epoch"], "path": resume["checkpoint"]["path"],
  "read": open(resume["checkpoint"]["path"]).read()}, open(os.environ["COMPUTALOT_TASK_RESULT"], "w"))`
    const resumed = (await run(reads)).item
    expect(resumed.result && "text" in resumed.result && JSON.parse(resumed.result.text), resumed.error_tail).toEqual({
      a: 1,
      epoch: 3,
      path: "/computalot/resume/latest",
      read: "as it was",
    })
  })

  test("AW-003, AW-005, AW-006: a given file is the cache's own, and the program can only read it", async ({
    skip,
  }) => {
    if (!works) skip()
    await given.give("model", "model.pt", "the weights")
    onTestFinished(() => void (given.given.files = []))
    const { item, dir } = await run(`
import json, os
payload = json.load(open(os.environ["COMPUTALOT_TASK_PAYLOAD"]))
path = payload["_artifacts"]["local_paths"]["model"]
refused = []
for name, act in {"write": lambda: open(path, "w"), "append": lambda: open(path, "a"), "chmod": lambda: os.chmod(path, 0o777),
    "remove": lambda: os.remove(path), "rename": lambda: os.rename(path, path + "2"),
    "beside": lambda: open(os.path.dirname(path) + "/x", "w")}.items():
    try: act()
    except OSError: refused.append(name)
json.dump({"path": path, "env": os.environ["COMPUTALOT_ARTIFACT_MODEL"], "read": open(path).read(), "refused": refused},
  open(os.environ["COMPUTALOT_TASK_RESULT"], "w"))`)
    expect(item.result && "text" in item.result && JSON.parse(item.result.text), item.error_tail).toEqual({
      path: "/computalot/inputs/0/model.pt",
      env: "/computalot/inputs/0/model.pt",
      read: "the weights",
      refused: ["write", "append", "chmod", "remove", "rename", "beside"],
    })
    const linked = join(dir, "inputs", "0", "model.pt")
    const blob = join(blobs.directory, `${given.given.files[0]?.file.digest}.blob`)
    // Nothing was copied where both lie on one disk, and the cache keeps its own when the attempt goes.
    if (statSync(dir).dev === statSync(blobs.directory).dev) expect(statSync(linked).nlink).toBe(2)
    await runner.discard(claimNumber(claims))
    expect(existsSync(linked)).toBe(false)
    expect(readFileSync(blob, "utf8")).toBe("the weights")
  })

  test("GAP-45: a result that leads out of the sandbox is no result", async ({ skip }) => {
    if (!works) skip()
    const path = 'os.environ["COMPUTALOT_TASK_RESULT"]'
    const linked = await run(`import os; os.symlink("/etc/shadow", ${path})`)
    expect(linked.item).toMatchObject({ failure_kind: null, result: null })
    expect(linked.item.result_problem).toContain("a link")
  })

  test("a command that the image lacks is preparation_failed, and a cancelled attempt ends soon", async ({ skip }) => {
    if (!works) skip()
    expect((await run("", { command: ["no-such-command"] })).item.failure_kind).toBe("preparation_failed")
    const task = { claim: ++claims, spec: 0, index: 0, attempt: 1, payload: { text: "{}" }, gpus: [] }
    const spec = taskSpec(runtime, ["python3", "-c", "import time; time.sleep(60)"])
    const { promise: started, resolve } = Promise.withResolvers<void>()
    const work = runner.start({ task, spec }, { started: resolve, progressed: () => {}, exited: () => {} })
    await started
    work.stop("cancelled")
    expect(await work.done).toMatchObject({ kind: "result", end: { item: { failure_kind: "cancelled" } } })
  })
})
