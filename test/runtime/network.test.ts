import { execFile, execFileSync, spawn, type ChildProcess } from "node:child_process"
import { mkdirSync, readdirSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { promisify } from "node:util"
import { afterAll, beforeAll, describe, expect, test } from "vitest"
import { makeBases, missingTools, scratchDirectory } from "../support/images.ts"
import { openBench, testedRuntimes } from "../support/runtimes.ts"

const run = promisify(execFile)

/** A machine and an internet of our own, in network namespaces: nothing of the real machine is changed. */
const MACHINE = `ct-machine-${process.pid}`
const INTERNET = `ct-internet-${process.pid}`
const PUBLIC = "8.8.7.6"
const NODE = "8.8.7.1"
const PRIVATE = "10.77.0.9"
const LINK_LOCAL = "169.254.169.254"

const root = process.getuid?.() === 0
if (!root) console.warn("networks of tasks are not tested: only root can make them")
const ip = (...args: string[]): void => void execFileSync("ip", args, { stdio: "pipe" })
const serving: ChildProcess[] = []

describe.skipIf(!root)("the network of tasks", () => {
  beforeAll(() => {
    for (const name of [MACHINE, INTERNET]) ip("netns", "add", name)
    ip("-n", MACHINE, "link", "add", "wan", "type", "veth", "peer", "name", "lan", "netns", INTERNET)
    for (const name of [MACHINE, INTERNET]) ip("-n", name, "link", "set", "lo", "up")
    for (const address of [`${NODE}/24`, "10.77.0.1/24", "169.254.169.1/24"])
      ip("-n", MACHINE, "addr", "add", address, "dev", "wan")
    for (const address of [`${PUBLIC}/24`, `${PRIVATE}/24`, `${LINK_LOCAL}/24`])
      ip("-n", INTERNET, "addr", "add", address, "dev", "lan")
    ip("-n", MACHINE, "link", "set", "wan", "up")
    ip("-n", INTERNET, "link", "set", "lan", "up")
    const server =
      "import http.server; http.server.ThreadingHTTPServer(('0.0.0.0', 80), http.server.SimpleHTTPRequestHandler).serve_forever()"
    for (const name of [MACHINE, INTERNET]) {
      serving.push(
        spawn("nsenter", [`--net=/run/netns/${name}`, "/usr/bin/python3", "-c", server], {
          stdio: "ignore",
          cwd: "/proc",
        }),
      )
    }
  })
  afterAll(() => {
    for (const child of serving) child.kill("SIGKILL")
    for (const name of [MACHINE, INTERNET]) ip("netns", "del", name)
  })

  const forward = (value: 0 | 1): void =>
    void execFileSync("nsenter", [
      `--net=/run/netns/${MACHINE}`,
      "sh",
      "-c",
      `echo ${value} > /proc/sys/net/ipv4/ip_forward`,
    ])

  const attempt = async (title: string, code: string): Promise<Record<string, unknown>> => {
    const script = fileURLToPath(new URL("./outbound-attempt.ts", import.meta.url))
    const { stdout } = await run("nsenter", [`--net=/run/netns/${MACHINE}`, process.execPath, script, title, code])
    return JSON.parse(stdout) as Record<string, unknown>
  }

  const titles = testedRuntimes()
    .map((runtime) => runtime.title)
    .filter((title) => title !== "process")

  test.each(titles)(
    "GAP-72: %s: a task reaches the internet and nothing private, of the node or link-local",
    async (title) => {
      const runtime = testedRuntimes().find((candidate) => candidate.title === title)
      if (runtime === undefined) return
      await using bench = await openBench(runtime)
      if (!(await bench.driver.probe()).available) return console.warn(`${title} is not tested: it does not run here`)
      forward(1)
      const code = `import json, socket
def reach(host):
  try: socket.create_connection((host, 80), 3).close(); return True
  except OSError: return False
print(json.dumps({h: reach(h) for h in ${JSON.stringify([PUBLIC, NODE, PRIVATE, LINK_LOCAL, "127.0.0.1", "100.115.0.1"])}}))
print(open("/etc/resolv.conf").read())`
      // The servers need a moment, and the first attempt that reaches one ends the waiting.
      await expect
        .poll(
          () =>
            execFileSync("nsenter", [
              `--net=/run/netns/${MACHINE}`,
              "sh",
              "-c",
              `exec 3<>/dev/null; python3 -c "import socket; socket.create_connection(('${PUBLIC}', 80), 2)" && echo yes || true`,
            ]).toString(),
          { timeout: 20_000 },
        )
        .toContain("yes")
      const seen = await attempt(title, code)
      expect(seen["stderr"]).toBe("")
      const [reached] = String(seen["stdout"]).split("\n")
      expect(JSON.parse(reached ?? "")).toEqual({
        [PUBLIC]: true,
        [NODE]: false,
        [PRIVATE]: false,
        [LINK_LOCAL]: false,
        "127.0.0.1": false,
        "100.115.0.1": false,
      })
      expect(String(seen["stdout"])).toContain("nameserver")
      expect(readdirSync("/run/netns").filter((name) => name.startsWith("cl-"))).toEqual([])
      const tables = execFileSync("nsenter", [`--net=/run/netns/${MACHINE}`, "nft", "list", "tables"]).toString()
      expect(tables).not.toContain("computalot")
    },
  )

  test("a build reaches the internet and nothing private, and its network goes with it", async ({ skip }) => {
    if (missingTools("buildah", "skopeo", "runsc", "mmdebstrap") !== null) return skip("images cannot be built here")
    forward(1)
    const home = await scratchDirectory()
    const [tree, bases] = [join(home, "tree"), join(home, "bases")]
    mkdirSync(tree)
    await makeBases(bases, "python")
    const code = `import socket
for host in ${JSON.stringify([PUBLIC, NODE, PRIVATE, LINK_LOCAL, "127.0.0.1"])}:
  try: socket.create_connection((host, 80), 3).close(); print(host, "is reached")
  except OSError: print(host, "is not")
print(open("/etc/resolv.conf").read())
`
    writeFileSync(join(tree, "look.py"), code)
    writeFileSync(join(tree, "Dockerfile"), "FROM python:3.11-slim\nCOPY look.py /\nRUN python /look.py\n")
    const script = fileURLToPath(new URL("./outbound-build.ts", import.meta.url))
    const args = [`--net=/run/netns/${MACHINE}`, process.execPath, script, join(home, "builder"), bases, tree]
    const { stdout } = await run("nsenter", args)
    const { problem, log } = JSON.parse(stdout) as { problem: string | null; log: string }
    expect(problem).toBe(null)
    expect(log).toContain(`${PUBLIC} is reached`)
    for (const host of [NODE, PRIVATE, LINK_LOCAL, "127.0.0.1"]) expect(log).toContain(`${host} is not`)
    expect(log).toContain("nameserver")
    expect(readdirSync("/run/netns").filter((name) => name.startsWith("cl-"))).toEqual([])
  })

  test("where forwarding is off the node says none and why, and turns nothing on", async () => {
    forward(0)
    const seen = await attempt("bubblewrap", "pass")
    expect(seen["probe"]).toMatchObject({
      network: "none",
      problems: [expect.stringContaining("forwarding is off") as string],
    })
    const still = execFileSync("nsenter", [
      `--net=/run/netns/${MACHINE}`,
      "cat",
      "/proc/sys/net/ipv4/ip_forward",
    ]).toString()
    expect(still.trim()).toBe("0")
  })
})
