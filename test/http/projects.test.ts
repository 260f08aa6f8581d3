import { execFile } from "node:child_process"
import { mkdir, mkdtemp, readdir, rm, writeFile } from "node:fs/promises"
import { connect } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { promisify } from "node:util"
import { gzipSync } from "node:zlib"
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest"
import { systemClock } from "../../protocol/base/clock.ts"
import { randomText, systemRandom } from "../../protocol/base/random.ts"
import { accountId, claimNumber, nodeId, type NodeId, type RevisionId } from "../../protocol/domain/ids.ts"
import { openObjectFiles, type ObjectFiles } from "../../coordinator/artifacts/object-files.ts"
import { freeReleasedBlobs } from "../../coordinator/artifacts/retention.ts"
import { creditSignup } from "../../coordinator/billing/ledger.ts"
import { mountProjects } from "../../coordinator/http/routes/projects.ts"
import {
  recordBuildFailed,
  recordBuildStarted,
  recordBuilt,
  recordNodeGone,
  recordReplica,
  recordRuntimeNote,
} from "../../coordinator/projects/record.ts"
import { effectiveManifest, requireActiveRevision, sweepRevisions } from "../../coordinator/projects/revisions.ts"
import { createTarballScanner } from "../../coordinator/projects/tarball.ts"
import { insertAccount } from "../../coordinator/store/accounts.ts"
import { findRevision, openInitRequests, revisionsToBuild } from "../../coordinator/store/projects.ts"
import { openSocket, send, startHttpDoor, untilClosed, type HttpDoor, type PlainReply } from "../support/http-door.ts"
import { TEST_TOKENS, testIdentities } from "../support/identities.ts"
import { insertBareJob } from "../support/jobs.ts"
import { openTestStore } from "../support/store.ts"
import { tarballOf, type Member } from "../support/tarball.ts"

let dir = ""
let store: Awaited<ReturnType<typeof openTestStore>>
let files: ObjectFiles
let door: HttpDoor
let origin = ""
const scanner = createTarballScanner(systemClock)
const run = promisify(execFile)
const { alice, bob, carol, viewer, bootstrap } = TEST_TOKENS

/** The fleet, as far as readiness looks at it. */
const fleet = { live: new Set<NodeId>(), workersWithoutImage: 0, builders: 0, trouble: null as string | null }
let changes = 0
let aheadMs = 0
const cancelled: unknown[] = []

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "http-projects-"))
  store = await openTestStore()
  files = await openObjectFiles(dir, systemRandom)
  door = await startHttpDoor()
  mountProjects(door.app, {
    store,
    files,
    scanner,
    clock: { ...systemClock, now: () => Date.now() + aheadMs },
    random: systemRandom,
    fleet: () => ({
      isLive: (node) => fleet.live.has(node),
      workers: fleet.live.size,
      workersWithoutImage: fleet.workersWithoutImage,
      builders: fleet.builders,
      trouble: () => fleet.trouble,
    }),
    changed: () => changes++,
    quoteTtlMs: 3_600_000,
    cancelQueued: async (wanted) => {
      cancelled.push(wanted)
      return { queuedBefore: 2, cancelledJobs: 2 }
    },
  })
  door.app.open({ store, ...testIdentities })
  origin = door.server.origin
  // Accounts 1 to 3: alice has exactly the floor of init, bob a cent less, carol plenty.
  for (const [name, credit] of [
    ["alice", 5_000_000n],
    ["bob", 4_990_000n],
    ["carol", 50_000_000n],
  ] as const) {
    await store.write(async (tx) =>
      creditSignup(tx, await insertAccount(tx, { name, at: Date.now() }), credit, Date.now()),
    )
  }
})
afterAll(async () => {
  await door[Symbol.asyncDispose]()
  await scanner[Symbol.asyncDispose]()
  await store[Symbol.asyncDispose]()
  await rm(dir, { recursive: true, force: true })
})
beforeEach(() => {
  fleet.live = new Set()
  fleet.workersWithoutImage = 0
  fleet.builders = 0
  fleet.trouble = null
  aheadMs = 0
})

type Body = Record<string, unknown>
const bodyOf = (reply: PlainReply): Body => reply.json as unknown as Body
const call = (method: string, path: string, body?: unknown, token: string = alice) =>
  send(origin, method, `/api/v1/projects${path}`, { token, ...(body !== undefined && { body }) })
const statusOf = async (name: string, token: string = alice): Promise<Body> =>
  bodyOf(await call("GET", `/${name}/status`, undefined, token))
let named = 0
/** A fresh project, pushed to when there are members. */
async function project(members?: Member[], options: { token?: string; body?: object } = {}): Promise<string> {
  const name = `project-${named++}`
  const made = await call("POST", "", { name, remote_dir: `/root/${name}`, ...options.body }, options.token)
  expect(made.status).toBe(201)
  if (members) expect((await push(name, members, options.token)).status).toBe(200)
  return name
}
const push = async (name: string, members: Member[], token: string = alice) =>
  call("POST", `/${name}/push`, await tarballOf(members), token)
