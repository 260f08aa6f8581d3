import { Webhook } from "standardwebhooks"
import { afterAll, beforeAll, describe, expect, test } from "vitest"
import { startFleet, type Client, type Fleet, type Json } from "../support/fleet.ts"
import { startReceiver, type Received, type Receiver } from "../support/receiver.ts"

/** A job's end is told to its `callback_url`: by a real coordinator, to real receivers. */

const RUN_PY = `import json, os, sys, time
payload = json.load(open(os.environ["COMPUTALOT_TASK_PAYLOAD"]))
print("ran", payload["code"], flush=True)
if payload["code"] == 99: time.sleep(300)
json.dump({"code": payload["code"]}, open(os.environ["COMPUTALOT_TASK_RESULT"], "w"))
sys.exit(payload["code"])
`
const RETRY_S = 0.4

let fleet: Fleet
let client: Client
let receiver: Receiver
let elsewhere: Receiver
beforeAll(async () => {
  elsewhere = await startReceiver()
  receiver = await startReceiver((response, { path }, before) => {
    if (path.startsWith("/down")) response.writeHead(500)
    else if (path.startsWith("/once-down") && before === 0) response.writeHead(503)
    else if (path.startsWith("/moved")) response.writeHead(307, { location: `${elsewhere.url}/moved` })
    else if (path.startsWith("/dies") && before === 0) return void response.socket?.destroy()
    else if (path.startsWith("/half") && before === 0) {
      response.writeHead(200, { "content-length": "100" }).write("half")
      return void setTimeout(() => response.socket?.destroy(), 50)
    }
    response.end("ok")
  })
  fleet = await startFleet({ coordinatorFlags: [`--webhook-retry-s=${RETRY_S}`] })
  client = await fleet.member()
  await client.project("p", { "run.py": RUN_PY })
})
afterAll(async () => {
  await fleet[Symbol.asyncDispose]()
  await receiver[Symbol.asyncDispose]()
  await elsewhere[Symbol.asyncDispose]()
})

function submit(path: string, codes: number[] = [0], more: Json = {}): Promise<string> {
  return client.submit({
    project: "p",
    runner_command: ["python3", "run.py"],
    fan_out: { by: "code" },
    payload: { code: codes },
    callback_url: `${receiver.url}${path}`,
    ...more,
  })
}

async function received(path: string, count = 1): Promise<Received[]> {
  await expect.poll(() => receiver.at(path).length, { timeout: 20_000 }).toBe(count)
  return receiver.at(path)
}

async function eventsOf(id: string, prefix = "webhook."): Promise<Json[]> {
  const listed = (await client.call("GET", `/api/v1/jobs/${id}/events?limit=1000`)).json["events"] as Json[]
  return listed.filter(({ type }) => String(type).startsWith(prefix))
}

async function secret(): Promise<string> {
  return String((await client.call("GET", "/api/v1/account/webhook-secret")).get("secret"))
}

const quiet = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms))
/** `verify` throws unless one signature is right and the time is near. */
const verify = (key: string, { body, headers }: Received): unknown =>
  new Webhook(key).verify(body, headers as Record<string, string>)

