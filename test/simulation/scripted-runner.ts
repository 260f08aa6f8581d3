import { existsSync, mkdirSync, readFileSync, rmSync, utimesSync, writeFileSync } from "node:fs"
import { basename, join } from "node:path"
import { sleep } from "../../protocol/base/clock.ts"
import { sha256Hex } from "../../protocol/base/digest.ts"
import { claimNumber } from "../../protocol/domain/ids.ts"
import type { FailureKind } from "../../protocol/domain/statuses.ts"
import type { ResultItem } from "../../protocol/wire/control.ts"
import type { HeldGrant, StoredCheckpoint, StoredEnd } from "../../node-agent/outbox/outbox.ts"
import type { AttemptEnd, AttemptRunner, AttemptWatch, RunningWork } from "../../node-agent/tasks/attempt-runner.ts"
import type { RunAttemptParts } from "../../node-agent/tasks/run-attempt.ts"
import { EPOCH_MS, type Program } from "./machine.ts"

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
  /** It leaves a checkpoint after each of so many equal steps, and goes on from one that it finds. */
  steps?: number
  /** With each checkpoint a file of so many bytes. */
  fileBytes?: number
  /** What it leaves as its artifacts when it succeeds. */
  artifactBytes?: number
  /** It asks for so many GPUs. */
  gpus?: number
}

/** What the task of this payload leaves as its artifacts, whichever attempt of it succeeds. */
export function artifactOf(payload: string, bytes: number): string {
  return `made of ${sha256Hex(payload)} `.padEnd(bytes, ".")
}

/** The file of a checkpoint: nobody else's is like it. */
function checkpointFile(claim: number, step: number, bytes: number): string {
  return `step ${step} of claim ${claim} `.padEnd(bytes, "#")
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
  /** The step that it went on from, and what each one takes; null: it has none. */
  steps: { from: number; of: number; eachMs: number } | null
}

