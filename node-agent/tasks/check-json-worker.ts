import { readFileSync } from "node:fs"
import { parentPort, workerData } from "node:worker_threads"
import { errorText } from "../../protocol/base/error-text.ts"

/** The thread that looks whether a large result is JSON. */
export interface CheckJsonOrder {
  path: string
}

export interface CheckJsonAnswer {
  problem: string | null
}

parentPort?.postMessage(check(workerData as CheckJsonOrder))

function check({ path }: CheckJsonOrder): CheckJsonAnswer {
  try {
    JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(readFileSync(path)))
    return { problem: null }
  } catch (error) {
    return { problem: errorText(error).slice(0, 300) }
  }
}
