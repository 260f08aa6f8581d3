import { RESULT_GUIDE } from "../../protocol/api/result-guide.ts"
import { ALLOWED_EXECUTABLES, RUNNER_ENV } from "../../protocol/domain/runner.ts"
import { JOB_STATUSES, TERMINAL_JOB_STATUSES } from "../../protocol/domain/statuses.ts"
import { JOB_EXAMPLES, REQUIREMENTS_EXAMPLE, RESERVATION_EXAMPLE, RUNNER_EXAMPLE } from "./examples.ts"
import { ifThere, missingMark, type DocumentFacts } from "./facts.ts"
import { FEATURE_NAMES, FEATURES } from "./features.ts"
import { routesByGroup } from "./routes.ts"
import {
  DEBUGGING,
  heavyJobGuidance,
  JOBS_VS_TASKS,
  PLATFORM_MODEL,
  PROJECT_LIFECYCLE,
  PROJECT_READINESS,
  PROJECT_RUNTIME,
} from "./index-guidance.ts"

/** The JSON index of GET /api/v1/docs (D-011…D-029): the keys and the shapes of values are fixed, clients read them. */
export function docsIndex(facts: DocumentFacts): Record<string, unknown> {
  const { origin } = facts
  const absolute = (path: string): string => `${origin}${path}`
  return {
    name: "computalot",
    status: "private_beta",
    version: "v2",
    status_note: statusNote(facts),
    description: "Spare CPU and GPU machines as one compute service: submit jobs, get structured JSON results.",
    controller_url: origin,
    recommended_endpoint: `Use ${origin} as the API origin. Read ${origin}/api/v1/docs or ${origin}/llms.txt first: they describe this deployment.`,
    docs: DOCS,
    docs_absolute: Object.fromEntries(Object.entries(DOCS).map(([name, path]) => [name, absolute(path)])),
    features: Object.fromEntries(
      FEATURE_NAMES.map((name) => [
        name,
        facts.has(name) ? { available: true } : { available: false, unavailable_reason: FEATURES[name].otherwise },
      ]),
    ),
    auth: auth(facts),
    api: { ...routesByGroup(facts), artifact_workflow: artifactWorkflow(facts) },
    getting_started: gettingStarted(facts),
    choosing_a_job_type: CHOOSING,
    command_validation: {
      allowed_executables: [...ALLOWED_EXECUTABLES],
      blocked_executables: "bash, sh, zsh and all other shells are refused.",
      note: "runner_command is a list; its first element must be one of these names exactly, without path or version.",
      example_valid: ["python", "train.py"],
      example_invalid: ["bash", "-c", "python train.py"],
    },
    platform_model: PLATFORM_MODEL,
    project_lifecycle: PROJECT_LIFECYCLE,
    project_readiness: PROJECT_READINESS,
    project_runtime: PROJECT_RUNTIME,
    project_manifest: {
      summary: `The file computalot.project.json at the root of the tarball says how a project is built, checked and run. JSON Schema: ${absolute("/docs/projects/project-manifest/schema.json")}`,
      docs: MANIFEST_PAGE,
      docs_absolute: absolute(MANIFEST_PAGE),
    },
    resource_requirements: {
      summary:
        "Say what one task needs at least; the platform chooses the machine, which may be larger. What is asked for is also the limit that is enforced.",
      fields: {
        cpu: "CPU cores of a task, at least 0.1",
        memory_mb: "memory of a task in MB",
        storage_gb: "free disk of a task in GB",
        gpu_count: "GPUs of a task",
        gpu_memory_mb: "memory of each GPU in MB",
        profile: '"cpu" or "gpu". cpu work may also run on idle GPU machines; gpu work needs one.',
      },
      example: { requirements: REQUIREMENTS_EXAMPLE },
    },
    reservations: {
      summary: "A reservation says how a job is admitted. It is no lease of machines.",
      fields: {
        mode: '"best_effort" or "guaranteed"',
        parallelism: "how many slots for tasks of this kind to reserve",
        guaranteed_for_s: "how long, in seconds",
        max_wait_s: "kept and shown; admission is decided at once all the same",
      },
      modes: {
        best_effort: "The job is accepted and runs when there is room: what you get by default.",
        guaranteed: ifThere(facts, "reservations", "Admitted only if all slots can be reserved at this moment."),
      },
      example: { reservation: RESERVATION_EXAMPLE },
      current_behavior: {
        submit_success: "POST /api/v1/jobs answers 201 where the reservation can be had.",
        submit_failure: "POST /api/v1/jobs answers 409 with error, recommended_action and details where it cannot.",
        inspect: "GET /api/v1/leases/:job_id shows active, parallelism, expires_at and available_parallelism.",
      },
      ...missingMark(facts, "reservations"),
    },
    runner_protocol: {
      summary: "All types of jobs start your program once for each task and talk to it through files and environment.",
      env_vars: {
        [RUNNER_ENV.payload]: "path of a JSON file with the task's input: read it",
        [RUNNER_ENV.result]: "path at which to write the result as JSON; it is read when the program has ended",
        [RUNNER_ENV.artifacts]: "directory for files to keep; what lies there at the end is uploaded",
        [RUNNER_ENV.scratch]: "directory for temporary files; nothing of it is kept",
      },
      progress: 'Print a line COMPUTALOT_PROGRESS:{"percent": 40} to standard output, and flush it.',
      exit_code: "0 is success, everything else is failure.",
      example: RUNNER_EXAMPLE,
    },
    result_quality: {
      summary:
        "Each result has a result_quality from 0.0 to 1.0 and result_warnings. A job with a result below 0.5 ends as partial.",
      custom_validation:
        "result_schema adds required_fields, field_types and field_ranges to what the type of the job expects. Quality never discards a result.",
    },
    job_lifecycle: {
      statuses: [...JOB_STATUSES],
      terminal: [...TERMINAL_JOB_STATUSES],
      polling: "GET /api/v1/jobs/:id every 2 to 5 seconds until the status is terminal",
      stream: "GET /api/v1/jobs/:id/stream follows one job",
      watch: ifThere(facts, "watch", "GET /api/v1/jobs/watch?ids=... follows up to 100 jobs"),
      results: "GET /api/v1/results/:job_id has a row for each task, with quality and artifact ids",
      output: "GET /api/v1/jobs/:id/output joins what the tasks printed",
      cancel: "PUT /api/v1/jobs/:id/cancel",
      auto_retry: "max_retries in the submission: a failed task is tried again so many times",
      retention: "Jobs that ended can be read for 30 days, artifacts for 7.",
    },
    jobs_vs_tasks: JOBS_VS_TASKS,
    heavy_job_guidance: heavyJobGuidance(facts),
    debugging_failures: DEBUGGING,
    result_guide: RESULT_GUIDE,
    billing: billing(facts),
    feedback: {
      endpoint: "POST /api/v1/feedback",
      types: ["bug", "feature_request", "provisioning", "job_type_request"],
      note: ifThere(facts, "feedback", "Needs no key. Tell us what broke, what is missing, what you wish for."),
      ...missingMark(facts, "feedback"),
    },
    sdk: {
      package: "computalot",
      python: {
        install: `python3 -m pip install --user --break-system-packages ${origin}/docs/downloads/computalot-0.2.0-py3-none-any.whl`,
        minimum_version: "3.10",
        quickstart: [
          "from computalot import ComputalotClient",
          `client = ComputalotClient(controller_url='${origin}', token='YOUR_TOKEN')`,
          "docs = client.docs_index()",
          "recipes = client.list_recipes()",
          "jobs = client.list_jobs(limit=5)",
        ],
      },
      ...missingMark(facts, "python_sdk"),
    },
  }
}

