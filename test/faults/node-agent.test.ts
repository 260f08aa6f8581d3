import { spawn } from "node:child_process"
import { once } from "node:events"
import { existsSync, readFileSync, writeFileSync } from "node:fs"
import { createServer } from "node:http"
import type { AddressInfo } from "node:net"
import { join } from "node:path"
import { setTimeout } from "node:timers/promises"
import { afterEach, beforeEach, expect, onTestFinished, test } from "vitest"
import { HEARTBEAT_MS, ProgramEnded, startAgentRig, startProgram, taskSpec, type AgentRig } from "../support/agent.ts"
import { BATCH_ITEMS, MOST_HELD, REVOKED_IN_FRAME } from "../../protocol/wire/control.ts"
import { groupsOf } from "../support/runtimes.ts"

let rig: AgentRig
beforeEach(async () => {
  rig = await startAgentRig()
})
afterEach(async () => {
  await rig[Symbol.asyncDispose]()
  expect(groupsOf(rig.dataDir)).toEqual([])
})

const WAITS = `
import os, time
open(os.environ["STARTED"], "a").write("started\\n")
while not os.path.exists(os.environ["GO"]): time.sleep(0.05)
print("went on")
open(os.environ["COMPUTALOT_TASK_RESULT"], "w").write('{"waited": true}')
`

test("an attempt outlives its agent: after kill -9 the restarted agent adopts it and reports its one result", async () => {
  const runtime = await rig.revision([{ name: "wait.py", content: WAITS }])
  const go = join(rig.dataDir, "go")
  const started = join(rig.dataDir, "started")
  const first = await rig.start()
  rig.grant(taskSpec(runtime, ["python3", "wait.py"], { env: { GO: go, STARTED: started } }), [{ claim: 101 }])
  await expect.poll(() => existsSync(started)).toBe(true)
  await first.end("SIGKILL")
  await rig.start()
  expect(rig.hellos().at(-1)?.attempts).toEqual([{ claim: 101, state: "running" }])
  writeFileSync(go, "")
  await expect.poll(() => rig.results().length).toBe(1)
  expect(rig.results()[0]).toMatchObject({
    claim: 101,
    failure_kind: null,
    exit_code: 0,
    output: "went on\n",
    result: { text: '{"waited": true}' },
  })
  expect(readFileSync(started, "utf8")).toBe("started\n")
})

test("what a killed agent left in control groups is gone after the next start and stop", async ({ skip }) => {
  const runtime = await rig.revision([{ name: "wait.py", content: WAITS }])
  const started = join(rig.dataDir, "started")
  const env = { GO: join(rig.dataDir, "never"), STARTED: started }
  const first = await rig.start()
  rig.grant(taskSpec(runtime, ["python3", "wait.py"], { env }), [{ claim: 31 }])
  await expect.poll(() => existsSync(started)).toBe(true)
  await first.end("SIGKILL")
  const left = groupsOf(rig.dataDir)
  if (left.length === 0) return skip("no control groups can be made here")
  expect(left.some((path) => readFileSync(join(path, "cgroup.procs"), "utf8") !== "")).toBe(true)

  rig.verdict = () => "spent"
  const second = await rig.start()
  await expect.poll(() => rig.heard.some(({ message }) => message.type === "heartbeat")).toBe(true)
  expect(await second.end("SIGTERM")).toBe(0)
  expect(groupsOf(rig.dataDir)).toEqual([])
})

test("an attempt that ended while no agent ran is collected by the next one", async () => {
  const runtime = await rig.revision([{ name: "wait.py", content: WAITS }])
  const go = join(rig.dataDir, "go")
  const started = join(rig.dataDir, "started")
  const first = await rig.start()
  rig.grant(taskSpec(runtime, ["python3", "wait.py"], { env: { GO: go, STARTED: started } }), [{ claim: 7 }])
  await expect.poll(() => existsSync(started)).toBe(true)
  await first.end("SIGKILL")
  writeFileSync(go, "")
  await expect.poll(() => existsSync(join(rig.dataDir, "attempts/c7/disk/result/result.json"))).toBe(true)
  await rig.start()
  await expect.poll(() => rig.results().length).toBe(1)
  expect(rig.results()[0]).toMatchObject({ claim: 7, failure_kind: null, output: "went on\n" })
})

