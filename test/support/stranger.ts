import { gossipsub } from "@chainsafe/libp2p-gossipsub"
import { identify } from "@libp2p/identify"
import type { Connection, Stream } from "@libp2p/interface"
import { noise } from "@libp2p/noise"
import { peerIdFromString } from "@libp2p/peer-id"
import { tcp } from "@libp2p/tcp"
import { yamux } from "@libp2p/yamux"
import { multiaddr } from "@multiformats/multiaddr"
import { createLibp2p } from "libp2p"
import type { PeerId } from "../../protocol/domain/ids.ts"
import type { Identity } from "../../protocol/mesh/identity.ts"
import { encodeFrame } from "../../protocol/wire/frames.ts"
import { encodeHello, HELLO_PROTOCOL, type HelloMessage } from "../../protocol/wire/hello.ts"
import { signBytes } from "../../protocol/wire/signing.ts"
import { newIdentity } from "./mesh.ts"

/** A libp2p node that is none of ours: it shows what it likes, or nothing. */
export async function startStranger(identity?: Identity) {
  const { privateKey } = identity ?? (await newIdentity())
  const node = await createLibp2p({
    privateKey,
    transports: [tcp()],
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    connectionMonitor: { enabled: false },
    services: {
      identify: identify(),
      gossip: gossipsub({ allowPublishToZeroTopicPeers: true, scoreParams: { IPColocationFactorWeight: 0 } }),
    },
  })
  return {
    node,
    dial: (address: string): Promise<Connection> => node.dial(multiaddr(address)),
    [Symbol.asyncDispose]: async () => {
      await node.stop()
    },
  }
}

/** Says one message of the exchange; gives the bytes of all that came back. */
export async function sayHello(connection: Connection, message: HelloMessage | Uint8Array): Promise<string> {
  const stream = await connection.newStream([HELLO_PROTOCOL.name])
  const answer: Uint8Array[] = []
  stream.addEventListener("message", (event) => answer.push(event.data.subarray()))
  stream.send(message instanceof Uint8Array ? message : encodeFrame(encodeHello(message)))
  await ended(stream)
  return Buffer.concat(answer).toString("latin1")
}

export const ended = (stream: Stream): Promise<void> =>
  new Promise((resolve) => {
    if (stream.readableEnded || stream.status !== "open") resolve()
    stream.addEventListener("end", () => resolve())
    stream.addEventListener("close", () => resolve())
  })

export const hello = (
  certificate: string | null,
  more: Partial<{ oldest: number; newest: number }> = {},
): HelloMessage => ({
  type: "hello",
  oldest: 1,
  newest: 1,
  agent_version: "stranger/1",
  certificate,
  ...more,
})

/** Goes through the whole exchange with a certificate, and then does what it likes. */
export async function enter(connection: Connection, certificate: string): Promise<void> {
  const stream = await connection.newStream([HELLO_PROTOCOL.name])
  const answered = new Promise<void>((resolve) => {
    stream.addEventListener("message", () => resolve())
  })
  stream.send(encodeFrame(encodeHello(hello(certificate))))
  await answered
  stream.send(encodeFrame(encodeHello({ type: "admitted", version: 1 })))
  await stream.close()
}

/** A gossip message on the wire: `signer` signs it, `from` is who it claims to be of. */
export function gossipRpc(facts: {
  from: PeerId
  signer: Identity
  topic: string
  data: Uint8Array
  seqno: number
}): Uint8Array {
  const seqno = Buffer.alloc(8)
  seqno.writeBigUInt64BE(BigInt(facts.seqno))
  const message = Buffer.concat([
    field(1, peerIdFromString(facts.from).toMultihash().bytes),
    field(2, facts.data),
    field(3, seqno),
    field(4, Buffer.from(facts.topic)),
  ])
  const signature = signBytes(facts.signer.seed, Buffer.concat([Buffer.from("libp2p-pubsub:"), message]))
  const rpc = field(2, Buffer.concat([message, field(5, signature)]))
  return Buffer.concat([varint(rpc.length), rpc])
}

/** A length-delimited field of a protobuf message. */
function field(number: number, bytes: Uint8Array): Uint8Array {
  return Buffer.concat([Uint8Array.of((number << 3) | 2), varint(bytes.length), bytes])
}

export function varint(value: number): Uint8Array {
  const bytes: number[] = []
  for (; value > 127; value = Math.floor(value / 128)) bytes.push((value % 128) | 128)
  return Uint8Array.of(...bytes, value)
}
