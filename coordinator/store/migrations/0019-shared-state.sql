-- A project's shared state, what attempts were given of it, and artifacts by the names that tasks gave them.

CREATE TABLE project_kv (
  project INTEGER NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
  key TEXT NOT NULL,
  -- JSON text
  value TEXT NOT NULL,
  ttl_s INTEGER CHECK (ttl_s > 0),
  expires_at INTEGER,
  updated_at INTEGER NOT NULL,
  -- who wrote it: an account, and the job where one published it
  account INTEGER,
  job TEXT,
  PRIMARY KEY (project, key),
  CHECK ((ttl_s IS NULL) = (expires_at IS NULL))
) STRICT;
CREATE INDEX project_kv_by_expiry ON project_kv (expires_at) WHERE expires_at IS NOT NULL;

-- What `_shared` of a job's tasks came to: many attempts were given the same.
CREATE TABLE shared_values (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  job INTEGER NOT NULL REFERENCES jobs (seq) ON DELETE CASCADE,
  digest TEXT NOT NULL,
  -- a JSON object, value by alias
  text TEXT NOT NULL,
  UNIQUE (job, digest)
) STRICT;
-- What this attempt was given: asked for again it gets the same, whatever has changed since.
ALTER TABLE attempts ADD COLUMN shared_values INTEGER;

-- Of artifacts that tasks made: the first task that made one of a name is found at once.
ALTER TABLE artifacts ADD COLUMN task_index INTEGER;
CREATE INDEX artifacts_by_name ON artifacts (job, name, task_index, seq DESC) WHERE name IS NOT NULL;