test("a result is sent again after every reconnect until it is answered, and then no more", async () => {
  const runtime = await rig.revision([{ name: "x", content: "" }])
  rig.answering = false
  const agent = await rig.start()
  rig.grant(taskSpec(runtime, ["python3", "-c", "print(1)"]), [{ claim: 5 }])
  await expect.poll(() => rig.results().length).toBe(1)
  rig.cutOff()
  await expect.poll(() => rig.results().length).toBe(2)
  expect(rig.hellos().at(-1)?.attempts).toEqual([{ claim: 5, state: "done" }])
  expect(rig.results()[1]).toEqual(rig.results()[0])
  rig.answering = true
  rig.cutOff()
  await expect.poll(() => rig.results().length).toBe(3)
  await expect.poll(() => existsSync(join(rig.dataDir, "attempts/c5"))).toBe(false)
  const before = rig.hellos().length
  rig.cutOff()
  await expect.poll(() => rig.hellos().length).toBe(before + 1)
  expect(rig.hellos().at(-1)?.attempts).toEqual([])
  expect(rig.results().length).toBe(3)
  expect(await agent.end("SIGTERM")).toBe(0)
})

test("the agent's heartbeat never waits for a task, a hash or an unpack", async () => {
  const large = Array.from({ length: 200 }, (_, index) => ({
    name: `f${index}`,
    content: Buffer.alloc(200_000, index),
  }))
  const small = await rig.revision([{ name: "x", content: "" }])
  const heavy = await rig.revision(large)
  await rig.start(["--cpus", "64", "--memory-mb", "65536"])
  const busy = "import time\nt=time.time()\nwhile time.time()-t<4: pass"
  const writes = `import os;open(os.environ["COMPUTALOT_TASK_RESULT"],"w").write('"'+"x"*30_000_000+'"')`

  /** How long the agent's beats were apart while it was starved, and what a program that only ticks missed beside it. */
  async function starve(first: number): Promise<{ beats: number[]; missed: number }> {
    await using ticking = startTicking()
    const heardBefore = rig.heard.length
    const claims = Array.from({ length: 50 }, (_, index) => ({ claim: first + index }))
    rig.grant(taskSpec(small, ["python3", "-c", busy]), claims)
    // Each starts with a copy of 40 MB and leaves a large result to be hashed and checked.
    rig.grant(taskSpec(heavy, ["python3", "-c", writes]), [{ claim: first + 60 }, { claim: first + 61 }])
    const ended = (): number => rig.results().filter(({ claim }) => claim >= first && claim < first + 50).length
    await expect.poll(ended, { timeout: 50_000 }).toBe(50)
    const heard = rig.heard.slice(heardBefore).filter(({ message }) => message.type === "heartbeat")
    return { beats: heard.map(({ atMs }) => atMs), missed: Math.max(0, longestGap(await ticking.end()) - 250) }
  }

  // Where the machine itself stands still for a beat it says little of the agent: it is asked again.
  let { beats, missed } = await starve(1)
  for (let more = 1; more <= 2 && missed > 250; more++) ({ beats, missed } = await starve(1 + 100 * more))
  // Beats are due every 250 ms; three missed would make the node suspect. What a program that only ticks misses, the machine
  // missed: the agent, which has work to do, may miss four times that, and never three beats of a second each.
  expect(longestGap(beats)).toBeLessThan(Math.min(750 + 4 * missed, 3_000))
  expect(gaps(beats).toSorted((a, b) => a - b)[Math.floor(beats.length / 2)]).toBeLessThan(500)
}, 180_000)

test("a second agent is kept out of the data directory", async () => {
  await rig.start()
  await expect(rig.start()).rejects.toThrow("is in use by another agent")
})

test("a revoked node ends what runs, says so in one line and exits non-zero", async () => {
  const runtime = await rig.revision([{ name: "x", content: "" }])
  const agent = await rig.start()
  const pid = join(rig.dataDir, "pid")
  const sleeps = `import os,time; open(${JSON.stringify(pid)},"w").write(str(os.getpid())); time.sleep(60)`
  rig.grant(taskSpec(runtime, ["python3", "-c", sleeps]), [{ claim: 9 }])
  await expect.poll(() => existsSync(pid) && readFileSync(pid, "utf8") !== "").toBe(true)
  const ended = new Promise((resolve) => agent.process.once("exit", resolve))
  rig.send({ type: "node_state", state: "revoked" })
  expect(await ended).toBe(1)
  expect(agent.log()).toContain("computalot-node: this node was revoked")
  expect(isAlive(Number(readFileSync(pid, "utf8")))).toBe(false)
})

