import { mkdirSync, rmSync } from "node:fs"
import { join } from "node:path"
import { Chance } from "./chance.ts"
import { Clients } from "./clients.ts"
import { CoordinatorMachine } from "./coordinator-machine.ts"
import { copyDeployment, type Deployment } from "./deployment.ts"
import { applyFault, type FaultyWorld } from "./faults.ts"
import { checkAtTheEnd } from "./final-checks.ts"
import { askInProcess, streamInProcess, type HttpAnswer, type HttpAsk } from "./in-process-http.ts"
import type { StreamHeard } from "./job-follower.ts"
import { Machine, MachineCrashed } from "./machine.ts"
import { Network } from "./network.ts"
import { NodeMachine } from "./node-machine.ts"
import type { Fault, Plan } from "./plan.ts"
import { SimMesh, THINNED } from "./sim-mesh.ts"
import { VirtualTime } from "./virtual-time.ts"
import { Watch } from "./watch.ts"
import { errorText } from "../../protocol/base/error-text.ts"
import { CONTROL_PROTOCOL, type ItemVerdict } from "../../protocol/wire/control.ts"

export interface Outcome {
  problems: string[]
  log: string[]
  steps: ReadonlyMap<string, number>
  /** Faults that came about, by kind. */
  faults: ReadonlyMap<string, number>
  gossip: { sent: number; lost: number; twice: number }
  virtualMs: number
  events: number
  jobs: number
  attempts: number
}

/** How long a mended world may take to come to its end. */
const REST_MS = 30 * 60_000
const HTTP_TIMEOUT_MS = 10_000
const OPERATOR_MS = 500
const LAST_WORDS_MS = 5_000

/** One simulated deployment: builds it, does what the plan says, mends everything, and looks whether all came right. */
export class World implements FaultyWorld {
  readonly plan: Plan
  readonly time = new VirtualTime((error) => this.uncaught(error))
  readonly watch: Watch
  readonly log: string[] = []
  readonly network: Network
  readonly mesh: SimMesh
  readonly coordinator: CoordinatorMachine
  readonly nodes: NodeMachine[]
  readonly clients: Clients
  readonly faults = new Map<string, number>()
  readonly chance: Chance
  readonly #machines = new Map<string, Machine>()
  readonly #directory: string
  isMended = false
  /** Answers that an older copy of the coordinator's data gave before it was restored are lost. */
  #era = 0
  /** What the coordinator's clock is behind, and how often it was refused to start on an older copy. */
  #behindMs = 0
  #refusals = 0
  /** When data were last replaced by an older copy. */
  #restoredMs = 0

