import { endianness } from "node:os"

/**
 * System calls that no program of a task needs and that widen the kernel's surface: keys, BPF, tracing other tasks through
 * perf, io_uring, modules, mounts, namespaces of others. They fail with EPERM, as without the privilege.
 */
const REFUSED: Record<string, { audit: number; numbers: number[] }> = {
  x64: {
    audit: 0xc000003e,
    numbers: [
      103, 155, 163, 165, 166, 167, 168, 169, 175, 176, 179, 246, 248, 249, 250, 298, 304, 308, 313, 320, 321, 323, 425,
      426, 427, 428, 429, 430, 431, 432, 433, 442,
    ],
  },
  arm64: {
    audit: 0xc00000b7,
    numbers: [
      39, 40, 41, 60, 89, 104, 105, 106, 116, 142, 217, 218, 219, 224, 225, 241, 265, 268, 273, 280, 282, 294, 425, 426,
      427, 428, 429, 430, 431, 432, 433, 442,
    ],
  },
}

const LOAD = 0x20
const JUMP_EQUAL = 0x15
const JUMP_AT_LEAST = 0x35
const RETURN = 0x06
const ALLOW = 0x7fff0000
const EPERM = 0x00050001
const KILL = 0x80000000
/** Calls of the x32 interface, which would go round the list. */
const X32_BIT = 0x40000000

/** The filter as the kernel reads it (an array of `struct sock_filter`), or null on a processor we have no list for. */
export function refuseDangerousCalls(arch: string): Buffer | null {
  const known = REFUSED[arch]
  if (known === undefined || endianness() !== "LE") return null
  const count = known.numbers.length
  const steps: [code: number, yes: number, no: number, value: number][] = [
    [LOAD, 0, 0, 4],
    [JUMP_EQUAL, 1, 0, known.audit],
    [RETURN, 0, 0, KILL],
    [LOAD, 0, 0, 0],
    [JUMP_AT_LEAST, count + 1, 0, X32_BIT],
    ...known.numbers.map((number, index): [number, number, number, number] => [JUMP_EQUAL, count - index, 0, number]),
    [RETURN, 0, 0, ALLOW],
    [RETURN, 0, 0, EPERM],
  ]
  const filter = Buffer.alloc(steps.length * 8)
  steps.forEach(([code, yes, no, value], index) => {
    filter.writeUInt16LE(code, index * 8)
    filter.writeUInt8(yes, index * 8 + 2)
    filter.writeUInt8(no, index * 8 + 3)
    filter.writeUInt32LE(value, index * 8 + 4)
  })
  return filter
}
