import { afterEach, beforeEach, describe, expect, test } from "vitest"
import { completed, does, FAILS, pair, probationOf, reports, rowOf, works } from "../support/hostile.ts"
import { startTestCoordinator, startWorker, type TestCoordinator, type Worker } from "../support/scripted-node.ts"

/**
 * Members with a valid certificate that misbehave, beside a good one (architecture §5.7): each costs at most its own work,
 * the jobs complete on the good one, and `GET /admin/nodes` says why the bad one gets less, or nothing.
 */

let rig: TestCoordinator
beforeEach(async () => {
  rig = await startTestCoordinator({ COMPUTALOT_CLAIM_LIFETIME_S: "2" })
})
afterEach(async () => rig[Symbol.asyncDispose]())

/** What a node may do with three grants instead of running them. */
const WASTES: [string, (node: Worker) => Promise<void>][] = [
  ["never answers a grant", () => Promise.resolve()],
  [
    "takes tasks and, without a restart, forgets them",
    async (node) => {
      await node.say({ type: "accept", claims: node.granted.map(({ claim }) => claim) })
      await node.heartbeat(...node.granted.map(({ claim }) => claim))
      await expect
        .poll(() => node.heard.some((one) => one.type === "heartbeat_reply" && one.renewed.length === 3))
        .toBe(true)
      await node.connect()
    },
  ],
]

describe("work", () => {
  test("a node that fails what another completes: probation, one attempt at a time, then expelled", async () => {
    const { bad, good } = await pair(rig)
    using _good = does(good, works(good))
    using _bad = does(bad, reports(bad, FAILS))
    const jobs: string[] = []
    const submitted = async (): Promise<void> => {
      const job = await rig.submit({ max_retries: 1 })
      jobs.push(job)
      await completed(rig, job)
    }
    while (jobs.length < 3) await submitted()
    await expect.poll(() => probationOf(rig, bad)).toMatch(/3 jobs within a day/)
    expect(await rowOf(rig, good)).toMatchObject({ probation: null, state: "active" })
    while (jobs.length < 8) await submitted()
    await expect.poll(async () => (await rowOf(rig, bad))["state"]).toBe("revoked")
    expect(String((await rowOf(rig, bad))["state_reason"])).toMatch(/^expelled: 5 further jobs/)
    await expect.poll(() => bad.streamEnded).toBe(true)
    await submitted()
    expect(bad.granted).toHaveLength(8)
  })

  test("a task that failed is tried on another machine, even while that one is busy; alone it is tried again", async () => {
    const { bad, good } = await pair(rig)
    const busy = await rig.submit({ requirements: { cpu: 2 } })
    const long = await bad.next()
    await bad.report(long)
    await completed(rig, busy)
    const occupying = await rig.submit({ requirements: { cpu: 2 } })
    // The first takes this one, so that the next goes to the other.
    const held = await bad.next()
    const job = await rig.submit({ max_retries: 1, requirements: { cpu: 2 } })
    const failing = await good.next()
    await good.report(failing, FAILS)
    good.mine.delete(failing)
    await new Promise((resolve) => setTimeout(resolve, 3_000))
    expect(good.granted).toHaveLength(1)
    await bad.report(held)
    await completed(rig, occupying)
    const retried = await bad.next()
    await bad.report(retried, { ...FAILS, failure_kind: "sandbox_error" })
    await bad.die()
    // Nobody else is there: the machine where it failed first is as good as any.
    const last = await good.next()
    await good.report(last)
    await completed(rig, job)
  })

  test("a node on probation holds one attempt at a time; PUT active lifts it, and what it did counts no more", async () => {
    const { bad, good } = await pair(rig)
    for (let n = 0; n < 6; n++) {
      await bad.sayBytes(new TextEncoder().encode("nonsense")).catch(() => {})
      await expect.poll(() => bad.streamEnded).toBe(true)
      await bad.connect()
    }
    await expect.poll(() => probationOf(rig, bad)).toMatch(/a malformed control frame/)
    await good.die()
    await bad.claim()
    const job = await rig.submit({ fan_out: { items: [{ n: 1 }, { n: 2 }, { n: 3 }] } })
    const first = await bad.next()
    await bad.report(first)
    const second = await bad.next()
    expect(bad.granted).toHaveLength(2)
    const put = await rig.call("PUT", `/admin/nodes/${bad.id}`, { state: "active", reason: "repaired" })
    expect(put.get("node", "probation")).toBeNull()
    await bad.claim()
    const third = await bad.next()
    for (const claim of [second, third]) await bad.report(claim)
    await completed(rig, job)
    expect(await probationOf(rig, bad)).toBeUndefined()
  })

  test("a node that takes tasks and never runs them: they run elsewhere, unbilled there, and it rests", async () => {
    const bad = await startWorker(rig)
    using _bad = does(bad, (claim) => bad.say({ type: "accept", claims: [claim] }))
    const jobs = [await rig.submit(), await rig.submit(), await rig.submit()]
    await expect.poll(() => bad.granted.length).toBeGreaterThanOrEqual(2)
    const good = await startWorker(rig)
    using _good = does(good, works(good))
    await expect
      .poll(
        async () => {
          jobs.push(await rig.submit())
          return await probationOf(rig, bad)
        },
        { timeout: 40_000, interval: 500 },
      )
      .toMatch(/taken and never run/)
    await completed(rig, ...jobs)
    const entries = (await rig.as("GET", "/account/ledger?limit=500")).get("entries") as Record<string, unknown>[]
    const debits = entries.filter(({ type }) => type === "debit")
    expect(debits).toHaveLength(jobs.length)
    expect(new Set(debits.map(({ job_id }) => job_id))).toEqual(new Set(jobs))
    // What the good one ran, and nothing beside it.
    expect(new Set(debits.map(({ amount_usd }) => amount_usd)).size).toBe(1)
    expect(await rowOf(rig, good)).toMatchObject({ probation: null })
    expect((await rig.call("GET", "/admin/audit")).json).toMatchObject({ ok: true })
  })

  for (const [how, act] of WASTES) {
    test(`a node that ${how}: its tasks run elsewhere long before its claims end, and it is on probation`, async () => {
      await rig[Symbol.asyncDispose]()
      rig = await startTestCoordinator()
      const bad = await startWorker(rig, { cpu: 4 })
      const jobs = [await rig.submit(), await rig.submit(), await rig.submit()]
      await expect.poll(() => bad.granted.length).toBe(3)
      await act(bad)
      const good = await startWorker(rig)
      using _good = does(good, works(good))
      await completed(rig, ...jobs)
      await expect.poll(() => probationOf(rig, bad)).toMatch(/taken and never run/)
      expect(await rowOf(rig, good)).toMatchObject({ probation: null })
    })
  }

  test("a node whose reports name bytes that it never sent: nothing of them is stored or billed", async () => {
    const { bad, good } = await pair(rig)
    const missing = { name: null, filename: "f", digest: "a".repeat(64), size: 3, content_type: "text/plain" }
    using _bad = does(bad, reports(bad, { artifacts: [missing] }))
    using _good = does(good, works(good))
    const jobs: string[] = []
    await expect
      .poll(
        async () => {
          const job = await rig.submit()
          jobs.push(job)
          await completed(rig, job)
          return await probationOf(rig, bad)
        },
        { timeout: 50_000, interval: 500 },
      )
      .toMatch(/jobs within a day/)
    for (const job of jobs) {
      const artifacts = await rig.as("GET", `/jobs/${job}/artifacts`)
      expect(artifacts.get("artifacts") ?? []).toEqual([])
    }
    expect((await rig.call("GET", "/admin/audit")).json).toMatchObject({ ok: true })
  })

  test("a client whose program fails here and there puts nobody on probation", async () => {
    const { bad: one, good: other } = await pair(rig)
    // Each fails every second task that it gets, whoever asks.
    const flaky = (node: Worker): ((claim: number) => Promise<void>) => {
      let n = 0
      return async (claim) => (n++ % 2 === 0 ? reports(node, FAILS)(claim) : works(node)(claim))
    }
    using _one = does(one, flaky(one))
    using _other = does(other, flaky(other))
    const items = Array.from({ length: 4 }, (_, n) => ({ n }))
    for (let n = 0; n < 6; n++) await completed(rig, await rig.submit({ fan_out: { items }, max_retries: 8 }))
    await new Promise((resolve) => setTimeout(resolve, 2_500))
    expect([await probationOf(rig, one), await probationOf(rig, other)]).toEqual([undefined, undefined])
  })
})

