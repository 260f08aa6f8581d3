import type { Clock, Timer } from "../../protocol/base/clock.ts"
import type { Log, LogFacts } from "../../protocol/base/log.ts"
import type { Chance } from "./chance.ts"
import type { VirtualTime } from "./virtual-time.ts"

/** A computer with its own idea of the time. Programs on it start, crash and start again. */
export class Machine {
  readonly name: string
  /** Order among events of one moment. */
  readonly lane: number
  readonly time: VirtualTime
  readonly chance: Chance
  readonly tell: (line: string) => void
  /** Power and kernel: without them not even a refusal comes back. */
  isUp = true
  /** Stopped (SIGSTOP, a closed lid): nothing runs and nothing is read before. */
  frozenUntilMs = 0
  /** What its wall clock is off, and how fast its clocks run. */
  wallOffsetMs = 0
  readonly rate: number
  starts = 0
  /** When its last program was killed. */
  diedMs = Number.NEGATIVE_INFINITY

  constructor(parts: {
    name: string
    lane: number
    time: VirtualTime
    chance: Chance
    rate: number
    tell: (line: string) => void
  }) {
    this.name = parts.name
    this.lane = parts.lane
    this.time = parts.time
    this.chance = parts.chance
    this.rate = parts.rate
    this.tell = parts.tell
  }

  start(): Program {
    this.starts += 1
    return new Program(this, this.starts)
  }

  /** Each act of its disk takes this long. */
  diskMs = 0

  freeze(forMs: number): void {
    this.frozenUntilMs = Math.max(this.frozenUntilMs, this.time.nowMs + forMs)
  }
}

/** One start of a program, until it ends or is killed: then none of its timers fires and nobody hears it. */
export class Program {
  readonly machine: Machine
  readonly chance: Chance
  readonly clock: Clock
  readonly log: Log
  readonly startedMs: number
  isAlive = true
  /** Called once when it is killed or has ended. */
  readonly ended = new AbortController()

  constructor(machine: Machine, start: number) {
    this.machine = machine
    this.chance = machine.chance.of(`start ${start}`)
    const { time } = machine
    const startedMs = time.nowMs
    this.startedMs = startedMs
    this.clock = {
      now: () => Math.floor(EPOCH_MS + time.nowMs + machine.wallOffsetMs),
      monotonicMs: () => (time.nowMs - startedMs) * machine.rate,
      after: (delayMs, run) => this.#after(delayMs, run),
    }
    this.log = this.#logOf({})
  }

  end(): void {
    this.isAlive = false
    this.machine.diedMs = this.machine.time.nowMs
    this.ended.abort()
  }

  /** For the disk: resolves when it is through with one act, never once the program is gone. */
  readonly disk = (): Promise<void> | null => {
    const { diskMs } = this.machine
    return diskMs === 0 ? null : new Promise((resolve) => void this.clock.after(diskMs, resolve))
  }

  #after(delayMs: number, run: () => void): Timer {
    const { machine } = this
    const { time } = machine
    let timer = time.at(time.nowMs + delayMs / machine.rate, machine.lane, fire)
    const isAlive = (): boolean => this.isAlive
    function fire(): void {
      if (!isAlive()) return
      if (machine.frozenUntilMs > time.nowMs) timer = time.at(machine.frozenUntilMs, machine.lane, fire)
      else run()
    }
    return { cancel: () => timer.cancel() }
  }

  #logOf(more: LogFacts): Log {
    const tell =
      (level: string) =>
      (event: string, facts: LogFacts = {}): void => {
        if (this.isAlive) this.machine.tell(`${level} ${event} ${JSON.stringify({ ...more, ...facts })}`)
      }
    return {
      debug: () => {},
      info: tell("info"),
      warn: tell("warn"),
      error: tell("error"),
      child: (facts) => this.#logOf({ ...more, ...facts }),
    }
  }
}

/** What is thrown where a machine crashes in the middle of a call: nobody of that machine may go on. */
export class MachineCrashed extends Error {
  override name = "MachineCrashed"
}

/** When the simulated world begins: 2027-01-15. */
export const EPOCH_MS = 1_800_000_000_000
