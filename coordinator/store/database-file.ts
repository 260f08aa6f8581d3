import { join } from "node:path"

/** The database in a data directory. */
export const databaseFile = (dataDir: string): string => join(dataDir, DATABASE_NAME)

export const DATABASE_NAME = "computalot.db"

/** In here a restore puts what it reads, until all of it proved whole. While it is there, the directory is not to be used. */
export const restoringFolder = (dataDir: string): string => join(dataDir, "restoring")
