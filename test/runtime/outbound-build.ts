import { createImageBuilder } from "../../node-agent/runtime/images/build.ts"
import { boundBuilds } from "../../node-agent/runtime/bound-builds.ts"
import { openTaskGroups } from "../../node-agent/runtime/limits.ts"
import { openTaskNetworks } from "../../node-agent/runtime/network.ts"
import { errorText } from "../../protocol/base/error-text.ts"
import { silentLog } from "../../protocol/base/log.ts"

/** Builds one tree with network `outbound` in whatever network namespace it is started in and prints the log. */
const [directory, basesDirectory, treeDirectory] = process.argv.slice(2)
if (directory === undefined || basesDirectory === undefined || treeDirectory === undefined) {
  throw new Error("a directory, bases and a tree are needed")
}
const networks = await openTaskNetworks(directory)
const groups = openTaskGroups(directory)
const limits = { memoryBytes: 1024 ** 3, cpu: 1, pids: 1024 }
const builder = await createImageBuilder({
  directory,
  basesDirectory,
  bounds: boundBuilds({ groups, limits, networks }),
  log: silentLog,
})
const log = await builder.build({ treeDirectory, timeoutMs: 60_000 }).then(({ logTail }) => logTail, errorText)
console.log(JSON.stringify({ problem: networks.problem, log }))
await builder[Symbol.asyncDispose]()
await networks.close()
groups.close()
