/** The list in parts of at most `size`, in order: what one write or one frame may take. */
export function slices<T>(items: readonly T[], size: number): T[][] {
  const found: T[][] = []
  for (let from = 0; from < items.length; from += size) found.push(items.slice(from, from + size))
  return found
}
