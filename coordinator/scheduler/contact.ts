import { every, type Clock } from "../../protocol/base/clock.ts"
import { errorText } from "../../protocol/base/error-text.ts"
import type { Log } from "../../protocol/base/log.ts"
import { slices } from "../../protocol/base/slices.ts"
import type { ClaimNumber, NodeId, PeerId } from "../../protocol/domain/ids.ts"
import { BATCH_ITEMS } from "../../protocol/wire/control.ts"
import type { JobWatch } from "../events/watch.ts"
import { createOurFault, isAliveByAdverts, isInReach, patienceMs } from "../fleet/liveness.ts"
import type { HeldAttempt, Member, Members } from "../fleet/members.ts"
import { endExtensions, extendLiveClaims } from "../store/attempt-contact.ts"
import type { Store } from "../store/store.ts"
import { markClaimable, recordContactLost, recordContactReturned } from "./give-up.ts"
import type { ReadyQueue } from "./ready-queue.ts"

/**
 * Lost contact as a state (architecture §5.5): running → suspect → lost contact → claimable. Memory judges by monotonic time;
 * what clients see and what is billed follows in writes. Nothing here spends a number: the next grant does.
 */
export interface ContactWatch extends AsyncDisposable {
  /** The node sent something: it has contact. */
  heard(member: Member): void
  /** The node named the attempt: its claim starts anew, and a loss that no grant has spent yet never was. */
  renew(attempt: HeldAttempt): void
  /** The node's agent is back without the attempt: evidence of death. */
  forgotten(attempt: HeldAttempt): void
  /** Nothing is to be waited for: the node will not run these again. */
  giveUp(attempts: readonly HeldAttempt[]): void
  /**
   * An address at which the witness was connected to that peer a moment ago refuses: evidence of death, once two members say
   * so, or all others where there are fewer. No witness alone can shorten the wait for another's work.
   */
  refusedTo(witness: Member, peer: PeerId): void
  /** An advert of the node came over the mesh, whoever passed it on. */
  advertised(node: NodeId, intervalMs: number): void
}

export interface ContactParts {
  store: Store
  clock: Clock
  log: Log
  members: Members
  queue: ReadyQueue
  watch: JobWatch
  timing: { claimLifetimeMs: number; lostAfterMs: number }
  /** Work may start somewhere: look again. */
  wake: () => void
  /** Its node has contact and let the claim end: it took the task and does not run it. */
  idle: (member: Member, attempt: HeldAttempt) => void
  /** These numbers ended without memory having heard of it. */
  over: (claims: readonly ClaimNumber[]) => void
}

const LOOK_INTERVAL_MS = 500
/** Members whose word is taken for it that a node is gone. */
const WITNESSES = 2
/** Timers may fire a little before their time, and nobody else might look again. */
const TIMER_EARLY_MS = 10
/** A look that comes this much late: this process was stopped, not the nodes. */
const PAUSE_MS = 2_000

