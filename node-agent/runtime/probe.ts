import { copyFileSync, existsSync, mkdirSync, readFileSync, rmSync, symlinkSync } from "node:fs"
import { basename, dirname, join } from "node:path"
import { errorText } from "../../protocol/base/error-text.ts"
import type { DriverPlace, RuntimeDriver } from "./driver.ts"

/**
 * Runs a program in the sandbox and looks at what it prints and how it exits. Null when that works, or one sentence why not.
 * The image is the machine's own shell and its libraries, copied: what a stranger's task will see is not touched.
 */
export async function trySandbox(driver: RuntimeDriver, place: DriverPlace): Promise<string | null> {
  const home = join(place.dataDir, `probe-${driver.name}-${process.pid}`)
  const attemptDir = join(home, "attempt")
  try {
    mkdirSync(attemptDir, { recursive: true })
    const layer = shellImage(join(home, "layer"))
    const attempt = await driver.start({
      name: `probe-${process.pid}`,
      attemptDir,
      rootfs: { layers: [layer], hostname: "probe" },
      command: ["sh", "-c", "echo $HELLO && echo x > file && exit 3"],
      env: { PATH: "/bin", HELLO: "hello" },
      workdir: "/work",
      mounts: [],
      limits: {
        memoryBytes: 128 * 1024 * 1024,
        cpu: 1,
        pids: 64,
        diskBytes: 16 * 1024 * 1024,
        timeoutMs: PROBE_TIMEOUT_MS,
        deadline: Date.now() + PROBE_TIMEOUT_MS,
      },
      network: "none",
    })
    const end = await attempt.done
    const said = printed(attempt.stdoutPath)
    if (end.exitCode === 3 && said === "hello\n") return null
    const wrong = printed(attempt.stderrPath).slice(-300).trim()
    return `${driver.name} does not run here: ${end.message ?? "a trial gave the wrong output"} ${wrong}`.trim()
  } catch (error) {
    return `${driver.name} does not run here: ${errorText(error)}`
  } finally {
    await driver.release(attemptDir).catch(() => {})
    rmSync(home, { recursive: true, force: true })
  }
}

const PROBE_TIMEOUT_MS = 20_000

/** The loader and libraries are found in the shell's own maps of a running process: ours names the same C library. */
function shellImage(root: string): string {
  const files = new Set(["/bin/sh"])
  for (const path of LIBRARIES) if (existsSync(path)) files.add(path)
  for (const file of files) {
    mkdirSync(join(root, dirname(file)), { recursive: true })
    copyFileSync(file, join(root, file))
  }
  const loader = [...files].find((file) => basename(file).startsWith("ld-linux"))
  if (loader !== undefined && !existsSync(join(root, "lib64"))) symlinkSync("lib", join(root, "lib64"))
  mkdirSync(join(root, "work"), { recursive: true })
  return root
}

/** What /bin/sh needs on the distributions we know (dash and bash); those that exist are taken. */
const LIBRARIES = [
  "/lib64/ld-linux-x86-64.so.2",
  "/lib/ld-linux-aarch64.so.1",
  "/lib/ld-musl-x86_64.so.1",
  "/lib/ld-musl-aarch64.so.1",
  ...["x86_64-linux-gnu", "aarch64-linux-gnu"].flatMap((name) => [
    `/lib/${name}/libc.so.6`,
    `/lib/${name}/libtinfo.so.6`,
  ]),
  "/lib64/libc.so.6",
  "/lib64/libtinfo.so.6",
]

/** A stream on which nothing was printed has no file. */
function printed(path: string): string {
  return existsSync(path) ? readFileSync(path, "utf8") : ""
}