describe("callback_url", () => {
  test.each([
    ["completed", [0], null],
    ["partial", [0, 3], "1 of 2 tasks failed; first: exit_code_3"],
    ["failed", [3, 4], "2 of 2 tasks failed; first: exit_code_3"],
    ["cancelled", [99], "no longer needed"],
  ])(
    "W-001, W-003, J-013: a job that ends %s is told once, with the ten fields, signed",
    async (status, codes, error) => {
      const path = `/told-${status}`
      const id = await submit(path, codes, { tags: ["a", "b"] })
      if (status === "cancelled") {
        await client.until(id, (job) => job["status"] === "running")
        await client.call("PUT", `/api/v1/jobs/${id}/cancel`, { reason: "no longer needed" })
      }
      const job = await client.ended(id)
      const [call] = await received(path)
      if (!call) throw new Error("it was called")
      const body = verify(await secret(), call) as Json
      const output = await client.call("GET", `/api/v1/jobs/${id}/output`)
      expect(body).toEqual({
        event: `job.${status}`,
        job_id: id,
        status,
        project: "p",
        type: "structured_runner",
        output: output.get("output"),
        error: error === null ? null : (expect.stringContaining(error) as unknown),
        tags: ["a", "b"],
        progress: job["progress"],
        completed_at: job["completed_at"],
      })
      expect(job).toMatchObject({ callback_url: `${receiver.url}${path}`, error: body["error"] })
      expect([call.method, call.headers["content-type"]]).toEqual(["POST", "application/json"])
      await quiet(3 * RETRY_S * 1000)
      expect(receiver.at(path)).toHaveLength(1)
      expect(await eventsOf(id)).toEqual([])
    },
  )

  test("W-004: a job of ten tasks is one call", async () => {
    const id = await submit(
      "/ten",
      Array.from({ length: 10 }, () => 0),
    )
    await client.ended(id)
    const [call] = await received("/ten")
    expect(JSON.parse(call?.body ?? "{}")).toMatchObject({ event: "job.completed", progress: 100 })
    await quiet(2 * RETRY_S * 1000)
    expect(receiver.at("/ten")).toHaveLength(1)
  })

  test("W-002: three attempts in all, under one id and each with its own time; then the job's log says so", async () => {
    const id = await submit("/down")
    const calls = await received("/down", 3)
    const key = await secret()
    const ids = calls.map(({ headers }) => headers["webhook-id"])
    expect(new Set(ids).size).toBe(1)
    expect(new Set(calls.map(({ body }) => body)).size).toBe(1)
    for (const call of calls) verify(key, call)
    const gaps = calls.slice(1).map(({ atMs }, index) => atMs - (calls[index]?.atMs ?? 0))
    expect(gaps[0]).toBeGreaterThanOrEqual(RETRY_S * 800)
    expect(gaps[1]).toBeGreaterThanOrEqual(RETRY_S * 5 * 800)
    expect(Number(calls[2]?.headers["webhook-timestamp"])).toBeGreaterThan(
      Number(calls[0]?.headers["webhook-timestamp"]),
    )
    await expect.poll(() => eventsOf(id)).toHaveLength(1)
    expect(await eventsOf(id)).toMatchObject([
      { type: "webhook.failed", data: { attempts: 3, reason: "answered 500", status: "completed" } },
    ])
    await quiet(RETRY_S * 6 * 1000)
    expect(receiver.at("/down")).toHaveLength(3)
  }, 30_000)

  test.each(["/once-down", "/dies", "/half"])("W-002: %s the first time is called twice", async (path) => {
    const id = await submit(path)
    const calls = await received(path, 2)
    expect(new Set(calls.map(({ headers }) => headers["webhook-id"])).size).toBe(1)
    await quiet(RETRY_S * 1000)
    expect(receiver.at(path)).toHaveLength(2)
    expect(await eventsOf(id)).toEqual([])
  })

  test("GAP-61: a redirect is not followed: it is an answer that is no 2xx", async () => {
    const id = await submit("/moved")
    await received("/moved", 3)
    await expect
      .poll(() => eventsOf(id))
      .toMatchObject([{ type: "webhook.failed", data: { reason: "answered 307: redirects are not followed" } }])
    expect(elsewhere.received).toEqual([])
  }, 30_000)

  test("J-013: addresses that nobody should be sent to are 422, whatever their spelling; this machine's own is fine", async () => {
    const job = { type: "structured_runner", project: "p", runner_command: ["python3", "run.py"], payload: { code: 0 } }
    for (const url of [
      "http://10.0.0.1/x",
      "http://192.168.1.1:8080/x",
      "https://169.254.169.254/latest/meta-data",
      "http://167772161/x",
      "http://0x0a000001/x",
      "http://012.0.0.1/x",
      "http://0.0.0.0:8080/x",
      "http://100.64.0.1/x",
      "http://[fd00::1]/x",
      "http://[fe80::1]/x",
      "http://[::ffff:10.0.0.1]/x",
      "http://[::]/x",
      "ftp://example.com/x",
      "file:///etc/passwd",
      "example.com/x",
      "",
      `http://example.com/${"x".repeat(2_048)}`,
    ]) {
      const reply = await client.call("POST", "/api/v1/jobs", { ...job, callback_url: url })
      expect([reply.status, reply.get("code")], url).toEqual([422, "invalid_request"])
      expect(reply.get("details")).toMatchObject([{ path: "callback_url" }])
    }
    for (const url of [`${receiver.url}/fine`, `http://[::ffff:127.0.0.1]:${receiver.port}/fine`, null]) {
      const reply = await client.call("POST", "/api/v1/jobs", { ...job, callback_url: url })
      expect([reply.status, reply.get("callback_url")]).toEqual([201, url === null ? null : url])
      await client.ended(String(reply.get("id")))
    }
    await received("/fine", 2)
  })

  test("rulings, Webhook secret: a new secret signs, the one before too, and the one before that no longer", async () => {
    const first = await secret()
    expect(first).toMatch(/^whsec_[A-Za-z0-9+/]{43}=$/)
    const rotated = await client.call("POST", "/api/v1/account/webhook-secret")
    const [second, until] = [String(rotated.get("secret")), Date.parse(String(rotated.get("previous_valid_until")))]
    expect([rotated.status, second === first]).toEqual([200, false])
    expect(Math.abs(until - Date.now() - 24 * 3600 * 1000)).toBeLessThan(60_000)
    expect((await client.call("GET", "/api/v1/account/webhook-secret")).json).toEqual(rotated.json)
    await submit("/rotated")
    const [call] = await received("/rotated")
    if (!call) throw new Error("it was called")
    verify(first, call)
    verify(second, call)
    await client.call("POST", "/api/v1/account/webhook-secret")
    await submit("/rotated-again")
    const [later] = await received("/rotated-again")
    if (!later) throw new Error("it was called")
    expect(() => verify(first, later)).toThrow("No matching signature")
    verify(second, later)
    verify(await secret(), later)
  })
})
