import { execFile } from "node:child_process"
import { mkdtemp, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { promisify } from "node:util"
import { afterAll, beforeAll, expect, test } from "vitest"
import { z } from "zod"
import { endpoint } from "../../protocol/api/endpoint.ts"
import { silentLog } from "../../protocol/base/log.ts"
import { ComputalotError, notFound } from "../../protocol/domain/errors.ts"
import { accountId, keyId, userId } from "../../protocol/domain/ids.ts"
import { mount } from "../../coordinator/http/app.ts"
import type { Store } from "../../coordinator/store/store.ts"
import { openSocket, send, sendRaw, startHttpDoor, untilClosed, type HttpDoor } from "../support/http-door.ts"
import { openTestStore } from "../support/store.ts"

const echo = endpoint({
  id: "test-echo",
  method: "POST",
  path: "/api/v1/test/echo",
  access: "member",
  summary: "Gives the body back.",
  body: z.object({ text: z.string().min(2).optional(), list: z.array(z.object({ n: z.number() })).optional() }),
  reply: z.object({ body: z.unknown() }),
})
const thing = endpoint({
  id: "test-thing",
  method: "GET",
  path: "/api/v1/test/:id",
  access: "viewer",
  summary: "Fails as its id says.",
  reply: z.object({ id: z.string() }),
})
const upload = endpoint({
  id: "test-upload",
  method: "POST",
  path: "/api/v1/test/:id/upload",
  access: "member",
  summary: "Counts bytes.",
  rawBody: { limitBytes: 3 * 1024 * 1024, contentType: "application/gzip" },
  reply: z.object({ bytes: z.int() }),
})

let store: Store
let door: HttpDoor
let dir: string
const run = promisify(execFile)
const token = "flk_member"

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "http-errors-"))
  store = await openTestStore()
  door = await startHttpDoor()
  mount(door.app, echo, async ({ body }) => ({ body }))
  mount(door.app, thing, async ({ params }) => {
    if (params.id === "missing") throw notFound("the thing")
    if (params.id === "bug") throw new Error("a secret detail")
    if (params.id === "busy") throw new ComputalotError("busy", "too much at once")
    return { id: params.id }
  })
  const isThere = async ({ params }: { params: { id: string } }): Promise<void> => {
    if (params.id === "missing") throw notFound("the thing")
  }
  mount(
    door.app,
    upload,
    async (request) => {
      let bytes = 0
      for await (const chunk of request.openBody()) bytes += (chunk as Buffer).length
      return { bytes }
    },
    { before: isThere },
  )
  const roles = { flk_member: "member", flk_viewer: "viewer", flk_admin: "admin" } as const
  door.app.open({
    store,
    identify: async (given) =>
      given in roles
        ? { role: roles[given as keyof typeof roles], account: accountId(1), user: userId(1), key: keyId("k") }
        : null,
  })
})
afterAll(async () => {
  await door[Symbol.asyncDispose]()
  await store[Symbol.asyncDispose]()
  await rm(dir, { recursive: true })
})

const call = (method: string, path: string, options: Parameters<typeof send>[3] = {}) =>
  send(door.server.origin, method, path, options)

test("O-001, O-002, O-003: the operations endpoints answer exactly", async () => {
  const alive = { status: "ok", app: "computalot_api" }
  expect((await call("GET", "/health")).json).toEqual(alive)
  expect((await call("GET", "/live")).json).toEqual(alive)
  const ready = await call("GET", "/ready")
  expect([ready.status, ready.json]).toEqual([
    200,
    { status: "ready", checks: { repo: "ok", api_supervisor: "ok", controller_core: "ok" } },
  ])
})

test("O-003: before the core runs /ready and the API answer 503, /health 200", async () => {
  await using early = await startHttpDoor()
  const ready = await send(early.server.origin, "GET", "/ready")
  expect([ready.status, ready.json["checks"]]).toEqual([
    503,
    { repo: "down", api_supervisor: "ok", controller_core: "down" },
  ])
  const api = await send(early.server.origin, "GET", "/api/v1/jobs")
  expect([api.status, api.json["code"]]).toEqual([503, "unavailable"])
  expect(Number(api.headers["retry-after"])).toBeGreaterThan(0)
  expect((await send(early.server.origin, "GET", "/health")).status).toBe(200)
})

test("E-002, GAP-68: every refusal has one shape, and the request id is echoed", async () => {
  const refused = await call("GET", "/api/v1/test/missing", { token, headers: { "x-request-id": "mine-7" } })
  expect(refused.status).toBe(404)
  expect(refused.json).toEqual({
    error: "the thing was not found",
    code: "not_found",
    recommended_action: expect.any(String) as string,
    request_id: "mine-7",
  })
  expect(refused.headers["x-request-id"]).toBe("mine-7")
  const other = await call("GET", "/api/v1/test/missing", { token, headers: { "x-request-id": "<script>" } })
  expect(other.json["request_id"]).toMatch(/^req_[a-z0-9]{16}$/)
})

