import { every, type Clock, type Instant } from "../../protocol/base/clock.ts"
import { errorText } from "../../protocol/base/error-text.ts"
import type { Log } from "../../protocol/base/log.ts"
import type { NodeId, PeerId } from "../../protocol/domain/ids.ts"
import {
  countFaults,
  dropFaults,
  insertFault,
  putOnProbation,
  standingOf,
  type Blame,
  type NewFault,
} from "../store/node-faults.ts"
import type { Store } from "../store/store.ts"
import type { Member, Members } from "./members.ts"
import {
  FAULTS_COUNT_MS,
  isClearlyWorse,
  JOBS_TO_PROBATION,
  judgeNode,
  restMs,
  type NodeRecord,
  type Share,
} from "./node-rules.ts"

/**
 * Scores nodes by what they did (architecture §5.7): faults are rows, shares are memory, `node-rules.ts` decides. A node on
 * probation gets one attempt at a time; one that goes on is expelled. Lost contact never counts.
 */
export interface Reputation extends AsyncDisposable {
  /** Attempts of the node ended, however they did. */
  ended(member: Member, attempts: number): void
  /** Attempts of these nodes failed, and their tasks completed elsewhere; their faults are stored. One entry an attempt. */
  failedElsewhere(blames: readonly Blame[]): void
  /** A task of the job was taken and not run, or its report was worth nothing. */
  wasted(member: Member, kind: "idle_claim" | "refused_report", job: number): void
  /** The node broke the protocol; `what` goes into `GET /admin/nodes`. */
  offence(member: Member, what: string): void
  /** The peer signed an advert that came too soon after others: a number of them is an offence. */
  floods(peer: PeerId): void
  /** The witness found pieces of this peer wrong. */
  complained(witness: Member, accused: PeerId): void
  /** It took work and did not run it: after more than one in a row, or an idle claim, it rests before it gets more. */
  setback(member: Member, idle?: boolean): void
  /** It completed a task: its setbacks are over. */
  succeeded(member: Member): void
  /** Forgets what is too old to matter. */
  sweep(): Promise<void>
}

export interface ReputationParts {
  store: Store
  clock: Clock
  log: Log
  members: Members
  /** Revokes the node and cuts it off. */
  expel: (member: Member, reason: string) => Promise<void>
  /** Rested nodes may get work again. */
  wake: () => void
}