  constructor(plan: Plan, deployment: Deployment, directory: string) {
    this.plan = plan
    this.chance = new Chance(`world ${plan.seed}`)
    this.watch = new Watch(plan.coordinator.heartbeatMs ?? LONGEST_HEARTBEAT_MS)
    this.#directory = directory
    rmSync(directory, { recursive: true, force: true })
    mkdirSync(directory, { recursive: true })
    this.network = new Network(this.time, this.chance.of("network"), plan.weather)
    this.mesh = new SimMesh(this.network)
    const home = join(directory, "coordinator")
    copyDeployment(deployment, home)
    this.coordinator = new CoordinatorMachine(this.#machine("coordinator", 1, 0), home, this.mesh, plan.coordinator)
    this.coordinator.ended = () => this.watch.disturbed(this.time.nowMs)
    this.coordinator.committed = (database) => this.watch.committed(database)
    this.coordinator.crashed = (downMs) => this.unlessMended(downMs, () => this.coordinator.start())
    this.coordinator.refusedOlder = () => this.#olderCopyRefused()
    this.coordinator.failed = (reason) => this.#coordinatorFailed(reason)
    this.nodes = plan.nodes.map((settings, index) => {
      const machine = this.#machine(`node-${index}`, settings.rate, settings.wallOffsetMs)
      const node = new NodeMachine(
        machine,
        join(directory, machine.name),
        this.mesh,
        { ...settings, joinToken: deployment.joinToken },
        {
          started: (claim) => this.watch.programStarted(claim, machine.name, this.time.nowMs),
          resumed: (claim, { task, spec }, text) => this.watch.resumed(claim, `${spec.job_id}/${task.index}`, text),
          stepped: (claim, step, n) => this.watch.stepped(claim, step, n),
          unreadable: (claim) => this.watch.unreadable.add(claim),
          wrong: (problem) => this.watch.wrong(problem),
          died: (claim) => this.watch.programDied(claim, this.time.nowMs),
          ended: (claim) => this.watch.programEnded(claim, this.time.nowMs),
        },
      )
      node.crashed = (downMs) => this.unlessMended(downMs, () => node.start())
      node.failed = (reason) => this.#nodeFailed(node, reason)
      return node
    })
    this.clients = new Clients({
      machine: this.#machine("clients", 1, 0),
      deployment,
      watch: this.watch,
      http: (from, ask) => this.http(from, ask),
      stream: (from, ask, heard) => this.stream(from, ask, heard),
      nodeId: (node) => this.nodes[node]?.memberId() ?? null,
    })
    this.mesh.said = (bytes) => this.#said(bytes)
    this.mesh.heard = (peer) => this.watch.heard(peer, this.time.nowMs)
    this.mesh.tap = ({ from, to, protocol, bytes }) => {
      // What the lost data's coordinator said before, and comes only now, binds nobody.
      const holds = from.startedMs >= this.#restoredMs
      if (protocol === CONTROL_PROTOCOL.name) this.#hearVerdicts(to.isAlive && holds, bytes)
    }
  }

  async run(): Promise<Outcome> {
    const realFetch = globalThis.fetch
    globalThis.fetch = (address, init) =>
      this.#fetch(new URL(address instanceof Request ? address.url : address), init ?? {})
    try {
      await this.#run()
    } finally {
      globalThis.fetch = realFetch
      for (const node of this.nodes) node.kill({ power: true })
      this.coordinator.kill({ hangsUp: false })
      rmSync(this.#directory, { recursive: true, force: true })
    }
    return {
      problems: this.watch.problems,
      log: this.log,
      steps: this.watch.steps,
      faults: this.faults,
      gossip: this.mesh.gossip,
      virtualMs: this.time.nowMs,
      events: this.time.events,
      jobs: this.watch.accepted.size,
      attempts: this.watch.starts.size,
    }
  }

  async #run(): Promise<void> {
    const { plan } = this
    this.coordinator.start()
    for (const [index, { startMs }] of plan.nodes.entries()) this.#at(startMs, () => this.nodes[index]?.start())
    for (const action of plan.actions) this.#at(action.atMs, () => this.clients.act(action))
    for (const fault of plan.faults) this.#at(fault.atMs, () => this.#apply(fault))
    const broken = (): boolean => this.watch.problems.length > 0
    await this.time.runUntil(broken, plan.busyMs)
    if (broken()) return
    this.#mend()
    const rested = await this.time.runUntil(() => broken() || this.#isAtRest(), plan.busyMs + REST_MS)
    if (!rested) this.watch.wrong(`1: the mended world does not come to rest: ${this.#unrest()}`)
    // What was sent last arrives.
    if (!broken()) await this.time.runUntil(broken, this.time.nowMs + LAST_WORDS_MS)
    if (!broken()) await checkAtTheEnd({ directory: this.coordinator.directory, watch: this.watch, nodes: this.nodes })
  }

  #at(atMs: number, act: () => void): void {
    this.time.at(atMs, 0, act)
  }

  /** A program would end by this; but what crashed at this moment may stumble over the disk that it has lost. */
  uncaught(error: unknown): void {
    if (error instanceof MachineCrashed) return
    const diedNow = [...this.#machines.values()].some(({ diedMs }) => diedMs === this.time.nowMs)
    if (diedNow && errorText(error) === "The database connection is not open") return
    this.watch.wrong(`uncaught: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`)
  }

  unlessMended(delayMs: number, act: () => void): void {
    this.#at(this.time.nowMs + delayMs, () => {
      if (!this.isMended) act()
    })
  }

  restored(copyMs: number): void {
    this.#era += 1
    this.#restoredMs = this.time.nowMs
    this.clients.forget(this.watch.restored(copyMs))
  }

  fellBehind(byMs: number): void {
    this.watch.clockStepped = true
    this.#behindMs += byMs
    this.coordinator.machine.wallOffsetMs -= byMs
  }

