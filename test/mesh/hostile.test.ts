import { once } from "node:events"
import { Worker as Thread } from "node:worker_threads"
import { afterEach, beforeEach, describe, expect, test } from "vitest"
import { encodeAdvert } from "../../protocol/gossip/node-advert.ts"
import { ADVERTS_TOPIC } from "../../protocol/gossip/topics.ts"
import { accept } from "../../protocol/gossip/verdict.ts"
import { systemRandom } from "../../protocol/base/random.ts"
import { bootId, nodeId, peerId } from "../../protocol/domain/ids.ts"
import { identityFromSeed } from "../../protocol/mesh/identity.ts"
import { CONTENT_PROTOCOL } from "../../protocol/wire/content.ts"
import { CONTROL_PROTOCOL, encodeMessage, type ResultItem, type ToCoordinator } from "../../protocol/wire/control.ts"
import type { Flood } from "../support/flood-worker.ts"
import {
  enrol,
  HELLO,
  startTestCoordinator,
  startWorker,
  type ScriptedNode,
  type TestCoordinator,
  type Worker,
} from "../support/scripted-node.ts"

/**
 * Members with a valid certificate that misbehave, beside a good one (architecture §5.7): each costs at most its own work,
 * the jobs complete on the good one, and `GET /admin/nodes` says why the bad one gets less, or nothing.
 */

let rig: TestCoordinator
beforeEach(async () => {
  rig = await startTestCoordinator({ COMPUTALOT_CLAIM_LIFETIME_S: "2" })
})
afterEach(async () => rig[Symbol.asyncDispose]())

const statusOf = async (job: string): Promise<unknown> => (await rig.job(job))["status"]
const rowOf = async ({ id }: ScriptedNode): Promise<Record<string, unknown>> => {
  const nodes = (await rig.call("GET", "/admin/nodes")).get("nodes") as Record<string, unknown>[]
  return nodes.find((row) => row["id"] === id) ?? {}
}
const probationOf = async (node: ScriptedNode): Promise<string | undefined> =>
  ((await rowOf(node))["probation"] as { reason: string } | null)?.reason
const completed = async (...jobs: string[]): Promise<void> => {
  for (const job of jobs) await expect.poll(() => statusOf(job), { timeout: 40_000 }).toBe("completed")
}

/** Does the same with every task it is granted. */
function does(node: Worker, act: (claim: number) => Promise<void>): Disposable {
  const seen = new Set<number>()
  const timer = setInterval(() => {
    for (const { claim } of node.granted) {
      if (seen.has(claim)) continue
      seen.add(claim)
      void act(claim).catch(() => {})
    }
  }, 10)
  return { [Symbol.dispose]: () => clearInterval(timer) }
}

const RUNTIME_MS = 50
const works =
  (node: Worker) =>
  async (claim: number): Promise<void> => {
    node.mine.add(claim)
    await node.say({ type: "accept", claims: [claim] })
    await node.say({ type: "started", claims: [claim] })
    await new Promise((resolve) => setTimeout(resolve, RUNTIME_MS + 10))
    await node.report(claim, { runtime_ms: RUNTIME_MS })
    node.mine.delete(claim)
  }

const reports =
  (node: Worker, item: Partial<ResultItem>) =>
  async (claim: number): Promise<void> => {
    await node.say({ type: "accept", claims: [claim] })
    await node.report(claim, item)
  }

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

const FAILS: Partial<ResultItem> = { failure_kind: "exit_code", exit_code: 1, result: null }

const FULL = "x".repeat(64 * 1024)
const FLOODS: [string, ToCoordinator][] = [
  [
    "frames just under the limit",
    {
      type: "progress",
      items: [1, 2, 3].map((claim) => ({ claim, progress: FULL, output_tail: FULL.slice(0, 16_384) })),
    },
  ],
  ["tiny frames", { type: "heartbeat", n: 1, attempts: [] }],
  [
    "standing claims",
    { type: "claim", open: true, draining: false, capacity: { ...HELLO.capacity, cpu: 0 }, warm: [], credit: 0 },
  ],
]
/** Half of the seconds that a flood lasts here at most, what may be taken at once, and what lies in the stream's window beside. */
const MOST_TAKEN_MS = 0.5 * 10_000 + 500

