import { testedRuntimes } from "../support/runtimes.ts"
import type { AttemptSpec, DriverPlace } from "../../node-agent/runtime/driver.ts"

/** An agent to be killed: starts one attempt and says so. Arguments: title of the runtime, place, spec (JSON). */
const [title, place, spec] = process.argv.slice(2)
const runtime = testedRuntimes().find((candidate) => candidate.title === title)
if (runtime === undefined || place === undefined || spec === undefined) throw new Error("three arguments are needed")
const driver = await runtime.create(JSON.parse(place) as DriverPlace)
// Finds out which flags the runtime takes.
await driver.probe()
await driver.start(JSON.parse(spec) as AttemptSpec)
console.log("started")
setInterval(() => {}, 60_000)
