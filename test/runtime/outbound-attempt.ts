import { openBench, testedRuntimes } from "../support/runtimes.ts"

/** Runs one attempt with network `outbound` in whatever network namespace it is started in and prints what it saw. */
const [title, code] = process.argv.slice(2)
const runtime = testedRuntimes().find((candidate) => candidate.title === title)
if (runtime === undefined || code === undefined) throw new Error("a runtime and a program are needed")
await using bench = await openBench(runtime)
const probe = await bench.driver.probe()
if (probe.network !== "outbound") console.log(JSON.stringify({ probe }))
else {
  const { stdout, stderr, end } = await bench.run({ command: ["/usr/bin/python3", "-c", code], network: "outbound" })
  console.log(JSON.stringify({ probe, stdout, stderr, end }))
}
