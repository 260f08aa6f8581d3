import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs"
import { rm } from "node:fs/promises"
import { join, resolve } from "node:path"
import type { Clock, Timer } from "../../protocol/base/clock.ts"
import { sleep } from "../../protocol/base/clock.ts"
import { sha256Hex } from "../../protocol/base/digest.ts"
import { errorText } from "../../protocol/base/error-text.ts"
import type { Log } from "../../protocol/base/log.ts"
import { claimNumber, type ClaimNumber } from "../../protocol/domain/ids.ts"
import type { FailureKind } from "../../protocol/domain/statuses.ts"
import { lastBytes } from "../../protocol/domain/text.ts"
import {
  LARGEST_INLINE_BYTES,
  LARGEST_LAST_PROGRESS,
  type CheckpointItem,
  type GrantedTask,
  type ResultItem,
  type TaskSpec,
} from "../../protocol/wire/control.ts"
import type { Hasher } from "../cache/hasher.ts"
import type { HeldAttempt, HeldGrant, StoredEnd } from "../outbox/outbox.ts"
import { RuntimeRefusal, type AttemptExit, type RunningAttempt, type RuntimeDriver } from "../runtime/driver.ts"
import { tailOutput } from "../runtime/output-files.ts"
import type { AttemptEnd, AttemptRunner, AttemptWatch, RunningWork } from "./attempt-runner.ts"
import type { Checkpoints, FollowedCheckpoints } from "./checkpoints.ts"
import { ArtifactsTooLarge, collectArtifacts, collectResult, putAside, sealItem } from "./collect-results.ts"
import { collectUploads } from "./collect-uploads.ts"
import { taskEnvironment } from "./environment.ts"
import { payloadWithFiles, variablesOfInputs, type FetchInputs } from "./inputs.ts"
import { createOutput, type Output } from "./output.ts"
import { payloadWith, type Resume } from "./resume.ts"
import { RuntimeFailure, type HeldRuntime, type Runtimes } from "./runtimes.ts"
import {
  hostPaths,
  inputPlace,
  makeWorkspace,
  planWorkspace,
  publishableRoots,
  resumePlace,
  shownPaths,
  type Workspace,
} from "./workspace.ts"

export interface RunAttemptParts {
  driver: RuntimeDriver
  runtimes: Runtimes
  /** All attempt folders lie directly below it. */
  attemptsDir: string
  network: "none" | "outbound"
  /** Of the process runtime: what programs get of the machine's own environment. */
  machineEnv: Readonly<Record<string, string>>
  hasher: Hasher
  /** The payload of a task that was too large for the grant. */
  downloadPayload: (claim: ClaimNumber, signal: AbortSignal) => Promise<AsyncIterable<Uint8Array>>
  checkpoints: Checkpoints
  resume: Resume
  inputs: FetchInputs
  /** Too many results wait for an answer: attempts that end are not collected yet. Never throws. */
  outboxFull: () => boolean
  clock: Clock
  log: Log
}

/** Live output is sent on at most so often. */
const LIVE_INTERVAL_MS = 250
/** A grant that this node cannot serve goes back after so long, so that it and the coordinator do not spin. */
const RETURN_REST_MS = 1_000
/** An attempt held at collection looks for room so often. */
const LOOK_FOR_ROOM_MS = 500
/** Processes and threads of one attempt. */
const PIDS = 1_024
/** Until the claim loop says how long the claim lives. */
const FIRST_DEADLINE_MS = 600_000
/** A result and a checkpoint in one report: together they fit as a result alone does. */
const SHARED_INLINE_BYTES = LARGEST_INLINE_BYTES / 2
/**
 * The finished end of an attempt whose files were moved or copied to be collected: it is not collected again. What left none is,
 * where an agent is killed before it has stored the end.
 */
const END_FILE = "end.json"

