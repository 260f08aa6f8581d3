/** Which items one task carries. */
export interface Pack {
  first: number
  count: number
}

export const packCount = (items: number, batchSize: number): number => Math.ceil(items / batchSize)

/** Pack `index`: `batchSize` neighbours, the last pack what is left. */
export function packAt(items: number, batchSize: number, index: number): Pack {
  const first = index * batchSize
  return { first, count: Math.min(batchSize, items - first) }
}
