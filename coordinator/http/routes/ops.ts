import { getHealth, getLive, getReady } from "../../../protocol/api/ops.ts"
import { mount, type HttpApp } from "../app.ts"
import { RETRY_AFTER_S } from "../errors.ts"
import { Reply } from "../reply.ts"

/** `/health`, `/live` and `/ready`: they answer while everything else is still starting (O-001…O-003). */
export function mountOps(app: HttpApp): void {
  const alive = { status: "ok", app: "computalot_api" } as const
  mount(app, getHealth, async () => alive)
  mount(app, getLive, async () => alive)
  mount(app, getReady, async () => {
    const readiness = await app.readiness()
    return readiness.status === "ready"
      ? readiness
      : new Reply(503, readiness, { "retry-after": String(RETRY_AFTER_S) })
  })
}
