import RealDatabase from "better-sqlite3"
import { createHash } from "node:crypto"
import { cpSync, existsSync, mkdirSync, readFileSync, rmSync } from "node:fs"
import { join } from "node:path"
import { errorText } from "../../protocol/base/error-text.ts"
import { createAgent, type Agent } from "../../node-agent/agent.ts"
import type { Hasher } from "../../node-agent/cache/hasher.ts"
import type { NodeConfig } from "../../node-agent/config.ts"
import { sha256Hex } from "../../protocol/base/digest.ts"
import { digest } from "../../protocol/domain/ids.ts"
import { onePieceList, PIECE_BYTES } from "../../protocol/wire/piece-list.ts"
import { cutDatabases, setDiskFaults } from "./disk/database.ts"
import { MachineCrashed, type Machine, type Program } from "./machine.ts"
import { scriptedBuilds } from "./scripted-builder.ts"
import { Processes, scriptedRunner, type RuntimeEvents } from "./scripted-runner.ts"
import { namedDriver, scriptedRuntimes } from "./scripted-runtime.ts"
import type { SimMesh } from "./sim-mesh.ts"

export interface NodeSettings {
  cpu: number
  gpus: number
  memoryMb: number
  keepRunningMs: number
  /** It runs images and builds them; else it runs programs as they are. */
  images: boolean
  joinToken: string
}

/** A node's machine: its disk, the programs of its tasks, and the agent that runs now. */
export class NodeMachine {
  readonly machine: Machine
  readonly directory: string
  readonly processes = new Processes()
  readonly #mesh: SimMesh
  readonly #settings: NodeSettings
  readonly #events: RuntimeEvents
  #warm = new Set<string>()
  program: Program | null = null
  agent: Agent | null = null
  /** Its disk is a copy of another's, which runs too. */
  isClone = false
  /** The crash that the next writes to the outbox will bring. */
  crashAtWrite: { writes: number; when: "before" | "after"; downMs: number } | null = null
  crashed: (downMs: number) => void = () => {}
  /** Why the last agent ended by itself. */
  failed: (reason: string) => void = () => {}

  constructor(machine: Machine, directory: string, mesh: SimMesh, settings: NodeSettings, events: RuntimeEvents) {
    this.machine = machine
    this.directory = directory
    this.#mesh = mesh
    this.#settings = settings
    this.#events = events
  }

