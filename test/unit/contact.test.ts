import { afterEach, beforeEach, describe, expect, test } from "vitest"
import { silentLog } from "../../protocol/base/log.ts"
import { newNodeId, nodeId, peerId, type AccountId, type ClaimNumber } from "../../protocol/domain/ids.ts"
import { systemRandom } from "../../protocol/base/random.ts"
import { createOurFault, isAliveByAdverts } from "../../coordinator/fleet/liveness.ts"
import type { HeldAttempt, Member } from "../../coordinator/fleet/members.ts"
import { createContactWatch, type ContactWatch } from "../../coordinator/scheduler/contact.ts"
import { disproveLosses } from "../../coordinator/scheduler/give-up.ts"
import { createReadyQueue, type ReadyQueue } from "../../coordinator/scheduler/ready-queue.ts"
import { extendLiveClaims } from "../../coordinator/store/attempt-contact.ts"
import { jobEvents } from "../../coordinator/store/events.ts"
import { insertNode } from "../../coordinator/store/fleet.ts"
import { findHold } from "../../coordinator/store/holds.ts"
import type { JobRow } from "../../coordinator/store/jobs.ts"
import { fundedAccount } from "../support/accounts.ts"
import { startJobRig, storedAttempt, storedTask, type JobRig } from "../support/job-rig.ts"
import { createManualClock, type ManualClock } from "../support/manual-clock.ts"

/** Architecture §5.5, with the real store and a clock that the test moves. */

const LIFE_MS = 300_000
let clock: ManualClock
let rig: JobRig
let account: AccountId
let queue: ReadyQueue
let contact: ContactWatch
let over: ClaimNumber[]
let idle: ClaimNumber[]
let wakes: number

beforeEach(async () => {
  clock = createManualClock()
  rig = await startJobRig({ clock })
  account = await fundedAccount(rig.store, 50_000_000n)
  await rig.project(account)
  queue = createReadyQueue(300_000)
  over = []
  idle = []
  wakes = 0
  contact = createContactWatch({
    store: rig.store,
    clock,
    log: silentLog,
    members: rig.members,
    queue,
    watch: rig.watch,
    timing: { claimLifetimeMs: LIFE_MS, lostAfterMs: 5_000 },
    wake: () => void (wakes += 1),
    idle: (_member, attempt) => void idle.push(attempt.claim),
    over(claims) {
      for (const claim of claims) rig.members.release(claim)
      over.push(...claims)
    },
  })
  contact.heard(rig.member)
})
afterEach(async () => {
  await contact[Symbol.asyncDispose]()
  await rig[Symbol.asyncDispose]()
})

/** One task that runs on the rig's node, known to the queue. */
async function running(): Promise<{ job: JobRow; claim: ClaimNumber; attempt: HeldAttempt }> {
  const job = await rig.queued(account, {})
  queue.put({
    seq: job.seq,
    account,
    priority: "normal",
    kind: "one",
    readySince: clock.now(),
    tasks: 0,
    cost: 1,
  })
  const [claim] = await rig.grant(job, 1)
  const attempt = claim && rig.members.attempt(claim)
  if (!claim || !attempt) throw new Error("the task is granted")
  await rig.start([claim])
  return { job, claim, attempt }
}

/** Heartbeats that name the attempt for so long. */
async function beat(attempt: HeldAttempt, ms: number): Promise<void> {
  for (let passed = 0; passed < ms; passed += 1_000) {
    contact.heard(rig.member)
    contact.renew(attempt)
    await clock.pass(1_000)
  }
  contact.heard(rig.member)
  contact.renew(attempt)
}

const types = async (job: JobRow): Promise<string[]> =>
  (await rig.store.read((view) => jobEvents(view, job.seq, 0, 1_000))).map(({ type }) => type)

