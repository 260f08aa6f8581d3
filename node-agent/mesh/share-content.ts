import { serveContent, type ServeContentParts } from "../../protocol/mesh/serve-content.ts"
import type { Mesh } from "../../protocol/mesh/mesh.ts"
import type { Blobs } from "../cache/blobs.ts"

/** Serves this node's cache to members with a grant, also the pieces of blobs that it still downloads. Ends with the mesh. */
export function shareContent(mesh: Mesh, blobs: Blobs, parts: Omit<ServeContentParts, "limits">): void {
  serveContent(mesh, blobs, {
    ...parts,
    // A node works for its tasks first: sharing may take about one core and a few pieces of memory.
    limits: { streams: 64, sends: 4, copiesPerBlob: null },
  })
}
