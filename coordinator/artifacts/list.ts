import { listArtifacts, type Artifact, type ArtifactFilter } from "../store/artifacts.ts"
import type { ArtifactParts } from "./put.ts"

/** The account's artifacts, newest first, those of its jobs included (AR-015). */
export function listOwnArtifacts(parts: ArtifactParts, filter: ArtifactFilter): Promise<Artifact[]> {
  const at = parts.clock.now()
  return parts.store.read((view) => listArtifacts(view, filter, at))
}
