import type { SubmitJobBody } from "../../../protocol/api/jobs.ts"
import type { FieldProblem } from "../../../protocol/domain/errors.ts"
import type { Requirements } from "../../../protocol/domain/requirements.ts"

/** What a task gets where nothing is asked (rulings, Fields). */
const DEFAULTS = { cpu: 1, memoryMb: 512, storageGb: 1 }

/**
 * Resolves the ways to ask for a GPU into one answer (C-18): `gpu_required`, a count, a memory or the profile each make it a
 * GPU task; one that says so and another that says no contradict each other, which is told in `problems`.
 */
export function resolveRequirements(body: SubmitJobBody, problems: FieldProblem[]): Requirements {
  const asked = body.requirements ?? {}
  const gpuMemoryMb = asked.gpu_memory_mb === 0 ? undefined : asked.gpu_memory_mb
  const wish = gpuWish(body)
  if (wish !== null) {
    if (asked.profile === "cpu") {
      problems.push({ path: "requirements.profile", problem: `is cpu, but ${wish} asks for a GPU: keep one of them` })
    }
    if (asked.gpu_count === 0) {
      problems.push({
        path: "requirements.gpu_count",
        problem: `is 0, but ${wish} asks for a GPU: at least 1, or none of both`,
      })
    }
  }
  return {
    cpu: asked.cpu ?? DEFAULTS.cpu,
    memoryMb: asked.memory_mb ?? DEFAULTS.memoryMb,
    storageGb: asked.storage_gb ?? DEFAULTS.storageGb,
    gpuCount: asked.gpu_count ?? (wish === null ? 0 : 1),
    ...(gpuMemoryMb !== undefined && { gpuMemoryMb }),
    profile: wish === null ? "cpu" : "gpu",
  }
}

/** The field that asks for a GPU, or null. */
function gpuWish(body: SubmitJobBody): string | null {
  if (body.gpu_required) return "gpu_required"
  if (body.requirements?.profile === "gpu") return "requirements.profile gpu"
  if (body.requirements?.gpu_count) return "requirements.gpu_count"
  if (body.requirements?.gpu_memory_mb) return "requirements.gpu_memory_mb"
  return null
}
