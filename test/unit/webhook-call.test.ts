import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { createServer as createTcpServer, type Socket } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterEach, expect, onTestFinished, test } from "vitest"
import { systemClock } from "../../protocol/base/clock.ts"
import { callReceiver, type CallOutcome } from "../../coordinator/webhooks/call.ts"
import { createResolve, type ResolvedAddress } from "../../coordinator/webhooks/resolve.ts"
import type { Reach } from "../../coordinator/webhooks/callback-url.ts"
import { startReceiver, type Receiver } from "../support/receiver.ts"

const open: AsyncDisposable[] = []
afterEach(async () => {
  for (const one of open.splice(0)) await one[Symbol.asyncDispose]()
})

async function receiving(answer?: Parameters<typeof startReceiver>[0]): Promise<Receiver> {
  const receiver = await startReceiver(answer)
  open.push(receiver)
  return receiver
}

const LOOPBACK: ResolvedAddress = { address: "127.0.0.1", family: 4 }
const NEVER = new AbortController().signal
const BODY = Buffer.from("{}")

interface Options {
  /** What the name stands for, one answer after the other; the last one for ever. */
  names?: ResolvedAddress[][]
  reach?: Partial<Reach>
  timeoutMs?: number
  signal?: AbortSignal
}

function call(
  url: string,
  { names = [], reach = {}, timeoutMs = 5_000, signal = NEVER }: Options = {},
): Promise<CallOutcome> {
  let asked = 0
  const resolve = async (): Promise<ResolvedAddress[]> => names[Math.min(asked++, names.length - 1)] ?? []
  const parts = {
    clock: systemClock,
    resolve,
    reach: { privateAddresses: false, loopback: true, ...reach },
    timeoutMs,
  }
  return callReceiver(parts, { url, headers: { "content-type": "application/json" }, body: BODY }, signal)
}

test("W-003: a name is called at the address that was checked, under its own name", async () => {
  const receiver = await receiving()
  const outcome = await call(`http://hooks.example:${receiver.port}/x?y=1`, { names: [[LOOPBACK]] })
  expect(outcome).toEqual({ kind: "delivered" })
  expect(receiver.received).toMatchObject([
    { method: "POST", path: "/x?y=1", body: "{}", headers: { host: `hooks.example:${receiver.port}` } },
  ])
})

test("GAP-61: a name whose address is private is refused, and nothing is sent; also where only one of several is", async () => {
  const receiver = await receiving()
  const url = `http://hooks.example:${receiver.port}/`
  for (const address of [
    "127.0.0.1",
    "10.0.0.1",
    "::1",
    "::ffff:127.0.0.1",
    "169.254.169.254",
    "0.0.0.0",
    "100.64.1.1",
  ]) {
    const hidden: ResolvedAddress = { address, family: address.includes(":") ? 6 : 4 }
    const publicOne: ResolvedAddress = { address: "8.8.8.8", family: 4 }
    for (const names of [[[hidden]], [[publicOne, hidden]]]) {
      const outcome = await call(url, { names, reach: { loopback: false } })
      expect(outcome, address).toEqual({
        kind: "refused",
        reason: `hooks.example is at ${address}, not a public address`,
      })
    }
  }
  expect(await call(`http://127.0.0.1:${receiver.port}/`, { reach: { loopback: false } })).toMatchObject({
    kind: "refused",
  })
  expect(receiver.received).toEqual([])
  expect(await call(url, { names: [[LOOPBACK]], reach: { loopback: false, privateAddresses: true } })).toEqual({
    kind: "delivered",
  })
})

test("GAP-61: a name that stands for another address when it is asked again is asked once: rebinding wins nothing", async () => {
  const [checked, hidden] = [await receiving(), await receiving()]
  const first: ResolvedAddress = { address: "127.0.0.2", family: 4 }
  // Were the name looked up again for the connection, the answer would come from 127.0.0.1.
  const outcome = await call(`http://rebinding.example:${hidden.port}/`, { names: [[first], [LOOPBACK]] })
  expect(outcome).toEqual({ kind: "failed", reason: "the connection failed (ECONNREFUSED)" })
  expect(hidden.received).toEqual([])
  expect(await call(`http://rebinding.example:${checked.port}/`, { names: [[LOOPBACK], [first]] })).toEqual({
    kind: "delivered",
  })
})

test.each([
  [200, "delivered"],
  [204, "delivered"],
  [299, "delivered"],
  [304, "failed"],
  [404, "failed"],
  [410, "failed"],
  [500, "failed"],
])("GAP-61: an answer %i is %s", async (status, kind) => {
  const receiver = await receiving((response) => response.writeHead(status).end())
  expect(await call(receiver.url)).toMatchObject({ kind })
})

