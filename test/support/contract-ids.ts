/** A section of the public contract: its promises are `PREFIX-001` to `PREFIX-<promises>`, without a gap. */
export interface ContractSection {
  prefix: string
  promises: number
  title: string
  /** Digits of a number; a prefix without dash has two (`A01`). */
  digits: 2 | 3
  dash: boolean
}

const section = (prefix: string, promises: number, title: string): ContractSection => ({
  prefix,
  promises,
  title,
  digits: 3,
  dash: true,
})

/** The public contract by its ids. What each of them says stands where the contract is kept, not here. */
export const CONTRACT: readonly ContractSection[] = [
  section("E", 11, "HTTP and errors"),
  section("D", 31, "documents"),
  section("A", 24, "tokens, roles, who sees what"),
  section("O", 4, "operations"),
  section("B", 26, "accounts and money"),
  section("P", 31, "projects"),
  section("PR", 16, "readiness"),
  section("M", 12, "manifest and runtime"),
  section("KV", 6, "key-value state"),
  section("J", 46, "jobs: what is submitted and read"),
  section("SR", 16, "structured_runner"),
  section("SW", 8, "sweep"),
  section("MR", 7, "map_reduce"),
  section("BM", 8, "benchmark"),
  section("BT", 5, "batch"),
  section("R", 19, "recipes"),
  section("PS", 1, "presets"),
  section("RP", 13, "runner protocol"),
  section("CK", 9, "checkpoints"),
  section("AR", 21, "artifacts over the API"),
  section("AW", 9, "artifacts inside jobs"),
  section("SS", 4, "shared state inside jobs"),
  section("RS", 15, "results"),
  section("Q", 7, "quality of results"),
  section("ST", 9, "streams"),
  section("W", 4, "webhooks"),
  section("G", 6, "dependencies"),
  section("L", 11, "life cycle"),
  section("V", 7, "reservations"),
  section("SC", 8, "scheduling and policies"),
  section("X", 4, "what is never shown"),
  section("F", 2, "feedback"),
  section("SDK", 5, "Python SDK and command line"),
  section("DB", 6, "aids to find faults"),
  { ...section("C", 35, "readings of contradictions"), digits: 2 },
  { ...section("GAP", 73, "readings of gaps"), digits: 2 },
  { ...section("A", 59, "requests that work as they are printed"), digits: 2, dash: false },
]

export function idOf({ prefix, digits, dash }: ContractSection, number: number): string {
  return `${prefix}${dash ? "-" : ""}${String(number).padStart(digits, "0")}`
}

export function idsOf(of: ContractSection): string[] {
  return Array.from({ length: of.promises }, (_, index) => idOf(of, index + 1))
}
