import RealDatabase from "better-sqlite3"

/** What the simulation does to databases below one directory. */
export interface DiskFaults {
  /** Called around each COMMIT; a throw before it leaves nothing of the transaction, as a crash does. */
  aroundCommit: (when: "before" | "after", database: RealDatabase.Database) => void
  /** What each act on a file waits for; null while the disk is fast. */
  slow: () => Promise<void> | null
}

const faults = new Map<string, DiskFaults>()
const open = new Map<string, Set<RealDatabase.Database>>()

/** Puts these faults on the databases below `directory`; null takes them away. */
export function setDiskFaults(directory: string, wanted: DiskFaults | null): void {
  if (wanted === null) faults.delete(directory)
  else faults.set(directory, wanted)
}

/** What a file below a simulated disk waits for before anything is done to it. */
export function slowness(path: unknown): Promise<void> | null {
  if (faults.size === 0 || typeof path !== "string") return null
  for (let end = path.lastIndexOf("/"); end > 0; end = path.lastIndexOf("/", end - 1)) {
    const found = faults.get(path.slice(0, end))
    if (found) return found.slow()
  }
  return null
}

/** Ends the connections below `directory` without a word to their owners: what is not committed is gone. */
export function cutDatabases(directory: string): void {
  for (const [path, databases] of open) {
    if (!path.startsWith(`${directory}/`)) continue
    for (const database of databases) database.close()
    open.delete(path)
  }
}

/** SQLite on a memory disk: nothing waits for a flush, because only this process can crash, and then the page cache stays. */
export default class Database extends RealDatabase {
  readonly #path: string

  constructor(path: string, options?: RealDatabase.Options) {
    super(path, options)
    this.#path = path
    const here = open.get(path)
    if (here) here.add(this)
    else open.set(path, new Set([this]))
    super.pragma("synchronous = OFF")
  }

  override pragma(text: string, options?: RealDatabase.PragmaOptions): unknown {
    return text.startsWith("synchronous") ? undefined : super.pragma(text, options)
  }

  override prepare(sql: string): never {
    const statement = super.prepare(sql)
    if (sql !== "COMMIT") return statement as never
    return { run: () => this.#commit(statement) } as never
  }

  /** Outboxes commit through these. */
  override transaction(act: never): never {
    const real = super.transaction(act) as unknown as Way & { immediate: Way }
    const committing =
      (way: Way): Way =>
      (...parameters) => {
        if (this.inTransaction) return way(...parameters)
        this.#around("before")
        const done = way(...parameters)
        this.#around("after")
        return done
      }
    return Object.assign(committing(real), { immediate: committing(real.immediate) }) as never
  }

  override close(): this {
    open.get(this.#path)?.delete(this)
    return super.close()
  }

  #commit(statement: RealDatabase.Statement): unknown {
    this.#around("before")
    const done = statement.run()
    this.#around("after")
    return done
  }

  #around(when: "before" | "after"): void {
    faults.get(this.#path.slice(0, this.#path.lastIndexOf("/")))?.aroundCommit(when, this)
  }
}

type Way = (...parameters: unknown[]) => unknown
