-- What jobs wait for (depends_on). A row is open until the job it names has ended; only jobs that are planning or queued have
-- open rows.
CREATE TABLE job_dependencies (
  job INTEGER NOT NULL REFERENCES jobs (seq) ON DELETE CASCADE,
  -- the seq of the job waited for, which was there before: whoever follows these rows comes to an end.
  -- It may be gone by now (retention), but not while the row is open
  upstream INTEGER NOT NULL,
  -- how that one ended, as far as this job is concerned; null while it is waited for
  ended TEXT CHECK (ended IN ('completed', 'partial', 'failed', 'cancelled')),
  PRIMARY KEY (job, upstream),
  CHECK (upstream < job)
) STRICT, WITHOUT ROWID;
CREATE INDEX job_dependencies_by_upstream ON job_dependencies (upstream, ended, job);

-- What cancel-queued looks for.
CREATE INDEX jobs_in_queue ON jobs (account, project, seq) WHERE status IN ('planning', 'queued');

-- Jobs are kept for a time after their end.
CREATE INDEX jobs_by_end ON jobs (completed_at) WHERE completed_at IS NOT NULL;
