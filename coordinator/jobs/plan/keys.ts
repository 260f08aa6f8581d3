import type { JsonValue } from "../../../protocol/base/json-text.ts"

/** The keys of a keyed job's items: strings verbatim, other values as JSON text; repeated ones get `#2`, `#3`, … (GAP-35). */
export function itemKeys(elements: JsonValue[]): string[] {
  const taken = new Set<string>()
  const times = new Map<string, number>()
  return elements.map((element) => {
    const plain = typeof element === "string" ? element : JSON.stringify(element)
    let nth = (times.get(plain) ?? 0) + 1
    let key = nth === 1 ? plain : `${plain}#${nth}`
    while (taken.has(key)) key = `${plain}#${++nth}`
    times.set(plain, nth)
    taken.add(key)
    return key
  })
}
