import { posix } from "node:path"
import { fieldProblems } from "../../protocol/api/parse.ts"
import { ComputalotError, type FieldProblem } from "../../protocol/domain/errors.ts"
import { MANIFEST_NAME, manifestSchema, type Manifest } from "../../protocol/domain/manifest.ts"
import { lookUp, type Tree, type TreeEntry } from "./tree.ts"

/** Parses a manifest that came as JSON. Refuses with `invalid_manifest`, naming every wrong field. */
export function parseManifest(value: unknown): Manifest {
  const parsed = manifestSchema.safeParse(value)
  if (!parsed.success) throw invalidManifest(fieldProblems(parsed.error))
  const problems = tooLargeParts(parsed.data)
  if (problems.length === 0) return parsed.data
  throw invalidManifest(problems)
}

/** These travel to nodes in a single frame beside other things. */
const LARGEST_PART_BYTES = 64 * 1024

function tooLargeParts({ validation, build }: Manifest): FieldProblem[] {
  const parts: [path: string, part: unknown][] = [
    ["validation", validation],
    ["build.args", build?.args],
  ]
  return parts
    .filter(([, part]) => part !== undefined && Buffer.byteLength(JSON.stringify(part)) > LARGEST_PART_BYTES)
    .map(([path]) => ({ path, problem: `takes more than ${LARGEST_PART_BYTES} bytes as JSON` }))
}

/** The manifest file of a tarball. */
export function parseManifestText(text: string): Manifest {
  let value: unknown
  try {
    value = JSON.parse(text.replace(/^\uFEFF/, ""))
  } catch (error) {
    throw invalidManifest([{ path: "", problem: `is not JSON: ${(error as Error).message}` }])
  }
  return parseManifest(value)
}

/**
 * Refuses a manifest that names something the tarball does not hold (P-018), and a tree without a Dockerfile for a project
 * without an image (C-16). Answers whether there is a Dockerfile to build.
 */
export function checkManifest(
  manifest: Manifest | null,
  tree: Tree,
  imageRef: string | null,
): { hasDockerfile: boolean } {
  const problems = manifest === null ? [] : [...missingPaths(manifest, tree), ...unknownMounts(manifest)]
  const named = manifest?.build?.dockerfile
  const found = tree.get(tarballPath(named ?? "Dockerfile") ?? "")
  if (found?.type === "symlink") {
    problems.push({
      path: "build.dockerfile",
      problem: "is a link in the tarball: Dockerfiles are not read through links",
    })
  } else if (named !== undefined && found?.type !== "file") {
    problems.push({ path: "build.dockerfile", problem: `names ${named}, which is not a file of the tarball` })
  }
  if (problems.length > 0) throw invalidManifest(problems)
  if (found === undefined && imageRef === null) throw noDockerfile()
  return { hasDockerfile: found?.type === "file" }
}

function missingPaths(manifest: Manifest, tree: Tree): FieldProblem[] {
  const problems: FieldProblem[] = []
  const must = (path: string, named: string | undefined, kinds: TreeEntry["type"][], what: string): void => {
    if (named === undefined || named.startsWith("/")) return
    const name = tarballPath(named)
    const found = name === null ? null : lookUp(tree, name)
    if (name === null) problems.push({ path, problem: `names ${named}, which lies outside the tarball` })
    else if (found === null || !kinds.includes(found.type)) {
      problems.push({ path, problem: `names ${named}, which is not ${what} of the tarball` })
    }
  }
  manifest.validation?.files?.forEach((named, index) =>
    must(`validation.files[${index}]`, named, ["file", "directory"], "a file"),
  )
  must("build.context", manifest.build?.context, ["directory"], "a directory")
  for (const [path, command] of commandsOf(manifest)) must(`${path}.cwd`, command.cwd, ["directory"], "a directory")
  return problems
}

function unknownMounts(manifest: Manifest): FieldProblem[] {
  const known = new Set(manifest.cache_mounts?.map((mount) => mount.name))
  const problems: FieldProblem[] = []
  for (const [path, command] of commandsOf(manifest)) {
    command.cache_mounts?.forEach((name, index) => {
      if (!known.has(name)) {
        const problem = `names the cache mount ${name}, which cache_mounts does not declare`
        problems.push({ path: `${path}.cache_mounts[${index}]`, problem })
      }
    })
  }
  return problems
}

/** Every place of a manifest that runs a command, with its path. */
function commandsOf(manifest: Manifest): [path: string, command: { cwd?: string; cache_mounts?: string[] }][] {
  const listed = <T>(path: string, commands: T[] | undefined): [string, T][] =>
    (commands ?? []).map((command, index) => [`${path}[${index}]`, command])
  return [
    ["entrypoint", manifest.entrypoint],
    ...listed("validation.commands", manifest.validation?.commands),
    ...listed("runtime.init.commands", manifest.runtime.init?.commands),
    ...listed("runtime.services", manifest.runtime.services),
  ] as [string, { cwd?: string; cache_mounts?: string[] }][]
}

/** A relative path as names in the tree are written, or null when it leads outside. */
function tarballPath(named: string): string | null {
  const normal = posix.normalize(named).replace(/\/$/, "")
  if (normal === ".") return ""
  return normal.startsWith("../") || normal === ".." || normal.startsWith("/") ? null : normal
}

function invalidManifest(problems: FieldProblem[]): ComputalotError {
  const first = problems[0]
  const what = first === undefined ? "it is not valid" : `${first.path === "" ? "" : `${first.path} `}${first.problem}`
  return new ComputalotError("invalid_manifest", `invalid manifest: ${what}`, {
    recommendedAction: `Correct ${MANIFEST_NAME} as details say and push again.`,
    details: problems,
  })
}

function noDockerfile(): ComputalotError {
  return new ComputalotError("invalid_manifest", "the tarball has no Dockerfile and the project has no image_ref", {
    recommendedAction: "Put a Dockerfile at the root of the tarball, or set image_ref on the project.",
    details: [{ path: "Dockerfile", problem: "is missing" }],
  })
}