test("E-002: every refusal of the door names the next step, whichever status it has", async () => {
  const refusals = [
    call("GET", "/api/v1/test/%zz", { token }),
    call("GET", "/api/v1/test/a"),
    call("POST", "/api/v1/test/echo", { token: "flk_viewer", body: {} }),
    call("GET", "/nothing"),
    call("DELETE", "/api/v1/test/a"),
    call("POST", "/api/v1/test/a/upload", { token, headers: { "content-length": "99999999", expect: "100-continue" } }),
    call("POST", "/api/v1/test/echo", { token, body: { text: "x" } }),
    call("GET", "/api/v1/test/bug", { token }),
    call("GET", "/api/v1/test/busy", { token }),
  ]
  const answers = await Promise.all(refusals)
  expect(answers.map(({ status }) => status)).toEqual([400, 401, 403, 404, 405, 413, 422, 500, 503])
  for (const { json } of answers) {
    expect(Object.keys(json)).toEqual(expect.arrayContaining(["error", "code", "recommended_action", "request_id"]))
    expect(String(json["recommended_action"])).toMatch(/^[A-Z].*\.$/)
  }
})

test("E-003, GAP-01: no token, a wrong one and a malformed one are 401; a role that does not reach is 403", async () => {
  for (const headers of [
    {},
    { authorization: "Bearer flk_wrong" },
    { authorization: "Basic Zm9v" },
    { authorization: "Bearer " },
  ]) {
    const refused = await call("GET", "/api/v1/test/a", { headers })
    expect([refused.status, refused.json["code"], refused.headers["www-authenticate"]]).toEqual([
      401,
      "unauthenticated",
      "Bearer",
    ])
  }
  expect((await call("GET", "/api/v1/test/a", { token: "flk_viewer" })).status).toBe(200)
  expect((await call("POST", "/api/v1/test/echo", { token: "flk_viewer", body: {} })).status).toBe(403)
  expect((await call("POST", "/api/v1/test/echo", { token: "flk_admin", body: {} })).status).toBe(200)
})

test("an unknown path is 404 JSON and a wrong method 405 with Allow, whoever asks", async () => {
  for (const path of ["/nothing", "/api/v1/nothing", "/api/v1/test/a/b/c", "//health", "/HEALTH"]) {
    const refused = await call("GET", path)
    expect([refused.status, refused.json["code"]]).toEqual([404, "not_found"])
  }
  const refused = await call("DELETE", "/api/v1/test/a")
  expect([refused.status, refused.json["code"], refused.headers["allow"]]).toEqual([
    405,
    "method_not_allowed",
    "GET, HEAD",
  ])
  expect((await call("OPTIONS", "/health")).status).toBe(405)
  expect((await call("TRACE", "/health")).status).toBe(405)
})

test("E-010: static words win over ids, whatever the order of mounting", async () => {
  const refused = await call("GET", "/api/v1/test/echo", { token })
  expect([refused.status, refused.headers["allow"]]).toEqual([405, "POST"])
})

test("HEAD answers as GET without a body", async () => {
  const got = await call("GET", "/api/v1/test/a", { token })
  const head = await call("HEAD", "/api/v1/test/a", { token })
  expect([head.status, head.text]).toEqual([200, ""])
  expect(head.headers["content-length"]).toBe(got.headers["content-length"])
})

test("an undecodable percent-encoding is 400", async () => {
  for (const path of ["/api/v1/test/%zz", "/%", "/health?x=%e0%a4"]) {
    const refused = await call("GET", path, { token })
    expect([refused.status, refused.json["code"]]).toEqual([400, "malformed_path"])
  }
})

test("invalid JSON, null, a list and a scalar are 422; no body is an empty object (E-007); the Content-Type does not matter", async () => {
  for (const body of ["{", "null", "[1]", "7", '"text"', "{}{}", new Uint8Array([0x7b, 0xff, 0x7d])]) {
    const refused = await call("POST", "/api/v1/test/echo", { token, body })
    expect([refused.status, refused.json["code"]]).toEqual([422, "invalid_request"])
  }
  const empty = await call("POST", "/api/v1/test/echo", { token, headers: { "content-type": "application/json" } })
  expect([empty.status, empty.json]).toEqual([200, { body: {} }])
  const form = { "content-type": "application/x-www-form-urlencoded" }
  const labelled = await call("POST", "/api/v1/test/echo", { token, body: '{"text":"hi"}', headers: form })
  expect(labelled.json).toEqual({ body: { text: "hi" } })
})

