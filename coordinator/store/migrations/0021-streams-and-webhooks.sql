-- What an account's calls are signed with. The one before still signs too, until its time is over.
CREATE TABLE webhook_secrets (
  account INTEGER PRIMARY KEY REFERENCES accounts (id),
  secret TEXT NOT NULL,
  previous TEXT,
  previous_until INTEGER,
  CHECK ((previous IS NULL) = (previous_until IS NULL))
) STRICT;

-- Calls that are still to be made: one for each end of a job that has a callback_url, written in the write that ends it.
CREATE TABLE webhook_calls (
  -- part of the message's id, so never used again
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  job INTEGER NOT NULL REFERENCES jobs (seq) ON DELETE CASCADE,
  account INTEGER NOT NULL REFERENCES accounts (id),
  url TEXT NOT NULL,
  -- how the job ended: a retry may change its row before the call is made
  status TEXT NOT NULL CHECK (status IN ('completed', 'partial', 'failed', 'cancelled')),
  error TEXT,
  progress REAL,
  ended_at INTEGER NOT NULL,
  -- attempts made so far
  attempts INTEGER NOT NULL DEFAULT 0,
  due_at INTEGER NOT NULL
) STRICT;
CREATE INDEX webhook_calls_by_job ON webhook_calls (job);

-- What a project's stream begins with: its jobs that have not ended, and those that ended last.
CREATE INDEX jobs_active_by_project ON jobs (account, project, created_at DESC, id DESC)
  WHERE status IN ('planning', 'queued', 'running', 'finishing');
CREATE INDEX jobs_ended_by_project ON jobs (account, project, completed_at DESC) WHERE completed_at IS NOT NULL;
