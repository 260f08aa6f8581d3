import { z } from "zod"
import { ALLOWED_EXECUTABLES, LONGEST_COMMAND } from "./runner.ts"

/** The runtime contract at the root of a pushed tree. */
export const MANIFEST_NAME = "computalot.project.json"

/**
 * Env files at the root of a pushed tree, in the order they are read: a later one wins (M-009, C-17).
 */
export const ENV_FILE_NAMES = [".computalot.env", "computalot.env", ".env"] as const

const text = z.string().min(1).max(4096)
/** A path of the image when it is absolute, else one of the tarball (rulings, Manifest). */
const path = text
const command = z
  .array(z.string().max(64 * 1024), { error: "must be a list of strings" })
  .min(1, { error: "must name a command" })
  .max(LONGEST_COMMAND, { error: `must have at most ${LONGEST_COMMAND} elements` })
const env = z.record(z.string(), z.string(), { error: "must map names to strings" })
const seconds = z.number().positive()

const labelledCommand = z.looseObject({
  label: text.optional(),
  command,
  cwd: path.optional(),
  env: env.optional(),
  /** Names out of the manifest's `cache_mounts`. */
  cache_mounts: z.array(text).optional(),
})

const service = z.looseObject({
  name: text,
  command,
  scope: z.enum(["project", "task"]).optional(),
  restart: z.enum(["never", "on_failure", "always"]).optional(),
  cwd: path.optional(),
  env: env.optional(),
  ready_timeout_s: seconds.optional(),
  healthcheck: z.looseObject({ command }).optional(),
  cache_mounts: z.array(text).optional(),
})

const dataSource = z.looseObject({
  name: text,
  source: z.enum(["huggingface", "artifact", "http"]),
  delivery: z.enum(["mount", "copy"]),
  /** Relative to the workdir, or absolute in the image. */
  target: path,
  sha256: z
    .string()
    .regex(/^[0-9a-f]{64}$/, { error: "must be 64 lower-case hex digits" })
    .optional(),
  url: text.optional(),
  artifact_id: text.optional(),
  repo: text.optional(),
  revision: text.optional(),
})

/** `computalot.project.json` (GAP-20). Unknown keys are kept and ignored; a JSON Schema is made of this. */
export const manifestSchema = z
  .looseObject({
    version: z.literal(1, { error: "must be 1" }),
    runtime: z.looseObject({
      kind: z.literal("oci", { error: 'must be "oci"' }),
      sandbox: z.literal("gvisor", { error: 'must be "gvisor"' }),
      workdir: path.regex(/^\//, { error: "must be an absolute path inside the container, as /workspace" }),
      init: z.looseObject({ commands: z.array(labelledCommand).optional() }).optional(),
      services: z.array(service).optional(),
    }),
    entrypoint: z.looseObject({
      command: command.refine(([first]) => ALLOWED_EXECUTABLES.some((allowed) => allowed === first), {
        error: `must start with one of ${ALLOWED_EXECUTABLES.join(", ")}`,
      }),
      cwd: path.optional(),
      env: env.optional(),
      cache_mounts: z.array(text).optional(),
    }),
    build: z
      .looseObject({
        dockerfile: path.optional(),
        context: path.optional(),
        target: text.optional(),
        args: env.optional(),
      })
      .optional(),
    validation: z
      .looseObject({
        executables: z.array(text).optional(),
        files: z.array(path).optional(),
        commands: z.array(labelledCommand).optional(),
      })
      .optional(),
    data_sources: z.array(dataSource).optional(),
    cache_mounts: z
      .array(z.looseObject({ name: text, kind: z.enum(["huggingface"]).optional(), target: path }))
      .optional(),
  })
  .meta({ id: "ProjectManifest" })

export type Manifest = z.infer<typeof manifestSchema>
