import { z } from "zod"
import { decodeCbor, encodeCbor } from "../base/cbor.ts"
import { LONGEST_CERTIFICATE } from "./certificate.ts"
import type { StreamProtocol } from "./stream-protocol.ts"

/**
 * The first exchange on every connection (architecture §5.1). The dialer speaks first: hello; the other answers hello or
 * refused; the dialer ends with admitted or refused. Its name and the fields below stay for ever, and unknown fields are
 * passed over, so that programs of different ages can at least tell one another why they part.
 */
export const HELLO_PROTOCOL: StreamProtocol = {
  name: "/computalot/hello/1",
  /** A certificate and a few words; strangers get to use it, so it stays small. */
  largestFrameBytes: 4096,
  /** Two, because a member may show a renewed certificate while the first exchange is being closed. */
  streamsPerPeer: 2,
  unsentBytes: 16 * 1024,
  beforeAdmission: true,
}

/** Why a peer is not admitted: one closed list, so that both sides can log it and act on it. */
const REFUSALS = [
  /** No protocol version that both speak. */
  "version",
  /** The peer showed no certificate. */
  "no_certificate",
  "malformed_certificate",
  "forged_certificate",
  /** The certificate is another peer's. */
  "foreign_certificate",
  "expired_certificate",
  "not_yet_valid_certificate",
  /** The coordinator has revoked this member. */
  "revoked",
  /** What came was no hello. */
  "malformed_hello",
  /** Nothing valid within the time. */
  "too_late",
  /** It broke off without giving a reason, or gave one that we do not know. */
  "unknown",
] as const
export type Refusal = (typeof REFUSALS)[number]

const versions = { oldest: z.int().nonnegative(), newest: z.int().nonnegative() }
const helloMessage = z.discriminatedUnion("type", [
  z.object({
    type: z.literal("hello"),
    ...versions,
    agent_version: z.string().max(128),
    /** Null at the coordinator, whom its peer id proves, and at a peer that has none. */
    certificate: z.string().max(LONGEST_CERTIFICATE).nullable(),
  }),
  z.object({ type: z.literal("admitted"), version: z.int().nonnegative() }),
  z.object({
    type: z.literal("refused"),
    ...versions,
    reason: z.enum(REFUSALS).catch("unknown"),
    /** For whoever reads the log. */
    detail: z.string().max(512),
  }),
])
export type HelloMessage = z.infer<typeof helloMessage>

export function encodeHello(message: HelloMessage): Uint8Array {
  return encodeCbor(message)
}

/** The message, or null when the bytes are none. */
export function decodeHello(bytes: Uint8Array): HelloMessage | null {
  try {
    const parsed = helloMessage.safeParse(decodeCbor(bytes))
    return parsed.success ? parsed.data : null
  } catch {
    return null
  }
}
