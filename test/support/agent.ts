import { spawn, type ChildProcess } from "node:child_process"
import { once } from "node:events"
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { systemClock } from "../../protocol/base/clock.ts"
import { silentLog } from "../../protocol/base/log.ts"
import { systemRandom } from "../../protocol/base/random.ts"
import { nodeId } from "../../protocol/domain/ids.ts"
import { loadOrCreateIdentity, type Identity } from "../../protocol/mesh/identity.ts"
import type { MeshStream } from "../../protocol/mesh/mesh.ts"
import { serveContent } from "../../protocol/mesh/serve-content.ts"
import { signContentGrant } from "../../protocol/wire/content-grant.ts"
import { toWireRef, type ContentRef } from "../../protocol/wire/content-source.ts"
import {
  CONTROL_PROTOCOL,
  decodeToCoordinator,
  encodeMessage,
  REVOKED_IN_FRAME,
  type Grant,
  type Hello,
  type ResultItem,
  type RuntimeSpec,
  type TaskSpec,
  type ToCoordinator,
  type ToNode,
} from "../../protocol/wire/control.ts"
import { signEpoch } from "../../protocol/wire/epoch.ts"
import { openTestBlobs } from "./content.ts"
import { startTestMesh, type TestNode } from "./mesh.ts"
import { removeGroupsOf } from "./runtimes.ts"
import { tarballOf, type Member } from "./tarball.ts"

/** The coordinator's end of the control stream over real libp2p, steered by the test, and agents as programs of their own. */
export interface AgentRig extends AsyncDisposable {
  /** Every message of the agent, oldest first, with when it came (monotonic ms). */
  readonly heard: { message: ToCoordinator; atMs: number }[]
  /** Called with each message as it comes. */
  hears: (message: ToCoordinator) => void
  /** Hellos heard so far. */
  hellos(): Hello[]
  results(): ResultItem[]
  /** How each claim number of a hello is answered; default: all are kept. */
  verdict: (claim: number) => "keep" | "spent"
  /** Of the next welcomes. */
  epoch: number
  /** Members told as revoked by the next welcomes; cut into frames as the coordinator cuts it. */
  revoked: string[]
  /** Are reports answered `stored`? */
  answering: boolean
  send(message: ToNode): void
  /** Ends the agent's stream. */
  cutOff(): void
  /** A runtime spec of the process runtime for a pushed tree. */
  revision(files: Member[]): Promise<RuntimeSpec>
  grant(spec: TaskSpec, tasks: { claim: number; payload?: unknown }[]): void
  /** Starts (again) the one agent of this rig; resolves with its ready line. */
  start(flags?: string[]): Promise<AgentProgram>
  readonly dataDir: string
  /** Another member of the agent's mesh. */
  member(nodeId: string): Promise<TestNode>
}

export interface AgentProgram {
  ready: Record<string, unknown>
  process: ChildProcess
  /** Standard error so far. */
  log(): string
  /** Sends the signal and resolves with the exit code once it is gone. */
  end(signal: NodeJS.Signals): Promise<number | null>
}

export const HEARTBEAT_MS = 250

