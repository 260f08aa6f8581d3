import { spawn } from "node:child_process"
import { once } from "node:events"
import { existsSync, mkdirSync, readdirSync, readFileSync, readlinkSync, statSync, writeFileSync } from "node:fs"
import { hostname } from "node:os"
import { join } from "node:path"
import { setTimeout as pause } from "node:timers/promises"
import { fileURLToPath } from "node:url"
import { afterAll, beforeAll, describe, expect, test } from "vitest"
import { tailOutput } from "../../node-agent/runtime/output-files.ts"
import { leftOnMachine, openBench, testedRuntimes, type Bench } from "../support/runtimes.ts"

const MEBIBYTE = 1024 * 1024
const python = (code: string): string[] => ["/usr/bin/python3", "-c", code]

for (const runtime of testedRuntimes()) {
  await using trial = await openBench(runtime)
  const probe = await trial.driver.probe()
  if (!probe.available) console.warn(`${runtime.title} is not tested: ${probe.problems.join("; ")}`)
  const enforces = new Set(probe.enforces)
  const sandboxed = trial.sandboxed

  describe.skipIf(!probe.available)(runtime.title, () => {
    let bench: Bench
    beforeAll(async () => {
      bench = await openBench(runtime)
      await bench.driver.probe()
    })
    afterAll(async () => {
      await bench[Symbol.asyncDispose]()
      expect(leftOnMachine(bench.place)).toEqual([])
    })

    test.each([0, 1, 3, 137])("an exit code of %i is told as it is", async (code) => {
      const { end } = await bench.run({ command: ["sh", "-c", `exit ${code}`] })
      expect(end).toMatchObject({ exitCode: code, signal: null, failureKind: code === 0 ? null : "exit_code" })
    })

    test("a program that a signal ends fails, and the signal is named", async () => {
      const { end } = await bench.run({ command: python("import os; os.kill(os.getpid(), 11)") })
      if (sandboxed) expect(end).toMatchObject({ exitCode: 139, failureKind: "exit_code" })
      else expect(end).toMatchObject({ exitCode: null, signal: "SIGSEGV", failureKind: "signal" })
      expect(end.message).toContain("SIGSEGV")
    })

    test("a command that is not there is refused by name", async () => {
      await expect(bench.run({ command: ["nosuchcommand"] })).rejects.toMatchObject({
        failureKind: "preparation_failed",
        message: expect.stringContaining("nosuchcommand") as string,
      })
    })

    test("the environment is exactly what was given", async () => {
      const env = { PATH: "/usr/bin:/bin", GREETING: "hello  world\n'\"$x", EMPTY: "" }
      const { stdout } = await bench.run({
        command: python("import os, json; print(json.dumps(dict(os.environ)))"),
        env,
      })
      // bubblewrap sets PWD, gVisor HOME when there is none, Python LC_CTYPE for itself.
      const { PWD: _directory, HOME: _home, LC_CTYPE: _python, ...seen } = JSON.parse(stdout) as Record<string, string>
      expect(seen).toEqual(env)
    })

    test("the program starts in its workdir and may write there and in /tmp", async () => {
      const code =
        "import os; open('mine', 'w').write('x'); open('/tmp/c-test', 'w').write('y'); os.remove('/tmp/c-test'); print(os.getcwd())"
      const { stdout, end, spec, stderr } = await bench.run({ command: python(code) })
      expect(stderr).toBe("")
      expect(end.failureKind).toBeNull()
      expect(stdout.trim()).toBe(spec.workdir)
    })

    test("standard output and standard error are kept apart", async () => {
      const { stdout, stderr } = await bench.run({
        command: ["sh", "-c", "echo out; echo err >&2; echo again > /dev/stdout"],
      })
      expect(stdout).toBe("out\nagain\n")
      expect(stderr).toBe("err\n")
    })

    test("the timeout kills the whole tree, also what left its session", async () => {
      const marker = `7${process.pid}7`
      const escape = `setsid sh -c "sleep ${marker} & exec sleep ${marker}" & sleep ${marker}`
      const { end } = await bench.run({ command: ["sh", "-c", escape], limits: { timeoutMs: 1_500 } })
      expect(end).toMatchObject({ failureKind: "timeout", message: expect.stringContaining("1.5 s") as string })
      expect(end.runtimeMs).toBeGreaterThanOrEqual(1_500)
      expect(end.runtimeMs).toBeLessThan(10_000)
      expect(processesNaming(marker)).toEqual([])
    })

    test("what a program leaves behind is killed when it ends", async () => {
      const marker = `6${process.pid}6`
      const { end } = await bench.run({ command: ["sh", "-c", `setsid sleep ${marker} & exit 0`] })
      expect(end.exitCode).toBe(0)
      expect(processesNaming(marker)).toEqual([])
    })

    test("the deadline ends an attempt by itself, unless it is extended", async () => {
      const short = await bench.run({ command: ["sleep", "30"], limits: { deadline: Date.now() + 1_000 } })
      expect(short.end.failureKind).toBe("node_lost")

      const spec = await bench.spec({ command: ["sleep", "2"], limits: { deadline: Date.now() + 1_000 } })
      const attempt = await bench.driver.start(spec)
      await attempt.extend(Date.now() + 30_000)
      expect(await attempt.done).toMatchObject({ exitCode: 0, failureKind: null })
      await bench.driver.release(spec.attemptDir)
    })

    test("stop ends a running attempt as cancelled, and a second stop waits for the first", async () => {
      const spec = await bench.spec({ command: ["sleep", "100"] })
      const attempt = await bench.driver.start(spec)
      await Promise.all([attempt.stop("cancelled"), attempt.stop("cancelled")])
      expect(await attempt.done).toMatchObject({ failureKind: "cancelled", exitCode: null })
      const again = await bench.driver.adopt(spec.attemptDir)
      expect(await again?.done).toMatchObject({ failureKind: "cancelled" })
      await bench.driver.release(spec.attemptDir)
    })

    test.skipIf(!enforces.has("memory"))(
      "memory over the limit ends the attempt as oom and names the limit",
      async () => {
        const { end } = await bench.run({
          command: python("x = b'x' * (900 << 20); print(len(x))"),
          limits: { memoryBytes: 160 * MEBIBYTE },
        })
        expect(end).toMatchObject({ failureKind: "oom", message: expect.stringContaining("160 MB") as string })
      },
    )

    test.skipIf(!enforces.has("memory"))("memory below the limit is there to be used", async () => {
      const { end } = await bench.run({
        command: python("x = b'x' * (120 << 20); print(len(x))"),
        limits: { memoryBytes: 192 * MEBIBYTE },
      })
      expect(end.failureKind).toBeNull()
      expect(end.peakMemoryBytes).toBeGreaterThan(100 * MEBIBYTE)
      expect(end.cpuMs).toBeGreaterThan(0)
    })

    test.skipIf(!enforces.has("pids"))("a fork bomb meets the limit of processes", async () => {
      const code =
        "import os, time\nn = 0\ntry:\n  for i in range(2000):\n    if os.fork() == 0: time.sleep(20); os._exit(0)\n    n += 1\nexcept OSError: pass\nprint(n, flush=True)\nos._exit(5)"
      const { end, stdout } = await bench.run({
        command: python(code),
        limits: { pids: 40, memoryBytes: 900 * MEBIBYTE },
      })
      // gVisor itself may end at the limit; whichever way, the machine never holds two thousand.
      expect(end.exitCode === 5 || end.failureKind !== null).toBe(true)
      if (end.exitCode === 5) expect(Number(stdout)).toBeLessThan(300)
    })

    test.skipIf(!enforces.has("cpu"))("two attempts share the processor by what they asked for", async () => {
      const burn = python("import time\nend = time.time() + 2\nn = 0\nwhile time.time() < end: n += 1\nprint(n)")
      const alone = await bench.run({ command: burn, limits: { cpu: 0.1 } })
      // Nobody else wants the processor for certain, so a small share still bursts far over a tenth.
      expect(alone.end.cpuMs).toBeGreaterThan(400)
    })

    test.skipIf(!enforces.has("disk"))("a full disk is told as disk_full, in the workdir and in /tmp", async () => {
      for (const path of ["/app/big", "/tmp/big"]) {
        const code = `f = open('${path}', 'wb')\nfor i in range(200): f.write(b'x' * (1 << 20)); f.flush()`
        const { end, stderr } = await bench.run({
          command: python(code),
          limits: { diskBytes: 48 * MEBIBYTE, memoryBytes: 512 * MEBIBYTE },
        })
        expect(stderr).toContain("No space left")
        expect(end).toMatchObject({ failureKind: "disk_full", message: expect.stringContaining("48 MB") as string })
      }
    })

    test.skipIf(!sandboxed)("no file, name, process or network of the machine is visible", async () => {
      writeFileSync(join(bench.place.dataDir, "secret"), "secret")
      const code = `import os, json, socket
def fails(f):
  try: f(); return False
  except OSError: return True
print(json.dumps({
 "root": sorted(os.listdir("/")), "secret": os.path.exists(${JSON.stringify(join(bench.place.dataDir, "secret"))}),
 "host": socket.gethostname(), "pids": len([p for p in os.listdir("/proc") if p.isdigit()]),
 "links": [n for n in (os.listdir("/sys/class/net") if os.path.exists("/sys/class/net") else []) if n != "lo"],
 "outside": fails(lambda: socket.create_connection(("192.0.2.2", 80), 2)), "usr": fails(lambda: open("/usr/x", "w")),
 "devices": [n for n in os.listdir("/dev") if n in ("kvm", "sda", "vda", "mem", "loop0", "fuse")],
}))`
      const { stdout, stderr } = await bench.run({ command: python(code) })
      expect(stderr).toBe("")
      const seen = JSON.parse(stdout) as Record<string, unknown>
      expect(seen).toMatchObject({ secret: false, host: "task", links: [], outside: true, usr: true })
      expect(seen["host"]).not.toBe(hostname())
      expect(seen["pids"]).toBeLessThan(6)
      expect(seen["root"]).not.toContain("home")
      if (runtime.title === "bubblewrap") expect(seen["devices"]).toEqual([])
    })

    test.skipIf(!sandboxed)("layers are never written, and the next attempt sees nothing of the last", async () => {
      const write = await bench.run({
        command: ["sh", "-c", "echo mine > /app/new && rm /app/from-image"],
      })
      expect(write.end.exitCode).toBe(0)
      const next = await bench.run({
        command: python("import os; print(os.listdir('/app'))"),
      })
      expect(next.stdout.trim()).toBe("['from-image']")
      expect(readdirSync(join(bench.image.layers[0] ?? "", "app"))).toEqual(["from-image"])
    })

    test.skipIf(!enforces.has("disk"))(
      "a disk goes on, empty, from an attempt that ended well, and not from one that failed",
      async () => {
        // On a busy machine something of an attempt may still be ending when its program has: its disk then serves nobody else.
        for (let pairs = 1; ; pairs++) {
          const well = await diskOf("echo mine > /app/new && mkdir -p /tmp/a/b && chmod 0 /tmp/a")
          const next = await diskOf("test ! -e /app/new && test ! -e /tmp/a && exit 1")
          expect(next.exitCode).toBe(1)
          if (next.place !== well.place && pairs < 10) continue
          expect(next.place).toBe(well.place)
          expect((await diskOf("true")).place).not.toBe(well.place)
          return
        }
      },
    )

    async function diskOf(script: string): Promise<{ place: string; exitCode: number | null }> {
      const spec = await bench.spec({ command: ["sh", "-c", script], limits: { diskBytes: 80 * MEBIBYTE } })
      const place = readlinkSync(join(spec.attemptDir, "disk"))
      const { exitCode } = await (await bench.driver.start(spec)).done
      await bench.driver.release(spec.attemptDir)
      return { place, exitCode }
    }

    test.skipIf(!sandboxed)(
      "mounts show host directories, read-only ones cannot be written, and writable ones keep what is written",
      async () => {
        const spec = await bench.spec({})
        const disk = await bench.driver.prepare(spec.attemptDir, spec.limits.diskBytes)
        const [input, output] = ["in", "out"].map((name) => join(disk, name)) as [string, string]
        for (const path of [input, output]) mkdirSync(path)
        writeFileSync(join(input, "data"), "data\n")
        const attempt = await bench.driver.start({
          ...spec,
          command: [
            "sh",
            "-c",
            "cat /in/data > /out/copy; echo x > /in/no 2>/dev/null; test -e /in/no && exit 9; exit 0",
          ],
          mounts: [
            ...spec.mounts,
            { hostPath: input, path: "/in", readonly: true },
            { hostPath: output, path: "/out", readonly: false },
          ],
        })
        expect(await attempt.done).toMatchObject({ exitCode: 0 })
        expect(readFileSync(join(output, "copy"), "utf8")).toBe("data\n")
        expect(existsSync(join(input, "no"))).toBe(false)
        await bench.driver.release(spec.attemptDir)
        expect(existsSync(disk)).toBe(false)
      },
    )

    test("output can be followed before the program ends", async () => {
      const spec = await bench.spec({
        command: python("import time\nprint('first', flush=True)\ntime.sleep(3)\nprint('last')"),
      })
      const attempt = await bench.driver.start(spec)
      let over = false
      void attempt.done.then(() => (over = true))
      const seen: { text: string; over: boolean }[] = []
      await tailOutput(attempt, (_stream, bytes) => void seen.push({ text: Buffer.from(bytes).toString(), over }))
      expect(seen[0]).toEqual({ text: "first\n", over: false })
      expect(seen.at(-1)?.text).toBe("last\n")
      await bench.driver.release(spec.attemptDir)
    })

    test("400 MB of output are taken at bounded memory and bounded disk, and the end is kept", async () => {
      const code =
        "import sys\nblock = 'x' * 1048575 + '\\n'\nfor i in range(400): sys.stdout.write(block)\nprint('the end')"
      const spec = await bench.spec({ command: python(code) })
      const attempt = await bench.driver.start(spec)
      const before = process.memoryUsage().rss
      let bytesSeen = 0
      let most = 0
      let disk = 0
      let tail = ""
      await tailOutput(attempt, (_stream, bytes, skipped) => {
        bytesSeen += bytes.length + skipped
        most = Math.max(most, process.memoryUsage().rss - before)
        disk = Math.max(disk, statSync(attempt.stdoutPath).blocks * 512)
        tail = (tail + Buffer.from(bytes.subarray(-100)).toString()).slice(-100)
      })
      expect(await attempt.done).toMatchObject({ exitCode: 0 })
      expect(bytesSeen).toBe(400 * MEBIBYTE + "the end\n".length)
      expect(tail.endsWith("\nthe end\n")).toBe(true)
      expect(most).toBeLessThan(60 * MEBIBYTE)
      expect(disk).toBeLessThan(24 * MEBIBYTE)
      await bench.driver.release(spec.attemptDir)
    })

    test("an attempt outlives its killed agent: another adopts it and hears its end; what is not kept is swept", async () => {
      await using later = await openBench(runtime)
      await later.driver.probe()
      const marker = `5${process.pid}5`
      const kept = await later.spec({ command: ["sh", "-c", "echo before; sleep 2; echo after; exit 7"] })
      const dropped = await later.spec({ command: ["sleep", marker] })
      for (const spec of [kept, dropped]) await killAfterStart(runtime.title, later, spec)

      const attempt = await later.driver.adopt(kept.attemptDir)
      expect(attempt).not.toBeNull()
      await later.driver.sweep(new Set([kept.attemptDir]))
      expect(processesNaming(marker)).toEqual([])
      expect(await later.driver.adopt(dropped.attemptDir)).toBeNull()
      expect(await attempt?.done).toMatchObject({ exitCode: 7, failureKind: "exit_code" })
      expect(readFileSync(join(kept.attemptDir, "stdout"), "utf8")).toBe("before\nafter\n")

      await later.driver.sweep(new Set())
      expect(leftOnMachine(later.place)).toEqual([])
    })

    test("a supervisor that was killed takes its program with it, and the attempt is a failure of the node", async () => {
      const marker = `4${process.pid}4`
      const spec = await bench.spec({ command: ["sleep", marker] })
      const attempt = await bench.driver.start(spec)
      const [pid] = readFileSync(join(spec.attemptDir, "supervisor"), "utf8").split(" ")
      process.kill(Number(pid), "SIGKILL")
      expect(await attempt.done).toMatchObject({ failureKind: "sandbox_error" })
      await bench.driver.release(spec.attemptDir)
      await expect.poll(() => processesNaming(marker), { timeout: 10_000 }).toEqual([])
    })
  })
}

async function killAfterStart(title: string, bench: Bench, spec: unknown): Promise<void> {
  const script = fileURLToPath(new URL("./start-and-hang.ts", import.meta.url))
  const agent = spawn(process.execPath, [script, title, JSON.stringify(bench.place), JSON.stringify(spec)], {
    stdio: ["ignore", "pipe", "inherit"],
  })
  const started = once(agent.stdout, "data")
  const ended = once(agent, "exit")
  await Promise.race([
    started,
    ended.then(() => Promise.reject(new Error("the agent ended before it started the attempt"))),
  ])
  await pause(50)
  agent.kill("SIGKILL")
  await ended
}

/** Command lines of living processes that contain the text; a guest's are not visible, its sandbox's are. */
function processesNaming(text: string): string[] {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .map((pid) => {
      try {
        return readFileSync(`/proc/${pid}/cmdline`, "utf8").replaceAll("\0", " ")
      } catch {
        return ""
      }
    })
    .filter((line) => line.includes(text) && !line.includes("start-and-hang"))
}
