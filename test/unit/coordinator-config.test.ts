import { expect, test } from "vitest"
import { readConfig } from "../../coordinator/config.ts"

test("without settings every default stands, and nothing is warned about", () => {
  const { config, warnings } = readConfig([], {})
  expect(warnings).toEqual([])
  expect(config).toEqual({
    dataDir: "./data",
    httpHost: "127.0.0.1",
    httpPort: 8080,
    meshHost: "127.0.0.1",
    meshPort: 4001,
    meshAnnounce: [],
    publicUrl: null,
    adminToken: null,
    metricsToken: null,
    signupCredit: 0n,
    pricesFile: null,
    allowUnsandboxed: false,
    allowUnenforced: false,
    artifactTtlMs: 604_800_000,
    claimLifetimeMs: 300_000,
    heartbeatMs: null,
    lostAfterMs: 5_000,
    priorityAgeingMs: 300_000,
    queueTimeoutMs: null,
    stuckSweepMs: 300_000,
    jobRetentionMs: 2_592_000_000,
    certificateTtlMs: 604_800_000,
    sseLimitMs: 3_600_000,
    ssePingMs: 15_000,
    quoteTtlMs: 3_600_000,
    resultSpillBytes: 262_144,
    webhookRetryMs: 1_000,
    allowPrivateUrls: false,
    trustProxy: [],
  })
})

test("the environment sets, a flag of the same name wins, an empty variable is none", () => {
  const environment = {
    COMPUTALOT_DATA_DIR: "/srv/a",
    COMPUTALOT_HTTP_PORT: "0",
    COMPUTALOT_MESH_HOST: "",
    ARTIFACT_TTL_HOURS: "0.5",
    COMPUTALOT_ALLOW_UNSANDBOXED: "1",
    COMPUTALOT_SIGNUP_CREDIT_USD: "2.5",
    COMPUTALOT_MESH_ANNOUNCE: "/ip4/10.0.0.7/tcp/4001, /dns4/mesh.example.org/tcp/4001",
    COMPUTALOT_TRUST_PROXY: "10.0.0.0/8,::1",
    COMPUTALOT_PUBLIC_URL: "https://compute.example.org/",
  }
  const { config } = readConfig(
    ["--data-dir", "/srv/b", "--heartbeat-s=0.25", "--allow-unenforced", "--allow-unsandboxed", "0"],
    environment,
  )
  expect(config).toMatchObject({
    dataDir: "/srv/b",
    httpPort: 0,
    meshHost: "127.0.0.1",
    artifactTtlMs: 1_800_000,
    heartbeatMs: 250,
    allowUnsandboxed: false,
    allowUnenforced: true,
    signupCredit: 2_500_000n,
    meshAnnounce: ["/ip4/10.0.0.7/tcp/4001", "/dns4/mesh.example.org/tcp/4001"],
    trustProxy: ["10.0.0.0/8", "::1"],
    publicUrl: "https://compute.example.org",
  })
})

test.each([
  [[], { command: "serve", takeOver: false }],
  [["--take-over"], { command: "serve", takeOver: true }],
  [["--backup", "/srv/b.tar", "--data-dir=/srv/a"], { command: "back up", file: "/srv/b.tar" }],
  [["--restore=/srv/b.tar"], { command: "restore", file: "/srv/b.tar" }],
])("%j says what the program is started for", (args, command) => {
  expect(readConfig(args, { COMPUTALOT_BACKUP: "/srv/other.tar" }).command).toEqual(command)
})

test.each([
  [["--backup=a", "--restore=b"], /^--backup, --restore and --take-over are given one at a time$/],
  [["--backup=a", "--take-over"], /one at a time$/],
  [["--restore="], /^--backup and --restore need the name of a file$/],
  [["--backup"], /^Option '--backup <value>' argument missing/],
])("%j is refused", (args, line) => {
  expect(() => readConfig(args, {})).toThrow(line)
})

test.each([
  ["COMPUTALOT_HTTP_PORT", "80a"],
  ["COMPUTALOT_HTTP_PORT", "65536"],
  ["COMPUTALOT_HTTP_HOST", "not a host"],
  ["COMPUTALOT_CLAIM_LIFETIME_S", "0"],
  ["COMPUTALOT_CLAIM_LIFETIME_S", "-1"],
  ["COMPUTALOT_CLAIM_LIFETIME_S", "soon"],
  ["COMPUTALOT_SIGNUP_CREDIT_USD", "1.0000001"],
  ["COMPUTALOT_ALLOW_UNSANDBOXED", "maybe"],
  ["COMPUTALOT_PUBLIC_URL", "https://example.org/api"],
  ["COMPUTALOT_PUBLIC_URL", "https://user:secret@example.org"],
  ["COMPUTALOT_PUBLIC_URL", "ftp://example.org"],
  ["COMPUTALOT_PUBLIC_URL", "https://example.org/?"],
  ["COMPUTALOT_PUBLIC_URL", "example.org"],
  ["COMPUTALOT_MESH_ANNOUNCE", "mesh.example.org:4001"],
  ["COMPUTALOT_RESULT_SPILL_BYTES", "0"],
  ["COMPUTALOT_TRUST_PROXY", "10.0.0.0/40"],
  ["COMPUTALOT_TRUST_PROXY", "proxy"],
])("%s=%s is refused in one line that names the variable and the value", (variable, text) => {
  const refuse = (): unknown => readConfig([], { [variable]: text })
  expect(refuse).toThrow(new RegExp(`^${variable} must be [^\\n]+, not "`))
})

test("a malformed token is refused without being shown", () => {
  expect(() => readConfig([], { COMPUTALOT_ADMIN_TOKEN: "two words" })).toThrow(
    /^COMPUTALOT_ADMIN_TOKEN must be [^"]+, not what is given$/,
  )
})

test("a wrong flag is named as it was written; an unknown one is refused", () => {
  expect(() => readConfig(["--http-port", "x"], {})).toThrow(/^--http-port must be a port/)
  expect(() => readConfig(["--speed", "9"], {})).toThrow(/^Unknown option '--speed'[^\n]*--data-dir/)
  expect(() => readConfig(["serve"], {})).toThrow(/serve/)
})

test("settings of later parts, and misspelt ones, are warned about in one line each", () => {
  const { warnings } = readConfig([], {
    COMPUTALOT_X402_NETWORK: "eip155:84532",
    COMPUTALOT_S3_BUCKET: "b",
    COMPUTALOT_HTTP_PROT: "1",
    COMPUTALOT_NODE_TOKEN: "t",
    COMPUTALOT_API_TOKEN: "t",
  })
  expect(warnings).toEqual([
    "COMPUTALOT_HTTP_PROT has no effect: there is no such setting",
    "COMPUTALOT_S3_BUCKET has no effect: object storage is not available yet",
    "COMPUTALOT_X402_NETWORK has no effect: payment by x402 is not available yet",
  ])
})
