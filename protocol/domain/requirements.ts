/** What one task needs at the least: also its enforced limits (rulings, Projects). */
export interface Requirements {
  /** Cores; may be a fraction down to 0.1. */
  cpu: number
  /** MiB. */
  memoryMb: number
  /** GiB of image, workspace and caches together. */
  storageGb: number
  gpuCount: number
  /** MiB per GPU; absent when the job does not care. */
  gpuMemoryMb?: number
  profile: "cpu" | "gpu"
}

/** What a node lends, or has free. */
export interface Capacity {
  cpu: number
  memoryMb: number
  storageGb: number
  gpus: Gpu[]
}

export interface Gpu {
  uuid: string
  model: string
  /** MiB; 0 when unknown, then only jobs without `gpuMemoryMb` fit. */
  memoryMb: number
}
