import { execFile } from "node:child_process"
import { existsSync, mkdirSync, writeFileSync } from "node:fs"
import { homedir } from "node:os"
import { join } from "node:path"
import { parseArgs, promisify } from "node:util"
import { present } from "../../protocol/base/assert.ts"
import { findOnHost } from "../../node-agent/runtime/find-on-host.ts"
import { tailOutput } from "../../node-agent/runtime/output-files.ts"
import { currentRunsc, openBench, testedRuntimes, type Bench, type TestedRuntime } from "../../test/support/runtimes.ts"
import { calibrate, pushProject, quantile, startBenchFleet } from "./bench-fleet.ts"

/**
 * What our sandbox costs over the bare runtime: `true` in an image made of the machine's own /usr, one after another, by the
 * agent's driver (disk, composed root, limits, supervisor, output, clearing away) and by a shell loop of plain `runsc run` or
 * `bwrap` of the same image, which has none of these. Batches of both take turns. Then Python in a
 * real image through the whole system.
 */
const { values } = parseArgs({
  options: {
    rounds: { type: "string", default: "7" },
    batch: { type: "string", default: "10" },
    /** Base images for the whole system's image; without them that part is left out. */
    bases: { type: "string", default: join(homedir(), ".cache", "computalot", "demo-bases") },
  },
})
const batch = Number(values.batch)
const TARGETS: Record<string, number> = { bubblewrap: 2, gvisor: 1.2 }

console.log(calibrate())
const lines: string[] = []
for (const runtime of testedRuntimes()) {
  if (runtime.title !== "process") lines.push(await measure(runtime))
}
console.log(calibrate())
for (const line of lines) console.log(line)

async function measure(runtime: TestedRuntime): Promise<string> {
  await using bench = await openBench(runtime)
  const { name } = bench.driver
  const probe = await bench.driver.probe()
  if (!probe.available) return `sandbox (${runtime.title}): is not here: ${probe.problems.join("; ")}`
  const bare = name === "gvisor" ? bareRunsc(bench, runtime) : bareBubblewrap(bench)
  await bareBatch(bare, 3)
  await backToBackBatch(bench, 3)
  const found: { bare: number; alone: number; backToBack: number }[] = []
  for (let round = 0; round < Number(values.rounds); round++) {
    const first = round % 2 === 0 ? await bareBatch(bare, batch) : null
    const alone = await aloneBatch(bench, batch)
    const backToBack = await backToBackBatch(bench, batch)
    found.push({ bare: first ?? (await bareBatch(bare, batch)), alone, backToBack })
  }
  // A bare runsc leaves it behind.
  const left = join(bareState(bench), "null-netns")
  if (existsSync(left)) await promisify(execFile)("umount", [left]).catch(() => {})
  const ratios = found.map((round) => round.alone / round.bare)
  const busy = found.map((round) => round.backToBack / round.bare)
  const system = await wholeSystem(name)
  const middle = (of: keyof (typeof found)[number]): string =>
    quantile(
      found.map((round) => round[of]),
      0.5,
    ).toFixed(0)
  return [
    `sandbox (${runtime.title}): a task by the driver takes ${quantile(ratios, 0.5).toFixed(2)} × the bare runtime (${Math.min(...ratios).toFixed(2)} to ${Math.max(...ratios).toFixed(2)}; target ≤ ${TARGETS[name]}): ${middle("alone")} ms over ${middle("bare")} ms`,
    `without a break between tasks, clearing away included, ${quantile(busy, 0.5).toFixed(2)} × (${middle("backToBack")} ms)`,
    ...(system === null ? [] : [`python3 -c pass through the whole system ${system.toFixed(0)} ms a task on one slot`]),
  ].join("; ")
}

/** Milliseconds from the order to the known end of one task, on a node that has nothing else to do. */
async function aloneBatch(bench: Bench, count: number): Promise<number> {
  const waits: number[] = []
  for (let n = 0; n < count; n++) {
    const from = performance.now()
    const attemptDir = await runTrue(bench)
    waits.push(performance.now() - from)
    await bench.driver.release(attemptDir)
  }
  return quantile(waits, 0.5)
}

