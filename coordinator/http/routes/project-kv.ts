import * as api from "../../../protocol/api/project-kv.ts"
import { timestampText } from "../../../protocol/api/common.ts"
import { JsonText } from "../../../protocol/base/json-text.ts"
import { checkProject, type ProjectParts } from "../../projects/project.ts"
import {
  deleteSharedValue,
  getSharedValue,
  listSharedValues,
  putSharedValue,
  stateProject,
} from "../../projects/shared-state.ts"
import { mount, type HttpApp } from "../app.ts"
import { JsonPieces, objectWithRows, Reply } from "../reply.ts"
import { scopeOf } from "../scope.ts"

/** A project's shared state (KV-001 … KV-006): owner only, viewers read. */
export function mountProjectKv(app: Pick<HttpApp, "add">, parts: ProjectParts): void {
  mount(app, api.listProjectKv, async (request) => {
    const { prefix, after, limit } = request.query
    const project = await stateProject(parts, scopeOf(request), request.params.name)
    const rows = shown(listSharedValues(parts, project.id, { prefix, after, limit }))
    const rest = (count: number) => ({ project: project.name, prefix, count })
    return new Reply(200, new JsonPieces(objectWithRows("entries", rows, rest)))
  })

  mount(
    app,
    api.putProjectKv,
    async (request) => {
      const { name, key } = request.params
      const { value, ttl_s: ttlSeconds = null } = request.body
      const entry = await putSharedValue(parts, scopeOf(request), name, { key, value, ttlSeconds })
      return { project: name, ...entryBody(entry) }
    },
    { before: (request) => checkProject(parts, scopeOf(request), request.params.name) },
  )

  mount(app, api.getProjectKv, async (request) => {
    const { name, key } = request.params
    return { project: name, ...entryBody(await getSharedValue(parts, scopeOf(request), name, key)) }
  })

  mount(app, api.deleteProjectKv, async (request) => {
    const { name, key } = request.params
    await deleteSharedValue(parts, scopeOf(request), name, key)
    return { status: "deleted" as const, project: name, key }
  })
}

type Entry = Awaited<ReturnType<typeof getSharedValue>>

async function* shown(entries: AsyncIterable<Entry>) {
  for await (const entry of entries) yield entryBody(entry)
}

function entryBody(entry: Entry): Omit<api.KvEntryBody, "project"> {
  return {
    key: entry.key,
    value: new JsonText(entry.value),
    updated_at: timestampText(entry.updatedAt),
    ...(entry.ttlSeconds !== null && { ttl_s: entry.ttlSeconds }),
    expires_at: timestampText(entry.expiresAt),
    meta: {
      ...(entry.account !== null && { account: entry.account }),
      ...(entry.job !== null && { job_id: entry.job }),
    },
  }
}