describe("running → suspect → lost contact → claimable", () => {
  test("after four heartbeats clients are told, and no second copy may run; after the wait it may", async () => {
    const { job, claim, attempt } = await running()
    await clock.pass(3_900)
    expect(await types(job)).not.toContain("task.contact_lost")
    await clock.pass(700)
    expect(await types(job)).toContain("task.contact_lost")
    expect(await storedTask(rig.store, job.seq, 0)).toMatchObject({ state: "running" })
    expect(queue.waiting(job.seq)).toBe(0)
    await clock.pass(1_000)
    expect(await storedTask(rig.store, job.seq, 0)).toMatchObject({ state: "lost", losses: 0, claim })
    expect(attempt.claimable).toBe(true)
    expect(queue.waiting(job.seq)).toBe(1)
    expect((await types(job)).filter((type) => type === "task.contact_lost")).toHaveLength(1)
  })

  test("the wait is what the work is worth: a minute of work is waited for a minute", async () => {
    const { job, attempt } = await running()
    await beat(attempt, 60_000)
    await clock.pass(58_000)
    expect(attempt.claimable).toBe(false)
    expect(await types(job)).toContain("task.contact_lost")
    await clock.pass(3_500)
    expect(attempt.claimable).toBe(true)
  })

  test("it is never waited for past the claim", async () => {
    const { attempt } = await running()
    await beat(attempt, 400_000)
    await clock.pass(LIFE_MS - 1_000)
    expect(attempt.claimable).toBe(false)
    await clock.pass(2_000)
    expect(attempt.claimable).toBe(true)
  })

  test("V-006: back after it was given up it runs in its seat again: what stood idle for it is free at once", async () => {
    const { job, attempt } = await running()
    await clock.pass(6_000)
    expect([attempt.claimable, queue.waiting(job.seq)]).toEqual([true, 1])
    contact.heard(rig.member)
    const before = wakes
    contact.renew(attempt)
    expect([attempt.claimable, queue.waiting(job.seq)]).toEqual([false, 0])
    expect(wakes).toBe(before + 1)
    // A heartbeat as any other changes nothing for others.
    contact.renew(attempt)
    expect(wakes).toBe(before + 1)
  })

  test("back within the wait: told once each way, no loss, and the time between is not billed", async () => {
    const { job, claim, attempt } = await running()
    await beat(attempt, 20_000)
    await clock.pass(10_000)
    await beat(attempt, 5_000)
    await clock.pass(100)
    expect((await types(job)).filter((type) => type.startsWith("task.contact"))).toEqual([
      "task.contact_lost",
      "task.contact_restored",
    ])
    expect(await storedAttempt(rig.store, claim)).toMatchObject({ contactLostAt: null, lostContactMs: 10_000 })
    // The node measured all 35 seconds; ten of them were without contact.
    await rig.report(claim, { runtime_ms: 35_100 })
    expect(await storedTask(rig.store, job.seq, 0)).toMatchObject({ state: "completed", losses: 0 })
    const hold = await rig.store.read((view) => findHold(view, job.hold))
    const charges = await rig.store.read((view) =>
      view.all<{ milliseconds: number }>("SELECT milliseconds FROM charges WHERE claim = ?", claim),
    )
    expect(hold).not.toBeNull()
    expect(charges.map(({ milliseconds }) => milliseconds)).toEqual([25_100])
  })

  test("a result that comes while contact counts as lost is billed without that time too", async () => {
    const { job, claim, attempt } = await running()
    await beat(attempt, 20_000)
    await clock.pass(6_000)
    expect(await types(job)).toContain("task.contact_lost")
    await rig.report(claim, { runtime_ms: 26_000 })
    const charges = await rig.store.read((view) =>
      view.all<{ milliseconds: number }>("SELECT milliseconds FROM charges WHERE claim = ?", claim),
    )
    expect(charges.map(({ milliseconds }) => milliseconds)).toEqual([20_000])
  })

  test("back after the wait, before another grant: it goes on, and nothing waits any more", async () => {
    const { job, attempt } = await running()
    await clock.pass(8_000)
    expect(queue.waiting(job.seq)).toBe(1)
    contact.heard(rig.member)
    contact.renew(attempt)
    await clock.pass(100)
    expect(queue.waiting(job.seq)).toBe(0)
    expect(await storedTask(rig.store, job.seq, 0)).toMatchObject({ state: "running", losses: 0 })
    expect(await rig.row(job)).toMatchObject({ running: 1, losses: 0 })
  })

  test("a contact that flaps is told each time, counts no loss and never has two copies", async () => {
    const { job, claim, attempt } = await running()
    for (let n = 0; n < 5; n++) {
      await clock.pass(4_600)
      await beat(attempt, 1_000)
    }
    await clock.pass(100)
    expect((await types(job)).filter((type) => type === "task.contact_lost")).toHaveLength(5)
    expect((await types(job)).filter((type) => type === "task.contact_restored")).toHaveLength(5)
    expect(await storedTask(rig.store, job.seq, 0)).toMatchObject({ state: "running", losses: 0, claim })
  })

  test("a claim that its node no longer names ends with its time, contact or not", async () => {
    const { attempt } = await running()
    for (let n = 0; n < 299; n++) {
      contact.heard(rig.member)
      await clock.pass(1_000)
    }
    expect(attempt.claimable).toBe(false)
    contact.heard(rig.member)
    await clock.pass(2_000)
    expect(attempt.claimable).toBe(true)
  })

  test("what memory gives up and the rows call over is told to its node", async () => {
    const { job, claim } = await running()
    await rig.endEarly(job, "failed", "over")
    await clock.pass(8_000)
    expect(over).toEqual([claim])
  })
})

