-- Jobs, their tasks, and the attempts that run them.

CREATE TABLE jobs (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  account INTEGER NOT NULL,
  user_id INTEGER,
  project TEXT NOT NULL,
  revision TEXT NOT NULL,
  content_hash TEXT NOT NULL,
  type TEXT NOT NULL,
  -- finishing is internal: all tasks are final and the aggregate is being made; clients read it as running
  status TEXT NOT NULL CHECK (status IN ('planning', 'queued', 'running', 'finishing', 'completed', 'partial', 'failed', 'cancelled')),
  priority TEXT NOT NULL,
  -- the submitted body as it came, and the submission with every default resolved
  request TEXT NOT NULL,
  submission TEXT NOT NULL,
  tags TEXT NOT NULL,
  client_ref TEXT,
  task_count INTEGER NOT NULL CHECK (task_count > 0),
  -- tasks below this index are inserted; planning goes on from here after a restart
  planned_upto INTEGER NOT NULL DEFAULT 0 CHECK (planned_upto BETWEEN 0 AND task_count),
  -- running sums over the tasks; queued + granted + running + completed + failed + cancelled = planned_upto until terminal
  queued INTEGER NOT NULL DEFAULT 0 CHECK (queued >= 0),
  granted INTEGER NOT NULL DEFAULT 0 CHECK (granted >= 0),
  running INTEGER NOT NULL DEFAULT 0 CHECK (running >= 0),
  completed INTEGER NOT NULL DEFAULT 0 CHECK (completed >= 0),
  failed INTEGER NOT NULL DEFAULT 0 CHECK (failed >= 0),
  cancelled INTEGER NOT NULL DEFAULT 0 CHECK (cancelled >= 0),
  suspect INTEGER NOT NULL DEFAULT 0 CHECK (suspect >= 0),
  quality_sum REAL NOT NULL DEFAULT 0,
  attempts INTEGER NOT NULL DEFAULT 0,
  losses INTEGER NOT NULL DEFAULT 0,
  runtime_ms_sum INTEGER NOT NULL DEFAULT 0,
  runtime_ms_max INTEGER NOT NULL DEFAULT 0,
  cpu_ms_sum INTEGER NOT NULL DEFAULT 0,
  hold TEXT NOT NULL UNIQUE,
  -- what one running task may cost at most: reserved while it runs
  reserve_micro INTEGER NOT NULL CHECK (reserve_micro >= 0),
  -- the rate and the estimate as they were at submit: later prices change nothing for this job
  billing TEXT NOT NULL,
  error TEXT,
  -- the aggregate as the last write made it, null before
  outcome TEXT,
  created_at INTEGER NOT NULL,
  queued_at INTEGER,
  started_at INTEGER,
  completed_at INTEGER,
  CHECK ((status IN ('completed', 'partial', 'failed', 'cancelled')) = (completed_at IS NOT NULL))
) STRICT;

CREATE INDEX jobs_by_account ON jobs (account, created_at DESC, id DESC);
CREATE INDEX jobs_by_account_status ON jobs (account, status, created_at DESC, id DESC);
CREATE INDEX jobs_by_project ON jobs (account, project, created_at DESC, id DESC);
CREATE INDEX jobs_by_client_ref ON jobs (account, client_ref, created_at DESC, id DESC) WHERE client_ref IS NOT NULL;
-- Administrators list the jobs of all accounts.
CREATE INDEX jobs_by_time ON jobs (created_at DESC, id DESC);
CREATE INDEX jobs_active ON jobs (status) WHERE status IN ('planning', 'queued', 'running', 'finishing');

-- Also the terminal ones whose tasks were still being cancelled when the coordinator stopped.
CREATE INDEX jobs_without_outcome ON jobs (seq) WHERE outcome IS NULL;

CREATE TABLE job_tags (
  account INTEGER NOT NULL,
  tag TEXT NOT NULL,
  job INTEGER NOT NULL REFERENCES jobs (seq) ON DELETE CASCADE,
  PRIMARY KEY (account, tag, job)
) STRICT, WITHOUT ROWID;
CREATE INDEX job_tags_by_job ON job_tags (job);

