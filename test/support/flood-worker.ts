import { parentPort, workerData } from "node:worker_threads"
import { systemClock } from "../../protocol/base/clock.ts"
import { silentLog } from "../../protocol/base/log.ts"
import type { PeerId } from "../../protocol/domain/ids.ts"
import { createMeshNode } from "../../protocol/mesh/create-mesh-node.ts"
import { identityFromSeed } from "../../protocol/mesh/identity.ts"
import { CONTROL_PROTOCOL, encodeMessage, type Hello, type ToCoordinator } from "../../protocol/wire/control.ts"
import { publicKeyOfPeerId } from "../../protocol/wire/signing.ts"

/** A member on a thread of its own that says one thing on its control stream as fast as it is taken. */
export interface Flood {
  seed: Uint8Array
  certificate: string
  coordinator: PeerId
  address: string
  hello: Hello
  message: ToCoordinator
}

const flood = workerData as Flood
const mesh = await createMeshNode({
  identity: await identityFromSeed(flood.seed),
  listen: [],
  coordinatorKey: { peerId: flood.coordinator, publicKey: publicKeyOfPeerId(flood.coordinator) ?? new Uint8Array() },
  certificate: () => flood.certificate,
  isCoordinator: false,
  agentVersion: "flood/1",
  log: silentLog,
  clock: systemClock,
})
await mesh.dial(flood.address)
const stream = await mesh.openStream(flood.coordinator, CONTROL_PROTOCOL)
await stream.send(encodeMessage(flood.hello))
const frames = stream.frames()[Symbol.asyncIterator]()
await frames.next()
void (async () => {
  while ((await frames.next()).done !== true);
})().catch(() => {})

const frame = encodeMessage(flood.message)
let sent = 0
let stopped = false
parentPort?.once("message", () => {
  stopped = true
})
parentPort?.postMessage({ sent })
while (!stopped && !stream.ended.aborted) {
  // A look at the event loop now and then, or a stop would never be heard.
  for (let n = 0; n < 64 && !stream.ended.aborted; n++) {
    await stream.send(frame).catch(() => {})
    sent += 1
  }
  await new Promise((resolve) => setTimeout(resolve, 0))
}
parentPort?.postMessage({ sent, bytes: sent * frame.length })
await mesh[Symbol.asyncDispose]()
