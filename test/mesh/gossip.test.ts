import { describe, expect, test } from "vitest"
import { ADVERTS_TOPIC, OFFERS_TOPIC } from "../../protocol/gossip/topics.ts"
import { accept, ignore, reject, type Verdict } from "../../protocol/gossip/verdict.ts"
import type { GossipMessage } from "../../protocol/mesh/mesh.ts"
import { newIdentity, startTestMesh, type TestMesh, type TestNode } from "../support/mesh.ts"
import { enter, gossipRpc, startStranger, varint } from "../support/stranger.ts"

const text = (message: GossipMessage): string => Buffer.from(message.data).toString()
const bytes = (words: string): Uint8Array => new TextEncoder().encode(words)

/** Joins the topic; gives what was accepted, in order. */
function listen(node: TestNode, topic: string, judge: (message: GossipMessage) => Verdict = () => accept): string[] {
  const heard: string[] = []
  node.subscribe(topic, (message) => {
    const verdict = judge(message)
    if (verdict.verdict === "accept") heard.push(`${message.from.slice(-6)} ${text(message)}`)
    return verdict
  })
  return heard
}

/** Says it again until all have heard it: a message sent before the mesh has formed reaches nobody. */
async function sayUntil(node: TestNode, topic: string, words: string, heard: () => boolean): Promise<void> {
  await expect
    .poll(
      async () => {
        if (!heard()) await node.publish(topic, bytes(words))
        return heard()
      },
      { timeout: 20_000, interval: 100 },
    )
    .toBe(true)
}

async function startMembers(mesh: TestMesh, count: number): Promise<TestNode[]> {
  const nodes: TestNode[] = []
  for (let i = 0; i < count; i++) {
    const node = await mesh.member()
    await node.dial(mesh.coordinator.address)
    // Beside the coordinator each dials the two before it.
    for (const other of nodes.slice(-2)) await node.dial(other.address)
    nodes.push(node)
  }
  return nodes
}

for (const count of [1, 2, 3, 5, 10]) {
  test(`what one says reaches all: a coordinator and ${count} node${count > 1 ? "s" : ""} behind one address`, async () => {
    await using mesh = await startTestMesh()
    const nodes = await startMembers(mesh, count)
    const all = [mesh.coordinator, ...nodes]
    const heard = new Map(all.map((node) => [node, listen(node, ADVERTS_TOPIC)]))
    const speaker = nodes.at(-1) ?? mesh.coordinator
    const line = `${speaker.peerId.slice(-6)} here I am`
    const others = all.filter((node) => node !== speaker)
    await sayUntil(speaker, ADVERTS_TOPIC, "here I am", () => others.every((node) => heard.get(node)?.includes(line)))
  })
}

test("only what a node's judge accepts goes on: ignored and rejected messages stop at the first hop", async () => {
  await using mesh = await startTestMesh()
  const [speaker, listener] = [await mesh.member(), await mesh.member()]
  // Both know the coordinator alone: every word passes it.
  for (const node of [speaker, listener]) await node.dial(mesh.coordinator.address)
  listen(mesh.coordinator, ADVERTS_TOPIC, (message) => {
    if (text(message) === "stale") return ignore("stale")
    return text(message) === "forged" ? reject("forged") : accept
  })
  const heard = listen(listener, ADVERTS_TOPIC)
  listen(speaker, ADVERTS_TOPIC)
  const me = speaker.peerId.slice(-6)
  await sayUntil(speaker, ADVERTS_TOPIC, "one", () => heard.includes(`${me} one`))
  for (const words of ["stale", "forged", "stale"]) await speaker.publish(ADVERTS_TOPIC, bytes(words))
  await sayUntil(speaker, ADVERTS_TOPIC, "two", () => heard.includes(`${me} two`))
  expect(heard.filter((line) => !/one|two/.test(line))).toEqual([])
})

test("a member that keeps sending what is rejected is not listened to any more, others are", async () => {
  await using mesh = await startTestMesh()
  const [bad, good] = [await mesh.member(), await mesh.member()]
  for (const node of [bad, good]) await node.dial(mesh.coordinator.address)
  let rejected = 0
  const heard = listen(mesh.coordinator, ADVERTS_TOPIC, (message) => {
    if (text(message) !== "garbage") return accept
    rejected++
    return reject("garbage")
  })
  for (const node of [bad, good]) listen(node, ADVERTS_TOPIC)
  await sayUntil(bad, ADVERTS_TOPIC, "hello", () => heard.some((line) => line.endsWith("hello")))
  // Scores are looked at once a second.
  let round = 0
  await expect
    .poll(
      async () => {
        const before = rejected
        for (let i = 0; i < 5; i++) await bad.publish(ADVERTS_TOPIC, bytes("garbage"))
        const words = `round ${round++}`
        await sayUntil(good, ADVERTS_TOPIC, words, () => heard.includes(`${good.peerId.slice(-6)} ${words}`))
        return rejected - before
      },
      { timeout: 20_000, interval: 300 },
    )
    .toBe(0)
  expect(rejected).toBeGreaterThanOrEqual(4)
  expect(mesh.coordinator.peers().length).toBe(2)
})

test("a node does not publish what is over the limit", async () => {
  await using mesh = await startTestMesh()
  await expect(mesh.coordinator.publish(ADVERTS_TOPIC, new Uint8Array(64 * 1024 + 1))).rejects.toThrow("too large")
})

