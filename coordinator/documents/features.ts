import type { Endpoint } from "../../protocol/api/endpoint.ts"
import type { SubmitJobBody } from "../../protocol/api/jobs.ts"
import { ComputalotError } from "../../protocol/domain/errors.ts"
import { refuseLaterFeatures } from "../jobs/submission/later-features.ts"

/** What the documents promise as a whole and a version may lack. */
interface Feature {
  /** Does this version offer it? To switch a feature on or off, change this one word. */
  offered: boolean
  /** Said wherever it is missing: one sentence. */
  otherwise: string
  /** `METHOD /path` of the routes that it cannot do without; the names of parameters do not matter. */
  routes?: readonly string[]
  /** A submission that uses it: refused as `not available yet` where it is missing. */
  probe?: SubmitJobBody
}

const notYet = (what: string): string => `${what} not available in this deployment yet.`

export const FEATURES = {
  sweep: { offered: true, otherwise: notYet("Jobs of type sweep are"), probe: { type: "sweep" } },
  benchmark: { offered: true, otherwise: notYet("Jobs of type benchmark are"), probe: { type: "benchmark" } },
  batch: { offered: true, otherwise: notYet("Batches of jobs are"), routes: ["POST /api/v1/jobs/batch"] },
  presets: { offered: true, otherwise: notYet("Presets are"), routes: ["GET /api/v1/presets"] },
  retry: { offered: true, otherwise: notYet("Retrying a finished job is"), routes: ["POST /api/v1/jobs/:id/retry"] },
  budget: { offered: true, otherwise: notYet("A limit of a job's cost is"), probe: { max_cost_usd: 1 } },
  dependencies: {
    offered: true,
    otherwise: notYet("Dependencies between jobs are"),
    probe: { depends_on: ["job_20260101_000000_abc123"] },
  },
  webhooks: {
    offered: true,
    otherwise: notYet("Webhooks are"),
    routes: ["GET /api/v1/account/webhook-secret", "POST /api/v1/account/webhook-secret"],
    probe: { callback_url: "https://example.com/webhook" },
  },
  reservations: {
    offered: true,
    otherwise: notYet("Guaranteed reservations are"),
    routes: ["GET /api/v1/leases/:job_id"],
    probe: { reservation: { mode: "guaranteed", parallelism: 1 } },
  },
  dedicated: {
    offered: true,
    otherwise: notYet("Dedicated placement is"),
    probe: { placement_policy: "dedicated" },
  },
  shared_state: {
    offered: true,
    otherwise: notYet("Shared state is"),
    routes: [
      "GET /api/v1/projects/:name/kv",
      "PUT /api/v1/projects/:name/kv/:key",
      "GET /api/v1/projects/:name/kv/:key",
      "DELETE /api/v1/projects/:name/kv/:key",
    ],
    probe: {
      payload: { _shared: { resolve: { ready: { key: "ready" } } } },
      state: { publish: { ready: { value: true } } },
    },
  },
  artifacts_in_jobs: {
    offered: true,
    otherwise: notYet("Artifacts inside jobs are"),
    probe: { payload: { _artifacts: { download: { dataset: "art_abc123" } } } },
  },
  manifest_data: {
    offered: false,
    otherwise:
      "The manifest's data_sources, cache_mounts, runtime.services and runtime.init are checked and kept in this deployment, and nothing is done with them yet.",
  },
  watch: { offered: true, otherwise: notYet("Watching several jobs is"), routes: ["GET /api/v1/jobs/watch"] },
  project_stream: {
    offered: true,
    otherwise: notYet("Streams of whole projects are"),
    routes: ["GET /api/v1/projects/:name/stream"],
  },
  feedback: { offered: true, otherwise: notYet("Feedback is"), routes: ["POST /api/v1/feedback"] },
  metrics: { offered: true, otherwise: notYet("Prometheus metrics are"), routes: ["GET /metrics"] },
  wallet_sessions: {
    offered: false,
    otherwise: notYet("Signing in with a wallet is"),
    routes: ["POST /api/v1/auth/wallet/challenge", "POST /api/v1/auth/wallet/verify"],
  },
  payments: {
    offered: false,
    otherwise: "This deployment takes no payments yet: ask an administrator for credit.",
    routes: ["POST /api/v1/account/quotes/topup", "POST /api/v1/account/quotes/:quote_id/pay/x402"],
  },
  waitlist: {
    offered: true,
    otherwise: notYet("The waitlist is"),
    routes: ["POST /api/v1/waitlist", "POST /api/v1/auth/register"],
  },
  object_storage: {
    offered: false,
    otherwise: notYet("Direct and multipart uploads to object storage are"),
    routes: ["POST /api/v1/artifacts/direct", "POST /api/v1/artifacts/multipart"],
  },
  external_artifacts: {
    offered: false,
    otherwise: notYet("Artifacts at addresses elsewhere are"),
    routes: ["POST /api/v1/artifacts/external"],
  },
  recipes: {
    offered: false,
    otherwise: notYet("Sealed recipes are"),
    routes: ["GET /api/v1/recipes", "GET /api/v1/recipes/:name", "POST /api/v1/recipes/:name/jobs"],
    probe: { recipe: "packing" },
  },
  python_sdk: {
    offered: false,
    otherwise: notYet("The Python SDK and its command line are"),
    routes: ["GET /docs/downloads/computalot-0.2.0-py3-none-any.whl"],
  },
} satisfies Record<string, Feature>

type Route = Pick<Endpoint, "method" | "path">
export type FeatureName = keyof typeof FEATURES
export const FEATURE_NAMES = Object.keys(FEATURES) as FeatureName[]

export function isFeatureName(name: string): name is FeatureName {
  return Object.hasOwn(FEATURES, name)
}

/** What a feature lacks among these routes and in what submissions may say; empty where nothing is missing. */
export function lacking(name: FeatureName, rows: readonly Route[]): string[] {
  const feature: Feature = FEATURES[name]
  const there = new Set(rows.map((row) => nameless(`${row.method} ${row.path}`)))
  const routes = (feature.routes ?? []).filter((route) => !there.has(nameless(route)))
  return [...routes, ...refusedFields(feature.probe)]
}

/** The documents call available what is offered and complete. */
export function isAvailable(name: FeatureName, rows: readonly Route[]): boolean {
  return FEATURES[name].offered && lacking(name, rows).length === 0
}

/** `GET /a/:id/b` and `GET /a/:job_id/b` are one route. */
const nameless = (route: string): string => route.replaceAll(/:[a-z_]+/g, ":")

function refusedFields(probe: SubmitJobBody | undefined): string[] {
  if (probe === undefined) return []
  try {
    refuseLaterFeatures(probe)
    return []
  } catch (error) {
    if (!(error instanceof ComputalotError)) throw error
    return [error.message]
  }
}
