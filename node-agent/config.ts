import { join } from "node:path"
import { parseArgs } from "node:util"
import { errorText } from "../protocol/base/error-text.ts"
import { NODE_ROLES, type NodeRole } from "../protocol/domain/statuses.ts"
import { parseGpuCap, type OperatorCaps } from "./hardware/probe.ts"
import type { RuntimeChoice } from "./runtime/choose-driver.ts"

/** Everything an operator can set, checked; times in milliseconds. The only reader of the agent's environment. */
export interface NodeConfig {
  /** Origin of the coordinator's API; files of tasks go there too, never to its public address. */
  coordinator: string
  /** `fln_…`; needed at the first start only. */
  token: string | null
  dataDir: string
  name: string | null
  runtime: RuntimeChoice
  allowUnsandboxed: boolean
  caps: OperatorCaps
  listen: string[]
  /** Multiaddrs told to others instead of the listening ones; empty: the listening ones. */
  announce: string[]
  /** Null: all that the token grants. */
  roles: NodeRole[] | null
  keepRunningMs: number
  cacheBytes: number
  drain: "finish" | "checkpoint" | "now"
  /** Base images of builders and of image layers. */
  basesDirectory: string
  pullBases: boolean
  /** Null: outbound where it can be enforced. */
  taskNetwork: "none" | "outbound" | null
  buildNetwork: "none" | "outbound" | null
  /** Passed into builds; null: what the agent's user has set up. */
  pipIndexUrl: string | null
  npmRegistry: string | null
  /** PATH, HOME and LANG of the agent: where tools are looked for, and all that the process runtime passes on. */
  environment: { PATH?: string; HOME?: string; LANG?: string }
}

/** Flags win over the environment. Throws an `Error` of one clear line for a wrong value or an unknown flag. */
export function readConfig(args: string[] = process.argv.slice(2), environment: Environment = process.env): NodeConfig {
  const flags = readFlags(args)
  const text = (name: Flag): string | undefined => {
    const variable = environment[variableOf(name)]
    return flags[name] ?? (variable === "" ? undefined : variable)
  }
  const value = <T>(name: Flag, parse: (text: string) => T, otherwise: T): T => {
    const given = text(name)
    if (given === undefined) return otherwise
    try {
      return parse(given)
    } catch (error) {
      const source = flags[name] === undefined ? variableOf(name) : `--${name}`
      // A token, even a malformed one, stays out of logs.
      throw new Error(
        `${source} ${errorText(error)}, not ${name === "token" ? "what is given" : JSON.stringify(given)}`,
      )
    }
  }
  const runtime = value("runtime", oneOf(["auto", "gvisor", "bubblewrap", "process"]), "auto")
  const allowUnsandboxed = value("allow-unsandboxed", parseSwitch, false)
  if (runtime === "process" && !allowUnsandboxed) {
    throw new Error("--runtime process runs tasks without any isolation: give --allow-unsandboxed too if that is meant")
  }
  const coordinator = value<string | null>("coordinator", parseOrigin, null)
  if (coordinator === null) throw new Error("--coordinator URL says where the coordinator's API is; it is required")
  const dataDir = value("data-dir", (given) => given, "./node-data")
  const cpu = value<number | undefined>("cpus", positive, undefined)
  const memoryMb = value<number | undefined>("memory-mb", positive, undefined)
  const storageGb = value<number | undefined>("storage-gb", positive, undefined)
  const gpus = value("gpus", parseGpus, undefined)
  return {
    coordinator,
    token: value<string | null>("token", parseToken, null),
    dataDir,
    name: value<string | null>("name", parseName, null),
    runtime,
    allowUnsandboxed,
    caps: {
      ...(cpu === undefined ? {} : { cpu }),
      ...(memoryMb === undefined ? {} : { memoryMb }),
      ...(storageGb === undefined ? {} : { storageGb }),
      ...(gpus === undefined ? {} : { gpus }),
    },
    listen: value("listen", parseMultiaddrs, ["/ip4/0.0.0.0/tcp/0"]),
    announce: value("announce", parseMultiaddrs, []),
    roles: value<NodeRole[] | null>("roles", parseRoles, null),
    keepRunningMs: value("keep-running-s", seconds, 600_000),
    cacheBytes: value("cache-gb", (given) => positive(given) * 1024 ** 3, 20 * 1024 ** 3),
    drain: value("drain", oneOf(["finish", "checkpoint", "now"]), "finish"),
    basesDirectory: value("bases", (given) => given, join(dataDir, "bases")),
    pullBases: value("pull-bases", parseSwitch, false),
    taskNetwork: value<NodeConfig["taskNetwork"]>("task-network", oneOf(["none", "outbound"]), null),
    buildNetwork: value<NodeConfig["buildNetwork"]>("build-network", oneOf(["none", "outbound"]), null),
    pipIndexUrl: value<string | null>("pip-index-url", parseUrl, null),
    npmRegistry: value<string | null>("npm-registry", parseUrl, null),
    environment: machine(environment),
  }
}

