import { afterEach, beforeEach, expect, test } from "vitest"
import { systemClock } from "../../protocol/base/clock.ts"
import { systemRandom } from "../../protocol/base/random.ts"
import { mountWebhookSecret } from "../../coordinator/http/routes/webhook-secret.ts"
import { startHttp, type CoordinatorHttp } from "../support/coordinator-http.ts"

const PATH = "/api/v1/account/webhook-secret"
const DAY_MS = 24 * 3600 * 1000

let aheadMs = 0
let http: CoordinatorHttp
beforeEach(async () => {
  aheadMs = 0
  const clock = { ...systemClock, now: () => systemClock.now() + aheadMs }
  http = await startHttp({
    clock,
    mountMore: (app, store) => mountWebhookSecret(app, { store, clock, random: systemRandom }),
  })
})
afterEach(async () => {
  await http[Symbol.asyncDispose]()
})

test("rulings, Webhook secret: 32 bytes, the same at every look, and another account's is another", async () => {
  const [one, two] = [await http.person(), await http.person()]
  const first = await http.call(one.token, "GET", PATH)
  expect(first.status).toBe(200)
  expect(Object.keys(first.json)).toEqual(["secret"])
  const secret = String(first.get("secret"))
  expect(secret.startsWith("whsec_")).toBe(true)
  expect(Buffer.from(secret.slice(6), "base64")).toHaveLength(32)
  expect((await http.call(one.token, "GET", PATH)).json).toEqual(first.json)
  expect((await http.call(two.token, "GET", PATH)).get("secret")).not.toBe(secret)
})

test("A-021: viewers may neither read nor change it, and nobody without a key", async () => {
  const { account } = await http.person()
  const viewer = await http.person("viewer", account)
  for (const method of ["GET", "POST"]) {
    const refused = await http.call(viewer.token, method, PATH)
    expect([refused.status, refused.get("code")], method).toEqual([403, "forbidden"])
    expect((await http.call(undefined, method, PATH)).status).toBe(401)
  }
})

test("the bootstrap token has no account of its own: 422, unless it names one that exists", async () => {
  const member = await http.person()
  for (const method of ["GET", "POST"]) {
    expect((await http.call(http.admin, method, PATH)).status, method).toBe(422)
    expect((await http.call(http.admin, method, `${PATH}?account_id=99999`)).status, method).toBe(404)
  }
  const named = await http.call(http.admin, "GET", `${PATH}?account_id=${member.account}`)
  expect(named.json).toEqual((await http.call(member.token, "GET", PATH)).json)
})

test("the secret before counts for a day, then it is shown no longer", async () => {
  const { token } = await http.person()
  const rotated = await http.call(token, "POST", PATH)
  // There was none before: nothing else signs.
  expect(Object.keys(rotated.json)).toEqual(["secret"])
  const again = await http.call(token, "POST", PATH)
  expect(Object.keys(again.json)).toEqual(["secret", "previous_valid_until"])
  aheadMs = DAY_MS - 60_000
  expect((await http.call(token, "GET", PATH)).json).toEqual(again.json)
  aheadMs = DAY_MS + 60_000
  expect((await http.call(token, "GET", PATH)).json).toEqual({ secret: again.get("secret") })
})

test("GAP-69: a rotation repeated under its Idempotency-Key is one rotation", async () => {
  const { token } = await http.person()
  const headers = { "idempotency-key": "once" }
  const first = await http.call(token, "POST", PATH, { headers })
  const repeated = await http.call(token, "POST", PATH, { headers })
  expect([repeated.status, repeated.json]).toEqual([200, first.json])
  expect((await http.call(token, "GET", PATH)).get("secret")).toBe(first.get("secret"))
  const other = await http.call(token, "POST", PATH)
  expect(other.get("secret")).not.toBe(first.get("secret"))
})