/** Where to find what (D-013). */
const DOCS = {
  index: "/api/v1/docs",
  python_sdk: "/api/v1/docs/python-sdk",
  recipes: "/api/v1/docs/recipes",
  workflows: "/api/v1/docs/workflows",
  skill: "/skill.md",
  llm: "/llms.txt",
  llm_full: "/llms-full.txt",
  web: "/docs",
} as const

const MANIFEST_PAGE = "/docs/projects/project-manifest"

function statusNote(facts: DocumentFacts): string {
  const tell = facts.has("feedback") ? " Tell us what you miss: POST /api/v1/feedback needs no key." : ""
  const join = facts.has("waitlist") ? " Whoever has none joins the waitlist at /." : ""
  return `Private beta: running jobs needs a key that an administrator issued.${join}${tell} Agents start with /skill.md.`
}

function auth(facts: DocumentFacts): Record<string, unknown> {
  const open = ["/health", "/live", "/ready", "/", "/docs", "/skill.md", "/llms.txt", "/llms-full.txt", "/openapi.json"]
  const feedback = facts.has("feedback") ? ", POST /api/v1/feedback" : ""
  const waitlist = facts.has("waitlist") ? ", POST /api/v1/waitlist, POST /api/v1/auth/register (always 403)" : ""
  const wallets = facts.has("wallet_sessions") ? ", POST /api/v1/auth/wallet/challenge and /verify" : ""
  const metrics = facts.has("metrics")
    ? " GET /metrics is for local requests, administrators and the metrics token."
    : ""
  return {
    type: "bearer",
    header: "Authorization: Bearer <token>",
    note: `Without a token: ${open.join(", ")}, /api/v1/docs/*${feedback}${waitlist}${wallets}. Everything else needs one.${metrics}`,
    wallet_auth: ifThere(
      facts,
      "wallet_sessions",
      "POST /api/v1/auth/wallet/challenge, sign challenge.message, POST /api/v1/auth/wallet/verify: the answer has a short-lived token (fls_…). The wallet must have been allowed by an administrator.",
    ),
    how_to_get_a_key:
      "An administrator of this deployment makes a user and issues a key (flk_…). There is no registration without one.",
    roles: {
      member: "makes and changes projects and jobs of its account",
      viewer: "reads the projects and jobs of its account and changes nothing",
    },
    scoping:
      "A token stands for an account: you see its projects, jobs, results, artifacts and money, and nothing of others. Machines are named nowhere.",
  }
}

