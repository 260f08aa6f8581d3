import { BlockList, isIP } from "node:net"
import { parseArgs } from "node:util"
import { errorText } from "../protocol/base/error-text.ts"
import { parseUsd, type MicroUsd } from "../protocol/domain/money.ts"

/** Everything an operator can set, checked; times in milliseconds. The only reader of the coordinator's environment. */
export interface CoordinatorConfig {
  dataDir: string
  httpHost: string
  /** 0 picks a free one. */
  httpPort: number
  meshHost: string
  /** 0 picks a free one. */
  meshPort: number
  /** Multiaddrs told to nodes instead of the listening ones; empty: the listening ones. */
  meshAnnounce: string[]
  /** A bare origin without trailing slash; null: the listening address. */
  publicUrl: string | null
  /** Null: made at the first start and kept in the data directory. */
  adminToken: string | null
  /** An extra credential for `/metrics`; null: none. */
  metricsToken: string | null
  signupCredit: MicroUsd
  /** A JSON file of prices; null: the built-in table. */
  pricesFile: string | null
  allowUnsandboxed: boolean
  allowUnenforced: boolean
  artifactTtlMs: number
  claimLifetimeMs: number
  /** Null: 1 s up to 500 nodes, then growing with the fleet (rulings, Mesh). */
  heartbeatMs: number | null
  /** The shortest time since last contact before a task may be granted again. */
  lostAfterMs: number
  priorityAgeingMs: number
  /** Null: max(2 × timeout, 30 min) of each job. */
  queueTimeoutMs: number | null
  stuckSweepMs: number
  /** How long jobs and their results stay after their end. */
  jobRetentionMs: number
  certificateTtlMs: number
  sseLimitMs: number
  ssePingMs: number
  quoteTtlMs: number
  resultSpillBytes: number
  /** Before the second call of a `callback_url`; five times as long before the third. */
  webhookRetryMs: number
  /** May clients' URLs lead to private addresses? */
  allowPrivateUrls: boolean
  /** Addresses and CIDR ranges of proxies whose forwarded headers count. */
  trustProxy: string[]
}

/** What the program is started for; said by flags alone, never by the environment. */
export type Command =
  /** `takeOver`: from this copy of the data, although a later one of it has been running elsewhere (architecture §4). */
  { command: "serve"; takeOver: boolean } | { command: "back up"; file: string } | { command: "restore"; file: string }

export interface ReadConfig {
  config: CoordinatorConfig
  command: Command
  /** One line each, for standard error: settings that have no effect. */
  warnings: string[]
}

/** Flags win over the environment. Throws an `Error` of one clear line for a wrong value or an unknown flag. */
export function readConfig(args: string[] = process.argv.slice(2), environment: Environment = process.env): ReadConfig {
  const { settings: flags, command } = readFlags(args)
  const value = <T>({ variable, parse, otherwise }: Setting<T>): T => {
    const flag = flags[flagOf(variable)]
    // An empty variable is how many service managers say "not set".
    const text = flag ?? (environment[variable] === "" ? undefined : environment[variable])
    if (text === undefined) return otherwise
    const name = flag === undefined ? variable : `--${flagOf(variable)}`
    try {
      return parse(text)
    } catch (error) {
      // A token, even a malformed one, stays out of logs.
      const given = variable.endsWith("_TOKEN") ? "what is given" : JSON.stringify(text)
      throw new Error(`${name} ${(error as Error).message}, not ${given}`, { cause: error })
    }
  }
  const config: CoordinatorConfig = {
    dataDir: value(SETTINGS.dataDir),
    httpHost: value(SETTINGS.httpHost),
    httpPort: value(SETTINGS.httpPort),
    meshHost: value(SETTINGS.meshHost),
    meshPort: value(SETTINGS.meshPort),
    meshAnnounce: value(SETTINGS.meshAnnounce),
    publicUrl: value(SETTINGS.publicUrl),
    adminToken: value(SETTINGS.adminToken),
    metricsToken: value(SETTINGS.metricsToken),
    signupCredit: value(SETTINGS.signupCredit),
    pricesFile: value(SETTINGS.pricesFile),
    allowUnsandboxed: value(SETTINGS.allowUnsandboxed),
    allowUnenforced: value(SETTINGS.allowUnenforced),
    artifactTtlMs: value(SETTINGS.artifactTtlMs),
    claimLifetimeMs: value(SETTINGS.claimLifetimeMs),
    heartbeatMs: value(SETTINGS.heartbeatMs),
    lostAfterMs: value(SETTINGS.lostAfterMs),
    priorityAgeingMs: value(SETTINGS.priorityAgeingMs),
    queueTimeoutMs: value(SETTINGS.queueTimeoutMs),
    stuckSweepMs: value(SETTINGS.stuckSweepMs),
    jobRetentionMs: value(SETTINGS.jobRetentionMs),
    certificateTtlMs: value(SETTINGS.certificateTtlMs),
    sseLimitMs: value(SETTINGS.sseLimitMs),
    ssePingMs: value(SETTINGS.ssePingMs),
    quoteTtlMs: value(SETTINGS.quoteTtlMs),
    resultSpillBytes: value(SETTINGS.resultSpillBytes),
    webhookRetryMs: value(SETTINGS.webhookRetryMs),
    allowPrivateUrls: value(SETTINGS.allowPrivateUrls),
    trustProxy: value(SETTINGS.trustProxy),
  }
  return { config, command, warnings: warningsAbout(environment) }
}