describe("cloned identity (architecture §5.1)", () => {
  test("two boots that alternate: nothing new, the newer keeps what it names, the older is turned away; PUT active ends it", async () => {
    const node = await startWorker(rig)
    const job = await rig.submit()
    const claim = await node.next()
    const attempts = [{ claim, state: "running" as const }]
    await node.connect({ boot_id: "boot-2" })
    await node.connect({ boot_id: "boot-1", attempts })
    expect(await rowOf(rig, node)).toMatchObject({ state_reason: null })
    expect(await node.connect({ boot_id: "boot-2", attempts })).toMatchObject({
      attempts: [{ claim, verdict: "keep" }],
    })
    await node.claim()
    expect(String((await rowOf(rig, node))["state_reason"])).toContain("cloned identity")
    const waiting = await rig.submit()
    await node.report(claim)
    await completed(rig, job)
    expect(await node.connect({ boot_id: "boot-1" })).toMatchObject({ type: "refusal", reason: "cloned" })
    await new Promise((resolve) => setTimeout(resolve, 300))
    expect(node.granted).toHaveLength(1)
    // The older machine comes in when the newer is gone, and still gets nothing.
    await expect.poll(async () => (await node.connect({ boot_id: "boot-2" })).type).toBe("welcome")
    await node.claim()
    const put = await rig.call("PUT", `/admin/nodes/${node.id}`, { state: "active", reason: "the copy is off" })
    expect(put.get("node", "state_reason")).toBe("the copy is off")
    const next = await node.next()
    await node.report(next)
    await completed(rig, waiting)
  })

  test("the newer one that lost its power keeps its stream open, and does not keep the older one out", async () => {
    const node = await rig.node()
    for (const boot_id of ["boot-1", "boot-2", "boot-1", "boot-2"]) await node.connect({ boot_id })
    expect(await node.connect({ boot_id: "boot-1" })).toMatchObject({ type: "refusal", reason: "cloned" })
    // Nothing is said on any stream: four heartbeats later the newer one has lost contact.
    await new Promise((resolve) => setTimeout(resolve, 1_500))
    expect(await node.connect({ boot_id: "boot-1" })).toMatchObject({ type: "welcome" })
  })

  test("a restart of the coordinator does not forget it", async () => {
    const node = await startWorker(rig)
    for (const boot_id of ["boot-2", "boot-1", "boot-2"]) await node.connect({ boot_id })
    expect(String((await rowOf(rig, node))["state_reason"])).toContain("cloned identity")
    await rig.restart()
    expect(String((await rowOf(rig, node))["state_reason"])).toContain("cloned identity")
  })
})
