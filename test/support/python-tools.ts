import { execFile } from "node:child_process"
import { existsSync, mkdirSync, renameSync, rmSync } from "node:fs"
import { homedir } from "node:os"
import { join } from "node:path"
import { promisify } from "node:util"

const run = promisify(execFile)

/** Downloading and unpacking some forty packages on a shared machine. */
const INSTALL_LIMIT_MS = 10 * 60_000

/**
 * The `bin` folder of a Python environment with exactly these packages, made at the first call and kept in the user's cache,
 * outside the repository; or the reason why there is none.
 */
export async function pythonTools(
  name: string,
  packages: readonly string[],
): Promise<{ bin: string } | { reason: string }> {
  const cache = join(process.env["XDG_CACHE_HOME"] ?? join(homedir(), ".cache"), "computalot")
  const place = join(cache, name)
  if (existsSync(join(place, "complete"))) return { bin: join(place, "bin") }
  const made = `${place}.${process.pid}`
  try {
    mkdirSync(cache, { recursive: true })
    await run("python3", ["-c", "import sys; assert sys.version_info >= (3, 10), sys.version"])
    await run("python3", ["-m", "venv", made])
    await run(
      join(made, "bin", "python"),
      ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", ...packages],
      {
        timeout: INSTALL_LIMIT_MS,
      },
    )
    mkdirSync(join(made, "complete"))
    // A folder that is there already was made by another run at the same time. Its programs name their folder: only a move
    // of the whole, and calls by `python -m`, keep them working.
    if (!existsSync(place)) renameSync(made, place)
    return { bin: join(place, "bin") }
  } catch (error) {
    const {
      stderr = "",
      killed = false,
      message = "",
    } = error as { stderr?: string; killed?: boolean; message?: string }
    const words = stderr.trim().split("\n").at(-1) || message.split("\n")[0] || "python3 failed"
    return { reason: (killed ? "installing took too long" : words).slice(0, 300) }
  } finally {
    rmSync(made, { recursive: true, force: true })
  }
}
