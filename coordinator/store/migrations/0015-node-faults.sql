-- What nodes did that good ones do not, and what followed (architecture §5.7).

CREATE TABLE node_faults (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  node TEXT NOT NULL REFERENCES nodes (id),
  kind TEXT NOT NULL CHECK (kind IN ('failed_task', 'refused_report', 'idle_claim', 'protocol', 'content')),
  -- the job it concerns, where there is one: a job counts once against a node, whatever its kind
  job INTEGER,
  -- the node that shows it: it completed what failed, or found the pieces wrong
  witness TEXT REFERENCES nodes (id),
  detail TEXT,
  at INTEGER NOT NULL
) STRICT;
CREATE INDEX node_faults_by_node ON node_faults (node, at);
CREATE INDEX node_faults_by_time ON node_faults (at);
CREATE INDEX node_faults_by_job ON node_faults (node, job) WHERE job IS NOT NULL;

ALTER TABLE nodes ADD COLUMN probation_since INTEGER;
ALTER TABLE nodes ADD COLUMN probation_reason TEXT;
-- An administrator took it back into service: what it did before counts no more.
ALTER TABLE nodes ADD COLUMN pardoned_at INTEGER;
-- Two machines were last seen to speak with its key at this time; null when an administrator has put that right.
ALTER TABLE nodes ADD COLUMN cloned_at INTEGER;
