import { connect } from "node:net"
import { readdirSync, readlinkSync } from "node:fs"
import { join } from "node:path"
import { afterAll, beforeAll, describe, expect, test } from "vitest"
import { startFleet, type Client, type Fleet, type Json } from "../support/fleet.ts"
import { send, sendRaw } from "../support/http-door.ts"

/** Input of all sorts is refused, or kept exactly as it came; never mangled. A real node shows what a program is given. */

const ECHO = `import json, os
payload = json.load(open(os.environ["COMPUTALOT_TASK_PAYLOAD"]))
json.dump({"seen": payload, "odd": os.environ.get("ODD")}, open(os.environ["COMPUTALOT_TASK_RESULT"], "w"))
`

let fleet: Fleet
let client: Client
beforeAll(async () => {
  fleet = await startFleet()
  client = await fleet.member(20)
  await client.project("odd", { "job.py": ECHO })
})
afterAll(() => fleet[Symbol.asyncDispose]())

const job = (fields: Json): Json => ({
  type: "structured_runner",
  project: "odd",
  runner_command: ["python3", "job.py"],
  ...fields,
})

async function refused(reply: Awaited<ReturnType<Client["call"]>>, status: number): Promise<void> {
  expect([reply.status, reply.text]).toEqual([status, expect.any(String)])
  expect(reply.json).toMatchObject({
    error: expect.any(String) as string,
    code: expect.any(String) as string,
    recommended_action: expect.any(String) as string,
    request_id: expect.any(String) as string,
  })
}

describe("queries and paths", () => {
  test("a parameter that stands there twice is refused, not guessed", async () => {
    for (const path of [
      "/api/v1/jobs?limit=1&limit=2",
      "/api/v1/jobs?tag=a&tag=b",
      "/api/v1/results?project=odd&project=odd",
      "/api/v1/artifacts?offset=0&offset=1",
    ]) {
      await refused(await client.call("GET", path), 422)
    }
    // Brackets make no lists and no objects of it: the names are unknown, and unknown ones are ignored (C-19).
    expect((await client.call("GET", "/api/v1/jobs?tag[]=a&limit[x]=1&__proto__=1")).status).toBe(200)
  })

  test("numbers in queries are whole and in range, or refused", async () => {
    for (const value of ["1e3", "0x10", "1.0", "-1", "99999999999999999999", "NaN", "", "%201", "１"]) {
      await refused(
        await client.call("GET", `/api/v1/jobs?limit=${encodeURIComponent(decodeURIComponent(value))}`),
        422,
      )
    }
    expect((await client.call("GET", "/api/v1/jobs?limit=9007199254740991")).get("limit")).toBe(500)
  })

  test("%00, unicode, dots, slashes and __proto__ in a path name nothing, and nothing breaks", async () => {
    for (const id of [
      "%00",
      "a%00b",
      "%2e%2e%2f%2e%2e%2fetc",
      "%F0%9F%98%80",
      "__proto__",
      "constructor",
      "%20",
      "a".repeat(4000),
    ]) {
      for (const path of [
        `/api/v1/jobs/${id}`,
        `/api/v1/results/${id}`,
        `/api/v1/artifacts/${id}/meta`,
        `/api/v1/projects/${id}`,
      ]) {
        await refused(await client.call("GET", path), 404)
      }
    }
    await refused(await client.call("GET", "/api/v1/jobs/%ff"), 400)
  })

  test("searching for a label of 8 KiB, with NUL or in any script finds nothing and breaks nothing", async () => {
    for (const tag of ["x".repeat(8192), "\0", "a\0b", "ⅷ😀\u202e", "' OR 1=1 --", "%", "_", "__proto__"]) {
      const found = await client.call("GET", `/api/v1/jobs?tag=${encodeURIComponent(tag)}`)
      expect([found.status, found.get("total")]).toEqual([200, 0])
    }
  })

  test("headers of more than 16 KiB are 431, and the next request is served", async () => {
    const reply = await sendRaw(
      Number(new URL(fleet.origin).port),
      `GET /health HTTP/1.1\r\nHost: x\r\nX-Long: ${"y".repeat(20_000)}\r\n\r\n`,
    )
    expect(reply).toMatch(/^HTTP\/1\.1 431 /)
    expect(reply).toContain("recommended_action")
    expect((await send(fleet.origin, "GET", "/health")).status).toBe(200)
  })
})