type Environment = Readonly<Record<string, string | undefined>>

interface Setting<T> {
  variable: string
  /** Throws what the value must be, as the rest of a sentence. */
  parse: (text: string) => T
  otherwise: T
}

const SECOND = 1_000
const HOUR = 3_600 * SECOND
const DAY = 24 * HOUR

/** Names and defaults as in the README; those of scheduling stand in the design beside what they decide. */
const SETTINGS = {
  dataDir: setting("COMPUTALOT_DATA_DIR", (text) => text, "./data"),
  httpHost: setting("COMPUTALOT_HTTP_HOST", parseHost, "127.0.0.1"),
  httpPort: setting("COMPUTALOT_HTTP_PORT", parsePort, 8080),
  meshHost: setting("COMPUTALOT_MESH_HOST", parseHost, "127.0.0.1"),
  meshPort: setting("COMPUTALOT_MESH_PORT", parsePort, 4001),
  meshAnnounce: setting("COMPUTALOT_MESH_ANNOUNCE", parseMultiaddrs, []),
  publicUrl: setting<string | null>("COMPUTALOT_PUBLIC_URL", parseOrigin, null),
  adminToken: setting<string | null>("COMPUTALOT_ADMIN_TOKEN", parseToken, null),
  metricsToken: setting<string | null>("COMPUTALOT_METRICS_TOKEN", parseToken, null),
  signupCredit: setting("COMPUTALOT_SIGNUP_CREDIT_USD", parseCredit, 0n),
  pricesFile: setting<string | null>("COMPUTALOT_PRICES", (text) => text, null),
  allowUnsandboxed: setting("COMPUTALOT_ALLOW_UNSANDBOXED", parseSwitch, false),
  allowUnenforced: setting("COMPUTALOT_ALLOW_UNENFORCED", parseSwitch, false),
  artifactTtlMs: setting("ARTIFACT_TTL_HOURS", durationIn(HOUR, "hours"), 168 * HOUR),
  claimLifetimeMs: setting("COMPUTALOT_CLAIM_LIFETIME_S", durationIn(SECOND, "seconds"), 300 * SECOND),
  heartbeatMs: setting<number | null>("COMPUTALOT_HEARTBEAT_S", durationIn(SECOND, "seconds"), null),
  lostAfterMs: setting("COMPUTALOT_LOST_AFTER_S", durationIn(SECOND, "seconds"), 5 * SECOND),
  priorityAgeingMs: setting("COMPUTALOT_PRIORITY_AGEING_S", durationIn(SECOND, "seconds"), 300 * SECOND),
  queueTimeoutMs: setting<number | null>("COMPUTALOT_QUEUE_TIMEOUT_S", durationIn(SECOND, "seconds"), null),
  stuckSweepMs: setting("COMPUTALOT_STUCK_SWEEP_S", durationIn(SECOND, "seconds"), 300 * SECOND),
  jobRetentionMs: setting("COMPUTALOT_JOB_RETENTION_DAYS", durationIn(DAY, "days"), 30 * DAY),
  certificateTtlMs: setting("COMPUTALOT_CERTIFICATE_TTL_S", durationIn(SECOND, "seconds"), 7 * DAY),
  sseLimitMs: setting("COMPUTALOT_SSE_LIMIT_S", durationIn(SECOND, "seconds"), 3_600 * SECOND),
  ssePingMs: setting("COMPUTALOT_SSE_PING_S", durationIn(SECOND, "seconds"), 15 * SECOND),
  quoteTtlMs: setting("COMPUTALOT_QUOTE_TTL_S", durationIn(SECOND, "seconds"), 3_600 * SECOND),
  resultSpillBytes: setting("COMPUTALOT_RESULT_SPILL_BYTES", parseBytes, 262_144),
  webhookRetryMs: setting("COMPUTALOT_WEBHOOK_RETRY_S", durationIn(SECOND, "seconds"), 1 * SECOND),
  allowPrivateUrls: setting("COMPUTALOT_ALLOW_PRIVATE_URLS", parseSwitch, false),
  trustProxy: setting("COMPUTALOT_TRUST_PROXY", parseProxies, []),
}

