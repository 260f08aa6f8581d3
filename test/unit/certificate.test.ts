import { describe, expect, test } from "vitest"
import { encodeCbor } from "../../protocol/base/cbor.ts"
import { systemRandom } from "../../protocol/base/random.ts"
import { nodeId } from "../../protocol/domain/ids.ts"
import { identityFromSeed } from "../../protocol/mesh/identity.ts"
import {
  CERTIFICATE_GRACE_MS,
  CERTIFICATE_SKEW_MS,
  signCertificate,
  verifyCertificate,
  type Membership,
} from "../../protocol/wire/certificate.ts"
import { judgeEnrolment, publicKeyOfPeerId, signBytes, signEnrolment } from "../../protocol/wire/signing.ts"

const coordinator = await identityFromSeed(new Uint8Array(32).fill(1))
const stranger = await identityFromSeed(new Uint8Array(32).fill(2))
const node = await identityFromSeed(new Uint8Array(32).fill(3))
const HOUR = 3600_000
const membership: Membership = {
  peerId: node.peerId,
  nodeId: nodeId("node_1"),
  roles: ["worker", "builder"],
  issuedAt: 1_000 * HOUR,
  expiresAt: 1_168 * HOUR,
}
const text = signCertificate(coordinator, membership)
const verify = (certificate: string, now: number, withoutCoordinator = false) =>
  verifyCertificate(certificate, coordinator.publicKey, now, { withoutCoordinator })

describe("membership certificates", () => {
  test("a certificate of the coordinator says who the member is", () => {
    expect(verify(text, membership.issuedAt)).toEqual({ valid: true, membership })
  })

  test("it counts with five minutes of skew at both ends, and a day longer for those who lack the coordinator", () => {
    const { issuedAt, expiresAt } = membership
    expect(verify(text, issuedAt - CERTIFICATE_SKEW_MS).valid).toBe(true)
    expect(verify(text, issuedAt - CERTIFICATE_SKEW_MS - 1)).toMatchObject({ valid: false, reason: "not_yet_valid" })
    expect(verify(text, expiresAt + CERTIFICATE_SKEW_MS - 1).valid).toBe(true)
    expect(verify(text, expiresAt + CERTIFICATE_SKEW_MS)).toEqual({ valid: false, reason: "expired", membership })
    const late = expiresAt + CERTIFICATE_SKEW_MS + CERTIFICATE_GRACE_MS
    expect(verify(text, late - 1, true).valid).toBe(true)
    expect(verify(text, late, true)).toMatchObject({ valid: false, reason: "expired" })
  })

  test("one signed by another, or changed in any byte, is forged", () => {
    expect(verify(signCertificate(stranger, membership), membership.issuedAt)).toMatchObject({ reason: "forged" })
    const bytes = Buffer.from(text, "base64")
    for (let i = 0; i < bytes.length; i++) {
      const changed = Buffer.from(bytes)
      changed[i] = (changed[i] ?? 0) ^ 1
      expect(verify(changed.toString("base64"), membership.issuedAt)).toMatchObject({ valid: false, reason: "forged" })
    }
  })

  test("what is no certificate is malformed, also when the coordinator signed it for something else", () => {
    for (const other of ["", "?", "AAAA", text.slice(0, -4), `${text} `, "A".repeat(4096)]) {
      expect(verify(other, membership.issuedAt).valid).toBe(false)
    }
    const facts = encodeCbor({ epoch: 7 })
    const signedOtherwise = Buffer.concat([facts, signBytes(coordinator.seed, facts)]).toString("base64")
    expect(verify(signedOtherwise, membership.issuedAt)).toEqual({ valid: false, reason: "forged" })
    const prefixed = Buffer.concat([Buffer.from("computalot-certificate:1:"), facts])
    const noFacts = Buffer.concat([facts, signBytes(coordinator.seed, prefixed)]).toString("base64")
    expect(verify(noFacts, membership.issuedAt)).toEqual({ valid: false, reason: "malformed" })
  })

  test("the same facts and key give the same text", () => {
    expect(signCertificate(coordinator, { ...membership })).toBe(text)
  })
})

describe("peer ids", () => {
  test("our peer id of a key is libp2p's, and leads back to the key", async () => {
    for (let i = 0; i < 20; i++) {
      const identity = await identityFromSeed(systemRandom.bytes(32))
      const { peerIdFromPrivateKey } = await import("@libp2p/peer-id")
      expect(identity.peerId).toBe(peerIdFromPrivateKey(identity.privateKey).toString())
      expect([...(publicKeyOfPeerId(identity.peerId) ?? [])]).toEqual([...identity.publicKey])
    }
  })

  test("what is no Ed25519 peer id has no key", () => {
    for (const text of [
      "",
      "12D3",
      "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
      "0OIl",
      "1".repeat(52),
      "z".repeat(9999),
    ]) {
      expect(publicKeyOfPeerId(text)).toBeNull()
    }
  })
})

describe("enrolment signatures", () => {
  const token = "fln_abc"
  const request = { token, peerId: node.peerId as string, ...signEnrolment(node, token, node.peerId) }

  test("whoever holds token and key is genuine", () => {
    expect(judgeEnrolment(request)).toBe("genuine")
  })

  test("a signature for another token or by another key is forged", () => {
    expect(judgeEnrolment({ ...request, token: "fln_other" })).toBe("forged")
    const { signature } = signEnrolment(stranger, token, node.peerId)
    expect(judgeEnrolment({ ...request, signature })).toBe("forged")
  })

  test("a key that is not the peer id's, and what is no base64 of a key, is malformed", () => {
    const { publicKey } = signEnrolment(stranger, token, node.peerId)
    expect(judgeEnrolment({ ...request, publicKey })).toBe("malformed")
    expect(judgeEnrolment({ ...request, publicKey: `${request.publicKey}\n` })).toBe("malformed")
    expect(judgeEnrolment({ ...request, signature: request.signature.slice(4) })).toBe("malformed")
    expect(judgeEnrolment({ ...request, peerId: "12D3KooW" })).toBe("malformed")
  })
})
