import type { Capacity } from "../../protocol/domain/requirements.ts"
import type { WireCapacity } from "../../protocol/wire/control.ts"

export function capacityFrom(wire: WireCapacity): Capacity {
  return {
    cpu: wire.cpu,
    memoryMb: wire.memory_mb,
    storageGb: wire.storage_gb,
    gpus: wire.gpus.map(({ uuid, model, memory_mb }) => ({ uuid, model, memoryMb: memory_mb })),
  }
}

export function capacityOnWire(capacity: Capacity): WireCapacity {
  return {
    cpu: capacity.cpu,
    memory_mb: capacity.memoryMb,
    storage_gb: capacity.storageGb,
    gpus: capacity.gpus.map(({ uuid, model, memoryMb }) => ({ uuid, model, memory_mb: memoryMb })),
  }
}
