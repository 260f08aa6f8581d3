import { createHmac } from "node:crypto"
import type { Random } from "../../protocol/base/random.ts"

const PREFIX = "whsec_"
const SECRET_BYTES = 32

/** `whsec_` and 32 random bytes in base64: what a Standard Webhooks library takes as it is. */
export function newSecret(random: Random): string {
  return `${PREFIX}${Buffer.from(random.bytes(SECRET_BYTES)).toString("base64")}`
}

/** The headers that prove a call (Standard Webhooks): one signature for each secret that still counts. */
export function signatureHeaders(
  secrets: readonly string[],
  call: { id: string; atSeconds: number; body: Uint8Array },
): Record<"webhook-id" | "webhook-timestamp" | "webhook-signature", string> {
  const signatures = secrets.map((secret) => {
    const key = Buffer.from(secret.slice(PREFIX.length), "base64")
    const mac = createHmac("sha256", key).update(`${call.id}.${call.atSeconds}.`).update(call.body)
    return `v1,${mac.digest("base64")}`
  })
  return {
    "webhook-id": call.id,
    "webhook-timestamp": String(call.atSeconds),
    "webhook-signature": signatures.join(" "),
  }
}
