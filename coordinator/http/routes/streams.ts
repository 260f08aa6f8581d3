import { streamJob, watchJobs } from "../../../protocol/api/jobs-endpoints.ts"
import { streamProject } from "../../../protocol/api/projects.ts"
import { jobId } from "../../../protocol/domain/ids.ts"
import { findJobPlaces } from "../../jobs/read/followed.ts"
import { readJob } from "../../jobs/read/read-job.ts"
import { accountsWithProject } from "../../projects/project.ts"
import { mount, type HttpApp } from "../app.ts"
import { createJobFeed } from "../job-feed.ts"
import { serveJobStream, type JobStreamParts } from "../job-stream.ts"
import { serveJobsWatch, watchedIds } from "../jobs-watch.ts"
import { serveProjectStream } from "../project-stream.ts"
import { scopeOf } from "../scope.ts"
import { createSharedSnapshots } from "../shared-snapshots.ts"
import { createSharedWork } from "../shared-work.ts"
import { createSnapshotTurns } from "../snapshot-turns.ts"

export type StreamRouteParts = Omit<JobStreamParts, "shared" | "snapshots" | "snapshotTurns">

/** Live frames of one job, of up to a hundred, and of a project (ST-*). */
export function mountStreams(app: Pick<HttpApp, "add">, given: StreamRouteParts): void {
  const snapshotTurns = createSnapshotTurns(given.clock)
  const snapshots = createSharedSnapshots(given.clock, given.watch)
  const parts = { ...given, shared: createSharedWork(), feed: createJobFeed(given), snapshots, snapshotTurns }

  mount(app, streamJob, async (request) => {
    const { head } = await readJob(parts, jobId(request.params.id), scopeOf(request))
    await serveJobStream(parts, head.seq, request)
  })

  mount(app, watchJobs, async (request) => {
    const jobs = await findJobPlaces(parts, watchedIds(request.query.ids), scopeOf(request))
    await serveJobsWatch(parts, jobs, request)
  })

  mount(app, streamProject, async (request) => {
    const { name } = request.params
    const account = scopeOf(request)
    const accounts = await accountsWithProject(parts.store, account, name)
    await serveProjectStream(parts, { name, account, accounts }, request)
  })
}