test("every wrong field is named with its path; null counts as left out; unknown fields are ignored", async () => {
  const refused = await call("POST", "/api/v1/test/echo", { token, body: { text: "x", list: [{ n: 1 }, { n: "2" }] } })
  expect(refused.status).toBe(422)
  expect(refused.json["details"]).toEqual([
    { path: "text", problem: expect.stringContaining("2") as string },
    { path: "list[1].n", problem: "expected number, received string" },
  ])
  const taken = await call("POST", "/api/v1/test/echo", { token, body: { text: null, other: 1 } })
  expect(taken.json).toEqual({ body: {} })
})

test("a number that JSON.parse would change is 422 and names its path", async () => {
  const refused = await call("POST", "/api/v1/test/echo", { token, body: '{"list":[{"n":9007199254740993}]}' })
  expect(refused.status).toBe(422)
  expect(refused.get("details", 0, "path")).toBe("list[0].n")
})

test("a fault of ours is 500 without its inner text; busy is 503 with Retry-After", async () => {
  const fault = await call("GET", "/api/v1/test/bug", { token })
  expect([fault.status, fault.json["code"]]).toEqual([500, "internal"])
  expect(fault.text).not.toContain("secret")
  const busy = await call("GET", "/api/v1/test/busy", { token })
  expect([busy.status, Number(busy.headers["retry-after"]) > 0]).toEqual([503, true])
})

test("GAP-13, GAP-32: a body over the limit is 413, by its declared length before it is read and by counting", async () => {
  const declared = await sendRaw(
    door.server.port,
    `POST /api/v1/test/echo HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${token}\r\ncontent-length: 99999999999\r\n\r\n`,
  )
  expect(declared).toContain("413")
  expect(declared).toContain("body_too_large")
  const chunk = "x".repeat(1024 * 1024)
  const socket = await openSocket(door.server.port)
  const answered = untilClosed(socket)
  socket.write(
    `POST /api/v1/test/a/upload HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${token}\r\ntransfer-encoding: chunked\r\n\r\n`,
  )
  for (let i = 0; i < 4; i++) socket.write(`100000\r\n${chunk}\r\n`)
  expect(await answered).toContain("413")
  const exact = await call("POST", "/api/v1/test/a/upload", { token, body: new Uint8Array(3 * 1024 * 1024) })
  expect(exact.json).toEqual({ bytes: 3 * 1024 * 1024 })
  const above = await call("POST", "/api/v1/test/a/upload", { token, body: new Uint8Array(3 * 1024 * 1024 + 1) })
  expect([above.status, above.json["code"]]).toEqual([413, "body_too_large"])
})

test("E-008, E-009: curl uploads 3 MB without a stall, and is refused before it sends anything", async () => {
  const file = join(dir, "upload.bin")
  await writeFile(file, new Uint8Array(3 * 1024 * 1024))
  const curl = async (path: string, key: string): Promise<{ text: string; seconds: number; sent: number }> => {
    const { stdout } = await run("curl", [
      "-sSXPOST",
      `-HAuthorization: Bearer ${key}`,
      `--data-binary`,
      `@${file}`,
      "-w\n%{time_total} %{size_upload}",
      `${door.server.origin}${path}`,
    ])
    const [text = "", figures = ""] = stdout.split("\n")
    const [seconds, sent] = figures.split(" ").map(Number)
    return { text, seconds: seconds ?? 0, sent: sent ?? 0 }
  }
  const taken = await curl("/api/v1/test/a/upload", token)
  expect(taken.text).toBe('{"bytes":3145728}')
  expect(taken.seconds).toBeLessThan(0.9)
  const refusals = [
    await curl("/api/v1/test/a/upload", "flk_wrong"),
    await curl("/api/v1/test/a/upload", "flk_viewer"),
    await curl("/api/v1/test/missing/upload", token),
  ]
  expect(refusals.map(({ text }) => (JSON.parse(text) as { code: string }).code)).toEqual([
    "unauthenticated",
    "forbidden",
    "not_found",
  ])
  for (const refused of refusals) expect([refused.sent, refused.seconds < 0.9]).toEqual([0, true])
})

test("garbage on the socket is answered or dropped, and service goes on", async () => {
  const garbage = [
    "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "GET\r\n\r\n",
    "GET / HTTP/9.9\r\n\r\n",
    "POST /health HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
    "POST /health HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
    `GET /health HTTP/1.1\r\nhost: x\r\nx: ${"y".repeat(20_000)}\r\n\r\n`,
    "GET http://[ HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    "GET \\..\\x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
  ]
  for (const bytes of garbage) expect(await sendRaw(door.server.port, bytes)).toMatch(/^HTTP\/1\.1 4\d\d /)
  expect((await call("GET", "/health")).status).toBe(200)
})

