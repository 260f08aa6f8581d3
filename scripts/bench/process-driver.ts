import { execFile } from "node:child_process"
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs"
import { rmdir } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { parseArgs, promisify } from "node:util"
import type { RuntimeDriver } from "../../node-agent/runtime/driver.ts"
import { tailOutput } from "../../node-agent/runtime/output-files.ts"
import { createProcessDriver } from "../../node-agent/runtime/process.ts"

/**
 * What the process driver adds to a program: attempts of `python3 -c pass` in two slots, from directory to released, over the
 * same by `xargs -P2`. Rounds alternate, so that whatever else the machine does meets both; the ratio of each round counts. On
 * a machine that others keep busy the ratio of processor time tells more: with every core at work it is the ratio of rates.
 */
const { values: options } = parseArgs({
  options: {
    rounds: { type: "string", default: "7" },
    attempts: { type: "string", default: "250" },
    slots: { type: "string", default: "2" },
  },
})
const [rounds, attempts, slots] = [Number(options.rounds), Number(options.attempts), Number(options.slots)]
const PATH = "/usr/bin:/bin"
const TICK_MS = 10

const dataDir = mkdtempSync(join(tmpdir(), "computalot-bench-"))
const attemptsDir = join(dataDir, "attempts")
mkdirSync(attemptsDir)
const driver = createProcessDriver({ dataDir, attemptsDir })
const seen: {
  xargs: number
  driver: number
  xargsCpuMs: number
  nodeCpuMs: number
  supervisorsCpuMs: number
  programsCpuMs: number
}[] = []
const releasing = new Set<Promise<void>>()
let made = 0
let programsCpuMs = 0
try {
  // So that what is measured is compiled code: an agent runs for days.
  await runAttempts(driver, 200)
  for (let round = 0; round < rounds; round++) {
    let xargsCpuMs = 0
    const xargs = await perSecond(async () => {
      xargsCpuMs = await runXargs()
    })
    const before = { node: process.cpuUsage(), supervisors: supervisorsCpuMs() }
    programsCpuMs = 0
    const ours = await perSecond(() => runAttempts(driver, attempts))
    const node = process.cpuUsage(before.node)
    seen.push({
      xargs,
      driver: ours,
      xargsCpuMs: xargsCpuMs / attempts,
      nodeCpuMs: (node.user + node.system) / 1000 / attempts,
      supervisorsCpuMs: (supervisorsCpuMs() - before.supervisors) / attempts,
      programsCpuMs: programsCpuMs / attempts,
    })
  }
} finally {
  await driver.sweep(new Set())
  await driver[Symbol.asyncDispose]()
  rmSync(dataDir, { recursive: true, force: true })
}

console.log(`${rounds} rounds of ${attempts} × python3 -c pass, ${slots} at a time (min, median, max)`)
show("xargs, attempts/s", (round) => round.xargs, 1)
show("process driver, attempts/s", (round) => round.driver, 1)
show("driver over xargs", (round) => round.driver / round.xargs, 3)
show("CPU of xargs and its programs, ms each", (round) => round.xargsCpuMs, 2)
show("CPU of our programs, ms each", (round) => round.programsCpuMs, 2)
show("CPU of this process, ms an attempt", (round) => round.nodeCpuMs, 2)
show("CPU of launcher and supervisors, ms an attempt", (round) => round.supervisorsCpuMs, 2)
show(
  "CPU of xargs over CPU of ours",
  (round) => round.xargsCpuMs / (round.programsCpuMs + round.nodeCpuMs + round.supervisorsCpuMs),
  3,
)

/** Answers the processor time it all took, in milliseconds. */
async function runXargs(): Promise<number> {
  const command = `seq ${attempts} | xargs -P${slots} -n1 python3 -c pass`
  const { stdout } = await promisify(execFile)("sh", ["-c", `${command} && times`], { env: { PATH } })
  const [, ofChildren = ""] = stdout.trim().split("\n")
  return [...ofChildren.matchAll(/(\d+)m([\d.]+)s/g)].reduce(
    (sum, [, minutes, seconds]) => sum + (Number(minutes) * 60 + Number(seconds)) * 1000,
    0,
  )
}

async function runAttempts(runtime: RuntimeDriver, count: number): Promise<void> {
  let left = count
  await Promise.all(
    Array.from({ length: slots }, async () => {
      while (left-- > 0) await runAttempt(runtime)
    }),
  )
  await Promise.all(releasing)
}

async function runAttempt(runtime: RuntimeDriver): Promise<void> {
  const name = `c${++made}`
  const attemptDir = join(attemptsDir, name)
  mkdirSync(attemptDir)
  const diskBytes = 1 << 30
  const disk = await runtime.prepare(attemptDir, diskBytes)
  const workdir = join(disk, "work")
  mkdirSync(workdir)
  const running = await runtime.start({
    name,
    attemptDir,
    command: ["python3", "-c", "pass"],
    env: { PATH },
    workdir,
    mounts: [],
    limits: {
      memoryBytes: 1 << 30,
      cpu: 1,
      pids: 1024,
      diskBytes,
      timeoutMs: 60_000,
      deadline: Date.now() + 600_000,
    },
    network: "none",
  })
  await tailOutput(running, () => {})
  const end = await running.done
  if (end.exitCode !== 0) throw new Error(`an attempt failed: ${end.message}`)
  programsCpuMs += end.cpuMs ?? Number.NaN
  // As the agent does: the next attempt does not wait until this one is cleared away, the round does.
  const released = runtime.release(attemptDir).then(() => rmdir(attemptDir))
  releasing.add(released)
  void released.then(() => releasing.delete(released))
}

async function perSecond(run: () => Promise<void>): Promise<number> {
  const start = performance.now()
  await run()
  return (attempts / (performance.now() - start)) * 1000
}

/** Of the processes themselves, without the programs they ran. Those that are gone took their figures with them. */
function supervisorsCpuMs(): number {
  return descendants(process.pid).reduce((sum, pid) => {
    const fields = statFields(pid)
    return sum + (Number(fields[11]) + Number(fields[12])) * TICK_MS
  }, 0)
}

function descendants(pid: number): number[] {
  const children = readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name) && statFields(Number(name))[1] === String(pid))
    .map(Number)
  return children.flatMap((child) => [child, ...descendants(child)])
}

/** From the state on (proc(5), field 3). */
function statFields(pid: number): string[] {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8")
    return stat.slice(stat.lastIndexOf(")") + 2).split(" ")
  } catch {
    return []
  }
}

function show(title: string, of: (round: (typeof seen)[number]) => number, digits: number): void {
  const sorted = seen.map(of).toSorted((a, b) => a - b)
  const at = (place: number): string => (sorted[place] ?? Number.NaN).toFixed(digits)
  console.log(`${title.padEnd(50)} ${at(0)}  ${at(Math.floor(sorted.length / 2))}  ${at(sorted.length - 1)}`)
}
