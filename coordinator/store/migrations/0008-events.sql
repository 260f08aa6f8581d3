-- The event log: appended in the write that makes the change it tells of. Ids only grow and are never used again.
CREATE TABLE events (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  job INTEGER NOT NULL REFERENCES jobs (seq) ON DELETE CASCADE,
  type TEXT NOT NULL,
  task_index INTEGER,
  message TEXT NOT NULL,
  data TEXT NOT NULL,
  at INTEGER NOT NULL
) STRICT;
CREATE INDEX events_by_job ON events (job, id);