/** The real attempt runner: prepares the runtime, runs the program under the driver, collects what it made. */
export function createAttemptRunner(parts: RunAttemptParts): AttemptRunner {
  const { driver, clock, log } = parts
  const releasing = new Map<string, Promise<void>>()
  const attemptDir = (claim: ClaimNumber): string => join(parts.attemptsDir, `c${claim}`)

  function start(grant: HeldGrant, watch: AttemptWatch): RunningWork {
    const work = new Work()
    const claim = claimNumber(grant.task.claim)
    const dir = attemptDir(claim)
    return work.running(
      run(grant, dir, work, watch).catch(async (error: unknown): Promise<AttemptEnd> => {
        return await failed(grant, error, work)
      }),
    )
  }

  async function run(grant: HeldGrant, dir: string, work: Work, watch: AttemptWatch): Promise<AttemptEnd> {
    const { spec, task } = grant
    using runtime = parts.runtimes.readyNow(spec.runtime) ?? (await parts.runtimes.ready(spec.runtime, work.signal))
    const given = await payloadOf(task, work.signal)
    mkdirSync(dir, { recursive: true })
    const resumed = task.resumes
      ? await parts.resume(claimNumber(task.claim), resumePlace(dir, runtime.files.kind === "image"), work.signal)
      : null
    const files = task.downloads
      ? await parts.inputs(claimNumber(task.claim), inputPlace(dir, runtime.files.kind === "image"), work.signal)
      : []
    const whole = files.length === 0 ? given : payloadWithFiles(textOf(given), files)
    const payload = resumed === null ? whole : payloadWith(whole, resumed)
    const inputs =
      files.length > 0 || task.shares ? variablesOfInputs(textOf(given), { shares: task.shares === true, files }) : {}
    const disk = await driver.prepare(dir, diskBytesOf(spec))
    const workspace = planWorkspace(dir, disk, runtime.files)
    await makeWorkspace(workspace, disk, runtime.files, payload)
    work.signal.throwIfAborted()
    const running = await launch(grant, dir, workspace, runtime, inputs, work)
    watch.started()
    return await finish(grant, dir, disk, running, workspace.shown, work, watch)
  }

  /** The program runs: whatever goes wrong from here, it must not be said that nothing ran. */
  async function finish(
    grant: HeldGrant,
    dir: string,
    disk: string,
    running: RunningAttempt,
    shown: Workspace["shown"],
    work: Work,
    watch: AttemptWatch,
  ): Promise<AttemptEnd> {
    using checkpoints = grant.spec.checkpoints ? followCheckpoints(grant, dir, disk) : null
    try {
      const output = await follow(running, shown, watch, checkpoints)
      const exit = await running.done
      watch.exited()
      await hold(grant, work.signal)
      return await collect(grant, dir, disk, exit, output, checkpoints)
    } catch (error) {
      log.error("attempt not collected", { claim: grant.task.claim, error: errorText(error) })
      const { runtimeMs } = await running.done
      return keep(
        dir,
        failure(grant, "sandbox_error", `its results could not be collected: ${errorText(error)}`, runtimeMs),
      )
    }
  }

  function followCheckpoints({ task, spec }: HeldGrant, dir: string, disk: string): FollowedCheckpoints {
    const roots = publishableRoots(dir, disk, spec.runtime.image !== null)
    return parts.checkpoints.follow({ claim: claimNumber(task.claim), dir, roots })
  }

  async function launch(
    { spec, task }: HeldGrant,
    dir: string,
    workspace: Workspace,
    { files }: HeldRuntime,
    inputs: Readonly<Record<string, string>>,
    work: Work,
  ): Promise<RunningAttempt> {
    const running = await driver.start({
      name: `c${task.claim}`,
      attemptDir: dir,
      ...(workspace.rootfs === null ? {} : { rootfs: workspace.rootfs }),
      command: spec.command,
      env: taskEnvironment({
        base: files.kind === "image" ? files.env : parts.machineEnv,
        project: spec.env,
        inputs,
        paths: workspace.inside,
        venvBin: workspace.venvBin,
        gpus: task.gpus,
      }),
      workdir: workspace.workdir,
      mounts: workspace.mounts,
      limits: {
        memoryBytes: Math.ceil(spec.memory_mb * 1024 ** 2),
        cpu: spec.cpu,
        pids: PIDS,
        diskBytes: diskBytesOf(spec),
        timeoutMs: Math.max(1, Math.ceil(Math.min(spec.timeout_ms, spec.budget_ms ?? spec.timeout_ms))),
        deadline: Math.round(work.deadline ?? clock.now() + FIRST_DEADLINE_MS),
      },
      network: parts.network,
    })
    work.attach(running)
    return running
  }

  async function payloadOf({ payload, claim }: GrantedTask, signal: AbortSignal): Promise<Uint8Array | string> {
    if ("text" in payload) return payload.text
    const chunks: Uint8Array[] = []
    let bytes = 0
    for await (const chunk of await parts.downloadPayload(claimNumber(claim), signal)) {
      bytes += chunk.length
      if (bytes > payload.size) break
      chunks.push(chunk)
    }
    const whole = Buffer.concat(chunks)
    if (whole.length !== payload.size || sha256Hex(whole) !== payload.digest) {
      throw new Error("the payload that came is not the one that was granted")
    }
    return whole
  }

  /** Reads the output to its end. */
  async function follow(
    running: RunningAttempt,
    shown: Workspace["shown"],
    watch: AttemptWatch,
    checkpoints: FollowedCheckpoints | null,
  ): Promise<Output> {
    let live: Timer | null = null
    let over = false
    const tell = (): void => {
      live = null
      if (!over) watch.progressed({ progress: null, outputTail: output.tail() })
    }
    const output = createOutput({
      paths: shown,
      onProgress(progress, at) {
        watch.progressed({ progress, outputTail: null })
        checkpoints?.take(progress, at)
      },
    })
    await tailOutput(running, (stream, bytes, skipped) => {
      output.take(stream, bytes, skipped)
      live ??= clock.after(LIVE_INTERVAL_MS, tell)
    })
    over = true
    output.end()
    return output
  }

  /**
   * Waits for room in the outbox (architecture §5.3): until then the attempt keeps its folder and its room on this node, and
   * nothing starts in its place. An attempt that is stopped waits no longer: it is unwanted, or its time is over.
   */
  async function hold({ task }: HeldGrant, signal: AbortSignal): Promise<void> {
    if (!parts.outboxFull()) return
    log.warn("the outbox is full: an attempt is not collected yet", { claim: task.claim })
    while (parts.outboxFull() && !signal.aborted) await sleep(clock, LOOK_FOR_ROOM_MS, signal).catch(() => {})
  }

  async function collect(
    { spec, task }: HeldGrant,
    dir: string,
    disk: string,
    exit: AttemptExit,
    output: Output,
    checkpoints: FollowedCheckpoints | null,
  ): Promise<AttemptEnd> {
    const host = hostPaths(dir, disk)
    const outcome = outcomeOf(exit, spec)
    const found = await collectResult(dir, host.result, parts.hasher)
    const files = [...found.files]
    const last = (await checkpoints?.end(found.checkpoint, output.printed())) ?? null
    if (last?.file) files.push(last.file)
    const progress = checkpoints ? output.lastProgress() : null
    let result = found.result
    if (last && result && "text" in result && result.text.length + weightOf(last.item) > SHARED_INLINE_BYTES) {
      const aside = await putAside(dir, result.text, parts.hasher)
      files.push(aside)
      result = { digest: aside.digest, size: aside.size }
    }
    let artifacts: ResultItem["artifacts"] = []
    let warnings: string[] = []
    if (outcome.kind === null) {
      try {
        const roots = publishableRoots(dir, disk, spec.runtime.image !== null)
        const declared = await collectUploads(dir, roots, task.uploads ?? [], {
          hasher: parts.hasher,
          mostBytes: diskBytesOf(spec),
        })
        const packed = await collectArtifacts(dir, host.artifacts, parts.hasher, declared.taken)
        artifacts = [...declared.artifacts, ...packed.artifacts]
        warnings = declared.warnings
        files.push(...declared.files, ...packed.files)
      } catch (error) {
        // A task that completed without its files would have lost work without a word.
        outcome.kind = error instanceof ArtifactsTooLarge ? "disk_full" : "sandbox_error"
        outcome.message = errorText(error)
      }
    }
    const item = sealItem({
      claim: task.claim,
      failure_kind: outcome.kind,
      exit_code: exit.exitCode,
      signal: exit.signal,
      message: outcome.message?.slice(0, 2000) ?? null,
      runtime_ms: exit.runtimeMs,
      cpu_ms: exit.cpuMs,
      peak_memory_bytes: exit.peakMemoryBytes,
      output: output.tail(),
      error_tail: output.errorTail(),
      result,
      result_problem: found.resultProblem,
      artifacts,
      ...(progress !== null && progress.length <= LARGEST_LAST_PROGRESS && { progress }),
      ...(last && { checkpoint: last.item }),
      ...(warnings.length > 0 && { warnings }),
    })
    const isCollectedOnce = files.length > 0 || checkpoints !== null || found.resultProblem !== null
    if (isCollectedOnce) return keep(dir, { item, files })
    return { kind: "result", end: { item, files }, stored: () => void release(dir) }
  }

  /** From here a restarted agent finds the end whatever happens, and the sandbox can go. */
  function keep(dir: string, end: StoredEnd): AttemptEnd {
    writeFileSync(join(dir, END_FILE), JSON.stringify(end))
    void release(dir)
    return { kind: "result", end }
  }

  /** Nothing of the user's ran. */
  async function failed(grant: HeldGrant, error: unknown, work: Work): Promise<AttemptEnd> {
    const refused = refusalOf(error)
    if (refused === null) {
      if (!work.signal.aborted) await sleep(clock, RETURN_REST_MS, work.signal).catch(() => {})
      return { kind: "returned", reason: errorText(error) }
    }
    return { kind: "result", end: failure(grant, refused.kind, refused.message, 0, refused.logTail) }
  }

  function release(dir: string): Promise<void> {
    const known = releasing.get(dir)
    if (known !== undefined) return known
    const released = driver.release(dir).catch((error: unknown) => {
      log.error("attempt not released", { dir, error: errorText(error) })
    })
    releasing.set(dir, released)
    return released
  }

  return {
    attemptDir,
    start,
    async adopt(held, watch) {
      const dir = held.attemptDir ?? attemptDir(held.claim)
      const kept = readEnd(dir)
      const work = new Work()
      if (kept !== null) {
        void release(dir)
        return work.running(Promise.resolve({ kind: "result", end: kept }))
      }
      const running = await driver.adopt(dir).catch(() => null)
      if (running === null) return null
      // Its layers stay while it runs; a runtime that is gone all the same is no reason to end it.
      const runtime = parts.runtimes.readyNow(held.spec.runtime)
      work.attach(running)
      watch.started()
      return work.running(finishAdopted(held, dir, running, runtime, work, watch))
    },
    async discard(claim) {
      const dir = attemptDir(claim)
      await release(dir)
      releasing.delete(dir)
      await driver.remove(dir)
    },
    async sweep(keep) {
      mkdirSync(parts.attemptsDir, { recursive: true, mode: 0o700 })
      const kept = new Set(keep.map((claim) => resolve(attemptDir(claim))))
      await driver.sweep(kept)
      for (const name of readdirSync(parts.attemptsDir)) {
        const dir = resolve(parts.attemptsDir, name)
        if (!kept.has(dir)) await rm(dir, { recursive: true, force: true })
      }
    },
  }

  async function finishAdopted(
    held: HeldAttempt,
    dir: string,
    running: RunningAttempt,
    runtime: HeldRuntime | null,
    work: Work,
    watch: AttemptWatch,
  ): Promise<AttemptEnd> {
    using _runtime = runtime
    const { workdir, remote_dir, image } = held.spec.runtime
    const disk = join(dir, "disk")
    const shown = shownPaths(dir, disk, runtime?.files.workdir ?? workdir ?? image?.config.workdir ?? remote_dir)
    return await finish(held, dir, disk, running, shown, work, watch)
  }
}

