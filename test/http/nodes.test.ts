import { createHash } from "node:crypto"
import { afterAll, beforeAll, describe, expect, test } from "vitest"
import { systemRandom } from "../../protocol/base/random.ts"
import { identityFromSeed, type Identity } from "../../protocol/mesh/identity.ts"
import {
  enrol,
  signEnrolmentOnWire,
  startTestCoordinator,
  startWorker,
  type TestCoordinator,
} from "../support/scripted-node.ts"
import { send, type PlainReply } from "../support/http-door.ts"

let rig: TestCoordinator
beforeAll(async () => {
  rig = await startTestCoordinator()
})
afterAll(async () => rig[Symbol.asyncDispose]())

const newIdentity = (): Promise<Identity> => identityFromSeed(systemRandom.bytes(32))
const enrolWith = async (token: string, more: object, identity?: Identity): Promise<PlainReply> => {
  const own = identity ?? (await newIdentity())
  const body = { token, peer_id: own.peerId, agent_version: "1", ...signEnrolmentOnWire(own, token), ...more }
  return rig.call("POST", "/nodes/enroll", body)
}

describe("enrolment", () => {
  test("a token and a signature give a node id, a certificate and where to go", async () => {
    const identity = await newIdentity()
    const enrolled = await enrol(rig, identity, await rig.joinToken({ roles: ["worker", "builder"] }))
    expect(enrolled.status).toBe(201)
    expect(enrolled.get("coordinator")).toEqual({
      peer_id: rig.coordinator.peerId,
      addrs: rig.coordinator.meshAddresses,
    })
    expect(enrolled.get("epoch")).toBeGreaterThan(1_700_000_000)
    expect(String(enrolled.get("certificate")).length).toBeGreaterThan(64)
    expect(enrolled.get("node_id")).toMatch(/^node_/)
  })

  test("sixty failures from one address are enough for ten minutes; those that are let in do not count", async () => {
    await using other = await startTestCoordinator({ COMPUTALOT_TRUST_PROXY: "127.0.0.1" })
    const identity = await newIdentity()
    const from = async (address: string, token: string): Promise<PlainReply> => {
      const body = { token, peer_id: identity.peerId, agent_version: "1", ...signEnrolmentOnWire(identity, token) }
      const headers = { "x-forwarded-for": address }
      return send(other.coordinator.origin, "POST", "/api/v1/nodes/enroll", { body, headers })
    }
    const good = await other.joinToken()
    for (let n = 0; n < 70; n++) expect((await from("203.0.113.7", good)).status).toBe(201)
    for (let n = 0; n < 60; n++) expect((await from("203.0.113.7", "fln_guessed")).status).toBe(401)
    const refused = await from("203.0.113.7", "fln_guessed")
    expect([refused.status, Number(refused.headers["retry-after"]) > 0]).toEqual([429, true])
    expect((await from("203.0.113.7", good)).status).toBe(429)
    expect((await from("203.0.113.8", good)).status).toBe(201)
  })

  test("an enrolled key enrols again with its own token, spent or not: 201 and the same id", async () => {
    const identity = await newIdentity()
    const token = await rig.joinToken({ max_uses: 1 })
    const first = await enrol(rig, identity, token)
    const again = await enrol(rig, identity, token)
    expect([first.status, again.status]).toEqual([201, 201])
    expect(again.get("node_id")).toBe(first.get("node_id"))
    expect((await enrol(rig, await newIdentity(), token)).status).toBe(401)
    const other = await enrol(rig, identity, await rig.joinToken())
    expect([other.status, other.get("node_id")]).toEqual([201, first.get("node_id")])
  })

  test("an unknown or expired token and a forged signature are 401, and say what to do", async () => {
    const unknown = await enrolWith("fln_unknown", {})
    expect([unknown.status, unknown.get("code")]).toEqual([401, "enrolment_refused"])
    expect(unknown.get("recommended_action")).toContain("token")
    const expiring = await rig.joinToken({ ttl_s: 0.001 })
    await expect.poll(async () => (await enrolWith(expiring, {})).status).toBe(401)
    const token = await rig.joinToken()
    const elsewhere = signEnrolmentOnWire(await newIdentity(), token).signature
    expect((await enrolWith(token, { signature: elsewhere })).status).toBe(401)
    expect((await enrolWith(token, {})).status).toBe(201)
  })

  test("malformed keys and fields are 422", async () => {
    const token = await rig.joinToken()
    const wrong = [
      { public_key: "abc" },
      { signature: "" },
      { peer_id: "12D3KooWnobody" },
      { peer_id: 7 },
      { agent_version: "" },
    ]
    for (const more of wrong) expect((await enrolWith(token, more)).status).toBe(422)
  })

  test("a revoked key is 403, and stays out", async () => {
    const identity = await newIdentity()
    const token = await rig.joinToken()
    const id = String((await enrol(rig, identity, token)).get("node_id"))
    expect((await rig.call("PUT", `/admin/nodes/${id}`, { state: "revoked", reason: "stolen" })).status).toBe(200)
    expect((await enrol(rig, identity, token)).status).toBe(403)
    expect((await enrol(rig, identity, await rig.joinToken())).status).toBe(403)
  })
})