const MANIFEST = {
  version: 1,
  runtime: { kind: "oci", sandbox: "gvisor", workdir: "/workspace" },
  entrypoint: { command: ["python", "job.py"] },
}
const CODE: Member[] = [
  { name: "./Dockerfile", content: "FROM python:3.11-slim\nWORKDIR /workspace\nCOPY . .\n" },
  { name: "./computalot.project.json", content: JSON.stringify(MANIFEST) },
  { name: "./job.py", content: "print(1)\n" },
]
const activeOf = async (name: string, account = 1): Promise<RevisionId> =>
  (await store.read((view) => requireActiveRevision(view, accountId(account), name))).revision.id

/** What the scheduler would find asked for. */
const requestOf = async (name: string) => {
  const revision = await activeOf(name)
  const open = await store.read((view) => openInitRequests(view, Date.now()))
  return open.find((request) => request.revision === revision)
}

const facts = (revision: RevisionId, node: NodeId) => ({
  revision,
  node,
  id: `diag_${randomText(systemRandom, 8)}`,
  at: Date.now(),
})
function replica(
  revision: RevisionId,
  node: NodeId,
  state: "initializing" | "ready" | "failed" | "unable" | "removed",
  logTail: string | null = null,
  message: string | null = null,
) {
  const report = { ...facts(revision, node), state, message, logTail }
  return store.write((tx) => recordReplica(tx, report))
}
async function build(revision: RevisionId): Promise<void> {
  const builder = nodeId("node_builder")
  const started = facts(revision, builder)
  expect(await store.write((tx) => recordBuildStarted(tx, { ...started, claim: claimNumber(1) }))).toBe(true)
  const image = { digest: "a".repeat(64), config: { env: {}, workdir: "/workspace", user: "" }, layers: [] }
  const done = { ...facts(revision, builder), image, logTail: "done" }
  expect(await store.write((tx) => recordBuilt(tx, done))).toBe(true)
}
const workers = (...names: string[]): NodeId[] => {
  const nodes = names.map((name) => nodeId(`node_${name}`))
  fleet.live = new Set(nodes)
  return nodes
}

const PROJECT_KEYS = [
  "name",
  "remote_dir",
  "env",
  "setup_timeout_s",
  "runtime_kind",
  "image_ref",
  "image_digest",
  "manifest",
  "cache_policy",
  "runtime_version",
  "content_hash",
  "created_at",
  "updated_at",
]
const STATUS_KEYS = [
  "project_ready",
  "can_accept_new_jobs",
  "ready_for_jobs",
  "init_state",
  "availability_status",
  "progress_phase",
  "pending_init",
  "content_hash",
  "status_message",
  "next_action",
  "last_ready_at",
  "ready_replicas",
  "initializing_replicas",
  "failed_replicas",
  "stale_replicas",
  "total_replicas",
  "queue_depth",
  "queued_tasks",
  "active_jobs",
  "active_tasks",
]

