import { createBubblewrapDriver } from "./bubblewrap.ts"
import type { DriverPlace, DriverProbe, RuntimeDriver } from "./driver.ts"
import { createGvisorDriver } from "./gvisor.ts"
import { createProcessDriver } from "./process.ts"

export type RuntimeChoice = "auto" | "gvisor" | "bubblewrap" | "process"

export interface ChosenDriver {
  driver: RuntimeDriver
  probe: DriverProbe
  /** Why better ones were passed over: one sentence each, for the operator. */
  problems: string[]
}

/**
 * The first driver whose trial passes: gVisor, then bubblewrap, then plain processes where `allowUnsandboxed`. A named choice
 * is tried alone. Throws an error with every reason when none passes.
 */
export async function chooseDriver(
  choice: RuntimeChoice,
  place: DriverPlace,
  options: { allowUnsandboxed: boolean; runscPath?: string },
): Promise<ChosenDriver> {
  if (choice === "process" && !options.allowUnsandboxed) {
    throw new Error("--runtime process runs tasks without any isolation: give --allow-unsandboxed too if that is meant")
  }
  const makers = {
    gvisor: () => createGvisorDriver(place, options.runscPath === undefined ? {} : { runscPath: options.runscPath }),
    bubblewrap: () => createBubblewrapDriver(place),
    process: async () => createProcessDriver(place),
  }
  const names = choice === "auto" ? (["gvisor", "bubblewrap", "process"] as const) : [choice]
  const problems: string[] = []
  for (const name of names) {
    if (name === "process" && !options.allowUnsandboxed) continue
    const driver = await makers[name]()
    const probe = await driver.probe()
    if (probe.available) return { driver, probe, problems: [...problems, ...probe.problems] }
    problems.push(...probe.problems)
    await driver[Symbol.asyncDispose]()
  }
  throw new Error(`no runtime works on this machine: ${problems.join("; ")}`)
}
