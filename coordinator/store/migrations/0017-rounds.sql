-- Rounds: a job that has ended may be run again in part (rulings, Retry of a finished job). Each round has its own hold and
-- settlement (holds and ledger_entries say so since 0003), and each task at most one result in it.

ALTER TABLE jobs ADD COLUMN round INTEGER NOT NULL DEFAULT 1 CHECK (round >= 1);
-- Failed tasks that this round leaves as they are: a strict job ends by the first failure beyond them.
ALTER TABLE jobs ADD COLUMN failed_before INTEGER NOT NULL DEFAULT 0 CHECK (failed_before >= 0);
-- What is being put back into the queue, as JSON, until the last slice has done it; tasks below retried_upto are.
ALTER TABLE jobs ADD COLUMN retrying TEXT;
ALTER TABLE jobs ADD COLUMN retried_upto INTEGER NOT NULL DEFAULT 0 CHECK (retried_upto >= 0);

-- Attempts made in earlier rounds: max_attempts counts from there.
ALTER TABLE tasks ADD COLUMN attempts_before INTEGER NOT NULL DEFAULT 0 CHECK (attempts_before >= 0);
-- How it ended in an earlier round, while what it left then is still to be read: until an attempt of this round ends.
ALTER TABLE tasks ADD COLUMN retried_from TEXT CHECK (retried_from IN ('completed', 'failed', 'cancelled'));
CREATE INDEX tasks_retried ON tasks (id) WHERE retried_from IS NOT NULL;

ALTER TABLE attempts ADD COLUMN round INTEGER NOT NULL DEFAULT 1 CHECK (round >= 1);
-- The time that the hold bought, where that was less than the job's timeout.
ALTER TABLE attempts ADD COLUMN budget_ms INTEGER CHECK (budget_ms > 0);
-- Results by round: whatever the code believes, a task completes once in each.
CREATE UNIQUE INDEX attempts_completed ON attempts (task, round) WHERE state = 'completed';

-- Lists, their totals and their groups are read from this index alone, whatever they are filtered by: a job's row may weigh
-- megabytes. Its beginning is that of the index it replaces.
DROP INDEX jobs_by_account;
CREATE INDEX jobs_by_account ON jobs (account, created_at DESC, id DESC, status, type, project, client_ref, user_id);