type Environment = Readonly<Record<string, string | undefined>>

const FLAGS = [
  "coordinator",
  "token",
  "data-dir",
  "name",
  "runtime",
  "allow-unsandboxed",
  "cpus",
  "memory-mb",
  "storage-gb",
  "gpus",
  "listen",
  "announce",
  "roles",
  "keep-running-s",
  "cache-gb",
  "drain",
  "bases",
  "pull-bases",
  "task-network",
  "build-network",
  "pip-index-url",
  "npm-registry",
] as const
type Flag = (typeof FLAGS)[number]

const SWITCHES = ["--allow-unsandboxed", "--pull-bases"]

/** `--data-dir` is `COMPUTALOT_NODE_DATA_DIR`. */
function variableOf(flag: Flag): string {
  return `COMPUTALOT_NODE_${flag.toUpperCase().replaceAll("-", "_")}`
}

function readFlags(args: string[]): Partial<Record<Flag, string>> {
  try {
    const options = Object.fromEntries(FLAGS.map((name) => [name, { type: "string" as const }]))
    return parseArgs({ args: withSwitchValues(args), options, allowPositionals: false }).values
  } catch (error) {
    const reason = errorText(error).split(/[.\n]/)[0]
    // Without its cause, which has several lines.
    throw new Error(`${reason}; known flags: ${FLAGS.map((name) => `--${name}`).join(" ")}`)
  }
}

/** A switch may stand alone: `--allow-unsandboxed` means 1. */
function withSwitchValues(args: string[]): string[] {
  return args.map((arg, index) => {
    const next = args[index + 1]
    return SWITCHES.includes(arg) && (next === undefined || next.startsWith("-")) ? `${arg}=1` : arg
  })
}

function machine({ PATH, HOME, LANG }: Environment): NodeConfig["environment"] {
  return { ...(PATH ? { PATH } : {}), ...(HOME ? { HOME } : {}), ...(LANG ? { LANG } : {}) }
}

function parseOrigin(text: string): string {
  const url = URL.canParse(text) ? new URL(text) : null
  if (url === null || !/^https?:$/.test(url.protocol) || !/^\/?$/.test(url.pathname) || /[?#]/.test(text)) {
    throw new Error("must be an origin such as https://compute.example.org")
  }
  return url.origin
}

function parseToken(text: string): string {
  if (!/^fln_[\x21-\x7e]{1,200}$/.test(text)) throw new Error("must be a join token (fln_…)")
  return text
}

function parseName(text: string): string {
  if (text.trim() === "" || text.length > 128) throw new Error("must have 1 to 128 characters")
  return text
}

function parseMultiaddrs(text: string): string[] {
  const addresses = text.split(",").map((part) => part.trim())
  if (!addresses.every((address) => /^\/[a-z0-9]+\/\S+$/.test(address))) {
    throw new Error("must be multiaddrs with commas between, such as /ip4/0.0.0.0/tcp/4002")
  }
  return addresses
}

function parseRoles(text: string): NodeRole[] {
  const roles = NODE_ROLES.filter((role) => text.split(",").some((part) => part.trim() === role))
  if (roles.length === 0 || roles.length !== new Set(text.split(",")).size) {
    throw new Error(`must be some of ${NODE_ROLES.join(",")}`)
  }
  return roles
}

function parseGpus(text: string): OperatorCaps["gpus"] {
  const cap = parseGpuCap(text)
  if (cap === null) throw new Error("must be a count, or count:memory_mb such as 1:24576")
  return cap
}

function parseUrl(text: string): string {
  if (!URL.canParse(text)) throw new Error("must be a URL")
  return text
}

function parseSwitch(text: string): boolean {
  if (/^(1|true|yes|on)$/i.test(text)) return true
  if (/^(0|false|no|off)$/i.test(text)) return false
  throw new Error("must be 0 or 1")
}

function positive(text: string): number {
  const number = Number(text)
  if (text.trim() === "" || !Number.isFinite(number) || number <= 0) throw new Error("must be a number above 0")
  return number
}

function seconds(text: string): number {
  const number = Number(text)
  if (text.trim() === "" || !Number.isFinite(number) || number < 0) throw new Error("must be a number of seconds")
  return number * 1000
}

function oneOf<const T extends string>(choices: readonly T[]): (text: string) => T {
  return (text) => {
    const found = choices.find((choice) => choice === text)
    if (found === undefined) throw new Error(`must be one of ${choices.join(", ")}`)
    return found
  }
}
