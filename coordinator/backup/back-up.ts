import { existsSync } from "node:fs"
import { open, rename, rm, stat } from "node:fs/promises"
import { dirname, join } from "node:path"
import { copyDatabase, openCopy } from "../store/database-copy.ts"
import { DATABASE_NAME } from "../store/database-file.ts"
import { findDamage } from "../store/integrity.ts"
import { MEMBERS, syncFolder, writeArchive } from "./archive.ts"

export interface BackedUp {
  bytes: number
  epoch: number
  createdAt: string
}

/**
 * Copies what cannot be made again of a data directory (database and keys) into one new file, while a coordinator may be
 * using it. The file gets its name once it is whole and on the disk, and after the copy was found sound. Throws one clear
 * line when the file exists already, another backup writes it, or the data is damaged; then nothing is left of it.
 */
export async function backUp(dataDir: string, file: string, version: string): Promise<BackedUp> {
  const draft = `${file}.new`
  const copy = `${draft}-database`
  if (existsSync(file)) throw new Error(`${file} exists already: a backup overwrites nothing`)
  await claim(draft)
  try {
    await rm(copy, { force: true })
    const createdAt = new Date().toISOString()
    await copyDatabase(dataDir, copy)
    const damage = findDamage(copy)
    if (damage !== null) throw new Error(`the database in ${dataDir} is damaged: ${damage}`)
    const { epoch } = factsOf(copy)
    const members = MEMBERS.map((name) => ({ name, path: name === DATABASE_NAME ? copy : join(dataDir, name) }))
    await writeArchive(
      draft,
      members.filter(({ name, path }) => name !== "admin-token" || existsSync(path)),
      { created_at: createdAt, version, epoch },
    )
    await rename(draft, file)
    await syncFolder(dirname(file))
    return { bytes: (await stat(file)).size, epoch, createdAt }
  } finally {
    await rm(copy, { force: true })
    await rm(draft, { force: true })
  }
}

/** Two backups to one name do not write into each other. */
async function claim(draft: string): Promise<void> {
  try {
    await (await open(draft, "wx", 0o600)).close()
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error
    throw new Error(`${draft} exists: another backup writes it, or was cut short and left it to be removed`, {
      cause: error,
    })
  }
}

function factsOf(copy: string): { epoch: number } {
  using opened = openCopy(copy)
  return { epoch: opened.epoch }
}