export function createContactWatch(parts: ContactParts): ContactWatch {
  const { clock, log, members, queue, timing } = parts
  /** Members that were refused by a node since its last contact. */
  const witnesses = new Map<Member, Set<Member>>()
  /** Which write gives it up: one that was renewed meanwhile may be given up anew. */
  const givingUp = new Map<HeldAttempt, object>()
  const ourFault = createOurFault<Member>()
  /** Their nodes were heard: the stored extension is to end. */
  let heardAgain: ClaimNumber[] = []
  let writing: Promise<unknown> = Promise.resolve()
  let lastLookMs = clock.monotonicMs()
  const looking = every(clock, LOOK_INTERVAL_MS, look)

  function look(): void {
    const nowMs = clock.monotonicMs()
    const pausedMs = nowMs - lastLookMs - LOOK_INTERVAL_MS
    lastLookMs = nowMs
    if (pausedMs > PAUSE_MS) return extendAll(nowMs, pausedMs)
    endStoredExtensions()
    const lost = [...members.all()].filter((member) => member.attempts.size > 0 && hasLostContact(member))
    for (const member of lost) tellLost(member)
    const isOurs = ourFault.judge(recentlyLost(lost), membersThatCount(), nowMs)
    const over: HeldAttempt[] = []
    for (const member of members.all()) {
      const isWaitedFor = isOurs || !hasLostContact(member) || livesByAdverts(member, nowMs)
      for (const attempt of member.attempts.values()) {
        if (attempt.claimable || givingUp.has(attempt)) continue
        const hasEnded = nowMs >= attempt.expiresAtMs
        if (!hasEnded && (isWaitedFor || !isOverdue(attempt, member, nowMs))) continue
        if (hasEnded && isIdle(attempt, member)) parts.idle(member, attempt)
        over.push(attempt)
      }
    }
    if (over.length > 0) giveUp(over)
  }

  /** A node that was not heard since this start is waited for until its claims end: this process was away, not the node. */
  function hasLostContact(member: Member): boolean {
    if (member.lastHeardMs === null) return false
    const contact = members.contact(member)
    return contact === "lost_contact" || contact === "offline"
  }

  /** Heartbeats came and did not name it. One that its agent came back without is another story, told by its hello. */
  function isIdle(attempt: HeldAttempt, member: Member): boolean {
    const isForgotten = attempt.expiresAtMs < attempt.heardAtMs + timing.claimLifetimeMs
    return members.contact(member) === "connected" && !isForgotten && !attempt.extended
  }

  function recentlyLost(lost: readonly Member[]): { node: Member; atMs: number }[] {
    return lost
      .filter((member) => members.contact(member) === "lost_contact")
      .map((member) => ({ node: member, atMs: member.lastHeardMs ?? 0 }))
  }

  function membersThatCount(): number {
    return [...members.all()].filter(({ attempts, session }) => attempts.size > 0 || session !== null).length
  }

  function livesByAdverts(member: Member, nowMs: number): boolean {
    return isAliveByAdverts(member.advert, member.lastHeardMs ?? 0, member.heartbeatMs, nowMs)
  }

  /** The stake is frozen at last contact: preparation and run time up to then, since the last durable checkpoint. */
  function isOverdue(attempt: HeldAttempt, member: Member, nowMs: number): boolean {
    const lastHeardMs = member.lastHeardMs ?? nowMs
    if (isGone(member)) return nowMs - lastHeardMs >= Math.min(timing.lostAfterMs, attempt.expiresAtMs - lastHeardMs)
    const stakeMs = Math.max(0, lastHeardMs - (attempt.checkpointedAtMs ?? attempt.grantedAtMs))
    return nowMs - lastHeardMs >= patienceMs(stakeMs, timing.lostAfterMs, attempt.expiresAtMs - lastHeardMs)
  }

  function isGone(member: Member): boolean {
    const told = witnesses.get(member)
    if (!told) return false
    const others = [...members.all()].filter((other) => other !== member && other.session !== null)
    return [...told].filter(({ session }) => session !== null).length >= Math.max(1, Math.min(WITNESSES, others.length))
  }

  // ── contact is lost, and returns ──────────────────────────────────────────────────────────────────────────────────

  /** Clients see it from here on, and no second copy runs yet. */
  function tellLost(member: Member): void {
    const { lastHeardMs } = member
    if (lastHeardMs === null) return
    const silent = [...member.attempts.values()].filter(({ contactLostMs }) => contactLostMs === null)
    if (silent.length === 0) return
    for (const attempt of silent) attempt.contactLostMs = lastHeardMs
    const at = clock.now()
    const since = at - Math.round(clock.monotonicMs() - lastHeardMs)
    for (const some of slices(silent, BATCH_ITEMS)) {
      const write = parts.store.write((tx) => recordContactLost(tx, some, since, at))
      // What could not be stored is told by the next look.
      const unstored = (error: unknown): never => {
        for (const attempt of some) if (attempt.contactLostMs === lastHeardMs) attempt.contactLostMs = null
        throw error
      }
      follow(
        write.then(() => tellWatchers(some), unstored),
        "lost contact was not stored",
      )
    }
    log.warn("contact with a node is lost", { node: member.id, attempts: silent.length })
  }

  function renew(attempt: HeldAttempt): void {
    const nowMs = clock.monotonicMs()
    attempt.expiresAtMs = nowMs + timing.claimLifetimeMs
    attempt.heardAtMs = nowMs
    if (attempt.extended) heardAgain.push(attempt.claim)
    attempt.extended = false
    attempt.died = false
    const wasGivenUp = givingUp.delete(attempt)
    if (attempt.claimable) {
      queue.add(attempt.job, -1)
      // It has its seat again, if its job has any: the one that stood idle for it is somebody else's room.
      parts.wake()
    }
    const { contactLostMs } = attempt
    if (contactLostMs === null && !attempt.claimable && !wasGivenUp) return
    attempt.claimable = false
    attempt.contactLostMs = null
    const silentMs = contactLostMs === null ? 0 : Math.round(nowMs - contactLostMs)
    const at = clock.now()
    follow(
      parts.store.write((tx) => recordContactReturned(tx, attempt, silentMs, at)).then(() => tellWatchers([attempt])),
      "a returned attempt was not stored",
    )
  }

  /** Waiting is over. A node that speaks up before the write has ended is back in time (`renew`). */
  function giveUp(attempts: readonly HeldAttempt[]): void {
    for (const some of slices(attempts, BATCH_ITEMS)) follow(storeGivenUp(some), "lost claims were not stored")
  }

  async function storeGivenUp(attempts: readonly HeldAttempt[]): Promise<void> {
    const at = clock.now()
    const act = {}
    for (const attempt of attempts) givingUp.set(attempt, act)
    try {
      const marked = await parts.store.write((tx) => markClaimable(tx, attempts, at))
      const over: ClaimNumber[] = []
      for (const attempt of attempts) {
        const isWanted = givingUp.get(attempt) === act && members.attempt(attempt.claim) === attempt
        if (isWanted && marked.has(attempt.claim)) {
          attempt.claimable = true
          queue.add(attempt.job, 1)
        } else if (isWanted) over.push(attempt.claim)
      }
      parts.over(over)
      log.warn("claims may be granted again", { claims: [...marked] })
      tellWatchers(attempts)
      parts.wake()
    } finally {
      for (const attempt of attempts) if (givingUp.get(attempt) === act) givingUp.delete(attempt)
    }
  }

  function tellWatchers(attempts: readonly HeldAttempt[]): void {
    parts.watch.changed(new Set(attempts.map(({ job }) => job)))
  }

  // ── our own absence ───────────────────────────────────────────────────────────────────────────────────────────────

  /** This process paused, not the nodes: one extension each, and a heartbeat's time to speak before anyone is judged. */
  function extendAll(nowMs: number, pausedMs: number): void {
    log.warn("this process paused: claims are extended", { paused_ms: Math.round(pausedMs) })
    for (const member of members.all()) {
      if (member.lastHeardMs !== null) member.lastHeardMs = Math.min(nowMs, member.lastHeardMs + pausedMs)
      for (const attempt of member.attempts.values()) {
        if (attempt.extended) continue
        attempt.extended = true
        attempt.expiresAtMs = Math.max(attempt.expiresAtMs, nowMs + timing.claimLifetimeMs)
      }
    }
    parts.wake()
    const until = clock.now() + timing.claimLifetimeMs
    follow(
      parts.store.write((tx) => extendLiveClaims(tx, until)),
      "extensions were not stored",
    )
  }

  function endStoredExtensions(): void {
    if (heardAgain.length === 0) return
    const claims = heardAgain
    heardAgain = []
    for (const some of slices(claims, BATCH_ITEMS)) {
      follow(
        parts.store.write((tx) => endExtensions(tx, some)),
        "the end of extensions was not stored",
      )
    }
  }

  /** Follows a write nobody waits for; a failure is told, and the next look, hello or report makes up for it. */
  function follow(write: Promise<unknown>, failure: string): void {
    writing = Promise.allSettled([
      writing,
      write.catch((error: unknown) => log.error(failure, { error: errorText(error) })),
    ])
  }

  return {
    heard(member) {
      const nowMs = clock.monotonicMs()
      const before = members.contact(member)
      if (before !== "connected") ourFault.returned(member, nowMs)
      witnesses.delete(member)
      member.lastHeardMs = nowMs
      member.lastSeenAt = clock.now()
      // Nothing was granted to it meanwhile, nor is now before it could say what it holds: its own task might be given to it again.
      // A hello, with which its session begins, has said so.
      if (isInReach(before)) return
      const waitMs = member.session !== null && member.attempts.size > 0 ? member.heartbeatMs : 0
      member.restsUntilMs = Math.max(member.restsUntilMs, nowMs + waitMs)
      if (waitMs === 0) parts.wake()
      else clock.after(waitMs + TIMER_EARLY_MS, parts.wake)
    },
    renew,
    /** It takes no room there any more, and may be granted again once the shortest wait is over, to the same machine too. */
    forgotten(attempt) {
      members.vacate(attempt)
      attempt.died = attempt.bootId === null || members.byNode(attempt.node)?.facts?.bootId !== attempt.bootId
      attempt.expiresAtMs = Math.min(attempt.expiresAtMs, attempt.heardAtMs + timing.lostAfterMs)
    },
    giveUp,
    refusedTo(witness, peer) {
      const member = members.byPeer(peer)
      // What is said of a node with an open stream is not so.
      if (!member || member === witness || member.session !== null || member.attempts.size === 0) return
      const told = witnesses.get(member) ?? new Set()
      witnesses.set(member, told.add(witness))
    },
    advertised(node, intervalMs) {
      const member = members.byNode(node)
      if (member) member.advert = { heardAtMs: clock.monotonicMs(), intervalMs }
    },
    async [Symbol.asyncDispose]() {
      looking[Symbol.dispose]()
      await writing
    },
  }
}