test("SIGTERM drains: what runs ends first, nothing new is taken, and the exit code is 0", async () => {
  const runtime = await rig.revision([{ name: "x", content: "" }])
  const agent = await rig.start()
  rig.grant(taskSpec(runtime, ["python3", "-c", "import time; time.sleep(1.5)"]), [{ claim: 3 }])
  await expect.poll(() => rig.heard.some(({ message }) => message.type === "started")).toBe(true)
  const ended = agent.end("SIGTERM")
  await expect
    .poll(() => rig.heard.some(({ message }) => message.type === "claim" && message.draining && !message.open))
    .toBe(true)
  rig.grant(taskSpec(runtime, ["python3", "-c", "pass"]), [{ claim: 4 }])
  expect(await ended).toBe(0)
  expect(rig.results().map(({ claim }) => claim)).toEqual([3])
  expect(rig.heard.some(({ message }) => message.type === "give_back" && message.items[0]?.claim === 4)).toBe(true)
})

test("short attempts in a line are told by their reports, several in one; the last of the line waits for nobody", async () => {
  const runtime = await rig.revision([{ name: "x", content: "" }])
  await rig.start()
  const claims = Array.from({ length: 24 }, (_, n) => 100 + n)
  rig.grant(
    taskSpec(runtime, ["true"]),
    claims.map((claim) => ({ claim })),
  )
  await expect.poll(() => rig.results().length, { timeout: 30_000 }).toBe(24)
  expect(
    rig
      .results()
      .map(({ claim }) => claim)
      .toSorted((a, b) => a - b),
  ).toEqual(claims)
  const said = (type: string) => rig.heard.filter(({ message }) => message.type === type)
  expect(said("report").length).toBeLessThan(24)
  const toldStarts = said("started").flatMap(({ message }) => (message.type === "started" ? message.claims : []))
  expect(toldStarts.length).toBeLessThan(24)
})

test("a start is told soon where the attempt goes on, and before what it prints", async () => {
  const runtime = await rig.revision([{ name: "x", content: "" }])
  await rig.start()
  const speaks = `import time; print('COMPUTALOT_PROGRESS {"n":1}', flush=True); time.sleep(60)`
  rig.grant(taskSpec(runtime, ["python3", "-c", speaks]), [{ claim: 5 }])
  const types = (): string[] => rig.heard.map(({ message }) => message.type)
  await expect.poll(types, { timeout: 10_000 }).toContain("progress")
  expect(types().indexOf("started")).toBeGreaterThan(-1)
  expect(types().indexOf("started")).toBeLessThan(types().indexOf("progress"))
})

/** Ignores what it can, and leaves many more behind that left its session. */
const STAYS = `
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for n in range(40):
    if os.fork() == 0:
        os.setsid()
        if os.fork(): os._exit(0)
        break
open(os.environ["PIDS"], "a").write(f"{os.getpid()}\\n")
while True: time.sleep(60)
`

test("architecture §5.4: a drain now gives a running attempt back once every process of it is dead, and no sooner", async () => {
  const runtime = await rig.revision([{ name: "stays.py", content: STAYS }])
  const agent = await rig.start(["--drain", "now"])
  const file = join(rig.dataDir, "pids")
  const pids = (): number[] => (existsSync(file) ? readFileSync(file, "utf8").trim().split("\n").map(Number) : [])
  rig.grant(taskSpec(runtime, ["python3", "stays.py"], { env: { PIDS: file }, memory_mb: 1_024 }), [{ claim: 21 }])
  await expect.poll(() => pids().length, { timeout: 20_000 }).toBe(41)
  expect(pids().every(isAlive)).toBe(true)
  let livedOn: number[] | null = null
  rig.hears = (message) => {
    if (message.type === "give_back") livedOn = pids().filter(isAlive)
  }
  expect(await agent.end("SIGTERM")).toBe(0)
  expect(livedOn).toEqual([])
  const back = rig.heard.flatMap(({ message }) => (message.type === "give_back" ? message.items : []))
  expect(back).toEqual([{ claim: 21, reason: "the node is draining" }])
  expect(rig.results()).toEqual([])
})

test("a first start without a token exits non-zero with one line", async () => {
  const started = startProgram(["--coordinator", "http://127.0.0.1:9", "--data-dir", join(rig.dataDir, "other")])
  const ended: unknown = await started.catch((error: unknown) => error)
  expect(ended).toBeInstanceOf(ProgramEnded)
  expect(ended).toMatchObject({
    code: 1,
    log: "computalot-node: this node is not enrolled yet: give a join token with --token fln_…\n",
  })
})

