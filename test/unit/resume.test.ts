import { expect, test } from "vitest"
import { resumeStateText, remainsOf } from "../../coordinator/jobs/resume.ts"
import type { CheckpointRow } from "../../coordinator/store/checkpoints.ts"
import { payloadWith } from "../../node-agent/tasks/resume.ts"
import { claimNumber } from "../../protocol/domain/ids.ts"
import { resumeText, splitCheckpoint } from "../../protocol/domain/resume.ts"

test("C-08: progress at the top, the checkpoint's line and fields above it, the checkpoint itself below its name", () => {
  const progress = '{"epoch":7,"best":1,"lr":1}'
  expect(resumeText({ progress, line: null, checkpoint: null })).toBe(progress)
  const line = '{"epoch":5,"lr":2}'
  const text = resumeText({ progress, line, checkpoint: '{"lr":3,"path":"a"}' }, "/local/a")
  expect(JSON.parse(text ?? "")).toEqual({
    epoch: 5,
    best: 1,
    lr: 3,
    path: "/local/a",
    checkpoint: { lr: 3, path: "/local/a" },
  })
  expect(resumeText({ progress: null, line: null, checkpoint: null })).toBe(null)
  expect(resumeText({ progress: "[1]", line: null, checkpoint: null })).toBe(null)
  expect(resumeText({ progress: '{"checkpoint":1}', line: null, checkpoint: null })).toBe(null)
})

test("what programs wrote is handed on as they wrote it", () => {
  const exact = '{"big":12345678901234567890,"small":1.10,"__proto__":{"x":1}}'
  expect(resumeText({ progress: exact, line: null, checkpoint: null })).toBe(exact)
  expect(payloadWith('{"a":1.0,"_resume":0}', { key: "_resume", text: exact })).toBe(`{"a":1.0,"_resume":${exact}}`)
  expect(payloadWith(Buffer.from("{}"), { key: "é", text: "1" })).toBe('{"é":1}')
})

test("CK-002: a checkpoint is an object under that name, in a line or a result", () => {
  expect(splitCheckpoint('{"a": 1, "checkpoint": {"b": 2}}')).toEqual({ checkpoint: '{"b": 2}', line: '{"a":1}' })
  for (const none of ['{"a":1}', '{"checkpoint":"x"}', '{"checkpoint":null}', '["checkpoint"]', '"checkpoint"'])
    expect(splitCheckpoint(none)).toBe(null)
})

test("architecture §5.6: where the latest cannot be gone on from, later progress is not handed on either", () => {
  const latest = row(3, { publishStatus: "failed", problem: "outside", durable: false })
  const before = row(2, {})
  const resumed = (rows: CheckpointRow[]) =>
    JSON.parse(resumeStateText(remainsOf(rows, '{"epoch":9,"late":true}')) ?? "null") as unknown
  expect(resumed([])).toEqual({ epoch: 9, late: true })
  expect(resumed([before])).toMatchObject({ epoch: 2, late: true, checkpoint: { step: 2, publish_status: null } })
  expect(resumed([latest, before])).toMatchObject({ epoch: 2, checkpoint: { step: 2 } })
  expect(resumed([latest, before])).not.toHaveProperty("late")
  expect(resumed([latest])).toBe(null)
})

function row(n: number, more: Partial<CheckpointRow>): CheckpointRow {
  return {
    seq: n,
    task: 1,
    claim: claimNumber(1),
    n,
    itemDigest: "",
    state: `{"step":${n}}`,
    line: `{"epoch":${n}}`,
    publishStatus: null,
    problem: null,
    artifact: null,
    artifactSource: null,
    ownArtifact: false,
    blob: null,
    bytes: null,
    filename: null,
    durable: true,
    at: 0,
    ...more,
  }
}