export interface RuntimeEvents {
  /** The program of this claim starts on this machine. */
  started(claim: number, grant: HeldGrant, program: Program): void
  /** What it found of an earlier attempt, as its own JSON text; null: nothing. */
  resumed(claim: number, grant: HeldGrant, text: string | null): void
  /** It prints that a step is done, in the line of this checkpoint. */
  stepped(claim: number, step: number, n: number): void
  /** It could not read a checkpoint that it was given. */
  unreadable(claim: number): void
  /** Something that must never be. */
  wrong(problem: string): void
  ended(claim: number, program: Program): void
  /** It was lost with its machine. */
  died(claim: number): void
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
  /** Of the machine. */
  lends: { cpu: number; gpus: readonly string[] }
  agent: Pick<RunAttemptParts, "runtimes" | "checkpoints" | "resume">
  events: RuntimeEvents
}): AttemptRunner {
  const { program, processes, agent, events } = parts
  const { clock, chance } = program
  const { time } = program.machine
  const attemptDir = (claim: number): string => join(parts.directory, "attempts", `c${claim}`)
  const wait = (untilMs: number, act: () => void): void => void clock.after(Math.max(0, untilMs - time.nowMs), act)

  function follow(process: Process, watch: AttemptWatch): RunningWork {
    const { task, spec } = process.grant
    const claim = claimNumber(task.claim)
    const { promise, resolve } = Promise.withResolvers<AttemptEnd>()
    const script = "text" in task.payload ? scriptOf(task.payload.text) : null
    const dir = attemptDir(claim)
    const roots = [{ inside: "/artifacts", host: join(dir, "out") }]
    const checkpoints = spec.checkpoints ? agent.checkpoints.follow({ claim, dir, roots }) : null
    let collecting = false
    const finish = (): void => {
      if (time.nowMs < process.endsMs) return wait(process.endsMs, finish)
      if (collecting || processes.running.get(claim) !== process) return
      collecting = true
      watch.exited()
      events.ended(claim, program)
      collect().catch((error: unknown) => {
        if (program.isAlive) throw error
      })
    }
    const collect = async (): Promise<void> => {
      const done = doneSteps(process, process.endsMs)
      const last = (await checkpoints?.end(null, done * LINE_BYTES)) ?? null
      // Who was killed or told to drop it meanwhile collects nothing.
      if (!program.isAlive || processes.running.get(claim) !== process) return
      processes.running.delete(claim)
      const end = endOf(process, dir, last)
      processes.ends.set(claim, end)
      resolve({ kind: "result", end })
    }
    const endBy = (failure: FailureKind, atMs: number): void => {
      if (atMs >= process.endsMs) return
      process.endsMs = atMs
      process.failure = failure
      wait(atMs, finish)
    }
    /** Its output is read from the beginning: a new agent sees lines that an earlier one saw. */
    const tellSteps = (read: number): void => {
      const { steps } = process
      if (steps === null || processes.running.get(claim) !== process) return
      const done = doneSteps(process, Math.min(time.nowMs, process.endsMs))
      for (let line = read; line < done; line++) {
        const step = steps.from + line + 1
        const text = lineOf(process, step)
        if (script?.fileBytes) writeCheckpoint(roots[0]?.host ?? dir, claim, step, script.fileBytes)
        events.stepped(claim, step, line * LINE_BYTES + 1)
        watch.progressed({ progress: text, outputTail: `step ${step}\n` })
        checkpoints?.take(text, line * LINE_BYTES)
      }
      const nextMs = process.startedMs + (done + 1) * steps.eachMs
      if (nextMs < process.endsMs) wait(nextMs + 1, () => tellSteps(done))
    }
    if (script?.progress && process.steps === null) {
      wait((process.startedMs + process.endsMs) / 2, () => {
        if (processes.running.has(claim)) watch.progressed({ progress: '{"half":true}', outputTail: "half\n" })
      })
    }
    tellSteps(0)
    wait(process.endsMs, finish)
    return {
      done: promise,
      stop: (reason) => endBy(reason === "deadline" ? "node_lost" : "cancelled", time.nowMs + STOPS_WITHIN_MS),
      // The supervisor keeps it without an agent: it is part of what the process will do.
      extend(deadline) {
        processes.deadlines.set(claim, time.nowMs + deadline - clock.now())
      },
    }
  }

  /** The step to go on from. */
  async function resumedStep(grant: HeldGrant, signal: AbortSignal): Promise<number> {
    const { task } = grant
    const place = { host: attemptDir(task.claim), inside: "/checkpoint" }
    const resumed = task.resumes ? await agent.resume(claimNumber(task.claim), place, signal) : null
    events.resumed(task.claim, grant, resumed?.text ?? null)
    const found = resumed === null ? null : (JSON.parse(resumed.text) as { checkpoint?: FoundCheckpoint })
    if (!found?.checkpoint) return 0
    const { step, by, path } = found.checkpoint
    const { fileBytes } = "text" in task.payload ? scriptOf(task.payload.text) : {}
    if (fileBytes) {
      const file = join(place.host, basename(path ?? "none"))
      const isIts = existsSync(file) && readFileSync(file, "utf8") === checkpointFile(by, step, fileBytes)
      if (!isIts) events.wrong(`6: claim ${task.claim} is given step ${step} of claim ${by} without its file (${path})`)
    }
    return step
  }

  /** No machine runs more than it lends. */
  function lookForRoom({ task, spec }: HeldGrant): void {
    const others = [...processes.running.values()].map(({ grant }) => grant)
    const cpu = others.reduce((sum, other) => sum + other.spec.cpu, spec.cpu)
    if (cpu > parts.lends.cpu + 1e-6) events.wrong(`5: ${cpu} cores are in use of ${parts.lends.cpu}`)
    const wanted = "text" in task.payload ? (scriptOf(task.payload.text).gpus ?? 0) : task.gpus.length
    const isLent = task.gpus.every((uuid) => parts.lends.gpus.includes(uuid))
    if (task.gpus.length !== wanted || !isLent)
      events.wrong(`5: claim ${task.claim} wants ${wanted} GPUs and is given ${task.gpus.join(", ")}`)
    for (const other of others) {
      const both = other.task.gpus.filter((uuid) => task.gpus.includes(uuid))
      if (both.length > 0) events.wrong(`5: claims ${other.task.claim} and ${task.claim} both have ${both.join(", ")}`)
    }
  }

  function processOf(grant: HeldGrant, from: number): Process {
    const { task, spec } = grant
    const script = "text" in task.payload ? scriptOf(task.payload.text) : null
    const limitMs = Math.min(spec.timeout_ms, spec.budget_ms ?? spec.timeout_ms)
    const wholeMs = (script?.runMs ?? 100) * chance.between(0.8, 1.2)
    const of = script?.steps ?? 0
    const steps = of > 0 ? { from, of, eachMs: wholeMs / of } : null
    const runMs = steps ? (of - from) * steps.eachMs : wholeMs
    const planned = script !== null && task.attempt <= script.failures ? script.failureKind : null
    const limit: FailureKind = limitMs < spec.timeout_ms ? "budget_spent" : "timeout"
    return {
      grant,
      startedMs: time.nowMs,
      endsMs: time.nowMs + Math.min(runMs, limitMs),
      failure: runMs >= limitMs ? limit : planned,
      steps,
    }
  }

  return {
    attemptDir,
    start(grant, watch) {
      const { task, spec } = grant
      const stopped = new AbortController()
      let work: RunningWork | null = null
      const started = async (): Promise<AttemptEnd> => {
        let from = 0
        try {
          await agent.runtimes.ready(spec.runtime, stopped.signal)
          if (spec.checkpoints) from = await resumedStep(grant, stopped.signal)
        } catch {
          await sleep(clock, RETURN_REST_MS)
          return { kind: "returned", reason: "it was not prepared" }
        }
        if (stopped.signal.aborted) return { kind: "returned", reason: "it was stopped before it began" }
        lookForRoom(grant)
        const process = processOf(grant, from)
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
      if (!program.isAlive) return
      processes.running.delete(claim)
      processes.ends.delete(claim)
      rmSync(attemptDir(claim), { recursive: true, force: true })
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

/** Steps of this attempt that were printed by then: the last one is the end, and prints nothing. */
function doneSteps({ steps, startedMs }: Process, byMs: number): number {
  if (steps === null) return 0
  return Math.max(0, Math.min(steps.of - steps.from - 1, Math.floor((byMs - startedMs) / steps.eachMs)))
}

function lineOf({ grant: { task } }: Process, step: number): string {
  const hasFile = "text" in task.payload && scriptOf(task.payload.text).fileBytes !== undefined
  const by = task.claim
  return JSON.stringify({ step, by, checkpoint: { step, by, ...(hasFile && { path: `step-${step}` }) } })
}

interface FoundCheckpoint {
  step: number
  by: number
  path?: string
}

/** Once: whoever reads the output again finds the file as it was. Files are as old as the world, which begins after today. */
function writeCheckpoint(directory: string, claim: number, step: number, bytes: number): void {
  const path = join(directory, `step-${step}`)
  if (existsSync(path)) return
  mkdirSync(directory, { recursive: true })
  writeFileSync(path, checkpointFile(claim, step, bytes))
  utimesSync(path, EPOCH_MS / 1000 - 86_400, EPOCH_MS / 1000 - 86_400)
}

function endOf(process: Process, directory: string, last: StoredCheckpoint | null): StoredEnd {
  const { startedMs, endsMs, failure, steps } = process
  const { task, spec } = process.grant
  const payload = "text" in task.payload ? task.payload.text : "{}"
  const script = "text" in task.payload ? scriptOf(payload) : null
  const files: StoredEnd["files"] = []
  const artifacts: ResultItem["artifacts"] = []
  let result: ResultItem["result"] = null
  const leave = (name: string, text: string): { digest: string; size: number } => {
    mkdirSync(directory, { recursive: true })
    const path = join(directory, name)
    writeFileSync(path, text)
    const file = { digest: sha256Hex(text), size: text.length }
    files.push({ ...file, path })
    return file
  }
  if (last?.file) files.push(last.file)
  if (failure === null && script !== null) {
    const text = resultFor(payload, script)
    result = text.length <= 64 * 1024 ? { text } : leave("result.json", text)
    if (script.artifactBytes) {
      const filename = "artifacts.tar.gz"
      const file = leave(filename, artifactOf(payload, script.artifactBytes))
      artifacts.push({ name: null, filename, ...file, content_type: "application/gzip" })
    }
  }
  const done = doneSteps(process, endsMs)
  const progress = spec.checkpoints && steps && done > 0 ? lineOf(process, steps.from + done) : null
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
    artifacts,
    ...(progress !== null && { progress }),
    ...(last && { checkpoint: last.item }),
  }
  return { item: { ...item, digest: sha256Hex(JSON.stringify(item)) }, files }
}

/** Of each line that tells of a step: its place in the output is its checkpoint's number. */
const LINE_BYTES = 64
/** As the real runner: what cannot be had here is not given back at once. */
const RETURN_REST_MS = 1_000
/** What a program takes to die. */
const STOPS_WITHIN_MS = 5