test("a network for tasks that cannot be enforced is refused at the start, in one line", async () => {
  const line = /^computalot-node: --task-network outbound cannot be enforced here: .*\n$/m
  const plain: unknown = await rig.start(["--task-network", "outbound"]).catch((error: unknown) => error)
  expect(plain).toMatchObject({ code: 1, log: expect.stringMatching(line) as string })
  if (process.getuid?.() !== 0 || readFileSync("/proc/sys/net/ipv4/ip_forward", "utf8").trim() === "1") {
    return console.warn("a sandbox without a network is not tested: not root, or forwarding is on")
  }
  const flags = ["--runtime", "bubblewrap", "--task-network", "outbound"]
  const boxed: unknown = await rig.start(flags).catch((error: unknown) => error)
  expect(boxed).toMatchObject({ code: 1, log: expect.stringMatching(line) as string })
})

test("a file that the coordinator refuses is reported without it, a busy coordinator is asked again, and a refused result is set aside", async () => {
  let uploads = 0
  const server = createServer((request, response) => {
    uploads += 1
    request.resume().once("end", () => {
      response.writeHead(uploads === 1 ? 503 : 409, { "content-type": "application/json" })
      response.end('{"error":"no","code":"conflict","request_id":"1"}')
    })
  }).listen(0, "127.0.0.1")
  onTestFinished(() => {
    server.closeAllConnections()
    server.close()
  })
  await once(server, "listening")
  rig.answering = false
  const { port } = server.address() as AddressInfo
  await rig.start(["--coordinator", `http://127.0.0.1:${port}`])
  const runtime = await rig.revision([{ name: "x", content: "" }])
  const writes = `import os;open(os.environ["COMPUTALOT_TASK_RESULT"],"w").write('"'+"x"*300_000+'"')`
  rig.grant(taskSpec(runtime, ["python3", "-c", writes]), [{ claim: 11 }])
  await expect.poll(() => rig.results().length).toBe(1)
  expect(uploads).toBe(2)
  expect(rig.results()[0]?.result).toMatchObject({ size: 300_002 })
  const items = [{ claim: 11, kind: "result" as const, verdict: "refused" as const, reason: "bytes are missing" }]
  rig.send({ type: "verdicts", items })
  await expect.poll(() => existsSync(join(rig.dataDir, "attempts/c11"))).toBe(false)
  const before = rig.hellos().length
  rig.cutOff()
  await expect.poll(() => rig.hellos().length).toBe(before + 1)
  expect(rig.hellos().at(-1)?.attempts).toEqual([])
  expect(rig.results().length).toBe(1)
})

test("a welcome with a lower epoch is not believed: the agent says hello again until one is high enough", async () => {
  await rig.start()
  const claims = (): number => rig.heard.filter(({ message }) => message.type === "claim").length
  await expect.poll(claims).toBeGreaterThan(0)
  expect(rig.hellos()[0]).toMatchObject({ epoch: 0, epoch_proof: null })
  rig.epoch = 6
  const [hellos, before] = [rig.hellos().length, claims()]
  rig.cutOff()
  await expect.poll(() => rig.hellos().length).toBeGreaterThan(hellos + 2)
  expect(claims()).toBe(before)
  expect(rig.hellos().at(-1)?.epoch).toBe(7)
  expect(rig.hellos().at(-1)?.epoch_proof).not.toBe(null)
  rig.epoch = 8
  await expect.poll(claims).toBeGreaterThan(before)
  rig.cutOff()
  await expect.poll(() => rig.hellos().at(-1)?.epoch).toBe(8)
})

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch {
    return false
  }
}

test("architecture §5.4: a take-back leaves alone what has ended and waits for its answer", async () => {
  const runtime = await rig.revision([{ name: "x", content: "" }])
  rig.answering = false
  const agent = await rig.start()
  rig.grant(taskSpec(runtime, ["python3", "-c", "print(1)"]), [{ claim: 5 }])
  await expect.poll(() => rig.results().length).toBe(1)
  rig.send({ type: "take_back", claims: [5] })
  const answers = () => rig.heard.map(({ message }) => message).filter(({ type }) => type === "taken_back")
  await expect.poll(answers).toEqual([{ type: "taken_back", not_started: [], started: [5] }])
  rig.answering = true
  rig.cutOff()
  await expect.poll(() => rig.results().length).toBe(2)
  expect(await agent.end("SIGTERM")).toBe(0)
})

