import { timingSafeEqual } from "node:crypto"
import { getMetrics } from "../../../protocol/api/ops.ts"
import { sha256Hex } from "../../../protocol/base/digest.ts"
import type { Tally } from "../../events/tally.ts"
import type { Members } from "../../fleet/members.ts"
import type { Store } from "../../store/store.ts"
import { mount, type HttpApp, type HttpRequest } from "../app.ts"
import { authorize, bearerToken, type Identities } from "../auth.ts"
import { exposition, EXPOSITION_TYPE, type MetricFamily, type Sample } from "../exposition.ts"
import type { RequestMetrics } from "../request-metrics.ts"

export interface MetricsRouteParts extends Identities {
  store: Store
  members: Members
  tally: Tally
  requests: RequestMetrics
  /** Tasks that wait for a machine. */
  waitingTasks: () => number
  /** Bytes of images and checkpoints that nodes were sent by the coordinator, and that they fetched from one another. */
  contentBytes: { origin: number; peer: number }
  version: string
  /** An extra credential; null: none. */
  metricsToken: string | null
}

/** GET /metrics for Prometheus (O-004): to requests of this machine, to administrators, and to whoever has the metrics token. */
export function mountMetrics(app: Pick<HttpApp, "add">, parts: MetricsRouteParts): void {
  mount(app, getMetrics, async (request) => {
    await refuseStrangers(parts, request)
    const text = exposition([...(await families(parts)), ...parts.requests.families()])
    request.response.setHeader("content-type", EXPOSITION_TYPE)
    request.response.end(text)
  })
}

/** GAP-06: 401 without a valid token, 403 with one that is not enough. */
async function refuseStrangers(
  parts: MetricsRouteParts,
  { origin, response }: Pick<HttpRequest, "origin" | "response">,
): Promise<void> {
  if (origin.isLocal) return
  const { metricsToken } = parts
  if (metricsToken !== null && isSame(bearerToken(response.req), metricsToken)) return
  await authorize(parts, "admin", response.req)
}

const isSame = (given: string, token: string): boolean =>
  timingSafeEqual(Buffer.from(sha256Hex(given)), Buffer.from(sha256Hex(token)))

async function families(parts: MetricsRouteParts): Promise<MetricFamily[]> {
  const totals = await parts.tally.read()
  const members = [...parts.members.all()]
  const { contentBytes } = parts
  return [
    {
      name: "computalot_jobs_total",
      help: "Jobs that came to each status since this start.",
      type: "counter",
      samples: byLabel("status", totals.jobs),
    },
    {
      name: "computalot_tasks_total",
      help: "Tasks that came to each status since this start; cancelled ones count when their job has ended.",
      type: "counter",
      samples: byLabel("status", totals.tasks),
    },
    {
      name: "computalot_tasks_waiting",
      help: "Tasks that wait for a machine now.",
      type: "gauge",
      samples: [{ value: parts.waitingTasks() }],
    },
    {
      name: "computalot_attempts_held",
      help: "Attempts that nodes hold now: offered, accepted or running.",
      type: "gauge",
      samples: [{ value: members.reduce((sum, { attempts }) => sum + attempts.size, 0) }],
    },
    {
      name: "computalot_nodes",
      help: "Enrolled nodes by what the administrator decided.",
      type: "gauge",
      samples: byLabel(
        "state",
        counted(
          ["active", "draining", "revoked"],
          members.map(({ state }) => state),
        ),
      ),
    },
    {
      name: "computalot_nodes_by_contact",
      help: "Enrolled nodes that are not revoked, by when they were last heard.",
      type: "gauge",
      samples: byLabel(
        "contact",
        counted(
          ["connected", "suspect", "lost_contact", "offline"],
          members.filter(({ state }) => state !== "revoked").map((member) => parts.members.contact(member)),
        ),
      ),
    },
    {
      name: "computalot_content_bytes_total",
      help: "Bytes of images and checkpoints that nodes fetched, from the coordinator (origin) or from one another (peer).",
      type: "counter",
      samples: byLabel("source", { origin: contentBytes.origin, peer: contentBytes.peer }),
    },
    {
      name: "computalot_store_writable",
      help: "1 while changes can be stored.",
      type: "gauge",
      samples: [{ value: parts.store.writeProblem() === null ? 1 : 0 }],
    },
    {
      name: "computalot_build_info",
      help: "The running version.",
      type: "gauge",
      samples: [{ labels: { version: parts.version }, value: 1 }],
    },
    ...processFamilies(),
  ]
}

/** Named as the clients of Prometheus name them everywhere, so that common dashboards fit. */
function processFamilies(): MetricFamily[] {
  const { user, system } = process.cpuUsage()
  return [
    {
      name: "process_cpu_seconds_total",
      help: "Processor time spent by the coordinator.",
      type: "counter",
      samples: [{ value: (user + system) / 1e6 }],
    },
    {
      name: "process_resident_memory_bytes",
      help: "Memory that the coordinator has resident.",
      type: "gauge",
      samples: [{ value: process.memoryUsage.rss() }],
    },
    {
      name: "process_start_time_seconds",
      help: "When the coordinator was started, as Unix time.",
      type: "gauge",
      samples: [{ value: Math.round(performance.timeOrigin) / 1000 }],
    },
  ]
}

function byLabel(label: string, values: Readonly<Record<string, number>>): Sample[] {
  return Object.entries(values).map(([name, value]) => ({ labels: { [label]: name }, value }))
}

/** How often each name occurs: 0 shows too. */
function counted(names: readonly string[], occurring: readonly string[]): Record<string, number> {
  return Object.fromEntries(names.map((name) => [name, occurring.filter((one) => one === name).length]))
}
