import { expect, test } from "vitest"
import { systemRandom } from "../../protocol/base/random.ts"
import { identityFromSeed } from "../../protocol/mesh/identity.ts"
import { createObjectContent } from "../../coordinator/artifacts/object-content.ts"
import { createRuntimeSpecs } from "../../coordinator/scheduler/runtime-specs.ts"
import { findProject } from "../../coordinator/store/projects.ts"
import { fundedAccount } from "../support/accounts.ts"
import { startJobRig } from "../support/job-rig.ts"

test("failures that nodes tell before a revision's first look are kept, also by a look that finds the same image", async () => {
  await using rig = await startJobRig()
  const account = await fundedAccount(rig.store, 1n)
  await rig.project(account)
  const revision = (await rig.store.read((view) => findProject(view, account, "p")))?.activeRevision
  if (!revision) throw new Error("it was pushed")
  const key = await identityFromSeed(systemRandom.bytes(32))
  const { store, clock, members, files } = rig
  const specs = createRuntimeSpecs({ store, clock, members, key, content: createObjectContent(files) })
  specs.failedOn(revision, rig.member, { message: "pip found nothing", logTail: "" })
  // A node's word on what nobody asked for takes no memory.
  specs.restOn(revision, rig.member, "no base")
  expect(specs.rests(revision, rig.member)).toBe(false)
  for (let look = 0; look < 2; look++) {
    await specs.refresh(revision)
    expect(specs.failures(revision)).toBe(1)
  }
  specs.restOn(revision, rig.member, "no base")
  await specs.refresh(revision)
  expect(specs.rests(revision, rig.member)).toBe(true)
})