  /** A start must be refused once more; then the operator looks after the clock, and has it go on from this copy. */
  #olderCopyRefused(): void {
    this.#refusals += 1
    const takesOver = this.#refusals % 2 === 0
    this.#at(this.time.nowMs + OPERATOR_MS, () => {
      if (takesOver) {
        this.coordinator.machine.wallOffsetMs += this.#behindMs
        this.#behindMs = 0
      }
      this.coordinator.start({ takeOver: takesOver })
    })
  }

  /** On a full disk it does not start: its service manager tries again. */
  #coordinatorFailed(reason: string): void {
    if (!this.coordinator.isDiskFull) return this.watch.wrong(`the coordinator ended: ${reason}`)
    this.tell("coordinator", `did not start: ${reason}`)
    this.unlessMended(1_000, () => this.coordinator.start())
  }

  /** A machine that was revoked begins anew as a stranger. Who joined after a copy was made is taken in by its certificate. */
  #nodeFailed(node: NodeMachine, reason: string): void {
    if (!this.clients.revoked.has(node.memberId() ?? "") || !reason.includes("revoked"))
      return this.watch.wrong(`${node.machine.name} ended: ${reason}`)
    this.tell(node.machine.name, "joins again")
    node.makeStranger()
  }

  tell(who: string, what: string): void {
    this.log.push(`${(this.time.nowMs / 1000).toFixed(3).padStart(9)} ${who} ${what.replaceAll(this.#directory, "~")}`)
  }

  count(fault: Fault["kind"]): void {
    this.faults.set(fault, (this.faults.get(fault) ?? 0) + 1)
  }

  /** A request from one machine to the coordinator's API. Rejects like `fetch` when no answer comes. */
  http(from: Machine, ask: HttpAsk): Promise<HttpAnswer> {
    const { network, coordinator } = this
    const era = this.#era
    return new Promise((resolve, reject) => {
      const fail = (why: string): void => reject(new TypeError(`fetch failed: ${why}`))
      const timeout = this.time.at(this.time.nowMs + HTTP_TIMEOUT_MS, from.lane, () => fail("no answer"))
      const back = (give: () => void): void => {
        if (network.chance.happens(this.isMended ? 0 : this.plan.weather.answerLoss)) return
        network.packet(coordinator.machine, from, () => {
          if (era !== this.#era) return
          timeout.cancel()
          give()
        })
      }
      network.packet(from, coordinator.machine, () => {
        const { program, listener } = coordinator
        if (!program || !listener) return back(() => fail("refused"))
        program.ended.signal.addEventListener("abort", () => back(() => fail("the connection closed")), { once: true })
        askInProcess(listener, ask).then(
          (answer) => {
            if (!program.isAlive) return
            this.#answered(ask, answer)
            back(() => resolve(answer))
          },
          (error: unknown) => back(() => fail(String(error))),
        )
      })
    })
  }

  /** A long answer, in order as TCP brings it; a cut or a crash ends it. */
  stream(from: Machine, ask: HttpAsk, heard: (text: string) => void): Promise<StreamHeard> {
    const { network, coordinator, time } = this
    const { program, listener } = coordinator
    const { promise: closed, resolve: close } = Promise.withResolvers<void>()
    let lastMs = time.nowMs
    let isOpen = true
    const inOrder = (act: () => void): void => {
      lastMs = Math.max(lastMs, time.nowMs + network.delayMs())
      time.at(lastMs, from.lane, () => {
        if (isOpen && !network.isCut(coordinator.machine, from)) act()
      })
    }
    const end = (): void => {
      isOpen = false
      close()
    }
    return new Promise((resolve) => {
      const dead = { status: null, closed, hangUp() {} }
      if (!program || !listener || network.isCut(from, coordinator.machine)) return inOrder(() => resolve(dead))
      let given = 0
      const gone = (): void => inOrder(() => (resolve(dead), end()))
      const hangUp = streamInProcess(listener, ask, {
        answer({ status, body }) {
          if (!program.isAlive) return
          const more = body.subarray(given).toString()
          given = body.length
          inOrder(() => {
            resolve({ status, closed, hangUp: () => (end(), hangUp()) })
            heard(more)
          })
        },
        closed: gone,
      })
      program.ended.signal.addEventListener("abort", gone, { once: true })
    })
  }

  async #fetch(url: URL, init: RequestInit): Promise<Response> {
    const machine = this.#machines.get(url.hostname.replace(/^coordinator-for-(.*)\.sim$/, "$1"))
    if (!machine) throw new TypeError(`fetch failed: nobody asks as ${url.hostname}`)
    const body = init.body ? new Uint8Array(await new Response(init.body).arrayBuffer()) : null
    const headers = Object.fromEntries(new Headers(init.headers))
    const asked = this.http(machine, { method: init.method ?? "GET", path: url.pathname + url.search, headers, body })
    const aborted = new Promise<never>((_, reject) => {
      init.signal?.addEventListener("abort", () => reject(init.signal?.reason as Error), { once: true })
    })
    const asker = this.nodes.find((node) => node.machine === machine)?.program
    const [settled] = await Promise.allSettled([Promise.race([asked, aborted])])
    // Who was killed meanwhile hears neither an answer nor that there is none.
    if (asker?.isAlive === false) await new Promise(() => {})
    if (settled.status === "rejected") throw settled.reason
    const answer = settled.value
    return new Response(answer.status === 204 ? null : new Uint8Array(answer.body), answer)
  }

  #machine(name: string, rate: number, wallOffsetMs: number): Machine {
    const machine = new Machine({
      name,
      lane: this.#machines.size + 1,
      time: this.time,
      chance: this.chance.of(name),
      rate,
      tell: (line) => this.tell(name, line),
    })
    machine.wallOffsetMs = wallOffsetMs
    this.#machines.set(name, machine)
    return machine
  }

  #apply(fault: Fault): void {
    this.tell("fault", JSON.stringify(fault))
    applyFault(this, fault)
  }

  /** Everything works from now on: what was submitted must come to its end. */
  #mend(): void {
    this.tell("world", "everything is mended")
    this.isMended = true
    // In a large fleet words are left out for the sake of time: that is no trouble.
    if (this.plan.weather.gossipLoss < THINNED) this.network.weather.gossipLoss = 0
    this.network.mendAll()
    this.coordinator.crashAtCommit = null
    this.coordinator.isDiskFull = false
    // A freeze ends by itself: else what waits for its end would be overtaken by what comes after.
    for (const machine of this.#machines.values()) machine.diskMs = 0
    for (const node of this.nodes) {
      node.crashAtWrite = null
      if (node.isClone) node.makeStranger()
      node.powerOn()
      node.start()
    }
    this.coordinator.start()
    for (const node of this.clients.drained) this.clients.act({ kind: "set node", node, state: "active", atMs: 0 })
  }

  /** Nothing is left to do: asked at times only, because it looks into the database. */
  #lookAgainMs = 0
  #isAtRest(): boolean {
    if (this.time.nowMs < this.#lookAgainMs) return false
    this.#lookAgainMs = this.time.nowMs + 1_000
    return this.#unrest() === null
  }

  /** What still goes on, or null. */
  #unrest(): string | null {
    if (this.clients.waiting > 0) return `${this.clients.waiting} requests are not answered`
    if (!this.coordinator.running) return "the coordinator does not run"
    for (const { agent, machine, processes } of this.nodes) {
      if (machine.frozenUntilMs > this.time.nowMs) return `${machine.name} is frozen`
      if (agent === null) return `${machine.name} does not run`
      for (const claim of processes.running.keys()) return `the program of claim ${claim} runs on ${machine.name}`
    }
    const builds = this.plan.nodes.some(({ images }) => images)
    if (!this.coordinator.stored().hasNothingLeft({ builds }))
      return "jobs, tasks, attempts or staged bytes have not ended"
    const holder = this.nodes.find((node) => node.heldClaims().length > 0)
    return holder ? `${holder.machine.name} holds claims: ${holder.heldClaims().join(", ")}` : null
  }

  /** 6: the coordinator says this of its own doing at this moment, whether or not anybody will hear it. */
  #said(bytes: Uint8Array): void {
    if (HEARTBEAT_REPLY.equals(bytes.subarray(0, HEARTBEAT_REPLY.length))) {
      const { renewed } = JSON.parse(Buffer.from(bytes).toString()) as { renewed: number[] }
      for (const claim of renewed) this.watch.renewed(claim)
    }
    if (!VERDICTS.equals(bytes.subarray(0, VERDICTS.length))) return
    const { items } = JSON.parse(Buffer.from(bytes).toString()) as { items: ItemVerdict[] }
    const stored = this.coordinator.stored()
    for (const { claim, kind, n = 0, verdict } of items) {
      if (verdict !== "stored" && verdict !== "already") continue
      const isStored = {
        result: () => stored.hasResult(claim),
        checkpoint: () => stored.hasCheckpoint(claim, n),
        build: () => stored.hasBuilt(claim),
      }[kind]()
      if (!isStored) this.watch.wrong(`6: a ${kind} of claim ${claim} was answered as ${verdict} and is not committed`)
    }
  }

  /** 6: the same of what clients are told. */
  #answered(ask: HttpAsk, { status, body }: HttpAnswer): void {
    if (!ask.path.startsWith("/api/v1/jobs") || (status !== 200 && status !== 201) || ask.method === "GET") return
    const said = JSON.parse(body.toString()) as { id: string; status: string }
    const stored = this.coordinator.stored().jobStatus(said.id)
    if (stored === null) this.watch.wrong(`6: job ${said.id} was answered and is not committed`)
    if (said.status === "cancelled" && stored !== "cancelled")
      this.watch.wrong(`6: job ${said.id} was answered as cancelled and is ${stored}`)
  }

  #hearVerdicts(isHeard: boolean, bytes: Uint8Array): void {
    if (!isHeard || !VERDICTS.equals(bytes.subarray(0, VERDICTS.length))) return
    const { items } = JSON.parse(Buffer.from(bytes).toString()) as { items: ItemVerdict[] }
    for (const { claim, kind, n = 0, verdict } of items) {
      if (verdict !== "stored" && verdict !== "already") continue
      if (kind === "result") this.watch.stored.set(claim, this.time.nowMs)
      if (kind === "checkpoint") this.watch.checkpointStored(claim, n, this.time.nowMs)
    }
  }
}

/** Of any fleet: a sixth of a claim's life. */
const LONGEST_HEARTBEAT_MS = 10_000
const HEARTBEAT_REPLY = Buffer.from('{"type":"heartbeat_reply"')
const VERDICTS = Buffer.from('{"type":"verdicts"')
