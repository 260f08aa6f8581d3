import { isBuiltin } from "node:module"
import { dirname, posix } from "node:path"
import { PROGRAMS, type SourceFile } from "./source-files.ts"

/** A rule looks at all files and says in whole sentences what breaks it. */
export type TidyRule = (files: readonly SourceFile[]) => string[]

type Program = (typeof PROGRAMS)[number]

/** A file imports from its own rung and lower ones; what stands on one line is one rung. Folders, and files by name. */
export const LADDERS: Record<Program, readonly (readonly string[])[]> = {
  protocol: [["base"], ["domain"], ["api", "gossip", "wire"], ["client", "mesh"]],
  coordinator: [
    ["store"],
    ["events"],
    ["webhooks"],
    ["artifacts"],
    ["backup"],
    ["accounts"],
    ["billing"],
    ["projects"],
    ["recipes"],
    ["fleet"],
    ["jobs"],
    ["scheduler"],
    ["documents"],
    ["mesh", "http"],
    ["config.ts", "heap-flags.ts"],
    ["start-scheduler.ts"],
    ["start-sweeps.ts", "mount-routes.ts"],
    ["coordinator.ts"],
    ["program.ts"],
    ["main.ts"],
  ],
  "node-agent": [
    ["cache"],
    ["hardware"],
    ["runtime"],
    ["mesh"],
    ["outbox"],
    ["tasks"],
    ["config.ts", "small-heap.ts"],
    ["open-machine.ts", "start-mesh.ts", "start-builds.ts", "supervise.ts"],
    ["talk-to-coordinator.ts"],
    ["agent.ts"],
    ["main.ts"],
  ],
}

const MESH_FOLDERS = ["protocol/mesh", "coordinator/mesh", "node-agent/mesh"]

/** Where a package may be imported in the three programs. A package that is not listed has no home yet. */
export const PACKAGE_HOMES: Record<string, readonly string[]> = {
  "better-sqlite3": ["coordinator/store", "node-agent/outbox"],
  express: ["coordinator/http"],
  execa: ["node-agent/runtime", "node-agent/hardware"],
  "tar-stream": ["coordinator", "node-agent"],
  cborg: PROGRAMS,
  zod: PROGRAMS,
  pino: ["protocol/base/json-log.ts"],
  libp2p: MESH_FOLDERS,
  "@libp2p/crypto": MESH_FOLDERS,
  "@libp2p/identify": MESH_FOLDERS,
  "@libp2p/interface": MESH_FOLDERS,
  "@libp2p/noise": MESH_FOLDERS,
  "@libp2p/peer-id": MESH_FOLDERS,
  "@libp2p/tcp": MESH_FOLDERS,
  "@libp2p/yamux": MESH_FOLDERS,
  "@chainsafe/libp2p-gossipsub": MESH_FOLDERS,
  "@multiformats/multiaddr": MESH_FOLDERS,
}

const ENVIRONMENT_READERS = ["coordinator/config.ts", "node-agent/config.ts"]
const SQL_HOMES = ["coordinator/store", "node-agent/outbox"]
const DOORS = ["coordinator/http", "coordinator/mesh"]
/** The replies to repeated requests are the door's own record: no folder of the domain knows them. */
const DOOR_TABLES = ["coordinator/store/idempotency.ts"]
/** Names that other programs look for. */
const FIXED_NAMES = new Set(["Dockerfile"])

export const ladderIsKept: TidyRule = (files) =>
  programFiles(files).flatMap((file) => {
    const own = rungOf(file.path)
    if (own === null) return [`${file.path} stands on no rung of the ladder`]
    return reachedFiles(file).flatMap((reached) => {
      const other = rungOf(reached)
      if (other === null) return [`${file.path} reaches ${reached}, which stands on no rung`]
      if (other.program !== own.program)
        return other.program === "protocol" ? [] : [`${file.path} reaches ${reached}: programs meet only in protocol`]
      return other.rung <= own.rung ? [] : [`${file.path} looks up to ${reached}`]
    })
  })

/** The folders http and mesh call the acts of the domain and leave the store's functions to them. */
export const doorsLeaveTheStoreAlone: TidyRule = (files) =>
  files
    .filter((file) => isBelow(file.path, DOORS))
    .flatMap((file) =>
      file.imports
        .filter((each) => !each.typeOnly && isBelow(each.file ?? "", ["coordinator/store"]))
        .filter((each) => !DOOR_TABLES.includes(each.file ?? ""))
        .map((each) => `${file.path} calls ${each.file}: a door calls an act of the domain`),
    )

export const packagesStayHome: TidyRule = (files) =>
  programFiles(files).flatMap((file) =>
    file.imports.flatMap((each) => {
      if (each.file !== null || each.specifier.startsWith("node:")) return []
      if (isBuiltin(each.specifier)) return [`${file.path}: write "node:${each.specifier}"`]
      const name = packageName(each.specifier)
      const homes = PACKAGE_HOMES[name]
      if (homes === undefined) return [`${file.path} imports ${name}, which has no home in test/support/tidy-rules.ts`]
      return isBelow(file.path, homes) ? [] : [`${file.path} imports ${name}, whose home is ${homes.join(", ")}`]
    }),
  )

