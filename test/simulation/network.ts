import type { Chance } from "./chance.ts"
import type { Machine, Program } from "./machine.ts"
import type { VirtualTime } from "./virtual-time.ts"

/** How the network behaves while nothing worse is done to it. */
export interface Weather {
  /** One way, between any two machines. */
  leastDelayMs: number
  mostDelayMs: number
  gossipLoss: number
  gossipTwice: number
}

/** Carries things between machines: late, never early; not at all where the way is cut. */
export class Network {
  readonly time: VirtualTime
  readonly chance: Chance
  readonly weather: Weather
  /** How many faults cut each way: it is open again when the last of them is over. */
  readonly #cuts = new Map<string, number>()
  #waiting: (() => void)[] = []

  constructor(time: VirtualTime, chance: Chance, weather: Weather) {
    this.time = time
    this.chance = chance
    this.weather = weather
  }

  cut(from: Machine, to: Machine): void {
    const way = `${from.lane}>${to.lane}`
    this.#cuts.set(way, (this.#cuts.get(way) ?? 0) + 1)
  }

  mend(from: Machine, to: Machine): void {
    const way = `${from.lane}>${to.lane}`
    const left = (this.#cuts.get(way) ?? 0) - 1
    if (left > 0) this.#cuts.set(way, left)
    else if (this.#cuts.delete(way)) this.changed()
  }

  mendAll(): void {
    this.#cuts.clear()
    this.changed()
  }

  isCut(from: Machine, to: Machine): boolean {
    return this.#cuts.size > 0 && this.#cuts.has(`${from.lane}>${to.lane}`)
  }

  /** Calls `again` when a way was mended or a machine got its power back. */
  whenChanged(again: () => void): void {
    this.#waiting.push(again)
  }

  changed(): void {
    for (const again of this.#waiting.splice(0)) again()
  }

  delayMs(): number {
    return this.chance.between(this.weather.leastDelayMs, this.weather.mostDelayMs)
  }

  /** One packet: arrives later, or never. Others may pass it on around a cut. */
  packet(from: Machine, to: Machine, arrive: () => void, { relayed = false } = {}): void {
    const leavesMs = Math.max(this.time.nowMs, from.frozenUntilMs)
    const land = (): void => {
      if ((this.isCut(from, to) && !relayed) || !to.isUp) return
      if (to.frozenUntilMs > this.time.nowMs) this.time.at(to.frozenUntilMs, to.lane, land)
      else arrive()
    }
    this.time.at(leavesMs + this.delayMs(), to.lane, land)
  }
}

/**
 * One direction of a connection: what is put in arrives in order, each thing once, until the connection breaks. A cut holds it
 * up, as TCP does by sending again.
 */
export class Pipe {
  readonly #network: Network
  readonly #from: Program
  readonly #to: Program
  /** The other side's program is gone: its machine says so when it can. */
  readonly #refused: () => void
  #queue: (() => void)[] = []
  #moving = false
  #lastMs = 0
  #broken = false

  constructor(network: Network, from: Program, to: Program, refused: () => void) {
    this.#network = network
    this.#from = from
    this.#to = to
    this.#refused = refused
  }

  put(arrive: () => void): void {
    // Of a program that was killed nothing more comes.
    if (this.#broken || !this.#from.isAlive) return
    this.#queue.push(arrive)
    this.#move()
  }

  /** What is under way is lost. */
  break(): void {
    this.#broken = true
    this.#queue = []
  }

  #move(): void {
    if (this.#moving || this.#broken || this.#queue.length === 0) return
    this.#moving = true
    const { time } = this.#network
    const leavesMs = Math.max(time.nowMs, this.#from.machine.frozenUntilMs)
    this.#lastMs = Math.max(this.#lastMs, leavesMs + this.#network.delayMs())
    time.at(this.#lastMs, this.#to.machine.lane, () => this.#arrive())
  }

  /** Everything that has left by then arrives together, as bytes of one window do. */
  #arrive(): void {
    const { time } = this.#network
    const [from, to] = [this.#from.machine, this.#to.machine]
    if (this.#broken) return
    if (to.frozenUntilMs > time.nowMs) return void time.at(to.frozenUntilMs, to.lane, () => this.#arrive())
    if (this.#network.isCut(from, to) || !to.isUp) {
      return this.#network.whenChanged(() => {
        time.at(time.nowMs + this.#network.delayMs(), to.lane, () => this.#arrive())
      })
    }
    this.#moving = false
    if (!this.#to.isAlive) {
      this.break()
      return this.#refused()
    }
    for (const arrive of this.#queue.splice(0)) {
      if (this.#broken) return
      arrive()
    }
    this.#move()
  }
}
