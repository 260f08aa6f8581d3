import type { Enforceable, FailureKind, Isolation } from "../../protocol/domain/statuses.ts"

/**
 * One way to run an attempt, behind one interface (architecture §6). Drivers: `gvisor`, `bubblewrap`, `process`; tests and
 * the queue benchmark inject others.
 */
export interface RuntimeDriver {
  readonly name: string
  /** Runs a real hello and tries each ability: what a runtime can do is found out, not read from its version. */
  probe(): Promise<DriverProbe>
  /**
   * Makes `attemptDir/disk`, a directory of the size `diskBytes` where the driver can hold it to that (a file system of its
   * own). What the attempt writes belongs there: workspace, scratch, artifacts; writable `mounts` should lie below it.
   * `start` does it when it was not done before; a second call changes nothing.
   */
  prepare(attemptDir: string, diskBytes: number): Promise<string>
  /**
   * Starts the attempt under its own supervisor and resolves once the supervisor runs. The supervisor outlives the agent:
   * it appends output to files in `spec.attemptDir`, enforces `timeoutMs` and `deadline`, and writes the exit file.
   * Rejects with `RuntimeRefusal` when the attempt cannot be started (the image lacks the command, say).
   */
  start(spec: AttemptSpec): Promise<RunningAttempt>
  /**
   * Takes over an attempt that an earlier agent started: it runs (its supervisor is proved to live by boot id, pid and start
   * time) or has left its end. Null when neither can be proved.
   */
  adopt(attemptDir: string): Promise<RunningAttempt | null>
  /**
   * Ends what is left of an attempt and removes what the driver made for it: mounts, disk, control groups, network. The
   * directory itself stays the caller's. Call it once results are collected; unknown directories and second calls are fine.
   */
  release(attemptDir: string): Promise<void>
  /** Removes the directory of an attempt that was released, with everything in it. Missing ones are fine. */
  remove(attemptDir: string): Promise<void>
  /**
   * Ends and releases what a killed agent left behind below `attemptsDir`, except the attempts named (their directories),
   * and what this agent's runtime left elsewhere on the machine. Called once, before anything starts.
   */
  sweep(keep: ReadonlySet<string>): Promise<void>
  /** Lets go of the runtime. Running attempts live on: a later agent adopts them. */
  [Symbol.asyncDispose](): Promise<void>
}

/** What every driver needs to know of its agent. */
export interface DriverPlace {
  /** Names this agent's groups, networks and mounts on the machine: two agents never touch each other's. */
  dataDir: string
  /** All attempt directories lie directly below it. */
  attemptsDir: string
  /** IPv4 addresses that no task may reach beside private ones: the mesh's and the coordinator's public ones. */
  blockedAddresses?: readonly string[]
}

export interface DriverProbe {
  available: boolean
  /** Why not, or what does not work: one sentence each, for the operator. */
  problems: string[]
  isolation: Isolation
  enforces: Enforceable[]
  /** `outbound` where the node can let tasks out without letting them in anywhere private. */
  network: "none" | "outbound"
  version: string
}

export interface AttemptSpec {
  /** Names the attempt to the runtime: unique for ever on this machine (`c` + claim number). */
  name: string
  /** Owned by this attempt: supervisor, output, exit and bookkeeping files. Exists. */
  attemptDir: string
  /** The unpacked layers, composed by the driver with a writable layer on the attempt's disk; absent for the process driver. */
  rootfs?: RootfsSpec
  /** What to run; the first element is looked up in the PATH of `env`. */
  command: string[]
  /** Complete environment, inside view. */
  env: Record<string, string>
  /** Working directory, inside view (process driver: a real directory). */
  workdir: string
  /** Host directories and files shown inside. Applied in order. */
  mounts: Mount[]
  limits: Limits
  network: "none" | "outbound"
}

export interface RootfsSpec {
  /** Layer directories on the host, lowest first, each unpacked from one diff_id. Never written. */
  layers: string[]
  /** Host name shown inside. */
  hostname: string
}

export interface Mount {
  hostPath: string
  path: string
  readonly: boolean
}

export interface Limits {
  memoryBytes: number
  /** Cores; a share that may burst while the node is idle. */
  cpu: number
  pids: number
  /** Writable root, workdir, /tmp, scratch and artifacts together. */
  diskBytes: number
  /** From the start of the user's process. */
  timeoutMs: number
  /** Wall-clock time (ms) at which the supervisor ends the attempt even without an agent (claim + keep-running). Extended by `extend`. */
  deadline: number
}

export interface RunningAttempt {
  /** Resolves when every process of the attempt is gone; its files and disk stay until `release`. Never rejects. */
  readonly done: Promise<AttemptExit>
  /** Kills the whole tree. Resolves when it is gone. A second call waits for the first. */
  stop(reason: "cancelled" | "deadline"): Promise<void>
  /** Moves the deadline that the supervisor enforces by itself. */
  extend(deadline: number): Promise<void>
  /** Where the supervisor appends standard output and standard error. Read them with `tailOutput` (output-files.ts). */
  readonly stdoutPath: string
  readonly stderrPath: string
}

export interface AttemptExit {
  /** Null when the program ended by a signal or never ran. */
  exitCode: number | null
  signal: string | null
  /** Null: exit code 0. */
  failureKind: FailureKind | null
  /** For people: names the limit that was hit, say. */
  message: string | null
  /** From the start of the user's process to its end, by the monotonic clock. */
  runtimeMs: number
  cpuMs: number | null
  peakMemoryBytes: number | null
}

/** The attempt could not be started, by its own doing (`preparation_failed`) or the node's (`sandbox_error`). */
export class RuntimeRefusal extends Error {
  override name = "RuntimeRefusal"
  readonly failureKind: FailureKind
  constructor(failureKind: FailureKind, message: string, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause })
    this.failureKind = failureKind
  }
}
