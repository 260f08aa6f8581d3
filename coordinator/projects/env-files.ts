/** Variables by name, as a task will find them. */
export type EnvMap = Readonly<Record<string, string>>

/**
 * Reads one env file (rulings, Env files): `KEY=VALUE` lines, `#` comment lines, an optional `export `, matching quotes around
 * the value removed, nothing interpolated. Lines of another form are passed over, as every reader of such files does.
 */
export function parseEnvFile(text: string): EnvMap {
  const variables: Record<string, string> = {}
  for (const line of text.replace(/^\uFEFF/, "").split(/\r\n|\n|\r/)) {
    const match = /^\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=(.*)$/s.exec(line)
    if (!match) continue
    const [, name = "", value = ""] = match
    if (!isReserved(name) && !value.includes("\0")) variables[name] = withoutQuotes(value.trim())
  }
  return variables
}

function withoutQuotes(value: string): string {
  const quote = value[0]
  return value.length >= 2 && (quote === '"' || quote === "'") && value.endsWith(quote) ? value.slice(1, -1) : value
}

/**
 * What a task's program finds on top of its image's own environment: later maps win (M-009). Names starting with COMPUTALOT_
 * belong to the platform and are dropped (RP-010); the node sets those last.
 */
export function taskEnvLayers(files: EnvMap, project: EnvMap, job: EnvMap | undefined): EnvMap {
  const layered = { ...files, ...project, ...job }
  return Object.fromEntries(Object.entries(layered).filter(([name]) => !isReserved(name)))
}

const isReserved = (name: string): boolean => name.startsWith("COMPUTALOT_")
