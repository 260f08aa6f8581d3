import { parse } from "node:querystring"
import { assert } from "../../protocol/base/assert.ts"

/** Finds the row of a request without trying one pattern after another, as Express does. */
export interface RouteTable<Route> {
  /** Null: no row has this path and method, or the address is not a plain one. `url` as it stands in the request line. */
  find(method: string, url: string): Found<Route> | null
}

interface Found<Route> {
  route: Route
  params: Record<string, string>
  query: Record<string, unknown>
}

/** What paths begin with lies in one branch: each segment chooses the next, a word before a parameter (E-010). */
interface Branch<Route> {
  words: Map<string, Branch<Route>>
  parameter: Branch<Route> | null
  /** Of the paths that end here, by method, with the names of their parameters. */
  ends: Map<string, { route: Route; names: string[] }>
}

export function createRouteTable<Route>(
  routes: readonly Route[],
  rowOf: (route: Route) => { method: string; path: string },
): RouteTable<Route> {
  const root = newBranch<Route>()
  for (const route of routes) {
    const { method, path } = rowOf(route)
    assert(/^(?:\/(?::\w+|[\w.-]*))+$/.test(path), `${path} has parameters as whole segments only`)
    const names: string[] = []
    let branch = root
    for (const segment of segmentsOf(path)) {
      if (segment.startsWith(":")) names.push(segment.slice(1))
      branch = segment.startsWith(":") ? (branch.parameter ??= newBranch()) : wordOf(branch, segment)
    }
    branch.ends.set(method, { route, names })
  }

  return {
    find(method, url) {
      if (!PLAIN_ADDRESS.test(url)) return null
      const queryAt = url.indexOf("?")
      const values: string[] = []
      const branch = endOf(root, segmentsOf(queryAt === -1 ? url : url.slice(0, queryAt)), 0, values)
      const end = branch?.ends.get(method)
      if (end === undefined) return null
      const params: Record<string, string> = {}
      for (const [at, name] of end.names.entries()) params[name] = values[at] ?? ""
      return { route: end.route, params, query: queryAt === -1 ? {} : parse(url.slice(queryAt + 1)) }
    },
  }
}

/** Escapes in the path, fragments, spaces and whole URLs are left to Express; those of the query are parsed as it does. */
const PLAIN_ADDRESS = /^\/[\w\-./~:@]*(?:\?[\x21\x22\x24-\x7e]*)?$/

const segmentsOf = (path: string): string[] => path.slice(1).split("/")

const newBranch = <Route>(): Branch<Route> => ({ words: new Map(), parameter: null, ends: new Map() })

function wordOf<Route>(branch: Branch<Route>, word: string): Branch<Route> {
  const known = branch.words.get(word) ?? newBranch<Route>()
  branch.words.set(word, known)
  return known
}

/** Where the path ends, if any path does there; `values` are those of its parameters, which are never empty. */
function endOf<Route>(
  branch: Branch<Route>,
  segments: readonly string[],
  at: number,
  values: string[],
): Branch<Route> | null {
  const segment = segments[at]
  if (segment === undefined) return branch.ends.size > 0 ? branch : null
  const word = branch.words.get(segment)
  const found = word && endOf(word, segments, at + 1, values)
  if (found) return found
  if (branch.parameter === null || segment === "") return null
  values.push(segment)
  const behind = endOf(branch.parameter, segments, at + 1, values)
  if (behind === null) values.pop()
  return behind
}