  start(): void {
    if (this.program || !this.machine.isUp) return
    const program = this.machine.start()
    this.program = program
    this.machine.tell("start")
    mkdirSync(this.directory, { recursive: true })
    setDiskFaults(this.directory, {
      aroundCommit: (when) => this.#aroundWrite(program, when),
      slow: program.disk,
    })
    const { cpu, memoryMb } = this.#settings
    const gpus = Array.from({ length: this.#settings.gpus }, (_, index) => `gpu-${index}-of-${this.machine.name}`)
    createAgent({
      config: this.#config(),
      clock: program.clock,
      random: program.chance.of("random"),
      log: {
        ...program.log,
        warn: (event, facts) => {
          if (event === "a checkpoint cannot be read") this.#events.unreadable(Number(facts?.["claim"]))
          program.log.warn(event, facts)
        },
      },
      version: "0.0.0",
      signal: program.ended.signal,
      outside: {
        createMesh: this.#mesh.creator(program),
        probeHardware: async () => ({
          capacity: {
            cpu,
            memoryMb,
            storageGb: 100,
            gpus: gpus.map((uuid) => ({ uuid, model: "simulated", memoryMb: 16_384 })),
          },
          problems: [],
        }),
        chooseDriver: async () => namedDriver(this.#settings.images ? "gvisor" : "process"),
        openBuilds: async (parts) =>
          this.#settings.images ? await scriptedBuilds(program, join(this.directory, "layers-made"))(parts) : null,
        createHasher: () => hasherAtOnce,
        createRuntimes: scriptedRuntimes(program, this.#warm),
        createRunner: (agent) =>
          scriptedRunner({
            program,
            directory: this.directory,
            processes: this.processes,
            lends: { cpu, gpus },
            agent,
            events: this.#events,
          }),
      },
    }).then(
      (agent) => {
        if (!program.isAlive) return
        this.agent = agent
        void agent.stopped.then((reason) => this.#failed(program, reason.message))
      },
      (error: unknown) => this.#failed(program, errorText(error)),
    )
  }

  /** As kill -9 of the agent alone; with `power` of the whole machine, and of all that ran there. */
  kill({ power }: { power: boolean }): void {
    if (power) {
      for (const claim of this.processes.running.keys()) this.#events.died(claim)
      this.processes.clear()
      this.machine.isUp = false
    }
    const { program } = this
    if (!program) return
    this.program = null
    this.agent = null
    this.crashAtWrite = null
    this.#mesh.ended(program, { hangsUp: !power })
    program.end()
    setDiskFaults(this.directory, null)
    cutDatabases(this.directory)
  }

  powerOn(): void {
    this.machine.isUp = true
    this.#mesh.network.changed()
  }

  /** A new disk: a stranger's machine. */
  wipe(): void {
    rmSync(this.directory, { recursive: true, force: true })
    this.processes.clear()
    this.#warm = new Set()
    this.isClone = false
  }

  /** Does its disk say that it is a member? */
  hasJoined(): boolean {
    return existsSync(join(this.directory, "membership.json"))
  }

  /** As what; null before it has joined. */
  memberId(): string | null {
    if (!this.hasJoined()) return null
    const file = readFileSync(join(this.directory, "membership.json"), "utf8")
    return (JSON.parse(file) as { node_id: string }).node_id
  }

  /** As its outbox has them on the disk. */
  heldClaims(): number[] {
    const database = new RealDatabase(join(this.directory, "outbox.sqlite"), { readonly: true })
    try {
      return (database.prepare("SELECT claim FROM attempts").all() as { claim: number }[]).map(({ claim }) => claim)
    } finally {
      database.close()
    }
  }

  /** Starts again with a fresh disk. */
  makeStranger(): void {
    this.kill({ power: true })
    this.wipe()
    this.powerOn()
    this.start()
  }

  /** The disk of another machine, copied as it is now. */
  cloneFrom(other: NodeMachine): void {
    this.wipe()
    cpSync(other.directory, this.directory, { recursive: true, filter: (path) => !path.endsWith("/lock") })
    this.#warm = new Set(other.#warm)
    this.isClone = true
  }

  #aroundWrite(program: Program, when: "before" | "after"): void {
    const crash = this.crashAtWrite
    if (!crash || this.program !== program || crash.when !== when || --crash.writes > 0) return
    this.machine.tell(`crash ${when} a write`)
    this.kill({ power: false })
    this.crashed(crash.downMs)
    throw new MachineCrashed()
  }

  #failed(program: Program, reason: string): void {
    if (!program.isAlive) return
    this.kill({ power: false })
    this.failed(reason)
  }

  #config(): NodeConfig {
    return {
      coordinator: `http://coordinator-for-${this.machine.name}.sim`,
      token: this.#settings.joinToken,
      dataDir: this.directory,
      name: this.machine.name,
      runtime: this.#settings.images ? "gvisor" : "process",
      allowUnsandboxed: true,
      caps: {},
      listen: [],
      announce: [],
      roles: null,
      keepRunningMs: this.#settings.keepRunningMs,
      cacheBytes: 1024 ** 3,
      drain: "finish",
      basesDirectory: this.directory,
      pullBases: false,
      taskNetwork: "none",
      buildNetwork: "none",
      pipIndexUrl: null,
      npmRegistry: null,
      environment: {},
    }
  }
}

/** Without a thread. Simulated files are small. */
const hasherAtOnce: Hasher = {
  async file(path) {
    const bytes = readFileSync(path)
    if (bytes.length > PIECE_BYTES) throw new Error(`${path} is larger than what is simulated`)
    return onePieceList({ digest: digest(sha256Hex(bytes)), size: bytes.length })
  },
  piece: async (bytes) => new Uint8Array(createHash("sha256").update(bytes).digest()),
  async [Symbol.asyncDispose]() {},
}
