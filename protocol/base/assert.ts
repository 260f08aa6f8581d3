/** Throws when an invariant does not hold. For what only a bug can cause; expected refusals are `ComputalotError`s. */
export function assert(condition: unknown, invariant: string): asserts condition {
  if (!condition) throw new AssertionFailed(invariant)
}

/** The value, or an error that names what was missing. For lookups that only a bug can make fail. */
export function present<T>(value: T | null | undefined, what: string): T {
  assert(value !== null && value !== undefined, `${what} is present`)
  return value
}

/** Ends a `switch` over a closed union: the compiler proves that no case is left. */
export function unreachable(value: never): never {
  throw new AssertionFailed(`no case is left for ${JSON.stringify(value)}`)
}

class AssertionFailed extends Error {
  override name = "AssertionFailed"
  constructor(invariant: string) {
    super(`invariant broken: ${invariant}`)
  }
}
