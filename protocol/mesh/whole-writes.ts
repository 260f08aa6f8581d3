import type { ConnectionEncrypter, MessageStream } from "@libp2p/interface"

/**
 * An encrypter that hands each of its messages to the socket in one piece. Noise gives the length and the message as two, and
 * each would be a write, a packet and a wake of the other side: half of what a small frame costs.
 */
export function writeWhole<Components>(
  encrypter: (components: Components) => ConnectionEncrypter,
): (components: Components) => ConnectionEncrypter {
  return (components) => {
    const inner = encrypter(components)
    return {
      protocol: inner.protocol,
      secureInbound: (connection, options) => inner.secureInbound(sendWhole(connection), options),
      secureOutbound: (connection, options) => inner.secureOutbound(sendWhole(connection), options),
    }
  }
}

function sendWhole(connection: MessageStream): MessageStream {
  const send = connection.send.bind(connection)
  connection.send = (data) => send(data instanceof Uint8Array ? data : data.subarray())
  return connection
}
