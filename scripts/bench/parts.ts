import { calibrate, type Json } from "./bench-fleet.ts"

export interface Outcome {
  /** What was measured, in words and as numbers. */
  figure: string
  facts: Json
  target: string
  met: boolean
}

/** Runs the chosen parts of a lane one after another: a line for each, and all of them as JSON in the last one. Throws for an unknown name. */
export async function runParts(
  bench: string,
  parts: Readonly<Record<string, () => Promise<Outcome>>>,
  chosen: readonly string[],
): Promise<void> {
  const unknown = chosen.filter((name) => !(name in parts))
  if (unknown.length > 0) throw new Error(`no part ${unknown.join(", ")}: there are ${Object.keys(parts).join(", ")}`)
  console.log(calibrate())
  const outcomes: Json[] = []
  for (const name of chosen) {
    const outcome = await parts[name]?.()
    if (outcome === undefined) continue
    outcomes.push({ part: name, ...outcome.facts, target: outcome.target, met: outcome.met })
    console.log(`${name}: ${outcome.figure} (target ${outcome.target}: ${outcome.met ? "met" : "NOT met"})`)
  }
  console.log(calibrate())
  console.log(JSON.stringify({ bench, parts: outcomes }))
}