/** Milliseconds of one task in a row of them: as the agent does, the next starts while the last is cleared away. */
async function backToBackBatch(bench: Bench, count: number): Promise<number> {
  const released: Promise<void>[] = []
  const start = performance.now()
  for (let n = 0; n < count; n++) released.push(bench.driver.release(await runTrue(bench)))
  await Promise.all(released)
  return (performance.now() - start) / count
}

async function runTrue(bench: Bench): Promise<string> {
  const attempt = await bench.spec({ command: ["true"] })
  const running = await bench.driver.start(attempt)
  await tailOutput(running, () => {})
  const end = await running.done
  if (end.exitCode !== 0) throw new Error(`a task failed: ${end.message}`)
  return attempt.attemptDir
}

/** Milliseconds of one run. */
async function bareBatch(command: string, count: number): Promise<number> {
  const start = performance.now()
  await promisify(execFile)("sh", ["-c", `for n in $(seq ${count}); do ${command} || exit 1; done`])
  return (performance.now() - start) / count
}

function bareBubblewrap({ image }: Bench): string {
  // Its root is read-only here: the places must be there.
  for (const place of ["proc", "dev"]) mkdirSync(join(present(image.layers[0], "the image's layer"), place))
  const options = "--unshare-all --die-with-parent --new-session --cap-drop ALL --clearenv"
  const binds = image.mounts.map(({ hostPath, path }) => `--ro-bind ${hostPath} ${path}`).join(" ")
  return `bwrap ${options} --ro-bind ${image.layers[0]} / ${binds} --proc /proc --dev /dev --tmpfs /tmp --chdir /app /usr/bin/true`
}

function bareRunsc(bench: Bench, runtime: TestedRuntime): string {
  const { image, place } = bench
  const program = runtime.title === "gvisor" ? findOnHost("runsc") : currentRunsc()
  const bundle = join(place.dataDir, "bare")
  mkdirSync(bundle)
  const config = {
    ociVersion: "1.0.0",
    process: { user: { uid: 0, gid: 0 }, args: ["/usr/bin/true"], env: ["PATH=/usr/bin:/bin"], cwd: "/app" },
    root: { path: image.layers[0], readonly: true },
    mounts: [
      { destination: "/proc", type: "proc", source: "proc" },
      { destination: "/dev", type: "tmpfs", source: "tmpfs" },
      { destination: "/tmp", type: "tmpfs", source: "tmpfs" },
      ...image.mounts.map(({ hostPath, path }) => ({
        destination: path,
        type: "bind",
        source: hostPath,
        options: ["ro"],
      })),
    ],
    linux: { namespaces: ["pid", "ipc", "uts", "mount", "network"].map((type) => ({ type })) },
  }
  writeFileSync(join(bundle, "config.json"), JSON.stringify(config))
  return `${program} --root ${bareState(bench)} --ignore-cgroups --network none run --bundle ${bundle} bare-${process.pid}-$n`
}

function bareState({ place }: Bench): string {
  return join(place.dataDir, "bare-state")
}

/** From submit to the job's end, on a node with one slot. Null where there is no base image. */
async function wholeSystem(runtime: string): Promise<number | null> {
  if (!existsSync(join(values.bases, "bases.json")) && !existsSync(values.bases)) return null
  await using fleet = await startBenchFleet()
  await pushProject(fleet, "nothing", { Dockerfile: "FROM python:3.11-slim\nWORKDIR /app\nCOPY . .\n" })
  await fleet.addNode("node-agent/main.ts", "worker", [
    `--runtime=${runtime}`,
    `--bases=${values.bases}`,
    "--cpus=1",
    "--memory-mb=1024",
    "--storage-gb=4",
    "--task-network=none",
    "--build-network=none",
  ])
  const run = async (count: number): Promise<number> => {
    const start = performance.now()
    const end = await fleet.ended(
      await fleet.submit({
        type: "structured_runner",
        project: "nothing",
        runner_command: ["python3", "-c", "pass"],
        payload: {},
        fan_out: { chunks: count, total: count },
        requirements: { cpu: 1, memory_mb: 256, storage_gb: 1 },
        timeout_s: 60,
        runtime_hint_s: 1,
      }),
      50,
    )
    if (end["status"] !== "completed") throw new Error(`the job ended ${String(end["status"])}: ${JSON.stringify(end)}`)
    return (performance.now() - start) / count
  }
  await run(2)
  return await run(3 * batch)
}
