/**
 * The normalised tree of one pushed tarball: what counts of it is names, the executable bit and bytes. Owners, times and other
 * mode bits differ between machines without meaning anything, so they are not kept.
 */
export type TreeEntry =
  | { type: "file"; executable: boolean; digest: string }
  | { type: "directory" }
  | { type: "symlink"; target: string }

/** By name, relative to the root, without `./`. */
export type Tree = ReadonlyMap<string, TreeEntry>

/** Sorted names of files and links, without `./` (P-020). */
export interface TarballDiff {
  addedFiles: string[]
  removedFiles: string[]
  changedFiles: string[]
}

/** Why an entry cannot be taken, or null. */
export type Objection = { entry: string; reason: string } | null

/** The name relative to the root, `""` for the root itself, or why it cannot be used. */
export function normaliseName(raw: string): { name: string } | { reason: string } {
  if (hasControlCharacters(raw)) return { reason: "the name contains control characters" }
  if (raw.includes("\uFFFD")) return { reason: "the name is not UTF-8" }
  if (raw.startsWith("/")) return { reason: "the name is absolute" }
  const steps = raw.split("/").filter((step) => step !== "" && step !== ".")
  if (steps.includes("..")) return { reason: "the name contains .." }
  if (
    steps.some((step) => Buffer.byteLength(step) > LONGEST_STEP_BYTES) ||
    Buffer.byteLength(raw) > LONGEST_NAME_BYTES
  ) {
    return { reason: "the name is too long" }
  }
  return { name: steps.join("/") }
}

/** The C0 and C1 ranges and DEL: they would forge lines of logs and listings, or end a name early (NUL). */
function hasControlCharacters(text: string): boolean {
  for (let at = 0; at < text.length; at++) {
    const code = text.charCodeAt(at)
    if (code < 0x20 || (code >= 0x7f && code <= 0x9f)) return true
  }
  return false
}

/** What Linux file systems take. */
const LONGEST_STEP_BYTES = 255
const LONGEST_NAME_BYTES = 4096

/** Why a link's target cannot be taken whatever else the tree holds, or null. */
export function objectionToTarget(target: string): string | null {
  if (target === "") return "the link has no target"
  if (hasControlCharacters(target)) return "the link's target contains control characters"
  if (target.startsWith("/")) return "the link leaves the tree: its target is absolute"
  if (Buffer.byteLength(target) > LONGEST_NAME_BYTES) return "the link's target is too long"
  return null
}

/**
 * The first entry that would write or point outside once the whole tree is known: a name below something that is no directory,
 * or a link that leaves the tree, also by way of other links.
 */
export function findEscape(tree: Tree): Objection {
  for (const [name, entry] of tree) {
    const blocked = ancestors(name).find((parent) => (tree.get(parent)?.type ?? "directory") !== "directory")
    if (blocked !== undefined) return { entry: name, reason: `it lies below ${blocked}, which is not a directory` }
    if (entry.type === "symlink" && resolve(tree, name) === null) {
      return { entry: name, reason: `the link leaves the tree: ${entry.target}` }
    }
  }
  return null
}

/**
 * Where a name ends up when links are followed as a kernel would, or null when that is outside. A link that turns in circles
 * or ends nowhere leads to a name that the tree does not hold, or to itself.
 */
function resolve(tree: Tree, name: string): string | null {
  const at: string[] = []
  const ahead = name.split("/").reverse()
  let linksLeft = MOST_LINKS_FOLLOWED
  for (let step = ahead.pop(); step !== undefined; step = ahead.pop()) {
    if (step === "" || step === ".") continue
    if (step === "..") {
      if (at.pop() === undefined) return null
      continue
    }
    at.push(step)
    const reached = tree.get(at.join("/"))
    if (reached?.type !== "symlink" || linksLeft-- <= 0) continue
    at.pop()
    ahead.push(...reached.target.split("/").reverse())
  }
  return at.join("/")
}

/** As Linux: more links on one way count as a loop. */
const MOST_LINKS_FOLLOWED = 40

/** `a/b/c` gives `a`, `a/b`. */
function ancestors(name: string): string[] {
  const steps = name.split("/")
  return steps.slice(1).map((_, index) => steps.slice(0, index + 1).join("/"))
}

/** Adds the directories that only their contents tell of. For a tree without escapes. */
export function addDirectories(tree: Map<string, TreeEntry>): void {
  for (const name of tree.keys()) {
    for (const parent of ancestors(name)) if (!tree.has(parent)) tree.set(parent, { type: "directory" })
  }
}

/** What the tree holds under a name, through links inside the tree; null when there is nothing. */
export function lookUp(tree: Tree, name: string): TreeEntry | null {
  const resolved = resolve(tree, name)
  if (resolved === null) return null
  return resolved === "" ? { type: "directory" } : (tree.get(resolved) ?? null)
}

/**
 * The tree as text, one sorted line for each file, link and empty directory. Its sha256 is the content hash; names hold no
 * tabs or line ends, so nothing can pass for another entry.
 */
export function listingOf(tree: Tree): string {
  const filled = new Set<string>()
  for (const name of tree.keys()) for (const parent of ancestors(name)) filled.add(parent)
  const lines: string[] = []
  for (const name of [...tree.keys()].sort()) {
    const entry = tree.get(name)
    if (entry === undefined || (entry.type === "directory" && filled.has(name))) continue
    lines.push(`${name}\t${factsOf(entry)}\n`)
  }
  return lines.join("")
}

function factsOf(entry: TreeEntry): string {
  switch (entry.type) {
    case "file":
      return `file\t${entry.executable ? "755" : "644"}\t${entry.digest}`
    case "directory":
      return "directory\t\t"
    case "symlink":
      return `symlink\t\t${entry.target}`
  }
}

/** What changed from one listing to the next: sorted names of files and links (P-020). */
export function diffListings(before: string, after: string): TarballDiff {
  const old = filesOf(before)
  const now = filesOf(after)
  const diff: TarballDiff = { addedFiles: [], removedFiles: [], changedFiles: [] }
  for (const [name, facts] of now) {
    const earlier = old.get(name)
    if (earlier === undefined) diff.addedFiles.push(name)
    else if (earlier !== facts) diff.changedFiles.push(name)
  }
  for (const name of old.keys()) if (!now.has(name)) diff.removedFiles.push(name)
  return diff
}

/** Names and facts of a listing in its own, sorted, order. */
function filesOf(listing: string): Map<string, string> {
  const files = new Map<string, string>()
  for (const line of listing.split("\n")) {
    const tab = line.indexOf("\t")
    if (tab < 0) continue
    const facts = line.slice(tab + 1)
    if (!facts.startsWith("directory")) files.set(line.slice(0, tab), facts)
  }
  return files
}