/** How long heartbeats and requests of others take to be answered. */
async function answerTimes(node: Worker, ms: number): Promise<Answered> {
  const [heartbeats, requests]: [number[], number[]] = [[], []]
  const until = performance.now() + ms
  while (performance.now() < until) {
    const n = Math.floor(performance.now() * 1_000)
    const beganMs = performance.now()
    await node.say({ type: "heartbeat", n, attempts: [] })
    while (!node.heard.some((one) => one.type === "heartbeat_reply" && one.n === n)) {
      await new Promise((resolve) => setTimeout(resolve, 1))
    }
    heartbeats.push(performance.now() - beganMs)
    const askedMs = performance.now()
    await rig.as("GET", "/jobs?limit=1")
    requests.push(performance.now() - askedMs)
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
  return { heartbeat: quantiles(heartbeats), http: quantiles(requests) }
}

interface Answered {
  heartbeat: { p90Ms: number; p99Ms: number }
  http: { p90Ms: number; p99Ms: number }
}

function quantiles(times: number[]): { p90Ms: number; p99Ms: number } {
  const sorted = times.toSorted((a, b) => a - b)
  const at = (share: number): number => sorted[Math.floor(sorted.length * share)] ?? 0
  return { p90Ms: at(0.9), p99Ms: at(0.99) }
}

async function startFlood(message: ToCoordinator): Promise<AsyncDisposable & { stop(): Promise<Flooded> }> {
  const seed = systemRandom.bytes(32)
  const enrolled = await enrol(rig, await identityFromSeed(seed), await rig.joinToken())
  const flood: Flood = {
    seed,
    certificate: String(enrolled.get("certificate")),
    coordinator: peerId(rig.coordinator.peerId),
    address: rig.coordinator.meshAddresses[0] ?? "",
    hello: HELLO,
    message,
  }
  const worker = new Thread(new URL("../support/flood-worker.ts", import.meta.url), { workerData: flood })
  await once(worker, "message")
  return {
    async stop() {
      worker.postMessage("stop")
      const [flooded] = (await once(worker, "message")) as [Flooded]
      return flooded
    },
    async [Symbol.asyncDispose]() {
      await worker.terminate()
    },
  }
}

interface Flooded {
  sent: number
  bytes: number
}

/** The bad one is asked first: it has been there for longer. */
async function pair(): Promise<{ bad: Worker; good: Worker }> {
  return { bad: await startWorker(rig), good: await startWorker(rig) }
}

describe("work", () => {
  test("a node that fails what another completes: probation, one attempt at a time, then expelled", async () => {
    const { bad, good } = await pair()
    using _good = does(good, works(good))
    using _bad = does(bad, reports(bad, FAILS))
    const jobs: string[] = []
    const submitted = async (): Promise<void> => {
      const job = await rig.submit({ max_retries: 1 })
      jobs.push(job)
      await completed(job)
    }
    while (jobs.length < 3) await submitted()
    await expect.poll(() => probationOf(bad)).toMatch(/3 jobs within a day/)
    expect(await rowOf(good)).toMatchObject({ probation: null, state: "active" })
    while (jobs.length < 8) await submitted()
    await expect.poll(async () => (await rowOf(bad))["state"]).toBe("revoked")
    expect(String((await rowOf(bad))["state_reason"])).toMatch(/^expelled: 5 further jobs/)
    await expect.poll(() => bad.streamEnded).toBe(true)
    await submitted()
    expect(bad.granted).toHaveLength(8)
  })

  test("a task that failed is tried on another machine, even while that one is busy; alone it is tried again", async () => {
    const { bad, good } = await pair()
    const busy = await rig.submit({ requirements: { cpu: 2 } })
    const long = await bad.next()
    await bad.report(long)
    await completed(busy)
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
    await completed(occupying)
    const retried = await bad.next()
    await bad.report(retried, { ...FAILS, failure_kind: "sandbox_error" })
    await bad.die()
    // Nobody else is there: the machine where it failed first is as good as any.
    const last = await good.next()
    await good.report(last)
    await completed(job)
  })

  test("a node on probation holds one attempt at a time; PUT active lifts it, and what it did counts no more", async () => {
    const { bad, good } = await pair()
    for (let n = 0; n < 6; n++) {
      await bad.sayBytes(new TextEncoder().encode("nonsense")).catch(() => {})
      await expect.poll(() => bad.streamEnded).toBe(true)
      await bad.connect()
    }
    await expect.poll(() => probationOf(bad)).toMatch(/a malformed control frame/)
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
    await completed(job)
    expect(await probationOf(bad)).toBeUndefined()
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
          return await probationOf(bad)
        },
        { timeout: 40_000, interval: 500 },
      )
      .toMatch(/taken and never run/)
    await completed(...jobs)
    const entries = (await rig.as("GET", "/account/ledger?limit=500")).get("entries") as Record<string, unknown>[]
    const debits = entries.filter(({ type }) => type === "debit")
    expect(debits).toHaveLength(jobs.length)
    expect(new Set(debits.map(({ job_id }) => job_id))).toEqual(new Set(jobs))
    // What the good one ran, and nothing beside it.
    expect(new Set(debits.map(({ amount_usd }) => amount_usd)).size).toBe(1)
    expect(await rowOf(good)).toMatchObject({ probation: null })
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
      await completed(...jobs)
      await expect.poll(() => probationOf(bad)).toMatch(/taken and never run/)
      expect(await rowOf(good)).toMatchObject({ probation: null })
    })
  }

  test("a node whose reports name bytes that it never sent: nothing of them is stored or billed", async () => {
    const { bad, good } = await pair()
    const missing = { name: null, filename: "f", digest: "a".repeat(64), size: 3, content_type: "text/plain" }
    using _bad = does(bad, reports(bad, { artifacts: [missing] }))
    using _good = does(good, works(good))
    const jobs: string[] = []
    await expect
      .poll(
        async () => {
          const job = await rig.submit()
          jobs.push(job)
          await completed(job)
          return await probationOf(bad)
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
    const { bad: one, good: other } = await pair()
    // Each fails every second task that it gets, whoever asks.
    const flaky = (node: Worker): ((claim: number) => Promise<void>) => {
      let n = 0
      return async (claim) => (n++ % 2 === 0 ? reports(node, FAILS)(claim) : works(node)(claim))
    }
    using _one = does(one, flaky(one))
    using _other = does(other, flaky(other))
    const items = Array.from({ length: 4 }, (_, n) => ({ n }))
    for (let n = 0; n < 6; n++) await completed(await rig.submit({ fan_out: { items }, max_retries: 8 }))
    await new Promise((resolve) => setTimeout(resolve, 2_500))
    expect([await probationOf(one), await probationOf(other)]).toEqual([undefined, undefined])
  })
})

