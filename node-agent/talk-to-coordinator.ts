import { unreachable } from "../protocol/base/assert.ts"
import type { Clock } from "../protocol/base/clock.ts"
import { nodeId, type newBootId } from "../protocol/domain/ids.ts"
import type { NodeRole } from "../protocol/domain/statuses.ts"
import type { MeshNode } from "../protocol/mesh/mesh.ts"
import {
  CONTROL_VERSION,
  type Hello,
  type ToCoordinator,
  type Welcome,
  type WireCapacity,
} from "../protocol/wire/control.ts"
import type { Advertiser } from "./mesh/advertise.ts"
import type { LinkParts } from "./mesh/coordinator-link.ts"
import type { createWants } from "./mesh/offers.ts"
import type { Outbox } from "./outbox/outbox.ts"
import type { DriverProbe } from "./runtime/driver.ts"
import type { World } from "./start-mesh.ts"
import type { BuildOrders } from "./tasks/build-orders.ts"
import type { Checkpoints } from "./tasks/checkpoints.ts"
import type { ClaimLoop } from "./tasks/claim-loop.ts"
import type { Delivery } from "./tasks/deliver.ts"
import type { Runtimes } from "./tasks/runtimes.ts"
import type { StandingClaimKeeper } from "./tasks/standing-claim.ts"

/** What is said to the coordinator, and which part hears what it says. */
export type Talk = Pick<LinkParts, "hello" | "heartbeat" | "onWelcome" | "onMessage">

export interface TalkParts {
  version: string
  bootId: ReturnType<typeof newBootId>
  roles: NodeRole[]
  capacity: WireCapacity
  driver: { name: string }
  probe: DriverProbe
  network: DriverProbe["network"]
  mesh: MeshNode
  world: World
  outbox: Outbox
  claimLoop: ClaimLoop
  delivery: Delivery
  checkpoints: Checkpoints
  /** Null: this node builds nothing. */
  builds: BuildOrders | null
  runtimes: Runtimes
  standing: StandingClaimKeeper
  wants: ReturnType<typeof createWants>
  adverts: Advertiser
  clock: Clock
  send: (message: ToCoordinator) => void
  reconnect: (reason: string) => void
  transferToken: (token: string) => void
  certificate: (renewed: string) => void
  drainedByAdmin: (isDrained: boolean) => void
  /** The coordinator answers our heartbeats: it counts our capacity. */
  counted: () => void
  cannotGoOn: (line: string) => void
}

/** Attempts in one heartbeat. */
const MOST_NAMED = 10_000

export function talkToCoordinator(parts: TalkParts): Talk {
  const { mesh, world, outbox, claimLoop, delivery, checkpoints, builds, runtimes, standing, wants, adverts, send } =
    parts

  function hello(): Hello {
    const { epoch, epochProof } = outbox.memory()
    return {
      type: "hello",
      version: CONTROL_VERSION,
      agent_version: parts.version,
      boot_id: parts.bootId,
      epoch,
      epoch_proof: epochProof,
      roles: parts.roles,
      capacity: parts.capacity,
      runtime: parts.driver.name,
      isolation: parts.probe.isolation,
      enforces: parts.probe.enforces,
      network: parts.network,
      addresses: mesh.addresses().slice(0, 16),
      attempts: claimLoop.heldClaims(),
    }
  }

  function welcomed(welcome: Welcome): void {
    const known = outbox.memory().epoch
    if (welcome.epoch < known) return parts.reconnect("the coordinator runs on an older copy of its data")
    if (welcome.epoch > known) outbox.rememberEpoch(welcome.epoch, welcome.epoch_proof)
    world.offsetMs = welcome.now - parts.clock.now()
    world.members = welcome.members
    world.peers = welcome.peers
    world.revoked = new Set(welcome.revoked)
    world.revocationVersion = welcome.revocation_version
    parts.transferToken(welcome.transfer_token)
    mesh.setRevoked(welcome.revoked.map(nodeId))
    adverts.setMembers(welcome.members)
    if (welcome.certificate !== null) parts.certificate(welcome.certificate)
    claimLoop.welcome(welcome)
    delivery.welcome(welcome.claim_lifetime_ms)
    checkpoints.welcome()
    builds?.welcome()
    runtimes.announce()
    standing.welcome()
    wants.welcome()
  }

  function heardMessage(...[message, sentAtMs]: Parameters<LinkParts["onMessage"]>): void {
    switch (message.type) {
      case "refusal":
        return
      case "grant":
        return claimLoop.grant(message)
      case "verdicts": {
        const results = message.items.filter(({ kind }) => kind === "result")
        if (results.length > 0) delivery.verdicts(results)
        checkpoints.verdicts(message.items.filter(({ kind }) => kind === "checkpoint"))
        builds?.verdicts(message.items.filter(({ kind }) => kind === "build"))
        return
      }
      case "heartbeat_reply":
        claimLoop.renewed(message.renewed, sentAtMs)
        if (message.spent.length > 0) claimLoop.spent(message.spent)
        return parts.counted()
      case "cancel":
        return claimLoop.spent(message.claims)
      case "take_back":
        return claimLoop.takeBack(message.claims)
      case "prepare":
        return runtimes.prepare(message.runtime)
      case "build":
        return builds === null ? refuseBuild(message.claim) : builds.order(message)
      case "cancel_build":
        return builds?.cancel(message.claim)
      case "node_state":
        if (message.state === "revoked") return parts.cannotGoOn("this node was revoked")
        parts.drainedByAdmin(message.state === "draining")
        adverts.changed()
        return standing.changed()
      case "certificate":
        return parts.certificate(message.certificate)
      default:
        return unreachable(message)
    }
  }

  function refuseBuild(claim: number): void {
    send({
      type: "built",
      claim,
      outcome: { ok: false, kind: "node", message: "this node builds nothing" },
      log_tail: "",
    })
  }

  /** Results on their way are ours too. Never waits: it only names. */
  function heartbeat(): ReturnType<typeof claimLoop.heartbeat> {
    const named = claimLoop.heartbeat()
    const known = new Set(named.map(({ claim }) => claim))
    for (const claim of delivery.advancing()) if (!known.has(claim)) named.push({ claim, running_ms: null })
    return named.slice(0, MOST_NAMED)
  }

  return { hello, heartbeat, onWelcome: welcomed, onMessage: heardMessage }
}
