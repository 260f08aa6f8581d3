import { appendFileSync, closeSync, existsSync, mkdirSync, mkdtempSync, openSync, rmSync, truncateSync } from "node:fs"
import { readdirSync, symlinkSync, utimesSync, writeFileSync, writeSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterEach, beforeEach, expect, test } from "vitest"
import { createHasher } from "../../node-agent/cache/hasher.ts"
import { createCheckpoints, type FollowedCheckpoints } from "../../node-agent/tasks/checkpoints.ts"
import { systemClock } from "../../protocol/base/clock.ts"
import { silentLog } from "../../protocol/base/log.ts"
import { systemRandom } from "../../protocol/base/random.ts"
import { claimNumber } from "../../protocol/domain/ids.ts"
import { LARGEST_CHECKPOINT_BYTES } from "../../protocol/domain/runner.ts"
import type { ToCoordinator } from "../../protocol/wire/control.ts"
import { startCheckpointRig, type CheckpointRig } from "../support/checkpoints.ts"

/** The node's side of checkpoints, beside a real outbox and real files. */

const CLAIM = claimNumber(7)
const hasher = createHasher(systemClock)
let rig: CheckpointRig
let dir: string
let artifacts: string
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "computalot-left-"))
  artifacts = join(dir, "disk", "artifacts")
  mkdirSync(artifacts, { recursive: true })
  rig = startCheckpointRig({
    hasher,
    blobs: () => {
      throw new Error("nothing is resumed here")
    },
  })
})
afterEach(async () => {
  await rig[Symbol.asyncDispose]()
  rmSync(dir, { recursive: true, force: true })
})

const follow = (checkpoints = rig.checkpoints): FollowedCheckpoints =>
  checkpoints.follow({ claim: CLAIM, dir, roots: [{ inside: artifacts, host: artifacts }] })
const line = (step: number, path?: string): string =>
  JSON.stringify({ step, checkpoint: { step, ...(path === undefined ? {} : { path }) } })
const numbers = (): number[] => rig.items().map(({ n }) => n)
const pending = () => rig.outbox.checkpoint(CLAIM)

test("what is not answered is sent again after a welcome, and by the next agent; output that is read again takes nothing twice", async () => {
  rig.answering = false
  writeFileSync(join(artifacts, "a"), "first")
  const one = follow()
  one.take(line(1, "a"), 0)
  await expect.poll(numbers).toEqual([1])
  rig.checkpoints.welcome()
  expect(numbers()).toEqual([1, 1])
  // kill -9: another agent opens the same outbox, reads the same output from its start and then a further line.
  await rig.checkpoints[Symbol.asyncDispose]()
  const said: ToCoordinator[] = []
  const uploaded: string[] = []
  await using later = createCheckpoints({
    outbox: rig.outbox,
    hasher,
    send: (message) => said.push(message),
    upload: async (_, { digest }) => void uploaded.push(digest),
    clock: systemClock,
    random: systemRandom,
    log: silentLog,
  })
  writeFileSync(join(artifacts, "a"), "overwritten")
  const again = follow(later)
  again.take(line(1, "a"), 0)
  await expect.poll(() => said).toHaveLength(1)
  expect(said[0]).toEqual({ type: "checkpoint", item: rig.items()[0] })
  expect(uploaded).toEqual([...rig.uploads.keys()])
  later.verdicts([{ claim: CLAIM, kind: "checkpoint", n: 1, verdict: "stored", reason: null }])
  await expect.poll(pending).toBe(null)
  again.take(line(1, "a"), 0)
  again.take(line(2), 40)
  await expect.poll(() => said.length).toBe(2)
  expect(said[1]).toMatchObject({ item: { n: 41 } })
  expect(await again.end(null, 80)).toMatchObject({ item: { n: 41 } })
})

test("an upload that hangs is given up at the next welcome and tried again", async () => {
  rig.hanging = true
  writeFileSync(join(artifacts, "a"), "first")
  const one = follow()
  one.take(line(1, "a"), 0)
  await expect.poll(() => rig.hung).toBe(1)
  rig.hanging = false
  expect(numbers()).toEqual([])
  rig.checkpoints.welcome()
  await expect.poll(numbers).toEqual([1])
  expect([...rig.uploads.values()].map(String)).toEqual(["first"])
  one[Symbol.dispose]()
})

