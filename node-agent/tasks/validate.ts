import { mkdirSync } from "node:fs"
import { rm } from "node:fs/promises"
import { join, posix } from "node:path"
import { errorText } from "../../protocol/base/error-text.ts"
import { taskEnvironment } from "./environment.ts"
import type { RuntimeSpec } from "../../protocol/wire/control.ts"
import type { AttemptExit, RuntimeDriver } from "../runtime/driver.ts"
import { findCommand, viewImage, type ImageView } from "../runtime/image-view.ts"
import { tailOutput } from "../runtime/output-files.ts"
import { createOutput } from "./output.ts"
import { makeWorkspace, planWorkspace, type RuntimeFiles } from "./workspace.ts"

export type Validation = NonNullable<RuntimeSpec["validation"]>

export interface ValidateParts {
  driver: RuntimeDriver
  attemptsDir: string
  network: "none" | "outbound"
  /** Of the process runtime: what programs get of the machine's own environment. */
  machineEnv: Readonly<Record<string, string>>
}

/** Checks that ask no more of a machine than a small task does. */
const LIMITS = { memoryBytes: 2 * 1024 ** 3, cpu: 1, pids: 512, diskBytes: 4 * 1024 ** 3 }

/**
 * The manifest's checks of a revision on this node, in its sandbox (rulings, Projects). Null when all hold, else what does not
 * and the end of what it printed. `name` is unique for ever. Rejects with the signal's reason when time is up.
 */
export async function validateRuntime(
  parts: ValidateParts,
  name: string,
  files: RuntimeFiles,
  validation: Validation,
  signal: AbortSignal,
): Promise<{ message: string; logTail: string } | null> {
  const missing = missingFiles(parts, files, validation)
  if (missing !== null) return { message: missing, logTail: "" }
  for (const [index, check] of validation.commands.entries()) {
    const { label } = check
    const ended = await runCheck(parts, `${name}-${index}`, files, check, validation.env ?? {}, signal)
    signal.throwIfAborted()
    if (ended.exit.failureKind === null) continue
    const why = ended.exit.message ?? ended.exit.failureKind
    return { message: `the check ${label} failed: ${why}`, logTail: ended.output }
  }
  return null
}

function missingFiles(
  parts: ValidateParts,
  files: RuntimeFiles,
  { executables, files: paths, commands }: Validation,
): string | null {
  const view = files.kind === "image" ? viewImage(files.layers) : viewImage(["/"])
  const workdir = files.kind === "image" ? (files.workdir ?? "/") : files.directory
  const venvBin = hasPython(view, workdir) ? posix.join(workdir, ".venv/bin") : null
  const nowhere = { payload: "", result: "", artifacts: "", scratch: "" }
  const base = files.kind === "image" ? files.env : parts.machineEnv
  const env = taskEnvironment({ base, project: {}, paths: nowhere, venvBin })
  for (const executable of executables) {
    if (findCommand(view, executable, env["PATH"], workdir) === null) {
      return `${files.kind === "image" ? "the image" : "this machine"} has no command ${executable} in its PATH`
    }
  }
  for (const path of paths) {
    if (view.find(posix.resolve(workdir, path)) === null) return `the file ${path} is missing`
  }
  for (const { label, cwd } of commands) {
    if (cwd === undefined || view.find(posix.resolve(workdir, cwd))?.stats.isDirectory()) continue
    return `the directory ${cwd}, in which the check ${label} is to run, is missing`
  }
  return null
}

const hasPython = (view: ImageView, workdir: string): boolean =>
  view.find(posix.join(workdir, ".venv/bin/python")) !== null

async function runCheck(
  parts: ValidateParts,
  name: string,
  files: RuntimeFiles,
  { command, cwd = ".", env = {} }: Validation["commands"][number],
  layers: Readonly<Record<string, string>>,
  signal: AbortSignal,
): Promise<{ exit: Pick<AttemptExit, "failureKind" | "message">; output: string }> {
  const { driver } = parts
  const attemptDir = join(parts.attemptsDir, name)
  mkdirSync(attemptDir, { recursive: true })
  try {
    const disk = await driver.prepare(attemptDir, LIMITS.diskBytes)
    const workspace = planWorkspace(attemptDir, disk, files)
    await makeWorkspace(workspace, disk, files, "{}")
    const base = files.kind === "image" ? files.env : parts.machineEnv
    const running = await driver.start({
      name,
      attemptDir,
      ...(workspace.rootfs === null ? {} : { rootfs: workspace.rootfs }),
      command,
      env: taskEnvironment({
        base,
        project: { ...layers, ...env },
        paths: workspace.inside,
        venvBin: workspace.venvBin,
      }),
      workdir: posix.resolve(workspace.workdir, cwd),
      mounts: workspace.mounts,
      limits: { ...LIMITS, timeoutMs: LONGEST_CHECK_MS, deadline: Date.now() + LONGEST_CHECK_MS },
      network: parts.network,
    })
    const stop = (): void => void running.stop("cancelled")
    signal.addEventListener("abort", stop, { once: true })
    if (signal.aborted) stop()
    const output = createOutput({ onProgress: () => {}, paths: workspace.shown })
    await tailOutput(running, (stream, bytes, skipped) => output.take(stream, bytes, skipped))
    output.end()
    signal.removeEventListener("abort", stop)
    return { exit: await running.done, output: output.tail() }
  } catch (error) {
    return { exit: { failureKind: "sandbox_error", message: errorText(error) }, output: "" }
  } finally {
    await driver.release(attemptDir)
    await rm(attemptDir, { recursive: true, force: true })
  }
}

/** The caller's signal ends a check earlier; this ends it when the agent is killed meanwhile. */
const LONGEST_CHECK_MS = 2 * 3_600_000
