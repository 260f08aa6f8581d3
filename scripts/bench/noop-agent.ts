import { createWriteStream } from "node:fs"
import { join } from "node:path"
import { sleep, systemClock } from "../../protocol/base/clock.ts"
import { sha256Hex } from "../../protocol/base/digest.ts"
import { errorText } from "../../protocol/base/error-text.ts"
import { createJsonLog } from "../../protocol/base/json-log.ts"
import { systemRandom } from "../../protocol/base/random.ts"
import type { ResultItem } from "../../protocol/wire/control.ts"
import { createAgent } from "../../node-agent/agent.ts"
import { readConfig } from "../../node-agent/config.ts"
import type { AttemptEnd, AttemptRunner } from "../../node-agent/tasks/attempt-runner.ts"

/**
 * A real agent whose tasks do nothing: the queue lane of the benchmarks. Everything but the running of a program is real:
 * mesh, control stream, outbox, acceptance, reports. Notes when each attempt started, for latencies: index, time, mark.
 */
const config = readConfig()
const starts = createWriteStream(join(config.dataDir, "..", `${config.name ?? "noop"}.starts`))

const runner: AttemptRunner = {
  attemptDir: (claim) => join(config.dataDir, "attempts", `c${claim}`),
  start({ task }, watch) {
    const {
      bench_mark: mark = "",
      bench_sleep_ms: sleepMs = 0,
      bench_output: output = "",
    } = orders("text" in task.payload ? task.payload.text : "{}")
    starts.write(`${task.index} ${performance.timeOrigin + performance.now()} ${mark}\n`)
    watch.started()
    const result = '{"value":1,"ok":true}'
    const item: Omit<ResultItem, "digest"> = {
      claim: task.claim,
      failure_kind: null,
      exit_code: 0,
      signal: null,
      message: null,
      // What follows is planned by it.
      runtime_ms: Math.max(sleepMs, 0.1),
      cpu_ms: null,
      peak_memory_bytes: null,
      output,
      error_tail: "",
      result: { text: result },
      result_problem: null,
      artifacts: [],
    }
    const end = { item: { ...item, digest: sha256Hex(`${task.claim}`) }, files: [] }
    const over = new AbortController()
    const done = (sleepMs === 0 ? Promise.resolve() : sleep(systemClock, sleepMs, over.signal).catch(() => {})).then(
      (): AttemptEnd => ({ kind: "result", end }),
    )
    return { done, stop: () => over.abort(), extend() {} }
  },
  adopt: async () => null,
  discard: async () => {},
  sweep: async () => {},
}

/** What a benchmark asks of a task through its payload: to be told apart, to hold its slot for a while, and to print. */
interface Orders {
  bench_mark?: string
  bench_sleep_ms?: number
  bench_output?: string
}

function orders(payload: string): Orders {
  return JSON.parse(payload) as Orders
}

try {
  const agent = await createAgent({
    config,
    clock: systemClock,
    random: systemRandom,
    log: createJsonLog("noop-agent"),
    version: "0.0.0",
    outside: { createRunner: () => runner },
  })
  process.on("SIGTERM", () => void agent[Symbol.asyncDispose]().then(() => process.exit(0)))
  const facts = await agent.ready
  console.log(JSON.stringify({ event: "ready", node_id: facts.nodeId }))
} catch (error) {
  console.error(errorText(error))
  process.exit(1)
}
