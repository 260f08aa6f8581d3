/** A binary heap: the smallest by `before` comes first. */
export interface Heap<T> {
  readonly size: number
  peek(): T | undefined
  push(item: T): void
  pop(): T | undefined
  /** The item there comes earlier or later now: moves it to its place. */
  moved(at: number): void
}

/** @param placed told where an item stands whenever that changes, −1 when it is taken out: for whoever calls `moved` */
export function createHeap<T>(before: (a: T, b: T) => boolean, placed?: (item: T, at: number) => void): Heap<T> {
  const items: T[] = []

  function put(item: T, at: number): void {
    items[at] = item
    placed?.(item, at)
  }

  function rise(at: number): void {
    const item = items[at] as T
    while (at > 0) {
      const parent = (at - 1) >> 1
      const above = items[parent] as T
      if (!before(item, above)) break
      put(above, at)
      at = parent
    }
    put(item, at)
  }

  function sink(at: number): void {
    const item = items[at] as T
    for (;;) {
      let child = 2 * at + 1
      if (child >= items.length) break
      if (child + 1 < items.length && before(items[child + 1] as T, items[child] as T)) child += 1
      const below = items[child] as T
      if (!before(below, item)) break
      put(below, at)
      at = child
    }
    put(item, at)
  }

  return {
    get size() {
      return items.length
    },
    peek: () => items[0],
    push(item) {
      items.push(item)
      rise(items.length - 1)
    },
    pop() {
      const first = items[0]
      const last = items.pop()
      if (first !== undefined) placed?.(first, -1)
      if (items.length > 0 && last !== undefined) {
        items[0] = last
        sink(0)
      }
      return first
    },
    moved(at) {
      rise(at)
      sink(at)
    },
  }
}