describe("create, read, change", () => {
  test("P-001, P-005, A12–A14: the documented bodies make a project", async () => {
    const made = await call("POST", "", {
      name: "my-ml-project",
      remote_dir: "/root/my-ml-project",
      env: { CLICKHOUSE_HOST: "db.internal" },
      setup_timeout_s: 1200,
    })
    expect(made.status).toBe(201)
    expect(Object.keys(bodyOf(made)).toSorted()).toEqual(PROJECT_KEYS.toSorted())
    expect(made.json).toMatchObject({
      env: { CLICKHOUSE_HOST: "db.internal" },
      setup_timeout_s: 1200,
      content_hash: null,
      image_ref: null,
    })
    for (const name of ["my-proj", "my-project"]) {
      const plain = await call("POST", "", { name, remote_dir: `/root/projects/${name}` })
      expect(plain.json).toMatchObject({ setup_timeout_s: 600, runtime_kind: "oci" })
    }
    expect((await call("POST", "", { name: "my-proj", remote_dir: "/root/x" })).status).toBe(409)
    expect((await call("POST", "", { name: "my-proj", remote_dir: "/root/x" }, bob)).status).toBe(201)
    expect((await call("POST", "", { name: "packing", remote_dir: "/root/x" })).status).toBe(409)
  })

  test("P-002, P-003, P-004: every wrong field is 422 with its path", async () => {
    const good = { name: "fine", remote_dir: "/root/fine" }
    const wrong: [change: object, path: string][] = [
      [{ name: "" }, "name"],
      [{ name: "x".repeat(65) }, "name"],
      [{ name: "A" }, "name"],
      [{ name: "a.b" }, "name"],
      [{ remote_dir: undefined }, "remote_dir"],
      [{ remote_dir: "relative" }, "remote_dir"],
      [{ setup_timeout_s: 0 }, "setup_timeout_s"],
      [{ setup_timeout_s: 1.5 }, "setup_timeout_s"],
      [{ runtime_kind: "bare" }, "runtime_kind"],
      [{ runtime_version: 0 }, "runtime_version"],
      [{ env: { A: 1 } }, "env.A"],
      [{ env: { "A=B": "1" } }, "env"],
      [{ env: ["A"] }, "env"],
      [{ manifest: "x" }, "manifest"],
      [{ cache_policy: [] }, "cache_policy"],
    ]
    for (const [change, path] of wrong) {
      const refused = await call("POST", "", { ...good, ...change })
      expect(refused.status).toBe(422)
      expect((bodyOf(refused)["details"] as { path: string }[])[0]?.path).toMatch(new RegExp(`^${path}`))
    }
    expect((await call("POST", "", { ...good, name: "x".repeat(64), env: null, image_ref: null })).status).toBe(201)
  })

  test("P-006, P-007, A-022: the list and a project with its status are one's own", async () => {
    const name = await project(undefined, { token: carol })
    const list = await call("GET", "", undefined, carol)
    expect(bodyOf(list)["count"]).toBe((bodyOf(list)["projects"] as unknown[]).length)
    expect(bodyOf(list)["projects"]).toContainEqual(expect.objectContaining({ name }))
    const one = bodyOf(await call("GET", `/${name}`, undefined, carol))
    expect(Object.keys(one["init_status"] as object).toSorted()).toEqual(STATUS_KEYS.toSorted())
    for (const [method, path] of [
      ["GET", ""],
      ["PUT", ""],
      ["DELETE", ""],
      ["POST", "/push"],
      ["POST", "/init"],
      ["POST", "/invalidate"],
      ["PUT", "/cancel-queued"],
      ["GET", "/status"],
      ["GET", "/status/details"],
    ] as const) {
      expect((await call(method, `/${name}${path}`, undefined, alice)).status).toBe(404)
      if (method !== "GET") expect((await call(method, `/${name}${path}`, undefined, viewer)).status).toBe(403)
    }
    expect((await call("GET", `/${name}`, undefined, bootstrap)).status).toBe(200)
    expect((await call("GET", "/my-proj", undefined, bootstrap)).status).toBe(422)
    expect((await call("GET", "/my-proj?account_id=2", undefined, bootstrap)).status).toBe(200)
  })

  test("P-008, P-009: PUT changes metadata alone; P-010, GAP-11: code is pointed to push", async () => {
    const name = await project(CODE, { body: { env: { A: "1", B: "2" } } })
    const before = bodyOf(await call("GET", `/${name}`))
    const changed = await call("PUT", `/${name}`, {
      setup_timeout_s: 2,
      env: { C: "3" },
      image_ref: "python:3.11",
      ignored: 1,
    })
    expect(changed.status).toBe(200)
    expect(changed.json).toMatchObject({
      setup_timeout_s: 2,
      env: { C: "3" },
      image_ref: "python:3.11",
      content_hash: before["content_hash"],
      remote_dir: `/root/${name}`,
    })
    expect(Date.parse(bodyOf(changed)["updated_at"] as string)).toBeGreaterThan(
      Date.parse(before["updated_at"] as string),
    )
    expect((await call("PUT", `/${name}`, {})).json).toMatchObject({ env: { C: "3" } })
    for (const field of ["tarball", "code", "files", "content_hash", "name"]) {
      const refused = await call("PUT", `/${name}`, { [field]: "x" })
      expect(refused.status).toBe(422)
      if (field !== "name") expect(refused.text).toContain("/push")
    }
    expect((await call("PUT", `/${name}`, { env: { A: 1 } })).status).toBe(422)
    expect((await call("PUT", "/nobody", { tarball: "x" })).status).toBe(404)
  })

  test("P-011, P-012, GAP-12: a project goes when no job of it is unfinished, and its bytes with it", async () => {
    const name = await project([...CODE, { name: "unique", content: randomText(systemRandom, 40) }])
    const { revision } = await store.read((view) => requireActiveRevision(view, accountId(1), name))
    const job = await insertBareJob(store, { account: accountId(1), project: name })
    const refused = await call("DELETE", `/${name}`)
    expect(refused.status).toBe(409)
    expect(bodyOf(refused)["details"]).toEqual({ active_jobs: 1 })
    await store.write((tx) => tx.run("UPDATE jobs SET status = 'completed', completed_at = 1 WHERE id = ?", job))
    expect((await call("DELETE", `/${name}`)).json).toEqual({ status: "deleted", project: name })
    expect((await call("GET", `/${name}`)).status).toBe(404)
    await freeReleasedBlobs({ store, files })
    expect(await files.size(revision.tarball.digest)).toBeNull()
    expect(await files.size(revision.contentHash)).toBeNull()
  })
})

