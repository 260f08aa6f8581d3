import { getStorage } from "../../../protocol/api/admin.ts"
import { inspectBlobs, type BlobInspection } from "../../artifacts/inspect-blobs.ts"
import type { ObjectFiles } from "../../artifacts/object-files.ts"
import type { Store } from "../../store/store.ts"
import { mount, type HttpApp } from "../app.ts"

/** What of the stored bytes is at fault, for the operator. */
export function mountStorage(app: Pick<HttpApp, "add">, parts: { store: Store; files: ObjectFiles }): void {
  mount(app, getStorage, async () => {
    const { needed, missing, missingCount, damaged } = await inspectBlobs(parts)
    return {
      ok: missingCount === 0 && damaged.length === 0,
      blobs: needed,
      missing: missing.map(onWire),
      missing_count: missingCount,
      damaged: damaged.map((blob) => ({ ...onWire(blob), problem: blob.problem })),
    }
  })
}

function onWire({ digest, neededBy }: BlobInspection["missing"][number]) {
  return { sha256: digest, needed_by: { kind: neededBy.kind, id: neededBy.owner } }
}
