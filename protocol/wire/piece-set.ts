/** Which pieces are there: bit `index` of byte `index >> 3`, lowest bit first. */
export type PieceSet = Uint8Array<ArrayBuffer>

export function emptyPieceSet(count: number): PieceSet {
  return new Uint8Array(Math.ceil(count / 8))
}

export function fullPieceSet(count: number): PieceSet {
  const set = emptyPieceSet(count).fill(0xff)
  if (count % 8 !== 0) set[set.length - 1] = (1 << (count % 8)) - 1
  return set
}

/** False beyond the end: a set that a peer sent may be short. */
export function hasPiece(set: Uint8Array, index: number): boolean {
  return ((set[index >> 3] ?? 0) & (1 << (index & 7))) !== 0
}

export function addPiece(set: PieceSet, index: number): void {
  set[index >> 3] = (set[index >> 3] ?? 0) | (1 << (index & 7))
}

export function removePiece(set: PieceSet, index: number): void {
  set[index >> 3] = (set[index >> 3] ?? 0) & ~(1 << (index & 7))
}

/** How many of the first `count` pieces are there. */
export function countPieces(set: Uint8Array, count: number): number {
  const wholeBytes = Math.min(count >> 3, set.length)
  let there = 0
  for (let at = 0; at < wholeBytes; at++) there += bitsIn(set[at] ?? 0)
  for (let index = wholeBytes * 8; index < count; index++) if (hasPiece(set, index)) there++
  return there
}

function bitsIn(byte: number): number {
  let pairs = byte - ((byte >> 1) & 0x55)
  pairs = (pairs & 0x33) + ((pairs >> 2) & 0x33)
  return (pairs + (pairs >> 4)) & 0x0f
}
