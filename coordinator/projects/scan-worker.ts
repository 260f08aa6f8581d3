import { parentPort } from "node:worker_threads"
import { present } from "../../protocol/base/assert.ts"
import { errorText } from "../../protocol/base/error-text.ts"
import { ComputalotError, type ErrorCode } from "../../protocol/domain/errors.ts"
import { scanTarball, type Scan, type ScanInput } from "./scan-tarball.ts"

/** What comes back from the thread: errors lose their class on the way, so a refusal travels as its facts. */
export type ScanAnswer =
  | { kind: "scanned"; scan: Scan }
  | { kind: "refused"; code: ErrorCode; message: string; recommendedAction: string | undefined; details: unknown }
  | { kind: "failed"; errorCode: string | undefined; message: string }

const port = present(parentPort, "the parent of the scan's thread")
port.on("message", (input: ScanInput) => void answer(input).then((scanned) => port.postMessage(scanned)))

async function answer(input: ScanInput): Promise<ScanAnswer> {
  try {
    return { kind: "scanned", scan: await scanTarball(input) }
  } catch (error) {
    if (error instanceof ComputalotError) {
      const { code, message, recommendedAction, details } = error
      return { kind: "refused", code, message, recommendedAction, details }
    }
    return { kind: "failed", errorCode: (error as NodeJS.ErrnoException).code, message: errorText(error) }
  }
}
