-- Answers given under an Idempotency-Key (GAP-69). The primary key is what makes two creations under one key impossible.
CREATE TABLE idempotency_keys (
  scope TEXT NOT NULL,
  key TEXT NOT NULL CHECK (length(key) BETWEEN 1 AND 255),
  fingerprint TEXT NOT NULL,
  status INTEGER NOT NULL,
  -- The reply's JSON text; null for a 402, which is answered anew with the same quote.
  body TEXT,
  quote_id TEXT,
  created_at INTEGER NOT NULL,
  PRIMARY KEY (scope, key),
  CHECK ((status = 402 AND quote_id IS NOT NULL AND body IS NULL) OR (status BETWEEN 200 AND 299 AND quote_id IS NULL AND body IS NOT NULL))
) STRICT;

CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);
