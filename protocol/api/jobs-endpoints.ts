import { z } from "zod"
import { endpoint } from "./endpoint.ts"
import {
  cancelJobBody,
  eventsQuery,
  jobEventsReply,
  jobMetricsReply,
  jobObject,
  jobOutputReply,
  jobResultsQuery,
  jobResultsReply,
  jobsQuery,
  jobsReply,
  leaseReply,
  resultsQuery,
  resultsReply,
  retryJobBody,
  submitJobBody,
  tasksQuery,
  tasksReply,
} from "./jobs.ts"

/** Administrators name an account by it; without it they see every account's jobs. */
const account = z.object({ account_id: z.string().optional() })

export const createJob = endpoint({
  id: "jobs-create",
  method: "POST",
  path: "/api/v1/jobs",
  access: "member",
  summary: "Submits a job. Its cost is held at once; unknown fields are named in warnings.",
  query: account,
  body: submitJobBody,
  reply: jobObject,
  status: 201,
  creates: true,
  replies: {
    402: { description: "the account is short: nothing was created; pay the quote and send it again" },
    404: { description: "there is no such project" },
    409: { description: "the project has no revision yet, or the capacity cannot be reserved" },
    422: { description: "a field is wrong, or not available yet" },
  },
})

export const listJobs = endpoint({
  id: "jobs-list",
  method: "GET",
  path: "/api/v1/jobs",
  access: "viewer",
  summary: "Lists your account's jobs, newest first.",
  query: z.object({ ...jobsQuery.shape, ...account.shape }),
  reply: jobsReply,
})

export const getJob = endpoint({
  id: "jobs-get",
  method: "GET",
  path: "/api/v1/jobs/:id",
  access: "viewer",
  summary: "Shows a job in full: why it waits, how far it is, and once it has ended what its results add up to.",
  query: account,
  reply: jobObject,
})

export const cancelJob = endpoint({
  id: "jobs-cancel",
  method: "PUT",
  path: "/api/v1/jobs/:id/cancel",
  access: "member",
  summary: "Cancels a job: running tasks are stopped, finished results stay. Cancelled already: the same answer again.",
  query: account,
  body: cancelJobBody,
  reply: jobObject,
  replies: { 409: { description: "the job has ended another way" } },
})

export const retryJob = endpoint({
  id: "jobs-retry",
  method: "POST",
  path: "/api/v1/jobs/:id/retry",
  access: "member",
  summary:
    "Runs tasks of a job that has ended again, inside the same job: failed ones, suspect ones, or those you name.",
  query: account,
  body: retryJobBody,
  reply: jobObject,
  creates: true,
  replies: {
    402: { description: "the account is short: nothing was changed; pay the quote and send it again" },
    409: { description: "the job has not ended, or the revision that it ran is not kept any more" },
    422: { description: "no task is selected, or an index is out of range" },
  },
})

export const getJobOutput = endpoint({
  id: "jobs-output",
  method: "GET",
  path: "/api/v1/jobs/:id/output",
  access: "viewer",
  summary: "Standard output and error of all tasks, joined in index order.",
  query: account,
  reply: jobOutputReply,
})

export const listTasks = endpoint({
  id: "jobs-tasks",
  method: "GET",
  path: "/api/v1/jobs/:id/tasks",
  access: "viewer",
  summary: "Lists a job's tasks by index, with their live words while they run.",
  query: z.object({ ...tasksQuery.shape, ...account.shape }),
  reply: tasksReply,
})

export const listJobEvents = endpoint({
  id: "jobs-events",
  method: "GET",
  path: "/api/v1/jobs/:id/events",
  access: "viewer",
  summary: "Lists what happened to a job, oldest first; after=<id> goes on behind the last one seen.",
  query: z.object({ ...eventsQuery.shape, ...account.shape }),
  reply: jobEventsReply,
})

export const getJobMetrics = endpoint({
  id: "jobs-metrics",
  method: "GET",
  path: "/api/v1/jobs/:id/metrics",
  access: "viewer",
  summary: "Counts, durations and cost of a job.",
  query: account,
  reply: jobMetricsReply,
})

export const streamJob = endpoint({
  id: "jobs-stream",
  method: "GET",
  path: "/api/v1/jobs/:id/stream",
  access: "viewer",
  summary: "Server-sent events of one job: snapshot, job, task, event, ping, done. Last-Event-ID resumes.",
  query: account,
  stream: "events",
  replies: { 204: { description: "Last-Event-ID is the one of done: nothing more will come" } },
})

export const watchJobs = endpoint({
  id: "jobs-watch",
  method: "GET",
  path: "/api/v1/jobs/watch",
  access: "viewer",
  summary:
    "Server-sent events of up to 100 jobs: snapshot, job, ping, and done once all have ended. Last-Event-ID resumes.",
  // Checked by hand: the ids are merged before they are counted.
  query: z.object({ ids: z.string().optional(), ...account.shape }),
  stream: "events",
  replies: {
    204: { description: "Last-Event-ID is the one of done: nothing more will come" },
    404: { description: "jobs that do not exist, or are another account's; details names them" },
  },
})

export const getJobResults = endpoint({
  id: "results-get",
  method: "GET",
  path: "/api/v1/results/:job_id",
  access: "viewer",
  summary: "A job's results, also while it runs: what they add up to, and a row for each task that has ended.",
  query: z.object({ ...jobResultsQuery.shape, ...account.shape }),
  reply: jobResultsReply,
})

export const listResults = endpoint({
  id: "results-list",
  method: "GET",
  path: "/api/v1/results",
  access: "viewer",
  summary: "Lists jobs that have ended, newest first, each with what its results add up to.",
  query: z.object({ ...resultsQuery.shape, ...account.shape }),
  reply: resultsReply,
})

export const getLease = endpoint({
  id: "leases",
  method: "GET",
  path: "/api/v1/leases/:job_id",
  access: "viewer",
  summary: "How many of a job's tasks are done, and the capacity that is reserved for it.",
  query: account,
  reply: leaseReply,
})

export const jobEndpoints = [
  createJob,
  listJobs,
  getJob,
  cancelJob,
  retryJob,
  getJobOutput,
  listTasks,
  listJobEvents,
  getJobMetrics,
  streamJob,
  watchJobs,
  getJobResults,
  listResults,
  getLease,
] as const
