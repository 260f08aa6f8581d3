import { createReadStream } from "node:fs"
import {
  downloadNodePayload,
  nodeInputs,
  nodeResume,
  uploadNodeBlob,
  type NodeInputs,
  type NodeResume,
} from "../../protocol/api/nodes.ts"
import { callEndpoint, ClientError, downloadFrom, uploadTo } from "../../protocol/client/client.ts"
import type { ClaimNumber } from "../../protocol/domain/ids.ts"

/** What is too large for the control stream, over HTTP with the token of the last welcome. */
export interface Transfers {
  /**
   * Sends a file's bytes for a claim, and says how many have left so far. The same again changes nothing. Rejects with
   * `TransferRefused` when they are not wanted.
   */
  upload(
    claim: ClaimNumber,
    file: { digest: string; path: string },
    signal: AbortSignal,
    sent?: (bytes: number) => void,
  ): Promise<void>
  /** A payload that was too large for the grant. */
  payload(claim: ClaimNumber, signal: AbortSignal): Promise<AsyncIterable<Uint8Array>>
  /** What an attempt goes on from. Rejects with `TransferRefused` when the claim is not ours. */
  resume(claim: ClaimNumber, signal: AbortSignal): Promise<NodeResume>
  /** The files that an attempt is to find; likewise. */
  inputs(claim: ClaimNumber, signal: AbortSignal): Promise<NodeInputs>
}

/** The coordinator does not want these bytes: trying again cannot help. */
export class TransferRefused extends Error {
  override name = "TransferRefused"
}

export function createTransfers(origin: string, token: () => string | null): Transfers {
  const server = () => ({ origin, token: token() ?? undefined })
  return {
    async upload(claim, file, signal, sent = () => {}) {
      const call = { params: { digest: file.digest }, query: { claim: String(claim) }, signal }
      try {
        await uploadTo(server(), uploadNodeBlob, counted(createReadStream(file.path), sent), call)
      } catch (error) {
        throw refusedOr(error)
      }
    },
    async payload(claim, signal) {
      return (await downloadFrom(server(), downloadNodePayload, { params: { claim: String(claim) }, signal })).bytes
    },
    async resume(claim, signal) {
      try {
        return await callEndpoint(server(), nodeResume, { params: { claim: String(claim) }, signal })
      } catch (error) {
        throw refusedOr(error)
      }
    },
    async inputs(claim, signal) {
      try {
        return await callEndpoint(server(), nodeInputs, { params: { claim: String(claim) }, signal })
      } catch (error) {
        throw refusedOr(error)
      }
    },
  }
}

async function* counted(chunks: AsyncIterable<Uint8Array>, sent: (bytes: number) => void): AsyncGenerator<Uint8Array> {
  let bytes = 0
  for await (const chunk of chunks) {
    yield chunk
    bytes += chunk.length
    sent(bytes)
  }
}

function refusedOr(error: unknown): unknown {
  if (!(error instanceof ClientError) || !isFinal(error.status)) return error
  return new TransferRefused(error.message, { cause: error })
}

/** A token that is no longer good is replaced at the next welcome; too many requests and busy servers pass. */
const isFinal = (status: number): boolean =>
  status >= 400 && status < 500 && status !== 401 && status !== 408 && status !== 429
