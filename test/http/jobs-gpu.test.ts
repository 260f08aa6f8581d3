import { expect, test } from "vitest"
import { startTestCoordinator } from "../support/scripted-node.ts"

test("J-016, C-18: a job that needs a GPU waits while there are only CPU machines, and runs where one is", async () => {
  await using rig = await startTestCoordinator()
  const plain = await rig.node()
  await plain.connect()
  await plain.claim()
  const id = await rig.submit({ gpu_required: true })
  expect(await rig.job(id)).toMatchObject({
    requirements: { profile: "gpu", gpu_count: 1 },
    queue_reason: { code: "no_matching_capacity" },
  })
  // One that needs none is granted meanwhile.
  const other = await rig.submit()
  await expect.poll(() => plain.granted.length).toBe(1)
  const claims = plain.granted.map(({ claim }) => claim)
  await plain.say({ type: "accept", claims })
  using _beating = plain.beat(() => claims)
  expect(await rig.job(id)).toMatchObject({ status: "queued" })

  const capacity = {
    cpu: 2,
    memory_mb: 4096,
    storage_gb: 50,
    gpus: [{ uuid: "GPU-1", model: "any", memory_mb: 16_384 }],
  }
  const large = await rig.node()
  await large.connect({ capacity })
  await large.claim({ capacity })
  await expect.poll(() => large.granted.map(({ gpus }) => gpus)).toEqual([["GPU-1"]])
  expect(plain.granted).toHaveLength(1)
  for (const [node, job] of [
    [large, id],
    [plain, other],
  ] as const) {
    const claim = node.granted[0]?.claim ?? 0
    await node.say({ type: "accept", claims: [claim] })
    await node.report(claim)
    await expect.poll(async () => (await rig.job(job))["status"]).toBe("completed")
  }
  expect(
    (
      await rig.as("POST", "/jobs", {
        type: "structured_runner",
        project: "p",
        runner_command: ["python3", "x.py"],
        gpu_required: true,
        requirements: { profile: "cpu" },
      })
    ).status,
  ).toBe(422)
})
