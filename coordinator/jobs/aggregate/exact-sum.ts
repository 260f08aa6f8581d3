/**
 * Adds doubles with the error of each addition kept aside (Neumaier), so that a sum over 100,000 tasks is as exact as one
 * over three and does not depend on how it was sliced.
 */
export class ExactSum {
  #sum = 0
  #lost = 0

  add(value: number): void {
    const next = this.#sum + value
    this.#lost += Math.abs(this.#sum) >= Math.abs(value) ? this.#sum - next + value : value - next + this.#sum
    this.#sum = next
  }

  /** Not finite when the sum left the range of doubles. */
  get total(): number {
    return Number.isFinite(this.#sum) ? this.#sum + this.#lost : this.#sum
  }
}
