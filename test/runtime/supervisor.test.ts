import { mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs"
import { getPriority, tmpdir } from "node:os"
import { join } from "node:path"
import { expect, onTestFinished, test } from "vitest"
import { openTaskGroups, type TaskGroups } from "../../node-agent/runtime/limits.ts"
import { createLauncher } from "../../node-agent/runtime/supervisor.ts"

/** What a plain user finds on most machines. */
const noGroups: TaskGroups = {
  enforces: [],
  make: () => ({ directories: [] }),
  limit() {},
  async remove() {},
  list: () => [],
  close() {},
}

test("where no group bounds its share, a program comes after the agent", async () => {
  expect(await niceOfProgram(noGroups)).toBe(getPriority() + 5)
})

const groupsHere = openTaskGroups(tmpdir())
groupsHere.close()

test.skipIf(!groupsHere.enforces.includes("cpu"))("in a group that bounds it, it runs as the agent does", async () => {
  const groups = openTaskGroups(tmpdir())
  onTestFinished(() => groups.close())
  expect(await niceOfProgram(groups)).toBe(getPriority())
})

async function niceOfProgram(groups: TaskGroups): Promise<number> {
  const home = mkdtempSync(join(tmpdir(), "computalot-supervisor-"))
  const attemptDir = join(home, "c1")
  mkdirSync(attemptDir)
  const launcher = createLauncher(groups)
  try {
    const command = {
      attemptDir,
      program: "/bin/sh",
      argv: ["sh", "-c", "cut -d ' ' -f 19 /proc/self/stat"],
      env: { PATH: "/usr/bin:/bin" },
      cwd: "/",
      timeoutMs: 20_000,
      deadline: Date.now() + 20_000,
    }
    const running = await launcher.start(command, { memoryBytes: 64 * 1024 ** 2, cpu: 1, pids: 16 }, {})
    expect(await running.done).toMatchObject({ cause: "program", exit_code: 0 })
    return Number(readFileSync(join(attemptDir, "stdout"), "utf8"))
  } finally {
    await launcher.release(attemptDir)
    await launcher[Symbol.asyncDispose]()
    rmSync(home, { recursive: true, force: true })
  }
}