describe("the admin's view", () => {
  test("join tokens are shown once, and only admins make them", async () => {
    const made = await rig.call("POST", "/admin/nodes/tokens", {
      name: "rack 1",
      max_uses: 2,
      ttl_s: 60,
      roles: ["builder"],
    })
    expect(made.status).toBe(201)
    expect(made.get("token")).toMatch(/^fln_[a-z0-9]{32}$/)
    // Seconds may be fractions, down to parts of a millisecond.
    expect((await rig.call("POST", "/admin/nodes/tokens", { ttl_s: 3243911.236160184 })).status).toBe(201)
    for (const wrong of [{ max_uses: 0 }, { ttl_s: -1 }, { roles: [] }, { roles: ["king"] }]) {
      expect((await rig.call("POST", "/admin/nodes/tokens", wrong)).status).toBe(422)
    }
    expect((await rig.as("POST", "/admin/nodes/tokens", {})).status).toBe(403)
    // Sent again under its key, the same one is named; its secret was kept nowhere.
    const post = (body: object): Promise<PlainReply> =>
      send(rig.coordinator.origin, "POST", "/api/v1/admin/nodes/tokens", {
        token: rig.coordinator.adminToken,
        body,
        headers: { "idempotency-key": "rack-2" },
      })
    const [once, again] = [await post({}), await post({})]
    expect(once.get("token")).toMatch(/^fln_/)
    expect([again.status, again.json]).toEqual([201, { ...once.json, token: null }])
    expect((await rig.as("GET", "/admin/nodes")).status).toBe(403)
  })

  test("a node's row shows what it lends, what is free and what it runs; it stays when the node is gone", async () => {
    const node = await startWorker(rig)
    const row = async (): Promise<Record<string, unknown>> => {
      const nodes = (await rig.call("GET", "/admin/nodes")).get("nodes") as Record<string, unknown>[]
      return nodes.find(({ id }) => id === node.id) ?? {}
    }
    await expect.poll(async () => (await row())["contact"]).toBe("connected")
    const job = await rig.submit({ requirements: { cpu: 1.5, memory_mb: 1024 } })
    const claim = await node.next()
    expect(await row()).toMatchObject({
      peer_id: node.identity.peerId,
      state: "active",
      runtime: "process",
      capacity: { cpu: 2, memory_mb: 4096 },
      free: { cpu: 0.5, memory_mb: 3072 },
      running: [{ job_id: job, attempt: 1 }],
      probation: null,
    })
    await node.report(claim)
    await expect.poll(async () => (await row())["tasks_ended"]).toBe(1)
    expect(await row()).toMatchObject({ free: { cpu: 2, memory_mb: 4096 }, running: [] })
    await node.die()
    await expect.poll(async () => (await row())["contact"]).toBe("lost_contact")
  })

  test("a node drains and returns; revocation is final, twice the same", async () => {
    const node = await rig.node()
    const put = (state: string): Promise<PlainReply> =>
      rig.call("PUT", `/admin/nodes/${node.id}`, { state, reason: "why" })
    for (const state of ["draining", "active", "revoked", "revoked"]) {
      const reply = await put(state)
      expect([reply.status, reply.get("node", "state"), reply.get("node", "state_reason")]).toEqual([200, state, "why"])
    }
    expect((await put("active")).status).toBe(409)
    expect((await put("asleep")).status).toBe(422)
    expect((await rig.call("PUT", "/admin/nodes/node_nobody", { state: "active" })).status).toBe(404)
  })
})

describe("what nodes upload", () => {
  const sha256 = (text: string): string => createHash("sha256").update(text).digest("hex")

  test("bytes need a live claim of the node, and are what their name says", async () => {
    const [node, other] = [await startWorker(rig), await startWorker(rig, { cpu: 0.1 })]
    const job = await rig.submit()
    const claim = await node.next()
    const put = (bytes: string, of: number, token = node.transferToken, digest = sha256(bytes)): Promise<PlainReply> =>
      rig.call("PUT", `/nodes/blobs/${digest}?claim=${of}`, bytes, token)
    expect((await put("hello", claim)).json).toEqual({ digest: sha256("hello"), size: 5 })
    expect((await put("hello", claim)).status).toBe(200)
    expect((await put("hello", claim, node.transferToken, sha256("other"))).status).toBe(422)
    expect((await put("hello", claim, other.transferToken)).status).toBe(410)
    expect((await put("hello", claim + 1)).status).toBe(410)
    expect((await put("hello", claim, "nds_nobody")).status).toBe(401)
    expect((await put("hello", claim, rig.coordinator.adminToken)).status).toBe(401)
    const artifact = { name: null, filename: "out.txt", digest: sha256("hello"), size: 5, content_type: "text/plain" }
    await node.report(claim, { artifacts: [artifact] })
    await expect.poll(() => node.verdicts()).toMatchObject([{ verdict: "stored" }])
    await expect.poll(async () => (await rig.job(job))["status"]).toBe("completed")
    expect((await put("late", claim)).status).toBe(410)
  })
})
