import { createHash } from "node:crypto"
import { once } from "node:events"
import { readFileSync, writeFileSync } from "node:fs"
import { createServer, type AddressInfo } from "node:net"
import { join } from "node:path"
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest"
import { commandOf, processesOf } from "../../scripts/lib/processes.ts"
import type { Client, Fleet, FleetNode, Json } from "../support/fleet.ts"
import { startMarkedFleet, WORK_PY, type MarkedFleet } from "../support/marked-fleet.ts"
import { storedRows } from "../support/stored-rows.ts"
import { startTcpProxy, type TcpProxy } from "../support/tcp-proxy.ts"

/**
 * Every program is killed, stopped or cut off at every moment of an attempt, with real processes, files and links: afterwards
 * each task stands once in the results and once in the money, and nothing is left running (architecture §5.3, §5.5).
 * A run takes a sample that moves on every hour; `scripts/test --full` runs all.
 */

const FAULTS = ["kill", "stop", "cut", "blackhole"] as const
const TARGETS = ["node", "coordinator", "peer"] as const
const MOMENTS = [
  "before its claim is acknowledged",
  "just started",
  "in the middle",
  "while an artifact uploads",
  "when its result is written and not acknowledged",
  "during settlement",
] as const
type Fault = (typeof FAULTS)[number]
type Target = (typeof TARGETS)[number]
type Moment = (typeof MOMENTS)[number]
interface Cell {
  fault: Fault
  target: Target
  moment: Moment
}

const ALL: Cell[] = TARGETS.flatMap((target) =>
  MOMENTS.flatMap((moment) => FAULTS.map((fault) => ({ fault, target, moment }))),
)
/** A peer serves content while an attempt is prepared: after its grant, before its program starts. */
const cannotOccur = ({ target, moment }: Cell): string | null =>
  target === "peer" && moment !== MOMENTS[0] ? "the attempt has all its content: the peer serves nothing then" : null
const CELLS = ALL.filter((cell) => cannotOccur(cell) === null)

const SAMPLE = 6
const hour = Math.floor(Date.now() / 3_600_000)
const chosen =
  process.env["COMPUTALOT_TEST_FULL"] === undefined
    ? Array.from({ length: SAMPLE }, (_, n) => CELLS[(hour * SAMPLE + n * 7) % CELLS.length] as Cell)
    : CELLS

const CLAIM_LIFETIME_S = 10
/** Beyond the claim's life, so that what was cut off has lost its claims. */
const AWAY_MS = (CLAIM_LIFETIME_S + 2) * 1_000
const ARTIFACT_MIB = 4
const ARTIFACT_BYTES = ARTIFACT_MIB * 2 ** 20
const SLOW_BYTES_PER_S = 1024 * 1024

/** A node whose every link goes through proxies of its own. */
interface LinkedNode {
  node: FleetNode
  /** To the coordinator. */
  mesh: TcpProxy
  http: TcpProxy
  /** From other nodes. */
  content: TcpProxy
}

const linksOf = ({ mesh, http, content }: LinkedNode): TcpProxy[] => [mesh, http, content]
const healAll = async (): Promise<unknown> => Promise.all(linked.flatMap(linksOf).map((link) => link.heal()))

let world: MarkedFleet
let fleet: Fleet
let client: Client
const linked: LinkedNode[] = []

beforeAll(async () => {
  world = await startMarkedFleet({
    nodes: [],
    coordinatorFlags: [`--claim-lifetime-s=${CLAIM_LIFETIME_S}`, "--lost-after-s=1", "--heartbeat-s=0.5"],
    project: "wait",
    files: { "wait.py": WORK_PY },
    creditUsd: 100,
  })
  ;({ fleet, client } = world)
  for (let n = 0; n < 2; n++) linked.push(await linkedNode())
}, 180_000)

afterAll(async () => {
  await healAll()
  await world[Symbol.asyncDispose]()
  await Promise.all(linked.flatMap(linksOf).map((link) => link[Symbol.asyncDispose]()))
}, 120_000)

afterEach(async () => {
  await healAll()
  await world.cancelActive()
}, 60_000)

