import { randomText, type Random } from "../base/random.ts"
import type { Instant } from "../base/clock.ts"

declare const brand: unique symbol
type Branded<T, Name> = T & { readonly [brand]: Name }

/** Accounts and users are whole numbers on the wire (GAP-73). */
export type AccountId = Branded<number, "account">
export type UserId = Branded<number, "user">
export type KeyId = Branded<string, "key">
/** `job_20260312_143000_abc123`: UTC date and time of the submission, then six random characters (J-025). */
export type JobId = Branded<string, "job">
/** `task_20260312_143000_abc123_17`: the job's id and the task's index, so that no table has to look one up. */
export type TaskId = Branded<string, "task">
export type RevisionId = Branded<string, "revision">
export type ArtifactId = Branded<string, "artifact">
export type HoldId = Branded<string, "hold">
export type QuoteId = Branded<string, "quote">
export type FeedbackId = Branded<string, "feedback">
export type WaitlistId = Branded<string, "waitlist">
export type NodeId = Branded<string, "node">
/** A libp2p peer id in its text form (`12D3Koo…` for Ed25519). */
export type PeerId = Branded<string, "peer">
/** Names one start of one agent. A restarted agent has a new one. */
export type BootId = Branded<string, "boot">
/** Global, only grows, below 2^53: the fencing token of one attempt (architecture §5.4). */
export type ClaimNumber = Branded<number, "claim">
/** sha256 of the bytes, 64 lower-case hex digits. */
export type Digest = Branded<string, "digest">

export const accountId = (value: number): AccountId => value as AccountId
export const userId = (value: number): UserId => value as UserId
export const keyId = (value: string): KeyId => value as KeyId
export const jobId = (value: string): JobId => value as JobId
export const revisionId = (value: string): RevisionId => value as RevisionId
export const artifactId = (value: string): ArtifactId => value as ArtifactId
export const holdId = (value: string): HoldId => value as HoldId
export const quoteId = (value: string): QuoteId => value as QuoteId
export const feedbackId = (value: string): FeedbackId => value as FeedbackId
export const waitlistId = (value: string): WaitlistId => value as WaitlistId
export const nodeId = (value: string): NodeId => value as NodeId
export const peerId = (value: string): PeerId => value as PeerId
export const bootId = (value: string): BootId => value as BootId
export const claimNumber = (value: number): ClaimNumber => value as ClaimNumber
export const digest = (value: string): Digest => value as Digest

export const DIGEST_PATTERN = /^[0-9a-f]{64}$/

export function newJobId(random: Random, at: Instant): JobId {
  const [date = "", time = ""] = new Date(at).toISOString().split("T")
  return jobId(`job_${date.replaceAll("-", "")}_${time.slice(0, 8).replaceAll(":", "")}_${randomText(random, 6)}`)
}

export function taskId(job: JobId, index: number): TaskId {
  return `task_${job.slice("job_".length)}_${index}` as TaskId
}

/** Which task of its job it is. */
export const indexOfTaskId = (id: TaskId): number => Number(id.slice(id.lastIndexOf("_") + 1))

/** A new id of the given prefix: 16 random characters, 83 bits. */
function newId<T extends string>(random: Random, prefix: string): T {
  return `${prefix}_${randomText(random, 16)}` as T
}

export const newRevisionId = (random: Random): RevisionId => newId(random, "rev")
export const newArtifactId = (random: Random): ArtifactId => newId(random, "art")
export const newHoldId = (random: Random): HoldId => newId(random, "hold")
export const newQuoteId = (random: Random): QuoteId => newId(random, "quote")
export const newKeyId = (random: Random): KeyId => newId(random, "key")
export const newFeedbackId = (random: Random): FeedbackId => newId(random, "feedback")
export const newWaitlistId = (random: Random): WaitlistId => newId(random, "waiting")
export const newNodeId = (random: Random): NodeId => newId(random, "node")
export const newBootId = (random: Random): BootId => newId(random, "boot")
