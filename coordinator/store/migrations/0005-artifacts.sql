-- Which records need which blobs. A blob's bytes go once no row here names it.
CREATE TABLE blob_references (
  digest TEXT NOT NULL,
  -- what kind of record, and which one
  kind TEXT NOT NULL,
  owner TEXT NOT NULL,
  PRIMARY KEY (digest, kind, owner)
) STRICT;
CREATE INDEX blob_references_by_owner ON blob_references (kind, owner);

-- Blobs that lost a reference and may be unneeded now: the sweep looks at these.
CREATE TABLE released_blobs (
  digest TEXT NOT NULL PRIMARY KEY
) STRICT;

CREATE TABLE artifacts (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  account INTEGER NOT NULL,
  -- the job it belongs to: that job's account may read it too
  job TEXT,
  task TEXT,
  -- what `_artifacts.upload` called it; null for archives and uploads
  name TEXT,
  filename TEXT NOT NULL,
  content_type TEXT NOT NULL,
  source TEXT NOT NULL CHECK (source IN ('local', 'r2', 'external')),
  digest TEXT,
  size INTEGER CHECK (size >= 0),
  created_at INTEGER NOT NULL,
  expires_at INTEGER NOT NULL,
  CHECK (source <> 'local' OR (digest IS NOT NULL AND size IS NOT NULL))
) STRICT;
CREATE INDEX artifacts_by_account ON artifacts (account, seq);
CREATE INDEX artifacts_by_job ON artifacts (job, seq) WHERE job IS NOT NULL;
CREATE INDEX artifacts_by_expiry ON artifacts (expires_at);

-- What a running attempt or build sent ahead of its report: nobody can read it until the report's write gives it a record.
CREATE TABLE staged_blobs (
  claim INTEGER NOT NULL,
  digest TEXT NOT NULL,
  size INTEGER NOT NULL CHECK (size >= 0),
  staged_at INTEGER NOT NULL,
  PRIMARY KEY (claim, digest)
) STRICT;
CREATE INDEX staged_blobs_by_age ON staged_blobs (staged_at);
CREATE INDEX staged_blobs_by_digest ON staged_blobs (digest);
