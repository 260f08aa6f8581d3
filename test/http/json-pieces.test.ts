import { createServer } from "node:http"
import type { AddressInfo } from "node:net"
import { expect, test } from "vitest"
import { JsonPieces, objectWithRows } from "../../coordinator/http/reply.ts"
import { sendPieces } from "../../coordinator/http/send-json.ts"
import { send } from "../support/http-door.ts"

test("a page that fits in one piece goes out whole, a larger one as it is made", async () => {
  await using door = await startPages()
  const small = await send(door.origin, "GET", "/3")
  expect(small.json).toEqual({ rows: rows(3), count: 3 })
  expect(small.headers).toMatchObject({
    "content-type": "application/json; charset=utf-8",
    "content-length": String(Buffer.byteLength(small.text)),
  })
  for (const count of [800, 5_000]) {
    const large = await send(door.origin, "GET", `/${count}`)
    expect(large.json).toEqual({ rows: rows(count), count })
    expect(large.headers).toMatchObject({ "transfer-encoding": "chunked" })
  }
  const none = await send(door.origin, "GET", "/0")
  expect(none.json).toEqual({ rows: [], count: 0 })
})

test("what fails while a page is made is a refusal as long as nothing went out, and breaks the connection after that", async () => {
  await using door = await startPages()
  expect(await send(door.origin, "GET", "/fail-after-3")).toMatchObject({ status: 500, text: "refused" })
  await expect(send(door.origin, "GET", "/fail-after-9000")).rejects.toThrow("aborted")
})

const rows = (count: number): string[] => Array.from({ length: count }, (_, n) => `row ${n} é ${"x".repeat(100)}`)

/** `/N` answers a page of N rows; `/fail-after-N` fails behind them. */
async function startPages(): Promise<{ origin: string } & AsyncDisposable> {
  async function* made(count: number, fails: boolean): AsyncGenerator<string, void, undefined> {
    yield* rows(count)
    if (fails) throw new Error("a row is not to be had")
  }
  const server = createServer((request, response) => {
    const { url = "" } = request
    const page = made(Number(/\d+$/.exec(url)?.[0]), url.startsWith("/fail"))
    const pieces = new JsonPieces(objectWithRows("rows", page, (count) => ({ count })))
    sendPieces(request, response, 200, pieces).catch(() => {
      if (response.headersSent) response.destroy()
      else response.writeHead(500).end("refused")
    })
  })
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
  const { port } = server.address() as AddressInfo
  return {
    origin: `http://127.0.0.1:${port}`,
    [Symbol.asyncDispose]: () => new Promise((resolve) => server.close(() => resolve())),
  }
}