describe("push", () => {
  test("P-013, P-015, P-020, P-021, A15: curl pushes what tar made, and the revision is published at once", async () => {
    const name = await project()
    expect(await statusOf(name)).toMatchObject({
      can_accept_new_jobs: false,
      init_state: "not_initialized",
      content_hash: null,
      progress_phase: "idle",
    })
    const code = join(dir, `code-${name}`)
    await mkdir(code)
    for (const { name: file, content } of CODE) await writeFile(join(code, file), content ?? "")
    await run("tar", ["czf", `${code}.tar.gz`, "."], { cwd: code })
    const url = `${origin}/api/v1/projects/${name}/push`
    const curl = async (): Promise<Body> =>
      JSON.parse(
        (
          await run("curl", [
            "-sS",
            url,
            "-X",
            "POST",
            "-H",
            `Authorization: Bearer ${alice}`,
            "--data-binary",
            `@${code}.tar.gz`,
          ])
        ).stdout,
      ) as Body
    const pushed = await curl()
    expect(pushed).toMatchObject({
      status: "published",
      manifest_present: true,
      runtime_kind: "oci",
      ready_for_jobs: false,
      content_hash: expect.stringMatching(/^[0-9a-f]{64}$/) as string,
    })
    expect(pushed).not.toHaveProperty("tarball_diff")
    expect(pushed["init_status"]).toMatchObject({ init_state: "published", can_accept_new_jobs: true })
    expect(await statusOf(name)).toMatchObject({
      content_hash: pushed["content_hash"],
      can_accept_new_jobs: true,
      project_ready: true,
    })
    expect(bodyOf(await call("GET", `/${name}`))["manifest"]).toEqual(MANIFEST)
    const again = await push(name, [
      ...CODE.slice(0, 2),
      { name: "job.py", content: "print(2)" },
      { name: "new.py", content: "" },
    ])
    expect(bodyOf(again)["tarball_diff"]).toEqual({
      added_files: ["new.py"],
      removed_files: [],
      changed_files: ["job.py"],
    })
    await run("tar", ["czf", `${code}.tar.gz`, "Dockerfile", "computalot.project.json", "job.py"], { cwd: code })
    expect(await curl()).toMatchObject({
      content_hash: pushed["content_hash"],
      tarball_diff: { removed_files: ["new.py"] },
    })
  })

  test("P-016, P-017, P-018: what cannot be taken is refused, and the revision before stays", async () => {
    const name = await project(CODE)
    const before = (await statusOf(name))["content_hash"]
    const multipart = `--x\r\nContent-Disposition: form-data; name="f"; filename="code.tar.gz"\r\n\r\nabc\r\n--x--\r\n`
    for (const body of ["plain text", multipart, ""])
      expect((await call("POST", `/${name}/push`, body)).status).toBe(400)
    const text = await call("POST", `/${name}/push`, gzipSync("not a tar"))
    expect(text).toMatchObject({ status: 422, json: { error: "invalid tarball", code: "invalid_tarball" } })
    expect(bodyOf(text)).toHaveProperty("details")
    const hostile = await push(name, [...CODE, { name: "../evil", content: "x" }])
    expect(hostile).toMatchObject({
      status: 422,
      json: { error: "invalid tarball", details: { entry: "../evil", reason: "the name contains .." } },
    })
    const wrong = { ...MANIFEST, validation: { files: ["absent.py"] } }
    const missing = await push(name, [
      ...CODE.slice(0, 1),
      { name: "computalot.project.json", content: JSON.stringify(wrong) },
    ])
    expect(missing).toMatchObject({
      status: 422,
      json: { code: "invalid_manifest", details: [{ path: "validation.files[0]" }] },
    })
    expect((await push(name, [{ name: "job.py", content: "" }])).status).toBe(422)
    expect((await statusOf(name))["content_hash"]).toBe(before)
    expect(await readdir(join(dir, "incoming"))).toEqual([])
  })

  test("P-014: 100 MB are the limit, told before the body is sent", async () => {
    const name = await project()
    const socket = connect(door.server.port, "127.0.0.1")
    const answer = new Promise<string>((resolve) => socket.once("data", (data) => resolve(data.toString())))
    const head = `Host: x\r\nAuthorization: Bearer ${alice}\r\nContent-Length: ${100 * 2 ** 20 + 1}\r\nExpect: 100-continue`
    socket.write(`POST /api/v1/projects/${name}/push HTTP/1.1\r\n${head}\r\n\r\n`)
    expect(await answer).toMatch(/^HTTP\/1\.1 413/)
    socket.destroy()
  })

  test("C-16: without a manifest defaults hold, and the project's own counts; with image_ref no Dockerfile is needed", async () => {
    const name = await project(undefined, { body: { image_ref: "python:3.11-slim", manifest: MANIFEST } })
    const pushed = await push(name, [{ name: "job.py", content: "" }])
    expect(pushed).toMatchObject({ status: 200, json: { manifest_present: false } })
    const active = await store.read((view) => requireActiveRevision(view, accountId(1), name))
    expect(active.revision.hasDockerfile).toBe(false)
    expect(effectiveManifest(active)).toEqual(MANIFEST)
  })

  test("a newer push cancels the older build, unless a job waits for it; superseded revisions go once no job needs them", async () => {
    const toBuild = async () => (await store.read(revisionsToBuild)).map(({ id }) => id)
    const name = await project(CODE)
    const first = await activeOf(name)
    const started = facts(first, nodeId("node_builder"))
    await store.write((tx) => recordBuildStarted(tx, { ...started, claim: claimNumber(1) }))
    changes = 0
    await push(name, [...CODE, { name: "x", content: "" }])
    expect(changes).toBe(1)
    const second = await activeOf(name)
    const image = { digest: "b".repeat(64), config: { env: {}, workdir: "/", user: "" }, layers: [] }
    expect(await store.write((tx) => recordBuilt(tx, { ...started, image, logTail: "" }))).toBe(false)
    expect(await toBuild()).toContain(second)
    expect(await toBuild()).not.toContain(first)

    const job = await insertBareJob(store, { account: accountId(1), project: name, revision: second })
    await push(name, CODE)
    expect(await toBuild()).toEqual(expect.arrayContaining([second, await activeOf(name)]))
    const inAMinute = Date.now() + 61_000
    await sweepRevisions({ store }, inAMinute)
    expect(await store.read((view) => findRevision(view, first))).toBeNull()
    expect(await store.read((view) => findRevision(view, second))).not.toBeNull()
    await store.write((tx) => tx.run("UPDATE jobs SET status = 'completed', completed_at = 1 WHERE id = ?", job))
    await sweepRevisions({ store }, inAMinute)
    expect(await store.read((view) => findRevision(view, second))).toBeNull()
  })

  test("GAP-69: the same push under one key is published once", async () => {
    const name = await project()
    const body = await tarballOf(CODE)
    const once = () =>
      send(origin, "POST", `/api/v1/projects/${name}/push`, {
        token: alice,
        body,
        headers: { "idempotency-key": name },
      })
    const first = await once()
    const revision = await activeOf(name)
    expect((await once()).json).toEqual(first.json)
    expect(await activeOf(name)).toBe(revision)
  })
})

