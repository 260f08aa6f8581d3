import { expect, test } from "vitest"
import { readConfig } from "../../node-agent/config.ts"

const COORDINATOR = ["--coordinator", "http://127.0.0.1:8080"]

test("flags win over COMPUTALOT_NODE_ variables, which win over defaults", () => {
  const environment = {
    COMPUTALOT_NODE_CPUS: "2",
    COMPUTALOT_NODE_NAME: "one",
    COMPUTALOT_NODE_ROLES: "worker,builder",
  }
  const config = readConfig([...COORDINATOR, "--cpus", "4.5", "--pull-bases"], environment)
  expect(config.caps).toEqual({ cpu: 4.5 })
  expect(config.name).toBe("one")
  expect(config.roles).toEqual(["worker", "builder"])
  expect(config.pullBases).toBe(true)
  expect(config.drain).toBe("finish")
  expect(config.keepRunningMs).toBe(600_000)
})

test.each([
  [[], "--coordinator"],
  [["--coordinator", "not a url"], "--coordinator must be an origin"],
  [[...COORDINATOR, "--token", "flk_wrong"], "--token must be a join token"],
  [[...COORDINATOR, "--runtime", "docker"], "--runtime must be one of auto, gvisor, bubblewrap, process"],
  [[...COORDINATOR, "--runtime", "process"], "--allow-unsandboxed"],
  [[...COORDINATOR, "--cpus", "-1"], "--cpus"],
  [[...COORDINATOR, "--gpus", "many"], "--gpus must be a count"],
  [[...COORDINATOR, "--roles", "worker,king"], "--roles must be some of"],
  [[...COORDINATOR, "--surprise"], "known flags"],
])("a wrong setting is one clear line: %j", (args, told) => {
  let said = ""
  try {
    readConfig(args, {})
  } catch (error) {
    said = (error as Error).message
  }
  expect(said).toContain(told)
  expect(said).not.toContain("\n")
  expect(said).not.toContain("flk_wrong")
})
