import { execFileSync } from "node:child_process"
import { createHash } from "node:crypto"
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs"
import { cp, mkdir, readFile, rm, symlink, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { mkdtempSync, rmSync } from "node:fs"
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest"
import { silentLog } from "../../protocol/base/log.ts"
import { digest } from "../../protocol/domain/ids.ts"
import { boundBuilds } from "../../node-agent/runtime/bound-builds.ts"
import {
  createImageBuilder,
  type BuildFailure,
  type BuiltImage,
  type ImageBuilder,
} from "../../node-agent/runtime/images/build.ts"
import { openTaskGroups } from "../../node-agent/runtime/limits.ts"
import { createImageStore } from "../../node-agent/runtime/images/images.ts"
import { layerStore, makeBases, missingTools, scratchDirectory } from "../support/images.ts"

const skipped = missingTools("buildah", "skopeo", "runsc", "bwrap", "mmdebstrap", "unshare", "nsenter") !== null

describe.skipIf(skipped)("builds", () => {
  const shared = mkdtempSync(join(tmpdir(), "computalot-builds-"))
  const basesDirectory = join(shared, "bases")
  let builder: ImageBuilder

  beforeAll(async () => {
    await makeBases(basesDirectory, "python")
    builder = await createImageBuilder({
      directory: join(shared, "builder"),
      basesDirectory,
      packages: { pipIndexUrl: "http://index.example/simple", caBundlePath: "/etc/hostname" },
      log: silentLog,
    })
    const probe = await builder.probe()
    if (!probe.canRun) console.warn(`RUN cannot be tried here: ${probe.problems.join("; ")}`)
  }, 300_000)

  afterAll(async () => {
    await builder?.[Symbol.asyncDispose]()
    rmSync(shared, { recursive: true, force: true })
  })

  async function tree(files: Record<string, string>): Promise<string> {
    const directory = await scratchDirectory()
    for (const [name, content] of Object.entries(files)) await writeFile(join(directory, name), content)
    return directory
  }

  async function build(files: Record<string, string>, options = {}): Promise<BuiltImage> {
    return await builder.build({ treeDirectory: await tree(files), timeoutMs: 60_000, ...options })
  }

  async function failure(files: Record<string, string>, options = {}): Promise<BuildFailure> {
    return await build(files, options).then(
      () => {
        throw new Error("the build succeeded")
      },
      (error: unknown) => error as BuildFailure,
    )
  }

  /** Everything a build could leave behind. */
  function leftovers(): unknown {
    const processes = readdirSync("/proc").filter((name) => /^\d+$/.test(name) && commandOf(name).includes(shared))
    const mounts = readFileSync("/proc/mounts", "utf8")
      .split("\n")
      .filter((line) => line.includes(shared))
    const cgroups = execFileSync("find", ["/sys/fs/cgroup", "-maxdepth", "3", "-name", "buildah*"], {
      encoding: "utf8",
    })
    return { processes, mounts, cgroups, work: readdirSync(join(shared, "builder/work")) }
  }

  function commandOf(pid: string): string {
    try {
      return readFileSync(`/proc/${pid}/cmdline`, "utf8")
    } catch {
      return ""
    }
  }

  const NOTHING = { processes: [], mounts: [], cgroups: "", work: [] }

  test("a Dockerfile without RUN becomes an image whose base is told from its code, which is one small layer", async () => {
    const files = { Dockerfile: "FROM python:3.11-slim\nWORKDIR /workspace\nCOPY . .\n", "main.py": "print(1)\n" }
    const { image, layerBlobs } = await build(files)
    expect(image.config.workdir).toBe("/workspace")
    expect(image.config.env["PATH"]).toContain("/usr/local/bin")
    expect(image.layers.map(({ base }) => base)).toEqual([true, ...image.layers.slice(1).map(() => false)])
    expect(image.layers[0]?.unpacked_bytes).toBeGreaterThan(100_000_000)
    expect(image.layers[0]?.blob?.size).toBeGreaterThan(10_000_000)
    expect(layerBlobs.map(({ base, digest }) => [base, digest])).toEqual(
      image.layers.map(({ base, blob }) => [base, blob?.digest]),
    )
    expect(layerBlobs.filter(({ base }) => !base).reduce((sum, blob) => sum + blob.size, 0)).toBeLessThan(2_000)

    const again = await build(files)
    expect(again.image).toEqual({ ...image, digest: again.image.digest, layers: again.image.layers })
    const packedAt = statSync(layerBlobs[0]?.path ?? "").ctimeMs
    const changed = await build({ ...files, "main.py": "print(2)\n" })
    expect(changed.image.digest).not.toBe(image.digest)
    expect(changed.layerBlobs.at(-1)?.size).toBeLessThan(1_000)
    // A base is packed once, whatever is built on it.
    expect(statSync(changed.layerBlobs[0]?.path ?? "").ctimeMs).toBe(packedAt)
    expect(leftovers()).toEqual(NOTHING)
  })

  test(
    "architecture §5.6: the blob of a base that was trimmed is made again with the same bytes, or not at all",
    { timeout: 180_000 },
    async () => {
      const bases = join(await scratchDirectory(), "bases")
      await cp(basesDirectory, bases, { recursive: true })
      const parts = { directory: join(shared, "trimmed"), basesDirectory: bases, maxStorageBytes: 1000, log: silentLog }
      const small = await createImageBuilder(parts)
      onTestFinished(() => small[Symbol.asyncDispose]())
      const onBase = await small.build({
        treeDirectory: await tree({ Dockerfile: "FROM python:3.11-slim\nWORKDIR /x\n" }),
        timeoutMs: 60_000,
      })
      const base = onBase.layerBlobs[0]
      if (base === undefined) throw new Error("the image has layers")
      expect(small.makes(base.digest)).toBe(true)
      expect(await small.remake(base.digest)).toBe(base.path)
      const foreign = digest("0".repeat(64))
      expect([small.makes(foreign), await small.remake(foreign)]).toEqual([false, null])
      // What is built without the base is all that the quota has room for.
      await small.build({ treeDirectory: await tree({ Dockerfile: "FROM scratch\nCOPY . /\n" }), timeoutMs: 60_000 })
      expect(existsSync(base.path)).toBe(false)
      const [one, other] = await Promise.all([small.remake(base.digest), small.remake(base.digest)])
      expect([one, other]).toEqual([base.path, base.path])
      expect(createHash("sha256").update(readFileSync(base.path)).digest("hex")).toBe(base.digest)

      await small.dropBlob(base.digest)
      await rm(join(bases, "bases.json"))
      expect(await small.remake(base.digest)).toBeNull()
    },
  )

  test("RUN happens in gVisor with the operator's indexes, and neither they nor their files stay in the image", async ({
    skip,
  }) => {
    if (!(await builder.probe()).canRun) skip()
    const dockerfile = [
      "FROM python:3.11-slim AS made",
      "ARG WORD=none",
      "WORKDIR /workspace",
      "RUN python -c \"import os; open('seen','w').write(os.uname().release + ' ' + os.environ['PIP_INDEX_URL'] + ' ' + open(os.environ['PIP_CERT']).read())\" && echo \"$WORD\" > word",
      'RUN rm word2 2>/dev/null; test "$(cat word)" = given && rm /usr/share/zoneinfo/Zulu',
      "FROM made AS unused",
      "RUN false",
    ].join("\n")
    const directory = await tree({ Dockerfile: dockerfile })
    const request = { treeDirectory: directory, timeoutMs: 60_000, target: "made", args: { WORD: "given" } }
    const { image, layerBlobs, logTail } = await builder.build(request)
    expect(logTail).toContain("FROM docker.io/library/python:3.11-slim")
    expect(logTail).not.toContain(shared)
    expect(JSON.stringify(image.config)).not.toContain("index.example")

    const work = await scratchDirectory()
    const layers = await layerStore(join(work, "layers"))
    const images = createImageStore({ layers, basesDirectory })
    const paths = new Map(layerBlobs.map((blob) => [blob.diffId, blob.path]))
    const ready = await images.ready(image, {
      fetchLayer: ({ diffId }) => Promise.resolve({ path: paths.get(diffId) ?? "" }),
    })
    const joined = join(work, "joined")
    await mkdir(joined)
    execFileSync("mount", ["-t", "overlay", "overlay", "-o", `lowerdir=${ready.layers.toReversed().join(":")}`, joined])
    onTestFinished(() => void execFileSync("umount", [joined]))
    const seen = await readFile(join(joined, "workspace/seen"), "utf8")
    expect(seen).toContain("http://index.example/simple")
    expect(seen).toContain((await readFile("/etc/hostname", "utf8")).trim())
    expect(seen.split(" ")[0]).not.toBe(execFileSync("uname", ["-r"], { encoding: "utf8" }).trim())
    expect([readdirSync(join(joined, "dev")), readdirSync(join(joined, "run"))].flat()).not.toContain("computalot")
    expect(readdirSync(join(joined, "usr/share/zoneinfo"))).not.toContain("Zulu")
    expect(leftovers()).toEqual(NOTHING)

    const cached = await builder.build(request)
    expect(cached.image).toEqual(image)
    expect(cached.logTail).toContain("Using cache")
  })

  test("a missing base is a set-up failure that names the image and what the operator can do", async () => {
    const failed = await failure({ Dockerfile: "FROM node:20-slim\n" })
    expect(failed).toMatchObject({ kind: "project", reason: "missing_base" })
    expect(failed.message).toMatch(/docker\.io\/library\/node:20-slim.*--pull-bases/)
  })

  test.each<[string, Record<string, string>, object, RegExp]>([
    [
      "a hostile Dockerfile",
      { Dockerfile: "FROM scratch\nRUN --mount=type=bind,source=/ ls\n" },
      {},
      /line 2: RUN --mount/,
    ],
    ["no Dockerfile", {}, {}, /Dockerfile is not in the tarball/],
    ["a Dockerfile outside", {}, { dockerfile: "../../etc/passwd" }, /link or out of the tarball|not in the tarball/],
    ["an unknown target", { Dockerfile: "FROM scratch\n" }, { target: "x" }, /no stage/],
  ])("%s is refused before buildah sees it", async (_what, files, options, reason) => {
    const failed = await failure(files, options)
    expect(failed).toMatchObject({ kind: "project", reason: "dockerfile" })
    expect(failed.message).toMatch(reason)
  })

  test("a Dockerfile or context that is a link is not followed", async () => {
    const directory = await tree({ Dockerfile: "FROM scratch\n" })
    await symlink("/etc/passwd", join(directory, "linked"))
    await symlink("/etc", join(directory, "outside"))
    const request = { treeDirectory: directory, timeoutMs: 60_000 }
    await expect(builder.build({ ...request, dockerfile: "linked" })).rejects.toThrow(/link/)
    await expect(builder.build({ ...request, context: "outside" })).rejects.toThrow(/link/)
  })

  test("a failing step, a timeout and a cancelled build say so and leave nothing", async ({ skip }) => {
    if (!(await builder.probe()).canRun) skip()
    const failed = await failure({ Dockerfile: "FROM python:3.11-slim\nRUN echo before; false\n" })
    expect(failed).toMatchObject({ kind: "project", reason: "step_failed" })
    expect(failed.logTail).toContain("before")
    expect(leftovers()).toEqual(NOTHING)

    const endless = { Dockerfile: "FROM python:3.11-slim\nRUN echo started; (setsid sleep 1000 &) ; sleep 1000\n" }
    expect(await failure(endless, { timeoutMs: 3_000 })).toMatchObject({ kind: "project", reason: "timeout" })
    expect(leftovers()).toEqual(NOTHING)

    const cancel = new AbortController()
    const onOutput = (text: string): void => void (text.includes("started") && cancel.abort())
    expect(await failure(endless, { signal: cancel.signal, onOutput })).toMatchObject({
      kind: "node",
      reason: "cancelled",
    })
    expect(leftovers()).toEqual(NOTHING)
    await build({ Dockerfile: "FROM python:3.11-slim\nRUN true\n" })
  })

  test("RUN has no network", async ({ skip }) => {
    if (!(await builder.probe()).canRun) skip()
    const look = "import socket; socket.create_connection(('192.0.2.1', 80), 3)"
    const failed = await failure({ Dockerfile: `FROM python:3.11-slim\nRUN python -c "${look}"\n` })
    expect(failed.logTail).toMatch(/unreachable|no route/i)
  })

  test("a build that needs more memory than its limit is killed, fails naming it, and leaves no group", async ({
    skip,
  }) => {
    if (!(await builder.probe()).canRun) skip()
    const groups = openTaskGroups(shared)
    onTestFinished(() => groups.close())
    if (!groups.enforces.includes("memory")) return skip("memory cannot be limited here")
    const limits = { memoryBytes: 256 * 1024 ** 2, cpu: 1, pids: 1024 }
    const bounded = await createImageBuilder({
      directory: join(shared, "bounded"),
      basesDirectory,
      bounds: boundBuilds({ groups, limits, networks: null }),
      log: silentLog,
    })
    onTestFinished(() => bounded[Symbol.asyncDispose]())
    expect(await bounded.probe()).toMatchObject({ available: true, canRun: true })
    const building = async (bytes: number): Promise<BuiltImage> => {
      const dockerfile = `FROM python:3.11-slim\nRUN python -c "len(b'x' * ${bytes})"\n`
      return await bounded.build({ treeDirectory: await tree({ Dockerfile: dockerfile }), timeoutMs: 60_000 })
    }
    await expect(building(2 * 1024 ** 3)).rejects.toMatchObject({
      kind: "project",
      reason: "memory_exceeded",
      message: expect.stringContaining("256 MB of memory") as string,
    })
    expect(groups.list()).toEqual([])
    await building(1024 ** 2)
    expect(groups.list()).toEqual([])
  })

  test("a build that starts too many processes cannot take the machine's", async ({ skip }) => {
    if (!(await builder.probe()).canRun) skip()
    const groups = openTaskGroups(shared)
    onTestFinished(() => groups.close())
    if (!groups.enforces.includes("pids")) return skip("processes cannot be limited here")
    const bounded = await createImageBuilder({
      directory: join(shared, "few"),
      basesDirectory,
      bounds: boundBuilds({ groups, limits: { memoryBytes: 2 ** 31, cpu: 1, pids: 150 }, networks: null }),
      log: silentLog,
    })
    onTestFinished(() => bounded[Symbol.asyncDispose]())
    const many = "FROM python:3.11-slim\nRUN for i in $(seq 300); do sleep 20 & done; sleep 1\n"
    const built = bounded.build({ treeDirectory: await tree({ Dockerfile: many }), timeoutMs: 30_000 })
    await expect(built).rejects.toMatchObject({ kind: "project" })
    expect(groups.list()).toEqual([])
  })

  test("where runsc cannot run, builds without RUN work and others are refused with the reason", async () => {
    const weak = await createImageBuilder({
      directory: join(shared, "weak"),
      basesDirectory,
      runsc: "/bin/false",
      log: silentLog,
    })
    onTestFinished(() => weak[Symbol.asyncDispose]())
    expect(await weak.probe()).toMatchObject({ available: true, canRun: false })
    await weak.build({
      treeDirectory: await tree({ Dockerfile: "FROM python:3.11-slim\nCOPY . /x\n" }),
      timeoutMs: 60_000,
    })
    const running = {
      treeDirectory: await tree({ Dockerfile: "FROM python:3.11-slim\nRUN true\n" }),
      timeoutMs: 60_000,
    }
    await expect(weak.build(running)).rejects.toMatchObject({ kind: "node", reason: "no_sandbox" })
  })

  test("without bases the builder says what the operator can do", async () => {
    const work = await scratchDirectory()
    const empty = await createImageBuilder({
      directory: join(work, "b"),
      basesDirectory: join(work, "none"),
      log: silentLog,
    })
    onTestFinished(() => empty[Symbol.asyncDispose]())
    const probe = await empty.probe()
    expect(probe.available).toBe(false)
    expect(probe.problems[0]).toMatch(/make-bases/)
  })
})
