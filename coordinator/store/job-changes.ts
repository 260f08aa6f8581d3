import type Database from "better-sqlite3"
import { TASKS_PER_JOB } from "./tasks.ts"

/**
 * Notes on this connection every job of which a statement changes a row, whoever wrote the statement: the database says so
 * itself, by triggers that only this connection has, so nobody can forget to. Costs about 1 µs for each changed row. What a
 * rolled back statement changed is noted as well.
 */
export function noteJobChanges(database: Database.Database): Set<number> {
  const changed = new Set<number>()
  database.function("job_changed", (seq) => {
    changed.add(seq as number)
    return null
  })
  for (const [at, [event, note]] of NOTED.entries()) {
    database.exec(`CREATE TEMP TRIGGER job_changed_${at} AFTER ${event} BEGIN ${note}; END`)
  }
  return changed
}

const job = (seq: string): string => `SELECT job_changed(${seq})`
const jobOf = (task: string): string => job(`${task} / ${TASKS_PER_JOB}`)

/**
 * What readers see of a job. Tasks and attempts are not noted when they are inserted: a task is counted in its job's row, and an
 * attempt named in its task's row, by the same write. Of an attempt itself readers see the time that it was given, where that was
 * less than the job's timeout.
 */
const NOTED: readonly (readonly [event: string, note: string])[] = [
  ["INSERT ON main.jobs", job("NEW.seq")],
  ["UPDATE ON main.jobs", job("NEW.seq")],
  ["DELETE ON main.jobs", job("OLD.seq")],
  ["UPDATE OF status ON main.holds", `${job("seq")} FROM jobs WHERE hold = NEW.id`],
  ["UPDATE OF state, claim ON main.tasks", jobOf("NEW.id")],
  ["DELETE ON main.tasks", jobOf("OLD.id")],
  ["UPDATE OF state ON main.attempts WHEN NEW.budget_ms IS NOT NULL", jobOf("NEW.task")],
  ["INSERT ON main.task_results", jobOf("NEW.task")],
  ["UPDATE ON main.task_results", jobOf("NEW.task")],
  ["INSERT ON main.checkpoints", jobOf("NEW.task")],
  ["UPDATE ON main.checkpoints", jobOf("NEW.task")],
  ["DELETE ON main.checkpoints", jobOf("OLD.task")],
]
