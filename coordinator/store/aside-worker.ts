import { parentPort, workerData } from "node:worker_threads"
import Database from "better-sqlite3"
import { present } from "../../protocol/base/assert.ts"
import { errorText } from "../../protocol/base/error-text.ts"
import type { AsideAnswer, AsideOrder } from "./aside-reads.ts"
import { ActHandle, Connection } from "./statements.ts"
import { isDamage } from "./storage-errors.ts"
import type { AsideRead } from "./store.ts"

/** The thread behind `createAsideReads`. */
const port = present(parentPort, "the parent of the reading thread")
const connection = new Connection(new Database(String(workerData), { readonly: true }), () => {})
port.on("message", (order: AsideOrder) => void answer(order).then((done) => port.postMessage(done)))

async function answer({ module, name, args }: AsideOrder): Promise<AsideAnswer> {
  const view = new ActHandle(connection)
  try {
    const { [name]: read } = (await import(module)) as Record<string, AsideRead<unknown, readonly unknown[]>>
    // WAL: the first statement fixes the snapshot for all that follow, and no write waits for it.
    connection.database.exec("BEGIN")
    return { ok: true, value: await present(read, name).run(view, ...args) }
  } catch (error) {
    return { ok: false, message: errorText(error), isDamage: isDamage(error) }
  } finally {
    view.settle()
    if (connection.database.inTransaction) connection.database.exec("ROLLBACK")
  }
}
