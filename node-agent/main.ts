#!/usr/bin/env node
import "./small-heap.ts"
import { readFileSync } from "node:fs"
import { systemClock } from "../protocol/base/clock.ts"
import { errorText } from "../protocol/base/error-text.ts"
import { createJsonLog } from "../protocol/base/json-log.ts"
import { systemRandom } from "../protocol/base/random.ts"
import { createAgent, type Agent, type DrainMode } from "./agent.ts"
import { readConfig } from "./config.ts"

const log = createJsonLog("computalot-node")
const version = (JSON.parse(readFileSync(new URL("../package.json", import.meta.url), "utf8")) as { version: string })
  .version
const starting = new AbortController()
let agent: Agent | null = null

try {
  const config = readConfig()
  stopOn(["SIGTERM", "SIGINT"], config.drain)
  agent = await createAgent({ config, clock: systemClock, random: systemRandom, log, version, signal: starting.signal })
  void agent.stopped.then((reason) => fail(reason.message))
  const facts = await agent.ready
  const ready = {
    event: "ready",
    node_id: facts.nodeId,
    peer_id: facts.peerId,
    listen: facts.listen,
    runtime: facts.runtime,
    isolation: facts.isolation,
    roles: facts.roles,
  }
  console.log(JSON.stringify(ready))
} catch (error) {
  if (starting.signal.aborted) process.exit(0)
  await fail(errorText(error))
}

async function fail(line: string): Promise<never> {
  console.error(`computalot-node: ${line}`)
  // What runs is no longer ours: it ends with the agent.
  await agent?.drain("now").catch(() => {})
  await Promise.resolve(agent?.[Symbol.asyncDispose]()).catch(() => {})
  process.exit(1)
}

/** The first signal drains as the operator set it; a second one ends at once what still runs. */
function stopOn(signals: NodeJS.Signals[], first: DrainMode): void {
  let asked = 0
  for (const signal of signals) {
    process.on(signal, () => {
      asked += 1
      if (asked > 2) process.exit(130)
      const mode = asked === 1 ? first : "now"
      log.info("draining", { signal, mode })
      void drain(mode)
    })
  }
}

let leaving = false
async function drain(mode: DrainMode): Promise<void> {
  starting.abort(new Error("the agent was told to stop"))
  try {
    await agent?.drain(mode)
    if (leaving) return
    leaving = true
    await agent?.[Symbol.asyncDispose]()
    process.exit(0)
  } catch (error) {
    console.error(`computalot-node: it did not stop cleanly: ${errorText(error)}`)
    process.exit(1)
  }
}
