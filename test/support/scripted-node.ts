import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { expect } from "vitest"
import { readConfig } from "../../coordinator/config.ts"
import { startCoordinator, type Coordinator } from "../../coordinator/coordinator.ts"
import { systemClock } from "../../protocol/base/clock.ts"
import { silentLog } from "../../protocol/base/log.ts"
import { systemRandom } from "../../protocol/base/random.ts"
import { nodeId, peerId } from "../../protocol/domain/ids.ts"
import type { NodeRole } from "../../protocol/domain/statuses.ts"
import { createMeshNode } from "../../protocol/mesh/create-mesh-node.ts"
import { identityFromSeed, type Identity } from "../../protocol/mesh/identity.ts"
import type { MeshNode, MeshStream } from "../../protocol/mesh/mesh.ts"
import {
  CONTROL_PROTOCOL,
  CONTROL_VERSION,
  decodeToNode,
  encodeMessage,
  type GrantedTask,
  type Hello,
  type ResultItem,
  type StandingClaim,
  type ToCoordinator,
  type ToNode,
  type Welcome,
} from "../../protocol/wire/control.ts"
import { publicKeyOfPeerId, signEnrolment } from "../../protocol/wire/signing.ts"
import { send, type PlainReply } from "./http-door.ts"
import { resultItem } from "./job-rig.ts"
import { tarballOf } from "./tarball.ts"

/** The whole coordinator on loopback, with one project pushed; nodes are scripted by the test, frame by frame. */
export interface TestCoordinator extends AsyncDisposable {
  coordinator: Coordinator
  dataDir: string
  call(method: string, path: string, body?: unknown, token?: string): Promise<PlainReply>
  /** As the project's owner. */
  as(method: string, path: string, body?: unknown): Promise<PlainReply>
  joinToken(options?: object): Promise<string>
  /** A member that is connected to nothing yet; a worker unless its roles are said. */
  node(roles?: NodeRole[]): Promise<ScriptedNode>
  /** Pushes the project's files again. */
  push(): Promise<PlainReply>
  submit(body?: object): Promise<string>
  job(id: string): Promise<Record<string, unknown>>
  /** Why it said that its program must end. */
  readonly fatal: Error[]
  /** Stops it and starts another on the same data and mesh port; `between` may change the data. */
  restart(options?: { takeOver?: boolean; between?: () => Promise<void> | void }): Promise<void>
}

const PROJECT = [
  { name: "./Dockerfile", content: "FROM python:3.11-slim\nWORKDIR /workspace\nCOPY . .\n" },
  {
    name: "./computalot.project.json",
    content: JSON.stringify({
      version: 1,
      runtime: { kind: "oci", sandbox: "gvisor", workdir: "/workspace" },
      entrypoint: { command: ["python3", "x.py"] },
    }),
  },
  { name: "./x.py", content: "print(1)\n" },
]

/** Short times, so that a lost node shows within a second or two. */
const ENVIRONMENT = {
  COMPUTALOT_ALLOW_UNSANDBOXED: "1",
  COMPUTALOT_ALLOW_UNENFORCED: "1",
  COMPUTALOT_SIGNUP_CREDIT_USD: "100",
  COMPUTALOT_HEARTBEAT_S: "0.2",
  COMPUTALOT_CLAIM_LIFETIME_S: "30",
  COMPUTALOT_LOST_AFTER_S: "1",
}

