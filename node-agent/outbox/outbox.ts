import Database from "better-sqlite3"
import { assert } from "../../protocol/base/assert.ts"
import type { Instant } from "../../protocol/base/clock.ts"
import { claimNumber, type ClaimNumber } from "../../protocol/domain/ids.ts"
import {
  MOST_HELD,
  type CheckpointItem,
  type GrantedTask,
  type ResultItem,
  type TaskSpec,
} from "../../protocol/wire/control.ts"

/**
 * What this node promised the coordinator and must not forget: grants it accepted, results not yet answered, the highest
 * epoch it was welcomed with. Survives kill -9; every change but `forget` is on the disk before the call returns.
 */
export interface Outbox extends Disposable {
  /** The node's facts as the last run left them. */
  memory(): NodeMemory
  /** Remembers an epoch. A lower one than known is a bug of the caller: it must have refused the welcome. */
  rememberEpoch(epoch: number, proof: string): void
  /**
   * Stores grants in one transaction. A number at or below the highest ever stored is left out, unless it is still held:
   * a node starts a number at most once, ever.
   */
  acceptGrants(grants: HeldGrant[], at: Instant): Accepted
  /** Every attempt held: accepted, running, or done and unanswered. Oldest first. */
  held(): HeldAttempt[]
  /**
   * These attempts are about to be started, each in its folder. One transaction; written before any program runs, so that
   * no number is ever started twice.
   */
  markRunning(starts: readonly { claim: ClaimNumber; attemptDir: string }[]): void
  /**
   * Stores results in one transaction: from here each is delivered until it is answered. An attempt that is no longer held,
   * or already has a result, is left out.
   */
  storeResults(ends: readonly StoredEnd[]): void
  /** What `write` changes is one transaction: it costs one write to the disk, and none of it is there without the rest. */
  together(write: () => void): void
  /** Unanswered results in the order they were stored, at most `limit`, after the position `after` (0: from the start). */
  results(after: number, limit: number): (StoredEnd & { position: number })[]
  /** Attempts held, whatever their state: what `held` lists, counted. */
  heldCount(): number
  /** The attempts they are of, oldest result first. */
  unanswered(): ClaimNumber[]
  /** Bytes of results waiting for an answer. */
  waitingBytes(): number
  /** Stores a checkpoint until it is answered, in place of an earlier one of its attempt. */
  storeCheckpoint(checkpoint: StoredCheckpoint): void
  /** The unanswered checkpoint of an attempt. */
  checkpoint(claim: ClaimNumber): StoredCheckpoint | null
  /** The greatest `n` that was ever stored for an attempt: what it printed before is known. 0 for none. */
  checkpointsUpto(claim: ClaimNumber): number
  /** This one is answered; a later one stays. */
  checkpointAnswered(claim: number, n: number): void
  /** Forgets attempts: answered, given back, spent or cancelled. Unknown numbers are fine. */
  forget(claims: readonly number[]): void
  /**
   * Forgets attempts whose results were answered; on the disk only with what is next written together or forgotten, so that
   * one task after another costs one write each. What a crash brings back is listed in hello and answered `already`.
   */
  answered(claims: readonly number[]): void
  /** Writes down what was answered, where no other write has come by: called now and then. Nothing to write: nothing happens. */
  flush(): void
  /** Keeps a refused result aside as evidence for `REFUSED_KEPT_DAYS`, and forgets the attempt. */
  setAside(claim: number, reason: string, at: Instant): void
}

export interface Accepted {
  /** Those of the grants that are held now. */
  held: ClaimNumber[]
  /** More than a node may hold: these are never started. */
  noRoom: ClaimNumber[]
}

export interface HeldGrant {
  task: GrantedTask
  spec: TaskSpec
}

/** A result, and the files (on this machine, pinned until the answer) that must be uploaded before it is reported. */
export interface StoredEnd {
  item: ResultItem
  files: { digest: string; size: number; path: string }[]
}

export interface StoredCheckpoint {
  item: CheckpointItem
  /** Its file on this machine; null where it has none. */
  file: StoredEnd["files"][number] | null
}

export interface HeldAttempt extends HeldGrant {
  claim: ClaimNumber
  state: "accepted" | "running" | "done"
  attemptDir: string | null
}

export interface NodeMemory {
  epoch: number
  epochProof: string | null
}

/** Refused results are evidence in a dispute: an operator may look at them for a week. */
const REFUSED_KEPT_DAYS = 7

