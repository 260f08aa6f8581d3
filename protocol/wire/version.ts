/**
 * The mesh protocol's versions. Peers tell one another the range they speak in the first exchange (`/computalot/hello/1`,
 * which never changes its name) and use the highest both know.
 *
 * Version history: 1 the first.
 */
export const PROTOCOL_VERSION = 1
/** The oldest version this program still speaks. */
const OLDEST_PROTOCOL_VERSION = 1

export interface VersionRange {
  oldest: number
  newest: number
}

export const SPOKEN_VERSIONS: VersionRange = { oldest: OLDEST_PROTOCOL_VERSION, newest: PROTOCOL_VERSION }

/** The highest version both speak, or null when there is none. */
export function agreeOnVersion(ours: VersionRange, theirs: VersionRange): number | null {
  const highest = Math.min(ours.newest, theirs.newest)
  return highest >= Math.max(ours.oldest, theirs.oldest) ? highest : null
}
