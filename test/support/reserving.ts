import { accountId, type NodeId } from "../../protocol/domain/ids.ts"
import type { JobFacts } from "../../coordinator/jobs/job-facts.ts"
import { choosePlaces, type Round } from "../../coordinator/scheduler/choose-places.ts"
import { createKeptNodes } from "../../coordinator/scheduler/kept-nodes.ts"
import type { Wanted } from "../../coordinator/scheduler/place.ts"
import { createReadyQueue, type ReadyQueue } from "../../coordinator/scheduler/ready-queue.ts"
import {
  createReservations,
  type GroundNode,
  type Reservations,
  type Reserved,
} from "../../coordinator/scheduler/reservations.ts"
import { machineOf, needs } from "./placing.ts"

/** The real reservations, queue and placing over machines of numbers; what is placed runs until the test ends it. */
export interface Reserving {
  reservations: Reservations
  queue: ReadyQueue
  /** Machines that are there. */
  machines: Map<string, number>
  attempts: Map<number, Attempt>
  jobs: Map<number, JobFacts>
  /** A job that is known and queued. */
  put(job: PutJob): JobFacts
  /** As the submit of a guaranteed job: false when it is refused. */
  reserve(job: PutJob & { parallelism: number; forMs?: number }): boolean
  look(): { round: Round<GroundNode>; reserved: Reserved; nodes: GroundNode[] }
  end(claim: number): void
  over(seq: number): void
  /** The machine is gone, and what ran there waits again. */
  leave(id: string): void
  pass(ms: number): void
  nodes(): GroundNode[]
}

interface Attempt {
  claim: number
  job: number
  node: NodeId
  claimable: boolean
}

interface PutJob {
  seq: number
  account: number
  project?: string
  tasks: number
  cpu?: number
  dedicated?: boolean
  parallelism?: number
}

export function createReserving(ageingMs = 60_000): Reserving {
  let nowMs = 1_000_000
  let claims = 0
  const clock = { now: () => nowMs, monotonicMs: () => nowMs, after: () => ({ cancel() {} }) }
  const queue = createReadyQueue(300_000)
  const kept = createKeptNodes(300_000)
  const machines = new Map<string, number>()
  const attempts = new Map<number, Attempt>()
  const jobs = new Map<number, JobFacts>()
  const reservations = createReservations({
    clock,
    attemptsOf: (job) => [...attempts.values()].filter((one) => one.job === job),
    known: (job) => jobs.get(job),
    runsOn: () => ({ can: true, warm: true }),
    isKept: () => false,
    ageingMs,
    wake: () => {},
  })

  /** Only what placement reads of a job. */
  function factsOf({ seq, account, project = "p", cpu = 1, dedicated = false, parallelism = 0 }: PutJob): JobFacts {
    const facts: Partial<JobFacts> = {
      seq,
      account: accountId(account),
      project,
      requirements: needs(cpu),
      guaranteed: parallelism,
      dedicated,
      kind: `${cpu} of ${account}/${project}${dedicated || parallelism > 0 ? `|${seq}` : ""}`,
    }
    return facts as JobFacts
  }

  function know(facts: JobFacts, tasks: number): JobFacts {
    jobs.set(facts.seq, facts)
    reservations.know(facts)
    const { seq, account, kind, requirements } = facts
    queue.put({ seq, account, kind, priority: "normal", readySince: nowMs, tasks, cost: 100 * requirements.cpu })
    return facts
  }

  function nodes(): GroundNode[] {
    return [...machines].map(([id, cpu]) => {
      const its = [...attempts.values()].filter(({ node }) => node === id)
      const busy = its.reduce((sum, { job }) => sum + (jobs.get(job)?.requirements.cpu ?? 0), 0)
      const node = machineOf(id, cpu, busy, { held: its.length, heldAtFirst: its.length })
      return { ...node, attempts: new Map(its.map((one) => [one.claim, one])) }
    })
  }

  const wanted = (seq: number): Wanted | undefined => {
    const facts = jobs.get(seq)
    return (
      facts && {
        requirements: facts.requirements,
        paceMs: null,
        isWarm: () => true,
        mayRun: ({ id }) => reservations.mayUse(facts, id),
      }
    )
  }

  return {
    reservations,
    queue,
    machines,
    attempts,
    jobs,
    nodes,
    put: (job) => know(factsOf(job), job.tasks),
    reserve(job) {
      const facts = factsOf(job)
      const { account, project, requirements, dedicated } = facts
      try {
        using held = reservations.admit(
          { account, project, requirements, dedicated, parallelism: job.parallelism },
          nodes(),
          [],
        )
        held.keep(facts, nowMs + (job.forMs ?? 3_600_000))
      } catch {
        return false
      }
      know(facts, job.tasks)
      return true
    },
    look() {
      const ground = nodes()
      const reserved = reservations.look(ground)
      const round = choosePlaces(
        {
          queue,
          kept,
          awaited: new Map(),
          reserved,
          wanted,
          avoids: () => undefined,
          now: nowMs,
          monotonicMs: nowMs,
          most: 512,
        },
        ground,
      )
      for (const { job, node } of round.places) {
        const claim = ++claims
        attempts.set(claim, { claim, job, node: node.id as NodeId, claimable: false })
      }
      return { round, reserved, nodes: ground }
    },
    end(claim) {
      const job = attempts.get(claim)?.job
      attempts.delete(claim)
      if (job !== undefined) queue.ended(job, 10)
    },
    over(seq) {
      for (const { claim, job } of attempts.values()) if (job === seq) attempts.delete(claim)
      queue.remove(seq)
      reservations.over(seq)
      jobs.delete(seq)
    },
    leave(id) {
      machines.delete(id)
      for (const { claim, job, node } of attempts.values()) {
        if (node !== id) continue
        attempts.delete(claim)
        queue.returned(job, 1)
        queue.add(job, 1)
      }
    },
    pass(ms) {
      nowMs += ms
    },
  }
}