describe("readiness", () => {
  test("PR-004, PR-005, PR-006, PR-008, PR-009, PR-012: from published to ready, by build and init", async () => {
    const name = await project(CODE)
    const revision = await activeOf(name)
    expect(await statusOf(name)).toMatchObject({
      init_state: "published",
      availability_status: "cold",
      pending_init: false,
      status_message: expect.stringContaining("builder") as string,
    })
    fleet.builders = 1
    expect(await statusOf(name)).toMatchObject({
      init_state: "published",
      availability_status: "warming",
      progress_phase: "queued",
      pending_init: true,
    })
    const [one] = workers("one")
    await store.write((tx) => recordBuildStarted(tx, { ...facts(revision, nodeId("node_b")), claim: claimNumber(1) }))
    expect(await statusOf(name)).toMatchObject({
      init_state: "published",
      progress_phase: "running",
      pending_init: true,
    })
    expect((await push(name, CODE)).status).toBe(200)
    const second = await activeOf(name)
    await build(second)
    expect(await statusOf(name)).toMatchObject({ init_state: "published", progress_phase: "idle", pending_init: false })

    const asked = await call("POST", `/${name}/init`)
    expect(asked).toMatchObject({ status: 200, json: { status: "initializing", ready_for_jobs: false } })
    expect(bodyOf(asked)["init_status"]).toMatchObject({
      init_state: "initializing",
      progress_phase: "queued",
      pending_init: true,
      requested_state: "ready",
    })
    expect(await requestOf(name)).toMatchObject({
      revision: second,
      kind: "init",
      maxNodes: null,
    })
    await replica(second, one as NodeId, "initializing")
    expect(await statusOf(name)).toMatchObject({
      init_state: "initializing",
      progress_phase: "running",
      initializing_replicas: 1,
    })
    await replica(second, one as NodeId, "ready")
    const ready = await statusOf(name)
    expect(ready).toMatchObject({
      init_state: "ready",
      availability_status: "ready",
      progress_phase: "ready",
      ready_for_jobs: true,
      can_accept_new_jobs: true,
      pending_init: false,
      ready_replicas: 1,
      total_replicas: 1,
    })
    expect(Date.parse(ready["last_ready_at"] as string)).toBeGreaterThan(0)
    expect(ready).not.toHaveProperty("requested_state")
    expect((await call("POST", `/${name}/init`, {})).json).toMatchObject({ status: "ready" })
  })

  test("P-019, P-022, C-11: a push over warm replicas refreshes, meanwhile push is 409, and it ends by itself", async () => {
    const [one] = workers("one")
    fleet.workersWithoutImage = 1
    const name = await project(CODE)
    await replica(await activeOf(name), one as NodeId, "ready")
    const pushed = await push(name, [...CODE, { name: "v2", content: "" }])
    expect(pushed).toMatchObject({ status: 200, json: { ready_for_jobs: false } })
    expect(bodyOf(pushed)["init_status"]).toMatchObject({
      init_state: "refreshing",
      can_accept_new_jobs: true,
      stale_replicas: 1,
      progress_phase: "refresh_pending",
      requested_state: "refreshed",
    })
    const refused = await push(name, CODE)
    expect(refused).toMatchObject({ status: 409, json: { init_state: "refreshing", ready_for_jobs: false } })
    expect(Object.keys(bodyOf(refused))).toEqual(expect.arrayContaining(["error", "next_action"]))
    const second = await activeOf(name)
    await replica(second, one as NodeId, "initializing")
    expect(await statusOf(name)).toMatchObject({ init_state: "refreshing", progress_phase: "refreshing" })
    await replica(second, one as NodeId, "ready")
    expect(await statusOf(name)).toMatchObject({ init_state: "ready", stale_replicas: 0 })

    expect((await push(name, CODE)).status).toBe(200)
    workers()
    expect(await statusOf(name)).toMatchObject({ init_state: "published", stale_replicas: 1 })
    workers("one")
    expect((await statusOf(name))["init_state"]).toBe("refreshing")
    aheadMs = 601_000
    expect((await statusOf(name))["init_state"]).toBe("published")
    expect((await push(name, CODE)).status).toBe(200)
  })

  test("P-019, GAP-69: push is 409 while an init is under way, also one that came during the upload, but for a repetition", async () => {
    const late = await project()
    expect((await push(late, CODE)).status).toBe(200)
    workers("one")
    fleet.workersWithoutImage = 1
    const name = await project(CODE)
    await call("POST", `/${name}/init`)
    const refused = await push(name, CODE)
    expect(refused).toMatchObject({
      status: 409,
      json: { code: "project_busy", init_state: "initializing", ready_for_jobs: false },
    })
    aheadMs = 601_000
    // A repetition is answered as it was, whatever is under way since; another push under its key is refused for that.
    const keyed = (body: Buffer) =>
      send(origin, "POST", `/api/v1/projects/${name}/push`, {
        token: alice,
        body,
        headers: { "idempotency-key": `${name}-again` },
      })
    const code = await tarballOf(CODE)
    const taken = await keyed(code)
    expect(taken.status).toBe(200)
    await call("POST", `/${name}/init`)
    expect((await push(name, CODE)).status).toBe(409)
    expect((await keyed(code)).json).toEqual(taken.json)
    expect((await keyed(await tarballOf([...CODE, { name: "./y.py", content: "" }]))).status).toBe(422)
    aheadMs = 0

    const before = await activeOf(late)
    const body = await tarballOf(CODE)
    const head = `Host: x\r\nConnection: close\r\nAuthorization: Bearer ${alice}\r\nContent-Length: ${body.length}`
    const socket = await openSocket(door.server.port)
    socket.write(`POST /api/v1/projects/${late}/push HTTP/1.1\r\n${head}\r\n\r\n`)
    socket.write(body.subarray(0, 10))
    await expect.poll(() => readdir(join(dir, "incoming"))).toHaveLength(1)
    expect((await call("POST", `/${late}/init`)).status).toBe(200)
    socket.write(body.subarray(10))
    expect(await untilClosed(socket)).toMatch(/^HTTP\/1\.1 409/)
    expect(await activeOf(late)).toBe(before)
    expect(await readdir(join(dir, "incoming"))).toEqual([])
  })

  test("P-025: an init without workers is taken, stays queued, and locks nobody out", async () => {
    const name = await project(CODE)
    const asked = await call("POST", `/${name}/init`)
    expect(asked.status).toBe(200)
    expect(bodyOf(asked)["init_status"]).toMatchObject({
      init_state: "published",
      pending_init: true,
      progress_phase: "queued",
    })
    expect((await push(name, CODE)).status).toBe(200)
  })

  test("P-026: max_nodes is stored and bounds what is waited for; wrong ones are 422", async () => {
    const [one] = workers("one", "two", "three")
    fleet.workersWithoutImage = 3
    const name = await project(CODE)
    for (const max_nodes of [0, -1, 1.5, "1"])
      expect((await call("POST", `/${name}/init`, { max_nodes })).status).toBe(422)
    await call("POST", `/${name}/init`, { max_nodes: 1 })
    expect(await requestOf(name)).toMatchObject({ maxNodes: 1 })
    await replica(await activeOf(name), one as NodeId, "ready")
    expect(await statusOf(name)).toMatchObject({ init_state: "ready", pending_init: false, total_replicas: 1 })
  })

  test("B-022, B-024, C-10: init needs $5 available; the quote stands, nothing else changes; and it costs nothing", async () => {
    const name = await project(CODE, { token: bob })
    const before = await statusOf(name, bob)
    const refused = await call("POST", `/${name}/init`, {}, bob)
    expect(refused.status).toBe(402)
    expect(bodyOf(refused)["quote"]).toMatchObject({ amount_usd: 0.01, kind: "shortfall", status: "open" })
    expect(await store.read((view) => view.all("SELECT 1 AS one FROM quotes WHERE account = 2"))).toHaveLength(1)
    expect(await statusOf(name, bob)).toEqual(before)
    const own = await project(CODE)
    expect((await call("POST", `/${own}/init`, {})).status).toBe(200)
    expect(await store.read((view) => view.all("SELECT 1 AS one FROM quotes WHERE account = 1"))).toHaveLength(0)
  })

  test("init and invalidate before any push are 409 and say what to do", async () => {
    const name = await project()
    for (const act of ["init", "invalidate"]) {
      const refused = await call("POST", `/${name}/${act}`)
      expect(refused).toMatchObject({ status: 409, json: { code: "no_revision" } })
      expect(bodyOf(refused)["next_action"]).toContain("/push")
    }
    const submit = store.read((view) => requireActiveRevision(view, accountId(1), name))
    await expect(submit).rejects.toMatchObject({ status: 409, code: "no_revision" })
    await expect(store.read((view) => requireActiveRevision(view, accountId(2), name))).rejects.toMatchObject({
      status: 404,
    })
  })

  test("P-027, PR-016, C-13: invalidate makes what was prepared stale; push, invalidate and init go back to back", async () => {
    const [one] = workers("one")
    fleet.workersWithoutImage = 1
    const name = await project(CODE)
    const first = await activeOf(name)
    await replica(first, one as NodeId, "ready")
    const hash = (await statusOf(name))["content_hash"]
    const stale = await call("POST", `/${name}/invalidate`)
    expect(stale).toMatchObject({ status: 200, json: { status: "invalidated", ready_for_jobs: false } })
    expect(bodyOf(stale)["init_status"]).toMatchObject({
      init_state: "published",
      stale_replicas: 1,
      content_hash: hash,
    })
    expect(await replica(first, one as NodeId, "ready")).toBe(false)
    expect((await call("POST", `/${name}/init`)).json).toMatchObject({ status: "initializing" })
    expect((await call("POST", `/${name}/invalidate`)).status).toBe(200)
    expect((await push(name, CODE)).status).toBe(200)
    expect((await call("POST", `/${name}/invalidate`)).status).toBe(200)
    expect((await call("POST", `/${name}/init`)).status).toBe(200)
  })

  test("PR-002, PR-013, X-004: a failed build needs attention, is told without machines, and ends with the next push", async () => {
    const name = await project(CODE)
    const revision = await activeOf(name)
    const node = nodeId("node_abcdefgh12345678")
    await store.write((tx) => recordBuildStarted(tx, { ...facts(revision, node), claim: claimNumber(1) }))
    const secrets = `at /var/lib/node-data/builds/1/x on node_abcdefgh12345678 10.1.2.3:4001 sha256:${"c".repeat(64)} 12D3KooWGzBzTvVYQ9QDfTGC5dZ6Y8K2Yt4fD4Hq5M6hR7sX8vYz`
    const failure = {
      ...facts(revision, node),
      kind: "project" as const,
      message: "RUN pip install exited with 1",
      logTail: `pip: no such package\n${secrets}`,
    }
    expect(await store.write((tx) => recordBuildFailed(tx, failure))).toBe(true)
    const details = bodyOf(await call("GET", `/${name}/status/details`))
    expect(details).toMatchObject({
      init_state: "attention_required",
      project_ready: false,
      can_accept_new_jobs: true,
      progress_phase: "failed",
      latest_issue: "RUN pip install exited with 1",
    })
    expect(details).toHaveProperty("latest_failure_at")
    const [entry] = details["diagnostics"] as Body[]
    expect(Object.keys(entry ?? {}).toSorted()).toEqual([
      "content_hash",
      "id",
      "initialized_at",
      "inserted_at",
      "log_tail",
      "message",
      "phase",
      "recommended_action",
      "status",
      "updated_at",
    ])
    expect(entry).toMatchObject({ status: "failed", phase: "build", content_hash: details["content_hash"] })
    expect(entry?.["log_tail"]).toContain("no such package")
    for (const secret of ["node_", "12D3", "10.1.2.3", "/var/lib", "cccc"])
      expect(entry?.["log_tail"]).not.toContain(secret)
    fleet.builders = 1
    expect((await call("POST", `/${name}/init`)).status).toBe(200)
    expect(await statusOf(name)).toMatchObject({ init_state: "published", pending_init: true })
    expect((await push(name, CODE)).status).toBe(200)
    const fresh = await statusOf(name)
    expect(fresh).not.toHaveProperty("latest_issue")
    expect(fresh).not.toHaveProperty("latest_failure_at")
  })

  test("rulings, Readiness: one failed replica among ready ones degrades; alone it needs attention; a dead node's are stale", async () => {
    const [one, two] = workers("one", "two")
    fleet.workersWithoutImage = 2
    const name = await project(CODE)
    const revision = await activeOf(name)
    await replica(revision, one as NodeId, "failed", "validation: import torch failed")
    expect(await statusOf(name)).toMatchObject({
      init_state: "attention_required",
      failed_replicas: 1,
      availability_status: "cold",
    })
    await replica(revision, two as NodeId, "initializing")
    expect(await statusOf(name)).toMatchObject({
      init_state: "published",
      availability_status: "warming",
      progress_phase: "running",
    })
    await replica(revision, two as NodeId, "ready")
    expect(await statusOf(name)).toMatchObject({ init_state: "ready", availability_status: "degraded" })
    fleet.live = new Set([one as NodeId])
    expect(await statusOf(name)).toMatchObject({
      init_state: "attention_required",
      stale_replicas: 1,
      ready_replicas: 0,
    })
  })

  test("PR-014: what every machine lacks is told, is no replica that failed, and goes when one can prepare it", async () => {
    const [one] = workers("one")
    const name = await project(CODE)
    const revision = await activeOf(name)
    await build(revision)
    await replica(revision, one as NodeId, "initializing")
    const why = "nobody gives layer /tmp/computalot-x/base of node_0123456789abcdef"
    await replica(revision, one as NodeId, "unable", null, why)
    fleet.trouble = "nobody gives a base layer."
    expect(await statusOf(name)).toMatchObject({
      init_state: "published",
      total_replicas: 0,
      progress_phase: "idle",
      status_message: expect.stringContaining("and it is tried again: nobody gives a base layer.") as string,
    })
    const details = bodyOf(await call("GET", `/${name}/status/details`))
    const entry = (details["diagnostics"] as Body[]).find(({ phase }) => phase === "prepare")
    expect(entry).toMatchObject({ status: "failed", message: "nobody gives layer [path] of [node]" })
    expect(entry?.["recommended_action"]).toContain("Nothing to correct")

    // Carol can pay for the floor of an init; its message says the same.
    const hers = await project(CODE, { token: carol })
    fleet.workersWithoutImage = 1
    expect((await call("POST", `/${hers}/init`, {}, carol)).status).toBe(200)
    const asked = await statusOf(hers, carol)
    expect(asked).toMatchObject({ init_state: "initializing" })
    expect(asked["status_message"]).toContain("so far none could: nobody gives a base layer.")
    fleet.trouble = null
    expect((await statusOf(hers, carol))["status_message"]).toBe("Workers are preparing the active revision.")
    expect((await statusOf(name))["status_message"]).toBe("The revision is published.")
  })

  test("rulings, Process runtime: a note says what is not executed; what a node dropped or took with it is not counted", async () => {
    const [one, two] = workers("one", "two")
    const name = await project(CODE)
    const revision = await activeOf(name)
    await store.write((tx) => recordRuntimeNote(tx, { revision, id: "diag_note", at: Date.now() }))
    const details = bodyOf(await call("GET", `/${name}/status/details`))
    expect(details["diagnostics"]).toEqual([expect.objectContaining({ id: "diag_note", status: "info" })])
    for (const node of [one, two]) await replica(revision, node as NodeId, "ready")
    await replica(revision, one as NodeId, "removed")
    expect(await statusOf(name)).toMatchObject({ total_replicas: 1 })
    await store.write((tx) => recordNodeGone(tx, two as NodeId))
    expect(await statusOf(name)).toMatchObject({ total_replicas: 0 })
  })

  test("a build that the builder's own trouble ended is queued again, and no one else may end it", async () => {
    const name = await project(CODE)
    const revision = await activeOf(name)
    const [builder, other] = [nodeId("node_1"), nodeId("node_2")]
    await store.write((tx) => recordBuildStarted(tx, { ...facts(revision, builder), claim: claimNumber(1) }))
    const fails = (node: NodeId) => ({
      ...facts(revision, node),
      kind: "node" as const,
      message: "disk",
      logTail: null,
    })
    expect(
      await store.write((tx) => recordBuildStarted(tx, { ...facts(revision, other), claim: claimNumber(1) })),
    ).toBe(false)
    expect(await store.write((tx) => recordBuildFailed(tx, fails(other)))).toBe(false)
    expect(await store.write((tx) => recordBuildFailed(tx, fails(builder)))).toBe(true)
    await build(revision)
    expect((await store.read((view) => requireActiveRevision(view, accountId(1), name))).revision.build).toBe("built")
  })

  test("PR-015: the load is what jobs are doing", async () => {
    const name = await project(CODE)
    await insertBareJob(store, { account: accountId(1), project: name, status: "running", queued: 7, running: 3 })
    expect(await statusOf(name)).toMatchObject({ queue_depth: 7, queued_tasks: 7, active_jobs: 1, active_tasks: 3 })
  })

  test("P-028: cancel-queued passes reason and tag on and counts", async () => {
    const name = await project()
    const done = await call("PUT", `/${name}/cancel-queued`, { reason: "no longer needed", tag: "t" })
    expect(done).toMatchObject({
      status: 200,
      json: { status: "ok", project: name, tag: "t", queued_before: 2, cancelled_jobs: 2 },
    })
    expect(cancelled.at(-1)).toEqual({ account: 1, project: name, reason: "no longer needed", tag: "t" })
    expect(bodyOf(await call("PUT", `/${name}/cancel-queued`))).not.toHaveProperty("tag")
  })
})