describe("the protocol", () => {
  test("a member that keeps breaking it is expelled with the reason, and a good one never notices", async () => {
    const { bad, good } = await pair()
    for (let n = 0; n < 40; n++) {
      if ((await rowOf(bad))["state"] === "revoked") break
      if (bad.streamEnded) await bad.connect().catch(() => undefined)
      await bad.sayBytes(new TextEncoder().encode('{"type":"nonsense"}')).catch(() => {})
      await expect.poll(() => bad.streamEnded).toBe(true)
    }
    expect(await rowOf(bad)).toMatchObject({
      state: "revoked",
      state_reason: expect.stringContaining("a malformed control frame"),
    })
    expect(good.streamEnded).toBe(false)
    const job = await rig.submit()
    const claim = await good.next()
    await good.report(claim)
    await completed(job)
  })

  test("a frame over the limit, and reports of attempts that it never had, are offences", async () => {
    const bad = await startWorker(rig)
    const peer = await bad.mesh.dial(rig.coordinator.meshAddresses[0] ?? "")
    const wide = { ...CONTROL_PROTOCOL, largestFrameBytes: 2 ** 20 }
    for (let n = 0; n < 5; n++) {
      const stream = await bad.mesh.openStream(peer, wide)
      await stream.send(encodeMessage(HELLO))
      await stream.send(new Uint8Array(2 ** 19))
      await expect.poll(() => stream.ended.aborted).toBe(true)
    }
    await expect.poll(() => probationOf(bad)).toMatch(/a control frame over the limit/)

    const other = await startWorker(rig)
    for (let n = 0; n < 5 * 256; n++) await other.report(n + 1)
    await expect.poll(() => probationOf(other)).toMatch(/attempts that it never had/)
  })

  for (const [what, message] of FLOODS) {
    test(`${what} at full speed: others are heard and answered as before, and the flooder waits for itself`, async () => {
      const good = await startWorker(rig)
      const quiet = await answerTimes(good, 1_500)
      await using flood = await startFlood(message)
      const loud = await answerTimes(good, 4_000)
      const { sent, bytes } = await flood.stop()
      if (process.env["COMPUTALOT_TEST_FIGURES"] === "1") console.log(what, { quiet, loud, sent, bytes })
      // The machine is shared, and the flooder with its tests takes half of it: without a budget it is seconds.
      expect(loud.heartbeat.p90Ms).toBeLessThan(1_000)
      expect(loud.http.p90Ms).toBeLessThan(1_000)
      expect(sent).toBeLessThan(MOST_TAKEN_MS / 0.02)
      expect(bytes).toBeLessThan(MOST_TAKEN_MS * 250_000)
      const job = await rig.submit()
      const claim = await good.next()
      await good.report(claim)
      await completed(job)
    })
  }

  test("a node that says it lends more than any machine has is refused as malformed", async () => {
    const node = await rig.node()
    const capacity = { ...HELLO.capacity, cpu: 1e9 }
    expect(await node.connect({ capacity })).toMatchObject({ type: "refusal", reason: "malformed" })
    expect(await node.connect()).toMatchObject({ type: "welcome" })
  })
})

