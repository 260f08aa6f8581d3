import type { FieldProblem } from "../../../protocol/domain/errors.ts"
import { ALLOWED_EXECUTABLES } from "../../../protocol/domain/runner.ts"

/** Why a runner command is refused, or null. The first element is matched exactly: no paths, no versions (J-004, GAP-22). */
export function commandProblem(command: string[]): FieldProblem | null {
  const executable = command[0] ?? ""
  const withNul = command.findIndex((element) => element.includes("\0"))
  if (withNul >= 0)
    return { path: `runner_command[${withNul}]`, problem: "contains a NUL character: no program can be given one" }
  if ((ALLOWED_EXECUTABLES as readonly string[]).includes(executable)) return null
  return {
    path: "runner_command[0]",
    problem: `${advice(executable)}: must be one of ${ALLOWED_EXECUTABLES.join(", ")}`,
  }
}

function advice(executable: string): string {
  const shown = JSON.stringify(executable.slice(0, 64))
  const name = executable.split("/").at(-1) ?? ""
  if (SHELLS.has(name))
    return `${shown} is a shell, which is not started; put the steps into a script, such as python3 run.py`
  if (name !== executable) return `${shown} is a path; name the executable alone`
  if (name.toLowerCase() !== name && (ALLOWED_EXECUTABLES as readonly string[]).includes(name.toLowerCase())) {
    return `${shown} is not in lower case`
  }
  if (/^(python|node|ruby|julia)[\d.]+$/.test(name)) return `${shown} names a version; the image decides that one`
  return `${shown} is not an allowed executable`
}

const SHELLS = new Set([
  "sh",
  "bash",
  "zsh",
  "dash",
  "ash",
  "ksh",
  "csh",
  "tcsh",
  "fish",
  "busybox",
  "pwsh",
  "powershell",
  "cmd",
])