/** It enrols once over the real addresses; from then on it knows only those of its proxies. */
async function linkedNode(): Promise<LinkedNode> {
  const meshPort = Number(/\/tcp\/(\d+)/.exec(String((fleet.coordinator.ready["mesh"] as string[])[0]))?.[1])
  const mesh = await startTcpProxy(meshPort)
  const http = await startTcpProxy(Number(new URL(fleet.origin).port))
  const listen = await freePort()
  const content = await startTcpProxy(listen)
  const node = await fleet.addNode({
    flags: [
      "--cpus=1",
      `--coordinator=http://127.0.0.1:${http.port}`,
      `--listen=/ip4/127.0.0.1/tcp/${listen}`,
      `--announce=/ip4/127.0.0.1/tcp/${content.port}`,
    ],
  })
  await node.end("SIGTERM")
  const file = join(node.dataDir, "membership.json")
  writeFileSync(file, readFileSync(file, "utf8").replaceAll(`/tcp/${meshPort}/`, `/tcp/${mesh.port}/`))
  await node.start()
  return { node, mesh, http, content }
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1")
  await once(server, "listening")
  const { port } = server.address() as AddressInfo
  server.close()
  await once(server, "close")
  return port
}

interface Running {
  id: string
  names: string[]
  go(): void
  started(): number
}

/** As many tasks as nodes, one for each, unless there shall be fewer. */
async function submit(label: string, tasks = 2): Promise<Running> {
  const names = Array.from({ length: tasks }, (_, n) => `${label}-${n}`)
  const go = `${label}-go`
  const id = await client.submit({
    project: "wait",
    runner_command: ["python3", "wait.py"],
    fan_out: { by: "name" },
    payload: { name: names, go, size: ARTIFACT_MIB },
  })
  return {
    id,
    names,
    go: () => world.go(go),
    started: () => names.filter((name) => world.runs(name) > 0).length,
  }
}

/** Asks the coordinator's own database. */
const stored = <Row>(sql: string, ...parameters: string[]): Row[] =>
  storedRows(join(fleet.folder, "coordinator"), sql, ...parameters)

const attemptsOf = (job: string): { state: string; node: string }[] =>
  stored(
    `SELECT a.state, a.node FROM attempts a JOIN jobs j ON a.task >= j.seq * 131072 AND a.task < (j.seq + 1) * 131072
     WHERE j.id = ? ORDER BY a.claim`,
    job,
  )

/** Says why one waits, should it. */
async function allStarted(job: Running): Promise<void> {
  try {
    await expect.poll(() => job.started()).toBe(job.names.length)
  } catch (error) {
    const { json } = await client.call("GET", `/api/v1/jobs/${job.id}`)
    const waits = JSON.stringify([json["task_counts"], json["queue_reason"], attemptsOf(job.id)])
    throw new Error(`${job.started()} of ${job.names.length} started: ${waits}`, { cause: error })
  }
}

/** Brings a job to the moment, with the victim's part of it there; returns how to let it go on. */
const REACH: Record<Moment, (victim: LinkedNode, label: string) => Promise<Running>> = {
  async "before its claim is acknowledged"(victim, label) {
    // Its standing claim is heard before it falls silent.
    await pause(500)
    victim.mesh.hold("up")
    const job = await submit(label)
    const offered = () => attemptsOf(job.id).filter(({ node }) => node === victim.node.id)
    await expect.poll(() => offered().length).toBe(1)
    return job
  },
  async "just started"(_victim, label) {
    const job = await submit(label)
    await allStarted(job)
    return job
  },
  async "in the middle"(victim, label) {
    const job = await REACH["just started"](victim, label)
    await pause(1_000)
    return job
  },
  async "while an artifact uploads"(victim, label) {
    const job = await REACH["just started"](victim, label)
    victim.http.slow(SLOW_BYTES_PER_S)
    const before = victim.http.bytes.up
    job.go()
    await expect.poll(() => victim.http.bytes.up - before).toBeGreaterThan(SLOW_BYTES_PER_S / 2)
    return job
  },
  async "when its result is written and not acknowledged"(victim, label) {
    const job = await REACH["just started"](victim, label)
    const before = victim.http.bytes.up
    job.go()
    await expect.poll(() => victim.http.bytes.up - before).toBeGreaterThan(ARTIFACT_BYTES)
    victim.mesh.hold("down")
    const ended = () => attemptsOf(job.id).filter(({ node, state }) => node === victim.node.id && state === "completed")
    await expect.poll(() => ended().length).toBe(1)
    return job
  },
  async "during settlement"(victim, label) {
    const job = await REACH["just started"](victim, label)
    job.go()
    const status = () => stored<{ status: string }>("SELECT status FROM jobs WHERE id = ?", job.id)[0]?.status
    await expect.poll(status, { interval: 1 }).not.toBe("running")
    return job
  },
}

