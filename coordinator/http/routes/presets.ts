import { listPresets } from "../../../protocol/api/presets.ts"
import { PRESETS } from "../../jobs/presets.ts"
import { mount, type HttpApp } from "../app.ts"

/** GET /presets (PS-001). */
export function mountPresets(app: Pick<HttpApp, "add">): void {
  mount(app, listPresets, async () => ({ presets: [...PRESETS], count: PRESETS.length }))
}