export async function startTestCoordinator(environment: Record<string, string> = {}): Promise<TestCoordinator> {
  const dataDir = mkdtempSync(join(tmpdir(), "computalot-whole-"))
  const nodes: ScriptedNode[] = []
  const settings = { ...ENVIRONMENT, ...environment }
  const fatal: Error[] = []
  const start = (meshPort: string, takeOver = false): Promise<Coordinator> => {
    const flags = ["--data-dir", dataDir, "--http-port", "0", "--mesh-port", meshPort]
    const { config } = readConfig(flags, settings)
    return startCoordinator({
      config,
      clock: systemClock,
      random: systemRandom,
      log: silentLog,
      version: "test",
      takeOver,
      onFatal: (error) => void fatal.push(error),
    })
  }
  let coordinator = await start("0")
  const meshPort = /\/tcp\/(\d+)/.exec(coordinator.meshAddresses[0] ?? "")?.[1] ?? "0"

  const rig: TestCoordinator = {
    get coordinator() {
      return coordinator
    },
    dataDir,
    fatal,
    call: (method, path, body, token = coordinator.adminToken) =>
      send(coordinator.origin, method, `/api/v1${path}`, { token, ...(body === undefined ? {} : { body }) }),
    as: (method, path, body) => rig.call(method, path, body, key),
    async joinToken(options = { max_uses: 100 }) {
      return String((await rig.call("POST", "/admin/nodes/tokens", options)).get("token"))
    },
    async node(roles = ["worker"]) {
      const node = await scriptedNode(rig, roles)
      nodes.push(node)
      return node
    },
    push: async () => rig.as("POST", "/projects/p/push", await tarballOf(PROJECT)),
    async submit(body = {}) {
      const job = {
        type: "structured_runner",
        project: "p",
        runner_command: ["python3", "x.py"],
        timeout_s: 60,
        ...body,
      }
      const reply = await rig.call("POST", "/jobs", job, key)
      if (reply.status !== 201) throw new Error(`submit: ${reply.status} ${reply.text}`)
      return String(reply.get("id"))
    },
    async job(id) {
      const { json } = await rig.call("GET", `/jobs/${id}`, undefined, key)
      return (json["job"] ?? json) as Record<string, unknown>
    },
    async restart({ takeOver = false, between } = {}) {
      await coordinator[Symbol.asyncDispose]()
      await between?.()
      coordinator = await start(meshPort, takeOver)
    },
    async [Symbol.asyncDispose]() {
      await Promise.all(nodes.map((node) => node[Symbol.asyncDispose]()))
      await coordinator[Symbol.asyncDispose]()
      rmSync(dataDir, { recursive: true, force: true })
    },
  }
  const user = await rig.call("POST", "/admin/users", { name: "someone" })
  const issued = await rig.call("POST", `/admin/users/${String(user.get("user", "id"))}/keys`, {})
  const key = String(issued.get("token"))
  await rig.call("POST", "/projects", { name: "p", remote_dir: "/root/p" }, key)
  const pushed = await rig.push()
  if (pushed.status !== 200) throw new Error(`push: ${pushed.status} ${pushed.text}`)
  return rig
}

/** A node as the coordinator sees it: it says what the test says, and keeps all it hears. */
export interface ScriptedNode extends AsyncDisposable {
  readonly id: string
  readonly identity: Identity
  readonly mesh: MeshNode
  readonly certificate: string
  /** What came on the stream that was opened last, without the welcome. */
  readonly heard: ToNode[]
  /** Bytes of the frames up to and with the welcome, of all streams. */
  readonly frameBytes: number[]
  /** Every task it was granted, on any stream. */
  readonly granted: GrantedTask[]
  transferToken: string
  /** Opens a stream and says hello; the answer is the welcome, or the refusal. */
  connect(hello?: Partial<Hello>): Promise<Welcome | Extract<ToNode, { type: "refusal" }>>
  say(message: ToCoordinator): Promise<void>
  sayBytes(frame: Uint8Array): Promise<void>
  claim(standing?: Partial<StandingClaim>): Promise<void>
  report(claim: number, item?: Partial<ResultItem>): Promise<void>
  heartbeat(...claims: number[]): Promise<void>
  /** Heartbeats every 100 ms, naming what it was told to, until it is disposed or stopped. */
  beat(claims: () => number[]): Disposable
  verdicts(): { claim: number; verdict: string }[]
  /** The open stream breaks; the connection stays. */
  breakStream(): void
  /** The machine is gone. */
  die(): Promise<void>
  readonly streamEnded: boolean
}

export async function enrol(rig: TestCoordinator, identity: Identity, token: string): Promise<PlainReply> {
  return rig.call("POST", "/nodes/enroll", {
    token,
    peer_id: identity.peerId,
    agent_version: "scripted/1",
    ...signEnrolmentOnWire(identity, token),
  })
}

export function signEnrolmentOnWire(identity: Identity, token: string): { public_key: string; signature: string } {
  const { publicKey, signature } = signEnrolment(identity, token, identity.peerId)
  return { public_key: publicKey, signature }
}