test("the attempt's end carries what is not answered, a result's checkpoint before a line's; what is answered is not kept", async () => {
  const answered = follow()
  answered.take(line(1), 0)
  await expect.poll(numbers).toEqual([1])
  await expect.poll(pending).toBe(null)
  expect(await answered.end(null, 50)).toBe(null)
  const waiting = follow()
  waiting.take(line(2), 50)
  waiting.take(line(3), 90)
  writeFileSync(join(artifacts, "end"), "at the end")
  const end = await waiting.end('{"step":4,"path":"end"}', 200)
  expect(end).toMatchObject({ item: { n: 201, state: '{"step":4,"path":"end"}', line: "{}", file: { size: 10 } } })
  expect(readdirSync(join(dir, "checkpoints"))).toEqual(["201"])
  rig.outbox.forget([CLAIM])
  expect(pending()).toBe(null)
  expect(rig.outbox.checkpointsUpto(CLAIM)).toBe(0)
})

test("the latest wins: of a thousand at once two are sent, and copies of the others are not kept", async () => {
  writeFileSync(join(artifacts, "a"), "x")
  const one = follow()
  for (let step = 0; step < 1_000; step++) one.take(line(step, "a"), step * 40)
  await expect.poll(() => numbers().at(-1), { timeout: 10_000 }).toBe(999 * 40 + 1)
  expect(numbers().length).toBeLessThanOrEqual(3)
  await expect.poll(() => readdirSync(join(dir, "checkpoints"))).toEqual([])
  expect(await one.end(null, 40_000)).toBe(null)
})

test("a file that is written meanwhile is never published torn", async () => {
  const size = 16 * 1024 * 1024
  const path = join(artifacts, "a")
  writeFileSync(path, Buffer.alloc(size, "a"))
  const file = openSync(path, "r+")
  let generation = 0
  const writing = setInterval(() => {
    writeSync(
      file,
      Buffer.alloc(size / 16, "a".charCodeAt(0) + (generation++ % 26)),
      0,
      size / 16,
      (generation % 16) * (size / 16),
    )
  }, 1)
  const one = follow()
  one.take(line(1, "a"), 0)
  await expect.poll(numbers).toEqual([1])
  clearInterval(writing)
  expect(rig.items()[0]).toMatchObject({ file: null, problem: { status: "failed" } })
  expect(rig.items()[0]?.problem?.reason).toContain("changed before it was copied")
  closeSync(file)
  one.take(line(2, "a"), 100)
  await expect.poll(() => rig.items().at(-1)).toMatchObject({ n: 101, file: { size } })
  one[Symbol.dispose]()
})

test("a file that was written after its line is another checkpoint's: the line that tells of it is taken instead", async () => {
  writeFileSync(join(artifacts, "a"), "of step 2")
  // As if the first line had been read before that write.
  utimesSync(join(artifacts, "a"), new Date(), new Date(Date.now() + 1_000))
  const one = follow()
  one.take(line(1, "a"), 0)
  await new Promise((resolve) => setTimeout(resolve, 150))
  utimesSync(join(artifacts, "a"), new Date(), new Date())
  one.take(line(2, "a"), 40)
  await expect.poll(numbers).toEqual([41])
  expect([...rig.uploads.values()].map(String)).toEqual(["of step 2"])
  // Without a newer line it is told that the file is not what was named.
  utimesSync(join(artifacts, "a"), new Date(), new Date(Date.now() + 60_000))
  one.take(line(3, "a"), 80)
  await expect.poll(() => rig.items().at(-1)).toMatchObject({ n: 81, file: null, problem: { status: "failed" } })
  one[Symbol.dispose]()
})

test("a file above the limit is skipped, by name and size, before a byte of it is copied", async () => {
  writeFileSync(join(artifacts, "huge"), "")
  truncateSync(join(artifacts, "huge"), LARGEST_CHECKPOINT_BYTES + 1)
  const one = follow()
  one.take(line(1, "huge"), 0)
  await expect.poll(() => rig.items()[0]?.problem).toMatchObject({ status: "skipped" })
  expect(rig.items()[0]?.problem?.reason).toContain(String(LARGEST_CHECKPOINT_BYTES))
  expect(existsSync(join(dir, "checkpoints", "1"))).toBe(false)
  one[Symbol.dispose]()
})

test("a folder on the way that becomes a link leads nowhere", async () => {
  mkdirSync(join(dir, "secret"))
  appendFileSync(join(dir, "secret", "a"), "of the machine")
  symlinkSync(join(dir, "secret"), join(artifacts, "sub"))
  symlinkSync("../../secret/a", join(artifacts, "up"))
  const one = follow()
  for (const [at, path] of ["sub/a", "up", `${artifacts}/../../secret/a`].entries()) {
    one.take(line(at, path), at * 100)
    await expect
      .poll(() => rig.items().at(-1))
      .toMatchObject({ n: at * 100 + 1, file: null, problem: { status: "failed" } })
  }
  one[Symbol.dispose]()
})
