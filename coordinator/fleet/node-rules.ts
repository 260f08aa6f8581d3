import { MOST_HELD } from "../../protocol/wire/control.ts"
import type { FaultCounts } from "../store/node-faults.ts"

/** What is known of a node when its standing is judged. */
export interface NodeRecord {
  /** Of the last `FAULTS_COUNT_MS`. */
  counts: FaultCounts
  /** Since it was put on probation; null while it is not. */
  sinceProbation: FaultCounts | null
  /** Its attempts that ended, and those of them that were its own fault. */
  own: Share
  /** Of all other nodes together. */
  others: Share
  /** How many other members there are whose word could stand against it. */
  otherMembers: number
}

export interface Share {
  ended: number
  blamed: number
}

export type Judgement = { verdict: "good" } | { verdict: "probation" | "expelled"; reason: string }

/** Faults count for a day. */
export const FAULTS_COUNT_MS = 24 * 3600_000
/** Distinct jobs against a node until it is put on probation, and further ones until it is expelled. */
export const JOBS_TO_PROBATION = 3
export const JOBS_TO_EXPULSION = 5
/** A node that cannot speak the protocol is of no use; one torn frame is no reason yet. */
export const OFFENCES_TO_PROBATION = 5
export const OFFENCES_TO_EXPULSION = 20
/** Nodes whose word is needed: one liar alone must not bring down others. Fewer only where there are no more. */
const CONTENT_WITNESSES = 3
const JOB_WITNESSES = 2
/** Clearly worse than others: so many times their share, and more than chance makes of it. */
const TIMES_OTHERS = 2
const STANDARD_DEVIATIONS = 3
/** Ends of other nodes without which nothing can be compared. */
const LEAST_COMPARED = 2

/**
 * What a node's record calls for (architecture §5.7). Failures count only where the same task then completed elsewhere, by
 * distinct jobs, and only while the node does clearly worse than the others: a client's flaky program fails everywhere.
 * What other nodes say of its content puts it on probation and never expels it: their word is no proof.
 */
export function judgeNode(record: NodeRecord): Judgement {
  const { counts, sinceProbation: since } = record
  const isWorse = isClearlyWorse(record.own, record.others)
  if (since !== null) {
    const jobs = provenJobs(since, record.otherMembers)
    if (jobs >= JOBS_TO_EXPULSION && isWorse) return expelled(`${jobs} further jobs while on probation: ${WHAT_JOBS}`)
    if (since.offences >= OFFENCES_TO_EXPULSION) {
      return expelled(`${since.offences} further offences while on probation, the last one: ${since.lastOffence ?? ""}`)
    }
    return { verdict: "good" }
  }
  const jobs = provenJobs(counts, record.otherMembers)
  if (jobs >= JOBS_TO_PROBATION && isWorse) return probation(`${jobs} jobs within a day: ${WHAT_JOBS}`)
  if (counts.offences >= OFFENCES_TO_PROBATION) {
    return probation(`${counts.offences} offences within a day, the last one: ${counts.lastOffence ?? ""}`)
  }
  const { contentWitnesses } = counts
  if (contentWitnesses > 0 && contentWitnesses >= Math.min(CONTENT_WITNESSES, record.otherMembers)) {
    return probation(`content that failed its verification, as ${contentWitnesses} other nodes say`)
  }
  return { verdict: "good" }
}

const WHAT_JOBS = "their tasks failed here and completed elsewhere, or were taken and never run"

const probation = (reason: string): Judgement => ({ verdict: "probation", reason })
const expelled = (reason: string): Judgement => ({ verdict: "expelled", reason: `expelled: ${reason}` })

/** Jobs that another node's word alone stands for count only when several nodes say the like. */
function provenJobs({ jobs, toldJobs, jobWitnesses }: FaultCounts, otherMembers: number): number {
  return jobWitnesses >= Math.min(JOB_WITNESSES, otherMembers) ? jobs : jobs - toldJobs
}

/**
 * Does the node fail clearly more of its attempts than the others of theirs? Symmetric failure proves nothing: twice their
 * share, and more than chance would make of it (a Poisson deviation). Unknown shares are taken to be mild.
 */
export function isClearlyWorse(own: Share, others: Share): boolean {
  if (others.ended < LEAST_COMPARED) return false
  const usual = (others.blamed + 1) / (others.ended + 2)
  const expected = usual * Math.max(own.ended, own.blamed)
  return own.blamed >= TIMES_OTHERS * expected && own.blamed >= expected + STANDARD_DEVIATIONS * Math.sqrt(expected)
}

/** What a node may hold at once: on probation one attempt, whatever it lends. */
export const mostAttempts = (probation: object | null): number => (probation === null ? MOST_HELD : 1)

/** Setbacks in a row that cost nothing: one stands for an accident. */
const FREE_SETBACKS = 1
const FIRST_REST_MS = 5_000
const LONGEST_REST_MS = 5 * 60_000

/**
 * How long a node gets nothing new after so many setbacks in a row: tasks that it took and did not run, and no success between
 * them. `idle`: it let a grant or a claim end, which takes seconds to minutes; that is never an accident.
 */
export function restMs(setbacks: number, idle = false): number {
  if (setbacks <= FREE_SETBACKS) return idle ? FIRST_REST_MS : 0
  return Math.min(LONGEST_REST_MS, FIRST_REST_MS * 2 ** (setbacks - FREE_SETBACKS - 1))
}
