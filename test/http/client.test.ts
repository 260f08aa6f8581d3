import { createServer } from "node:http"
import { afterAll, beforeAll, expect, test } from "vitest"
import { z } from "zod"
import { endpoint } from "../../protocol/api/endpoint.ts"
import { systemClock } from "../../protocol/base/clock.ts"
import { systemRandom } from "../../protocol/base/random.ts"
import {
  callEndpoint,
  ClientError,
  downloadFrom,
  followEvents,
  Unreachable,
  uploadTo,
} from "../../protocol/client/client.ts"
import { readSse, type SseFrame } from "../../protocol/client/sse.ts"
import { notFound } from "../../protocol/domain/errors.ts"
import { accountId, keyId, userId } from "../../protocol/domain/ids.ts"
import { mount } from "../../coordinator/http/app.ts"
import { Reply } from "../../coordinator/http/reply.ts"
import { eventFrame, lastEventId, openEventStream } from "../../coordinator/http/sse.ts"
import type { Store } from "../../coordinator/store/store.ts"
import { openSocket, startHttpDoor, untilClosed, type HttpDoor } from "../support/http-door.ts"
import { openTestStore } from "../support/store.ts"

const getThing = endpoint({
  id: "test-thing",
  method: "GET",
  path: "/api/v1/things/:name/parts/:part",
  access: "viewer",
  summary: "Gives what it was asked.",
  query: z.object({ limit: z.coerce.number().default(7) }),
  reply: z.object({ name: z.string(), part: z.string(), limit: z.number() }),
})
const makeThing = endpoint({
  id: "test-make",
  method: "POST",
  path: "/api/v1/things",
  access: "member",
  summary: "Makes a thing.",
  body: z.object({ name: z.string().min(1) }),
  status: 201,
  reply: z.object({ name: z.string() }),
})
const putBytes = endpoint({
  id: "test-bytes",
  method: "POST",
  path: "/api/v1/bytes",
  access: "member",
  summary: "Counts bytes.",
  rawBody: { limitBytes: 1 << 20, contentType: "application/octet-stream" },
  reply: z.object({ bytes: z.int() }),
})
const getBytes = endpoint({
  id: "test-download",
  method: "GET",
  path: "/api/v1/bytes/:id",
  access: "viewer",
  summary: "Gives bytes.",
  stream: "bytes",
})
const watch = endpoint({
  id: "test-watch",
  method: "GET",
  path: "/api/v1/watch/:how",
  access: "viewer",
  summary: "Streams numbers.",
  stream: "events",
})

let door: HttpDoor
let store: Store
let tokenIsGood = true
const resumedFrom: (string | null)[] = []
const parts = { clock: systemClock, random: systemRandom }
const server = () => ({ origin: door.server.origin, token: "flk_x" })

beforeAll(async () => {
  store = await openTestStore()
  door = await startHttpDoor()
  mount(door.app, getThing, async ({ params, query }) => {
    if (params.name === "missing") throw notFound("the thing")
    return { name: params.name, part: params.part, limit: query.limit }
  })
  mount(door.app, makeThing, async ({ body }) => body)
  mount(door.app, putBytes, async (request) => {
    let bytes = 0
    for await (const chunk of request.openBody()) bytes += (chunk as Buffer).length
    return { bytes }
  })
  mount(door.app, getBytes, async ({ params, response }) => {
    if (params.id === "missing") throw notFound("the bytes")
    response.writeHead(200, { "content-type": "application/octet-stream" }).end(Buffer.alloc(100_000, params.id))
  })
  mount(door.app, watch, async (request) => {
    const { params, headers, response } = request
    const from = lastEventId(headers)
    if (params.how === "steps") resumedFrom.push(from)
    if (from === "5") return new Reply(204, undefined)
    const limitMs = params.how === "steps" ? 60 : 60_000
    const stillAllowed = (): Promise<boolean> => request.stillAllowed()
    const signal = request.signal()
    const stream = openEventStream({ response, clock: systemClock, signal, stillAllowed, pingMs: 100, limitMs })
    if (params.how === "flood") {
      const frame = eventFrame({ event: "job", data: "x".repeat(100_000) })
      const timer = setInterval(() => stream.send(frame) || clearInterval(timer), 1)
    }
    if (params.how === "large") {
      // The first fills what the socket takes at once: the second one waits behind it.
      for (const size of [100_000, 3_000_000]) stream.send(eventFrame({ event: "job", data: "x".repeat(size) }))
      stream.end()
    }
    if (params.how === "huge") stream.send(eventFrame({ event: "job", data: "x".repeat(32 * 1024 * 1024) }))
    if (params.how !== "steps") return undefined
    const next = Number(from ?? 0) + 1
    for (let id = next; id <= Math.min(next + 1, 5); id++) {
      stream.send(eventFrame({ event: id === 5 ? "done" : "step", id: String(id), data: { text: `line\n${id}` } }))
    }
    if (next >= 5) stream.end()
    return undefined
  })
  door.app.open({
    store,
    identify: async () =>
      tokenIsGood ? { role: "member", account: accountId(1), user: userId(1), key: keyId("k") } : null,
  })
})
afterAll(async () => {
  await door[Symbol.asyncDispose]()
  await store[Symbol.asyncDispose]()
})