test("rulings, Mesh: a node beats at the interval it was told last, and numbers its heartbeats on", async () => {
  const agent = await rig.start()
  const beats = (): number[] => rig.heard.flatMap(({ message }) => (message.type === "heartbeat" ? [message.n] : []))
  await expect.poll(() => beats().length).toBeGreaterThan(1)
  rig.send({ type: "heartbeat_reply", n: 0, renewed: [], spent: [], heartbeat_ms: 600_000 })
  await setTimeout(500)
  const before = beats().length
  await setTimeout(3 * HEARTBEAT_MS)
  expect(beats().length).toBe(before)
  rig.send({ type: "heartbeat_reply", n: 0, renewed: [], spent: [], heartbeat_ms: 50 })
  await expect.poll(() => beats().length).toBeGreaterThan(before + 5)
  expect(beats()).toEqual(beats().map((_, at) => at + 1))
  expect(await agent.end("SIGTERM")).toBe(0)
})

/** A program of its own that ticks every 250 ms: what it misses, the machine could not give. */
function startTicking(): AsyncDisposable & { end(): Promise<number[]> } {
  const child = spawn(process.execPath, ["-e", "setInterval(() => console.log(performance.now()), 250)"])
  let printed = ""
  child.stdout.on("data", (bytes: Buffer) => (printed += bytes.toString()))
  const ended = new Promise<void>((resolve) => child.once("close", () => resolve()))
  const end = async (): Promise<number[]> => {
    child.kill("SIGKILL")
    await ended
    return printed.trim().split("\n").map(Number)
  }
  return { end, [Symbol.asyncDispose]: async () => void (await end()) }
}

const gaps = (times: readonly number[]): number[] => times.slice(1).map((at, index) => at - (times[index] ?? at))
const longestGap = (times: readonly number[]): number => Math.max(0, ...gaps(times))

test("architecture §5.3: a node takes no more attempts than its hello can carry, and gives the others back", async () => {
  const runtime = await rig.revision([{ name: "x.py", content: "" }])
  // More than the machine has: accepted, and never started.
  const spec = taskSpec(runtime, ["python3", "x.py"], { cpu: 100_000 })
  await rig.start()
  const claims = Array.from({ length: MOST_HELD + 3 }, (_, n) => ({ claim: 9_007_199_000_000_000 + n }))
  for (let at = 0; at < claims.length; at += BATCH_ITEMS) rig.grant(spec, claims.slice(at, at + BATCH_ITEMS))
  const returned = (): number[] =>
    rig.heard.flatMap(({ message }) => (message.type === "give_back" ? message.items.map(({ claim }) => claim) : []))
  await expect.poll(returned, { timeout: 20_000 }).toEqual(claims.slice(MOST_HELD).map(({ claim }) => claim))
  const closed = (): boolean => rig.heard.some(({ message }) => message.type === "claim" && !message.open)
  await expect.poll(closed).toBe(true)

  const before = rig.hellos().length
  rig.cutOff()
  await expect.poll(() => rig.hellos().length).toBe(before + 1)
  expect(rig.hellos().at(-1)?.attempts).toHaveLength(MOST_HELD)
  // Full frames both ways, and the stream goes on.
  const named = (): number =>
    Math.max(...rig.heard.slice(-5).map(({ message }) => (message.type === "heartbeat" ? message.attempts.length : 0)))
  await expect.poll(named).toBe(MOST_HELD)
  expect(rig.hellos().length).toBe(before + 1)
})

test("architecture §5.1: a list of revoked members that takes many frames shuts out every one of them", async () => {
  rig.revoked = Array.from({ length: 4 * REVOKED_IN_FRAME + 1 }, (_, n) => `node_revoked_${n}`)
  const agent = await rig.start()
  const [address = ""] = agent.ready["listen"] as string[]
  for (const id of [rig.revoked[0], rig.revoked[2 * REVOKED_IN_FRAME], rig.revoked.at(-1)]) {
    const bad = await rig.member(id ?? "")
    await bad.dial(address).catch(() => undefined)
    await expect.poll(() => bad.refusals.at(-1)).toMatchObject({ by: "them", reason: "revoked" })
  }
  const good = await rig.member("node_good")
  const peer = await good.dial(address)
  await expect.poll(() => good.peers()).toContain(peer)
})
