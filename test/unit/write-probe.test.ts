import { expect, test } from "vitest"
import { silentLog } from "../../protocol/base/log.ts"
import { createWriteProbe } from "../../coordinator/http/write-probe.ts"
import { send, startHttpDoor } from "../support/http-door.ts"
import { createManualClock } from "../support/manual-clock.ts"
import { openTestStore } from "../support/store.ts"

test("the disk is asked at most once a second, however many want to know", async () => {
  const clock = createManualClock()
  let writes = 0
  const isWritable = createWriteProbe(clock, async () => ++writes)
  expect(await Promise.all(Array.from({ length: 50 }, isWritable))).toEqual(Array.from({ length: 50 }, () => true))
  expect(writes).toBe(1)
  await clock.pass(999)
  await isWritable()
  expect(writes).toBe(1)
  await clock.pass(1)
  await isWritable()
  expect(writes).toBe(2)
})

test("a write that fails, or does not end in two seconds, means that nothing can be stored", async () => {
  const clock = createManualClock()
  let write = (): Promise<unknown> => Promise.reject(new Error("the disk is full"))
  const isWritable = createWriteProbe(clock, () => write())
  expect(await isWritable()).toBe(false)
  write = () => new Promise(() => {})
  await clock.pass(1_000)
  const hanging = isWritable()
  await clock.pass(2_000)
  expect(await hanging).toBe(false)
  write = async () => {}
  expect(await isWritable()).toBe(true)
})

test("O-003: /ready is 503 while the store hangs, with the part that is missing, and the API still answers", async () => {
  await using door = await startHttpDoor(silentLog)
  await using store = await openTestStore()
  let refuses = true
  door.app.open({
    store,
    identify: async () => null,
    probe: async () => {
      if (refuses) throw new Error("the disk is full")
    },
  })
  const down = await send(door.server.origin, "GET", "/ready")
  expect([down.status, down.headers["retry-after"], down.json]).toEqual([
    503,
    "2",
    { status: "unavailable", checks: { repo: "down", api_supervisor: "ok", controller_core: "ok" } },
  ])
  expect((await send(door.server.origin, "GET", "/health")).status).toBe(200)
  refuses = false
  await expect.poll(async () => (await send(door.server.origin, "GET", "/ready")).status, { timeout: 10_000 }).toBe(200)
})
