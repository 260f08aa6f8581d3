import { createHash } from "node:crypto"
import type { Random } from "../../protocol/base/random.ts"

/** Chance out of a seed: the same name under the same seed gives the same numbers. */
export class Chance implements Random {
  readonly #seed: string
  #a: number
  #b: number
  #c: number
  #d: number

  constructor(seed: string) {
    this.#seed = seed
    const words = createHash("sha256").update(seed).digest()
    this.#a = words.readInt32LE(0)
    this.#b = words.readInt32LE(4)
    this.#c = words.readInt32LE(8)
    this.#d = words.readInt32LE(12)
  }

  /** A stream of its own: what others draw changes nothing here. */
  of(name: string): Chance {
    return new Chance(`${this.#seed}/${name}`)
  }

  /** sfc32: 32 random bits. */
  #next(): number {
    const sum = (((this.#a + this.#b) | 0) + this.#d) | 0
    this.#d = (this.#d + 1) | 0
    this.#a = this.#b ^ (this.#b >>> 9)
    this.#b = (this.#c + (this.#c << 3)) | 0
    this.#c = ((this.#c << 21) | (this.#c >>> 11)) + sum
    return sum >>> 0
  }

  integer(below: number): number {
    return Math.floor(this.fraction() * below)
  }

  bytes(length: number): Uint8Array {
    return Uint8Array.from({ length }, () => this.#next() & 255)
  }

  /** From 0 up to 1. */
  fraction(): number {
    return this.#next() / 2 ** 32
  }

  between(least: number, most: number): number {
    return least + this.fraction() * (most - least)
  }

  /** A whole number, both ends included. */
  whole(least: number, most: number): number {
    return least + this.integer(most - least + 1)
  }

  happens(probability: number): boolean {
    return this.fraction() < probability
  }

  pick<T>(from: readonly T[]): T {
    const one = from[this.integer(from.length)]
    if (one === undefined) throw new Error("there is something to pick")
    return one
  }
}
