import type { Machine } from "./machine.ts"
import type { Watch } from "./watch.ts"

/** One connection of an event stream, as a client sees it. */
export interface StreamHeard {
  /** Null: no answer came. */
  status: number | null
  /** It has ended, whoever ended it. */
  closed: Promise<void>
  hangUp(): void
}

/** Asks for a job's stream, from behind this frame; what comes is given to `heard`. */
export type OpenStream = (lastId: string | null, heard: (text: string) => void) => Promise<StreamHeard>

/**
 * Follows one job to its end: hangs up now and then, and resumes with the last id that it saw. 7: each event comes once, in
 * order, wherever the stream is resumed. False when the job is gone (an older copy of the data).
 */
export async function followJob(parts: {
  machine: Machine
  watch: Watch
  job: string
  open: OpenStream
  isGone: () => boolean
}): Promise<boolean> {
  const { machine, watch, job } = parts
  const seen = new Set<number>()
  let from: number | null = null
  let last = 0
  let isOver = false

  function take(frame: string): void {
    const fields = new Map(frame.split("\n").map((line) => splitAt(line, ": ")))
    const event = fields.get("event")
    const id = Number(fields.get("id") ?? Number.NaN)
    if (event === undefined) return
    if (!Number.isNaN(id)) {
      if (id <= last) watch.wrong(`7: the stream of ${job} shows frame ${id} after ${last}`)
      last = id
    }
    if (event === "snapshot") {
      if (from !== null) watch.wrong(`7: the stream of ${job} was resumed and began anew`)
      from = eventOf(id)
    }
    if (event === "event") seen.add(eventOf(id))
    if (event === "done") isOver = true
  }

  while (!isOver) {
    if (parts.isGone()) return false
    let text = ""
    const stream = await parts.open(last === 0 ? null : `${last}`, (more) => {
      text += more
      const frames = text.split("\n\n")
      text = frames.pop() ?? ""
      if (!parts.isGone()) for (const frame of frames) take(frame)
    })
    if (stream.status === 204) isOver = true
    else if (stream.status === 200) {
      machine.time.at(machine.time.nowMs + machine.chance.between(50, 20_000), machine.lane, () => stream.hangUp())
      await stream.closed
    }
    const restMs = machine.chance.between(100, 1_500)
    await new Promise<void>((resolve) => void machine.time.at(machine.time.nowMs + restMs, machine.lane, resolve))
  }
  if (parts.isGone()) return false
  watch.followed.push({ job, from: from ?? 0, upto: eventOf(last), seen })
  return true
}

/** As the coordinator makes them: event × 4 + place. */
const eventOf = (id: number): number => Math.floor(id / 4)

function splitAt(line: string, at: string): [string, string] {
  const place = line.indexOf(at)
  return place === -1 ? [line, ""] : [line.slice(0, place), line.slice(place + at.length)]
}
