import { RUNNER_ENV } from "../../protocol/domain/runner.ts"

/** Where the platform's files of one attempt are, as its program sees them. */
export interface PlatformPaths {
  payload: string
  result: string
  artifacts: string
  scratch: string
}

export interface EnvironmentLayers {
  /** What the image sets; for the process runtime what it takes from the machine (`machineEnvironment`). */
  base: Readonly<Record<string, string>>
  /** Env files, project and job, layered by the coordinator (M-009). */
  project: Readonly<Record<string, string>>
  /** Files and shared values that the task is given (AW-006, SS-003). */
  inputs?: Readonly<Record<string, string>>
  paths: PlatformPaths
  /** `.venv/bin` of the project, inside view, when it has one with a python (M-010). */
  venvBin: string | null
  /** UUIDs of the GPUs given to the attempt. */
  gpus?: readonly string[]
}

/** What programs find when nothing sets a PATH. */
const DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

/** The complete environment of an attempt: later layers win, the platform's own names last (M-009, M-010, RP-010). Pure. */
export function taskEnvironment({
  base,
  project,
  inputs = {},
  paths,
  venvBin,
  gpus = [],
}: EnvironmentLayers): Record<string, string> {
  const env: Record<string, string> = { HOME: "/root", ...base, ...project, ...inputs }
  const path = env["PATH"] === undefined || env["PATH"] === "" ? DEFAULT_PATH : env["PATH"]
  env["PATH"] = venvBin === null ? path : `${venvBin}:${path}`
  env[RUNNER_ENV.payload] = paths.payload
  env[RUNNER_ENV.result] = paths.result
  env[RUNNER_ENV.artifacts] = paths.artifacts
  env[RUNNER_ENV.scratch] = paths.scratch
  env["TMPDIR"] = paths.scratch
  if (gpus.length > 0) env["CUDA_VISIBLE_DEVICES"] = gpus.join(",")
  return env
}

/** What the process runtime passes on of the agent's own environment: enough to find programs, and no secret. Pure. */
export function machineEnvironment(own: Readonly<Record<string, string | undefined>>): Record<string, string> {
  const env: Record<string, string> = {}
  for (const name of ["PATH", "HOME", "LANG"]) {
    const value = own[name]
    if (value !== undefined && value !== "") env[name] = value
  }
  return env
}