test("500 connections at once are served", async () => {
  const sockets = await Promise.all(Array.from({ length: 500 }, () => openSocket(door.server.port)))
  const answers = sockets.map(untilClosed)
  for (const socket of sockets) socket.write("GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
  for (const answer of await Promise.all(answers)) expect(answer).toContain("200 OK")
})

test("a client that never finishes its headers is closed, while others are served", async () => {
  const socket = await openSocket(door.server.port)
  const closed = untilClosed(socket)
  socket.write("GET /health HTTP/1.1\r\n")
  const drip = setInterval(() => socket.write("x-a: b\r\n"), 500)
  try {
    expect((await call("GET", "/health")).status).toBe(200)
    expect(await closed).toContain("408")
  } finally {
    clearInterval(drip)
  }
})

test("closing lets a request in work finish, ends idle connections and refuses new ones", async () => {
  await using other = await startHttpDoor()
  let release = (): void => {}
  const waiting = new Promise<void>((resolve) => (release = resolve))
  mount(other.app, thing, async ({ params }) => (await waiting, { id: params.id }))
  other.app.open({
    store,
    identify: async () => ({ role: "member", account: accountId(1), user: userId(1), key: keyId("k") }),
  })
  const idle = await openSocket(other.server.port)
  const idleEnded = untilClosed(idle)
  const slow = send(other.server.origin, "GET", "/api/v1/test/slow", { token })
  await new Promise((resolve) => setTimeout(resolve, 100))
  const closed = other.server.close(5_000)
  expect((await other.app.readiness()).status).toBe("unavailable")
  await idleEnded
  release()
  expect((await slow).json).toEqual({ id: "slow" })
  await closed
  await expect(send(other.server.origin, "GET", "/health")).rejects.toThrow()
})

test("/ready says when nothing can be stored, while what is stored can be read", async () => {
  await using other = await startHttpDoor()
  mount(other.app, thing, async ({ params }) => ({ id: params.id }))
  let problem: string | null = "the disk is full"
  const full: Store = { ...store, writeProblem: () => problem }
  const identify = async () => ({ role: "viewer", account: accountId(1), user: userId(1), key: keyId("k") }) as const
  other.app.open({ store: full, identify })
  const ready = await send(other.server.origin, "GET", "/ready")
  expect([ready.status, ready.json["checks"]]).toEqual([
    503,
    { repo: "down", api_supervisor: "ok", controller_core: "ok" },
  ])
  expect((await send(other.server.origin, "GET", "/api/v1/test/a", { token })).status).toBe(200)
  problem = null
  expect((await send(other.server.origin, "GET", "/ready")).status).toBe(200)
})

test("strangers may send small bodies only, and an endless body that nobody wants ends the connection", async () => {
  const knock = endpoint({
    id: "test-knock",
    method: "POST",
    path: "/api/v1/knock",
    access: "public",
    summary: "Takes a name.",
    body: z.object({ name: z.string() }),
    reply: z.object({ name: z.string() }),
  })
  await using other = await startHttpDoor()
  mount(other.app, knock, async ({ body }) => body)
  other.app.open({ store, identify: async () => null })
  expect((await send(other.server.origin, "POST", "/api/v1/knock", { body: { name: "Ada" } })).json).toEqual({
    name: "Ada",
  })
  expect(
    (await send(other.server.origin, "POST", "/api/v1/knock", { body: { name: "x".repeat(70_000) } })).status,
  ).toBe(413)

  const socket = await openSocket(other.server.port)
  const ended = untilClosed(socket)
  socket.write("GET /health HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
  const chunk = `10000\r\n${"x".repeat(65_536)}\r\n`
  const pour = setInterval(() => socket.writable && socket.write(chunk), 1)
  try {
    expect(await ended).toContain("200 OK")
  } finally {
    clearInterval(pour)
  }
})

test("bodies that stop in the middle cost nothing: the connection ends with them, and no error is logged", async () => {
  const errors: string[] = []
  await using other = await startHttpDoor({ ...silentLog, error: (event) => errors.push(event) })
  mount(other.app, echo, async ({ body }) => ({ body }))
  other.app.open({
    store,
    identify: async () => ({ role: "member", account: accountId(1), user: userId(1), key: keyId("k") }),
  })
  for (let i = 0; i < 20; i++) {
    const socket = await openSocket(other.server.port)
    socket.write(
      `POST /api/v1/test/echo HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${token}\r\ncontent-length: 100\r\n\r\n{"text"`,
    )
    setTimeout(() => socket.destroy(), 20)
    await untilClosed(socket)
  }
  expect((await send(other.server.origin, "POST", "/api/v1/test/echo", { token, body: {} })).status).toBe(200)
  expect(errors).toEqual([])
})