/** Settings of parts that this version does not have. */
const NOT_AVAILABLE_YET: [prefix: string, feature: string][] = [
  ["COMPUTALOT_S3_", "object storage"],
  ["COMPUTALOT_X402_", "payment by x402"],
  ["COMPUTALOT_SESSION_TTL_S", "wallet sign-in"],
  ["COMPUTALOT_CHALLENGE_TTL_S", "wallet sign-in"],
  ["COMPUTALOT_UPLOAD_URL_TTL_S", "presigned uploads"],
]

/** Settings of the other programs, which share the environment of a machine. */
const OF_OTHERS = ["COMPUTALOT_NODE_", "COMPUTALOT_CONTROLLER_URL", "COMPUTALOT_API_TOKEN"]

function warningsAbout(environment: Environment): string[] {
  const known = new Set(Object.values(SETTINGS).map(({ variable }) => variable))
  const isLater = (name: string): boolean => NOT_AVAILABLE_YET.some(([prefix]) => name.startsWith(prefix))
  return Object.keys(environment)
    .filter((name) => name.startsWith("COMPUTALOT_") && environment[name] !== "")
    .filter((name) => !known.has(name) || isLater(name))
    .filter((name) => !OF_OTHERS.some((prefix) => name.startsWith(prefix)))
    .sort()
    .map((name) => {
      const later = NOT_AVAILABLE_YET.find(([prefix]) => name.startsWith(prefix))
      return later
        ? `${name} has no effect: ${later[1]} is not available yet`
        : `${name} has no effect: there is no such setting`
    })
}

function setting<T>(variable: string, parse: (text: string) => T, otherwise: T): Setting<T> {
  return { variable, parse, otherwise }
}

/** `COMPUTALOT_DATA_DIR` is `--data-dir`. */
function flagOf(variable: string): string {
  return variable
    .replace(/^COMPUTALOT_/, "")
    .toLowerCase()
    .replaceAll("_", "-")
}

function readFlags(args: string[]): { settings: Record<string, string | undefined>; command: Command } {
  const names = Object.values(SETTINGS).map(({ variable }) => flagOf(variable))
  try {
    const options = Object.fromEntries(names.map((name) => [name, { type: "string" as const }]))
    const { values } = parseArgs({
      args: withSwitchValues(args),
      options: { ...COMMAND_FLAGS, ...options },
      allowPositionals: false,
    })
    const { backup, restore, "take-over": takeOver, ...settings } = values
    return {
      settings: settings as Record<string, string | undefined>,
      command: commandOf({ backup, restore, takeOver }),
    }
  } catch (error) {
    if (error instanceof CommandError) throw error
    const reason = errorText(error).split(/[.\n]/)[0]
    const known = [...names, ...Object.keys(COMMAND_FLAGS)]
    throw new Error(`${reason}; known flags: ${known.map((name) => `--${name}`).join(" ")}`, { cause: error })
  }
}

const COMMAND_FLAGS = {
  backup: { type: "string" },
  restore: { type: "string" },
  "take-over": { type: "boolean" },
} as const

class CommandError extends Error {}

