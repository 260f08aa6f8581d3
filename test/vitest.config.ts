import { defineConfig } from "vitest/config"

if (Number(process.versions.node.split(".")[0]) < 24) {
  console.error(`Tests need Node 24; this is ${process.version}. Run them with "npm test" or "./scripts/test".`)
  process.exit(1)
}

/** Machines are shared and slow: a limit in a test catches a hang, not a slow run. */
const TEST_TIMEOUT_MS = 60_000

export default defineConfig({
  test: {
    root: new URL("..", import.meta.url).pathname,
    include: ["test/**/*.test.ts"],
    testTimeout: TEST_TIMEOUT_MS,
    hookTimeout: TEST_TIMEOUT_MS,
    // Waiting for a state: the default of one second is too short on such machines.
    expect: { poll: { timeout: 20_000, interval: 20 } },
    pool: "forks",
    maxWorkers: 2,
  },
})
