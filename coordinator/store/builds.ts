import {
  claimNumber,
  nodeId,
  revisionId,
  type ClaimNumber,
  type NodeId,
  type RevisionId,
} from "../../protocol/domain/ids.ts"
import type { View } from "./store.ts"

export interface BuildUnderWay {
  revision: RevisionId
  builder: NodeId
  claim: ClaimNumber
  /** The start of the builder's agent that said hello last. */
  bootId: string
}

/** Builds that were handed out and have not ended. */
export async function buildsUnderWay(view: View): Promise<BuildUnderWay[]> {
  const rows = await view.all<{ id: string; builder: string; build_claim: number; facts: string }>(
    `SELECT r.id, r.builder, r.build_claim, n.facts FROM revisions r JOIN nodes n ON n.id = r.builder
     WHERE r.build = 'building' AND r.build_claim IS NOT NULL AND n.facts IS NOT NULL`,
  )
  return rows.map(({ id, builder, build_claim, facts }) => ({
    revision: revisionId(id),
    builder: nodeId(builder),
    claim: claimNumber(build_claim),
    bootId: (JSON.parse(facts) as { boot_id: string }).boot_id,
  }))
}
