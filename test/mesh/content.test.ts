import { mkdtempSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { expect, test } from "vitest"
import { createFetchContent } from "../../node-agent/mesh/fetch-content.ts"
import { openContentStream, type ContentHolder } from "../../node-agent/mesh/content-stream.ts"
import type { Downloaded } from "../../node-agent/mesh/download.ts"
import { shareContent } from "../../node-agent/mesh/share-content.ts"
import { present } from "../../protocol/base/assert.ts"
import { systemClock } from "../../protocol/base/clock.ts"
import { silentLog } from "../../protocol/base/log.ts"
import { systemRandom } from "../../protocol/base/random.ts"
import type { Digest, PeerId } from "../../protocol/domain/ids.ts"
import { serveContent, type ServeLimits } from "../../protocol/mesh/serve-content.ts"
import { signContentGrant } from "../../protocol/wire/content-grant.ts"
import type { ContentRef, ContentSource } from "../../protocol/wire/content-source.ts"
import { encodePieceList } from "../../protocol/wire/piece-list.ts"
import { inChunks, MIB, newTestBlob, openTestBlobs, type TestBlob, type TestBlobs } from "../support/content.ts"
import { startTestMesh, type TestMesh, type TestNode } from "../support/mesh.ts"

const ORIGIN_LIMITS: ServeLimits = { streams: 64, sends: 4, copiesPerBlob: null }

interface Peer {
  node: TestNode
  blobs: TestBlobs
  holder: ContentHolder
  /** Whom it dropped for what they sent. */
  convicted: PeerId[]
  /** Pieces this peer has sent. */
  sent: { to: PeerId; bytes: number }[]
  fetch(blob: ContentRef, from: Partial<FetchOptions>): Promise<Downloaded>
  has(blob: TestBlob): boolean
}
interface FetchOptions {
  holders: Peer[]
  origin: Peer
  grant: string
  signal: AbortSignal
}

interface World extends AsyncDisposable {
  mesh: TestMesh
  peer(options?: {
    quotaBytes?: number
    directory?: string
    source?: (blobs: TestBlobs) => ContentSource
    remakes?: (blobs: TestBlobs, blob: Digest) => boolean
  }): Promise<Peer>
  origin(limits?: Partial<ServeLimits>, blobs?: TestBlob[]): Promise<Peer>
  grant(node: PeerId, blobs: ContentRef[], expiresAt?: number): string
  revoked: Set<PeerId>
}

async function newWorld(): Promise<World> {
  const mesh = await startTestMesh()
  const stores: TestBlobs[] = []
  const revoked = new Set<PeerId>()

  function grant(node: PeerId, blobs: ContentRef[], expiresAt = Date.now() + 60_000): string {
    return signContentGrant(mesh.coordinator.identity, { node, blobs, expiresAt })
  }

  async function newPeer(node: TestNode, options: { quotaBytes?: number; directory?: string }): Promise<Peer> {
    const blobs = await openTestBlobs(options)
    stores.push(blobs)
    const convicted: PeerId[] = []
    const fetching = createFetchContent({
      mesh: node,
      blobs,
      clock: systemClock,
      random: systemRandom,
      log: silentLog,
      convicted: (peer) => convicted.push(peer),
    })
    return {
      convicted,
      node,
      blobs,
      holder: { peer: node.peerId, addresses: [node.address] },
      sent: [],
      fetch: (blob, from) =>
        fetching.fetchBlob(blob, {
          holders: (from.holders ?? []).map((peer) => peer.holder),
          origin: from.origin?.holder ?? null,
          grant: from.grant ?? grant(node.peerId, [blob]),
          signal: from.signal ?? AbortSignal.timeout(50_000),
        }),
      has: (blob) => {
        const found = blobs.find(blob.ref.digest)
        if (found === null) return false
        return Buffer.compare(readFileSync(join(blobs.directory, `${blob.ref.digest}.blob`)), blob.bytes) === 0
      },
    }
  }

  function serving(peer: Peer) {
    return {
      coordinatorPublicKey: mesh.coordinator.identity.publicKey,
      revoked: (member: PeerId) => revoked.has(member),
      clock: systemClock,
      log: silentLog,
      sent: (piece: { to: PeerId; bytes: number }) => void peer.sent.push(piece),
    }
  }

  return {
    mesh,
    grant,
    revoked,
    async peer({ source, remakes, ...options } = {}) {
      const peer = await newPeer(await mesh.member(), options)
      const remaking = remakes && { remakes: (blob: Digest) => remakes(peer.blobs, blob) }
      if (source === undefined) shareContent(peer.node, peer.blobs, { ...serving(peer), ...remaking })
      else serveContent(peer.node, source(peer.blobs), { ...serving(peer), limits: ORIGIN_LIMITS })
      return peer
    },
    async origin(limits = {}, blobs = []) {
      const origin = await newPeer(mesh.coordinator, {})
      serveContent(mesh.coordinator, origin.blobs, { ...serving(origin), limits: { ...ORIGIN_LIMITS, ...limits } })
      for (const blob of blobs) await give(origin, blob)
      return origin
    },
    async [Symbol.asyncDispose]() {
      await mesh[Symbol.asyncDispose]()
      await Promise.all(stores.map((store) => store[Symbol.asyncDispose]()))
    },
  }
}

async function give(peer: Peer, blob: TestBlob): Promise<void> {
  await peer.blobs.put({ stream: inChunks(blob.bytes, MIB) })
}

const bytesSent = (peer: Peer): number => peer.sent.reduce((sum, piece) => sum + piece.bytes, 0)

test("a 64 MiB blob comes from two peers at once, whole and right, and none of it from the origin", async () => {
  await using world = await newWorld()
  const blob = newTestBlob(64 * MIB)
  const origin = await world.origin({}, [blob])
  const holders = [await world.peer(), await world.peer()]
  for (const holder of holders) await give(holder, blob)
  const fetcher = await world.peer()
  const fetched = await fetcher.fetch(blob.ref, { holders, origin })
  expect(fetched).toEqual({ blob: blob.ref, bytesFromPeers: 64 * MIB, bytesFromOrigin: 0, culprits: [] })
  expect(fetcher.has(blob)).toBe(true)
  for (const holder of holders) expect(bytesSent(holder)).toBeGreaterThan(8 * MIB)
  // Here already: nothing travels.
  expect(await fetcher.fetch(blob.ref, { holders })).toMatchObject({ bytesFromPeers: 0, bytesFromOrigin: 0 })
})

test("blobs of no byte, one byte and one piece travel without a piece list", async () => {
  await using world = await newWorld()
  const holder = await world.peer()
  const fetcher = await world.peer()
  for (const size of [0, 1, MIB]) {
    const blob = newTestBlob(size)
    await give(holder, blob)
    expect(await fetcher.fetch(blob.ref, { holders: [holder] })).toMatchObject({ bytesFromPeers: size })
    expect(fetcher.has(blob)).toBe(true)
  }
})

test("a peer that sends a wrong piece is named and dropped, and the blob still comes whole", async () => {
  await using world = await newWorld()
  const blob = newTestBlob(8 * MIB)
  const honest = await world.peer()
  const liar = await world.peer({
    source: (blobs) => ({
      ...blobs,
      readPiece: async (digest, index) => (await blobs.readPiece(digest, index))?.fill(7) ?? null,
    }),
  })
  for (const holder of [honest, liar]) await give(holder, blob)
  const fetcher = await world.peer()
  const fetched = await fetcher.fetch(blob.ref, { holders: [honest, liar] })
  expect(fetched).toMatchObject({ bytesFromPeers: 8 * MIB, culprits: [liar.node.peerId] })
  expect(new Set(fetcher.convicted)).toEqual(new Set([liar.node.peerId]))
  expect(fetcher.has(blob)).toBe(true)
})

test("a peer that sends a wrong piece list is named before a piece is asked of it", async () => {
  await using world = await newWorld()
  const blob = newTestBlob(4 * MIB)
  const wrong = encodePieceList({ ...newTestBlob(4 * MIB).list, digest: blob.ref.digest })
  const liar = await world.peer({ source: (blobs) => ({ ...blobs, pieceList: async () => wrong }) })
  await give(liar, blob)
  const origin = await world.origin({}, [blob])
  const fetcher = await world.peer()
  const fetched = await fetcher.fetch(blob.ref, { holders: [liar], origin })
  expect(fetched).toMatchObject({ bytesFromPeers: 0, bytesFromOrigin: 4 * MIB, culprits: [liar.node.peerId] })
  expect(liar.sent).toEqual([])
})

test("when only a liar is left the download fails and says who lied", async () => {
  await using world = await newWorld()
  const blob = newTestBlob(2 * MIB)
  const liar = await world.peer({ source: (blobs) => ({ ...blobs, readPiece: async () => new Uint8Array(MIB) }) })
  await give(liar, blob)
  const fetcher = await world.peer()
  await expect(fetcher.fetch(blob.ref, { holders: [liar] })).rejects.toMatchObject({
    code: "unavailable",
    details: { culprits: [liar.node.peerId] },
  })
  expect(fetcher.has(blob)).toBe(false)
})

test("a peer that dies in the middle, and one that stalls, are dropped for another", async () => {
  await using world = await newWorld()
  const blob = newTestBlob(24 * MIB)
  const dying = await world.peer({
    source: (blobs) => ({
      ...blobs,
      async readPiece(digest, index) {
        if (dying.sent.length >= 3) await dying.node[Symbol.asyncDispose]()
        return await blobs.readPiece(digest, index)
      },
    }),
  })
  const hanging = Promise.withResolvers<null>()
  const stalling = await world.peer({ source: (blobs) => ({ ...blobs, readPiece: () => hanging.promise }) })
  const steady = await world.peer()
  for (const holder of [dying, stalling, steady]) await give(holder, blob)
  const fetcher = await world.peer()
  const fetched = await fetcher.fetch(blob.ref, { holders: [dying, stalling, steady] })
  hanging.resolve(null)
  expect(fetched).toMatchObject({ bytesFromPeers: 24 * MIB, culprits: [] })
  expect(dying.sent.length).toBeGreaterThanOrEqual(3)
  expect(fetcher.has(blob)).toBe(true)
})

test("a download goes on after a restart with the pieces it had", async () => {
  await using world = await newWorld()
  const blob = newTestBlob(24 * MIB)
  const directory = mkdtempSync(join(tmpdir(), "computalot-resume-"))
  try {
    const holder = await world.peer({ source: (blobs) => slowly(blobs, 30) })
    await give(holder, blob)
    const before = await world.peer({ directory })
    const stop = new AbortController()
    const stopped = before.fetch(blob.ref, { holders: [holder], signal: stop.signal })
    stopped.catch(() => {})
    await expect.poll(() => bytesSent(holder), { timeout: 30_000 }).toBeGreaterThan(6 * MIB)
    stop.abort(new Error("the agent stops"))
    await expect(stopped).rejects.toThrow("the agent stops")
    await before.node[Symbol.asyncDispose]()
    const after = await world.peer({ directory })
    const fetched = await after.fetch(blob.ref, { holders: [holder] })
    expect(fetched.bytesFromPeers).toBeLessThan(20 * MIB)
    expect(fetched.bytesFromPeers).toBeGreaterThan(0)
    expect(after.has(blob)).toBe(true)
  } finally {
    rmSync(directory, { recursive: true, force: true })
  }
})

test("without a valid grant that names the blob nothing is given, not even whether it is there", async () => {
  await using world = await newWorld()
  const blob = newTestBlob(3 * MIB)
  const absent = newTestBlob(3 * MIB)
  const holder = await world.peer()
  await give(holder, blob)
  const fetcher = await world.peer()
  const self = fetcher.node.peerId
  const stranger = (await world.mesh.member()).identity
  const bad = {
    none: "",
    ofAnother: world.grant(holder.node.peerId, [blob.ref, absent.ref]),
    expired: world.grant(self, [blob.ref, absent.ref], Date.now() - 10 * 60_000),
    foreign: world.grant(self, [newTestBlob(10).ref]),
    forged: signContentGrant(stranger, { node: self, blobs: [blob.ref, absent.ref], expiresAt: Date.now() + 60_000 }),
  }
  const answer = async (grant: string, wanted: TestBlob): Promise<unknown> => {
    const signal = AbortSignal.timeout(10_000)
    using stream = await openContentStream(fetcher.node, systemClock, holder.holder, signal)
    return await stream.ask({ type: "open", grant, blob: wanted.ref.digest })
  }
  for (const grant of Object.values(bad)) {
    expect(await answer(grant, blob)).toEqual({ type: "refused" })
    expect(await answer(grant, absent)).toEqual({ type: "refused" })
  }
  await expect(fetcher.fetch(blob.ref, { holders: [holder], grant: bad.ofAnother })).rejects.toMatchObject({
    code: "unavailable",
    details: { tried: [{ peer_id: holder.node.peerId, problem: "refused the grant" }] },
  })
  const good = world.grant(self, [blob.ref, absent.ref])
  expect(await answer(good, absent)).toEqual({ type: "absent" })
  expect(await answer(good, blob)).toMatchObject({ type: "have" })
  // A grant for the same blob under another piece list does not open it: its pieces would be judged wrongly.
  const otherList = { ...blob.ref, pieceListDigest: absent.ref.pieceListDigest }
  expect(await answer(world.grant(self, [otherList]), blob)).toEqual({ type: "absent" })
  world.revoked.add(self)
  expect(await answer(good, blob)).toEqual({ type: "refused" })
})

test("the origin is used for what peers cannot give", async () => {
  await using world = await newWorld()
  const blob = newTestBlob(12 * MIB)
  const half = await world.peer()
  await using partial = present(await half.blobs.begin(blob.ref, blob.list), "a partial blob")
  for (let index = 0; index < 6; index++)
    await partial.write(index, blob.bytes.subarray(index * MIB, (index + 1) * MIB))
  const empty = await world.peer()
  const origin = await world.origin({}, [blob])
  const fetcher = await world.peer()
  const fetched = await fetcher.fetch(blob.ref, { holders: [half, empty], origin })
  expect(fetched).toMatchObject({ bytesFromPeers: 6 * MIB, bytesFromOrigin: 6 * MIB, culprits: [] })
  expect(fetcher.has(blob)).toBe(true)
})

test("holders that nobody can reach do not keep the origin from helping", async () => {
  await using world = await newWorld()
  const blob = newTestBlob(3 * MIB)
  const origin = await world.origin({}, [blob])
  const gone = await world.peer()
  await gone.node[Symbol.asyncDispose]()
  const fetcher = await world.peer()
  const fetched = await fetcher.fetch(blob.ref, { holders: [gone], origin })
  expect(fetched).toMatchObject({ bytesFromPeers: 0, bytesFromOrigin: 3 * MIB })
})

test("a blob that its holder makes again is waited for; without a grant nobody has it made", async () => {
  await using world = await newWorld()
  const blob = newTestBlob(3 * MIB)
  const absent = newTestBlob(3 * MIB)
  const asked: Digest[] = []
  const holder = await world.peer({
    remakes(blobs, wanted) {
      asked.push(wanted)
      if (wanted !== blob.ref.digest) return false
      if (asked.length === 1) setTimeout(() => void blobs.put({ stream: inChunks(blob.bytes) }), 200)
      return true
    },
  })
  const fetcher = await world.peer()
  const foreign = world.grant(fetcher.node.peerId, [absent.ref])
  await expect(fetcher.fetch(blob.ref, { holders: [holder], grant: foreign })).rejects.toThrow("no source")
  expect(asked).toEqual([])
  expect(await fetcher.fetch(blob.ref, { holders: [holder] })).toMatchObject({ bytesFromPeers: 3 * MIB })
  expect(fetcher.has(blob)).toBe(true)
  await expect(fetcher.fetch(absent.ref, { holders: [holder] })).rejects.toMatchObject({ code: "unavailable" })
  expect(asked).toContain(absent.ref.digest)
})

test("a blob that nobody has ends as unavailable", async () => {
  await using world = await newWorld()
  const origin = await world.origin()
  const fetcher = await world.peer()
  const empty = await world.peer()
  const blob = newTestBlob(3 * MIB)
  await expect(fetcher.fetch(blob.ref, { holders: [empty], origin })).rejects.toMatchObject({ code: "unavailable" })
  await expect(fetcher.fetch(blob.ref, {})).rejects.toMatchObject({ code: "unavailable" })
  await give(empty, blob)
  const malformed = { ...blob.ref, pieceListDigest: null }
  await expect(fetcher.fetch(malformed, { holders: [empty] })).rejects.toThrow("malformed")
})

test("a node serves pieces while it still downloads: the origin sends one copy, and three nodes get the blob", async () => {
  await using world = await newWorld()
  const blob = newTestBlob(16 * MIB)
  const origin = await world.origin({ copiesPerBlob: 1 }, [blob])
  const nodes = [await world.peer(), await world.peer(), await world.peer()]
  const all = await Promise.all(
    nodes.map((node) => node.fetch(blob.ref, { holders: nodes.filter((other) => other !== node), origin })),
  )
  for (const node of nodes) expect(node.has(blob)).toBe(true)
  const fromPeers = all.reduce((sum, one) => sum + one.bytesFromPeers, 0)
  const fromOrigin = all.reduce((sum, one) => sum + one.bytesFromOrigin, 0)
  expect(fromPeers + fromOrigin).toBe(48 * MIB)
  // One copy, and what a node asked for in a moment when the others had nothing new.
  expect(fromOrigin).toBeLessThan(32 * MIB)
  expect(nodes.some((node) => bytesSent(node) > 0)).toBe(true)
})

test("an origin with a limit on copies sends one peer at a time, and the next as soon as the first takes no more", async () => {
  await using world = await newWorld()
  const blob = newTestBlob(2 * MIB)
  const origin = await world.origin({ copiesPerBlob: 1 }, [blob])
  const [first, second] = [await world.peer(), await world.peer()]
  const ask = async (peer: Peer): Promise<string> => {
    using stream = await openContentStream(peer.node, systemClock, origin.holder, AbortSignal.timeout(10_000))
    const grant = world.grant(peer.node.peerId, [blob.ref])
    return (await stream.ask({ type: "open", grant, blob: blob.ref.digest })).type
  }
  expect(await ask(first)).toBe("have")
  expect(await ask(second)).toBe("busy")
  expect(await ask(first)).toBe("have")
  await expect.poll(() => ask(second), { timeout: 20_000, interval: 500 }).toBe("have")
})

test("a source whose streams are all taken says busy, and serves again when one ends", async () => {
  await using world = await newWorld()
  const blob = newTestBlob(2 * MIB)
  const origin = await world.origin({ streams: 1 }, [blob])
  const fetcher = await world.peer()
  const grant = world.grant(fetcher.node.peerId, [blob.ref])
  const open = async () => {
    const stream = await openContentStream(fetcher.node, systemClock, origin.holder, AbortSignal.timeout(20_000))
    return { stream, answer: await stream.ask({ type: "open", grant, blob: blob.ref.digest }) }
  }
  const first = await open()
  expect(first.answer.type).toBe("have")
  const second = await open()
  expect(second.answer.type).toBe("busy")
  first.stream[Symbol.dispose]()
  expect(await fetcher.fetch(blob.ref, { origin })).toMatchObject({ bytesFromOrigin: 2 * MIB })
  second.stream[Symbol.dispose]()
})

test("calls for one blob share one download, and it outlives a caller that gives up", async () => {
  await using world = await newWorld()
  const blob = newTestBlob(12 * MIB)
  const holder = await world.peer({ source: (blobs) => slowly(blobs, 20) })
  await give(holder, blob)
  const fetcher = await world.peer()
  const first = new AbortController()
  const impatient = fetcher.fetch(blob.ref, { holders: [], signal: first.signal, origin: holder })
  const patient = fetcher.fetch(blob.ref, { holders: [holder] })
  impatient.catch(() => {})
  await expect.poll(() => holder.sent.length, { timeout: 30_000 }).toBeGreaterThan(0)
  first.abort(new Error("enough"))
  await expect(impatient).rejects.toThrow("enough")
  await patient
  expect(fetcher.has(blob)).toBe(true)
  expect(bytesSent(holder)).toBe(12 * MIB)
})

test("a full cache refuses the download and keeps what is pinned", async () => {
  await using world = await newWorld()
  const blob = newTestBlob(3 * MIB)
  const holder = await world.peer()
  await give(holder, blob)
  const fetcher = await world.peer({ quotaBytes: 4 * MIB })
  const kept = newTestBlob(2 * MIB)
  fetcher.blobs.pin(kept.ref.digest, "task")
  await give(fetcher, kept)
  await expect(fetcher.fetch(blob.ref, { holders: [holder] })).rejects.toMatchObject({ code: "storage_full" })
  expect(fetcher.has(kept)).toBe(true)
  fetcher.blobs.unpinAll("task")
  await fetcher.fetch(blob.ref, { holders: [holder] })
  expect(fetcher.has(blob)).toBe(true)
  expect(fetcher.has(kept)).toBe(false)
})

test("nonsense on a content stream ends that stream and nothing else", async () => {
  await using world = await newWorld()
  const blob = newTestBlob(2 * MIB)
  const holder = await world.peer()
  await give(holder, blob)
  const fetcher = await world.peer()
  const grant = world.grant(fetcher.node.peerId, [blob.ref])
  const signal = AbortSignal.timeout(10_000)
  {
    using stream = await openContentStream(fetcher.node, systemClock, holder.holder, signal)
    await expect(stream.ask({ type: "piece", index: 0 }, MIB)).rejects.toThrow()
  }
  {
    using stream = await openContentStream(fetcher.node, systemClock, holder.holder, signal)
    await stream.ask({ type: "open", grant, blob: blob.ref.digest })
    expect(await stream.ask({ type: "piece", index: 9999 }, MIB)).toEqual({ type: "absent" })
    await expect(stream.ask({ type: "open", grant: "x", blob: "y" })).rejects.toThrow()
  }
  await fetcher.fetch(blob.ref, { holders: [holder] })
  expect(fetcher.has(blob)).toBe(true)
})

/** A source on a slow disk. */
function slowly(blobs: TestBlobs, ms: number): ContentSource {
  return {
    ...blobs,
    async readPiece(digest, index) {
      await new Promise((resolve) => setTimeout(resolve, ms))
      return await blobs.readPiece(digest, index)
    },
  }
}
