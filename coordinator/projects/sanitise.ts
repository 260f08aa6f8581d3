/**
 * The end of a set-up text without what tells of our machines: node and peer ids, digests of images, private addresses, and
 * the folders of builders and agents (PR-003, X-001, X-004). Nodes clean their own paths first; this is the second net.
 */
export function sanitise(text: string, longest: number): string {
  let clean = text.length > SCANNED * longest ? text.slice(-SCANNED * longest) : text
  for (const [pattern, word] of SECRETS) clean = clean.replaceAll(pattern, word)
  return clean.length > longest ? `…${clean.slice(1 - longest)}` : clean
}

/** Replacements shorten a text, so somewhat more than will be kept is looked at. */
const SCANNED = 4

const SECRETS: readonly [RegExp, string][] = [
  [/\/(?:ip4|ip6|dns[46]?)\/[^\s"',)]+/g, "[address]"],
  [/\b12D3Koo[1-9A-HJ-NP-Za-km-z]{20,}/g, "[node]"],
  [/\bnode_[a-z0-9]{16}\b/g, "[node]"],
  [/\b(?:sha256:)?[0-9a-f]{64}\b/g, "[digest]"],
  [/\b(?:10|127)(?:\.\d{1,3}){3}(?::\d+)?\b/g, "[address]"],
  [
    /\b(?:192\.168|169\.254|172\.(?:1[6-9]|2\d|3[01])|100\.(?:6[4-9]|[7-9]\d|1[01]\d|12[0-7]))(?:\.\d{1,3}){2}(?::\d+)?\b/g,
    "[address]",
  ],
  [/(?:\/[\w.@+-]+)+\/(?:node-data|containers\/storage|overlay-containers|vfs-containers)(?:\/[\w.@+-]+)*/g, "[path]"],
  [/(?:\/[\w.@+-]+)*\/(?:buildah|computalot-)[\w.-]*(?:\/[\w.@+-]+)*/g, "[path]"],
]
