import { execFile } from "node:child_process"
import { readdirSync, readFileSync, writeFileSync } from "node:fs"
import { readFile } from "node:fs/promises"
import { isIPv4 } from "node:net"
import { networkInterfaces } from "node:os"
import { join } from "node:path"
import { promisify } from "node:util"
import { errorText } from "../../protocol/base/error-text.ts"
import { RuntimeRefusal } from "./driver.ts"
import { findOnHost } from "./find-on-host.ts"
import { agentMark } from "./limits.ts"

/**
 * Networks of tasks (interfaces.md): the internet, and nothing private, link-local, loopback, of the node or of the mesh. Each
 * attempt gets a network namespace and a veth of its own; the agent has one nft table.
 */
export interface TaskNetworks {
  /** Null: tasks can be let out. Otherwise why not, for the operator. */
  readonly problem: string | null
  /** Whom to ask for names inside. */
  readonly nameServers: readonly string[]
  /** What /etc/resolv.conf says inside. */
  readonly resolvConf: string
  /** Makes the attempt's network and answers the path of its namespace. */
  make(attemptDir: string): Promise<string>
  /** Missing networks are fine. */
  remove(attemptDir: string): Promise<void>
  /** Removes every network of this agent but those of the attempts named, and sets the rules anew. */
  sweep(keep: Iterable<string>): Promise<void>
  /** Takes the rules away when no attempt needs them any more. */
  close(): Promise<void>
}

const run = promisify(execFile)

/** Where no task may go: RFC 6890's special blocks, multicast and broadcast. */
const PRIVATE = [
  "0.0.0.0/8",
  "10.0.0.0/8",
  "100.64.0.0/10",
  "127.0.0.0/8",
  "169.254.0.0/16",
  "172.16.0.0/12",
  "192.0.0.0/24",
  "192.168.0.0/16",
  "198.18.0.0/15",
  "224.0.0.0/3",
]
/** Attempts' own addresses: /30 blocks of 100.115.0.0/16 (shared address space, which no machine should meet elsewhere). */
const BLOCKS = 16_384

/** Tries whether this machine lets us; changes nothing of it but our own table. `blocked`: further addresses, the mesh's. */
export async function openTaskNetworks(dataDir: string, blocked: readonly string[] = []): Promise<TaskNetworks> {
  const mark = agentMark(dataDir)
  const table = `computalot_${mark}`
  const prefix = `cl-${mark}-`
  const link = `cl${mark.slice(0, 6)}`
  const tools = { ip: findOnHost("ip"), nft: findOnHost("nft") }
  const resolvers = nodeResolvers()
  let next = Number.parseInt(mark.slice(0, 4), 16)

  const ip = async (batch: string[]): Promise<void> => {
    const done = run(tools.ip ?? "ip", ["-batch", "-"])
    done.child.stdin?.end(`${batch.join("\n")}\n`)
    await done
  }
  const nft = async (rules: string): Promise<void> => {
    const done = run(tools.nft ?? "nft", ["-f", "-"])
    done.child.stdin?.end(rules)
    await done
  }
  const own = (): string[] => namesIn("/run/netns").filter((name) => name.startsWith(prefix))

  function freeBlock(): number {
    const taken = new Set(
      Object.values(networkInterfaces()).flatMap((list) => (list ?? []).map(({ address }) => address)),
    )
    const named = new Set(own())
    for (let tries = 0; tries < BLOCKS; tries++) {
      const block = next++ % BLOCKS
      if (!taken.has(address(block, 1)) && !named.has(prefix + block)) return block
    }
    throw new RuntimeRefusal("sandbox_error", "no address block is free for the network of the attempt")
  }

  async function trial(): Promise<string | null> {
    if (process.getuid?.() !== 0) return "tasks get no network: only root can make networks for them"
    if (tools.ip === null || tools.nft === null) return "tasks get no network: iproute2 and nftables are needed"
    if (readText("/proc/sys/net/ipv4/ip_forward").trim() !== "1") {
      return "tasks get no network: forwarding is off on this machine (sysctl net.ipv4.ip_forward=1 turns it on)"
    }
    try {
      await nft(rules(table, link, resolvers, blocked))
      const block = freeBlock()
      await makeNetwork(block)
      await ip([`netns del ${prefix}${block}`])
      return null
    } catch (error) {
      return `tasks get no network: ${errorText(error)}`
    }
  }

  async function makeNetwork(block: number): Promise<void> {
    const [netns, outside] = [prefix + block, `${link}.${block}`]
    await ip([
      `netns add ${netns}`,
      `link add ${outside} type veth peer name eth0 netns ${netns}`,
      `addr add ${address(block, 1)}/30 dev ${outside}`,
      `link set ${outside} up`,
    ])
    const inside = run(tools.ip ?? "ip", ["-n", netns, "-batch", "-"])
    inside.child.stdin?.end(
      [
        `link set lo up`,
        `addr add ${address(block, 2)}/30 dev eth0`,
        `link set eth0 up`,
        `route add default via ${address(block, 1)}`,
        "",
      ].join("\n"),
    )
    await inside
  }

  const problem = await trial()
  return {
    problem,
    nameServers: resolvers,
    resolvConf: problem === null ? resolvers.map((resolver) => `nameserver ${resolver}\n`).join("") : "",
    async make(attemptDir) {
      if (problem !== null) throw new RuntimeRefusal("sandbox_error", problem)
      const block = freeBlock()
      // Written first: whoever removes the attempt finds its network.
      writeFileSync(join(attemptDir, "network"), prefix + block)
      await makeNetwork(block)
      return `/run/netns/${prefix}${block}`
    },
    async remove(attemptDir) {
      const netns = await readFile(join(attemptDir, "network"), "utf8").catch(() => null)
      if (netns !== null && own().includes(netns)) await ip([`netns del ${netns}`])
    },
    async sweep(keep) {
      const kept = new Set([...keep].map((attemptDir) => readText(join(attemptDir, "network"))))
      for (const netns of own()) if (!kept.has(netns)) await ip([`netns del ${netns}`])
      if (problem === null) await nft(rules(table, link, resolvers, blocked))
    },
    async close() {
      if (problem === null && own().length === 0) await nft(`table inet ${table}\ndelete table inet ${table}\n`)
    },
  }
}