describe("bodies", () => {
  test("labels in any script, with NUL and unnormalised, come back exactly and are found by themselves alone", async () => {
    const tags = ["é", "é", "😀", "\u202eabc", "tab\tand\0nul", " spaced ", "__proto__", "x".repeat(256)]
    const id = await client.submit(
      job({ tags, client_ref: "ref é\0", meta: { Ключ: "значение" }, requirements: { cpu: 3000 } }),
    )
    const shown = (await client.call("GET", `/api/v1/jobs/${id}`)).json
    expect(shown).toMatchObject({ tags, client_ref: "ref é\0", meta: { Ключ: "значение" } })
    for (const tag of tags) {
      const found = await client.call("GET", `/api/v1/jobs?tag=${encodeURIComponent(tag)}`)
      expect([tag, (found.json["jobs"] as Json[]).map((row) => row["id"])]).toEqual([tag, [id]])
    }
    const none = await client.call("GET", `/api/v1/jobs?client_ref=${encodeURIComponent("ref é")}`)
    expect(none.get("total")).toBe(0)
    await client.call("PUT", `/api/v1/jobs/${id}/cancel`)
  })

  test("a tag of 8 KiB, too many of them, and tags that are no strings are refused with their path", async () => {
    for (const [tags, path] of [
      [["x".repeat(8192)], "tags[0]"],
      [["ok", 7], "tags[1]"],
      [[""], "tags[0]"],
      [Array.from({ length: 21 }, String), "tags"],
      ["one", "tags"],
    ] as const) {
      const reply = await client.call("POST", "/api/v1/jobs", job({ tags }))
      await refused(reply, 422)
      expect(reply.json["details"]).toMatchObject([{ path }])
    }
  })

  test("numbers beyond 2^53, repeated keys and half characters are refused with their path; nothing is created", async () => {
    const before = (await client.call("GET", "/api/v1/jobs")).get("total")
    for (const [payload, path] of [
      ['{"n":9007199254740993}', "payload.n"],
      ['{"n":[1e400]}', "payload.n[0]"],
      ['{"a":1,"a":2}', "payload.a"],
      ['{"s":"\\ud800"}', "payload.s"],
    ] as const) {
      const body = `{"type":"structured_runner","project":"odd","runner_command":["python3","job.py"],"payload":${payload}}`
      const reply = await send(fleet.origin, "POST", "/api/v1/jobs", { token: client.token, body })
      await refused(reply, 422)
      expect(reply.json["details"]).toMatchObject([{ path }])
    }
    expect((await client.call("GET", "/api/v1/jobs")).get("total")).toBe(before)
  })

  test("nesting of 200 levels is kept, more is refused, and so is a megabyte of brackets", async () => {
    const nested = (depth: number): string => `${"[".repeat(depth)}1${"]".repeat(depth)}`
    const body = (depth: number): string =>
      `{"type":"structured_runner","project":"odd","runner_command":["python3","job.py"],"payload":{"x":${nested(depth)}}}`
    const kept = await send(fleet.origin, "POST", "/api/v1/jobs", { token: client.token, body: body(150) })
    expect(kept.status, kept.text).toBe(201)
    const [task] = await client.tasks(String(kept.get("id")))
    expect(JSON.stringify(task?.["payload"])).toBe(`{"x":${nested(150)}}`)
    for (const depth of [199, 100_000]) {
      await refused(await send(fleet.origin, "POST", "/api/v1/jobs", { token: client.token, body: body(depth) }), 422)
    }
  })

  test("keys named __proto__, constructor and toString are data: client, row and program see the same", async () => {
    const payload =
      '{"__proto__":{"admin":true},"constructor":1,"toString":[],"hasOwnProperty":null,"":0,"a.b":{"0":"x"},"ü\\u0000":"\\u2028"}'
    const body = `{"type":"structured_runner","project":"odd","runner_command":["python3","job.py"],"payload":${payload},"meta":{"__proto__":"kept","env":{"ODD":"ü 😀"}},"timeout_s":60}`
    const made = await send(fleet.origin, "POST", "/api/v1/jobs", { token: client.token, body })
    expect(made.status, made.text).toBe(201)
    const id = String(made.get("id"))
    expect(await client.ended(id)).toMatchObject({ status: "completed" })
    const [row] = (await client.results(id))["results"] as Json[]
    expect(JSON.parse(JSON.stringify(row?.["payload"]))).toEqual(JSON.parse(payload))
    expect(row?.["result"]).toEqual({ seen: JSON.parse(payload) as unknown, odd: "ü 😀" })
    const shown = (await client.call("GET", `/api/v1/jobs/${id}`)).text
    expect(shown).toContain('"__proto__":"kept"')
    expect(({} as { admin?: boolean }).admin).toBeUndefined()
  })

  test("shared values under odd keys and of odd kinds are refused or kept to the letter", async () => {
    const path = (key: string): string => `/api/v1/projects/odd/kv/${key}`
    for (const key of ["%00", "a%20b", "%F0%9F%98%80", "a%2Fb", "x".repeat(129)]) {
      await refused(await client.call("PUT", path(key), { value: 1 }), 422)
    }
    const kept = [
      ["__proto__", '{"__proto__":{"a":1},"constructor":null}'],
      ["exact", '[1e-7,-0.5,9007199254740991,"\\u0000 é 😀"]'],
      ["deep", `${"[".repeat(150)}${"]".repeat(150)}`],
    ] as const
    for (const [key, text] of kept) {
      const put = await send(fleet.origin, "PUT", path(key), { token: client.token, body: `{"value":${text}}` })
      expect([key, put.status], put.text).toEqual([key, 200])
      const found = await client.call("GET", path(key))
      expect([key, JSON.stringify(found.json["value"])]).toEqual([key, JSON.stringify(JSON.parse(text))])
    }
    for (const text of ["9007199254740993", "1e400", '{"a":1,"a":2}', '"\\ud800"', "[".repeat(100_000)]) {
      const put = await send(fleet.origin, "PUT", path("exact"), { token: client.token, body: `{"value":${text}}` })
      expect([text.slice(0, 20), put.status]).toEqual([text.slice(0, 20), 422])
    }
    const [, before] = kept[1]
    expect(JSON.stringify((await client.call("GET", path("exact"))).json["value"])).toBe(
      JSON.stringify(JSON.parse(before)),
    )
    const listed = (await client.call("GET", "/api/v1/projects/odd/kv?prefix=__proto__")).json["entries"] as Json[]
    expect(listed.map(({ key }) => key)).toEqual(["__proto__"])
  })

  test("headers of clients that say odd things are refused or kept, never guessed", async () => {
    const port = Number(new URL(fleet.origin).port)
    const body = JSON.stringify(job({ requirements: { cpu: 5 } }))
    const raw = (headers: string): Promise<string> =>
      sendRaw(
        port,
        `POST /api/v1/jobs HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer ${client.token}\r\n${headers}Content-Length: ${body.length}\r\n\r\n${body}`,
      )
    const before = (await client.call("GET", "/api/v1/jobs")).get("total")
    // Two headers of one name are one with a comma (RFC 9110): one key, one job.
    const [first, again] = [
      await raw("Idempotency-Key: a\r\nIdempotency-Key: b\r\n"),
      await raw("Idempotency-Key: a, b\r\n"),
    ]
    expect(first).toMatch(/^HTTP\/1\.1 201 /)
    expect(again?.split("\r\n\r\n")[1]).toBe(first?.split("\r\n\r\n")[1])
    expect(await raw(`Idempotency-Key: ${"k".repeat(256)}\r\n`)).toMatch(/^HTTP\/1\.1 422 /)
    expect(await raw("Transfer-Encoding: chunked\r\n")).toMatch(/^HTTP\/1\.1 400 /)
    expect(await raw("X Space: a\r\n")).toMatch(/^HTTP\/1\.1 400 /)
    expect((await client.call("GET", "/api/v1/jobs")).get("total")).toBe(Number(before) + 1)
  })

  test("names of projects are checked letter by letter", async () => {
    for (const name of ["", "A", "prøve", "a b", "a/b", "..", "a\0", "x".repeat(65), " a", "__proto__ "]) {
      await refused(await client.call("POST", "/api/v1/projects", { name, remote_dir: "/root/x" }), 422)
    }
    const made = await client.call("POST", "/api/v1/projects", { name: "__proto__", remote_dir: "/root/x" })
    expect(made.status).toBe(201)
    expect((await client.call("GET", "/api/v1/projects/__proto__")).get("name")).toBe("__proto__")
  })

  test("names of files keep every character, and lose their folders alone", async () => {
    for (const [sent, kept] of [
      ["../../etc/passwd", "passwd"],
      ["weird name (1).tar.gz", "weird name (1).tar.gz"],
      [Buffer.from("übung😀.txt").toString("latin1"), "übung😀.txt"],
    ] as const) {
      const made = await client.call("POST", "/api/v1/artifacts", Buffer.from("x"), { "x-artifact-filename": sent })
      expect(made.status, made.text).toBe(201)
      expect((await client.call("GET", `/api/v1/artifacts/${String(made.get("id"))}/meta`)).get("filename")).toBe(kept)
    }
  })

  test("a client that dies in the middle of an upload leaves nothing behind", async () => {
    const port = Number(new URL(fleet.origin).port)
    const before = (await client.call("GET", "/api/v1/artifacts")).get("count")
    const jobs = (await client.call("GET", "/api/v1/jobs")).get("total")
    const revision = (await client.call("GET", "/api/v1/projects/odd")).get("content_hash")
    const head = `Host: x\r\nAuthorization: Bearer ${client.token}\r\n`
    const sockets = [
      `POST /api/v1/artifacts HTTP/1.1\r\n${head}Content-Length: 1000000\r\n\r\n${"x".repeat(5000)}`,
      `POST /api/v1/artifacts HTTP/1.1\r\n${head}Transfer-Encoding: chunked\r\n\r\n1388\r\n${"x".repeat(5000)}`,
      `POST /api/v1/projects/odd/push HTTP/1.1\r\n${head}Content-Length: 1000000\r\n\r\n${"x".repeat(5000)}`,
      `POST /api/v1/jobs HTTP/1.1\r\n${head}Content-Length: 500\r\n\r\n{"type":`,
    ].map((bytes) => {
      const socket = connect(port, "127.0.0.1")
      socket.on("error", () => undefined)
      socket.write(bytes)
      return socket
    })
    // The two artifacts and the push are under way.
    await expect.poll(unfinished, { timeout: 20_000 }).toHaveLength(3)
    for (const socket of sockets) socket.resetAndDestroy()
    await expect.poll(unfinished, { timeout: 20_000 }).toEqual([])
    expect((await client.call("GET", "/api/v1/artifacts")).get("count")).toBe(before)
    expect((await client.call("GET", "/api/v1/jobs")).get("total")).toBe(jobs)
    expect((await client.call("GET", "/api/v1/projects/odd")).get("content_hash")).toBe(revision)
    // A push that died locks nobody out.
    expect((await client.push("odd", { "job.py": ECHO })).status).toBe(200)
    expect((await client.call("GET", "/ready")).status).toBe(200)
  })

  const unfinished = (): string[] =>
    readdirSync(join(fleet.folder, "coordinator"), { recursive: true, encoding: "utf8" }).filter((path) =>
      /incoming\/.+/.test(path),
    )

  test("readers of streams that die leave no connection behind", async () => {
    const port = Number(new URL(fleet.origin).port)
    const id = await client.submit(job({ requirements: { cpu: 3000 } }))
    const idle = connectionsOf(fleet.coordinator.process.pid ?? 0)
    const paths = [`jobs/${id}/stream`, `jobs/watch?ids=${id}`, "projects/odd/stream"]
    const sockets = await Promise.all(
      Array.from({ length: 30 }, async (_, n) => {
        const socket = connect(port, "127.0.0.1")
        socket.on("error", () => undefined)
        socket.write(`GET /api/v1/${paths[n % 3]} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${client.token}\r\n\r\n`)
        let heard = ""
        for await (const bytes of socket.iterator({ destroyOnReturn: false })) {
          heard += String(bytes)
          if (heard.includes("event: snapshot")) break
        }
        expect(heard).toContain("text/event-stream")
        return socket
      }),
    )
    const open = connectionsOf(fleet.coordinator.process.pid ?? 0)
    expect(open).toBeGreaterThanOrEqual(idle + 30)
    for (const [n, socket] of sockets.entries()) if (n % 2 === 0) socket.resetAndDestroy()
    for (const socket of sockets) socket.destroy()
    await expect
      .poll(() => connectionsOf(fleet.coordinator.process.pid ?? 0), { timeout: 20_000 })
      .toBeLessThanOrEqual(idle + 2)
    await client.call("PUT", `/api/v1/jobs/${id}/cancel`)
    expect((await client.call("GET", "/ready")).status).toBe(200)
  })
})

/** Sockets that the program holds. */
function connectionsOf(pid: number): number {
  return readdirSync(`/proc/${pid}/fd`).filter((fd) => {
    try {
      return readlinkSync(`/proc/${pid}/fd/${fd}`).startsWith("socket:")
    } catch {
      return false
    }
  }).length
}
