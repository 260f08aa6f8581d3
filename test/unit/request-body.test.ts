import type { IncomingMessage, ServerResponse } from "node:http"
import { PassThrough } from "node:stream"
import { expect, test } from "vitest"
import { ClientGone, newBodyMemory, requestBody } from "../../coordinator/http/body.ts"

test("rulings, HTTP: a client that leaves in the middle of its body gives back all the memory it took", async () => {
  const memory = newBodyMemory()
  const { leftBytes } = memory
  const { sent, body } = begun()
  const reading = body.readJson(memory)
  const refused = expect(reading).rejects.toThrow(ClientGone)
  sent.write('{"a":')
  await expect.poll(() => memory.leftBytes).toBe(leftBytes - 5)
  body.release()
  // As what lay between the socket and its reader when the connection closed.
  sent.write('"b"}')
  await refused
  expect(memory.leftBytes).toBe(leftBytes)
})

test("rulings, HTTP: a body that came whole keeps its memory until it is released", async () => {
  const memory = newBodyMemory()
  const { leftBytes } = memory
  const { sent, body } = begun()
  sent.end('{"a":1}')
  expect(await body.readJson(memory)).toEqual({ value: { a: 1 }, text: '{"a":1}' })
  expect(memory.leftBytes).toBe(leftBytes - 7)
  body.release()
  body.release()
  expect(memory.leftBytes).toBe(leftBytes)
})

function begun() {
  const sent = Object.assign(new PassThrough(), { headers: {} })
  const body = requestBody(sent as unknown as IncomingMessage, {} as ServerResponse, 1_000, false)
  return { sent, body }
}
