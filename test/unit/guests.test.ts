import type { MultiaddrConnection, PeerId } from "@libp2p/interface"
import { expect, test } from "vitest"
import { createGuests } from "../../protocol/mesh/guests.ts"

/** Three at once; peers named `known…` have been members. */
function setUp() {
  let now = 0
  const guests = createGuests({
    handshakesAtOnce: 3,
    clock: { now: () => now, monotonicMs: () => now, after: () => ({ cancel() {} }) },
    isKnown: (peer) => peer.startsWith("known"),
  })
  const evicted: string[] = []
  const enter = (peer: string): boolean => {
    const maConn = {
      abort: () => evicted.push(peer),
      addEventListener() {},
    } as unknown as MultiaddrConnection
    return guests.gater.denyInboundEncryptedConnection?.({ toString: () => peer } as PeerId, maConn) === false
  }
  return { enter, evicted, wait: (ms: number) => void (now += ms) }
}

test("in a rush the first come are served, and later ones refused: nobody is thrown out halfway", () => {
  const { enter, evicted } = setUp()
  expect(["a", "b", "c", "d", "e"].map(enter)).toEqual([true, true, true, false, false])
  expect(evicted).toEqual([])
})

test("who has had its time makes room, the one waiting longest first", () => {
  const { enter, evicted, wait } = setUp()
  for (const peer of ["a", "b", "c"]) enter(peer)
  wait(2_000)
  expect(["d", "e"].map(enter)).toEqual([true, true])
  expect(evicted).toEqual(["a", "b"])
})

test("known members go first: they take a stranger's place at once, but not one another's", () => {
  const { enter, evicted } = setUp()
  expect(["known1", "a", "b", "known2", "known3", "known4", "c"].map(enter)).toEqual([
    true,
    true,
    true,
    true,
    true,
    false,
    false,
  ])
  expect(evicted).toEqual(["a", "b"])
})
