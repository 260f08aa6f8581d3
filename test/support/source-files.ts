import { readdirSync, readFileSync } from "node:fs"
import { dirname, join, normalize } from "node:path"
import { fileURLToPath } from "node:url"

/** One .ts file of ours and what it reaches. Paths are relative to the repository, with `/`. */
export interface SourceFile {
  path: string
  /** The text without comments. */
  code: string
  imports: Import[]
  /** Files of ours that it names by path without importing them: worker threads and programs it starts. */
  starts: string[]
}

export interface Import {
  specifier: string
  /** The file a relative specifier means, whether it exists or not; null for a package. */
  file: string | null
  typeOnly: boolean
}

export const REPOSITORY = fileURLToPath(new URL("../../", import.meta.url))
export const PROGRAMS = ["protocol", "coordinator", "node-agent"] as const
export const SOURCE_FOLDERS = [...PROGRAMS, "test", "scripts"] as const

export function readSourceFiles(): SourceFile[] {
  const sources = new Map<string, string>()
  for (const path of listFiles())
    if (path.endsWith(".ts")) sources.set(path, readFileSync(join(REPOSITORY, path), "utf8"))
  return parseSourceFiles(sources)
}

/** Every file below the source folders, whatever its ending. */
export function listFiles(): string[] {
  return SOURCE_FOLDERS.flatMap((folder) =>
    readdirSync(join(REPOSITORY, folder), { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map((entry) => join(entry.parentPath, entry.name).slice(REPOSITORY.length)),
  )
}

export function parseSourceFiles(sources: ReadonlyMap<string, string>): SourceFile[] {
  return [...sources].map(([path, text]) => {
    const code = withoutComments(text)
    const imports = findImports(path, code)
    const imported = new Set(imports.map((each) => each.file))
    const starts = findNamedFiles(path, code).filter((file) => sources.has(file) && !imported.has(file))
    return { path, code, imports, starts }
  })
}

/** `import … from "x"`, `import "x"`, `export … from "x"`, with or without `type`; statements stand at the line's start. */
const STATEMENT = /^(?:import|export)(?<type>\s+type)?\s+(?:[\w$*{][\w$\s,*{}]*?\sfrom\s+)?"(?<specifier>[^"]+)"/gm
/** `import("x")` in expressions and types, and `require("x")`. */
const CALL = /\b(?:import|require)\(\s*["'`](?<specifier>[^"'`]+)["'`]\s*\)/g
const RELATIVE_LITERAL = /["'`](?<path>\.{1,2}\/[^"'`\s]*)["'`]/g

function findImports(path: string, code: string): Import[] {
  return [...code.matchAll(STATEMENT), ...code.matchAll(CALL)].map((match) => {
    const specifier = match.groups?.["specifier"] ?? ""
    const file = specifier.startsWith(".") ? resolveFrom(path, specifier) : null
    return { specifier, file, typeOnly: match.groups?.["type"] !== undefined }
  })
}

/** A compiled program starts `./x.js` where sources start `./x.ts`, so the ending may be computed. */
function findNamedFiles(path: string, code: string): string[] {
  const named = [...code.matchAll(RELATIVE_LITERAL)].map((match) =>
    resolveFrom(path, (match.groups?.["path"] ?? "").replace(/(?:\$\{.*\}|\.js)$/, ".ts")),
  )
  return [...new Set(named)]
}

function resolveFrom(path: string, relative: string): string {
  return normalize(join(dirname(path), relative))
}

/** Comments that have lines of their own, as the formatter leaves them; those behind code stay. */
function withoutComments(text: string): string {
  return text.replaceAll(/^[ \t]*(?:\/\*[\s\S]*?\*\/|\/\/.*)[ \t]*$/gm, "")
}
