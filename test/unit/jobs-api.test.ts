import { expect, test } from "vitest"
import {
  eventsQuery,
  jobEvent,
  jobListRow,
  jobObject,
  jobResultsReply,
  jobsQuery,
  resultRow,
  resultsQuery,
  taskRow,
  tasksQuery,
} from "../../protocol/api/jobs.ts"

/** Field names of the contract's endpoint list. */
function expectFields(schema: { shape: object }, names: string): void {
  expect(Object.keys(schema.shape)).toEqual(expect.arrayContaining(names.split(" ")))
}

test("J-001, J-030, GAP-26: the job object has every documented field", () => {
  expectFields(
    jobObject,
    "id status type project requirements reservation checkpointing feedback_summary summary error recommended_action payload meta variant request output tags priority depends_on timeout_s max_retries callback_url execution_policy placement_policy reliability_mode client_ref progress user_id created_at started_at completed_at project_content_hash",
  )
})

test("J-028: a list row carries what is documented and omits what is not", () => {
  expectFields(jobListRow, "payload user_id has_error has_output error_snippet")
  for (const absent of ["request", "output", "summary", "error"])
    expect(Object.keys(jobListRow.shape)).not.toContain(absent)
})

test("J-034, GAP-27: the task row has every documented field", () => {
  expectFields(
    taskRow,
    "task_id index attempt max_attempts status payload result_present output_present output error result result_quality result_warnings live_feedback latest_progress checkpoint resume_state runtime_s stale_for_s health_status started_at completed_at artifact_ids",
  )
})

test("RS-001, RS-002: results have every documented field", () => {
  expectFields(
    jobResultsReply,
    "job_id project status client_ref tags meta variant artifact_ids links summary aggregate_result aggregate_aliases completeness result_persisted output_persisted results count result_count output_count",
  )
  expectFields(
    resultRow,
    "task_id status payload result artifact_ids result_artifact_id result_present result_quality result_warnings output output_present error project_content_hash started_at completed_at",
  )
})

test("GAP-29: events name their kind out of a closed list", () => {
  const event = { id: 1, job_id: "job_1", message: "m", data: {}, inserted_at: "2026-01-01T00:00:00.000Z" }
  expect(jobEvent.safeParse({ ...event, type: "task.started" }).success).toBe(true)
  expect(jobEvent.safeParse({ ...event, type: "task.exploded" }).success).toBe(false)
})

test("GAP-57, RS-010: limits above the largest are cut, malformed ones refused", () => {
  expect(jobsQuery.parse({})).toEqual({ limit: 50, offset: 0 })
  expect(jobsQuery.parse({ limit: "501", offset: "7", status: "failed" })).toEqual({
    limit: 500,
    offset: 7,
    status: "failed",
  })
  expect(resultsQuery.parse({ limit: "101" })).toMatchObject({ limit: 100, offset: 0 })
  expect(tasksQuery.parse({})).toEqual({ limit: 1000, offset: 0 })
  expect(eventsQuery.parse({ limit: "5000", after: "12" })).toEqual({ limit: 1000, after: 12 })
  expect(eventsQuery.parse({}).limit).toBe(200)
  for (const limit of ["x", "0", "-1", "1.5", ""]) expect(resultsQuery.safeParse({ limit }).success).toBe(false)
  expect(resultsQuery.safeParse({ offset: "-1" }).success).toBe(false)
})

test("unknown values of filters are refused", () => {
  for (const query of [{ status: "done" }, { type: "x" }]) expect(jobsQuery.safeParse(query).success).toBe(false)
  for (const query of [{ group_by: "colour" }, { status: "running" }, { include_tasks: "maybe" }]) {
    expect(resultsQuery.safeParse(query).success).toBe(false)
  }
  expect(tasksQuery.safeParse({ status: "planning" }).success).toBe(false)
})
