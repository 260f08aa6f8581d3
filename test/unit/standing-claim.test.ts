import { expect, test } from "vitest"
import { keepStandingClaim } from "../../node-agent/tasks/standing-claim.ts"
import { decodeToCoordinator, encodeMessage, MOST_WARM, type ToCoordinator } from "../../protocol/wire/control.ts"

test("architecture §5.4: a standing claim is said after a welcome and on a change, with as many warm revisions as it may name", async () => {
  const said: ToCoordinator[] = []
  let warm = ["rev_1"]
  const standing = keepStandingClaim({
    current: () => ({
      open: true,
      draining: false,
      capacity: { cpu: 1, memory_mb: 1, storage_gb: 1, gpus: [] },
      warm,
      credit: 1,
    }),
    send: (message) => said.push(decodeToCoordinator(encodeMessage(message))),
  })
  const changed = async (): Promise<void> => {
    standing.changed()
    await new Promise((resolve) => setImmediate(resolve))
  }
  await changed()
  expect(said).toEqual([])
  standing.welcome()
  expect(said).toMatchObject([{ type: "claim", warm: ["rev_1"] }])
  await changed()
  expect(said).toHaveLength(1)
  warm = Array.from({ length: MOST_WARM + 50 }, (_, n) => `rev_${n}`)
  await changed()
  expect(said.at(-1)).toMatchObject({ warm: warm.slice(0, MOST_WARM) })
})
