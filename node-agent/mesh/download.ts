import type { Clock } from "../../protocol/base/clock.ts"
import { errorText } from "../../protocol/base/error-text.ts"
import type { Log } from "../../protocol/base/log.ts"
import { jittered, type Random } from "../../protocol/base/random.ts"
import { ComputalotError } from "../../protocol/domain/errors.ts"
import type { PeerId } from "../../protocol/domain/ids.ts"
import type { Mesh } from "../../protocol/mesh/mesh.ts"
import type { ContentRef } from "../../protocol/wire/content-source.ts"
import {
  LARGEST_LIST_BYTES,
  onePieceList,
  pieceCount,
  pieceRange,
  readPieceList,
  type PieceList,
} from "../../protocol/wire/piece-list.ts"
import { countPieces, hasPiece } from "../../protocol/wire/piece-set.ts"
import type { Blobs, PartialBlob } from "../cache/blobs.ts"
import { openContentStream, type ContentAnswer, type ContentHolder, type ContentStream } from "./content-stream.ts"

export interface DownloadParts {
  mesh: Mesh
  blobs: Blobs
  clock: Clock
  random: Random
  log: Log
  /** Told of every piece that arrived and was right: `computalot_content_bytes_total`. */
  received?: (piece: { source: "peer" | "origin"; bytes: number }) => void
  /** Told of every peer that was dropped because what it sent was wrong. */
  convicted?: (peer: PeerId) => void
}

/** What a finished download says of itself. */
export interface Downloaded {
  blob: ContentRef
  bytesFromPeers: number
  bytesFromOrigin: number
  /** Who sent wrong pieces or a wrong list: broken or lying. */
  culprits: PeerId[]
}

/** One blob on its way here. */
export interface Download {
  /** Adds sources while it runs. A source known already stays as it is, except that one given up is tried again. */
  addSources(holders: readonly ContentHolder[], origin: ContentHolder | null, grant: string): void
  /**
   * Runs to the end. Rejects with `unavailable` when no source is left, naming what each one did, with `storage_full`, or with
   * the signal's reason; what has arrived stays for another time. To be called once.
   */
  run(signal: AbortSignal): Promise<Downloaded>
}

interface Source extends ContentHolder {
  kind: "peer" | "origin"
  grant: string
  /** Which pieces it said it has; null before its first answer. */
  have: Uint8Array | null
  askedAt: number
  lanes: number
  failures: number
  /** How often, in a row, it did not have the blob (yet): it may be about to download it. */
  absences: number
  restsUntil: number
  gone: boolean
  problem: string | null
}

