import { writeFileSync } from "node:fs"
import { join } from "node:path"
import { sleep } from "../../protocol/base/clock.ts"
import { sha256Hex } from "../../protocol/base/digest.ts"
import type { FailureKind } from "../../protocol/domain/statuses.ts"
import type { ResultItem, RuntimeSpec, ToCoordinator } from "../../protocol/wire/control.ts"
import type { HeldGrant, StoredEnd } from "../../node-agent/outbox/outbox.ts"
import type { DriverProbe, RuntimeDriver } from "../../node-agent/runtime/driver.ts"
import type { ChosenDriver } from "../../node-agent/runtime/choose-driver.ts"
import type { AttemptEnd, AttemptRunner, AttemptWatch, RunningWork } from "../../node-agent/tasks/attempt-runner.ts"
import { RuntimeFailure, type HeldRuntime, type Runtimes, type RuntimesParts } from "../../node-agent/tasks/runtimes.ts"
import type { Program } from "./machine.ts"

/** What a task's payload says of how it will go. Everything follows from it and the attempt's number. */
export interface Script {
  /** Of the first attempt; others take a little longer or shorter. */
  runMs: number
  /** So many attempts fail before one succeeds, this way. */
  failures: number
  failureKind: FailureKind | null
  /** Bytes of filler in the result; above 64 KiB it travels as a blob. */
  fillBytes: number
  progress: boolean
}

/** What the task of this payload gives, whichever attempt of it succeeds. */
export function resultFor(payload: string, script: Script): string {
  const fill = script.fillBytes > 0 ? { fill: "x".repeat(script.fillBytes) } : {}
  return JSON.stringify({ value: Number.parseInt(sha256Hex(payload).slice(0, 8), 16), of: sha256Hex(payload), ...fill })
}

export function scriptOf(payload: string): Script {
  return (JSON.parse(payload) as { script: Script }).script
}

/** A task's program on a machine: it runs on when its agent dies, and ends with the machine. Times are the world's. */
interface Process {
  grant: HeldGrant
  startedMs: number
  endsMs: number
  /** How it ends if it is left alone. */
  failure: FailureKind | null
}

export interface RuntimeEvents {
  /** The program of this claim starts on this machine. */
  started(claim: number, grant: HeldGrant, program: Program): void
  ended(claim: number, program: Program): void
}

/** The programs that run on one machine, beside its agent. */
export class Processes {
  readonly running = new Map<number, Process>()
  readonly ends = new Map<number, StoredEnd>()
  /** At which the supervisor ends them, by claim. */
  readonly deadlines = new Map<number, number>()

  /** The machine lost its power, or its disk was changed. */
  clear(): void {
    this.running.clear()
    this.ends.clear()
    this.deadlines.clear()
  }
}

