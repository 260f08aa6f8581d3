import type { Capacity, Requirements } from "../../protocol/domain/requirements.ts"
import { fit, freeOf, type Used } from "../fleet/fit.ts"
import type { HeldAttempt } from "../fleet/members.ts"

type Standing = Pick<HeldAttempt, "claim" | "state" | "requirements">

/**
 * What a node cannot have started for want of room, first in line first: it starts tasks in the order of their grants, as long
 * as they fit beside those that run. Pure.
 */
export function tasksAhead<T extends Standing>(capacity: Capacity, attempts: Iterable<T>): T[] {
  const line = [...attempts].toSorted(
    (a, b) => Number(b.state === "running") - Number(a.state === "running") || a.claim - b.claim,
  )
  const used = { cpu: 0, memoryMb: 0, storageGb: 0, gpus: new Set<string>() }
  return line.filter(({ state, requirements }) => {
    // A GPU is given to one task: such tasks are never handed ahead.
    const fits = fit(freeOf(capacity, used), { ...requirements, gpuCount: 0 }) !== null
    if (state !== "running" && !fits && requirements.gpuCount === 0) return true
    used.cpu += requirements.cpu
    used.memoryMb += requirements.memoryMb
    used.storageGb += requirements.storageGb
    return false
  })
}

/**
 * What is in use on a node that holds tasks ahead of its slots, where each of these waits for one of its own size to end: what
 * is free beside that stays free whoever of them starts next, and a task that fits there can start at once and delays nobody.
 * Null where something ahead may need more than that, and where nothing stands ahead. Pure.
 */
export function usedBeside(capacity: Capacity, attempts: Iterable<Standing>): Used | null {
  const line = [...attempts]
  const ahead = new Set(tasksAhead(capacity, line))
  const starting = line.filter((task) => !ahead.has(task))
  const sizes = new Set(starting.map(sizeOf))
  if (ahead.size === 0 || [...ahead].some((task) => !sizes.has(sizeOf(task)))) return null
  return {
    cpu: sum(starting, ({ cpu }) => cpu),
    memoryMb: sum(starting, ({ memoryMb }) => memoryMb),
    storageGb: sum(starting, ({ storageGb }) => storageGb),
    gpus: new Set(),
  }
}

const sizeOf = ({ requirements: { cpu, memoryMb, storageGb } }: Standing): string => `${cpu}/${memoryMb}/${storageGb}`

function sum(tasks: readonly Standing[], part: (requirements: Requirements) => number): number {
  return tasks.reduce((total, { requirements }) => total + part(requirements), 0)
}