export function createDownload(parts: DownloadParts, blob: ContentRef): Download {
  const { mesh, blobs, clock, random, log } = parts
  const sources = new Map<PeerId, Source>()
  const lanes = new Set<Promise<void>>()
  /** Pieces that some lane has asked for. */
  const asked = new Set<number>()
  const culprits = new Set<PeerId>()
  const bytesFrom = { peer: 0, origin: 0 }
  let list: PieceList | null = blob.pieceListDigest === null ? onePieceList(blob) : null
  let listAsked = false
  let partial: PartialBlob | null = null
  /** The blob became whole by another way. */
  let wholeElsewhere = false
  let serving = 0
  let broken: unknown = null
  let lastPeerProgress = clock.monotonicMs()
  let wake = Promise.withResolvers<void>()

  function changed(): void {
    wake.resolve()
    wake = Promise.withResolvers<void>()
  }

  async function run(signal: AbortSignal): Promise<Downloaded> {
    const ending = new AbortController()
    const laneSignal = AbortSignal.any([signal, ending.signal])
    try {
      if (list !== null) await begin(list)
      while (!complete()) {
        signal.throwIfAborted()
        if (broken !== null) throw broken
        startLanes(laneSignal)
        if (lanes.size === 0 && everySource(isHopeless)) throw unavailable()
        await Promise.race([wake.promise, tick(signal)])
      }
      const blobHere = partial === null ? blob : await partial.finish()
      return {
        blob: blobHere,
        bytesFromPeers: bytesFrom.peer,
        bytesFromOrigin: bytesFrom.origin,
        culprits: [...culprits],
      }
    } finally {
      ending.abort(new Error("the download ended"))
      await Promise.allSettled(lanes)
      await partial?.[Symbol.asyncDispose]()
    }
  }

  async function begin(known: PieceList): Promise<void> {
    partial = await blobs.begin(blob, known)
    wholeElsewhere = partial === null
    list = known
  }

  function complete(): boolean {
    if (wholeElsewhere) return true
    return list !== null && partial !== null && countPieces(partial.have, pieceCount(list)) === pieceCount(list)
  }

  function tick(signal: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      const timer = clock.after(TICK_MS, done)
      signal.addEventListener("abort", done, { once: true })
      function done(): void {
        timer.cancel()
        signal.removeEventListener("abort", done)
        resolve()
      }
    })
  }

  // ── which source next ─────────────────────────────────────────────────────────────────────────────────────────────

  /** One lane to every source that can help, before any gets a second one. */
  function startLanes(signal: AbortSignal): void {
    for (let most = 0; most < LANES_PER_SOURCE; most++) {
      for (const source of shuffled([...sources.values()])) {
        if (serving >= LANES || lanes.size >= LANES + OPENING_LANES) return
        if (source.lanes !== most || !canHelp(source)) continue
        source.lanes++
        const running = lane(source, signal).finally(() => {
          source.lanes--
          lanes.delete(running)
          changed()
        })
        lanes.add(running)
      }
    }
  }

  function canHelp(source: Source): boolean {
    const now = clock.monotonicMs()
    if (source.gone || source.restsUntil > now) return false
    if (source.kind === "origin" && !originMayHelp(now)) return false
    if (source.have === null) return source.lanes === 0
    if (list === null) return !listAsked
    if (choosePiece(source) !== null) return true
    // It may have fetched more since: ask now and then.
    const mayGrow = countPieces(source.have, pieceCount(list)) < pieceCount(list)
    return source.lanes === 0 && mayGrow && now - source.askedAt >= ASK_AGAIN_MS
  }

  /** The origin is the last resort: only when peers have brought nothing for a moment, or none is left. */
  function originMayHelp(now: number): boolean {
    return (
      now - lastPeerProgress >= ORIGIN_PATIENCE_MS || everySource((source) => source.kind === "origin" || source.gone)
    )
  }

  /**
   * A missing piece that `source` has and nobody was asked for: the rarest of a random sample, so that those who download
   * together soon have something to give one another. The origin is asked only for what no peer at work has.
   */
  function choosePiece(source: Source): number | null {
    if (list === null || partial === null || source.have === null) return null
    const count = pieceCount(list)
    const first = count === 0 ? 0 : random.integer(count)
    let best: number | null = null
    let bestHolders = Infinity
    let seen = 0
    for (let step = 0; step < count && seen < PIECE_SAMPLE; step++) {
      const index = (first + step) % count
      if (hasPiece(partial.have, index) || asked.has(index) || !hasPiece(source.have, index)) continue
      const holders = peersWith(index)
      if (source.kind === "origin" && holders > 0) continue
      seen++
      if (holders < bestHolders) {
        best = index
        bestHolders = holders
      }
    }
    return best
  }

  /** Peers at work that have the piece: one that rests, because it is busy or failed, helps nobody now. */
  function peersWith(index: number): number {
    const now = clock.monotonicMs()
    let holders = 0
    for (const source of sources.values()) {
      if (source.kind === "origin" || source.gone || source.restsUntil > now || source.failures > 0) continue
      if (source.have !== null && hasPiece(source.have, index)) holders++
    }
    return holders
  }

  function everySource(test: (source: Source) => boolean): boolean {
    return [...sources.values()].every(test)
  }

  function shuffled<T>(items: T[]): T[] {
    return items
      .map((item) => ({ item, at: random.integer(1 << 30) }))
      .toSorted((a, b) => a.at - b.at)
      .map(({ item }) => item)
  }

  // ── one lane: a stream to one source, one request at a time ─────────────────────────────────────────────────────────

  /** Asks `source` for piece after piece until it has none that is wanted. Ends quietly: what went wrong is the source's. */
  async function lane(source: Source, signal: AbortSignal): Promise<void> {
    try {
      using stream = await openContentStream(mesh, clock, source, signal)
      const opened = await stream.ask({ type: "open", grant: source.grant, blob: blob.digest })
      source.askedAt = clock.monotonicMs()
      if (opened.type !== "have") return takeNo(source, opened)
      source.have = opened.pieces
      source.absences = 0
      if (serving >= LANES) return
      serving++
      try {
        while (!signal.aborted && broken === null && (await askNext(stream, source)));
      } finally {
        serving--
      }
    } catch (error) {
      if (signal.aborted) return
      failed(source, errorText(error))
    }
  }

  /** One question. False when there is none left for this source, or its answer was no. */
  async function askNext(stream: ContentStream, source: Source): Promise<boolean> {
    if (list === null) return !listAsked && (await askList(stream, source))
    const index = choosePiece(source)
    if (index === null || partial === null || (source.kind === "origin" && !originMayHelp(clock.monotonicMs())))
      return false
    asked.add(index)
    try {
      const answer = await stream.ask({ type: "piece", index }, pieceRange(list, index).length)
      if (answer.type !== "bytes") return (takeNo(source, answer), false)
      return await keep(partial, source, index, answer.bytes)
    } finally {
      asked.delete(index)
      changed()
    }
  }

  async function askList(stream: ContentStream, source: Source): Promise<boolean> {
    listAsked = true
    try {
      const answer = await stream.ask({ type: "list" }, LARGEST_LIST_BYTES)
      if (answer.type !== "bytes") return (takeNo(source, answer), false)
      const read = readPieceList(answer.bytes, blob)
      if (read === null) return (convict(source, "sent a wrong piece list"), false)
      await begin(read).catch(breakOff)
      return true
    } finally {
      listAsked = false
      changed()
    }
  }

  async function keep(into: PartialBlob, source: Source, index: number, bytes: Uint8Array): Promise<boolean> {
    const right = await into.write(index, bytes).catch(breakOff)
    if (right === undefined) return false
    if (!right) return (convict(source, `sent a wrong piece ${index}`), false)
    source.failures = 0
    bytesFrom[source.kind] += bytes.length
    if (source.kind === "peer") lastPeerProgress = clock.monotonicMs()
    parts.received?.({ source: source.kind, bytes: bytes.length })
    return true
  }

  /** Our own disk failed: no other source would help. */
  function breakOff(error: unknown): undefined {
    broken = error
    changed()
  }

  // ── what a source did ───────────────────────────────────────────────────────────────────────────────────────────────

  function takeNo(source: Source, answer: ContentAnswer): void {
    switch (answer.type) {
      case "busy":
        rest(source, Math.min(answer.retry_ms, LONGEST_REST_MS))
        return
      case "absent":
        // What it said it has may be wrong by now.
        source.have = null
        source.problem = "does not have it"
        source.absences++
        return rest(source, Math.min(FIRST_REST_MS * 2 ** source.absences, LONGEST_ABSENCE_MS))
      case "refused":
        source.problem = "refused the grant"
        source.gone = true
        return
      case "have":
      case "bytes":
        return convict(source, "answered another question")
    }
  }

  function failed(source: Source, problem: string): void {
    source.problem = problem
    source.failures++
    source.gone = source.failures >= (source.kind === "origin" ? ORIGIN_TRIES : PEER_TRIES)
    rest(source, Math.min(FIRST_REST_MS * 2 ** source.failures, LONGEST_REST_MS))
    log.debug("content source failed", { blob: blob.digest, peer: source.peer, problem, gone: source.gone })
  }

  function rest(source: Source, ms: number): void {
    source.restsUntil = clock.monotonicMs() + jittered(random, ms)
  }

  function convict(source: Source, problem: string): void {
    source.problem = problem
    source.gone = true
    culprits.add(source.peer)
    log.warn("content source dropped", { blob: blob.digest, peer: source.peer, problem })
    if (source.kind === "peer") parts.convicted?.(source.peer)
  }

  function unavailable(): ComputalotError {
    const tried = [...sources.values()].map((source) => ({ peer_id: source.peer, problem: source.problem }))
    return new ComputalotError("unavailable", `no source could give blob ${blob.digest}`, {
      recommendedAction: "Try again when a node that has it is back.",
      details: { blob: blob.digest, tried, culprits: [...culprits] },
    })
  }

  return {
    addSources(holders, origin, grant) {
      const add = (holder: ContentHolder, kind: Source["kind"]): void => {
        if (holder.peer === mesh.peerId || culprits.has(holder.peer)) return
        if (sources.get(holder.peer)?.gone === false) return
        sources.set(holder.peer, newSource(holder, kind, grant))
      }
      for (const holder of holders) if (holder.peer !== origin?.peer) add(holder, "peer")
      if (origin !== null) add(origin, "origin")
      changed()
    },
    run,
  }
}

