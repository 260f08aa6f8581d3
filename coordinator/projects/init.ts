import { ComputalotError } from "../../protocol/domain/errors.ts"
import { newQuoteId, type AccountId, type QuoteId } from "../../protocol/domain/ids.ts"
import { quoteShortfall } from "../billing/quotes.ts"
import { INIT_FLOOR, insufficientFunds, missingFunds } from "../billing/shortfall.ts"
import { deleteDiagnostics, deleteFailedReplicas, putInitRequest, type Project } from "../store/projects.ts"
import type { Tx } from "../store/store.ts"
import { requireProject, type ProjectParts } from "./project.ts"
import { retryFailedBuild } from "./record.ts"
import { lookUpStatus, type ProjectStatus } from "./status.ts"

export interface InitParts extends ProjectParts {
  /** How long a quote over a shortfall stays open. */
  quoteTtlMs: number
}

export interface InitOrder {
  /** At most so many workers; all that are there when null (P-026). */
  maxNodes: number | null
  /** The quote that this very request was given before. */
  earlierQuote: QuoteId | null
}

/**
 * Asks for workers to be prepared ahead of jobs; answers at once (P-024). Free, but refused with `insufficient_funds` and a
 * stored quote below $5 available (B-022), and with `no_revision` before the first push. What failed is tried again. With
 * enough workers ready nothing happens; a second call asks for the same again.
 */
export async function initProject(
  parts: InitParts,
  account: AccountId | null,
  name: string,
  order: InitOrder,
  also?: (tx: Tx, status: ProjectStatus) => Promise<void>,
): Promise<ProjectStatus> {
  const at = parts.clock.now()
  const fleet = parts.fleet()
  const quoteId = newQuoteId(parts.random)
  const outcome = await parts.store.write(async (tx) => {
    const project = await requireProject(tx, account, name)
    const { activeRevision } = project
    if (activeRevision === null) throw nothingPushed(project)
    const shortfall = await missingFunds(tx, project.account, INIT_FLOOR)
    if (shortfall !== null) {
      // Not a throw: the quote is to stand.
      const expiresAt = at + parts.quoteTtlMs
      const description = `Init of the project ${name} needs $5 available`
      const wanted = { id: quoteId, account: project.account, amount: shortfall.missing, description, at, expiresAt }
      return { kind: "short", shortfall, quote: await quoteShortfall(tx, wanted, order.earlierQuote) } as const
    }
    const before = await lookUpStatus(tx, project, fleet, at)
    const enough = Math.min(order.maxNodes ?? fleet.workers, fleet.workers)
    if (before.readiness.counts.ready === 0 || before.readiness.counts.ready < enough) {
      await retryFailedBuild(tx, activeRevision, at)
      await deleteFailedReplicas(tx, project.id)
      if (before.readiness.latestFailureAt !== null) await deleteDiagnostics(tx, project.id)
      const endsAt = at + project.setupTimeoutSeconds * 1000
      const { maxNodes } = order
      await putInitRequest(tx, {
        project: project.id,
        revision: activeRevision,
        kind: "init",
        maxNodes,
        requestedAt: at,
        endsAt,
      })
    }
    const status = await lookUpStatus(tx, project, fleet, at)
    await also?.(tx, status)
    return { kind: "asked", status } as const
  })
  if (outcome.kind === "short") throw insufficientFunds(outcome.shortfall, outcome.quote, at)
  parts.changed()
  return outcome.status
}

export function nothingPushed(project: Project): ComputalotError {
  const next = `Push a tar.gz of the project to POST /api/v1/projects/${project.name}/push.`
  return new ComputalotError("no_revision", `nothing has been pushed to ${project.name} yet`, {
    recommendedAction: next,
    body: { next_action: next },
  })
}
