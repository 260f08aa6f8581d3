import type { ConnectionEncrypter, MessageStream } from "@libp2p/interface"
import { expect, test } from "vitest"
import { writeWhole } from "../../protocol/mesh/whole-writes.ts"

/** As much of a list of byte arrays as a connection looks at. */
type Sent = Parameters<MessageStream["send"]>[0]

test("what the encrypter sends in parts reaches the socket as one write, whichever side it is", async () => {
  for (const side of ["secureInbound", "secureOutbound"] as const) {
    const writes: Sent[] = []
    const socket = { send: (data: Sent) => writes.push(data) < 3 } as unknown as MessageStream
    const { connection } = await writeWhole(() => asItIs)({})[side](socket)
    const parts = { byteLength: 3, subarray: () => Uint8Array.of(0, 1, 7) } as unknown as Sent
    expect(connection.send(parts)).toBe(true)
    expect(connection.send(Uint8Array.of(9))).toBe(true)
    // The socket's answer, that it wants no more for now, is the connection's.
    expect(connection.send(Uint8Array.of(9))).toBe(false)
    expect(writes).toEqual([Uint8Array.of(0, 1, 7), Uint8Array.of(9), Uint8Array.of(9)])
  }
})

const asItIs = {
  protocol: "/none",
  secureInbound: async (connection: MessageStream) => ({ connection }),
  secureOutbound: async (connection: MessageStream) => ({ connection }),
} as unknown as ConnectionEncrypter