/** Strikes, stays away for as long as the fault lasts, and heals. */
const STRIKE: Record<Target, Record<Fault, (victim: LinkedNode) => Promise<void>>> = {
  node: {
    async kill({ node, mesh }) {
      await node.loseAll()
      await mesh.heal()
      await node.start()
    },
    stop: ({ node }) => stopped([node.program.process.pid ?? 0]),
    cut: (victim) => away([victim], "cut"),
    blackhole: (victim) => away([victim], "blackhole"),
  },
  coordinator: {
    async kill() {
      await fleet.endCoordinator("SIGKILL")
      await fleet.startCoordinator()
    },
    stop: () => stopped([fleet.coordinator.process.pid ?? 0]),
    cut: () => away(linked, "cut"),
    blackhole: () => away(linked, "blackhole"),
  },
  peer: {
    kill: async (peer) => STRIKE.node.kill(peer),
    stop: async (peer) => STRIKE.node.stop(peer),
    cut: async () =>
      awayFrom(
        linked.map(({ content }) => content),
        "cut",
      ),
    blackhole: async () =>
      awayFrom(
        linked.map(({ content }) => content),
        "blackhole",
      ),
  },
}

async function stopped(pids: number[]): Promise<void> {
  for (const pid of pids) process.kill(pid, "SIGSTOP")
  await pause(AWAY_MS)
  for (const pid of pids) process.kill(pid, "SIGCONT")
}

const away = (links: readonly LinkedNode[], how: "cut" | "blackhole"): Promise<void> =>
  awayFrom(
    links.flatMap(({ mesh, http }) => [mesh, http]),
    how,
  )

async function awayFrom(links: readonly TcpProxy[], how: "cut" | "blackhole"): Promise<void> {
  for (const link of links) {
    if (how === "cut") await link.cut()
    else link.silence()
  }
  await pause(AWAY_MS)
  for (const link of links) await link.heal()
}

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms))

/** Each task once in the results, once charged, one artifact each; one debit of what that came to, sums that agree. */
async function expectOnce({ id, names }: Running): Promise<void> {
  expect(await client.ended(id)).toMatchObject({ status: "completed", task_counts: { completed: names.length } })
  const rows = (await client.results(id))["results"] as Json[]
  expect(rows.map(({ result }) => result)).toEqual(names.map((name) => ({ name })))
  const [charges] = stored<{ n: number; sum: number }>(
    "SELECT count(*) AS n, sum(amount) AS sum FROM charges WHERE hold = (SELECT hold FROM jobs WHERE id = ?)",
    id,
  )
  expect(charges?.n).toBe(names.length)
  const entries = (await client.call("GET", "/api/v1/account/ledger?limit=500")).json["entries"] as Json[]
  // What ran without contact from its grant to its end costs nothing, and nothing is no entry (rulings, Holds).
  expect(entries.filter(({ job_id: job }) => job === id)).toHaveLength((charges?.sum ?? 0) > 0 ? 1 : 0)
  const states = attemptsOf(id).map(({ state }) => state)
  expect(states.filter((state) => state === "completed")).toHaveLength(names.length)
  for (const [index, row] of rows.entries()) {
    const ids = row["artifact_ids"] as string[]
    expect(ids).toHaveLength(1)
    const reply = await fetch(`${fleet.origin}/api/v1/artifacts/${ids[0]}`, {
      headers: { authorization: `Bearer ${client.token}` },
    })
    expect(reply.status, names[index]).toBe(200)
    expect(
      createHash("sha256")
        .update(Buffer.from(await reply.arrayBuffer()))
        .digest("hex"),
    ).toMatch(/^[0-9a-f]{64}$/)
  }
  await fleet.expectAudit()
}

const programs = (): string[] => linked.flatMap(({ node }) => processesOf(node.dataDir).map(commandOf))

/** The nodes are back, hold nothing and run nothing. */
async function expectNothingLeft(): Promise<void> {
  await expect.poll(() => programs().filter((command) => command.includes("wait.py")), { timeout: 40_000 }).toEqual([])
  const rows = async () =>
    ((await fleet.admin("GET", "/api/v1/admin/nodes")).json["nodes"] as Json[]).map(({ contact, running }) => ({
      contact,
      running,
    }))
  const idle = linked.map(() => ({ contact: "connected", running: [] }))
  await expect.poll(rows, { timeout: 40_000 }).toEqual(idle)
}