describe("the mesh", () => {
  test("a flood of adverts is not relayed, and ends with the flooder", async () => {
    const [bad, good, listener] = [await rig.node(), await rig.node(), await rig.node()]
    for (const node of [bad, good, listener]) await node.connect()
    const heard: string[] = []
    listener.mesh.subscribe(ADVERTS_TOPIC, ({ from }) => {
      heard.push(from)
      return accept
    })
    for (const node of [bad, good]) node.mesh.subscribe(ADVERTS_TOPIC, () => accept)
    const advert = (node: ScriptedNode, seq: number): Promise<unknown> =>
      node.mesh.publish(
        ADVERTS_TOPIC,
        encodeAdvert({
          nodeId: nodeId(node.id),
          certificate: node.certificate,
          bootId: bootId("boot-1"),
          seq,
          issuedAt: Date.now(),
          intervalMs: 10_000,
          agentVersion: "1",
          protocolVersion: 1,
          draining: false,
          capacity: { cpu: 1, memoryMb: 1, storageGb: 1, gpus: [] },
          drivers: [],
          warm: [],
          addresses: [],
        }),
      )
    let seq = 0
    const heardOf = (node: ScriptedNode): number => heard.filter((from) => from === node.identity.peerId).length
    await expect
      .poll(
        async () => {
          await advert(good, ++seq)
          return heardOf(good)
        },
        { interval: 2_000 },
      )
      .toBeGreaterThan(0)
    let sent = 0
    while (sent < 4_000 && (await rowOf(bad))["state"] !== "revoked") {
      for (let n = 0; n < 100; n++) await advert(bad, ++sent)
      await new Promise((resolve) => setTimeout(resolve, 50))
    }
    expect(await rowOf(bad)).toMatchObject({
      state: "revoked",
      state_reason: expect.stringContaining("a flood of adverts"),
    })
    // What came through before: the allowance, not the flood.
    expect(heardOf(bad)).toBeLessThan(60)
    expect(sent).toBeGreaterThan(800)
    const before = heardOf(good)
    await expect
      .poll(
        async () => {
          await advert(good, ++seq)
          return heardOf(good)
        },
        { interval: 2_000 },
      )
      .toBeGreaterThan(before)
  })

  test("complaints about a peer's content count from three nodes, and one liar's word is nothing", async () => {
    const accused = await startWorker(rig)
    const others = [await rig.node(), await rig.node(), await rig.node(), await rig.node()]
    for (const node of others) await node.connect()
    const complain = (node: ScriptedNode): Promise<void> =>
      node.say({ type: "complaint", peer_id: accused.identity.peerId, kind: "content" })
    const heartbeat = async (node: ScriptedNode): Promise<void> => {
      await node.heartbeat()
      await expect.poll(() => node.heard.some(({ type }) => type === "heartbeat_reply")).toBe(true)
    }
    const [first, second, third] = others
    if (!first || !second || !third) throw new Error("there are four")
    for (let n = 0; n < 10; n++) await complain(first)
    await complain(second)
    await complain(accused)
    await heartbeat(second)
    await heartbeat(accused)
    await new Promise((resolve) => setTimeout(resolve, 500))
    expect(await probationOf(accused)).toBeUndefined()
    await complain(third)
    await expect.poll(() => probationOf(accused)).toMatch(/3 other nodes/)
    expect(await rowOf(first)).toMatchObject({ probation: null })
  })

  test("streams that are held open cost others nothing: no peer has more of them than its few", async () => {
    const { bad, good } = await pair()
    const peer = await bad.mesh.dial(rig.coordinator.meshAddresses[0] ?? "")
    const openOf = async (protocol: typeof CONTROL_PROTOCOL): Promise<() => number> => {
      const tries = Array.from({ length: 40 }, () => bad.mesh.openStream(peer, { ...protocol, streamsPerPeer: 100 }))
      const held = await Promise.allSettled(tries)
      return () => held.filter((one) => one.status === "fulfilled" && !one.value.ended.aborted).length
    }
    const [control, content] = [await openOf(CONTROL_PROTOCOL), await openOf(CONTENT_PROTOCOL)]
    await expect.poll(control).toBeLessThanOrEqual(CONTROL_PROTOCOL.streamsPerPeer)
    await expect.poll(content).toBeLessThanOrEqual(CONTENT_PROTOCOL.streamsPerPeer)
    // Those that say nothing are ended: ten seconds without a request for content, fifteen without a hello.
    await expect.poll(() => control() + content(), { timeout: 30_000 }).toBe(0)
    expect(good.streamEnded).toBe(false)
    const job = await rig.submit()
    using _bad = does(bad, works(bad))
    using _good = does(good, works(good))
    await completed(job)
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
    expect(await rowOf(node)).toMatchObject({ state_reason: null })
    expect(await node.connect({ boot_id: "boot-2", attempts })).toMatchObject({
      attempts: [{ claim, verdict: "keep" }],
    })
    await node.claim()
    expect(String((await rowOf(node))["state_reason"])).toContain("cloned identity")
    const waiting = await rig.submit()
    await node.report(claim)
    await completed(job)
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
    await completed(waiting)
  })

  test("a restart of the coordinator does not forget it", async () => {
    const node = await startWorker(rig)
    for (const boot_id of ["boot-2", "boot-1", "boot-2"]) await node.connect({ boot_id })
    expect(String((await rowOf(node))["state_reason"])).toContain("cloned identity")
    await rig.restart()
    expect(String((await rowOf(node))["state_reason"])).toContain("cloned identity")
  })
})
