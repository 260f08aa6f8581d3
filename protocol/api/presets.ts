import { z } from "zod"
import { listOf } from "./common.ts"
import { endpoint } from "./endpoint.ts"

/** GAP-44: `requirements`, `reservation` and `timeout_s` may stand in a submission as they are. */
export const preset = z.object({
  name: z.string(),
  description: z.string(),
  requirements: z.object({
    cpu: z.number(),
    memory_mb: z.int(),
    storage_gb: z.int(),
    gpu_count: z.int(),
    gpu_memory_mb: z.int().optional(),
    profile: z.enum(["cpu", "gpu"]),
  }),
  reservation: z.object({ mode: z.enum(["best_effort", "guaranteed"]) }),
  timeout_s: z.int(),
})

export const listPresets = endpoint({
  id: "presets",
  method: "GET",
  path: "/api/v1/presets",
  access: "viewer",
  summary: "Common shapes of work: requirements, reservation and timeout to put into a submission.",
  reply: listOf("presets", preset),
})

export const presetEndpoints = [listPresets] as const
