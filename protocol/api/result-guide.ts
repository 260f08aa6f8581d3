/** How to find results, in words: in the list of results, and in the index of the documents (D-027). */
export const RESULT_GUIDE = {
  search:
    "GET /api/v1/results lists jobs that have ended. Narrow it by job_id, ids, project, client_ref, tag, type, status, user_id and recipe_cache_*; group_by counts all matches.",
  canonical_lookup:
    "job_id is the one identifier of a result: GET /api/v1/results/:job_id has a row for each task that has ended, also while the job runs.",
  live_updates:
    "GET /api/v1/jobs/:id/stream follows one job, GET /api/v1/jobs/watch?ids=id1,id2 several, GET /api/v1/projects/:name/stream all of a project.",
  identifiers: {
    job_id: "Identifies a job, in /jobs/:id and in /results/:job_id.",
    tags: "Labels to search by, no identifiers: /results?tag=…",
    client_ref: "Your own label, to search and group by; it identifies no result.",
    artifact_id: "Identifies a file: GET /api/v1/artifacts/:id gives its bytes.",
  },
} as const