const address = (block: number, host: number): string => `100.115.${block >> 6}.${(block & 63) * 4 + host}`

/** The whole table in one transaction: there is no moment without rules. Pure. */
function rules(table: string, link: string, resolvers: readonly string[], blocked: readonly string[]): string {
  const dns =
    resolvers.length === 0 ? [] : [`ip daddr { ${resolvers.join(", ")} } meta l4proto { tcp, udp } th dport 53 accept`]
  const more = blocked.filter(isIPv4)
  return [
    `table inet ${table}`,
    `delete table inet ${table}`,
    `table inet ${table} {`,
    "chain let_out {",
    ...dns,
    `ip daddr { ${PRIVATE.join(", ")} } reject`,
    ...(more.length === 0 ? [] : [`ip daddr { ${more.join(", ")} } reject`]),
    "meta nfproto ipv6 drop",
    "accept",
    "}",
    "chain forwarded {",
    "type filter hook forward priority -10; policy accept;",
    `iifname "${link}.*" jump let_out`,
    `oifname "${link}.*" ct state established,related accept`,
    `oifname "${link}.*" drop`,
    "}",
    "chain to_node {",
    "type filter hook input priority -10; policy accept;",
    `iifname "${link}.*" reject`,
    "}",
    "chain masked {",
    "type nat hook postrouting priority 100; policy accept;",
    `ip saddr 100.115.0.0/16 oifname != "${link}.*" masquerade`,
    "}",
    "}",
    "",
  ].join("\n")
}

/** The resolvers the node itself asks; a stub on loopback is replaced by those it asks. Only IPv4 leads out of a task. */
function nodeResolvers(): string[] {
  for (const path of ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"]) {
    const named = [...readText(path).matchAll(/^nameserver\s+(\S+)/gm)].map((match) => match[1] ?? "")
    const usable = named.filter((resolver) => isIPv4(resolver) && !resolver.startsWith("127."))
    if (usable.length > 0) return usable
  }
  return []
}

function namesIn(directory: string): string[] {
  try {
    return readdirSync(directory)
  } catch {
    return []
  }
}

function readText(path: string): string {
  try {
    return readFileSync(path, "utf8")
  } catch {
    return ""
  }
}
