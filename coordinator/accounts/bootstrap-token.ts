import { readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { randomText, type Random } from "../../protocol/base/random.ts"

/**
 * The credential of the first administrator: the one given, else that in `<data-dir>/admin-token` (mode 0600), which
 * is made at the first start. Throws one clear line when the file is empty.
 */
export function bootstrapToken(dataDir: string, given: string | null, random: Random): string {
  if (given !== null) return given
  const file = join(dataDir, "admin-token")
  try {
    const token = `fla_${randomText(random, TOKEN_CHARACTERS)}`
    writeFileSync(file, `${token}\n`, { mode: 0o600, flag: "wx", flush: true })
    return token
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error
  }
  const token = readFileSync(file, "utf8").trim()
  if (token === "") throw new Error(`${file} is empty: delete it, and the next start makes a new admin token`)
  return token
}

const TOKEN_CHARACTERS = 40
