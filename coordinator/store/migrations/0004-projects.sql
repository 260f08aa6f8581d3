-- Projects, what was pushed to them, and how far nodes are with preparing it.

CREATE TABLE projects (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  account INTEGER NOT NULL,
  name TEXT NOT NULL,
  remote_dir TEXT NOT NULL,
  env TEXT NOT NULL,
  setup_timeout_s INTEGER NOT NULL CHECK (setup_timeout_s > 0),
  runtime_kind TEXT NOT NULL CHECK (runtime_kind = 'oci'),
  image_ref TEXT,
  image_digest TEXT,
  manifest TEXT,
  cache_policy TEXT,
  runtime_version INTEGER NOT NULL CHECK (runtime_version > 0),
  -- the revision that new jobs run; null before the first push
  active_revision TEXT,
  last_ready_at INTEGER,
  created_at INTEGER NOT NULL,
  updated_at INTEGER NOT NULL,
  UNIQUE (account, name)
) STRICT;
CREATE INDEX projects_by_name ON projects (name);

-- One for each push, and one more for each invalidation: a new id makes everything that nodes prepared under the old one stale.
CREATE TABLE revisions (
  id TEXT NOT NULL PRIMARY KEY,
  project INTEGER NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
  -- sha256 of the tree's listing, which is stored as a blob of that name
  content_hash TEXT NOT NULL,
  -- the checked tarball that nodes unpack
  tarball_digest TEXT NOT NULL,
  tarball_bytes INTEGER NOT NULL,
  -- the tarball's own manifest, null when it has none
  manifest TEXT,
  has_dockerfile INTEGER NOT NULL CHECK (has_dockerfile IN (0, 1)),
  -- the tarball's env files, layered
  env TEXT NOT NULL,
  build TEXT NOT NULL CHECK (build IN ('queued', 'building', 'built', 'failed', 'cancelled')),
  -- who builds or built it, and has its layers to give; and the record of the image once it is built; neither is ever shown to clients
  builder TEXT,
  image TEXT,
  build_changed_at INTEGER NOT NULL,
  pushed_at INTEGER NOT NULL,
  CHECK ((build = 'built') = (image IS NOT NULL)),
  CHECK (build <> 'building' OR builder IS NOT NULL),
  CHECK (builder IS NULL OR build IN ('building', 'built'))
) STRICT;
CREATE INDEX revisions_by_project ON revisions (project, pushed_at);
CREATE INDEX revisions_to_build ON revisions (pushed_at) WHERE build IN ('queued', 'building');

-- What nodes prepared for a project's active revision, or for one before it (stale).
CREATE TABLE replicas (
  project INTEGER NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
  node TEXT NOT NULL,
  revision TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('initializing', 'ready', 'failed', 'stale')),
  changed_at INTEGER NOT NULL,
  PRIMARY KEY (project, node)
) STRICT;
CREATE INDEX replicas_by_node ON replicas (node);

-- Somebody asked for nodes to be prepared (init), or a push made prepared ones stale (refresh). The scheduler acts on these.
CREATE TABLE init_requests (
  project INTEGER NOT NULL PRIMARY KEY REFERENCES projects (id) ON DELETE CASCADE,
  revision TEXT NOT NULL,
  kind TEXT NOT NULL CHECK (kind IN ('init', 'refresh')),
  -- how many nodes are to be prepared at most
  max_nodes INTEGER CHECK (max_nodes > 0),
  requested_at INTEGER NOT NULL,
  -- later than this nobody waits for it any more
  ends_at INTEGER NOT NULL
) STRICT;

-- What a client may read of set-up: one entry for the build and one for each node that prepared the active revision.
CREATE TABLE setup_diagnostics (
  id TEXT NOT NULL PRIMARY KEY,
  project INTEGER NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
  revision TEXT NOT NULL,
  -- 'build', 'runtime' or a node's id; never shown
  subject TEXT NOT NULL,
  status TEXT NOT NULL CHECK (status IN ('info', 'running', 'ready', 'failed')),
  phase TEXT NOT NULL,
  message TEXT NOT NULL,
  log_tail TEXT,
  recommended_action TEXT,
  inserted_at INTEGER NOT NULL,
  updated_at INTEGER NOT NULL,
  initialized_at INTEGER,
  UNIQUE (project, revision, subject)
) STRICT;
