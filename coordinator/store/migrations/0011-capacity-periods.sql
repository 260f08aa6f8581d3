-- When at least one live worker was connected: what a job waits meanwhile counts towards its queue timeout, an outage does not.
CREATE TABLE capacity_periods (
  since INTEGER PRIMARY KEY,
  until INTEGER NOT NULL,
  CHECK (until >= since)
) STRICT;
