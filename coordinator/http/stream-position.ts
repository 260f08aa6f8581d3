/**
 * A frame's id is its place in the event log: event × 4 + place, so that ids compare, survive restarts and tell what was
 * missed, whichever stream gave them. A snapshot stands behind all frames of the last event it saw, `done` behind those of the
 * last one it tells of.
 */
const PLACE = { task: 0, job: 1, event: 2, snapshot: 2, done: 3 } as const

export const frameId = (event: number, place: keyof typeof PLACE): number => event * 4 + PLACE[place]

export const eventOf = (id: number): number => Math.floor(id / 4)

export const isDoneId = (id: number): boolean => id % 4 === PLACE.done
export const isJobId = (id: number): boolean => id % 4 === PLACE.job

/** Events above this one have a `job` frame behind `id`. */
export const lastEventBefore = (id: number): number => Math.floor((id - PLACE.job) / 4)

/** The id a client came back with; null where it is none that a stream gives. */
export function idFrom(text: string | null): number | null {
  const id = text !== null && /^\d{1,16}$/.test(text) ? Number(text) : 0
  return Number.isSafeInteger(id) && id > 0 ? id : null
}