function commandOf(flags: {
  backup: string | undefined
  restore: string | undefined
  takeOver: boolean | undefined
}): Command {
  const { backup, restore, takeOver = false } = flags
  if ([backup !== undefined, restore !== undefined, takeOver].filter(Boolean).length > 1) {
    throw new CommandError("--backup, --restore and --take-over are given one at a time")
  }
  if (backup === "" || restore === "") throw new CommandError("--backup and --restore need the name of a file")
  if (backup !== undefined) return { command: "back up", file: backup }
  if (restore !== undefined) return { command: "restore", file: restore }
  return { command: "serve", takeOver }
}

/** A switch may stand alone: `--allow-unsandboxed` means 1. */
function withSwitchValues(args: string[]): string[] {
  const settings = [SETTINGS.allowUnsandboxed, SETTINGS.allowUnenforced, SETTINGS.allowPrivateUrls]
  const switches = settings.map(({ variable }) => `--${flagOf(variable)}`)
  return args.map((arg, index) => {
    const next = args[index + 1]
    return switches.includes(arg) && (next === undefined || next.startsWith("-")) ? `${arg}=1` : arg
  })
}

function parseHost(text: string): string {
  if (isIP(text) === 0 && !/^[a-zA-Z0-9.-]{1,253}$/.test(text)) throw new Error("must be an address or a host name")
  return text
}

function parsePort(text: string): number {
  if (!/^\d{1,5}$/.test(text) || Number(text) > 65_535) throw new Error("must be a port from 0 to 65535")
  return Number(text)
}

function parseMultiaddrs(text: string): string[] {
  const addresses = listed(text)
  if (!addresses.every((address) => /^\/[a-z0-9]+\/\S+$/.test(address))) {
    throw new Error("must be multiaddrs with commas between, such as /dns4/mesh.example.org/tcp/4001")
  }
  return addresses
}

/** Rendered into documents and links, so that nothing a client sends decides it (rulings, Origin). */
function parseOrigin(text: string): string {
  const url = URL.canParse(text) ? new URL(text) : null
  const bare = url !== null && /^https?:$/.test(url.protocol) && url.username === "" && url.password === ""
  if (!bare || url.pathname !== "/" || /[?#]/.test(text))
    throw new Error("must be a bare origin such as https://compute.example.org")
  return url.origin
}

function parseToken(text: string): string {
  if (!/^[\x21-\x7e]{1,512}$/.test(text)) throw new Error("must be 1 to 512 printable characters without spaces")
  return text
}

function parseCredit(text: string): MicroUsd {
  const amount = /^\d+(\.\d+)?$/.test(text) ? parseUsd(Number(text)) : null
  if (amount === null) throw new Error("must be an amount in dollars of at least 0, with at most six decimals")
  return amount
}

function parseSwitch(text: string): boolean {
  if (/^(1|true|yes|on)$/i.test(text)) return true
  if (/^(0|false|no|off)$/i.test(text)) return false
  throw new Error("must be 0 or 1")
}

function parseBytes(text: string): number {
  if (!/^\d{1,12}$/.test(text) || Number(text) < 1) throw new Error("must be a whole number of bytes above 0")
  return Number(text)
}

/** Fractions are fine: tests run with short times. */
function durationIn(unitMs: number, unit: string): (text: string) => number {
  return (text) => {
    const amount = /^\d+(\.\d+)?$|^\.\d+$/.test(text) ? Number(text) : Number.NaN
    if (!(amount > 0 && amount * unitMs <= LONGEST_MS)) throw new Error(`must be a number of ${unit} above 0`)
    return amount * unitMs
  }
}

/** Added to any date it still is one. */
const LONGEST_MS = 100 * 365 * DAY

function parseProxies(text: string): string[] {
  const proxies = listed(text)
  for (const proxy of proxies) {
    const [address = "", bits] = proxy.split("/")
    const family = isIP(address) === 6 ? "ipv6" : "ipv4"
    try {
      if (bits === undefined) new BlockList().addAddress(address, family)
      else new BlockList().addSubnet(address, /^\d+$/.test(bits) ? Number(bits) : -1, family)
    } catch (error) {
      throw new Error("must be addresses or CIDR ranges with commas between, such as 10.0.0.0/8", { cause: error })
    }
  }
  return proxies
}

function listed(text: string): string[] {
  return text
    .split(",")
    .map((part) => part.trim())
    .filter((part) => part !== "")
}
