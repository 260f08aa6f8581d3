import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { expect, onTestFinished, test } from "vitest"
import { openOutbox, type Outbox } from "../../node-agent/outbox/outbox.ts"
import { createDelivery, UploadRefused, type Delivery } from "../../node-agent/tasks/deliver.ts"
import type { Clock } from "../../protocol/base/clock.ts"
import { silentLog } from "../../protocol/base/log.ts"
import { systemRandom } from "../../protocol/base/random.ts"
import type { ToCoordinator } from "../../protocol/wire/control.ts"
import { endAttempts } from "../support/ended-attempts.ts"

const LIFE_MS = 60_000
/** Its path stands for that of any file that is there. */
const FILES = [{ digest: "f".repeat(64), size: 1_000, path: "/" }]

test("architecture §5.4: every ended attempt is renewed while uploads advance, also those whose turn has not come", async () => {
  const rig = await startDelivery([1, 2, 3, 4, 5, 6])
  expect(rig.uploads.map(({ claim }) => claim)).toEqual([1, 2, 3, 4])
  rig.passes(LIFE_MS)
  expect(rig.delivery.advancing()).toEqual([1, 2, 3, 4, 5, 6])
  rig.uploads[2]?.sent(10)
  rig.passes(LIFE_MS)
  expect(rig.delivery.advancing()).toEqual([1, 2, 3, 4, 5, 6])
})

test("architecture §5.4: nothing is renewed once neither bytes nor verdicts advanced for a claim's life, until they do", async () => {
  const rig = await startDelivery([1, 2])
  rig.passes(LIFE_MS + 1)
  expect(rig.delivery.advancing()).toEqual([])
  rig.uploads[0]?.sent(1)
  expect(rig.delivery.advancing()).toEqual([1, 2])
  rig.passes(LIFE_MS + 1)
  rig.uploads[0]?.end()
  await rig.turns()
  expect(rig.delivery.advancing()).toEqual([1, 2])
  rig.passes(LIFE_MS + 1)
  expect(rig.delivery.advancing()).toEqual([])
  rig.delivery.verdicts([{ claim: 1, kind: "result", verdict: "stored", reason: null }])
  expect(rig.delivery.advancing()).toEqual([2])
})

test("a new connection gives every result a claim's life, and one that nobody waited before starts with a whole one", async () => {
  const rig = await startDelivery([1])
  rig.passes(LIFE_MS + 1)
  rig.delivery.lost()
  rig.delivery.welcome(LIFE_MS)
  expect(rig.delivery.advancing()).toEqual([1])
  rig.outbox.forget([1])
  rig.passes(LIFE_MS + 1)
  expect(rig.delivery.advancing()).toEqual([])
  endAttempts(rig.outbox, [2], FILES)
  expect(rig.delivery.advancing()).toEqual([2])
})

test("bytes that are sent again after a failed try are no advance, further ones are", async () => {
  const rig = await startDelivery([1])
  rig.uploads[0]?.sent(500)
  rig.uploads[0]?.fail(new Error("cut off"))
  await rig.turns()
  rig.passes(LIFE_MS + 1)
  await rig.turns()
  expect(rig.uploads).toHaveLength(2)
  rig.uploads[1]?.sent(500)
  expect(rig.delivery.advancing()).toEqual([])
  rig.uploads[1]?.sent(501)
  expect(rig.delivery.advancing()).toEqual([1])
})

test("four uploads go on at once, the others follow in order, and results without files pass them", async () => {
  const rig = await startDelivery([1, 2, 3, 4, 5, 6])
  endAttempts(rig.outbox, [7])
  rig.delivery.wake()
  await rig.turns()
  expect(rig.reported()).toEqual([7])
  expect(rig.uploads).toHaveLength(4)
  rig.uploads[3]?.end()
  await rig.turns()
  expect(rig.uploads.map(({ claim }) => claim)).toEqual([1, 2, 3, 4, 5])
  expect(rig.reported()).toEqual([7, 4])
  rig.uploads[0]?.fail(new UploadRefused("not wanted"))
  await rig.turns()
  expect(rig.uploads.at(-1)?.claim).toBe(6)
})

test("results wait for others that follow soon, a tenth of a second and eight wakes at most, and for nobody else", async () => {
  const rig = await startDelivery([])
  const end = async (claim: number, moreSoon: boolean): Promise<void> => {
    endAttempts(rig.outbox, [claim])
    rig.delivery.wake(moreSoon)
    await rig.turns()
  }
  await end(1, true)
  await end(2, true)
  rig.passes(99)
  await rig.turns()
  expect(rig.reported()).toEqual([])
  rig.passes(1)
  await rig.turns()
  expect(rig.reported()).toEqual([1, 2])
  rig.delivery.verdicts([1, 2].map((claim) => ({ claim, kind: "result", verdict: "stored", reason: null })))
  await end(3, true)
  await end(4, false)
  expect(rig.reported()).toEqual([1, 2, 3, 4])
  rig.delivery.verdicts([3, 4].map((claim) => ({ claim, kind: "result", verdict: "stored", reason: null })))
  for (let claim = 5; claim <= 11; claim++) await end(claim, true)
  expect(rig.reported()).toHaveLength(4)
  await end(12, true)
  expect(rig.reported()).toHaveLength(12)
})

