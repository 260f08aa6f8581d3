import type { FeatureName } from "./features.ts"

/** One route as the index and the references list it. */
export interface CatalogueEntry {
  group: Group
  /** `METHOD /path`. */
  route: string
  /** Of the part that a version may lack; routes without one are always there. */
  feature?: FeatureName
  /** What the route's own row cannot say. */
  note?: string
  headers?: string
  /** Instead of the parameters that the route's schema names. */
  query?: string
  /** For a route that is not there yet: what clients of it will find. */
  later?: { purpose: string; body?: Record<string, string>; query_params?: string; response?: string }
}

export const GROUPS = [
  "auth",
  "ops",
  "results",
  "account",
  "artifacts",
  "leases",
  "jobs",
  "recipes",
  "projects",
  "presets",
  "batch",
  "feedback",
] as const
export type Group = (typeof GROUPS)[number]

const upload = {
  sha256: "64 lower-case hex digits",
  size: "whole number of bytes",
  filename: "string",
  content_type: "optional string",
  job_id: "optional job id",
}

/**
 * The routes that clients were promised, in the order of the index. What a route takes and answers is read from its row of the
 * endpoint table; rows that are not named here are added behind their group.
 */
export const CATALOGUE: readonly CatalogueEntry[] = [
  {
    group: "auth",
    route: "POST /api/v1/auth/register",
    feature: "waitlist",
    note: "Nobody registers by themselves: the answer says how else to get access. Fields that are sent (name, email) are ignored.",
    later: {
      purpose: "Self-service registration, which is switched off.",
      body: { name: "string, ignored", email: "string, ignored" },
      response: "403: {error, recommended_action, details}",
    },
  },
  {
    group: "auth",
    route: "POST /api/v1/waitlist",
    feature: "waitlist",
    later: {
      purpose: "Asks for access.",
      body: { email: "optional string", wallet_address: "optional string", note: "optional string" },
      response: '201: {status: "received"}',
    },
  },
  {
    group: "auth",
    route: "POST /api/v1/auth/wallet/challenge",
    feature: "wallet_sessions",
    later: {
      purpose: "Asks for a text to be signed with a wallet that an administrator has allowed.",
      body: { wallet_address: "string", chain: 'string (default "base")' },
      response: "201: {challenge: {id, chain, wallet_address, nonce, message, status, expires_at}}",
    },
  },
  {
    group: "auth",
    route: "POST /api/v1/auth/wallet/verify",
    feature: "wallet_sessions",
    later: {
      purpose: "Takes the signed text and gives a short-lived bearer token (fls_…).",
      body: { challenge_id: "string", wallet_address: "string", signature: "string" },
      response: "201: {account, wallet, session, token}",
    },
  },
  { group: "ops", route: "GET /health" },
  { group: "ops", route: "GET /live" },
  { group: "ops", route: "GET /ready" },
  {
    group: "ops",
    route: "GET /metrics",
    feature: "metrics",
    note: "Open to local requests, to administrators and to the deployment's metrics token.",
    later: { purpose: "Prometheus metrics, for operators." },
  },
  {
    group: "results",
    route: "GET /api/v1/results/:job_id",
    note: "The first place to read outcomes. `result` is the JSON that the program wrote to $COMPUTALOT_TASK_RESULT. Rows appear as tasks end, also while the job still runs. `summary` repeats the aggregate, its aliases, completeness and task_outcome_counts; a weighted average adds weight_field, expected_weight, completed_weight and pending_weight. artifact_ids name files: GET /api/v1/artifacts/:id. Neither machines nor their paths nor image digests appear here.",
  },
  {
    group: "results",
    route: "GET /api/v1/results",
    note: "Jobs that ended: completed, partial, failed or cancelled. limit is 1 to 100 (default 20), larger ones are cut to 100; offset starts at 0. What is malformed is 422 and says why. applied_filters tells what was understood.",
  },
  { group: "account", route: "GET /api/v1/account/balance" },
  { group: "account", route: "GET /api/v1/account/ledger" },
  { group: "account", route: "GET /api/v1/account/holds" },
  { group: "account", route: "GET /api/v1/account/quotes" },
  {
    group: "account",
    route: "POST /api/v1/account/quotes/topup",
    feature: "payments",
    note: "402 with the quote is the success. At most $10,000 each time.",
    later: { purpose: "Asks for a quote to add credit." },
  },
  {
    group: "account",
    route: "POST /api/v1/account/quotes/:quote_id/pay/x402",
    feature: "payments",
    headers: "PAYMENT-SIGNATURE: <x402 payment>",
    later: { purpose: "Pays a quote." },
  },
  {
    group: "artifacts",
    route: "POST /api/v1/artifacts",
    headers:
      "X-Artifact-Filename: name.ext; X-Artifact-Job-Id: <job id> (optional: whoever sees the job sees the artifact)",
    note: "The body goes to disk as it comes. What a task leaves in $COMPUTALOT_ARTIFACT_DIR becomes an artifact by itself.",
  },
  {
    group: "artifacts",
    route: "POST /api/v1/artifacts/direct",
    feature: "object_storage",
    later: {
      purpose: "Asks for a presigned address, so that the bytes do not pass the coordinator.",
      body: { ...upload, ttl_seconds: "optional positive integer" },
      response:
        '201: {source: "r2", sha256, size, filename, content_type, upload: {method, url, headers, key, expires_in_s}, complete: {method, path}}',
    },
  },
  {
    group: "artifacts",
    route: "POST /api/v1/artifacts/direct/complete",
    feature: "object_storage",
    later: {
      purpose: "Registers what was uploaded directly, once its bytes are verified.",
      body: upload,
      response: '201: {id, sha256, size, source: "r2", url}',
    },
  },
  {
    group: "artifacts",
    route: "POST /api/v1/artifacts/multipart",
    feature: "object_storage",
    later: {
      purpose: "Starts an upload in parts that can be resumed.",
      body: upload,
      response:
        '201: {source: "r2", sha256, size, filename, content_type, upload_id, key, part_upload, list_parts, complete, abort}',
    },
  },
  {
    group: "artifacts",
    route: "POST /api/v1/artifacts/multipart/part",
    feature: "object_storage",
    later: {
      purpose: "Asks for the presigned address of one part.",
      body: {
        sha256: "64 lower-case hex digits",
        upload_id: "string",
        part_number: "positive integer",
        job_id: "optional job id",
        ttl_seconds: "optional positive integer",
      },
      response: '201: {source: "r2", sha256, upload_id, part_number, upload: {method, url, headers, expires_in_s}}',
    },
  },
  {
    group: "artifacts",
    route: "GET /api/v1/artifacts/multipart/parts",
    feature: "object_storage",
    later: {
      purpose: "Lists the parts that arrived.",
      query_params: "?sha256=<digest>&upload_id=<upload_id>&job_id=<job_id>",
      response: '200: {source: "r2", sha256, upload_id, key, parts: [{part_number, etag, size}]}',
    },
  },
  {
    group: "artifacts",
    route: "POST /api/v1/artifacts/multipart/complete",
    feature: "object_storage",
    later: {
      purpose: "Puts the parts together and registers the artifact, once its bytes are verified.",
      body: { ...upload, upload_id: "string", parts: "[{part_number, etag}, …]" },
      response: '201: {id, sha256, size, source: "r2", url}',
    },
  },
  {
    group: "artifacts",
    route: "POST /api/v1/artifacts/multipart/abort",
    feature: "object_storage",
    later: {
      purpose: "Gives an upload in parts up.",
      body: { sha256: "64 lower-case hex digits", upload_id: "string", job_id: "optional job id" },
      response: '200: {ok: true, aborted: true, source: "r2", sha256, upload_id}',
    },
  },
  {
    group: "artifacts",
    route: "POST /api/v1/artifacts/external",
    feature: "external_artifacts",
    later: {
      purpose: "Registers a file that lies elsewhere, by its address.",
      body: { url: "string", filename: "string", sha256: "optional string" },
      response: '201: {id, url, filename, source: "external", sha256?}',
    },
  },
  { group: "artifacts", route: "GET /api/v1/artifacts" },
  {
    group: "artifacts",
    route: "GET /api/v1/artifacts/:id",
    note: "Your own artifacts and those of your jobs. The bytes come from this origin, without a redirect.",
  },
  { group: "artifacts", route: "GET /api/v1/artifacts/:id/meta" },
  { group: "artifacts", route: "DELETE /api/v1/artifacts/:id" },
  {
    group: "leases",
    route: "GET /api/v1/leases/:job_id",
    feature: "reservations",
    later: {
      purpose: "Shows a job's reservation and how many of its tasks are done.",
      response:
        "200: {leases?: {total, done, failed, requeued}, reservation?: {mode, parallelism, guaranteed_for_s, max_wait_s, routing_profile, requirements, active, admitted_at, expires_at, available_parallelism}}",
    },
  },
  {
    group: "jobs",
    route: "POST /api/v1/jobs",
    note: "The answer is the job; summary.billing_estimate and billing_admission say what it may cost, billing_hold what was reserved. 402 carries a quote and created nothing: fund the account and send the same request again. Fields that are unknown are accepted and named in `warnings`.",
  },
  {
    group: "jobs",
    route: "GET /api/v1/jobs",
    note: "Rows carry payload, has_error, has_output and error_snippet; request, output, summary and error stand in GET /api/v1/jobs/:id.",
  },
  {
    group: "jobs",
    route: "GET /api/v1/jobs/:id",
    note: "Poll every 2 to 5 seconds until the status is terminal, or follow the stream. queue_reason says why it waits.",
  },
  {
    group: "jobs",
    route: "GET /api/v1/jobs/:id/output",
    note: "While a retry has not said anything yet, the words of the attempt before stay. Where a task never started, the platform's own words stand here.",
  },
  {
    group: "jobs",
    route: "GET /api/v1/jobs/:id/tasks",
    note: "output keeps the last 10 KB, error the last 1000 characters. The result of a failed task is a record with failure_kind, exit_code, command, cwd and combined_output. A checkpoint shows artifact_id, artifact_source, publish_status and published_at once it is published.",
  },
  { group: "jobs", route: "GET /api/v1/jobs/:id/events" },
  {
    group: "jobs",
    route: "GET /api/v1/jobs/:id/stream",
    note: "Frames: snapshot, job, task, event, ping, done, timeout. Last-Event-ID goes on without a gap.",
  },
  {
    group: "jobs",
    route: "GET /api/v1/jobs/watch",
    feature: "watch",
    query: "ids=id1,id2,... (comma-separated, max 100)",
    note: "One connection for up to 100 jobs. Frames: snapshot, job, ping, done, timeout. They carry client_ref, tags, meta, variant and what GET /api/v1/results/:job_id says in summary.",
    later: { purpose: "Follows up to 100 jobs over one connection." },
  },
  { group: "jobs", route: "GET /api/v1/jobs/:id/metrics" },
  { group: "jobs", route: "PUT /api/v1/jobs/:id/cancel" },
  {
    group: "recipes",
    route: "GET /api/v1/recipes",
    feature: "recipes",
    later: {
      purpose: "Lists the platform's own sealed programs.",
      response:
        "200: {count, recipes: [{name, project, runtime_source_kind, runtime_kind, default_execution_policy, default_placement_policy, supported_placement_policies, default_requirements, payload_schema, artifact_inputs, operations, entrypoint, manifest, cache_policy, runtime_version, created_at, updated_at}]}",
    },
  },
  {
    group: "recipes",
    route: "GET /api/v1/recipes/:name",
    feature: "recipes",
    later: { purpose: "Shows one recipe: what it takes, what it does.", response: "200: a recipe" },
  },
  {
    group: "recipes",
    route: "POST /api/v1/recipes/:name/jobs",
    feature: "recipes",
    later: {
      purpose: "Submits a job of a recipe, without a project of your own.",
      body: {
        payload: "object — input of the task",
        type: "optional string; left out, it is structured_runner",
        placement_policy: "optional string out of the recipe's supported_placement_policies",
        requirements: "optional object",
        reservation: "optional object",
        timeout_s: "optional integer",
      },
      response: "201: a job",
    },
  },
  { group: "projects", route: "POST /api/v1/projects" },
  { group: "projects", route: "GET /api/v1/projects" },
  { group: "projects", route: "GET /api/v1/projects/:name" },
  { group: "projects", route: "PUT /api/v1/projects/:name" },
  {
    group: "projects",
    route: "DELETE /api/v1/projects/:name",
    note: "Refused while a job of it is planning, queued or running: cancel those first.",
  },
  {
    group: "projects",
    route: "POST /api/v1/projects/:name/push",
    note: "The gzip bytes themselves, no form. At most 100 MB. 400 where it is no gzip, 409 while the project is initializing or refreshing, 422 where the tarball or the manifest is wrong.",
  },
  {
    group: "projects",
    route: "POST /api/v1/projects/:name/init",
    note: "Optional and in the background: it prepares the nodes that are there, and adds none. Follow GET /api/v1/projects/:name/status.",
  },
  { group: "projects", route: "POST /api/v1/projects/:name/invalidate" },
  { group: "projects", route: "PUT /api/v1/projects/:name/cancel-queued" },
  {
    group: "projects",
    route: "GET /api/v1/projects/:name/kv",
    feature: "shared_state",
    later: {
      purpose: "Lists shared state.",
      query_params: "?prefix=&limit=100",
      response: "200: {project, prefix, entries: [{key, value, updated_at, ttl_s?, meta}], count}",
    },
  },
  {
    group: "projects",
    route: "PUT /api/v1/projects/:name/kv/:key",
    feature: "shared_state",
    later: {
      purpose: "Writes one value of shared state.",
      body: { value: "any JSON", ttl_s: "optional positive integer" },
      response: "200: {project, key, value, updated_at, ttl_s?, meta}",
    },
  },
  {
    group: "projects",
    route: "GET /api/v1/projects/:name/kv/:key",
    feature: "shared_state",
    later: { purpose: "Reads one value.", response: "200: {project, key, value, updated_at, ttl_s?, meta}" },
  },
  {
    group: "projects",
    route: "DELETE /api/v1/projects/:name/kv/:key",
    feature: "shared_state",
    later: { purpose: "Deletes one value.", response: '200: {status: "deleted", project, key}' },
  },
  {
    group: "projects",
    route: "GET /api/v1/projects/:name/status",
    note: "About the active revision. progress_phase and the counts of replicas tell waiting, working and failed set-up apart.",
  },
  { group: "projects", route: "GET /api/v1/projects/:name/status/details" },
  {
    group: "projects",
    route: "GET /api/v1/projects/:name/stream",
    feature: "project_stream",
    note: "One connection for everything that the account does in a project. Frames: snapshot, job, ping, timeout (after an hour: connect again).",
    later: { purpose: "Follows all jobs of a project over one connection." },
  },
  {
    group: "presets",
    route: "GET /api/v1/presets",
    feature: "presets",
    later: { purpose: "Lists common shapes of requirements and reservations." },
  },
  {
    group: "batch",
    route: "POST /api/v1/jobs/batch",
    feature: "batch",
    note: "201 where all were accepted, 207 where some were not: jobs and errors name the place of each in the request.",
    later: {
      purpose: "Submits up to 200 jobs at once.",
      body: { jobs: "list of submissions" },
      response:
        "201/207: {jobs: [{index, id, status, payload, meta, variant?}], submitted, errors: [{index, error, recommended_action?}], error_count}",
    },
  },
  {
    group: "feedback",
    route: "POST /api/v1/feedback",
    feature: "feedback",
    later: {
      purpose: "Tells us what is wrong or missing.",
      body: {
        type: "bug | feature_request | provisioning | job_type_request",
        title: "string",
        description: "string",
        job_id: "optional string",
        metadata: "optional object",
      },
    },
  },
]
