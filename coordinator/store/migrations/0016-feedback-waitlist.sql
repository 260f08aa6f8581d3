-- What strangers sent (F-001): text of theirs, read by administrators alone.
CREATE TABLE feedback (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  type TEXT NOT NULL CHECK (type IN ('bug', 'feature_request', 'provisioning', 'job_type_request')),
  title TEXT NOT NULL,
  description TEXT NOT NULL,
  -- as sent: it need not name a job
  job TEXT,
  -- JSON
  metadata TEXT,
  created_at INTEGER NOT NULL
) STRICT;

-- Who asked for access. An empty text stands for what was not given, so that one request has one row.
CREATE TABLE waitlist (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  email TEXT NOT NULL DEFAULT '',
  wallet_address TEXT NOT NULL DEFAULT '',
  note TEXT,
  created_at INTEGER NOT NULL,
  approved_at INTEGER,
  -- what an approved e-mail address got
  user_id INTEGER REFERENCES users (id),
  api_key TEXT REFERENCES api_keys (id),
  CHECK (email <> '' OR wallet_address <> ''),
  CHECK ((user_id IS NULL) = (api_key IS NULL)),
  UNIQUE (email, wallet_address)
) STRICT;
