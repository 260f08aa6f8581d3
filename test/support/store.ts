import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { systemClock } from "../../protocol/base/clock.ts"
import { silentLog } from "../../protocol/base/log.ts"
import { systemRandom } from "../../protocol/base/random.ts"
import { openStore, type StoreOptions } from "../../coordinator/store/open-store.ts"
import type { Store } from "../../coordinator/store/store.ts"

/**
 * The real store in a directory of its own, strict, with one write in ten run twice and without threads. Disposing closes it and removes
 * the directory; with a `dataDir` of the caller's the directory stays.
 */
export async function openTestStore(options: Partial<StoreOptions> = {}): Promise<Store & { dataDir: string }> {
  const dataDir = options.dataDir ?? newDataDir()
  const store = await openStore({
    clock: systemClock,
    log: silentLog,
    strict: true,
    repeatWrites: systemRandom,
    asideInline: true,
    onFatal: (error) => {
      throw error
    },
    ...options,
    dataDir,
  })
  return {
    dataDir,
    write: (act) => store.write(act),
    read: (look) => store.read(look),
    readAside: (read, ...args) => store.readAside(read, ...args),
    onJobsChanged: (heard) => store.onJobsChanged(heard),
    writeProblem: () => store.writeProblem(),
    async [Symbol.asyncDispose]() {
      await store[Symbol.asyncDispose]()
      if (options.dataDir === undefined) rmSync(dataDir, { recursive: true, force: true })
    },
  }
}

export function newDataDir(): string {
  return mkdtempSync(join(tmpdir(), "computalot-store-"))
}
