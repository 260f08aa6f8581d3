/**
 * Reads a stranger's Dockerfile before buildah does. What is refused here has led out of builds before, or reaches the
 * network past the sandbox. buildah never sees the stranger's text: it gets what `render` writes, one instruction a line
 * without comments, continuations or directives, so that the two can never read a file differently.
 */
export function checkDockerfile(text: string, options: BuildOptions = {}): DockerfileCheck {
  const problems: DockerfileProblem[] = []
  const note = (line: number, reason: string): void => void problems.push({ line, reason })
  if (text.length > LONGEST_DOCKERFILE) return refused(1, `it has more than ${LONGEST_DOCKERFILE} characters`)

  for (const [name, value] of Object.entries(options.args ?? {})) {
    if (!VARIABLE_NAME.test(name)) note(0, `build argument ${JSON.stringify(name)}: a name is letters, digits and _`)
    if (CONTROL.test(value) || /[\n\t]/.test(value)) note(0, `build argument ${name}: the value has control characters`)
  }
  const instructions = splitInstructions(text, note)
  if (instructions.length > MOST_INSTRUCTIONS) return refused(1, `it has more than ${MOST_INSTRUCTIONS} instructions`)

  const globals = new Map<string, string>()
  const stages: Stage[] = []
  const kept: Line[] = []
  for (const instruction of instructions) {
    const { line, name, rest } = instruction
    const problem = (reason: string): void => note(line, reason)
    if (name === "FROM") {
      const stage = readFrom(rest, { globals, stages, problem })
      if (stage === null) continue
      stages.push(stage)
      kept.push({ from: stage })
      continue
    }
    if (stages.length === 0) {
      if (name === "ARG") readGlobals(rest, options.args ?? {}, globals)
      else problem(`${name} stands before the first FROM; only ARG may`)
    }
    if (MEANINGLESS.has(name)) continue
    checkInstruction(name, rest, stages, problem)
    kept.push({ text: `${name} ${rest}` })
  }

  if (stages.length === 0 && problems.length === 0) note(1, "it has no FROM")
  if (options.target !== undefined && !isStage(options.target, stages)) {
    note(0, `build.target ${JSON.stringify(options.target)} is no stage of this Dockerfile`)
  }
  if (problems.length > 0) return { ok: false, problems }
  const bases = [...new Set(stages.flatMap((stage) => (stage.from.kind === "base" ? [stage.from.name] : [])))]
  const hasRun = instructions.some((instruction) => instruction.name === "RUN")
  return { ok: true, bases, hasRun, render: (references) => renderLines(kept, references) }
}

export interface BuildOptions {
  /** Stage to build, of the manifest's `build.target`. */
  target?: string | undefined
  /** The manifest's `build.args`. */
  args?: Record<string, string> | undefined
}

export type DockerfileCheck =
  | {
      ok: true
      /** Full names of the images that stages start from (`docker.io/library/python:3.11-slim`), each once. */
      bases: string[]
      hasRun: boolean
      /** The Dockerfile for buildah, every base replaced by its local reference. */
      render(references: ReadonlyMap<string, string>): string
    }
  | { ok: false; problems: DockerfileProblem[] }

export interface DockerfileProblem {
  /** From 1; 0 when the manifest's `build` block is meant. */
  line: number
  reason: string
}

/** `python` → `docker.io/library/python:latest`: how Docker completes a name. */
export function fullImageName(name: string): string {
  const [first = ""] = name.split("/")
  const hasHost = name.includes("/") && (/[.:]/.test(first) || first === "localhost")
  const placed = hasHost ? name : `docker.io/${name.includes("/") ? "" : "library/"}${name}`
  const last = placed.slice(placed.lastIndexOf("/"))
  return last.includes(":") || last.includes("@") ? placed : `${placed}:latest`
}

const LONGEST_DOCKERFILE = 256 * 1024
const MOST_INSTRUCTIONS = 500
const MOST_STAGES = 32
const VARIABLE_NAME = /^[A-Za-z_][A-Za-z0-9_]*$/
const STAGE_NAME = /^[a-z][a-z0-9_.-]*$/
const IMAGE_NAME =
  /^[a-z0-9][a-z0-9._-]*(:\d+)?(\/[a-z0-9][a-z0-9._-]*)*(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[0-9a-f]{64})?$/
/** All that some reader somewhere takes for the end of a line, and what has no place in a text file. */
// oxlint-disable-next-line no-control-regex
const CONTROL = /[\u0000-\u0008\u000b-\u001f\u007f\u0085\u2028\u2029\ufeff]/
/** Say nothing to a task, which has its own command, ports and life; VOLUME would also make buildah copy directories about. */
const MEANINGLESS: ReadonlySet<string> = new Set(["VOLUME", "HEALTHCHECK", "EXPOSE", "STOPSIGNAL", "MAINTAINER"])
const MEANINGFUL = ["RUN", "COPY", "ADD", "ENV", "ARG", "WORKDIR", "USER", "SHELL", "CMD", "ENTRYPOINT", "LABEL"]
const KNOWN: ReadonlySet<string> = new Set([...MEANINGFUL, ...MEANINGLESS])

