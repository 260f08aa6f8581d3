import type { Stream } from "@libp2p/interface"

/** The receiving side of a yamux stream. */
interface Receiving {
  state: number
  /** Bytes the other side may send before it hears of more, and what is left of them. */
  recvWindow: number
  recvWindowCapacity: number
  sendWindowUpdate(): void
}

/** yamux: opened by both sides, and not paused. */
const ESTABLISHED = 3

/**
 * Lets the window be said again only once half of it is used, as other implementations do. js-libp2p says it after each piece
 * of data, in a message that is encrypted, written and read by itself: among small frames as much work as the frames are. A
 * sender never waits for it in vain: who has used up the window has used half of it.
 */
export function saveWindowUpdates(stream: Stream): void {
  if (!receives(stream)) return
  const update = stream.sendWindowUpdate.bind(stream)
  stream.sendWindowUpdate = () => {
    if (stream.state === ESTABLISHED && stream.recvWindowCapacity > stream.recvWindow / 2) return
    update()
  }
}

/** Another muxer, or another version of it, goes its own way. */
function receives(stream: Stream): stream is Stream & Receiving {
  const { state, recvWindow, recvWindowCapacity, sendWindowUpdate } = stream as Partial<Receiving>
  return (
    typeof sendWindowUpdate === "function" &&
    [state, recvWindow, recvWindowCapacity].every((value) => typeof value === "number")
  )
}
