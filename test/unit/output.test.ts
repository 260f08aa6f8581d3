import fc from "fast-check"
import { expect, test } from "vitest"
import { createOutput } from "../../node-agent/tasks/output.ts"
import { OUTPUT_TAIL_BYTES } from "../../protocol/domain/runner.ts"

function collect(paths: { host: string; shown: string }[] = []) {
  const progress: string[] = []
  const output = createOutput({ onProgress: (json) => progress.push(json), paths })
  const out = (text: string): void => output.take("stdout", Buffer.from(text))
  const err = (text: string): void => output.take("stderr", Buffer.from(text))
  return { output, progress, out, err }
}

test("RP-007, GAP-46: progress lines at line start are taken out of the output, also without a last newline", () => {
  const { output, progress, out } = collect()
  out(
    'one\nCOMPUTALOT_PROGRESS:{"percent":1}\ntwo COMPUTALOT_PROGRESS:{"percent":2}\nCOMPUTALOT_PROGRESS: {"percent":3}',
  )
  output.end()
  expect(progress).toEqual(['{"percent":1}', '{"percent":3}'])
  expect(output.tail()).toBe('one\ntwo COMPUTALOT_PROGRESS:{"percent":2}\n')
})

test("GAP-46: a progress line that is no JSON, too long or on standard error stays ordinary output", () => {
  const { output, progress, out, err } = collect()
  out("COMPUTALOT_PROGRESS:{nope}\n")
  err('COMPUTALOT_PROGRESS:{"percent":5}\n')
  expect(output.tail()).toBe('COMPUTALOT_PROGRESS:{nope}\nCOMPUTALOT_PROGRESS:{"percent":5}\n')
  out(`COMPUTALOT_PROGRESS:"${"x".repeat(70_000)}"\n`)
  out("after\n")
  output.end()
  expect(progress).toEqual([])
  expect(output.tail().endsWith('x"\nafter\n')).toBe(true)
})

test("however the output is cut into chunks, the same progress and the same output come out", () => {
  const line = fc.constantFrom(
    "plain",
    "",
    "COMPUTALOT_",
    'COMPUTALOT_PROGRESS:{"a":1}',
    "COMPUTALOT_PROGRESS:{",
    "x COMPUTALOT_PROGRESS:1",
  )
  fc.assert(
    fc.property(
      fc.array(line, { maxLength: 12 }),
      fc.array(fc.integer({ min: 1, max: 30 }), { maxLength: 30 }),
      (lines, cuts) => {
        const text = lines.join("\n")
        const whole = collect()
        whole.out(text)
        whole.output.end()
        const parts = collect()
        let rest = text
        for (const cut of cuts) {
          parts.out(rest.slice(0, cut))
          rest = rest.slice(cut)
        }
        parts.out(rest)
        parts.output.end()
        expect(parts.progress).toEqual(whole.progress)
        expect(parts.output.tail()).toBe(whole.output.tail())
        const ordinary = lines.filter((one) => one !== 'COMPUTALOT_PROGRESS:{"a":1}')
        expect(whole.progress.length).toBe(lines.length - ordinary.length)
      },
    ),
  )
})

test("GAP-28: only the end is kept, with a marker that says how much there was", () => {
  const { output, out } = collect()
  for (let i = 0; i < 4000; i++) out(`line ${i} ${"é".repeat(20)}\n`)
  output.end()
  const tail = output.tail()
  expect(Buffer.byteLength(tail)).toBeLessThanOrEqual(OUTPUT_TAIL_BYTES)
  expect(tail).toMatch(/^\[cut: only the end of \d+ bytes is kept\]\n/)
  expect(tail.endsWith(`line 3999 ${"é".repeat(20)}\n`)).toBe(true)
  expect(tail).not.toContain("\ufffd")
})

test("bytes that were lost before a chunk count as printed and break no line into progress", () => {
  const { output, progress } = collect()
  output.take("stdout", Buffer.from("start\n"))
  output.take("stdout", Buffer.from('COMPUTALOT_PROGRESS:{"a":1}\nend\n'), 5_000_000)
  output.end()
  expect(progress).toEqual([])
  expect(output.tail()).toContain("only the end of")
})

test("rulings, Redaction: the attempt's folder is shown as the workdir", () => {
  const { output, err } = collect([
    { host: "/data/attempts/c1/disk/work", shown: "/workspace" },
    { host: "/data/attempts/c1", shown: "/workspace" },
  ])
  err('File "/data/attempts/c1/disk/work/job.py", line 1\nopen /data/attempts/c1/disk/scratch\n')
  expect(output.errorTail()).toBe('File "/workspace/job.py", line 1\nopen /workspace/disk/scratch\n')
  expect(output.tail()).toBe(output.errorTail())
})
