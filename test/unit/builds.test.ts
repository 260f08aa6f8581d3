import { expect, test } from "vitest"
import { silentLog } from "../../protocol/base/log.ts"
import { systemRandom } from "../../protocol/base/random.ts"
import { identityFromSeed } from "../../protocol/mesh/identity.ts"
import type { ToNode } from "../../protocol/wire/control.ts"
import type { ContentRef } from "../../protocol/wire/content-source.ts"
import { createBuilds, type Builds } from "../../coordinator/scheduler/builds.ts"
import { createRuntimeSpecs } from "../../coordinator/scheduler/runtime-specs.ts"
import type { Member } from "../../coordinator/fleet/members.ts"
import { fundedAccount } from "../support/accounts.ts"
import { startJobRig, type JobRig } from "../support/job-rig.ts"

/** What a coordinator's members were told to build, while their streams stay open. */
function asBuilder(member: Member, heardMs: number): number[] {
  const orders: number[] = []
  member.facts = {
    agentVersion: "1",
    bootId: `boot-of-${member.id}`,
    roles: ["worker", "builder"],
    runtime: "gvisor",
    isolation: "gvisor",
    enforces: [],
    network: "none",
    addresses: [],
    capacity: { cpu: 2, memoryMb: 4096, storageGb: 10, gpus: [] },
  }
  const send = (message: ToNode): void => void (message.type === "build" && orders.push(message.claim))
  member.session = { send, close: () => {} }
  member.lastHeardMs = heardMs
  return orders
}

/** A build that was ordered from the rig's node. */
async function ordered(rig: JobRig): Promise<{ builds: Builds; orders: number[]; failed: string[] }> {
  const { store, clock, members, member } = rig
  await rig.project(await fundedAccount(rig.store, 1n))
  const content = {
    ref: async (digest: ContentRef["digest"]) => ({ digest, size: 1, pieceListDigest: null }),
  } as never
  const key = await identityFromSeed(systemRandom.bytes(32))
  const specs = createRuntimeSpecs({ store, clock, members, key, content })
  const failed: string[] = []
  const parts = { store, clock, random: systemRandom, log: silentLog, members, content, specs }
  const builds = createBuilds({ ...parts, built: () => {}, failed: (revision) => failed.push(revision) })
  const orders = asBuilder(member, clock.monotonicMs())
  builds.wake()
  await expect.poll(() => orders.length).toBe(1)
  return { builds, orders, failed }
}

test("a lost build that could not be stored, because the disk was full, is given up at a later look", async () => {
  let isFull = false
  await using rig = await startJobRig({
    wrap: (opened) => ({
      ...opened,
      write: (act) => (isFull ? Promise.reject(new Error("the disk is full")) : opened.write(act)),
      [Symbol.asyncDispose]: () => opened[Symbol.asyncDispose](),
    }),
  })
  const { builds, orders } = await ordered(rig)
  await using _builds = builds
  isFull = true
  rig.pass(61_000)
  builds.wake()
  await new Promise((resolve) => setTimeout(resolve, 50))
  expect(builds.liveClaims()).toEqual(orders)

  isFull = false
  rig.member.lastHeardMs = rig.clock.monotonicMs() - 61_000
  builds.wake()
  await expect.poll(() => builds.liveClaims()).toEqual([])
})

test("a machine without power builds nothing, though its stream stays open: the build is ordered again once a builder is heard", async () => {
  await using rig = await startJobRig()
  const { member, clock } = rig
  const { builds, orders: first, failed } = await ordered(rig)
  await using _builds = builds
  rig.pass(61_000)
  builds.wake()
  await expect.poll(() => builds.liveClaims()).toEqual([])
  // Nobody who can be reached is there yet: the silent one is not asked again.
  builds.wake()
  expect(first.length).toBe(1)

  member.lastHeardMs = clock.monotonicMs()
  builds.wake()
  await expect.poll(() => first.length).toBe(2)
  expect(failed).toEqual([])
})
