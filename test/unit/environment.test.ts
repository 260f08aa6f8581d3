import { expect, test } from "vitest"
import { machineEnvironment, taskEnvironment } from "../../node-agent/tasks/environment.ts"

const paths = { payload: "/p", result: "/r", artifacts: "/a", scratch: "/s" }

test("M-009, RP-010: project variables win over the image's, and the platform's own over everything", () => {
  const env = taskEnvironment({
    base: { PATH: "/bin", A: "image", B: "image" },
    project: { B: "project", COMPUTALOT_TASK_RESULT: "elsewhere", TMPDIR: "/elsewhere" },
    paths,
    venvBin: null,
  })
  expect(env).toEqual({
    HOME: "/root",
    PATH: "/bin",
    A: "image",
    B: "project",
    COMPUTALOT_TASK_PAYLOAD: "/p",
    COMPUTALOT_TASK_RESULT: "/r",
    COMPUTALOT_ARTIFACT_DIR: "/a",
    COMPUTALOT_TASK_SCRATCH_DIR: "/s",
    TMPDIR: "/s",
  })
})

test("M-010: .venv/bin comes first on PATH, before a PATH that the project set too", () => {
  const env = taskEnvironment({ base: {}, project: { PATH: "/mine" }, paths, venvBin: "/workspace/.venv/bin" })
  expect(env["PATH"]).toBe("/workspace/.venv/bin:/mine")
  expect(taskEnvironment({ base: {}, project: {}, paths, venvBin: null })["PATH"]).toContain("/usr/bin")
})

test("the process runtime passes on PATH, HOME and LANG of the machine and nothing else", () => {
  const own = { PATH: "/bin", HOME: "/home/op", LANG: "C.UTF-8", SECRET: "s", COMPUTALOT_NODE_TOKEN: "fln_x" }
  expect(machineEnvironment(own)).toEqual({ PATH: "/bin", HOME: "/home/op", LANG: "C.UTF-8" })
})

test("granted GPUs are the only visible ones", () => {
  const env = taskEnvironment({ base: {}, project: {}, paths, venvBin: null, gpus: ["GPU-1", "GPU-2"] })
  expect(env["CUDA_VISIBLE_DEVICES"]).toBe("GPU-1,GPU-2")
})
