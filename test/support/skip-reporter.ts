import type { Reporter, TestModule } from "vitest/node"

/** How a probe says on the console why it leaves tests out. */
const REASON = /(?:skipped|is not tested): .+/

type ConsoleLog = Parameters<NonNullable<Reporter["onUserConsoleLog"]>>[0]

/**
 * Tells what the other reporters leave out: at the end which tests were skipped and why (the note of `skip(note)`, or what
 * the file's probe printed), and, when the run is stopped from outside, which files had not ended.
 */
export default class SkipReporter implements Reporter {
  readonly #reasons = new Set<string>()
  readonly #running = new Set<string>()

  onInit(): void {
    process.once("SIGINT", () => this.#tellRunning()).once("SIGTERM", () => this.#tellRunning())
  }

  onTestModuleStart(module: TestModule): void {
    this.#running.add(module.relativeModuleId)
  }

  onTestModuleEnd(module: TestModule): void {
    this.#running.delete(module.relativeModuleId)
  }

  onUserConsoleLog(log: ConsoleLog): void {
    for (const line of log.content.split("\n")) if (REASON.test(line)) this.#reasons.add(line.trim())
  }

  onTestRunEnd(modules: readonly TestModule[]): void {
    const skipped = modules.flatMap((module) =>
      [...module.children.allTests("skipped")].map((test) => {
        const result = test.result()
        const note = result.state === "skipped" && result.note !== undefined ? ` (${result.note})` : ""
        return `  ${module.relativeModuleId} > ${test.fullName}${note}`
      }),
    )
    if (skipped.length > 0) console.log(["", "Skipped tests", ...skipped].join("\n"))
    if (this.#reasons.size > 0)
      console.log(["", "What could not be tried here", ...[...this.#reasons].map((line) => `  ${line}`)].join("\n"))
  }

  #tellRunning(): void {
    console.log(`stopped in the middle of: ${[...this.#running].join(", ")}`)
  }
}