function artifactWorkflow(facts: DocumentFacts): Record<string, unknown> {
  const named = facts.has("artifacts_in_jobs")
    ? " payload._artifacts.upload gives files names of their own, payload._artifacts.download brings artifacts into a task."
    : ""
  return {
    description: `What a task writes into $${RUNNER_ENV.artifacts} is kept as one tar.gz artifact when it completes.${named} You upload files yourself with POST /api/v1/artifacts. artifact_ids in task and result rows lead to GET /api/v1/artifacts/:id.`,
    env_vars: {
      [RUNNER_ENV.artifacts]: "directory for files to keep",
      [RUNNER_ENV.result]: "path at which to write the JSON result; the row that shows it also lists artifact_ids",
    },
    access_control: "An artifact is for the account that uploaded it or whose job made it.",
    retention: "7 days, unless the operator set ARTIFACT_TTL_HOURS. Download what you want to keep.",
    ...missingMark(facts, "artifacts_in_jobs"),
  }
}

const CHOOSING = [
  { when: "You have a program and an input, or a list of inputs that one program handles.", use: "structured_runner" },
  { when: "You look for the best combination of parameters: every one is tried, and they are ranked.", use: "sweep" },
  { when: "You split a range of numbers, work on the parts at once, and add the results up.", use: "map_reduce" },
  { when: "You compare two or more named candidates, each several times, with mean and deviation.", use: "benchmark" },
]

