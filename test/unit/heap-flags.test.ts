import { spawn } from "node:child_process"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterAll, beforeAll, expect, test } from "vitest"

let folder: string
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "heap-flags-"))
  const flags = new URL("../../coordinator/heap-flags.ts", import.meta.url).href
  const program = `import { getHeapSpaceStatistics } from "node:v8"
    import { runWithHeapFlags } from ${JSON.stringify(flags)}
    runWithHeapFlags()
    const young = getHeapSpaceStatistics().find(({ space_name }) => space_name === "new_space")
    console.log(JSON.stringify({ pid: process.pid, young: young.space_size, argv: process.argv.slice(2), flags: process.execArgv, word: process.env.WORD }))`
  writeFileSync(join(folder, "program.mjs"), program)
})
afterAll(() => rmSync(folder, { recursive: true }))

/** What the program says of itself, and the process that was started. */
async function run(nodeArgs: string[]): Promise<{ started: number | undefined; said: Record<string, unknown> }> {
  const child = spawn(process.execPath, [...nodeArgs, join(folder, "program.mjs"), "--a", "b c"], {
    env: { ...process.env, WORD: "kept" },
    stdio: ["ignore", "pipe", "inherit"],
  })
  let said = ""
  for await (const chunk of child.stdout) said += String(chunk)
  return { started: child.pid, said: JSON.parse(said) as Record<string, unknown> }
}

test("the coordinator gets its heap's flags whoever starts it, as the process that was started", async () => {
  const { started, said } = await run(["--no-deprecation"])
  expect(said).toMatchObject({ pid: started, young: 16 * 1024 * 1024, argv: ["--a", "b c"], word: "kept" })
  expect(said["flags"]).toEqual(expect.arrayContaining(["--no-deprecation", "--no-allocation-site-pretenuring"]))
})

test("flags of one's own for the young space are left alone", async () => {
  const own = ["--min-semi-space-size=2", "--max-semi-space-size=2"]
  const { started, said } = await run(own)
  expect(said).toMatchObject({ pid: started, young: 2 * 1024 * 1024, flags: own })
})