interface Instruction {
  /** Where it starts, from 1. */
  line: number
  /** In capitals. */
  name: string
  rest: string
}

interface Stage {
  name: string | null
  from: { kind: "scratch" } | { kind: "stage"; name: string } | { kind: "base"; name: string }
}

type Line = { from: Stage } | { text: string }
type Note = (line: number, reason: string) => void
type Problem = (reason: string) => void

function refused(line: number, reason: string): DockerfileCheck {
  return { ok: false, problems: [{ line, reason }] }
}

function splitInstructions(text: string, note: Note): Instruction[] {
  const instructions: Instruction[] = []
  let started: { line: number; text: string } | null = null
  let atTop = true
  const lines = text.replace(/^\ufeff/, "").split("\n")
  for (const [index, raw] of lines.entries()) {
    const line = raw.replace(/\r$/, "")
    if (CONTROL.test(line)) note(index + 1, "it has control characters")
    if (/^\s*#/.test(line)) {
      const directive = /^\s*#\s*(syntax|escape|check)\s*=/i.exec(line)
      if (atTop && directive) note(index + 1, `the directive # ${directive[1]}= is not supported; leave it out`)
      continue
    }
    atTop = false
    if (line.trim() === "") continue
    const continued = /\\[ \t]*$/.test(line)
    const part = continued ? line.replace(/\\[ \t]*$/, "") : line
    started = started === null ? { line: index + 1, text: part } : { line: started.line, text: started.text + part }
    if (continued) continue
    finish(started)
    started = null
  }
  if (started !== null) finish(started)
  return instructions

  function finish(one: { line: number; text: string }): void {
    const [, word = "", rest = ""] = /^(\S+)\s*(.*)$/s.exec(one.text.trim()) ?? []
    if (word === "") return
    if (rest.endsWith("\\")) note(one.line, "it ends in a backslash that continues nothing")
    instructions.push({ line: one.line, name: word.toUpperCase(), rest })
  }
}

function readFrom(
  rest: string,
  known: { globals: ReadonlyMap<string, string>; stages: readonly Stage[]; problem: Problem },
): Stage | null {
  const { globals, stages, problem } = known
  const refuse = (reason: string): null => (problem(reason), null)
  const words = rest.split(/\s+/)
  const [written = "", as, alias, ...more] = words
  if (written.startsWith("--")) {
    return refuse(`FROM ${written} is not supported: images are built for the node's own platform; leave it out`)
  }
  if (more.length > 0 || (as !== undefined && (as.toUpperCase() !== "AS" || alias === undefined)) || written === "") {
    return refuse("FROM is written FROM image [AS name]")
  }
  if (stages.length >= MOST_STAGES) return refuse(`it has more than ${MOST_STAGES} stages`)
  const name = alias?.toLowerCase() ?? null
  if (name !== null && (!STAGE_NAME.test(name) || name === "scratch" || stages.some((stage) => stage.name === name))) {
    return refuse(`the stage name ${JSON.stringify(alias)} is taken or no name (a letter, then letters, digits, _ . -)`)
  }
  const image = substitute(written, globals)
  if ("unresolved" in image) {
    return refuse(
      `FROM ${written}: ${image.unresolved} has no value; give it a default (ARG ${image.unresolved}=image before the first FROM) or a value in the manifest's build.args`,
    )
  }
  if (image.text === "scratch") return { name, from: { kind: "scratch" } }
  if (stages.some((stage) => stage.name === image.text.toLowerCase())) {
    return { name, from: { kind: "stage", name: image.text.toLowerCase() } }
  }
  if (!IMAGE_NAME.test(image.text)) return refuse(`FROM ${JSON.stringify(image.text)}: this is no name of an image`)
  return { name, from: { kind: "base", name: fullImageName(image.text) } }
}

