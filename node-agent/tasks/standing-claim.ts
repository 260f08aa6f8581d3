import { MOST_WARM, type StandingClaim, type ToCoordinator } from "../../protocol/wire/control.ts"

/** What this node lends, as the coordinator last heard it: said after every welcome and on every change, never polled. */
export interface StandingClaimKeeper {
  /** Something it is made of may have changed. Many calls of one turn lead to one look. */
  changed(): void
  /** A new connection knows nothing yet. */
  welcome(): void
}

export function keepStandingClaim(parts: {
  /** The warm revisions that were used last stand first: of too many the others are left out. */
  current: () => Omit<StandingClaim, "type">
  send: (message: ToCoordinator) => void
}): StandingClaimKeeper {
  let said = ""
  let looking = false

  function say(): void {
    const current = parts.current()
    const claim: StandingClaim = { type: "claim", ...current, warm: current.warm.slice(0, MOST_WARM) }
    const text = JSON.stringify(claim)
    if (text === said) return
    said = text
    parts.send(claim)
  }

  return {
    changed() {
      if (looking || said === "") return
      looking = true
      setImmediate(() => {
        looking = false
        say()
      })
    },
    welcome() {
      said = ""
      say()
    },
  }
}
