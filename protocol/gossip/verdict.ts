/** What a validator says of a gossip message. */
export type Verdict =
  | { verdict: "accept" }
  /** Stale, seen, or not for us: not relayed, and no fault of the sender. */
  | { verdict: "ignore"; reason: string }
  /** Malformed, forged, too large or not allowed: the sender's score falls. */
  | { verdict: "reject"; reason: string }

export type Refused = Exclude<Verdict, { verdict: "accept" }>

export const accept: Verdict = { verdict: "accept" }
export const ignore = (reason: string): Refused => ({ verdict: "ignore", reason })
export const reject = (reason: string): Refused => ({ verdict: "reject", reason })
