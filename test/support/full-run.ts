import { configureGlobal } from "fast-check"

/** `scripts/test --full`: ten times the usual 100 cases, for properties that name no number of their own. */
configureGlobal({ numRuns: 1_000 })