async function scriptedNode(rig: TestCoordinator, roles: NodeRole[]): Promise<ScriptedNode> {
  const identity = await identityFromSeed(systemRandom.bytes(32))
  const enrolled = await enrol(rig, identity, await rig.joinToken({ max_uses: 1, roles }))
  if (enrolled.status !== 201) throw new Error(`enrol: ${enrolled.status} ${enrolled.text}`)
  const coordinatorPeer = peerId(rig.coordinator.peerId)
  const certificate = String(enrolled.get("certificate"))
  const mesh = await createMeshNode({
    identity,
    listen: [],
    coordinatorKey: { peerId: coordinatorPeer, publicKey: publicKeyOfPeerId(coordinatorPeer) ?? new Uint8Array() },
    certificate: () => certificate,
    isCoordinator: false,
    agentVersion: "scripted/1",
    log: silentLog,
    clock: systemClock,
  })
  let stream: MeshStream | null = null
  const granted: GrantedTask[] = []
  const beating = new Set<Disposable>()

  const node: ScriptedNode = {
    id: nodeId(String(enrolled.get("node_id"))),
    identity,
    mesh,
    certificate,
    heard: [],
    frameBytes: [],
    granted,
    transferToken: "",
    async connect(hello = {}) {
      await mesh.dial(rig.coordinator.meshAddresses[0] ?? "")
      const opened = await mesh.openStream(coordinatorPeer, CONTROL_PROTOCOL)
      stream = opened
      node.heard.length = 0
      await opened.send(encodeMessage({ ...HELLO, ...hello }))
      const frames = opened.frames()[Symbol.asyncIterator]()
      const revoked: string[] = []
      const next = async (): Promise<ToNode> => {
        const { done, value } = await frames.next()
        if (done) throw new Error("the coordinator said nothing")
        node.frameBytes.push(value.length)
        return decodeToNode(value)
      }
      let answer = await next()
      for (; answer.type === "revoked"; answer = await next()) revoked.push(...answer.nodes)
      if (answer.type === "refusal") return answer
      if (answer.type !== "welcome") throw new Error(`a ${answer.type} before the welcome`)
      node.transferToken = answer.transfer_token
      void listen(frames)
      return { ...answer, revoked: [...revoked, ...answer.revoked] }
    },
    say: (message) => node.sayBytes(encodeMessage(message)),
    async sayBytes(frame) {
      if (!stream) throw new Error("it is connected first")
      await stream.send(frame)
    },
    claim: (standing = {}) => node.say({ ...STANDING, ...standing }),
    report: (claim, item = {}) => node.say({ type: "report", items: [resultItem(claim, item)] }),
    heartbeat: (...claims) =>
      node.say({ type: "heartbeat", n: 1, attempts: claims.map((claim) => ({ claim, running_ms: 500 })) }),
    beat(claims) {
      const timer = setInterval(() => void node.heartbeat(...claims()).catch(() => {}), 100)
      const stop = { [Symbol.dispose]: () => clearInterval(timer) }
      beating.add(stop)
      return stop
    },
    verdicts: () => node.heard.flatMap((message) => (message.type === "verdicts" ? message.items : [])),
    breakStream: () => stream?.reset("the test breaks it"),
    async die() {
      for (const stop of beating) stop[Symbol.dispose]()
      await mesh[Symbol.asyncDispose]()
    },
    get streamEnded() {
      return stream?.ended.aborted ?? true
    },
    async [Symbol.asyncDispose]() {
      await node.die()
    },
  }

  async function listen(frames: AsyncIterator<Uint8Array>): Promise<void> {
    try {
      for (let next = await frames.next(); !next.done; next = await frames.next()) {
        const message = decodeToNode(next.value)
        node.heard.push(message)
        if (message.type === "grant") granted.push(...message.tasks)
      }
    } catch {
      // The stream broke: `streamEnded` says so.
    }
  }
  return node
}

const CAPACITY = { cpu: 2, memory_mb: 4096, storage_gb: 50, gpus: [] }

/** What a scripted node says first, unless it is told otherwise. */
export const HELLO: Hello = {
  type: "hello",
  version: CONTROL_VERSION,
  agent_version: "scripted/1",
  boot_id: "boot-1",
  epoch: 0,
  epoch_proof: null,
  roles: ["worker"],
  capacity: CAPACITY,
  runtime: "process",
  isolation: "none",
  enforces: [],
  network: "none",
  addresses: [],
  attempts: [],
}

const STANDING: StandingClaim = { type: "claim", open: true, draining: false, capacity: CAPACITY, warm: [], credit: 16 }

/** Whose heart beats for every task it has accepted. */
export interface Worker extends ScriptedNode {
  readonly mine: Set<number>
  /** The task that comes after those it has seen so far, accepted and started. */
  next(): Promise<number>
}

/** Connected, with a standing claim. */
export async function startWorker(rig: TestCoordinator, capacity?: { cpu: number }): Promise<Worker> {
  const node = await rig.node()
  await node.connect()
  await node.claim(capacity && { capacity: { memory_mb: 65_536, storage_gb: 1_000, gpus: [], ...capacity } })
  const mine = new Set<number>()
  node.beat(() => [...mine])
  let seen = 0
  return Object.assign(node, {
    mine,
    async next() {
      await expect.poll(() => node.granted.length).toBeGreaterThan(seen)
      const claim = node.granted[seen++]?.claim ?? 0
      mine.add(claim)
      await node.say({ type: "accept", claims: [claim] })
      await node.say({ type: "started", claims: [claim] })
      return claim
    },
  })
}

/** What the node was told of its reports, in order. */
export const verdictsOf = (node: ScriptedNode): string[] => node.verdicts().map(({ verdict }) => verdict)