function gettingStarted(facts: DocumentFacts): Record<string, unknown> {
  const request = (body: unknown) => ({ request: { method: "POST", path: "/api/v1/jobs", body } })
  return {
    overview:
      "Register a project, push its code, submit jobs with the least they need, read results as JSON. A submission reserves money first and costs what was measured. Where the work runs is the platform's business.",
    quick_start: [
      `1. Get a key (flk_…) from an administrator of this deployment${facts.has("wallet_sessions") ? ", or sign in with an allowed wallet" : ""}.`,
      "2. See what the account has: GET /api/v1/account/balance; more in GET /api/v1/account/holds, GET /api/v1/account/ledger and GET /api/v1/account/quotes.",
      `3. Add credit: ${facts.has("payments") ? "POST /api/v1/account/quotes/topup, then POST /api/v1/account/quotes/:quote_id/pay/x402." : "ask an administrator; this deployment takes no payments yet."}`,
      "4. POST /api/v1/projects with a name and a remote_dir.",
      "5. Make a tarball of Dockerfile, computalot.project.json and code: tar czf ../code.tar.gz .",
      "6. POST /api/v1/projects/:name/push with the bytes as the body.",
      "7. POST /api/v1/jobs. 402 means: fund the account and send the same request again.",
      "8. If you like, POST /api/v1/projects/:name/init prepares nodes ahead of jobs; it needs $5 available.",
      "9. GET /api/v1/projects/:name/status tells what is published and what is ready.",
      "10. GET /api/v1/jobs/:id until the status is terminal.",
      "11. GET /api/v1/results/:job_id for the results; GET /api/v1/results?project=my-proj&client_ref=batch_123 to find jobs that ended.",
      `12. Instead of polling: GET /api/v1/jobs/:id/stream${facts.has("watch") ? ", GET /api/v1/jobs/watch?ids=id1,id2" : ""}${facts.has("project_stream") ? ", GET /api/v1/projects/:name/stream" : ""}.`,
      "13. GET /api/v1/artifacts lists files, GET /api/v1/artifacts/:id downloads one.",
    ],
    job_type_examples: [
      {
        name: "structured_runner: one task, or one for each input",
        example: {
          ...request(JOB_EXAMPLES.structured_runner),
          note: 'One task. fan_out {by: "models"} makes one task for each element of a list in the payload, {items: [{...}, {...}]} one for each object.',
        },
      },
      {
        name: "sweep: every combination of parameters",
        example: {
          ...request(JOB_EXAMPLES.sweep),
          note: "Nine tasks, 3 × 3. Each finds its combination in the payload; results are ranked by accuracy.",
          ...missingMark(facts, "sweep"),
        },
      },
      {
        name: "map_reduce: parts of a range, added up",
        example: {
          ...request(JOB_EXAMPLES.map_reduce),
          note: 'Fifty tasks with seed_start and seed_count. Ranges that do not touch: split {field: "seed", ranges: [{start: 860791000, count: 1000}, {start: 200000000, count: 1000}]}.',
        },
      },
      {
        name: "benchmark: candidates side by side",
        example: {
          ...request(JOB_EXAMPLES.benchmark),
          note: "Nine tasks, three candidates three times each, and a leaderboard with mean, std, min and max.",
          ...missingMark(facts, "benchmark"),
        },
      },
    ],
  }
}

function billing(facts: DocumentFacts): Record<string, unknown> {
  return {
    summary: "Each account has one credit, whichever of its tokens is used.",
    v1_policy:
      "Submitting reserves a hold for the most that a job can cost; when it ends the measured seconds are charged and the rest is released. Preparing a project and downloading artifacts cost nothing. POST /api/v1/projects/:name/init needs at least $5 available.",
    x402: ifThere(
      facts,
      "payments",
      "POST /api/v1/account/quotes/topup answers 402 with a quote; POST /api/v1/account/quotes/:quote_id/pay/x402 with the header PAYMENT-SIGNATURE pays it.",
    ),
    account_endpoints: {
      balance: "/api/v1/account/balance",
      holds: "/api/v1/account/holds",
      quotes: "/api/v1/account/quotes",
      ledger: "/api/v1/account/ledger",
    },
    inspection: {
      balance:
        "GET /api/v1/account/balance: ledger_balance_usd, held_usd, available_usd and how many holds and quotes are open.",
      holds: "GET /api/v1/account/holds: what is reserved for which job, now and in the past.",
      quotes: "GET /api/v1/account/quotes: what could be paid, for top-ups and for shortfalls.",
      ledger: "GET /api/v1/account/ledger: every credit and debit, newest first.",
    },
    shortfall_remedy: {
      job_submit:
        "Where POST /api/v1/jobs answers 402, nothing was created: fund the account and send the same request again.",
      project_init:
        "Where POST /api/v1/projects/:name/init answers 402, fund the account and send it again; jobs run without it too.",
      shared_retry_rule:
        "A 402 changes nothing. Change neither project nor payload; once the gap is funded, repeat the request.",
    },
    supported_access_paths: {
      api_key: "A key that an administrator issued: all endpoints that its role allows.",
      wallet_session: ifThere(
        facts,
        "wallet_sessions",
        "A session of an allowed wallet: the same account, the same endpoints.",
      ),
    },
  }
}