function isHopeless(source: Source): boolean {
  return source.gone || source.absences >= ABSENT_TRIES
}

function newSource(holder: ContentHolder, kind: Source["kind"], grant: string): Source {
  const state = {
    have: null,
    askedAt: 0,
    lanes: 0,
    failures: 0,
    absences: 0,
    restsUntil: 0,
    gone: false,
    problem: null,
  }
  return { peer: holder.peer, addresses: holder.addresses, kind, grant, ...state }
}

/** Pieces asked for at once: one alone leaves the line idle between pieces, more than four fill nothing but memory. */
const LANES = 4
const LANES_PER_SOURCE = 2
/** Streams that may be opening beside them: dead addresses take seconds to say so. */
const OPENING_LANES = 8
/** So long peers may bring nothing before the origin is asked. */
const ORIGIN_PATIENCE_MS = 1_000
/** A peer that downloads as we do is asked this often what it has by now. */
const ASK_AGAIN_MS = 500
/** How often resting sources and patience are looked at, when nothing else happens. */
const TICK_MS = 100
/** Enough to find a rare piece, few enough to cost nothing. */
const PIECE_SAMPLE = 64
const PEER_TRIES = 3
/** A source that lacks the blob is asked on while others are at work; when all are like it, the download ends. */
const ABSENT_TRIES = 3
const LONGEST_ABSENCE_MS = 2_000
/** The origin may be restarting: about a minute. */
const ORIGIN_TRIES = 8
const FIRST_REST_MS = 250
const LONGEST_REST_MS = 10_000