/** `ARG A=1 B` before the first FROM: what FROM lines may refer to. The manifest's values win over defaults. */
function readGlobals(rest: string, args: Readonly<Record<string, string>>, globals: Map<string, string>): void {
  for (const word of rest.match(/(?:[^\s"']|"[^"]*"|'[^']*')+/g) ?? []) {
    const [, name = "", value] = /^([^=]*)(?:=(.*))?$/s.exec(word) ?? []
    const given = Object.hasOwn(args, name) ? args[name] : undefined
    const resolved = substitute(given ?? (value ?? "").replaceAll(/["']/g, ""), globals)
    if ((given ?? value) !== undefined && "text" in resolved) globals.set(name, resolved.text)
  }
}

/** `$A`, `${A}`, `${A:-default}` and `${A:+other}` replaced; or the first name that has no value. */
function substitute(text: string, values: ReadonlyMap<string, string>): { text: string } | { unresolved: string } {
  let unresolved: string | null = null
  const replaced = text.replaceAll(
    /\$(?:\{([A-Za-z_]\w*)(?:(:?[-+])([^${}]*))?\}|([A-Za-z_]\w*))/g,
    (
      _whole,
      braced: string | undefined,
      operator: string | undefined,
      word: string | undefined,
      plain: string | undefined,
    ) => {
      const name = braced ?? plain ?? ""
      const value = values.get(name)
      const empty = value === undefined || (operator?.startsWith(":") === true && value === "")
      if (operator?.endsWith("+")) return empty ? "" : (word ?? "")
      if (!empty) return value
      if (operator === undefined) unresolved ??= name
      return word ?? ""
    },
  )
  return unresolved === null ? { text: replaced } : { unresolved }
}

function checkInstruction(name: string, rest: string, stages: readonly Stage[], problem: Problem): void {
  if (name === "ONBUILD") return problem("ONBUILD is not supported: write the instruction where it shall run")
  if (!KNOWN.has(name)) return problem(`${JSON.stringify(name.slice(0, 40))} is no instruction`)
  if (rest === "") return problem(`${name} has no arguments`)
  if (name === "RUN" || name === "COPY" || name === "ADD") {
    if (rest.split(/\s+/).some((word) => /^\d*<<-?[^<\s]/.test(word))) {
      return problem(`${name} with a heredoc (<<) is not supported: put the text into a file of the project`)
    }
  }
  if (name === "RUN") return checkRun(rest, problem)
  if (name === "COPY" || name === "ADD") return checkCopy(name, rest, stages, problem)
}

function checkRun(rest: string, problem: Problem): void {
  const flag = /^--[a-z-]*/i.exec(rest)
  if (flag) problem(`RUN ${flag[0]} is not supported: builds keep their own layer cache, network and sandbox`)
}

const COPY_FLAGS: Readonly<Record<string, readonly string[]>> = {
  COPY: ["--from", "--chown", "--chmod"],
  ADD: ["--chown", "--chmod"],
}

function checkCopy(name: "COPY" | "ADD", rest: string, stages: readonly Stage[], problem: Problem): void {
  let left = rest
  for (let flag = /^(--\S*)\s*/.exec(left); flag; flag = /^(--\S*)\s*/.exec(left)) {
    const [key = "", value = ""] = (flag[1] ?? "").split(/=(.*)/s)
    if (!COPY_FLAGS[name]?.includes(key)) return problem(`${name} ${key} is not supported`)
    if (!/^[A-Za-z0-9_.:-]+$/.test(value))
      return problem(`${name} ${key} needs a plain value without variables or quotes`)
    if (key === "--from" && !isStage(value, stages.slice(0, -1))) {
      return problem(`COPY --from=${value}: this is no earlier stage; images are not copied from, make a stage of it`)
    }
    left = left.slice(flag[0].length)
  }
  if (name === "ADD") checkAdd(left, problem)
}

/** ADD fetches what looks like an address, after it has replaced variables and removed quotes. So neither may appear. */
function checkAdd(sources: string, problem: Problem): void {
  if (/:|@|\$|\\|['"`]|^github\.com|\sgithub\.com|\.git(\s|#|$)/i.test(sources.replace(/^\[(.*)\]$/s, unquoted))) {
    problem("ADD takes files of the project only: no addresses, no variables or quotes; use COPY for such names")
  }
}

function unquoted(_whole: string, inside: string): string {
  return inside.replaceAll(/"([^"\\]*)"\s*,?/g, "$1 ")
}

function isStage(name: string, stages: readonly Stage[]): boolean {
  if (/^\d+$/.test(name)) return Number(name) < stages.length
  return stages.some((stage) => stage.name === name.toLowerCase())
}

function renderLines(lines: readonly Line[], references: ReadonlyMap<string, string>): string {
  const written = lines.map((line) => ("text" in line ? line.text : renderFrom(line.from, references)))
  return `${written.join("\n")}\n`
}

function renderFrom(stage: Stage, references: ReadonlyMap<string, string>): string {
  const alias = stage.name === null ? "" : ` AS ${stage.name}`
  switch (stage.from.kind) {
    case "scratch":
      return `FROM scratch${alias}`
    case "stage":
      return `FROM ${stage.from.name}${alias}`
    case "base": {
      const reference = references.get(stage.from.name)
      if (reference === undefined) throw new Error(`no local reference for ${stage.from.name}`)
      return `FROM ${reference}${alias}`
    }
  }
}
