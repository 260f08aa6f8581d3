import { connect, createServer, type Server, type Socket } from "node:net"
import { once } from "node:events"

/** `up` is towards the target. */
type Direction = "up" | "down"

/** A link between two programs that a test can cut, silence, slow down or hold in one direction. */
export interface TcpProxy extends AsyncDisposable {
  readonly port: number
  /** Bytes that went through since the link was made. */
  readonly bytes: Readonly<Record<Direction, number>>
  /** Every connection is reset, and new ones are refused. */
  cut(): Promise<void>
  /** Connections stay and are taken, and nothing comes through. */
  silence(): void
  /** Nothing comes through in one direction. */
  hold(direction: Direction): void
  /** At most so many bytes a second each way; null: as fast as it goes. */
  slow(bytesPerSecond: number | null): void
  /** As before any of these. */
  heal(): Promise<void>
}

/** Listens on loopback and passes everything to `target` (a loopback port). */
export async function startTcpProxy(target: number): Promise<TcpProxy> {
  const pairs = new Set<Record<Direction, Pipe>>()
  const held = new Set<Direction>()
  const bytes = { up: 0, down: 0 }
  let rate: number | null = null
  let server = await listen(0)
  const port = (server.address() as { port: number }).port

  async function listen(on: number): Promise<Server> {
    const made = createServer((client) => accept(client))
    made.listen(on, "127.0.0.1")
    await once(made, "listening")
    return made
  }

  function accept(client: Socket): void {
    const upstream = connect(target, "127.0.0.1")
    const through = (from: Socket, to: Socket, direction: Direction): Pipe =>
      pipe(from, to, {
        mayPass: () => !held.has(direction),
        bytesPerSecond: () => rate,
        passed: (count) => (bytes[direction] += count),
      })
    const pair = { up: through(client, upstream, "up"), down: through(upstream, client, "down") }
    pairs.add(pair)
    for (const socket of [client, upstream]) {
      socket.on("error", () => {})
      socket.on("close", () => {
        pairs.delete(pair)
        client.destroy()
        upstream.destroy()
      })
    }
  }

  function resume(): void {
    for (const { up, down } of pairs) {
      up.resume()
      down.resume()
    }
  }

  return {
    port,
    bytes,
    async cut() {
      const closed = once(server, "close")
      server.close()
      for (const { up, down } of pairs) {
        up.from.resetAndDestroy()
        down.from.resetAndDestroy()
      }
      await closed
    },
    silence() {
      held.add("up").add("down")
    },
    hold(direction) {
      held.add(direction)
    },
    slow(bytesPerSecond) {
      rate = bytesPerSecond
    },
    async heal() {
      held.clear()
      rate = null
      if (!server.listening) server = await listen(port)
      resume()
    },
    async [Symbol.asyncDispose]() {
      for (const { up, down } of pairs) {
        up.from.destroy()
        down.from.destroy()
      }
      if (!server.listening) return
      server.close()
      await once(server, "close")
    },
  }
}

interface Pipe {
  readonly from: Socket
  resume(): void
}

/** Passes bytes on while it `mayPass`, no faster than the rate; what came meanwhile waits, and the sender's window fills. */
function pipe(
  from: Socket,
  to: Socket,
  link: { mayPass: () => boolean; bytesPerSecond: () => number | null; passed: (bytes: number) => void },
): Pipe {
  let waiting: Buffer[] = []
  let pausedUntil = 0
  let timer: NodeJS.Timeout | null = null

  function flush(): void {
    while (waiting.length > 0 && link.mayPass()) {
      const waitMs = pausedUntil - performance.now()
      if (waitMs > 0) {
        timer ??= setTimeout(() => {
          timer = null
          flush()
        }, waitMs)
        return
      }
      const chunk = waiting.shift()
      if (!chunk) break
      link.passed(chunk.length)
      const perSecond = link.bytesPerSecond()
      if (perSecond !== null) pausedUntil = performance.now() + (chunk.length / perSecond) * 1_000
      to.write(chunk)
    }
    if (waiting.length === 0) from.resume()
  }

  from.on("data", (chunk: Buffer) => {
    waiting.push(chunk)
    from.pause()
    flush()
  })
  from.on("end", () => {
    const finish = (): void => {
      if (waiting.length === 0) to.end()
      else setTimeout(finish, 50)
    }
    finish()
  })
  from.on("close", () => {
    if (timer) clearTimeout(timer)
    waiting = []
  })
  return { from, resume: flush }
}