/** Opens (and creates or upgrades) the outbox. Throws when the file is another version's or cannot be written. */
export function openOutbox(file: string, now: Instant): Outbox {
  const db = new Database(file)
  db.pragma("journal_mode = WAL")
  db.pragma("synchronous = FULL")
  db.pragma("wal_autocheckpoint = 1000")
  const version = db.pragma("user_version", { simple: true }) as number
  assert(version === 0 || version === SCHEMA_VERSION, `the outbox is of version ${SCHEMA_VERSION}, found ${version}`)
  db.exec(SCHEMA)
  db.pragma(`user_version = ${SCHEMA_VERSION}`)
  db.prepare("DELETE FROM set_aside WHERE at < ?").run(now - REFUSED_KEPT_DAYS * 86_400_000)

  const sql = {
    memory: db.prepare("SELECT epoch, epoch_proof, highest_claim FROM memory"),
    epoch: db.prepare("UPDATE memory SET epoch = ?, epoch_proof = ?"),
    highest: db.prepare("UPDATE memory SET highest_claim = max(highest_claim, ?)"),
    spec: db.prepare("INSERT INTO specs (json) VALUES (?) RETURNING id"),
    grant: db.prepare("INSERT INTO attempts (claim, spec, task, state, at) VALUES (?, ?, ?, 'accepted', ?)"),
    heldCount: db.prepare("SELECT count(*) AS held FROM attempts"),
    isHeld: db.prepare("SELECT 1 FROM attempts WHERE claim = ?"),
    held: db.prepare(
      "SELECT a.claim, a.task, a.state, a.attempt_dir, s.json FROM attempts a JOIN specs s ON s.id = a.spec ORDER BY a.claim",
    ),
    running: db.prepare(
      "UPDATE attempts SET state = 'running', attempt_dir = ? WHERE claim = ? AND state = 'accepted'",
    ),
    done: db.prepare("UPDATE attempts SET state = 'done' WHERE claim = ? AND state <> 'done'"),
    store: db.prepare("INSERT INTO results (claim, item) VALUES (?, ?)"),
    results: db.prepare("SELECT position, item FROM results WHERE position > ? ORDER BY position LIMIT ?"),
    unanswered: db.prepare("SELECT claim FROM results ORDER BY position"),
    waiting: db.prepare("SELECT claim, length(item) AS bytes FROM results"),
    forget: db.prepare("DELETE FROM attempts WHERE claim = ?"),
    forgetResult: db.prepare("DELETE FROM results WHERE claim = ?"),
    putCheckpoint: db.prepare("INSERT OR REPLACE INTO checkpoints (claim, n, item) VALUES (?, ?, ?)"),
    checkpoint: db.prepare("SELECT n, item FROM checkpoints WHERE claim = ?"),
    checkpointAnswered: db.prepare("UPDATE checkpoints SET item = NULL WHERE claim = ? AND n = ?"),
    forgetCheckpoint: db.prepare("DELETE FROM checkpoints WHERE claim = ?"),
    aside: db.prepare("INSERT OR REPLACE INTO set_aside SELECT claim, item, ?, ? FROM results WHERE claim = ?"),
    unusedSpecs: db.prepare("DELETE FROM specs WHERE id NOT IN (SELECT spec FROM attempts)"),
  }
  sql.unusedSpecs.run()

  const acceptGrants = db.transaction((grants: HeldGrant[], at: Instant): Accepted => {
    const highest = (sql.memory.get() as { highest_claim: number }).highest_claim
    const specs = new Map<TaskSpec, number>()
    const held: ClaimNumber[] = []
    const noRoom: ClaimNumber[] = []
    let room = MOST_HELD - heldCount()
    let newest = highest
    for (const { task, spec } of grants) {
      if (task.claim <= highest) {
        if (sql.isHeld.get(task.claim)) held.push(claimNumber(task.claim))
        continue
      }
      newest = Math.max(newest, task.claim)
      if (room <= 0) {
        noRoom.push(claimNumber(task.claim))
        continue
      }
      room -= 1
      let specRow = specs.get(spec)
      if (specRow === undefined) {
        specRow = (sql.spec.get(JSON.stringify(spec)) as { id: number }).id
        specs.set(spec, specRow)
      }
      sql.grant.run(task.claim, specRow, JSON.stringify(task), at)
      held.push(claimNumber(task.claim))
    }
    sql.highest.run(newest)
    return { held, noRoom }
  })

  const markRunning = db.transaction((starts: readonly { claim: ClaimNumber; attemptDir: string }[]) => {
    for (const { claim, attemptDir } of starts) {
      assert(sql.running.run(attemptDir, claim).changes === 1, "an attempt that is started is held as accepted")
    }
  })

  const storeResults = db.transaction((ends: readonly StoredEnd[]) => {
    for (const end of ends) {
      if (sql.done.run(end.item.claim).changes === 1) sql.store.run(end.item.claim, JSON.stringify(end))
    }
  })

  /** Answered, and still in the file. */
  const leaving = new Set<number>()
  const isHere = ({ claim }: { claim: number }): boolean => !leaving.has(claim)
  const heldCount = (): number => (sql.heldCount.get() as { held: number }).held - leaving.size

  let forgotten = 0
  function forgetRows(claims: readonly number[]): void {
    for (const claim of claims) {
      sql.forget.run(claim)
      sql.forgetResult.run(claim)
      sql.forgetCheckpoint.run(claim)
    }
    forgotten += claims.length
    if (forgotten >= SPECS_SWEPT_EVERY) {
      sql.unusedSpecs.run()
      forgotten = 0
    }
  }

  const setAside = db.transaction((claim: number, reason: string, at: Instant) => {
    sql.aside.run(reason, at, claim)
    sql.forget.run(claim)
    sql.forgetResult.run(claim)
    sql.forgetCheckpoint.run(claim)
  })

  const together = db.transaction((write: () => void) => {
    forgetRows([...leaving])
    write()
  })

  function forget(claims: readonly number[]): void {
    // Not awaited on the disk: what a power cut brings back is listed in hello, and answered `spent` or `already`.
    db.pragma("synchronous = NORMAL")
    try {
      together.immediate(() => forgetRows(claims))
      leaving.clear()
    } finally {
      db.pragma("synchronous = FULL")
    }
  }

  return {
    memory() {
      const row = sql.memory.get() as { epoch: number; epoch_proof: string | null }
      return { epoch: row.epoch, epochProof: row.epoch_proof }
    },
    rememberEpoch(epoch, proof) {
      sql.epoch.run(epoch, proof)
    },
    acceptGrants: (grants, at) => acceptGrants.immediate(grants, at),
    held() {
      const rows = sql.held.all() as HeldRow[]
      return rows.filter(isHere).map((row) => ({
        claim: claimNumber(row.claim),
        state: row.state,
        attemptDir: row.attempt_dir,
        task: JSON.parse(row.task) as GrantedTask,
        spec: JSON.parse(row.json) as TaskSpec,
      }))
    },
    markRunning: (starts) => markRunning.immediate(starts),
    storeResults: (ends) => storeResults.immediate(ends),
    together(write) {
      together.immediate(write)
      leaving.clear()
    },
    results(after, limit) {
      // Who starts over must not meet what was answered; who goes on is past it.
      if (after === 0 && leaving.size > 0) forget([])
      const rows = sql.results.all(after, limit) as { position: number; item: string }[]
      return rows.map((row) => ({ position: row.position, ...(JSON.parse(row.item) as StoredEnd) }))
    },
    heldCount,
    unanswered() {
      const rows = sql.unanswered.all() as { claim: number }[]
      return rows.filter(isHere).map(({ claim }) => claimNumber(claim))
    },
    storeCheckpoint(checkpoint) {
      sql.putCheckpoint.run(checkpoint.item.claim, checkpoint.item.n, JSON.stringify(checkpoint))
    },
    checkpoint(claim) {
      const row = sql.checkpoint.get(claim) as { item: string | null } | undefined
      return row?.item == null ? null : (JSON.parse(row.item) as StoredCheckpoint)
    },
    checkpointsUpto: (claim) => (sql.checkpoint.get(claim) as { n: number } | undefined)?.n ?? 0,
    checkpointAnswered(claim, n) {
      sql.checkpointAnswered.run(claim, n)
    },
    waitingBytes() {
      const rows = sql.waiting.all() as { claim: number; bytes: number }[]
      return rows.filter(isHere).reduce((sum, { bytes }) => sum + bytes, 0)
    },
    forget,
    answered(claims) {
      for (const claim of claims) leaving.add(claim)
    },
    flush() {
      if (leaving.size > 0) forget([])
    },
    setAside: (claim, reason, at) => setAside.immediate(claim, reason, at),
    [Symbol.dispose]() {
      forget([])
      db.close()
    },
  }
}