const textOf = (payload: Uint8Array | string): string =>
  typeof payload === "string" ? payload : Buffer.from(payload).toString("utf8")

const weightOf = ({ state, line }: CheckpointItem): number => state.length + line.length

/** Requirements may be fractions; disks are whole bytes. */
const diskBytesOf = (spec: TaskSpec): number => Math.ceil(spec.storage_gb * 1024 ** 3)

/** The half of an attempt that the claim loop steers: it may be stopped or extended before its program runs. */
class Work {
  deadline: number | null = null
  readonly #abort = new AbortController()
  #running: RunningAttempt | null = null

  get signal(): AbortSignal {
    return this.#abort.signal
  }

  attach(running: RunningAttempt): void {
    this.#running = running
    const reason: unknown = this.#abort.signal.reason
    if (this.#abort.signal.aborted) void running.stop(reason instanceof Stopped ? reason.why : "cancelled")
  }

  running(done: Promise<AttemptEnd>): RunningWork {
    return {
      done,
      stop: (why) => {
        if (this.#abort.signal.aborted) return
        this.#abort.abort(new Stopped(why))
        void this.#running?.stop(why)
      },
      extend: (deadline) => {
        this.deadline = deadline
        this.#running?.extend(Math.round(deadline)).catch(() => {})
      },
    }
  }
}

class Stopped extends Error {
  readonly why: "cancelled" | "deadline"
  constructor(why: "cancelled" | "deadline") {
    super(why === "cancelled" ? "the attempt was cancelled before it ran" : "the claim ended before the attempt ran")
    this.why = why
  }
}

/** Null: the node's own doing, or nobody's. */
function refusalOf(error: unknown): { kind: FailureKind; message: string; logTail: string } | null {
  if (error instanceof RuntimeRefusal) return { kind: error.failureKind, message: error.message, logTail: "" }
  if (error instanceof RuntimeFailure && error.kind === "project") {
    return { kind: "setup_failed", message: error.message, logTail: error.logTail }
  }
  return null
}

/** A timeout at what the hold buys is no timeout of the task's (rulings, Holds). */
function outcomeOf(exit: AttemptExit, spec: TaskSpec): { kind: FailureKind | null; message: string | null } {
  if (exit.failureKind !== "timeout" || spec.budget_ms === undefined || spec.budget_ms >= spec.timeout_ms) {
    return { kind: exit.failureKind, message: exit.message }
  }
  return {
    kind: "budget_spent",
    message: `the job's hold bought no more than ${spec.budget_ms / 1000} s of this attempt`,
  }
}

function failure(grant: HeldGrant, kind: FailureKind, message: string, runtimeMs: number, logTail = ""): StoredEnd {
  const item = sealItem({
    claim: grant.task.claim,
    failure_kind: kind,
    exit_code: null,
    signal: null,
    message: message.slice(0, 2000),
    runtime_ms: runtimeMs,
    cpu_ms: null,
    peak_memory_bytes: null,
    output: "",
    error_tail: lastBytes(logTail, 4096),
    result: null,
    result_problem: null,
    artifacts: [],
  })
  return { item, files: [] }
}

function readEnd(dir: string): StoredEnd | null {
  try {
    return JSON.parse(readFileSync(join(dir, END_FILE), "utf8")) as StoredEnd
  } catch {
    return null
  }
}
