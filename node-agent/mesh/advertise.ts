import type { Clock, Timer } from "../../protocol/base/clock.ts"
import { errorText } from "../../protocol/base/error-text.ts"
import type { Log } from "../../protocol/base/log.ts"
import { jittered, type Random } from "../../protocol/base/random.ts"
import { encodeAdvert, type NodeAdvert } from "../../protocol/gossip/node-advert.ts"
import { ADVERTS_TOPIC } from "../../protocol/gossip/topics.ts"
import type { Mesh } from "../../protocol/mesh/mesh.ts"

/** Tells the mesh what this node is (architecture §5.2): at every interval, on changes, and when the coordinator is lost. */
export interface Advertiser extends Disposable {
  /** Draining, drivers or warm revisions changed. */
  changed(): void
  /** Contact with the coordinator was lost: others can tell it that we live. */
  coordinatorLost(): void
  /** As the coordinator last said. */
  setMembers(members: number): void
}

export interface AdvertiseParts {
  mesh: Pick<Mesh, "publish">
  /** Null while this node is no member yet. */
  facts: () => Omit<NodeAdvert, "seq" | "issuedAt" | "intervalMs"> | null
  /** Coordinator time. */
  now: () => number
  clock: Clock
  random: Random
  log: Log
}

/** A node spends about 2 ms on each advert heard: the whole mesh keeps below 25 a second. */
const ADVERTS_A_SECOND = 25
const SHORTEST_INTERVAL_MS = 10_000
/** Above so many members a change waits for the interval's end. */
const SMALL_FLEET = 50
/** Changes come in bursts, and judges allow one more advert each two seconds. */
const CHANGE_REST_MS = 2_000
const LOST_WINDOW_MS = 1_000

export function advertise(parts: AdvertiseParts): Advertiser {
  const { clock, random } = parts
  let members = 0
  let seq = 0
  let lastMs = Number.NEGATIVE_INFINITY
  let timer: Timer | null = null
  let dueMs = 0

  const interval = (): number => Math.max(SHORTEST_INTERVAL_MS, (members / ADVERTS_A_SECOND) * 1_000)

  /** The earlier of two times wins: a change does not push the regular advert away. */
  function publishIn(delayMs: number): void {
    const at = clock.monotonicMs() + delayMs
    if (timer !== null && dueMs <= at) return
    timer?.cancel()
    dueMs = at
    timer = clock.after(delayMs, publish)
  }

  function publish(): void {
    timer = null
    publishIn(jittered(random, interval(), 0.1))
    const facts = parts.facts()
    if (facts === null) return
    lastMs = clock.monotonicMs()
    seq += 1
    const advert = { ...facts, seq, issuedAt: Math.round(parts.now()), intervalMs: Math.round(interval()) }
    parts.mesh.publish(ADVERTS_TOPIC, encodeAdvert(advert)).catch((error: unknown) => {
      parts.log.debug("advert not published", { error: errorText(error) })
    })
  }

  publishIn(0)
  return {
    changed() {
      const rest = members > SMALL_FLEET ? interval() : CHANGE_REST_MS
      publishIn(Math.max(0, lastMs + rest - clock.monotonicMs()))
    },
    coordinatorLost: () => publishIn(random.integer(LOST_WINDOW_MS)),
    setMembers(count) {
      members = count
    },
    [Symbol.dispose]: () => timer?.cancel(),
  }
}
