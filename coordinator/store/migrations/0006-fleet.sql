-- Who may join the mesh, and who has.

CREATE TABLE node_tokens (
  id TEXT PRIMARY KEY,
  -- sha256 of the token; the token itself is shown once
  hash TEXT NOT NULL UNIQUE,
  name TEXT,
  max_uses INTEGER NOT NULL CHECK (max_uses > 0),
  uses INTEGER NOT NULL DEFAULT 0 CHECK (uses BETWEEN 0 AND max_uses),
  roles TEXT NOT NULL,
  account INTEGER,
  expires_at INTEGER NOT NULL,
  created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE nodes (
  id TEXT PRIMARY KEY,
  peer_id TEXT NOT NULL UNIQUE,
  name TEXT,
  token TEXT NOT NULL REFERENCES node_tokens (id),
  account INTEGER,
  roles TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('active', 'draining', 'revoked')),
  state_reason TEXT,
  agent_version TEXT NOT NULL,
  -- the last hello's facts (capacity, runtime, isolation, …), null before the first
  facts TEXT,
  enrolled_at INTEGER NOT NULL,
  last_seen_at INTEGER
) STRICT;
