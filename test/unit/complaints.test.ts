import { expect, test } from "vitest"
import { createComplaints } from "../../node-agent/mesh/complaints.ts"
import { peerId } from "../../protocol/domain/ids.ts"
import { createManualClock } from "../support/manual-clock.ts"

test("architecture §5.7: a peer that gives wrong pieces is complained of once a minute, each by itself", async () => {
  const clock = createManualClock()
  const told: string[] = []
  const complain = createComplaints({
    clock,
    send: (message) => void told.push(message.type === "complaint" ? message.peer_id : ""),
  })
  for (let n = 0; n < 5; n++) complain(peerId("liar"))
  complain(peerId("other"))
  expect(told).toEqual(["liar", "other"])
  await clock.pass(59_000)
  complain(peerId("liar"))
  expect(told).toHaveLength(2)
  await clock.pass(1_000)
  complain(peerId("liar"))
  expect(told).toEqual(["liar", "other", "liar"])
})
