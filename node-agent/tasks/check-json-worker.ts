import { readFileSync } from "node:fs"
import { parentPort, workerData } from "node:worker_threads"
import { errorText } from "../../protocol/base/error-text.ts"
import { splitCheckpoint } from "../../protocol/domain/resume.ts"

/** The thread that looks whether a large result is JSON. */
export interface CheckJsonOrder {
  path: string
}

export interface CheckJsonAnswer {
  problem: string | null
  /** A checkpoint object in it, as its own JSON text. */
  checkpoint: string | null
}

parentPort?.postMessage(check(workerData as CheckJsonOrder))

function check({ path }: CheckJsonOrder): CheckJsonAnswer {
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(readFileSync(path))
    JSON.parse(text)
    return { problem: null, checkpoint: splitCheckpoint(text)?.checkpoint ?? null }
  } catch (error) {
    return { problem: errorText(error).slice(0, 300), checkpoint: null }
  }
}