test("one table serves both sides: parameters are escaped, defaults are filled in, replies are typed", async () => {
  const reply = await callEndpoint(server(), getThing, { params: { name: "a b/ü", part: "%41" }, query: { limit: 3 } })
  expect(reply).toEqual({ name: "a b/ü", part: "%41", limit: 3 })
  expect((await callEndpoint(server(), getThing, { params: { name: "a", part: "b" } })).limit).toBe(7)
  expect(await callEndpoint(server(), makeThing, { body: { name: "n" } })).toEqual({ name: "n" })
})

test("a refusal is a ClientError with status, code and body", async () => {
  const refused = await callEndpoint(server(), getThing, { params: { name: "missing", part: "x" } }).catch(
    (error: unknown) => error,
  )
  expect(refused).toBeInstanceOf(ClientError)
  expect(refused).toMatchObject({ status: 404, code: "not_found", body: { error: "the thing was not found" } })
  const wrong = await callEndpoint(server(), makeThing, { body: { name: "" } }).catch((error: unknown) => error)
  expect(wrong).toMatchObject({ status: 422, code: "invalid_request" })
})

test("no answer, a broken one and one of another program are Unreachable", async () => {
  const nobody = { origin: "http://127.0.0.1:1" }
  await expect(callEndpoint(nobody, makeThing, { body: { name: "n" } })).rejects.toBeInstanceOf(Unreachable)
  const other = createServer((_, response) => void response.end('{"hello":1}')).listen(0, "127.0.0.1")
  try {
    await new Promise((resolve) => other.once("listening", resolve))
    const address = other.address()
    const origin = `http://127.0.0.1:${typeof address === "object" ? address?.port : 0}`
    await expect(callEndpoint({ origin }, makeThing, { body: { name: "n" } })).rejects.toBeInstanceOf(Unreachable)
  } finally {
    other.close()
  }
})

test("bytes are streamed both ways, and refused with the same shape", async () => {
  async function* chunks(count: number): AsyncGenerator<Uint8Array> {
    for (let i = 0; i < count; i++) yield new Uint8Array(100_000)
  }
  expect(await uploadTo(server(), putBytes, chunks(10), {})).toEqual({ bytes: 1_000_000 })
  expect(await uploadTo(server(), putBytes, new Uint8Array(5), {})).toEqual({ bytes: 5 })
  const download = await downloadFrom(server(), getBytes, { params: { id: "7" } })
  let length = 0
  for await (const chunk of download.bytes) length += chunk.length
  expect(length).toBe(100_000)
  await expect(downloadFrom(server(), getBytes, { params: { id: "missing" } })).rejects.toMatchObject({ status: 404 })
})

test("a stream is followed over its timeouts to done, each frame once; the id of done ends it at once", async () => {
  const seen: SseFrame[] = []
  for await (const frame of followEvents(parts, server(), watch, { params: { how: "steps" } })) seen.push(frame)
  const steps = seen.filter(({ event }) => event !== "timeout")
  expect(steps.map(({ lastEventId: id, data }) => [id, data])).toEqual(
    [1, 2, 3, 4, 5].map((id) => [String(id), JSON.stringify({ text: `line\n${id}` })]),
  )
  expect(seen.find(({ event }) => event === "timeout")?.data).toBe('{"reason":"limit","reconnect":true}')
  expect(resumedFrom).toEqual([null, "2", "4"])
  for await (const _ of followEvents(parts, server(), watch, { params: { how: "steps" }, lastEventId: "5" }))
    throw new Error("nothing is left")
})

