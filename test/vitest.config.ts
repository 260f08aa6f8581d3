import { defineConfig } from "vitest/config"
import { BaseSequencer, type TestSpecification } from "vitest/node"

if (Number(process.versions.node.split(".")[0]) < 24) {
  console.error(`Tests need Node 24; this is ${process.version}. Run them with "npm test" or "./scripts/test".`)
  process.exit(1)
}

/** Machines are shared and slow: a limit in a test catches a hang, not a slow run. */
const TEST_TIMEOUT_MS = 60_000

/** The folders whose files take longest; a long file started last would have one core busy and the other idle. */
const LONGEST_FIRST = ["test/runtime/conformance", "test/mesh/", "test/runtime/", "test/http/"]

class LongestFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const rank = ({ moduleId }: TestSpecification): number => {
      const found = LONGEST_FIRST.findIndex((place) => moduleId.includes(place))
      return found === -1 ? LONGEST_FIRST.length : found
    }
    return (await super.sort(files)).sort((left, right) => rank(left) - rank(right))
  }
}

export default defineConfig({
  test: {
    root: new URL("..", import.meta.url).pathname,
    include: ["test/**/*.test.ts"],
    setupFiles: process.env["COMPUTALOT_TEST_FULL"] === undefined ? [] : ["test/support/full-run.ts"],
    testTimeout: TEST_TIMEOUT_MS,
    // Hooks stop whole fleets, which finish what they do.
    hookTimeout: 2 * TEST_TIMEOUT_MS,
    // Waiting for a state: the default of one second is too short on such machines.
    expect: { poll: { timeout: 20_000, interval: 20 } },
    pool: "forks",
    // Tests of sandboxes and of the mesh bring processes of their own: more files at once only wait for each other.
    maxWorkers: 2,
    sequence: { sequencer: LongestFirst },
  },
})
