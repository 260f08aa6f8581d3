import { execFile, spawn } from "node:child_process"
import { once } from "node:events"
import { existsSync } from "node:fs"
import { mkdir, mkdtemp, readdir, rm } from "node:fs/promises"
import { join } from "node:path"
import { createInterface } from "node:readline"
import { promisify } from "node:util"
import { afterAll, beforeAll, expect, test } from "vitest"
import { listFiles, PROGRAMS, REPOSITORY } from "../support/source-files.ts"

const run = promisify(execFile)

let home: string
let built: string
beforeAll(async () => {
  // Below the repository, so that the programs find node_modules as an installed package would.
  await mkdir(join(REPOSITORY, ".cache"), { recursive: true })
  home = await mkdtemp(join(REPOSITORY, ".cache", "build-"))
  built = join(home, "dist")
  await run(join(REPOSITORY, "scripts", "build"), [built])
})
afterAll(() => rm(home, { recursive: true, force: true }))

test("a build holds every file of the programs, TypeScript as JavaScript", async () => {
  const entries = await readdir(built, { recursive: true, withFileTypes: true })
  const files = entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name))
  const sources = listFiles().filter((path) => PROGRAMS.some((program) => path.startsWith(`${program}/`)))
  const expected = [...sources.map((path) => path.replace(/\.ts$/, ".js")), "package.json"]
  expect(files.map((path) => path.slice(built.length + 1)).sort()).toEqual(expected.sort())
})

test("a built coordinator starts with its migrations, says where it listens, and stops when it is told to", async () => {
  const program = join(built, "coordinator", "main.js")
  const args = ["--data-dir", join(home, "data"), "--http-port", "0", "--mesh-port", "0"]
  const coordinator = spawn(process.execPath, [program, ...args], { stdio: ["ignore", "pipe", "inherit"] })
  try {
    const ended = once(coordinator, "exit").then(() => ["null"])
    const [line] = (await Promise.race([once(createInterface(coordinator.stdout), "line"), ended])) as [string]
    const ready = JSON.parse(line) as { event: string; http: string }
    expect(ready).toMatchObject({ event: "ready", http: expect.stringMatching(/^http:/) })
    expect((await fetch(new URL("/live", ready.http))).status).toBe(200)
    coordinator.kill("SIGTERM")
    expect(await once(coordinator, "exit")).toEqual([0, null])
  } finally {
    coordinator.kill("SIGKILL")
  }
})

test.each(PROGRAMS.filter((program) => existsSync(join(REPOSITORY, program, "main.ts"))))(
  "a built %s finds all its parts and refuses a flag it does not know in one line",
  async (program) => {
    const started = run(process.execPath, [join(built, program, "main.js"), "--no-such-flag"])
    await expect(started).rejects.toMatchObject({ code: 1, stderr: expect.stringMatching(/^.*no-such-flag.*\n$/) })
  },
)