export function createReputation(parts: ReputationParts): Reputation {
  const { store, clock, log, members } = parts
  const tallies = new Map<NodeId, Tally>()
  const setbacks = new Map<NodeId, number>()
  const complainedAtMs = new Map<NodeId, Map<PeerId, number>>()
  const flooding = new WeakMap<Member, number>()
  /** Near a limit: what others do may yet show that these are worse. */
  const doubtful = new Set<Member>()
  let writing: Promise<unknown> = Promise.resolve()
  const looking = every(clock, LOOK_INTERVAL_MS, () => {
    if (doubtful.size === 0) return
    const now = clock.now()
    const all = sumOfAll(now)
    // Rows are read only where they can decide: a flaky program makes the whole fleet doubtful.
    for (const member of doubtful) if (isWorseThanOthers(member, all, now)) follow(judge(member))
  })

  function tally(node: NodeId): Tally {
    let found = tallies.get(node)
    if (!found) {
      found = new Tally()
      tallies.set(node, found)
    }
    return found
  }

  function record(fault: Omit<NewFault, "at" | "node">, member: Member): void {
    const at = clock.now()
    log.warn("a node did wrong", { node: member.id, kind: fault.kind, detail: fault.detail })
    follow(
      store
        .write((tx) => insertFault(tx, { ...fault, node: member.id, at }))
        .then(async (isNew) => {
          if (isNew) await judge(member)
        }),
    )
  }

  async function judge(member: Member): Promise<void> {
    if (member.state === "revoked") return void doubtful.delete(member)
    const now = clock.now()
    const facts = await store.read(async (view) => {
      const standing = await standingOf(view, member.id)
      if (!standing) return null
      const from = Math.max(now - FAULTS_COUNT_MS, standing.pardonedAt ?? 0)
      const counts = await countFaults(view, member.id, from)
      const since = standing.probationSince
      return { counts, sinceProbation: since === null ? null : await countFaults(view, member.id, since) }
    })
    if (!facts) return
    const judgement = judgeNode({
      ...facts,
      ...sharesOf(member, sumOfAll(now), now),
      otherMembers: witnessesBeside(member, now),
    })
    if (facts.counts.jobs >= JOBS_TO_PROBATION) doubtful.add(member)
    else doubtful.delete(member)
    if (judgement.verdict === "expelled") {
      doubtful.delete(member)
      log.warn("node expelled", { node: member.id, reason: judgement.reason })
      return await parts.expel(member, judgement.reason)
    }
    if (judgement.verdict === "probation") await onProbation(member, judgement.reason, now)
  }

  async function onProbation(member: Member, reason: string, at: Instant): Promise<void> {
    if (!(await store.write((tx) => putOnProbation(tx, member.id, reason, at)))) return
    member.probation = { since: at, reason }
    log.warn("node on probation", { node: member.id, reason })
  }

  function sumOfAll(now: Instant): Share {
    const sum = { ended: 0, blamed: 0 }
    for (const its of tallies.values()) its.addTo(sum, now)
    return sum
  }

  function sharesOf(member: Member, all: Share, now: Instant): Pick<NodeRecord, "own" | "others"> {
    const own = { ended: 0, blamed: 0 }
    tally(member.id).addTo(own, now)
    return { own, others: { ended: all.ended - own.ended, blamed: all.blamed - own.blamed } }
  }

  function isWorseThanOthers(member: Member, all: Share, now: Instant): boolean {
    const { own, others } = sharesOf(member, all, now)
    return isClearlyWorse(own, others)
  }

  /** Members that could have spoken against it: heard within the time for which faults count. */
  function witnessesBeside(member: Member, now: Instant): number {
    let others = 0
    for (const { id, state, lastSeenAt } of members.all()) {
      if (id !== member.id && state !== "revoked" && lastSeenAt !== null && now - lastSeenAt < FAULTS_COUNT_MS) others++
    }
    return others
  }

  /** Nobody waits for it; what could not be stored is judged with the node's next fault. */
  function follow(work: Promise<unknown>): void {
    writing = Promise.allSettled([
      writing,
      work.catch((error: unknown) => log.error("a node could not be judged", { error: errorText(error) })),
    ])
  }

  function offence(member: Member, what: string): void {
    record({ kind: "protocol", job: null, witness: null, detail: what }, member)
  }

  return {
    ended: (member, attempts) => tally(member.id).add(clock.now(), { ended: attempts, blamed: 0 }),
    failedElsewhere(blames) {
      const now = clock.now()
      for (const { node } of blames) tally(node).add(now, { ended: 0, blamed: 1 })
      for (const { node, isNew } of blames) {
        const member = members.byNode(node)
        if (member && isNew) follow(judge(member))
      }
    },
    wasted(member, kind, job) {
      tally(member.id).add(clock.now(), { ended: 1, blamed: 1 })
      record({ kind, job, witness: null, detail: null }, member)
    },
    offence,
    floods(peer) {
      const member = members.byPeer(peer)
      if (!member || member.state === "revoked") return
      const adverts = (flooding.get(member) ?? 0) + 1
      flooding.set(member, adverts % FLOOD_ADVERTS)
      if (adverts === FLOOD_ADVERTS) offence(member, "a flood of adverts")
    },
    complained(witness, accused) {
      const member = members.byPeer(accused)
      const nowMs = clock.monotonicMs()
      const its = complainedAtMs.get(witness.id) ?? new Map<PeerId, number>()
      if (!member || member === witness || member.state === "revoked") return
      if (nowMs - (its.get(accused) ?? Number.NEGATIVE_INFINITY) < COMPLAINT_INTERVAL_MS) return
      complainedAtMs.set(witness.id, its.set(accused, nowMs))
      record({ kind: "content", job: null, witness: witness.id, detail: null }, member)
    },
    setback(member, idle = false) {
      const inARow = (setbacks.get(member.id) ?? 0) + 1
      setbacks.set(member.id, inARow)
      const rest = restMs(inARow, idle)
      if (rest === 0) return
      const untilMs = clock.monotonicMs() + rest
      member.restsUntilMs = untilMs
      // A timer may fire a little early: it says itself that the rest is over, or the look that it asks for would find it is not.
      clock.after(rest, () => {
        if (member.restsUntilMs === untilMs) member.restsUntilMs = Number.NEGATIVE_INFINITY
        parts.wake()
      })
      log.info("node rests", { node: member.id, setbacks: inARow, rest_ms: rest })
    },
    succeeded: (member) => void setbacks.delete(member.id),
    async sweep() {
      const before = clock.now() - FAULTS_KEPT_MS
      while ((await store.write((tx) => dropFaults(tx, before, DROPPED_AT_ONCE))) === DROPPED_AT_ONCE);
    },
    async [Symbol.asyncDispose]() {
      looking[Symbol.dispose]()
      await writing
    },
  }
}

/** Ends of one node's attempts by the hour, for as long as faults count. */
class Tally {
  readonly #hours = new Map<number, Share>()

  add(at: Instant, share: Share): void {
    const hour = Math.floor(at / HOUR_MS)
    const known = this.#hours.get(hour)
    if (known) addShare(known, share)
    else this.#hours.set(hour, { ...share })
  }

  addTo(sum: Share, now: Instant): void {
    for (const [hour, share] of this.#hours) {
      if ((hour + 1) * HOUR_MS <= now - FAULTS_COUNT_MS) this.#hours.delete(hour)
      else addShare(sum, share)
    }
  }
}

function addShare(to: Share, { ended, blamed }: Share): void {
  to.ended += ended
  to.blamed += blamed
}

const HOUR_MS = 3600_000
const LOOK_INTERVAL_MS = 2_000
/** Adverts beyond the allowance, of which an honest node has none; a flood is expelled before the mesh stops listening to it. */
const FLOOD_ADVERTS = 32
/** One witness is heard so often about the same peer. */
const COMPLAINT_INTERVAL_MS = 60_000
/** Evidence is there for people longer than it counts. */
const FAULTS_KEPT_MS = 30 * 24 * 3600_000
const DROPPED_AT_ONCE = 500
