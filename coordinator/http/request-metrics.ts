import type { Answered } from "./app.ts"
import type { MetricFamily, Sample } from "./exposition.ts"

/** Counts requests and how long they took, by route: addresses themselves would be a label without end. */
export interface RequestMetrics {
  count: (answered: Answered) => void
  families(): MetricFamily[]
}

/** Seconds. The figures asked for lie between 2 ms and 150 ms. */
const BUCKETS = [0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10]

interface Durations {
  method: string
  route: string
  /** Requests by the first bucket they fit into; the last one has no bound. */
  counts: number[]
  seconds: number
}

export function createRequestMetrics(): RequestMetrics {
  const requests = new Map<string, { labels: Record<string, string>; value: number }>()
  const durations = new Map<string, Durations>()
  return {
    count({ method: given, route, status, ms, isStream }) {
      const method = METHODS.has(given) ? given : "other"
      const name = `${method} ${route} ${status}`
      const counted = requests.get(name) ?? { labels: { method, route, status: String(status) }, value: 0 }
      counted.value++
      requests.set(name, counted)
      // How long a stream is kept open says nothing about us.
      if (isStream) return
      const line = `${method} ${route}`
      const taken = durations.get(line) ?? { method, route, counts: BUCKETS.map(() => 0).concat(0), seconds: 0 }
      const seconds = ms / 1000
      const found = BUCKETS.findIndex((bound) => seconds <= bound)
      const bucket = found === -1 ? BUCKETS.length : found
      taken.counts[bucket] = (taken.counts[bucket] ?? 0) + 1
      taken.seconds += seconds
      durations.set(line, taken)
    },
    families: () => [
      {
        name: "computalot_http_requests_total",
        help: "Requests by method, route and status; 499 are those whose client left before the answer.",
        type: "counter",
        samples: [...requests.values()].map(({ labels, value }) => ({ labels, value })),
      },
      {
        name: "computalot_http_request_duration_seconds",
        help: "Time from a request's headers to the end of its answer; event streams are left out.",
        type: "histogram",
        samples: [...durations.values()].flatMap((taken) => [...durationSamples(taken)]),
      },
    ],
  }
}

/** What anybody may write as a method must not become labels without end. */
const METHODS = new Set(["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])

function* durationSamples({ method, route, counts, seconds }: Durations): Generator<Sample> {
  let sum = 0
  for (const [at, count] of counts.entries()) {
    sum += count
    const le = at < BUCKETS.length ? String(BUCKETS[at]) : "+Inf"
    yield { suffix: "_bucket", labels: { method, route, le }, value: sum }
  }
  yield { suffix: "_sum", labels: { method, route }, value: seconds }
  yield { suffix: "_count", labels: { method, route }, value: sum }
}