test("GAP-61: redirects are not followed", async () => {
  const elsewhere = await receiving()
  for (const status of [301, 302, 303, 307, 308]) {
    const receiver = await receiving((response) => response.writeHead(status, { location: elsewhere.url }).end())
    expect(await call(receiver.url)).toEqual({
      kind: "failed",
      reason: `answered ${status}: redirects are not followed`,
    })
  }
  expect(elsewhere.received).toEqual([])
})

test("a receiver that does not answer, or not to the end, fails at the deadline", async () => {
  const silent = await receiving(() => {})
  const drips = await receiving((response) => {
    response.writeHead(200)
    const timer = setInterval(() => response.write("x"), 20)
    response.on("close", () => clearInterval(timer))
  })
  for (const receiver of [silent, drips]) {
    const before = performance.now()
    expect(await call(receiver.url, { timeoutMs: 300 })).toEqual({
      kind: "failed",
      reason: "no whole answer within 0.3 s",
    })
    expect(performance.now() - before).toBeLessThan(5_000)
  }
  const slowName = callReceiver(
    {
      clock: systemClock,
      resolve: () => new Promise(() => {}),
      reach: { privateAddresses: false, loopback: true },
      timeoutMs: 200,
    },
    { url: "http://slow.example/", headers: {}, body: BODY },
    NEVER,
  )
  expect(await slowName).toMatchObject({ kind: "failed" })
})

test("a receiver that dies before, within or after its headers fails; a huge answer is read in part", async () => {
  const raw = async (bytes: string): Promise<string> => {
    const sockets = new Set<Socket>()
    const server = createTcpServer((socket) => {
      sockets.add(socket)
      socket.on("error", () => {})
      socket.once("data", () => socket.end(bytes))
    })
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
    open.push({
      async [Symbol.asyncDispose]() {
        for (const socket of sockets) socket.destroy()
        await new Promise((resolve) => server.close(resolve))
      },
    })
    return `http://127.0.0.1:${(server.address() as { port: number }).port}/`
  }
  for (const bytes of [
    "",
    "HTTP/1.1 200",
    "HTTP/1.1 200 OK\r\ncontent-le",
    "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf",
    "this is no HTTP\r\n\r\n",
  ])
    expect(await call(await raw(bytes)), JSON.stringify(bytes)).toMatchObject({ kind: "failed" })
  expect(await call(await raw("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwhole"))).toEqual({ kind: "delivered" })
  const huge = await receiving((response) => {
    response.on("error", () => {})
    response.writeHead(200).write("x".repeat(300_000))
  })
  expect(await call(huge.url)).toEqual({ kind: "delivered" })
})

test("nobody there and no such name fail; a stop rejects", async () => {
  const gone = await startReceiver()
  await gone[Symbol.asyncDispose]()
  expect(await call(gone.url)).toEqual({ kind: "failed", reason: "the connection failed (ECONNREFUSED)" })
  expect(await call("http://nowhere.example/", { names: [[]] })).toMatchObject({ kind: "failed" })
  const silent = await receiving(() => {})
  const stop = new AbortController()
  const stopped = call(silent.url, { signal: stop.signal })
  stop.abort(new Error("the coordinator stops"))
  await expect(stopped).rejects.toThrow("the coordinator stops")
})

test("localhost is this machine, and is never asked of a name server", async () => {
  const resolve = createResolve()
  for (const name of ["localhost", "x.localhost", "localhost."])
    expect((await resolve(name, NEVER)).map(({ address }) => address)).toEqual(["127.0.0.1", "::1"])
})

test("what the hosts file knows is asked of nobody, so that names that never answer do not hold it up", async () => {
  const folder = mkdtempSync(join(tmpdir(), "computalot-hosts-"))
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }))
  const file = join(folder, "hosts")
  writeFileSync(
    file,
    "# 192.0.2.9 hooks.invalid\n192.0.2.1\tother.invalid Hooks.invalid # ours\n\n2001:db8::1 hooks.invalid\nnot-an-address hooks.invalid\n",
  )
  const resolve = createResolve(file)
  for (const name of ["hooks.invalid", "HOOKS.invalid."])
    expect(await resolve(name, NEVER)).toEqual([
      { address: "192.0.2.1", family: 4 },
      { address: "2001:db8::1", family: 6 },
    ])
  await expect(resolve("ooks.invalid", NEVER)).rejects.toThrow()
})
