import type { ServerResponse } from "node:http"
import { pipeline } from "node:stream/promises"
import {
  deleteArtifact,
  downloadArtifact,
  getArtifactMeta,
  listArtifacts,
  uploadArtifact,
  type ArtifactMeta,
} from "../../../protocol/api/artifacts.ts"
import { timestampText } from "../../../protocol/api/common.ts"
import { ComputalotError } from "../../../protocol/domain/errors.ts"
import { artifactId, jobId, type JobId } from "../../../protocol/domain/ids.ts"
import { contentDisposition, filenameFromHeader } from "../../artifacts/filename.ts"
import { listOwnArtifacts } from "../../artifacts/list.ts"
import { getArtifact, getLocalArtifact, openArtifact, parseRange } from "../../artifacts/open.ts"
import { checkUpload, putArtifact, type ArtifactParts } from "../../artifacts/put.ts"
import { removeArtifact } from "../../artifacts/retention.ts"
import type { Artifact, LocalArtifact } from "../../store/artifacts.ts"
import { mount, type HttpApp, type HttpRequest } from "../app.ts"
import { namesEtag } from "../etag.ts"
import { scopeOf } from "../scope.ts"

export interface ArtifactRouteParts extends ArtifactParts {
  /** The origin that clients know (`https://…`, no slash at the end). */
  origin: () => string
}

/** Upload, list, download, meta and delete (AR-001…AR-005, AR-015…AR-021). */
export function mountArtifacts(app: Pick<HttpApp, "add">, parts: ArtifactRouteParts): void {
  mount(
    app,
    uploadArtifact,
    async (request) => {
      const account = request.account()
      const upload = {
        account,
        filename: filenameFromHeader(headerOf(request, "x-artifact-filename")),
        contentType: contentTypeOf(headerOf(request, "content-type")),
        job: jobNamedBy(request),
      }
      const reply = (artifact: LocalArtifact) => ({
        id: artifact.id,
        sha256: artifact.digest,
        size: artifact.size,
        source: artifact.source,
      })
      // The body knows itself when its client leaves; without a signal a stop of the coordinator lets uploads finish.
      const artifact = await putArtifact(parts, upload, request.openBody(), {
        also: request.idempotency.remember((made) => ({ status: 201, body: reply(made) })),
      })
      return reply(artifact)
    },
    { before: (request) => checkUpload(parts, request.account(), jobNamedBy(request)) },
  )

  mount(app, listArtifacts, async (request) => {
    const { limit, offset, job_id, source } = request.query
    const filter = {
      account: request.account(),
      limit,
      offset,
      ...(job_id !== undefined && { job: jobId(job_id) }),
      ...(source !== undefined && { source }),
    }
    const artifacts = await listOwnArtifacts(parts, filter)
    return { artifacts: artifacts.map((artifact) => metaOf(artifact, parts)), count: artifacts.length, limit, offset }
  })

  mount(app, getArtifactMeta, async (request) =>
    metaOf(await getArtifact(parts, artifactId(request.params.id), scopeOf(request)), parts),
  )

  mount(app, downloadArtifact, async (request) => {
    const artifact = await getLocalArtifact(parts, artifactId(request.params.id), scopeOf(request))
    await sendBytes(parts, artifact, request)
  })

  mount(app, deleteArtifact, async (request) => {
    const artifact = await getArtifact(parts, artifactId(request.params.id), scopeOf(request))
    await removeArtifact(parts, artifact.id)
    return { status: "deleted" as const, id: artifact.id }
  })
}

async function sendBytes(
  parts: ArtifactRouteParts,
  artifact: LocalArtifact,
  request: Pick<HttpRequest, "headers" | "method" | "response" | "signal">,
): Promise<void> {
  const { response } = request
  const etag = `"${artifact.digest}"`
  const headers = {
    "accept-ranges": "bytes",
    etag,
    "cache-control": "private, no-cache",
    "content-disposition": contentDisposition(artifact.filename),
    "content-type": artifact.contentType,
    // A stranger's file is for saving: a browser shall neither guess what it is nor run it on our origin.
    "x-content-type-options": "nosniff",
    "content-security-policy": "sandbox; default-src 'none'",
  }
  if (namesEtag(request.headers["if-none-match"], etag)) return void response.writeHead(304, headers).end()

  const condition = request.headers["if-range"]
  const asked = condition === undefined || condition === etag ? request.headers.range : undefined
  const range = parseRange(asked, artifact.size)
  if (range === "unsatisfiable") {
    throw new ComputalotError("range_not_satisfiable", `the artifact has ${artifact.size} bytes`, {
      recommendedAction: "Ask for a range inside it.",
      headers: { "content-range": `bytes */${artifact.size}` },
    })
  }
  const length = range === null ? artifact.size : range.end - range.start + 1
  const partly = range === null ? {} : { "content-range": `bytes ${range.start}-${range.end}/${artifact.size}` }
  const open =
    request.method === "HEAD" || length === 0 ? null : await openArtifact(parts, artifact, range ?? undefined)
  response.writeHead(range === null ? 200 : 206, { ...headers, ...partly, "content-length": length })
  if (open === null) return void response.end()
  await streamTo(response, open, request.signal())
}

/** The status line is out: from here on a failure can only end the connection, which is what tells the client. */
async function streamTo(response: ServerResponse, bytes: NodeJS.ReadableStream, signal: AbortSignal): Promise<void> {
  try {
    await pipeline(bytes, response, { signal })
  } catch {
    response.destroy()
  }
}

function metaOf(artifact: Artifact, parts: ArtifactRouteParts): ArtifactMeta {
  return {
    id: artifact.id,
    sha256: artifact.digest,
    size: artifact.size,
    filename: artifact.filename,
    name: artifact.name,
    content_type: artifact.contentType,
    source: artifact.source,
    job_id: artifact.job,
    task_id: artifact.task,
    created_at: timestampText(artifact.createdAt),
    expires_at: timestampText(artifact.expiresAt),
    url: `${parts.origin()}/api/v1/artifacts/${artifact.id}`,
  }
}

function jobNamedBy(request: Pick<HttpRequest, "headers">): JobId | null {
  const header = headerOf(request, "x-artifact-job-id")
  return header === undefined || header === "" ? null : jobId(header)
}

function headerOf(request: Pick<HttpRequest, "headers">, name: string): string | undefined {
  const value = request.headers[name]
  return Array.isArray(value) ? value[0] : value
}

/** curl labels every `--data-binary` a form; that says nothing about the bytes. */
function contentTypeOf(header: string | undefined): string {
  const type = header?.trim() ?? ""
  const isUsable = /^[\w!#$&^.+-]+\/[\w!#$&^.+-]+(;[\x20-\x7e]*)?$/.test(type) && type.length <= 255
  return isUsable && !type.startsWith("application/x-www-form-urlencoded") ? type : "application/octet-stream"
}
