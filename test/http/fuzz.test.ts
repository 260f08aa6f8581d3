import { spawn } from "node:child_process"
import { mkdirSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { expect, test } from "vitest"
import { pythonTools } from "../support/python-tools.ts"
import { PROJECT_FILES, startFleet } from "../support/fleet.ts"
import { tarballOf } from "../support/tarball.ts"

/**
 * Schemathesis makes up requests from /openapi.json, valid and invalid ones, follows its links from answer to answer, and looks
 * at every answer: no 5xx, no status and no body that the document does not describe.
 */

const full = process.env["COMPUTALOT_TEST_FULL"] !== undefined
const EXAMPLES = full ? 1000 : 50
/** Against a hang: on an idle machine with two cores the short form takes about one minute. */
const LIMIT_MS = full ? 3 * 3_600_000 : 25 * 60_000
const SEED = 20261122

const tools = await pythonTools("schemathesis-4.32.5", ["schemathesis==4.32.5", "openapi-spec-validator==0.9.0"])
if ("reason" in tools) console.log(`fuzzing is not tested: no schemathesis from PyPI here (${tools.reason})`)
const bin = "bin" in tools ? tools.bin : ""

test.skipIf(bin === "")(
  "/openapi.json is valid OpenAPI 3.1 for a validator that is not ours",
  { timeout: LIMIT_MS },
  async () => {
    await using fleet = await startFleet({ nodes: [] })
    const file = join(fleet.folder, "openapi.json")
    writeFileSync(file, await fetch(`${fleet.origin}/openapi.json`).then((reply) => reply.text()))
    const { code, output } = await python(
      ["-m", "openapi_spec_validator", "--schema", "3.1", "--subschema-errors", "all", file],
      fleet.folder,
    )
    expect(code, output).toBe(0)
  },
)

test.skipIf(bin === "")(
  `bad input: ${EXAMPLES} made-up requests for each operation get no 5xx, no undocumented status and no body that breaks its schema`,
  { timeout: LIMIT_MS },
  async () => {
    await using fleet = await startFleet({
      nodes: [],
      // Streams end by themselves, so that following one ends.
      coordinatorFlags: ["--sse-limit-s=0.2"],
    })
    const made = await fleet.admin("POST", "/api/v1/admin/users", { name: "fuzz", role: "admin" })
    const account = Number(made.get("user", "account_id"))
    const issued = await fleet.admin("POST", `/api/v1/admin/users/${String(made.get("user", "id"))}/keys`, {})
    const token = String(issued.get("token"))
    await fleet.admin("POST", `/api/v1/admin/accounts/${account}/credits`, { amount_usd: 100_000 })
    await projectOf(fleet.origin, token)

    const folder = join(fleet.folder, "fuzz")
    mkdirSync(folder)
    writeFileSync(join(folder, "schemathesis.toml"), CONFIG)
    const fuzz = async (bearer: string, ...which: string[]): Promise<string> => {
      const args = [
        ["--config-file", join(folder, "schemathesis.toml"), "run", `${fleet.origin}/openapi.json`],
        ["--header", `Authorization: Bearer ${bearer}`, "--seed", String(SEED), "--max-examples", String(EXAMPLES)],
        ["--mode", "all", "--generation-database", "none", "--no-color", "--workers", "1", ...which],
        // A busy machine is slow, and that is no fault of the API.
        ["--request-timeout", "60", "--suppress-health-check", "all"],
      ].flat()
      const { code, output } = await python(["-m", "schemathesis.cli", ...args], folder)
      expect(code, output.slice(-20_000)).toBe(0)
      return output
    }
    // Ids of keys that were seen are tried too: the key at work would end itself. The first administrator's token cannot.
    const output = await fuzz(token, "--exclude-operation-id", "admin-keys-revoke")
    await fuzz(fleet.adminToken, "--include-operation-id", "admin-keys-revoke", "--phases", "coverage,fuzzing")
    console.log(output.slice(output.lastIndexOf("Test cases:")))
    await fleet.expectAudit()
    expect((await fetch(`${fleet.origin}/ready`)).status).toBe(200)
  },
)

/**
 * What is checked. A valid body may still be refused (a project that is not there), and an invalid one may be taken (unknown
 * parameters are ignored, null counts as left out): both are promised, so neither counts as a fault.
 */
const CONFIG = `
[checks]
positive_data_acceptance.enabled = false
negative_data_rejection.enabled = false

# Nobody can pay here: 503 is what these two are to answer (rulings, x402 not configured).
[[operations]]
include-operation-id = ["quotes-topup", "quotes-pay"]
checks.not_a_server_error.enabled = false
`

/** The project of the document's examples, with a revision, so that some submissions are accepted. */
async function projectOf(origin: string, token: string): Promise<void> {
  const headers = { authorization: `Bearer ${token}` }
  const files = Object.entries({ ...PROJECT_FILES, "job.py": "pass\n" }).map(([name, content]) => ({ name, content }))
  const body = JSON.stringify({ name: "my-proj", remote_dir: "/root/my-proj" })
  expect((await fetch(`${origin}/api/v1/projects`, { method: "POST", headers, body })).status).toBe(201)
  const tarball = new Uint8Array(await tarballOf(files))
  expect(
    (await fetch(`${origin}/api/v1/projects/my-proj/push`, { method: "POST", headers, body: tarball })).status,
  ).toBe(200)
}

function python(args: string[], cwd: string): Promise<{ code: number | null; output: string }> {
  return new Promise((resolve, reject) => {
    const child = spawn(join(bin, "python"), args, { cwd, stdio: ["ignore", "pipe", "pipe"] })
    let output = ""
    for (const stream of [child.stdout, child.stderr])
      stream.setEncoding("utf8").on("data", (text: string) => (output += text))
    const timer = setTimeout(() => child.kill("SIGKILL"), LIMIT_MS - 10_000)
    child.once("error", reject)
    child.once("exit", (code) => {
      clearTimeout(timer)
      resolve({ code, output })
    })
  })
}
