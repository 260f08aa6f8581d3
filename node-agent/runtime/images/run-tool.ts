import { spawn } from "node:child_process"
import { once } from "node:events"
import { open } from "node:fs/promises"

/** How a tool ended. `output`: standard output and error as they came, at most the last `TAIL_BYTES`. */
export interface ToolEnd {
  exitCode: number | null
  output: string
  /** Why we ended it ourselves, if we did. */
  ended: "aborted" | "timeout" | null
}

export interface ToolOptions {
  /** Complete; nothing of the agent's own environment passes. */
  env?: Record<string, string>
  cwd?: string
  /** File on standard input; nothing when absent. */
  inputPath?: string
  timeoutMs?: number
  signal?: AbortSignal | undefined
  /** Every piece of output as it comes. */
  onOutput?: (text: string) => void
}

/** Runs a tool to its end. Resolves however it ended; rejects only when it cannot be started. Kills with SIGKILL. */
export async function runTool(command: readonly [string, ...string[]], options: ToolOptions = {}): Promise<ToolEnd> {
  const { signal, timeoutMs } = options
  if (signal?.aborted) return { exitCode: null, output: "", ended: "aborted" }
  const [program, ...args] = command
  const input = options.inputPath === undefined ? null : await open(options.inputPath, "r")
  const child = spawn(program, args, {
    env: { PATH: TOOL_PATH, LANG: "C.UTF-8", ...options.env },
    cwd: options.cwd,
    stdio: [input === null ? "ignore" : input.fd, "pipe", "pipe"],
  })
  const tail = new Tail()
  const heard = (text: string): void => {
    tail.add(text)
    options.onOutput?.(text)
  }
  child.stdout?.setEncoding("utf8").on("data", heard)
  child.stderr?.setEncoding("utf8").on("data", heard)
  let ended: ToolEnd["ended"] = null
  const end = (why: "aborted" | "timeout"): void => {
    ended ??= why
    child.kill("SIGKILL")
  }
  const aborted = (): void => end("aborted")
  signal?.addEventListener("abort", aborted, { once: true })
  const timer = timeoutMs === undefined ? null : setTimeout(() => end("timeout"), timeoutMs)
  try {
    const [exitCode] = (await once(child, "close")) as [number | null]
    return { exitCode, output: tail.text(), ended }
  } catch (error) {
    throw new Error(`${program} cannot be started`, { cause: error })
  } finally {
    signal?.removeEventListener("abort", aborted)
    if (timer !== null) clearTimeout(timer)
    await input?.close()
  }
}

/** Where distributions put the tools; the agent's own PATH may be anything. */
export const TOOL_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
/** What a build log or an error may show. */
const TAIL_BYTES = 64 * 1024

class Tail {
  #kept = ""
  add(text: string): void {
    this.#kept += text
    if (this.#kept.length > 2 * TAIL_BYTES) this.#kept = this.#kept.slice(-TAIL_BYTES)
  }
  text(): string {
    return this.#kept.slice(-TAIL_BYTES)
  }
}
