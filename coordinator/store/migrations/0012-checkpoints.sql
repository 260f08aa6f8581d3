-- What tasks of jobs with checkpointing left for their next attempt: the two latest that one can go on from, and the latest.
CREATE TABLE checkpoints (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  task INTEGER NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
  -- (claim, n) only grows within a task
  claim INTEGER NOT NULL,
  n INTEGER NOT NULL,
  -- of the item: a repeat is told from a contradiction
  item_digest TEXT NOT NULL,
  -- null where it names neither a file nor an artifact
  publish_status TEXT CHECK (publish_status IN ('published', 'failed', 'skipped')),
  problem TEXT,
  -- made of its file, or named by the program itself
  artifact TEXT,
  artifact_source TEXT,
  own_artifact INTEGER NOT NULL CHECK (own_artifact IN (0, 1)),
  blob TEXT,
  bytes INTEGER CHECK (bytes >= 0),
  filename TEXT,
  -- a next attempt may go on from it: it needs no file, or its file is in the artifact store
  durable INTEGER NOT NULL CHECK (durable IN (0, 1)),
  -- its bytes stay while the job lives, whatever the artifact's retention
  held INTEGER NOT NULL CHECK (held IN (0, 1)),
  created_at INTEGER NOT NULL,
  -- the checkpoint object, and the other fields of the line that carried it, each as its own JSON text; last, being large
  state TEXT NOT NULL,
  line TEXT NOT NULL,
  UNIQUE (task, claim, n),
  CHECK ((publish_status IS NULL OR publish_status = 'published') = (durable = 1)),
  CHECK (held = 0 OR blob IS NOT NULL)
) STRICT;
CREATE INDEX checkpoints_held ON checkpoints (seq) WHERE held = 1;

-- The last progress line that was an object, for jobs with checkpointing: it must outlive this process, and its node.
CREATE TABLE task_progress (
  task INTEGER PRIMARY KEY REFERENCES tasks (id) ON DELETE CASCADE,
  claim INTEGER NOT NULL,
  progress TEXT NOT NULL
) STRICT;