describe("architecture §5.7: a claim that ends while its node has contact", () => {
  /** Heartbeats that name nothing. */
  async function beatWithout(ms: number): Promise<void> {
    for (let passed = 0; passed < ms; passed += 1_000) {
      contact.heard(rig.member)
      await clock.pass(1_000)
    }
  }
  const connect = (): void => {
    rig.member.session = { send: () => {}, close: () => {} }
  }

  test("its node took the task and does not run it", async () => {
    connect()
    const { claim, attempt } = await running()
    await beatWithout(LIFE_MS - 2_000)
    expect(idle).toEqual([])
    await beatWithout(4_000)
    expect(idle).toEqual([claim])
    expect(attempt.claimable).toBe(true)
  })

  test("lost contact is no idleness, nor is what an agent came back without", async () => {
    const { attempt } = await running()
    await clock.pass(LIFE_MS + 5_000)
    expect(attempt.claimable).toBe(true)
    connect()
    const second = await running()
    contact.heard(rig.member)
    contact.forgotten(second.attempt)
    await beatWithout(10_000)
    expect(second.attempt.claimable).toBe(true)
    expect(idle).toEqual([])
  })
})

describe("evidence", () => {
  test("adverts that still arrive prove that the node lives: only the claim's time counts", async () => {
    const { attempt } = await running()
    await clock.pass(4_000)
    for (let n = 0; n < 29; n++) {
      contact.advertised(rig.node, 10_000)
      await clock.pass(10_000)
    }
    expect(attempt.claimable).toBe(false)
    await clock.pass(7_000)
    expect(attempt.claimable).toBe(true)
  })

  test("adverts that stop prove nothing after three intervals", async () => {
    const { attempt } = await running()
    await clock.pass(4_000)
    contact.advertised(rig.node, 10_000)
    await clock.pass(29_000)
    expect(attempt.claimable).toBe(false)
    await clock.pass(2_000)
    expect(attempt.claimable).toBe(true)
  })

  test("an advert that was on its way when contact broke proves nothing", () => {
    expect(isAliveByAdverts({ heardAtMs: 1_500, intervalMs: 10_000 }, 1_000, 1_000, 6_000)).toBe(false)
    expect(isAliveByAdverts({ heardAtMs: 3_500, intervalMs: 10_000 }, 1_000, 1_000, 6_000)).toBe(true)
    expect(isAliveByAdverts(null, 1_000, 1_000, 6_000)).toBe(false)
  })

  test("an address that refuses two members is gone: the shortest wait; one member's word is not enough", async () => {
    const { attempt } = await running()
    await beat(attempt, 100_000)
    const [first, second] = [await joined(1), await joined(2)]
    rig.member.session = null
    contact.refusedTo(first, rig.member.peer)
    contact.refusedTo(first, rig.member.peer)
    for (const other of [first, second]) contact.heard(other)
    await clock.pass(8_000)
    expect(attempt.claimable).toBe(false)
    contact.refusedTo(second, rig.member.peer)
    await clock.pass(1_000)
    expect(attempt.claimable).toBe(true)
  })

  test("the only other member is believed; a node that was heard since, or has a stream, is not gone", async () => {
    const { attempt } = await running()
    await beat(attempt, 100_000)
    const other = await joined(1)
    contact.refusedTo(other, rig.member.peer)
    rig.member.session = null
    await clock.pass(7_000)
    expect(attempt.claimable).toBe(false)
    contact.refusedTo(other, rig.member.peer)
    contact.heard(rig.member)
    contact.renew(attempt)
    await clock.pass(7_000)
    expect(attempt.claimable).toBe(false)
    contact.refusedTo(rig.member, rig.member.peer)
    await clock.pass(500)
    expect(attempt.claimable).toBe(false)
    contact.refusedTo(other, rig.member.peer)
    await clock.pass(1_000)
    expect(attempt.claimable).toBe(true)
  })

  test("an agent that came back without the attempt is dead: the shortest wait, and its room is free", async () => {
    const { job, attempt } = await running()
    await beat(attempt, 100_000)
    contact.forgotten(attempt)
    expect(rig.member.used.cpu).toBe(0)
    await clock.pass(4_000)
    contact.heard(rig.member)
    expect(attempt.claimable).toBe(false)
    await clock.pass(2_000)
    expect(attempt.claimable).toBe(true)
    const row = await rig.store.read((view) =>
      view.get<{ died: number }>("SELECT died FROM attempts WHERE task = ?", attempt.task),
    )
    expect(row).toEqual({ died: 1 })
    expect(await types(job)).toContain("task.contact_lost")
  })
})

