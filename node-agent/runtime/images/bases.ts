import { readFile } from "node:fs/promises"
import { join } from "node:path"
import { z } from "zod"
import type { Digest } from "../../../protocol/domain/ids.ts"
import { errorText } from "../../../protocol/base/error-text.ts"
import { fullImageName } from "./dockerfile-policy.ts"
import { readLayout, type LayoutImage, type LayoutLayer } from "./oci.ts"

/** The operator's base images (interfaces.md, "Base images"): OCI layouts listed in `bases.json`. */
export interface Bases {
  /** By short or full name; null when none is listed under it. */
  find(name: string): Base | null
  /** Their layers are recognised by diff_id and never fetched; null when no base has it. */
  layer(diffId: Digest): LayoutLayer | null
  all(): Base[]
  /** What is listed but cannot be used: one sentence each, for the operator. */
  problems: string[]
}

export interface Base {
  /** Full name. */
  name: string
  /** The layout's folder. */
  path: string
  image: LayoutImage
}

/** Reads the directory as it is now. A directory without `bases.json` has no bases; a broken entry is a problem, no error. */
export async function readBases(directory: string): Promise<Bases> {
  const byName = new Map<string, Base>()
  const layers = new Map<Digest, LayoutLayer>()
  const problems: string[] = []
  for (const [name, folder] of Object.entries(await readList(directory, problems))) {
    const full = fullImageName(name)
    if (byName.has(full)) continue
    const path = join(directory, folder)
    try {
      const image = await readLayout(path)
      byName.set(full, { name: full, path, image })
      for (const layer of image.layers) layers.set(layer.diffId, layer)
    } catch (error) {
      problems.push(`the base ${name} cannot be read: ${errorText(error)}`)
    }
  }
  return {
    find: (name) => byName.get(fullImageName(name)) ?? null,
    layer: (diffId) => layers.get(diffId) ?? null,
    all: () => [...byName.values()],
    problems,
  }
}

/** Folders are plain names: a list cannot point out of its directory. */
const listSchema = z.record(z.string(), z.string().regex(/^[A-Za-z0-9_][A-Za-z0-9._-]*$/))

async function readList(directory: string, problems: string[]): Promise<Record<string, string>> {
  try {
    return listSchema.parse(JSON.parse(await readFile(join(directory, "bases.json"), "utf8")))
  } catch (error) {
    const missing = error instanceof Error && "code" in error && error.code === "ENOENT"
    if (!missing) problems.push(`bases.json cannot be read: ${errorText(error)}`)
    return {}
  }
}
