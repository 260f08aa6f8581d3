-- Capacity that was promised to a job at its submission (V-002): what memory holds back from others is derived from these rows
-- at every start. On which machines it lies is memory's business.

CREATE TABLE reservations (
  job INTEGER PRIMARY KEY REFERENCES jobs (seq) ON DELETE CASCADE,
  parallelism INTEGER NOT NULL CHECK (parallelism > 0),
  admitted_at INTEGER NOT NULL,
  expires_at INTEGER NOT NULL CHECK (expires_at > admitted_at),
  -- set in the write that makes the job terminal: a later retry of the job does not bring the reservation back
  ended_at INTEGER
) STRICT;
CREATE INDEX reservations_open ON reservations (job) WHERE ended_at IS NULL;
