import RealDatabase from "better-sqlite3"
import { cpSync, rmSync } from "node:fs"
import type { RequestListener } from "node:http"
import { join } from "node:path"
import { errorText } from "../../protocol/base/error-text.ts"
import type { CoordinatorConfig } from "../../coordinator/config.ts"
import { startCoordinator, type Coordinator } from "../../coordinator/coordinator.ts"
import { OlderCopy } from "../../coordinator/store/meta.ts"
import { Committed } from "./committed.ts"
import { cutDatabases, setDiskFaults } from "./disk/database.ts"
import { MachineCrashed, type Machine, type Program } from "./machine.ts"
import { scannerAtOnce } from "./scripted-builder.ts"
import type { SimMesh } from "./sim-mesh.ts"

export interface CoordinatorSettings {
  claimLifetimeMs: number
  lostAfterMs: number
  /** Null: by the size of the fleet. */
  heartbeatMs: number | null
  resultSpillBytes: number
}

export const ADMIN_TOKEN = "simulated-admin-token"

/** The coordinator's machine: its data directory, and the program that runs on it now. */
export class CoordinatorMachine {
  readonly machine: Machine
  readonly directory: string
  readonly #mesh: SimMesh
  readonly #settings: CoordinatorSettings
  program: Program | null = null
  listener: RequestListener | null = null
  running: Coordinator | null = null
  /** The crash that the next commits will bring: after so many of them, before or after the last one's COMMIT. */
  crashAtCommit: { commits: number; when: "before" | "after"; downMs: number } | null = null
  isDiskFull = false
  #stored: Committed | null = null
  #copies = 0
  /** Copies of the data as they are, the oldest first: those of a course of events that was given up are gone. */
  readonly #line: string[] = []
  /** A node has proved that these data are an older copy: from then on they start only where that is wanted. */
  #isOlder = false
  /** Told of every COMMIT that was done. */
  committed: (database: RealDatabase.Database) => void = () => {}
  crashed: (downMs: number) => void = () => {}
  /** Its program is gone, by whatever way. */
  ended: () => void = () => {}
  /** It could not be started, or stopped by itself. */
  failed: (reason: string) => void = () => {}
  /** It ended, or did not start, because its data are an older copy. */
  refusedOlder: () => void = () => {}

  constructor(machine: Machine, directory: string, mesh: SimMesh, settings: CoordinatorSettings) {
    this.machine = machine
    this.directory = directory
    this.#mesh = mesh
    this.#settings = settings
  }

  start({ takeOver = false } = {}): void {
    if (this.program) return
    const program = this.machine.start()
    this.program = program
    this.machine.tell("start")
    setDiskFaults(this.directory, {
      aroundCommit: (when, database) => this.#aroundCommit(program, when, database),
      slow: program.disk,
    })
    startCoordinator({
      config: this.#config(),
      clock: program.clock,
      random: program.chance.of("random"),
      log: program.log,
      version: "0.0.0",
      takeOver,
      onFatal: (error) => {
        // Of a COMMIT that was cut short the program has died already.
        if (!(error instanceof OlderCopy) || !program.isAlive) return
        this.#isOlder = this.stored().isOlderCopy()
        this.#refused()
      },
      outside: {
        createMesh: this.#mesh.creator(program),
        serveHttp: async ({ app }) => {
          this.listener = app.listener
          const close = async (): Promise<void> => app.close()
          return { origin: "http://coordinator.sim", port: 80, close, [Symbol.asyncDispose]: close }
        },
        createScanner: () => scannerAtOnce,
      },
    }).then(
      (running) => {
        if (!program.isAlive) return
        if (this.#isOlder && !takeOver) this.failed("it started again on an older copy of its data")
        this.running = running
        this.#isOlder = false
      },
      (error: unknown) => {
        if (!program.isAlive) return
        if (error instanceof OlderCopy && !takeOver) return this.#refused()
        this.kill({ hangsUp: true })
        this.failed(errorText(error))
      },
    )
  }

  /** As kill -9, or with `hangsUp` false as a power cut. Nothing that was not committed is there afterwards. */
  kill({ hangsUp }: { hangsUp: boolean }): void {
    const { program } = this
    if (!program) return
    this.program = null
    this.listener = null
    this.running = null
    this.crashAtCommit = null
    this.#mesh.ended(program, { hangsUp })
    program.end()
    this.#stored?.[Symbol.dispose]()
    this.#stored = null
    setDiskFaults(this.directory, null)
    cutDatabases(this.directory)
    this.ended()
  }

  #refused(): void {
    this.machine.tell("its data are an older copy")
    this.kill({ hangsUp: true })
    this.refusedOlder()
  }