-- Payloads are not stored: the plan makes each again from the submission.
CREATE TABLE tasks (
  -- job seq × 131072 + index: one key that finds a task, orders a job's tasks and bounds a job to 131,072 of them
  id INTEGER PRIMARY KEY,
  -- granted is internal: handed to a node and not started; clients read it as queued.
  -- lost is internal: contact was lost for long enough that the task may be granted again; clients read it as running
  state TEXT NOT NULL CHECK (state IN ('queued', 'granted', 'running', 'lost', 'completed', 'failed', 'cancelled')),
  attempt INTEGER NOT NULL DEFAULT 0,
  -- program failures so far: what max_retries is held against
  failures INTEGER NOT NULL DEFAULT 0,
  -- node losses so far: capped at five, never held against max_retries
  losses INTEGER NOT NULL DEFAULT 0,
  -- the live attempt, else the last one
  claim INTEGER,
  started_at INTEGER,
  completed_at INTEGER
) STRICT;
CREATE INDEX tasks_queued ON tasks (id) WHERE state = 'queued';
CREATE INDEX tasks_lost ON tasks (id) WHERE state = 'lost';
CREATE INDEX tasks_failed ON tasks (id) WHERE state = 'failed';

-- What the last attempt left: kept apart so that scheduling reads thin rows.
CREATE TABLE task_results (
  task INTEGER PRIMARY KEY REFERENCES tasks (id) ON DELETE CASCADE,
  claim INTEGER NOT NULL,
  output TEXT NOT NULL,
  error TEXT,
  failure_kind TEXT,
  exit_code INTEGER,
  -- JSON text exactly as the runner wrote it; large ones are blobs
  result TEXT,
  result_digest TEXT,
  result_bytes INTEGER,
  quality REAL,
  warnings TEXT NOT NULL DEFAULT '[]',
  runtime_ms INTEGER,
  signal TEXT,
  -- the last progress line as its own JSON text
  progress TEXT,
  CHECK (result IS NULL OR result_digest IS NULL)
) STRICT;
CREATE INDEX task_results_suspect ON task_results (task) WHERE quality < 0.5;
CREATE INDEX task_results_by_digest ON task_results (result_digest) WHERE result_digest IS NOT NULL;

-- One row per attempt. Its claim number is the fencing token: every change names it, and the state it expects.
CREATE TABLE attempts (
  claim INTEGER PRIMARY KEY,
  task INTEGER NOT NULL,
  number INTEGER NOT NULL,
  node TEXT NOT NULL REFERENCES nodes (id),
  -- uuids of the GPUs it has to itself, as a JSON list: a restart must not lend them twice
  gpus TEXT NOT NULL DEFAULT '[]',
  state TEXT NOT NULL CHECK (state IN ('offered', 'accepted', 'running', 'completed', 'failed', 'cancelled', 'lost', 'returned')),
  granted_at INTEGER NOT NULL,
  accepted_at INTEGER,
  started_at INTEGER,
  ended_at INTEGER,
  -- time without contact, recorded when contact returned: never billed
  lost_contact_ms INTEGER NOT NULL DEFAULT 0,
  runtime_ms INTEGER,
  failure_kind TEXT,
  -- digest of the result item: a repeat is told from a contradiction
  item_digest TEXT,
  CHECK ((state IN ('offered', 'accepted', 'running')) = (ended_at IS NULL))
) STRICT;
-- A task has at most one live attempt, whatever the code believes.
CREATE UNIQUE INDEX attempts_live ON attempts (task) WHERE state IN ('offered', 'accepted', 'running');
CREATE INDEX attempts_live_by_node ON attempts (node, claim) WHERE state IN ('offered', 'accepted', 'running');
CREATE INDEX attempts_by_task ON attempts (task, claim);

-- Task rows name what their tasks made.
CREATE INDEX artifacts_by_task ON artifacts (task, seq) WHERE task IS NOT NULL;
