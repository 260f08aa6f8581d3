import { readdirSync, readFileSync, readlinkSync } from "node:fs"

/** Processes whose command, working folder or environment names this folder. */
export function processesOf(folder: string): number[] {
  return readdirSync("/proc")
    .map(Number)
    .filter((pid) => pid > 0 && pid !== process.pid)
    .filter((pid) =>
      [commandOf(pid), workingFolder(pid), procText(pid, "environ")].some((text) => text.includes(`${folder}/`)),
    )
}

export const commandOf = (pid: number): string => procText(pid, "cmdline").replaceAll("\0", " ")

/** All that the tasks of this agent run as, and what watches over them; without the agent. */
export function processesOfTasks(dataDir: string, agent: number): number[] {
  const all = new Set(processesOf(dataDir).flatMap((pid) => [pid, ...ancestorsBelow(pid, agent)]))
  all.delete(agent)
  return [...all]
}

/** Ends the agent and all that its tasks started at one moment, as if the machine had lost its power. */
export function killWithTasks(dataDir: string, agent: number): void {
  const tasks = processesOfTasks(dataDir, agent)
  // Stopped first: nobody may see and record the end of another.
  for (const pid of [agent, ...tasks]) signalTo(pid, "SIGSTOP")
  for (const pid of [...tasks, agent]) signalTo(pid, "SIGKILL")
}

export function signalTo(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal)
  } catch {
    // It has ended by itself.
  }
}

function ancestorsBelow(pid: number, agent: number): number[] {
  const parent = Number(/\) \S (\d+)/.exec(procText(pid, "stat"))?.[1] ?? 0)
  return parent <= 1 || parent === agent || parent === process.pid ? [] : [parent, ...ancestorsBelow(parent, agent)]
}

function procText(pid: number, file: string): string {
  try {
    return readFileSync(`/proc/${pid}/${file}`, "utf8")
  } catch {
    return ""
  }
}

function workingFolder(pid: number): string {
  try {
    return `${readlinkSync(`/proc/${pid}/cwd`)}/`
  } catch {
    return ""
  }
}