test("headers and a comment come at once, then pings; a revoked token ends the stream within the ping interval", async () => {
  const response = await fetch(`${door.server.origin}/api/v1/watch/quiet`, {
    headers: { authorization: "Bearer flk_x" },
  })
  expect(response.headers.get("content-type")).toContain("text/event-stream")
  expect(response.headers.get("cache-control")).toBe("no-cache, no-transform")
  const events: string[] = []
  try {
    for await (const frame of readSse(response.body ?? ReadableStream.from<Uint8Array>([]))) {
      events.push(frame.event)
      if (events.length === 2) tokenIsGood = false
    }
  } finally {
    tokenIsGood = true
  }
  expect(events.slice(0, 2)).toEqual(["ping", "ping"])
  expect(events.length).toBeLessThan(5)
})

test("a reader that takes nothing is cut off once 1 MiB waits for it", async () => {
  const socket = await openSocket(door.server.port)
  socket.pause()
  socket.write("GET /api/v1/watch/flood HTTP/1.1\r\nhost: x\r\nauthorization: Bearer flk_x\r\n\r\n")
  const before = process.memoryUsage().rss
  await new Promise<void>((resolve, reject) => {
    const timer = setInterval(() => socket.write("\r\n"), 50)
    socket.on("error", () => (clearInterval(timer), resolve()))
    setTimeout(() => (clearInterval(timer), reject(new Error("still open"))), 20_000).unref()
  })
  expect(process.memoryUsage().rss - before).toBeLessThan(100e6)
  socket.destroy()
})

test("a frame of more than 1 MiB reaches a reader that takes what comes: cut off by it, he would come back for it for ever", async () => {
  const response = await fetch(`${door.server.origin}/api/v1/watch/large`, {
    headers: { authorization: "Bearer flk_x" },
  })
  const sizes: number[] = []
  for await (const { data } of readSse(response.body ?? ReadableStream.from<Uint8Array>([]))) sizes.push(data.length)
  expect(sizes).toEqual([100_002, 3_000_002])
})

test("what readers that take nothing hold together is bounded; the others go on", async () => {
  const idle = await openSocket(door.server.port)
  idle.write("GET /api/v1/watch/quiet HTTP/1.1\r\nhost: x\r\nauthorization: Bearer flk_x\r\n\r\n")
  const sockets = await Promise.all(Array.from({ length: 8 }, () => openSocket(door.server.port)))
  let cutOff = 0
  const timers = sockets.map((socket) => {
    socket.pause()
    socket.write("GET /api/v1/watch/huge HTTP/1.1\r\nhost: x\r\nauthorization: Bearer flk_x\r\n\r\n")
    socket.once("error", () => (cutOff += 1))
    return setInterval(() => socket.write("\r\n"), 50)
  })
  // Each holds 32 MiB, and no more than 128 are held.
  await expect.poll(() => cutOff).toBeGreaterThanOrEqual(4)
  for (const timer of timers) clearInterval(timer)
  expect(cutOff).toBeLessThan(8)
  expect(idle.closed).toBe(false)
  for (const socket of [idle, ...sockets]) socket.destroy()
})

test("streams end when the coordinator stops", async () => {
  await using other = await startHttpDoor()
  mount(other.app, watch, async (request) => {
    const { response } = request
    const stillAllowed = (): Promise<boolean> => request.stillAllowed()
    const signal = request.signal()
    openEventStream({ response, clock: systemClock, signal, stillAllowed, pingMs: 60_000, limitMs: 60_000 })
  })
  other.app.open({
    store,
    identify: async () => ({ role: "viewer", account: accountId(1), user: userId(1), key: keyId("k") }),
  })
  const socket = await openSocket(other.server.port)
  const all = untilClosed(socket)
  socket.write("GET /api/v1/watch/x HTTP/1.1\r\nhost: x\r\nauthorization: Bearer flk_x\r\n\r\n")
  await new Promise((resolve) => socket.once("data", resolve))
  const since = performance.now()
  await other.server.close(5_000)
  expect(await all).toContain(": connected")
  expect(performance.now() - since).toBeLessThan(2_000)
})

test("frames are read whatever the chunks and line ends; a frame cut off is dropped", async () => {
  const text = "﻿: hi\r\nevent: a\r\ndata: 1\r\ndata:2\r\n\r\nid: 7\ndata: ü\n\nid\ndata\n\ndata: cut"
  const bytes = new TextEncoder().encode(text)
  for (const size of [1, 2, 3, 7, 1000]) {
    async function* chunks(): AsyncGenerator<Uint8Array> {
      for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size)
    }
    const frames: SseFrame[] = []
    for await (const frame of readSse(chunks())) frames.push(frame)
    expect(frames).toEqual([
      { event: "a", lastEventId: null, data: "1\n2" },
      { event: "message", lastEventId: "7", data: "ü" },
      { event: "message", lastEventId: "", data: "" },
    ])
  }
})
