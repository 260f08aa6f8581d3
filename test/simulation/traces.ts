import RealDatabase from "better-sqlite3"

/** One step of a job's, task's or attempt's state, as the database made it. */
export interface Step {
  seq: number
  kind: "job" | "task" | "attempt" | "checkpoint"
  id: number
  from: string
  to: string
}

/** Has the database itself note every change of state: what a write rolled back leaves no trace. */
export function layTraces(file: string): void {
  const database = new RealDatabase(file)
  database.exec(`
    CREATE TABLE traces (seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, id INTEGER NOT NULL, old TEXT NOT NULL, new TEXT NOT NULL);
    CREATE TRIGGER trace_jobs AFTER UPDATE OF status ON jobs WHEN old.status <> new.status
      BEGIN INSERT INTO traces (kind, id, old, new) VALUES ('job', new.seq, old.status, new.status); END;
    CREATE TRIGGER trace_tasks AFTER UPDATE OF state ON tasks WHEN old.state <> new.state
      BEGIN INSERT INTO traces (kind, id, old, new) VALUES ('task', new.id, old.state, new.state); END;
    CREATE TRIGGER trace_attempts AFTER UPDATE OF state ON attempts WHEN old.state <> new.state
      BEGIN INSERT INTO traces (kind, id, old, new) VALUES ('attempt', new.claim, old.state, new.state); END;
    -- None may come of an attempt that is over, and none behind one that is later.
    CREATE TRIGGER trace_checkpoints AFTER INSERT ON checkpoints
      BEGIN INSERT INTO traces (kind, id, old, new) SELECT 'checkpoint', new.claim,
        iif((SELECT ended_at FROM attempts WHERE claim = new.claim) IS NULL, 'live', 'over'),
        iif(EXISTS (SELECT 1 FROM checkpoints c WHERE c.task = new.task AND c.seq <> new.seq
          AND (c.claim > new.claim OR (c.claim = new.claim AND c.n >= new.n))), 'behind', 'stored'); END;
  `)
  database.close()
}

/** The steps after `seq`, in order. */
export function stepsAfter(database: RealDatabase.Database, seq: number): Step[] {
  let look = looks.get(database)
  if (!look) {
    look = database.prepare<[number], Step>(STEPS_AFTER)
    looks.set(database, look)
  }
  return look.all(seq)
}

/** It is asked at each COMMIT. */
const looks = new WeakMap<RealDatabase.Database, RealDatabase.Statement<[number], Step>>()
const STEPS_AFTER = "SELECT seq, kind, id, old AS 'from', new AS 'to' FROM traces WHERE seq > ? ORDER BY seq"

export function lastStep(database: RealDatabase.Database): number {
  return (database.prepare("SELECT coalesce(max(seq), 0) AS seq FROM traces").get() as { seq: number }).seq
}