describe("our own fault", () => {
  const nodes = ["a", "b", "c", "d"] as const
  const lost = (...away: readonly (typeof nodes)[number][]) => away.map((node) => ({ node, atMs: 0 }))

  test("contact says nothing while most are away, nor until fifteen seconds after the last one returned", () => {
    const fault = createOurFault<string>()
    expect(fault.judge(lost("a"), 4, 5_000)).toBe(false)
    expect(fault.judge(lost("a", "b", "c"), 4, 6_000)).toBe(true)
    fault.returned("a", 8_000)
    fault.returned("b", 9_000)
    expect(fault.judge(lost("c"), 4, 9_500)).toBe(true)
    expect(fault.judge(lost("c"), 4, 23_999)).toBe(true)
    expect(fault.judge(lost("c"), 4, 24_001)).toBe(false)
  })

  test("a node that flaps does not prolong it", () => {
    const fault = createOurFault<string>()
    fault.judge(lost("a", "b", "c"), 4, 0)
    for (let ms = 1_000; ms < 15_000; ms += 1_000) {
      fault.returned("a", ms)
      expect(fault.judge(lost("a", "b"), 4, ms)).toBe(true)
    }
    fault.returned("a", 15_500)
    expect(fault.judge(lost("b"), 4, 16_500)).toBe(false)
  })

  test("two of three nodes lost at once: nothing becomes claimable by contact before their claims end", async () => {
    const { attempt } = await running()
    const others = await Promise.all([1, 2].map((n) => joined(n)))
    for (const other of others) Object.assign(other, { session: null })
    const [second] = others
    if (second) second.attempts.set(1, { ...attempt, claim: 1 as ClaimNumber, contactLostMs: 0, claimable: true })
    await clock.pass(LIFE_MS - 2_000)
    expect(attempt.claimable).toBe(false)
    await clock.pass(4_000)
    expect(attempt.claimable).toBe(true)
  })
})

async function joined(n: number): Promise<Member> {
  const id = newNodeId(systemRandom)
  const peer = peerId(`12D3KooWOther${n}`)
  const facts = { name: null, token: "tok_1", account: null, roles: ["worker" as const], agentVersion: "1" }
  await rig.store.write((tx) => insertNode(tx, { id, peerId: peer, ...facts, at: clock.now() }))
  const member = rig.members.add({ id, peer, name: null, roles: ["worker"], state: "active" })
  member.session = { send: () => {}, close: () => {} }
  contact.heard(member)
  return member
}

describe("our own absence", () => {
  test("a pause restarts nothing: one extension each, and no further one before the node was heard", async () => {
    const { claim, attempt } = await running()
    await clock.jump(60_000)
    await clock.pass(1_000)
    expect(attempt).toMatchObject({ claimable: false, extended: true, contactLostMs: null })
    const { extendedUntil } = (await storedAttempt(rig.store, claim)) ?? {}
    expect(extendedUntil).toBe(clock.now() - 1_000 + LIFE_MS)
    const endsAt = attempt.expiresAtMs
    await clock.jump(60_000)
    expect(attempt.expiresAtMs).toBe(endsAt)
    expect((await storedAttempt(rig.store, claim))?.extendedUntil).toBe(extendedUntil)
    contact.heard(rig.member)
    contact.renew(attempt)
    await clock.pass(1_000)
    expect(await storedAttempt(rig.store, claim)).toMatchObject({ extendedUntil: null })
    expect(attempt.extended).toBe(false)
  })

  test("a step of the wall clock changes no deadline", async () => {
    const { attempt } = await running()
    clock.step(3_600_000)
    await clock.pass(3_000)
    expect(attempt).toMatchObject({ claimable: false, contactLostMs: null })
    clock.step(-7_200_000)
    await clock.pass(3_000)
    expect(attempt.claimable).toBe(true)
  })

  test("an extension that is stored is not given again", async () => {
    const { claim } = await running()
    const extend = (until: number) => rig.store.write((tx) => extendLiveClaims(tx, until))
    await extend(1_000)
    await extend(2_000)
    expect((await storedAttempt(rig.store, claim))?.extendedUntil).toBe(1_000)
  })
})

