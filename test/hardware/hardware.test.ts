import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import fc from "fast-check"
import { afterEach, beforeEach, expect, test } from "vitest"
import { parseGpus, probeGpus } from "../../node-agent/hardware/gpu.ts"
import { chooseGpus, headroom } from "../../node-agent/hardware/headroom.ts"
import { applyCaps, parseGpuCap, probeHardware } from "../../node-agent/hardware/probe.ts"

let bin: string
beforeEach(() => {
  bin = mkdtempSync(join(tmpdir(), "computalot-hardware-"))
})
afterEach(() => rmSync(bin, { recursive: true, force: true }))

function fakeNvidiaSmi(script: string): string {
  writeFileSync(join(bin, "nvidia-smi"), `#!/bin/sh\n${script}\n`, { mode: 0o755 })
  return `${bin}:/usr/bin:/bin`
}

const TWO_CARDS = `cat <<'END'
0, GPU-aaaa, NVIDIA GeForce RTX 4090, 24564, 550.90.07, 8.9, [N/A]
1, GPU-bbbb, Tesla K80, [N/A], 550.90.07, [Not Supported], [N/A]
END`

test("two cards are found by UUID, model and memory; what the driver does not tell is 0", async () => {
  const probe = await probeGpus(fakeNvidiaSmi(TWO_CARDS))
  expect(probe.problems).toEqual([])
  expect(probe.gpus).toMatchObject([
    { index: 0, uuid: "GPU-aaaa", model: "NVIDIA GeForce RTX 4090", memoryMb: 24564, computeCapability: "8.9" },
    { index: 1, uuid: "GPU-bbbb", model: "Tesla K80", memoryMb: 0, computeCapability: "" },
  ])
})

test("a machine without nvidia-smi has no GPU and no problem", async () => {
  expect(await probeGpus(bin)).toEqual({ gpus: [], problems: [] })
})

test("a driver that does not answer is a problem for the operator, not a GPU", async () => {
  const failing = await probeGpus(
    fakeNvidiaSmi('echo "NVIDIA-SMI has failed because it couldn\'t communicate with the driver"; exit 9'),
  )
  expect(failing.gpus).toEqual([])
  expect(failing.problems[0]).toContain("couldn't communicate")
  const hanging = await probeGpus(fakeNvidiaSmi("exec sleep 60"), 300)
  expect(hanging.gpus).toEqual([])
  expect(hanging.problems[0]).toContain("did not answer")
})

test("a split card and an unreadable line are left out and named", () => {
  const probe = parseGpus("0, GPU-aaaa, NVIDIA H200, 143771, 560.35.03, 9.0, Enabled\nnonsense\n")
  expect(probe.gpus).toEqual([])
  expect(probe.problems).toHaveLength(2)
})

test("the machine is lent as it is, or as much as the operator says", async () => {
  const whole = await probeHardware({ dataDir: bin, path: bin, caps: {}, mayExceed: false })
  expect(whole.capacity.cpu).toBeGreaterThanOrEqual(1)
  expect(whole.capacity.memoryMb).toBeGreaterThan(0)
  const lent = await probeHardware({
    dataDir: bin,
    path: fakeNvidiaSmi(TWO_CARDS),
    caps: { cpu: 1, gpus: { count: 1 } },
    mayExceed: false,
  })
  expect(lent.capacity).toMatchObject({ cpu: 1, gpus: [{ uuid: "GPU-aaaa" }] })
})

const MACHINE = { cpu: 2, memoryMb: 4096, storageGb: 10, gpus: [] }

test("more than the machine has is refused by flag, and taken at its word with the process runtime", () => {
  expect(() => applyCaps(MACHINE, { cpu: 64 }, false)).toThrow("--cpus 64")
  expect(() => applyCaps(MACHINE, { gpus: { count: 1 } }, false)).toThrow("--gpus 1")
  expect(applyCaps(MACHINE, { cpu: 64, gpus: { count: 2, memoryMb: 24_000 } }, true)).toMatchObject({
    cpu: 64,
    memoryMb: 4096,
    gpus: [{ memoryMb: 24_000 }, { memoryMb: 24_000 }],
  })
})

test("--gpus reads N and N:MEMORY_MB and nothing else", () => {
  expect(parseGpuCap("2")).toEqual({ count: 2 })
  expect(parseGpuCap("4:24000")).toEqual({ count: 4, memoryMb: 24_000 })
  for (const wrong of ["", "two", "-1", "2:", "2:x", "1.5"]) expect(parseGpuCap(wrong)).toBeNull()
})

test("headroom is capacity less what runs, exact in tenths and never negative", () => {
  const tenth = { requirements: { cpu: 0.1, memoryMb: 100, storageGb: 1 }, gpuUuids: [] }
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 60 }), (count) => {
      const free = headroom(
        MACHINE,
        Array.from({ length: count }, () => tenth),
      )
      expect(free.cpu).toBe(Math.max(0, (20 - count) / 10))
      expect(free.memoryMb).toBe(Math.max(0, 4096 - 100 * count))
      expect(free.storageGb).toBe(Math.max(0, 10 - count))
    }),
  )
})

test("a GPU belongs to one attempt, and the smallest that suffice are chosen", () => {
  const gpus = [80_000, 24_000, 48_000].map((memoryMb, index) => ({ uuid: `GPU-${index}`, model: "x", memoryMb }))
  const busy = headroom({ ...MACHINE, gpus }, [
    { requirements: { cpu: 1, memoryMb: 1, storageGb: 1 }, gpuUuids: ["GPU-1"] },
  ])
  expect(busy.gpus.map((gpu) => gpu.uuid)).toEqual(["GPU-0", "GPU-2"])
  expect(chooseGpus(gpus, { gpuCount: 1, gpuMemoryMb: 40_000 })?.map((gpu) => gpu.uuid)).toEqual(["GPU-2"])
  expect(chooseGpus(gpus, { gpuCount: 3, gpuMemoryMb: 40_000 })).toBeNull()
})