export const environmentHasTwoReaders: TidyRule = (files) =>
  programFiles(files)
    .filter((file) => !ENVIRONMENT_READERS.includes(file.path))
    .filter((file) => /(?<![\w.])process\.env\b|\benv\b[^\n]*from "node:process"/.test(file.code))
    .map((file) => `${file.path} reads process.env; only ${ENVIRONMENT_READERS.join(" and ")} do`)

const SQL_TEXT = /["'`]\s*(?:SELECT|INSERT INTO|INSERT OR|UPDATE \w+ SET|DELETE FROM|CREATE TABLE|PRAGMA)\s/
const SQL_CALL = /\b(?:tx|view|db)\.(?:run|get|all|prepare|exec)\b/

export const sqlStaysHome: TidyRule = (files) =>
  programFiles(files)
    .filter((file) => !isBelow(file.path, SQL_HOMES) && (SQL_TEXT.test(file.code) || SQL_CALL.test(file.code)))
    .map((file) => `${file.path} speaks SQL; only ${SQL_HOMES.join(" and ")} do`)

export const importsNameFiles: TidyRule = (files) => {
  const known = new Set(files.map((file) => file.path))
  return files.flatMap((file) =>
    file.imports
      .filter((each) => each.file !== null && !known.has(each.file))
      .map((each) => `${file.path} imports "${each.specifier}", which is no .ts file`),
  )
}

/** A barrel only hands on what others define; importing the file that defines a thing says where it is. */
export const noBarrels: TidyRule = (files) =>
  files
    .filter((file) => {
      const rest = file.code.replaceAll(/^(?:import|export)\s+(?:type\s+)?[\w$\s,*{}]*(?:from\s+)?"[^"]+"/gm, "")
      return /^export\b/m.test(file.code) && rest.replaceAll(/^export\s+(?:type\s+)?\{[^}]*\}/gm, "").trim() === ""
    })
    .map((file) => `${file.path} only exports what other files define`)

export const noCycles: TidyRule = (files) => {
  const graph = new Map(files.map((file) => [file.path, file.imports.flatMap((each) => each.file ?? [])]))
  return findCycles(graph).map((cycle) => `files import each other: ${[...cycle, cycle[0]].join(" → ")}`)
}

/**
 * Two folders that need each other are one folder or three. An arrow goes between the two folders that part below the
 * common one; files that lie in the common folder itself stand for it.
 */
export const noTwoWayFolders: TidyRule = (files) => {
  const arrows = new Map<string, string>()
  for (const file of programFiles(files))
    for (const reached of reachedFiles(file)) {
      const [from, to] = partingFolders(file.path, reached)
      if (from !== to) arrows.set(`${from} → ${to}`, `${file.path} → ${reached}`)
    }
  return [...arrows].flatMap(([arrow, example]) => {
    const [from = "", to = ""] = arrow.split(" → ")
    const back = arrows.get(`${to} → ${from}`)
    return back !== undefined && from < to ? [`${from} ↔ ${to} (${example}; ${back})`] : []
  })
}

/** Kebab-case in every folder and file name; an ending may have several parts. */
export function misnamedFiles(paths: readonly string[]): string[] {
  const kebab = /^[a-z0-9]+(?:-[a-z0-9]+)*$/
  return paths.filter((path) =>
    path.split("/").some((name) => !FIXED_NAMES.has(name) && !name.split(".").every((word) => kebab.test(word))),
  )
}

function rungOf(path: string): { program: Program; rung: number } | null {
  const [first, second = ""] = path.split("/")
  const program = PROGRAMS.find((each) => each === first)
  if (program === undefined) return null
  const rung = LADDERS[program].findIndex((names) => names.includes(second))
  return rung === -1 ? null : { program, rung }
}

function programFiles(files: readonly SourceFile[]): SourceFile[] {
  return files.filter((file) => isBelow(file.path, PROGRAMS))
}

function isBelow(path: string, folders: readonly string[]): boolean {
  return folders.some((folder) => path === folder || path.startsWith(`${folder}/`))
}

function reachedFiles(file: SourceFile): string[] {
  return [...new Set([...file.imports.flatMap((each) => each.file ?? []), ...file.starts])]
}

function packageName(specifier: string): string {
  return specifier.split("/", specifier.startsWith("@") ? 2 : 1).join("/")
}

function partingFolders(from: string, to: string): [string, string] {
  const left = dirname(from).split("/")
  const right = dirname(to).split("/")
  let shared = 0
  while (shared < left.length && left[shared] === right[shared]) shared += 1
  return [left.slice(0, shared + 1).join(posix.sep), right.slice(0, shared + 1).join(posix.sep)]
}

/** One cycle for each knot of the graph (Tarjan would name the knot; a cycle shows where to cut). */
function findCycles(graph: ReadonlyMap<string, readonly string[]>): string[][] {
  const cycles: string[][] = []
  const done = new Set<string>()
  const visit = (node: string, path: string[]): void => {
    const start = path.indexOf(node)
    if (start !== -1) {
      cycles.push(path.slice(start))
      return
    }
    if (done.has(node)) return
    path.push(node)
    for (const next of graph.get(node) ?? []) visit(next, path)
    path.pop()
    done.add(node)
  }
  for (const node of graph.keys()) visit(node, [])
  return cycles
}
