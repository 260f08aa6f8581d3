import { readFileSync, renameSync, writeFileSync } from "node:fs"
import { z } from "zod"
import { enrolNodeEndpoint } from "../../protocol/api/nodes.ts"
import { createBackoff } from "../../protocol/base/backoff.ts"
import { sleep, type Clock } from "../../protocol/base/clock.ts"
import { errorText } from "../../protocol/base/error-text.ts"
import type { Log } from "../../protocol/base/log.ts"
import type { Random } from "../../protocol/base/random.ts"
import { callEndpoint, ClientError } from "../../protocol/client/client.ts"
import type { PeerId } from "../../protocol/domain/ids.ts"
import { signEnrolment, type SigningKey } from "../../protocol/wire/signing.ts"

/** What this node knows of its membership: kept in the data directory, so that the token is needed once. */
export type Membership = z.infer<typeof membership>
const membership = z.object({
  node_id: z.string(),
  certificate: z.string(),
  coordinator: z.object({ peer_id: z.string(), addrs: z.array(z.string()) }),
  peers: z.array(z.string()),
})

/** The coordinator will not have this node: trying again cannot help. */
export class EnrolmentRefused extends Error {
  override name = "EnrolmentRefused"
}

export interface EnrolParts {
  origin: string
  token: string | null
  identity: SigningKey & { peerId: PeerId }
  name: string | null
  agentVersion: string
  clock: Clock
  random: Random
  log: Log
}

/** The membership in `file`, or null at the first start. Throws when the file holds something else. */
export function readMembership(file: string): Membership | null {
  let text: string
  try {
    text = readFileSync(file, "utf8")
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "ENOENT") return null
    throw error
  }
  try {
    return membership.parse(JSON.parse(text))
  } catch (error) {
    throw new Error(`${file} does not hold a membership`, { cause: error })
  }
}

/** Written beside it, then renamed: a crash leaves the former or the new one. */
export function writeMembership(file: string, member: Membership): void {
  writeFileSync(`${file}.new`, JSON.stringify(member), { mode: 0o600 })
  renameSync(`${file}.new`, file)
}

/**
 * Enrols, for as long as it takes until the coordinator answers. The same key and token again give the same node id. Rejects
 * with `EnrolmentRefused` for a token that is not good, or with the signal's reason.
 */
export async function enrol(parts: EnrolParts, signal: AbortSignal): Promise<Membership> {
  const { token, identity } = parts
  if (token === null) throw new EnrolmentRefused("this node is not enrolled yet: give a join token with --token fln_…")
  const backoff = createBackoff(parts.random, FIRST_RETRY_MS, LONGEST_RETRY_MS)
  const signed = signEnrolment(identity, token, identity.peerId)
  for (;;) {
    try {
      const body = {
        token,
        peer_id: identity.peerId,
        public_key: signed.publicKey,
        signature: signed.signature,
        name: parts.name,
        agent_version: parts.agentVersion,
      }
      return await callEndpoint({ origin: parts.origin }, enrolNodeEndpoint, { body, signal })
    } catch (error) {
      signal.throwIfAborted()
      if (error instanceof ClientError && FINAL.has(error.status)) {
        throw new EnrolmentRefused(`the coordinator refused to enrol this node: ${error.message}`, { cause: error })
      }
      parts.log.warn("not enrolled yet", { coordinator: parts.origin, error: errorText(error) })
    }
    await sleep(parts.clock, backoff.next(), signal)
  }
}

/** Bad token or signature, revoked key, no such door, malformed. */
const FINAL = new Set([400, 401, 403, 404, 405, 422])
const FIRST_RETRY_MS = 250
const LONGEST_RETRY_MS = 5_000
