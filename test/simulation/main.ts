import { substitute } from "./substitute.ts"
import { MUTANTS } from "./mutants.ts"

const at = process.argv.indexOf("--mutant")
const named = at === -1 ? undefined : process.argv[at + 1]
const mutant = MUTANTS.find(({ name }) => name === named) ?? null
if (named !== undefined && mutant === null) throw new Error(`there is no mutant ${named}`)
substitute(mutant)
// Only now: what is imported from here on gets the simulated disk.
const { command } = await import("./command.ts")
process.exitCode = await command(process.argv.slice(2)).catch((error: unknown) => {
  console.error(error)
  return 2
})
