/** What both ends of a protocol agree on before the first frame. */
export interface StreamProtocol {
  /** `/computalot/control/1`. */
  name: string
  /** Longer frames end the stream, before they are read. */
  largestFrameBytes: number
  /** Streams of this protocol one peer may hold open at once; the next is reset. */
  streamsPerPeer: number
  /** Unsent bytes at which `send` waits, and at twice which the stream is reset: a slow peer costs bounded memory. */
  unsentBytes: number
  /** May peers without a valid certificate use it? Only the certificate exchange itself says yes. */
  beforeAdmission?: boolean
}