interface HeldRow {
  claim: number
  task: string
  state: HeldAttempt["state"]
  attempt_dir: string | null
  json: string
}

/** Specs are shared by many attempts; the unused are swept once in so many forgotten attempts. */
const SPECS_SWEPT_EVERY = 1000
const SCHEMA_VERSION = 1
const SCHEMA = `
CREATE TABLE IF NOT EXISTS memory (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  epoch INTEGER NOT NULL,
  epoch_proof TEXT,
  highest_claim INTEGER NOT NULL
) STRICT;
INSERT OR IGNORE INTO memory VALUES (1, 0, NULL, 0);
CREATE TABLE IF NOT EXISTS specs (id INTEGER PRIMARY KEY AUTOINCREMENT, json TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS attempts (
  claim INTEGER PRIMARY KEY,
  spec INTEGER NOT NULL REFERENCES specs (id),
  task TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('accepted', 'running', 'done')),
  attempt_dir TEXT,
  at INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS results (
  position INTEGER PRIMARY KEY AUTOINCREMENT,
  claim INTEGER NOT NULL UNIQUE,
  item TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS checkpoints (
  claim INTEGER PRIMARY KEY,
  n INTEGER NOT NULL,
  -- null once it is answered: n tells how far the attempt's output is known
  item TEXT
) STRICT;
CREATE TABLE IF NOT EXISTS set_aside (claim INTEGER PRIMARY KEY, item TEXT NOT NULL, reason TEXT NOT NULL, at INTEGER NOT NULL) STRICT;
`