  /** As SIGTERM: calls `stopped` once it has ended by itself. */
  stop(stopped: () => void): void {
    const { program, running } = this
    if (!program || !running) return
    Promise.resolve(running[Symbol.asyncDispose]()).then(
      () => {
        if (this.program !== program) return
        this.kill({ hangsUp: true })
        stopped()
      },
      (error: unknown) => {
        if (program.isAlive) this.failed(`it did not stop cleanly: ${errorText(error)}`)
      },
    )
  }

  /** A copy of the data directory as it is now, and where it lies. */
  backUp(): string {
    this.#copies += 1
    const copy = `${this.directory}-copy-${this.#copies}`
    cpSync(this.directory, copy, { recursive: true, filter: (path) => !path.endsWith("/lock") })
    this.#line.push(copy)
    return copy
  }

  /** False once an earlier copy than this one was restored: what this one has did not happen then. */
  mayRestore(copy: string): boolean {
    return this.#line.includes(copy)
  }

  /** The directory as the copy has it: what came after is lost. The program must not run. */
  restore(copy: string): void {
    this.#line.splice(this.#line.indexOf(copy) + 1)
    rmSync(this.directory, { recursive: true, force: true })
    cpSync(copy, this.directory, { recursive: true })
    // Its mark was in the data that are gone.
    this.#isOlder = false
  }

  /** What it has stored, while its program runs. */
  stored(): Committed {
    this.#stored ??= new Committed(join(this.directory, "computalot.db"))
    return this.#stored
  }

  #aroundCommit(program: Program, when: "before" | "after", database: RealDatabase.Database): void {
    if (when === "before" && this.isDiskFull) throw new RealDatabase.SqliteError("the disk is full", "SQLITE_FULL")
    if (when === "after") {
      this.committed(database)
      if (this.machine.diskMs > 0) this.machine.freeze(this.machine.diskMs)
    }
    const crash = this.crashAtCommit
    if (!crash || this.program !== program || crash.when !== when || --crash.commits > 0) return
    this.machine.tell(`crash ${when} COMMIT`)
    this.kill({ hangsUp: true })
    this.crashed(crash.downMs)
    throw new MachineCrashed()
  }

  #config(): CoordinatorConfig {
    return {
      dataDir: this.directory,
      httpHost: "127.0.0.1",
      httpPort: 0,
      meshHost: "127.0.0.1",
      meshPort: 0,
      meshAnnounce: [],
      publicUrl: null,
      adminToken: ADMIN_TOKEN,
      metricsToken: null,
      signupCredit: 0n,
      pricesFile: null,
      allowUnsandboxed: true,
      allowUnenforced: true,
      allowPrivateUrls: false,
      webhookRetryMs: 1_000,
      artifactTtlMs: 7 * 86_400_000,
      ...this.#settings,
      priorityAgeingMs: 300_000,
      queueTimeoutMs: null,
      stuckSweepMs: 300_000,
      jobRetentionMs: 30 * 86_400_000,
      certificateTtlMs: 7 * 86_400_000,
      sseLimitMs: 3_600_000,
      ssePingMs: 15_000,
      quoteTtlMs: 3_600_000,
      trustProxy: [],
    }
  }
}