/** The `runner` of a simulated agent: programs are entries with a time at which they end. */
export function scriptedRunner(parts: {
  program: Program
  directory: string
  processes: Processes
  runtimes: () => Pick<Runtimes, "ready"> | null
  events: RuntimeEvents
}): AttemptRunner {
  const { program, processes, events } = parts
  const { clock, chance } = program
  const { time } = program.machine

  function follow(process: Process, watch: AttemptWatch): RunningWork {
    const claim = process.grant.task.claim
    const { promise, resolve } = Promise.withResolvers<AttemptEnd>()
    const finish = (): void => {
      if (time.nowMs < process.endsMs) return void clock.after(process.endsMs - time.nowMs, finish)
      if (!processes.running.delete(claim)) return
      watch.exited()
      events.ended(claim, program)
      const end = endOf(process, parts.directory)
      processes.ends.set(claim, end)
      resolve({ kind: "result", end })
    }
    const endBy = (failure: FailureKind, atMs: number): void => {
      if (atMs >= process.endsMs) return
      process.endsMs = atMs
      process.failure = failure
      clock.after(Math.max(0, atMs - time.nowMs), finish)
    }
    const { payload } = process.grant.task
    if ("text" in payload && scriptOf(payload.text).progress) {
      clock.after(Math.max(0, (process.startedMs + process.endsMs) / 2 - time.nowMs), () => {
        if (processes.running.has(claim)) watch.progressed({ progress: '{"half":true}', outputTail: "half\n" })
      })
    }
    clock.after(Math.max(0, process.endsMs - time.nowMs), finish)
    return {
      done: promise,
      stop: (reason) => endBy(reason === "deadline" ? "node_lost" : "cancelled", time.nowMs + STOPS_WITHIN_MS),
      // The supervisor keeps it without an agent: it is part of what the process will do.
      extend(deadline) {
        processes.deadlines.set(claim, time.nowMs + deadline - clock.now())
      },
    }
  }

  return {
    attemptDir: (claim) => join(parts.directory, "attempts", `c${claim}`),
    start(grant, watch) {
      const { task, spec } = grant
      const script = "text" in task.payload ? scriptOf(task.payload.text) : null
      const stopped = new AbortController()
      let work: RunningWork | null = null
      const started = async (): Promise<AttemptEnd> => {
        try {
          await parts.runtimes()?.ready(spec.runtime, stopped.signal)
        } catch {
          await sleep(clock, RETURN_REST_MS)
          return { kind: "returned", reason: "it was not prepared" }
        }
        if (stopped.signal.aborted) return { kind: "returned", reason: "it was stopped before it began" }
        const limitMs = Math.min(spec.timeout_ms, spec.budget_ms ?? spec.timeout_ms)
        const runMs = (script?.runMs ?? 100) * chance.between(0.8, 1.2)
        const planned = script !== null && task.attempt <= script.failures ? script.failureKind : null
        const limit: FailureKind = limitMs < spec.timeout_ms ? "budget_spent" : "timeout"
        const process: Process = {
          grant,
          startedMs: time.nowMs,
          endsMs: time.nowMs + Math.min(runMs, limitMs),
          failure: runMs >= limitMs ? limit : planned,
        }
        processes.running.set(task.claim, process)
        events.started(task.claim, grant, program)
        watch.started()
        work = follow(process, watch)
        return await work.done
      }
      return {
        done: started(),
        stop(reason) {
          stopped.abort(new Error(reason))
          work?.stop(reason)
        },
        extend: (deadline) => work?.extend(deadline),
      }
    },
    async adopt(held, watch) {
      const end = processes.ends.get(held.claim)
      if (end) return { done: Promise.resolve({ kind: "result", end }), stop() {}, extend() {} }
      const process = processes.running.get(held.claim)
      if (!process) return null
      const deadline = processes.deadlines.get(held.claim) ?? Number.POSITIVE_INFINITY
      if (deadline < time.nowMs && deadline < process.endsMs) {
        process.endsMs = deadline
        process.failure = "node_lost"
      }
      watch.started()
      return follow(process, watch)
    },
    async discard(claim) {
      processes.running.delete(claim)
      processes.ends.delete(claim)
    },
    async sweep(keep) {
      const kept = new Set<number>(keep)
      for (const claim of [...processes.running.keys(), ...processes.ends.keys()]) {
        if (!kept.has(claim)) {
          processes.running.delete(claim)
          processes.ends.delete(claim)
        }
      }
    },
  }
}