test("the matrix: every cell is run or has a reason why it cannot occur", () => {
  expect(ALL).toHaveLength(FAULTS.length * TARGETS.length * MOMENTS.length)
  const left = ALL.filter((cell) => !CELLS.includes(cell))
  expect(left).toHaveLength(20)
  for (const cell of left) expect(cannotOccur(cell)).not.toBeNull()
})

describe("§5.5 kill matrix: right results once, ledger exact, nothing left", () => {
  test.each(chosen)(
    "$fault of the $target $moment",
    async ({ fault, target, moment }) => {
      const [victim, peer] = linked
      if (!victim || !peer) throw new Error("there are two nodes")
      const label = `${fault}-${target}-${MOMENTS.indexOf(moment)}-${Date.now().toString(36)}`
      const jobs = target === "peer" ? await fetching(victim, peer, label) : [await REACH[moment](victim, label)]
      await STRIKE[target][fault](target === "peer" ? peer : victim)
      await healAll()
      for (const job of jobs) job.go()
      for (const job of jobs) await expectOnce(job)
      await expectNothingLeft()
    },
    150_000,
  )
})

/**
 * One job runs on the peer, which has its content; the victim has been granted another and fetches that content, slowly. The
 * peer is asked only once it is known to have it: where the coordinator was faster, it is tried with other content.
 */
async function fetching(victim: LinkedNode, peer: LinkedNode, label: string, tries = 3): Promise<Running[]> {
  await newRevision(`${label}-${tries}`)
  await reconnected(victim, peer)
  await setState(victim, "draining")
  const first = await submit(`${label}-${tries}-warm`, 1)
  await expect.poll(() => first.started()).toBe(1)
  expect(attemptsOf(first.id).map(({ node }) => node)).toEqual([peer.node.id])
  const links = linked.map(({ content }) => content)
  for (const link of links) link.slow(SLOW_BYTES_PER_S / 4)
  const passed = (): number => links.reduce((sum, { bytes }) => sum + bytes.up + bytes.down, 0)
  const before = passed()
  const isFromPeer = (): boolean => passed() - before > NOISE_BYTES / 20
  const second = await submit(`${label}-${tries}-cold`, 1)
  await setState(victim, "active")
  await expect.poll(() => attemptsOf(second.id).map(({ node }) => node)).toEqual([victim.node.id])
  await expect.poll(() => isFromPeer() || second.started() === 1).toBe(true)
  if (second.started() === 0) return [first, second]
  expect(tries, "the victim asks its peer").toBeGreaterThan(1)
  await healAll()
  for (const job of [first, second]) {
    job.go()
    await expectOnce(job)
  }
  return await fetching(victim, peer, label, tries - 1)
}

async function setState({ node }: LinkedNode, state: "active" | "draining"): Promise<void> {
  const reply = await fleet.admin("PUT", `/api/v1/admin/nodes/${node.id}`, { state })
  expect(reply.status, reply.text).toBe(200)
}

/** After a while of faults the two may take long to find one another again: a fresh start does it at once. */
async function reconnected(victim: LinkedNode, peer: LinkedNode): Promise<void> {
  const peerId = String(peer.node.program.ready["peer_id"])
  await victim.node.end("SIGTERM")
  const before = readFileSync(victim.node.logFile, "utf8").length
  await victim.node.start()
  const joined = (): boolean =>
    readFileSync(victim.node.logFile, "utf8")
      .slice(before)
      .split("\n")
      .some((line) => line.includes("peer joined") && line.includes(peerId))
  await expect.poll(joined).toBe(true)
}

const NOISE_BYTES = 2_600_000

/** Content that nobody has yet but the coordinator, and after the first job the nodes. */
async function newRevision(label: string): Promise<void> {
  const lines = NOISE_BYTES / 65
  const noise = Array.from({ length: lines }, (_, n) => createHash("sha256").update(`${label}${n}`).digest("base64url"))
  const pushed = await client.push("wait", { "wait.py": WORK_PY, "noise.txt": noise.join("\n") })
  expect(pushed.status, pushed.text).toBe(200)
}
