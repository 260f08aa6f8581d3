import { every, type Clock } from "../../protocol/base/clock.ts"

/** Ticks that came this much late, or clocks that differ by it: the machine was suspended or its clock was set. */
const TIME_JUMP_MS = 2_000
const TICK_MS = 1_000

/**
 * Calls `jumped` when time was not what this process took it for: then nothing old may be acted on before the coordinator has
 * been asked (architecture §5.5). Monotonic time stands still while a machine sleeps, so both clocks are looked at.
 */
export function watchTime(clock: Clock, jumped: (reason: string) => void): Disposable {
  let lastMs = clock.monotonicMs()
  let lastWallMs = clock.now()
  return every(clock, TICK_MS, () => {
    const nowMs = clock.monotonicMs()
    const wallMs = clock.now()
    const lateMs = nowMs - lastMs - TICK_MS
    const stepMs = wallMs - lastWallMs - (nowMs - lastMs)
    lastMs = nowMs
    lastWallMs = wallMs
    if (lateMs > TIME_JUMP_MS || Math.abs(stepMs) > TIME_JUMP_MS) {
      jumped(`time jumped (late by ${Math.round(lateMs)} ms, the wall clock stepped by ${Math.round(stepMs)} ms)`)
    }
  })
}
