import { expect, test } from "vitest"
import { silentLog } from "../../protocol/base/log.ts"
import { systemRandom } from "../../protocol/base/random.ts"
import { newNodeId, peerId, type NodeId } from "../../protocol/domain/ids.ts"
import type { Member } from "../../coordinator/fleet/members.ts"
import { createKnownJobs, jobFacts } from "../../coordinator/jobs/job-facts.ts"
import { createDispatch } from "../../coordinator/scheduler/dispatch.ts"
import { createKeptNodes } from "../../coordinator/scheduler/kept-nodes.ts"
import { createPace } from "../../coordinator/scheduler/pace.ts"
import { createReadyQueue } from "../../coordinator/scheduler/ready-queue.ts"
import { createReservations } from "../../coordinator/scheduler/reservations.ts"
import { insertNode } from "../../coordinator/store/fleet.ts"
import type { JobRow } from "../../coordinator/store/jobs.ts"
import { fundedAccount } from "../support/accounts.ts"
import { failedItem, startJobRig } from "../support/job-rig.ts"
import { createManualClock } from "../support/manual-clock.ts"

/** The real dispatch over the real store, on two machines that are only numbers; time stands still. */
async function startWorld() {
  const clock = createManualClock()
  const rig = await startJobRig({ clock })
  const { store, members } = rig
  const account = await fundedAccount(store, 50_000_000n)
  await rig.project(account)
  const known = createKnownJobs()
  const queue = createReadyQueue(300_000)
  const kept = createKeptNodes(300_000)
  const reservations = createReservations({
    clock,
    attemptsOf: (job) =>
      [...members.all()].flatMap(({ attempts }) => [...attempts.values()].filter((one) => one.job === job)),
    known: (job) => known.get(job),
    runsOn: () => ({ can: true, warm: true }),
    isKept: () => false,
    ageingMs: 60_000,
    wake: () => dispatch.wake(),
  })
  const dispatch = createDispatch({
    ...rig,
    log: silentLog,
    known,
    queue,
    kept,
    reservations,
    pace: createPace(),
    runtimes: { canRun: () => true, spec: () => Promise.reject(new Error("nothing is sent here")) },
    policy: { allowUnsandboxed: true, allowUnenforced: true },
    claimLifetimeMs: 300_000,
    resuming: () => Promise.resolve(new Set()),
    inputs: { granted: () => Promise.resolve(new Map()) },
    unresolved: () => Promise.resolve(),
    takeBack: () => Promise.resolve(),
    askBack: () => {},
    spend: () => {},
    finish: () => {},
    taskFailed: () => {},
    budgetSpent: () => {},
    cannotRun: () => {},
  })

  async function addMember(name: string): Promise<Member> {
    const [id, peer] = [newNodeId(systemRandom), peerId(`12D3KooWTest${name}`)]
    const facts = { name, token: "tok_1", account: null, roles: ["worker" as const], agentVersion: "1" }
    await store.write((tx) => insertNode(tx, { id, peerId: peer, ...facts, at: clock.now() }))
    return members.add({ id, peer, name, roles: ["worker"], state: "active" })
  }

  /** From now on it takes work. */
  function open(member: Member, cpu: number, memoryMb: number): void {
    const capacity = { cpu, memoryMb, storageGb: 100, gpus: [] }
    member.session = { send: () => {}, close: () => {} }
    member.lastHeardMs = clock.monotonicMs()
    member.facts = {
      agentVersion: "1",
      bootId: "boot",
      roles: ["worker"],
      runtime: "gvisor",
      isolation: "gvisor",
      enforces: [],
      network: "none",
      addresses: [],
      capacity,
    }
    member.standing = { open: true, draining: false, capacity, warm: new Set(), credit: 100 }
  }

  function put(job: JobRow, tasks: number): void {
    const facts = jobFacts(job)
    known.put(facts)
    const { seq, priority, kind } = facts
    queue.put({ seq, account: facts.account, priority, kind, readySince: clock.now(), tasks, cost: 1 })
  }

  return {
    rig,
    account,
    dispatch,
    addMember,
    open,
    put,
    reserve(job: JobRow, parallelism: number): void {
      const facts = jobFacts(job)
      const { project, requirements } = facts
      using held = dispatch.reserve({ account: facts.account, project, requirements, parallelism, dedicated: false })
      held.keep(facts, clock.now() + 3_600_000)
    },
    nodesOf: (job: JobRow): NodeId[] =>
      [...members.all()].flatMap((member) =>
        [...member.attempts.values()].filter((one) => one.job === job.seq).map(() => member.id),
      ),
    async [Symbol.asyncDispose]() {
      dispatch.stop()
      await dispatch[Symbol.asyncDispose]()
      await rig[Symbol.asyncDispose]()
    },
  }
}

test("V-006: when reserved work got another place than its seat, who waits for that room has it at once", async () => {
  await using world = await startWorld()
  const { rig, account } = world
  const first = rig.member
  const second = await world.addMember("Second")
  world.open(first, 1, 8_192)
  const reservation = { mode: "guaranteed", parallelism: 1 }
  const reserved = await rig.queued(account, { reservation, max_retries: 1, requirements: { memory_mb: 512 } })
  const [claim] = await rig.grant(reserved, 1)
  if (claim === undefined) throw new Error("it runs on the first machine")
  await rig.start([claim])
  // It failed where its seat is: it is tried elsewhere.
  await rig.report(claim, failedItem("exit_code"))
  world.reserve(await rig.row(reserved), 1)
  world.open(second, 1, 1_024)
  // Only the first machine is large enough for it.
  const large = await rig.queued(account, { requirements: { memory_mb: 4_096 } })
  world.put(await rig.row(reserved), 1)
  world.put(large, 1)
  world.dispatch.wake()
  await expect.poll(() => world.nodesOf(reserved), { timeout: 30_000 }).toEqual([second.id])
  await expect.poll(() => world.nodesOf(large), { timeout: 30_000 }).toEqual([first.id])
})
