import { spawn, type ChildProcess } from "node:child_process"
import { createWriteStream } from "node:fs"
import { createInterface } from "node:readline"

/** One of our programs, running as a child process. */
export interface Program extends AsyncDisposable {
  readonly process: ChildProcess
  /** The line it printed when it was ready. */
  readonly ready: Record<string, unknown>
  /** Sends a signal and waits for the end. */
  stop(signal?: NodeJS.Signals): Promise<number | null>
  /** Resolves with the exit code once it has ended. */
  readonly ended: Promise<number | null>
}

const root = new URL("../..", import.meta.url).pathname
/** Machines are slow when they are shared; a program that hangs is still noticed. */
const READY_TIMEOUT_MS = 90_000
const STOP_TIMEOUT_MS = 30_000

/**
 * Starts `coordinator/main.ts` or `node-agent/main.ts` under this Node and waits for its ready line. Its log goes to `logFile`.
 * Rejects with what it said when it ends before.
 */
export async function startProgram(
  source: "coordinator/main.ts" | "node-agent/main.ts" | (string & {}),
  args: readonly string[],
  options: { logFile: string; env?: Record<string, string>; nodeArgs?: readonly string[]; waitForReady?: boolean },
): Promise<Program> {
  const child = spawn(process.execPath, [...(options.nodeArgs ?? []), source, ...args], {
    cwd: root,
    env: { ...process.env, ...options.env },
    stdio: ["ignore", "pipe", "pipe"],
  })
  const log = createWriteStream(options.logFile, { flags: "a" })
  const lastWords: string[] = []
  createInterface({ input: child.stderr }).on("line", (line) => {
    log.write(`${line}\n`)
    lastWords.push(line)
    if (lastWords.length > 5) lastWords.shift()
  })
  const ended = new Promise<number | null>((resolve) => child.once("exit", (code) => resolve(code)))
  const ready = new Promise<Record<string, unknown>>((resolve, reject) => {
    createInterface({ input: child.stdout }).on("line", (line) => {
      const message = parseReady(line)
      if (message) resolve(message)
    })
    void ended.then((code) => reject(new Error(`${source} ended with ${code}: ${lastWords.join(" | ")}`)))
    setTimeout(
      () => reject(new Error(`${source} was not ready in time: ${lastWords.join(" | ")}`)),
      READY_TIMEOUT_MS,
    ).unref()
  })
  ready.catch(() => undefined)

  async function stop(signal: NodeJS.Signals = "SIGTERM"): Promise<number | null> {
    if (child.exitCode === null && child.signalCode === null) child.kill(signal)
    const timer = setTimeout(() => child.kill("SIGKILL"), STOP_TIMEOUT_MS)
    const code = await ended
    clearTimeout(timer)
    return code
  }

  try {
    return {
      process: child,
      ready: options.waitForReady === false ? {} : await ready,
      stop,
      ended,
      async [Symbol.asyncDispose]() {
        await stop()
      },
    }
  } catch (error) {
    child.kill("SIGKILL")
    throw error
  }
}

function parseReady(line: string): Record<string, unknown> | null {
  try {
    const message = JSON.parse(line) as Record<string, unknown>
    return message["event"] === "ready" ? message : null
  } catch {
    return null
  }
}
