import type { Clock } from "../../protocol/base/clock.ts"
import { claimNumber, digest, type ClaimNumber, type NodeId } from "../../protocol/domain/ids.ts"
import type { Members } from "../fleet/members.ts"
import { stageBlob } from "../store/blobs.ts"
import type { Store, View } from "../store/store.ts"
import { attemptByClaim } from "../store/tasks.ts"
import type { Builds } from "./builds.ts"

/** Claims of attempts and of builds that may still upload. */
export interface LiveClaims {
  /** As memory knows it. */
  isLive(claim: number, node: NodeId): boolean
  /** Keeps uploaded bytes until their report, if the claim is still live in the write. False: it is spent. */
  stage(node: NodeId, blob: { claim: number; digest: string; size: number }): Promise<boolean>
  /** Those that are live, and live builds beside them. */
  among(view: View, claims: ClaimNumber[]): Promise<ReadonlySet<ClaimNumber>>
}

export interface LiveClaimsParts {
  store: Store
  clock: Clock
  members: Members
  builds: Pick<Builds, "isLive" | "liveClaims">
}

export function createLiveClaims({ store, clock, members, builds }: LiveClaimsParts): LiveClaims {
  return {
    isLive: (claim, node) => builds.isLive(claim, node) || members.attempt(claim)?.node === node,
    async stage(node, blob) {
      const claim = claimNumber(blob.claim)
      const isBuild = builds.isLive(blob.claim, node)
      const at = clock.now()
      return await store.write(async (tx) => {
        const attempt = isBuild ? null : await attemptByClaim(tx, claim)
        if (!isBuild && (attempt?.node !== node || attempt.endedAt !== null)) return false
        await stageBlob(tx, { claim, digest: digest(blob.digest), size: blob.size, at })
        return true
      })
    },
    async among(view, claims) {
      const live = new Set(builds.liveClaims())
      for (const claim of claims) if ((await attemptByClaim(view, claim))?.endedAt === null) live.add(claim)
      return live
    },
  }
}
