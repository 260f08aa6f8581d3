import { existsSync } from "node:fs"
import { mkdir, readdir, rename, rm } from "node:fs/promises"
import { dirname, join, resolve } from "node:path"
import { blobPath } from "../artifacts/object-files.ts"
import { lockDataDir } from "../store/data-dir-lock.ts"
import { openCopy, type NeededBlob } from "../store/database-copy.ts"
import { DATABASE_NAME, restoringFolder } from "../store/database-file.ts"
import { findDamage } from "../store/integrity.ts"
import { MEMBERS, readArchive, syncFolder } from "./archive.ts"

export interface Restored {
  epoch: number
  createdAt: string
  /** Blobs that records name and that do not lie in the directory; the first ones by name. */
  missing: { count: number; first: NeededBlob[] }
}

/**
 * Makes a data directory out of a backup. The directory may hold blobs, and nothing else: what a coordinator has written there
 * is never replaced. All of the backup is read and found sound before a file gets its name; cut short, it is run again, and no
 * coordinator starts meanwhile. Throws one clear line when it cannot be done.
 */
export async function restoreBackup(file: string, dataDir: string): Promise<Restored> {
  if (!existsSync(file)) throw new Error(`there is no backup ${file}`)
  await mkdir(dataDir, { recursive: true, mode: 0o700 })
  using _lock = lockDataDir(dataDir)
  const folder = restoringFolder(dataDir)
  // What an earlier restore that was cut short has left is its own.
  if (!existsSync(folder)) await refuseUnlessEmpty(dataDir)
  await rm(folder, { recursive: true, force: true })
  await mkdir(folder, { mode: 0o700 })
  const contents = await readArchive(file, folder)
  const damage = findDamage(join(folder, DATABASE_NAME))
  if (damage !== null) throw new Error(`the database in ${file} is damaged: ${damage}`)
  await syncFolder(dataDir)
  for (const name of MEMBERS) if (existsSync(join(folder, name))) await rename(join(folder, name), join(dataDir, name))
  await syncFolder(dataDir)
  await rm(folder, { recursive: true })
  await syncFolder(dataDir)
  await syncFolder(dirname(resolve(dataDir)))
  return { epoch: contents.epoch, createdAt: contents.created_at, missing: missingBlobs(dataDir) }
}

/** Blobs may be brought first: they take long. */
const MAY_BE_THERE = ["blobs", "incoming", "lock", "lost+found"]

async function refuseUnlessEmpty(dataDir: string): Promise<void> {
  const other = (await readdir(dataDir)).find((name) => !MAY_BE_THERE.includes(name))
  if (other !== undefined) throw new Error(`${dataDir} is not empty (it has ${other}): a restore replaces nothing`)
}

function missingBlobs(dataDir: string): Restored["missing"] {
  using copy = openCopy(join(dataDir, DATABASE_NAME))
  const missing: Restored["missing"] = { count: 0, first: [] }
  for (const blob of copy.blobs()) {
    if (existsSync(blobPath(dataDir, blob.digest))) continue
    missing.count += 1
    if (missing.first.length < MOST_NAMED) missing.first.push(blob)
  }
  return missing
}

const MOST_NAMED = 1_000
