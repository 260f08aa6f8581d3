/** How to find results (D-027); GET /api/v1/results has the same block. */
export const RESULT_GUIDE = {
  canonical_lookup: "job_id is the identifier. GET /api/v1/results/:job_id has the rows of one job.",
  search:
    "GET /api/v1/results finds jobs that ended, by job_id, ids, project, client_ref, tag, type, status, user_id and recipe_cache_*.",
  live_updates:
    "GET /api/v1/jobs/:id/stream follows one job, GET /api/v1/jobs/watch?ids=id1,id2 several, GET /api/v1/projects/:name/stream a project.",
  identifiers: {
    job_id: "names a job in /api/v1/jobs/:id and /api/v1/results/:job_id",
    tags: "labels to search by: /api/v1/results?tag=...",
    client_ref: "your own label to search by; it identifies nothing",
    artifact_id: "names a file: GET /api/v1/artifacts/:id",
  },
}