test("a new connection hears at once what had waited for others", async () => {
  const rig = await startDelivery([])
  endAttempts(rig.outbox, [1])
  rig.delivery.wake(true)
  await rig.turns()
  expect(rig.reported()).toEqual([])
  rig.delivery.lost()
  rig.delivery.welcome(LIFE_MS)
  await rig.turns()
  expect(rig.reported()).toEqual([1])
})

test("a result that is wanted no more is neither uploaded again nor reported", async () => {
  const rig = await startDelivery([1, 2, 3, 4, 5])
  rig.outbox.forget([1, 2, 5])
  rig.uploads[0]?.fail(new Error("its file is gone"))
  rig.uploads[1]?.end()
  await rig.turns()
  rig.passes(LIFE_MS)
  await rig.turns()
  expect(rig.uploads.map(({ claim }) => claim)).toEqual([1, 2, 3, 4])
  expect(rig.reported()).toEqual([])
  expect(rig.delivery.advancing()).toEqual([3, 4])
})

test("issue 4: a result whose files are gone is given back, so that its task runs again, and is not tried for ever", async () => {
  const rig = await startDelivery([1, 2], [{ digest: "f".repeat(64), size: 1_000, path: "/nowhere" }])
  rig.uploads[0]?.fail(new Error("ENOENT"))
  await rig.turns()
  expect(rig.said.filter(({ type }) => type === "give_back")).toEqual([
    { type: "give_back", items: [{ claim: 1, reason: "the files of its result are gone from the node" }] },
  ])
  expect(rig.outbox.held().map(({ claim }) => claim)).toEqual([2])
  rig.passes(LIFE_MS)
  await rig.turns()
  expect(rig.uploads.map(({ claim }) => claim)).toEqual([1, 2])
})

interface Upload {
  claim: number
  sent: (bytes: number) => void
  end: () => void
  fail: (error: Error) => void
}

interface Rig {
  outbox: Outbox
  delivery: Delivery
  /** In the order in which they began. */
  uploads: Upload[]
  reported: () => number[]
  said: ToCoordinator[]
  passes: (ms: number) => void
  /** What was set off has happened. */
  turns: () => Promise<void>
}

/** Connected, with ended attempts that each have a file to upload. */
async function startDelivery(claims: number[], files = FILES): Promise<Rig> {
  const home = mkdtempSync(join(tmpdir(), "computalot-deliver-"))
  const outbox = openOutbox(join(home, "outbox.sqlite"), 0)
  endAttempts(outbox, claims, files)
  const uploads: Upload[] = []
  const said: ToCoordinator[] = []
  const { clock, passes } = steppedClock()
  const delivery = createDelivery({
    outbox,
    send: (message) => said.push(message),
    connected: () => true,
    upload: (claim, _file, signal, sent = () => {}) =>
      new Promise((end, fail) => {
        uploads.push({ claim, sent, end, fail })
        signal.addEventListener("abort", () => fail(signal.reason as Error), { once: true })
      }),
    discard: async () => {},
    clock,
    random: systemRandom,
    log: silentLog,
  })
  onTestFinished(async () => {
    await delivery[Symbol.asyncDispose]()
    outbox[Symbol.dispose]()
    rmSync(home, { recursive: true, force: true })
  })
  const turns = async (): Promise<void> => {
    for (let n = 0; n < 3; n++) await new Promise((later) => setImmediate(later))
  }
  delivery.welcome(LIFE_MS)
  await turns()
  const reports = () => said.flatMap((message) => (message.type === "report" ? message.items : []))
  return { outbox, delivery, uploads, reported: () => reports().map(({ claim }) => claim), said, passes, turns }
}

/** Stands still until it is told. */
function steppedClock(): { clock: Clock; passes: (ms: number) => void } {
  let nowMs = 0
  let timers: { atMs: number; run: () => void }[] = []
  const clock: Clock = {
    now: () => nowMs,
    monotonicMs: () => nowMs,
    after(delayMs, run) {
      const timer = { atMs: nowMs + delayMs, run }
      timers.push(timer)
      return { cancel: () => (timers = timers.filter((other) => other !== timer)) }
    },
  }
  return {
    clock,
    passes(ms) {
      nowMs += ms
      const due = timers.filter(({ atMs }) => atMs <= nowMs)
      timers = timers.filter(({ atMs }) => atMs > nowMs)
      for (const { run } of due) run()
    },
  }
}
