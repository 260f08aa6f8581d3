import type { Endpoint } from "../../protocol/api/endpoint.ts"
import { FEATURES, isAvailable, type FeatureName } from "./features.ts"

/** What all documents are made from. */
export interface DocumentFacts {
  /** Of this deployment, as clients reach it; without a slash at its end. */
  readonly origin: string
  /** Every route that is served. */
  readonly rows: readonly Endpoint[]
  has(feature: FeatureName): boolean
}

export function documentFacts(origin: string, rows: readonly Endpoint[]): DocumentFacts {
  const found = new Map<FeatureName, boolean>()
  return {
    origin,
    rows,
    has(feature) {
      const known = found.get(feature) ?? isAvailable(feature, rows)
      found.set(feature, known)
      return known
    },
  }
}

/** The sentence where the feature is there, else the one that says that it is not. */
export function ifThere(facts: DocumentFacts, feature: FeatureName, text: string): string {
  return facts.has(feature) ? text : FEATURES[feature].otherwise
}

/** What marks an object whose feature is missing; nothing where it is there. */
export function missingMark(
  facts: DocumentFacts,
  feature: FeatureName,
): { available?: false; unavailable_reason?: string } {
  return facts.has(feature) ? {} : { available: false, unavailable_reason: FEATURES[feature].otherwise }
}