describe("losses", () => {
  /** Granted, started and lost `times` times; `died`: the agent came back without it. */
  async function loseOften(job: JobRow, times: number, on: readonly Member[], died: boolean): Promise<void> {
    for (let n = 0; n < times; n++) {
      const [claim] = await rig.grant(job, 1)
      const attempt = claim && rig.members.attempt(claim)
      if (!claim || !attempt) throw new Error(`granted for the ${n + 1}. time`)
      await rig.start([claim])
      const node = on[n % on.length]?.id ?? rig.node
      await rig.store.write((tx) => tx.run("UPDATE attempts SET node = ? WHERE claim = ?", node, claim))
      attempt.died = died
      contact.giveUp([attempt])
      await clock.pass(100)
    }
  }

  test("the fifth loss ends the task: node_lost", async () => {
    const job = await rig.queued(account, {})
    await loseOften(job, 5, [rig.member], true)
    const outcome = await rig.grantOutcome(job, 1)
    expect(outcome.granted).toEqual([])
    expect(await storedTask(rig.store, job.seq, 0)).toMatchObject({ state: "failed", losses: 5 })
    expect(await kindOf(job)).toBe("node_lost")
  })

  test("five deaths of agents on three machines: quarantined", async () => {
    const job = await rig.queued(account, {})
    await loseOften(job, 5, [rig.member, await joined(1), await joined(2)], true)
    await rig.grantOutcome(job, 1)
    expect(await kindOf(job)).toBe("quarantined")
  })

  test("five losses on three machines that are no deaths: node_lost", async () => {
    const job = await rig.queued(account, {})
    await loseOften(job, 5, [rig.member, await joined(1), await joined(2)], false)
    await rig.grantOutcome(job, 1)
    expect(await kindOf(job)).toBe("node_lost")
  })

  test("an attempt that proves to have been alive is no loss: once, and told by its own node", async () => {
    const job = await rig.queued(account, {})
    await loseOften(job, 1, [rig.member], false)
    const { claim } = (await storedTask(rig.store, job.seq, 0)) ?? {}
    if (!claim) throw new Error("it was granted")
    const disprove = (node = rig.node) => rig.store.write((tx) => disproveLosses(tx, node, [claim]))
    expect(await disprove()).toBe(0)
    await rig.grant(job, 1)
    expect(await storedTask(rig.store, job.seq, 0)).toMatchObject({ losses: 1 })
    expect(await disprove(nodeId("node_00000000000000000000"))).toBe(0)
    expect(await disprove()).toBe(1)
    expect(await disprove()).toBe(0)
    expect(await storedTask(rig.store, job.seq, 0)).toMatchObject({ losses: 0 })
    expect(await rig.row(job)).toMatchObject({ losses: 0 })
  })

  test("losses are taken back five times for a task at the most: it ends whatever its nodes say", async () => {
    const job = await rig.queued(account, {})
    let [claim] = await rig.grant(job, 1)
    const takenBack: number[] = []
    while (claim !== undefined) {
      const lost = claim
      const attempt = rig.members.attempt(lost)
      if (!attempt) throw new Error("it is held")
      contact.giveUp([attempt])
      await clock.pass(100)
      claim = (await rig.grant(job, 1))[0]
      takenBack.push(await rig.store.write((tx) => disproveLosses(tx, rig.node, [lost])))
    }
    expect(takenBack).toEqual([1, 1, 1, 1, 1, 0, 0, 0, 0, 0])
    expect(await storedTask(rig.store, job.seq, 0)).toMatchObject({ state: "failed", losses: 5 })
  })

  test("a late result of a lost attempt is spent, kept as evidence and billed to nobody", async () => {
    const job = await rig.queued(account, {})
    await loseOften(job, 1, [rig.member], false)
    const { claim } = (await storedTask(rig.store, job.seq, 0)) ?? {}
    if (!claim) throw new Error("it was granted")
    const [second] = await rig.grant(job, 1)
    expect(await rig.report(claim)).toBe("spent")
    expect(await rig.report(claim)).toBe("spent")
    expect((await storedAttempt(rig.store, claim))?.itemDigest).toMatch(/^[0-9a-f]{64}$/)
    expect(await rig.report(second ?? claim)).toBe("stored")
    const charges = await rig.store.read((view) => view.all<{ claim: number }>("SELECT claim FROM charges"))
    expect(charges).toEqual([{ claim: second }])
  })

  async function kindOf(job: JobRow): Promise<string | undefined> {
    const row = await rig.store.read((view) =>
      view.get<{ failure_kind: string }>(
        "SELECT failure_kind FROM task_results WHERE task = (SELECT id FROM tasks WHERE id / 131072 = ?)",
        job.seq,
      ),
    )
    return row?.failure_kind
  }
})