test("the topics stay apart, and there are no others", async () => {
  await using mesh = await startTestMesh()
  const node = await mesh.member()
  await node.dial(mesh.coordinator.address)
  const offers = listen(node, OFFERS_TOPIC)
  const adverts = listen(node, ADVERTS_TOPIC)
  listen(mesh.coordinator, OFFERS_TOPIC)
  await sayUntil(mesh.coordinator, OFFERS_TOPIC, "work", () => offers.length > 0)
  expect(adverts).toEqual([])
  expect(() => node.subscribe("computalot/other/1", () => accept)).toThrow("one of the mesh's topics")
})

test("publishing while nobody listens is no error", async () => {
  await using mesh = await startTestMesh()
  expect(await mesh.coordinator.publish(OFFERS_TOPIC, bytes("work"))).toEqual({ recipients: 0 })
})

test("a node that returns with the same key hears and is heard again", async () => {
  await using mesh = await startTestMesh()
  const first = await mesh.member()
  const heard = listen(mesh.coordinator, ADVERTS_TOPIC)
  listen(first, ADVERTS_TOPIC)
  await first.dial(mesh.coordinator.address)
  const me = first.peerId.slice(-6)
  await sayUntil(first, ADVERTS_TOPIC, "first", () => heard.includes(`${me} first`))
  await first[Symbol.asyncDispose]()
  const second = await mesh.member({ identity: first.identity })
  const back = listen(second, ADVERTS_TOPIC)
  await second.dial(mesh.coordinator.address)
  await sayUntil(second, ADVERTS_TOPIC, "second", () => heard.includes(`${me} second`))
  await sayUntil(mesh.coordinator, ADVERTS_TOPIC, "welcome", () => back.some((line) => line.endsWith("welcome")))
})

describe("a member whose gossip is not ours", () => {
  test("a message that another signed, or that was changed, reaches no judge", async () => {
    await using mesh = await startTestMesh()
    const [identity, victim] = [await newIdentity(), await mesh.member()]
    await victim.dial(mesh.coordinator.address)
    const heard = listen(mesh.coordinator, ADVERTS_TOPIC)
    await using stranger = await startStranger(identity)
    const connection = await stranger.dial(mesh.coordinator.address)
    await enter(connection, mesh.certificateOf(identity))
    await expect.poll(() => mesh.coordinator.peers()).toContain(identity.peerId)
    const stream = await connection.newStream(["/meshsub/1.1.0"])
    const facts = { signer: identity, from: identity.peerId, topic: ADVERTS_TOPIC, data: bytes("mine"), seqno: 1 }
    stream.send(gossipRpc({ ...facts, from: victim.peerId, data: bytes("forged") }))
    const changed = gossipRpc({ ...facts, data: bytes("before"), seqno: 2 })
    changed.set(bytes("behind"), Buffer.from(changed).indexOf("before"))
    stream.send(changed)
    stream.send(gossipRpc({ ...facts, topic: "computalot/other/1", seqno: 3 }))
    stream.send(gossipRpc({ ...facts, seqno: 4 }))
    await expect.poll(() => heard).toEqual([`${identity.peerId.slice(-6)} mine`])
  })

  test("more bytes than a message may have are not read, and cost only the one who sent them", async () => {
    await using mesh = await startTestMesh()
    const [identity, other] = [await newIdentity(), await mesh.member()]
    await other.dial(mesh.coordinator.address)
    listen(other, ADVERTS_TOPIC)
    const heard = listen(mesh.coordinator, ADVERTS_TOPIC)
    await using stranger = await startStranger(identity)
    const connection = await stranger.dial(mesh.coordinator.address)
    await enter(connection, mesh.certificateOf(identity))
    const stream = await connection.newStream(["/meshsub/1.1.0"])
    const facts = { signer: identity, from: identity.peerId, topic: ADVERTS_TOPIC, seqno: 1 }
    stream.send(gossipRpc({ ...facts, data: new Uint8Array(100 * 1024) }))
    stream.send(varint(2 ** 31))
    stream.send(new Uint8Array(200 * 1024))
    await sayUntil(other, ADVERTS_TOPIC, "fine", () => heard.some((line) => line.endsWith("fine")))
    expect(heard.every((line) => line.endsWith("fine"))).toBe(true)
  })

  test("a peer that is not admitted is neither heard nor told anything", async () => {
    await using mesh = await startTestMesh()
    const [identity, member] = [await newIdentity(), await mesh.member()]
    await member.dial(mesh.coordinator.address)
    const heard = listen(mesh.coordinator, ADVERTS_TOPIC)
    const back = listen(member, ADVERTS_TOPIC)
    await using stranger = await startStranger(identity)
    const told: string[] = []
    stranger.node.services.gossip.addEventListener("message", ({ detail }) =>
      told.push(Buffer.from(detail.data).toString()),
    )
    stranger.node.services.gossip.subscribe(ADVERTS_TOPIC)
    const connection = await stranger.dial(mesh.coordinator.address)
    const stream = await connection.newStream(["/meshsub/1.1.0"]).catch(() => null)
    const facts = { signer: identity, from: identity.peerId, topic: ADVERTS_TOPIC, data: bytes("let me in"), seqno: 1 }
    try {
      stream?.send(gossipRpc(facts))
    } catch {
      // It was reset already.
    }
    await sayUntil(mesh.coordinator, ADVERTS_TOPIC, "among us", () => back.length > 0)
    await sayUntil(member, ADVERTS_TOPIC, "yes", () => heard.length > 0)
    expect(connection.status).toBe("open")
    expect(heard.filter((line) => line.endsWith("let me in"))).toEqual([])
    expect(told).toEqual([])
    expect(stranger.node.services.gossip.getSubscribers(ADVERTS_TOPIC)).toEqual([])
  })
})
