import type { z } from "zod"
import type { preset } from "../../protocol/api/presets.ts"

type Preset = z.output<typeof preset>

const BEST_EFFORT: Preset["reservation"] = { mode: "best_effort" }
const HOUR_S = 3600

/**
 * Common shapes of work (PS-001): `requirements` and `reservation` may stand in a submission as they are. Each asks for the
 * least that such work needs, since larger machines fit too.
 */
export const PRESETS: readonly Preset[] = [
  {
    name: "cpu-small",
    description: "Evaluations, simulations and glue code on one core.",
    requirements: { cpu: 1, memory_mb: 1024, storage_gb: 2, gpu_count: 0, profile: "cpu" },
    reservation: BEST_EFFORT,
    timeout_s: HOUR_S,
  },
  {
    name: "cpu-large",
    description: "Tree models, solvers and data preparation on many cores.",
    requirements: { cpu: 8, memory_mb: 16_384, storage_gb: 20, gpu_count: 0, profile: "cpu" },
    reservation: BEST_EFFORT,
    timeout_s: 4 * HOUR_S,
  },
  {
    name: "gpu-inference",
    description: "Inference and small fine-tuning runs on one GPU of 12 GB.",
    requirements: { cpu: 2, memory_mb: 8192, storage_gb: 20, gpu_count: 1, gpu_memory_mb: 12_288, profile: "gpu" },
    reservation: BEST_EFFORT,
    timeout_s: HOUR_S,
  },
  {
    name: "gpu-training",
    description: "Training on one GPU of 24 GB; turn checkpointing on for long runs.",
    requirements: { cpu: 8, memory_mb: 32_768, storage_gb: 60, gpu_count: 1, gpu_memory_mb: 24_576, profile: "gpu" },
    reservation: BEST_EFFORT,
    timeout_s: 12 * HOUR_S,
  },
  {
    name: "gpu-training-large",
    description: "Training of large models on one GPU of 80 GB; turn checkpointing on for long runs.",
    requirements: { cpu: 12, memory_mb: 98_304, storage_gb: 200, gpu_count: 1, gpu_memory_mb: 80_000, profile: "gpu" },
    reservation: BEST_EFFORT,
    timeout_s: 24 * HOUR_S,
  },
  {
    name: "multi-gpu-training",
    description: "Data-parallel training on four GPUs of one machine, 24 GB each.",
    requirements: { cpu: 16, memory_mb: 131_072, storage_gb: 200, gpu_count: 4, gpu_memory_mb: 24_576, profile: "gpu" },
    reservation: BEST_EFFORT,
    timeout_s: 24 * HOUR_S,
  },
]