function endOf({ grant: { task }, startedMs, endsMs, failure }: Process, directory: string): StoredEnd {
  const payload = "text" in task.payload ? task.payload.text : "{}"
  const script = "text" in task.payload ? scriptOf(payload) : null
  const files: StoredEnd["files"] = []
  let result: ResultItem["result"] = null
  if (failure === null && script !== null) {
    const text = resultFor(payload, script)
    if (text.length <= 64 * 1024) result = { text }
    else {
      const digest = sha256Hex(text)
      const path = join(directory, `result-${task.claim}`)
      writeFileSync(path, text)
      files.push({ digest, size: text.length, path })
      result = { digest, size: text.length }
    }
  }
  const item: Omit<ResultItem, "digest"> = {
    claim: task.claim,
    failure_kind: failure,
    exit_code: failure === null ? 0 : failure === "exit_code" ? 3 : null,
    signal: failure === "signal" ? "SIGSEGV" : null,
    message: failure === null ? null : `it ended by ${failure}`,
    runtime_ms: Math.max(0, endsMs - startedMs),
    cpu_ms: null,
    peak_memory_bytes: null,
    output: `attempt ${task.attempt}\n`,
    error_tail: "",
    result,
    result_problem: null,
    artifacts: [],
  }
  return { item: { ...item, digest: sha256Hex(JSON.stringify(item)) }, files }
}

/** Revisions become ready after a while, without being fetched: content has simulations of its own (test/mesh). */
export function scriptedRuntimes(
  program: Program,
  disk: Set<string>,
): { create: (parts: RuntimesParts) => Runtimes; current: () => Runtimes | null } {
  let current: Runtimes | null = null
  const prepareMs = program.chance.between(5, 1500)
  const create = (parts: RuntimesParts): Runtimes => {
    const making = new Map<string, Promise<void>>()
    const failed = new Set<string>()
    const say = (revision: string): void => {
      const state = disk.has(revision) ? "ready" : failed.has(revision) ? "failed" : "initializing"
      const message: ToCoordinator = { type: "replica", revision, state, message: null, log_tail: null }
      parts.send(message)
    }
    const make = (spec: RuntimeSpec): Promise<void> => {
      const known = making.get(spec.revision)
      if (known) return known
      const { promise, resolve, reject } = Promise.withResolvers<void>()
      promise.catch(() => {})
      making.set(spec.revision, promise)
      if (disk.has(spec.revision)) resolve()
      else {
        say(spec.revision)
        program.clock.after(prepareMs, () => {
          if (spec.remote_dir === NEVER_PREPARED) {
            failed.add(spec.revision)
            say(spec.revision)
            return reject(new RuntimeFailure("validation", "it is never ready"))
          }
          disk.add(spec.revision)
          say(spec.revision)
          parts.changed()
          resolve()
        })
      }
      return promise
    }
    const held: HeldRuntime = {
      files: { kind: "tree", directory: "/", entries: null, venv: false, workdir: null } as never,
      [Symbol.dispose]() {},
    }
    current = {
      async ready(spec) {
        await make(spec)
        return held
      },
      readyNow: (spec) => (disk.has(spec.revision) ? held : null),
      prepare: (spec) => void make(spec),
      warm: () => [...disk],
      knows: (revision) => disk.has(revision) || making.has(revision),
      announce() {
        for (const revision of [...disk, ...failed]) say(revision)
      },
      async restore() {},
      async [Symbol.asyncDispose]() {},
    }
    return current
  }
  return { create, current: () => current }
}

/** A driver that is there to be named; nothing is started through it. */
export function namedDriver(): ChosenDriver {
  const probe: DriverProbe = {
    available: true,
    problems: [],
    isolation: "none",
    enforces: ["time"],
    network: "none",
    version: "0",
  }
  const unused = (): never => {
    throw new Error("the scripted runner starts nothing through the driver")
  }
  const driver: RuntimeDriver = {
    name: "process",
    probe: async () => probe,
    prepare: unused,
    start: unused,
    adopt: unused,
    release: unused,
    remove: unused,
    sweep: unused,
    async [Symbol.asyncDispose]() {},
  }
  return { driver, probe, problems: [] }
}

/** A project that fails its checks on every node, by this mark. */
const NEVER_PREPARED = "/root/unprepared"
/** As the real runner: what cannot be had here is not given back at once. */
const RETURN_REST_MS = 1_000
/** What a program takes to die. */
const STOPS_WITHIN_MS = 5