export async function startAgentRig(): Promise<AgentRig> {
  const home = mkdtempSync(join(tmpdir(), "computalot-agent-"))
  const dataDir = join(home, "node")
  mkdirSync(dataDir)
  const mesh = await startTestMesh()
  const blobs = await openTestBlobs()
  const coordinator = mesh.coordinator
  const identity = await loadOrCreateIdentity(join(dataDir, "node.key"), systemRandom)
  writeFileSync(join(dataDir, "membership.json"), JSON.stringify(membership(identity)))
  serveContent(coordinator, blobs, {
    coordinatorPublicKey: coordinator.identity.publicKey,
    revoked: () => false,
    clock: systemClock,
    log: silentLog,
    limits: { streams: 16, sends: 4, copiesPerBlob: null },
  })
  const programs: AgentProgram[] = []
  let stream: MeshStream | null = null
  let revisions = 0

  function membership(of: Identity) {
    return {
      node_id: "node_1",
      certificate: mesh.certificateOf(of),
      coordinator: { peer_id: coordinator.peerId, addrs: coordinator.addresses() },
      peers: [],
    }
  }

  coordinator.serve(CONTROL_PROTOCOL, async (opened) => {
    stream = opened
    for await (const frame of opened.frames()) {
      const message = decodeToCoordinator(frame)
      rig.heard.push({ message, atMs: performance.now() })
      rig.hears(message)
      answer(message)
    }
  })

  function answer(message: ToCoordinator): void {
    if (message.type === "hello") {
      const revoked = [...rig.revoked]
      while (revoked.length > REVOKED_IN_FRAME) {
        rig.send({ type: "revoked", nodes: revoked.splice(0, REVOKED_IN_FRAME) })
      }
      return rig.send({
        type: "welcome",
        version: 1,
        epoch: rig.epoch,
        epoch_proof: signEpoch(coordinator.identity, rig.epoch),
        now: Date.now(),
        heartbeat_ms: HEARTBEAT_MS,
        claim_lifetime_ms: 60_000,
        members: 1,
        attempts: message.attempts.map(({ claim }) => ({ claim, verdict: rig.verdict(claim), expires_in_ms: 60_000 })),
        peers: [],
        revocation_version: 0,
        revoked,
        transfer_token: "nds_test",
        certificate: null,
      })
    }
    if (message.type === "heartbeat") {
      const renewed = message.attempts.map(({ claim }) => claim)
      rig.send({ type: "heartbeat_reply", n: message.n, renewed, spent: [] })
    }
    if (message.type === "report" && rig.answering) {
      rig.send({
        type: "verdicts",
        items: message.items.map(({ claim }) => ({ claim, kind: "result", verdict: "stored", reason: null })),
      })
    }
  }

  const rig: AgentRig = {
    heard: [],
    hears: () => {},
    hellos: () => rig.heard.flatMap(({ message }) => (message.type === "hello" ? [message] : [])),
    results: () => rig.heard.flatMap(({ message }) => (message.type === "report" ? message.items : [])),
    verdict: () => "keep",
    epoch: 7,
    revoked: [],
    answering: true,
    dataDir,
    send(message) {
      stream?.send(encodeMessage(message)).catch(() => {})
    },
    cutOff: () => stream?.reset("the test cut it off"),
    async revision(files) {
      const bytes = await tarballOf(files)
      const ref: ContentRef = await blobs.put({ stream: chunksOf(bytes) })
      return {
        revision: `rev_${++revisions}`,
        tarball: toWireRef(ref),
        image: null,
        workdir: "/workspace",
        remote_dir: null,
        setup_timeout_ms: 60_000,
        validation: null,
        content_grant: signContentGrant(coordinator.identity, {
          node: identity.peerId,
          blobs: [ref],
          expiresAt: Date.now() + 3_600_000,
        }),
        holders: [],
      }
    },
    grant(spec, tasks) {
      const grant: Grant = {
        type: "grant",
        expires_in_ms: 60_000,
        specs: [spec],
        tasks: tasks.map(({ claim, payload = {} }, index) => ({
          claim,
          spec: 0,
          index,
          attempt: 1,
          payload: { text: JSON.stringify(payload) },
          gpus: [],
        })),
      }
      rig.send(grant)
    },
    member: (id) => mesh.member({ membership: { nodeId: nodeId(id) } }),
    async start(flags = []) {
      const program = await startProgram(["--coordinator", "http://127.0.0.1:9", "--data-dir", dataDir, ...flags])
      programs.push(program)
      return program
    },
    async [Symbol.asyncDispose]() {
      for (const { process: child } of programs) {
        if (child.exitCode !== null || child.signalCode !== null) continue
        child.kill("SIGKILL")
        await once(child, "exit")
      }
      await removeGroupsOf(dataDir)
      await mesh[Symbol.asyncDispose]()
      await blobs[Symbol.asyncDispose]()
      rmSync(home, { recursive: true, force: true })
    },
  }
  return rig
}

/** A task of `command`, small enough for any machine. */
export function taskSpec(runtime: RuntimeSpec, command: string[], changes: Partial<TaskSpec> = {}): TaskSpec {
  return {
    job_id: "job_20260101_000000_test01",
    runtime,
    command,
    env: {},
    cpu: 0.1,
    memory_mb: 64,
    storage_gb: 0.01,
    timeout_ms: 60_000,
    ...changes,
  }
}

/** Runs node-agent/main.ts with the process runtime. Rejects with what it said when it ends before it is ready. */
export async function startProgram(flags: string[]): Promise<AgentProgram> {
  const child = spawn(
    process.execPath,
    [AGENT, "--runtime", "process", "--allow-unsandboxed", "--listen", "/ip4/127.0.0.1/tcp/0", ...flags],
    { stdio: ["ignore", "pipe", "pipe"] },
  )
  let out = ""
  let log = ""
  child.stdout.setEncoding("utf8").on("data", (text: string) => (out += text))
  child.stderr.setEncoding("utf8").on("data", (text: string) => (log += text))
  const exited = once(child, "exit")
  await new Promise<void>((resolve, reject) => {
    child.stdout.on("data", () => out.includes("\n") && resolve())
    void exited.then(([code]) => reject(new ProgramEnded(code as number | null, log)))
  })
  return {
    ready: JSON.parse(out.split("\n")[0] ?? "") as Record<string, unknown>,
    process: child,
    log: () => log,
    async end(signal) {
      child.kill(signal)
      const [code] = (await exited) as [number | null]
      return code
    },
  }
}

export class ProgramEnded extends Error {
  readonly code: number | null
  readonly log: string
  constructor(code: number | null, log: string) {
    super(`the agent ended with ${code}: ${log}`)
    this.code = code
    this.log = log
  }
}

async function* chunksOf(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield bytes
}

const AGENT = new URL("../../node-agent/main.ts", import.meta.url).pathname
