import type { KeptNodes } from "./kept-nodes.ts"
import { chooseAhead, chooseSlot, couldRun, occupy, type Chosen, type PlaceableNode, type Wanted } from "./place.ts"
import { fit, freeOf, slots } from "../fleet/fit.ts"
import type { Reserved } from "./reservations.ts"
import type { ReadyJob, ReadyQueue } from "./ready-queue.ts"

export interface ChooseParts {
  queue: Pick<ReadyQueue, "take" | "first" | "firsts" | "sample" | "waiting" | "block" | "unblock">
  kept: Pick<KeptNodes, "look">
  /** By node: whose next free slots were awaited before (`awaitedById`). */
  awaited: ReadonlyMap<string, number>
  /** What belongs to jobs: idle seats have taken their room off the nodes. */
  reserved: Reserved
  /** What placing a task of the job looks at; undefined when the job is over. */
  wanted: (job: number) => Wanted | undefined
  /** Nodes on which all that waits of the job failed a moment ago. */
  avoids: (job: number) => ReadonlySet<string> | undefined
  /** Wall time, by which priorities age. */
  now: number
  monotonicMs: number
  /** Places in one round. */
  most: number
}

export interface Round<N> {
  places: (Chosen<N> & { job: number })[]
  /** Nodes whose next free slot somebody waits for: nothing is handed ahead there, and the job it is for. */
  awaited: Map<N, number>
  /** Nodes that take one task and nothing else, with its job. */
  kept: Map<N, number>
}

/** Kinds of work that are looked at behind one that waits for a slot; with more, somebody waits for every slot there is. */
const MOST_AWAITING = 32

/**
 * One round of giving work to nodes: reserved seats first, then what is kept for large tasks, then free slots, in order, as
 * long as something fits one (on nodes with GPUs what needs GPUs first); then short tasks ahead of slots. Takes the tasks off the queue and their room off `nodes`.
 */
export function choosePlaces<N extends PlaceableNode>(parts: ChooseParts, nodes: readonly N[]): Round<N> {
  const { queue, now } = parts
  const round: Round<N> = { places: [], awaited: new Map(), kept: new Map() }
  const wantedByKind = new Map<string, Wanted | undefined>()
  /** Any waiting job of the kind will do: they differ in nothing that a free slot depends on. */
  const wantedOf = (kind: string): Wanted | undefined => {
    if (!wantedByKind.has(kind)) {
      const sample = queue.sample(kind)
      wantedByKind.set(kind, sample === null ? undefined : parts.wanted(sample))
    }
    return wantedByKind.get(kind)
  }

  /** Jobs that only avoided nodes have room for: they wait for the next round. */
  const setAside = new Set<number>()

  /** Takes the next task of the kind for this place. False when none waits, or when its job avoids the node. */
  function takeFor({ kind }: Pick<ReadyJob, "kind">, { node, gpus }: Chosen<N>, wanted: Wanted): boolean {
    const next = queue.take(now, (other) => other === kind)
    if (!next) return false
    if (parts.avoids(next.seq)?.has(node.id)) {
      leave(next)
      return false
    }
    round.places.push({ job: next.seq, node, gpus })
    occupy(node, wanted.requirements, gpus)
    return true
  }

  function leave({ seq }: ReadyJob): void {
    queue.block(seq, 1)
    setAside.add(seq)
  }

  // Without any node nobody can be first; a fleet that is back in a moment goes on where it was.
  if (nodes.length === 0) return round
  fillSeats()
  for (const node of nodes) {
    const job = parts.reserved.closing.get(node.id)
    if (job !== undefined) round.kept.set(node, job)
  }
  fillKept()
  const open = nodes.filter((node) => !round.kept.has(node))
  const withGpus = open.filter(({ hasGpu }) => hasGpu)
  // Work without GPUs has what is left of them (SC-002).
  if (withGpus.length > 0) fillSlots(withGpus, needsGpus)
  fillSlots(open)
  if (round.places.length < parts.most) handAhead(open.filter(({ id }) => !parts.reserved.quiet.has(id)))
  for (const seq of setAside) queue.unblock(seq)
  return round

  function needsGpus(kind: string): boolean {
    return (wantedOf(kind)?.requirements.gpuCount ?? 0) > 0
  }

  /** Whose seats they are comes before all others, whatever it has used (rulings, Order). */
  function fillSeats(): void {
    if (parts.reserved.seats.length === 0) return
    const byId = new Map(nodes.map((node) => [node.id, node]))
    for (const seat of parts.reserved.seats) {
      if (round.places.length >= parts.most) return
      const node = byId.get(seat.node)
      if (!node || queue.waiting(seat.job) === 0 || parts.avoids(seat.job)?.has(seat.node)) continue
      if (parts.wanted(seat.job)?.mayRun(node) !== true) continue
      const next = queue.take(now, (kind) => kind === seat.kind)
      if (!next) continue
      round.places.push({ job: next.seq, node, gpus: [...seat.gpus] })
      seat.taken()
    }
  }

  function fillKept(): void {
    const firsts = queue.firsts(now, (kind) => {
      const wanted = wantedOf(kind)
      return wanted !== undefined && nodes.some((node) => couldRun(node, wanted))
    })
    const due = firsts.flatMap((job) => {
      const wanted = parts.wanted(job.seq)
      return wanted ? [{ account: job.account, job: job.seq, kind: job.kind, wanted }] : []
    })
    const kept = parts.kept.look(due, nodes, parts.monotonicMs)
    if (kept.size === 0) return
    const byJob = new Map(due.map((first) => [first.job, first]))
    for (const node of nodes) {
      const first = byJob.get(kept.get(node.id) ?? -1)
      if (!first) continue
      // A kind belongs to one account (it names its revision): the kind's next task is the one the node is kept for.
      const place = chooseSlot([node], first.wanted)
      if (!place || !takeFor(first, place, first.wanted)) round.kept.set(node, first.job)
    }
  }

  function fillSlots(open: readonly N[], isAsked: (kind: string) => boolean = () => true): void {
    const found = new Map<string, Chosen<N> | null>()
    const fits = (kind: string): boolean => {
      if (!isAsked(kind)) return false
      let place = found.get(kind)
      if (place === undefined) {
        const wanted = wantedOf(kind)
        place = wanted ? (chooseSlot(open, wanted) ?? chooseBeside(open, wanted)) : null
        found.set(kind, place)
      }
      return place !== null
    }
    while (round.places.length < parts.most) {
      const next = queue.take(now, fits)
      if (!next) return
      const place = found.get(next.kind)
      const wanted = wantedOf(next.kind)
      if (!place || !wanted) continue
      const avoid = parts.avoids(next.seq)
      const chosen = avoid?.has(place.node.id)
        ? chooseSlot(
            open.filter(({ id }) => !avoid.has(id)),
            wanted,
          )
        : place
      if (!chosen) {
        leave(next)
        continue
      }
      round.places.push({ job: next.seq, ...chosen })
      occupy(chosen.node, wanted.requirements, chosen.gpus)
      // The node has less room now: kinds that were placed there look again, kinds that fit nowhere still do not.
      for (const [kind, other] of found) if (other?.node === chosen.node) found.delete(kind)
    }
  }

  /**
   * No slot is free. Short tasks go ahead of slots in order too: where one that waits for a slot comes first, nothing of those
   * behind it is handed ahead, or they would take every slot that becomes free.
   */
  function handAhead(open: readonly N[]): void {
    const passed = new Set<string>()
    // Where short tasks stand ahead, slots become free soonest.
    const soonest = [...open.filter(isOverfull), ...open.filter((node) => !isOverfull(node))]
    while (round.places.length < parts.most && passed.size < MOST_AWAITING && round.awaited.size < open.length) {
      const next = queue.first(now, (kind) => !passed.has(kind))
      if (!next) return
      const wanted = parts.wanted(next.seq)
      const place = wanted && chooseAhead(open, { ...wanted, mayRun: (node) => isOpen(node) && wanted.mayRun(node) })
      if (wanted && place && takeFor(next, place, wanted)) continue
      passed.add(next.kind)
      if (wanted) awaitSlots(soonest, next, wanted)
    }
  }

  function isOpen(node: PlaceableNode): boolean {
    return !round.awaited.has(node as N)
  }

  /**
   * As many slots as the job has tasks waiting, and one: accounts that have equally much in use take turns. On the nodes where it
   * waits already, or those would be handed work again before their slots become free.
   */
  function awaitSlots(soonest: readonly N[], { seq }: ReadyJob, wanted: Wanted): void {
    let tasks = queue.waiting(seq)
    const waitsOn = (node: N): boolean => parts.awaited.get(node.id) === seq
    for (const node of [...soonest.filter(waitsOn), ...soonest.filter((node) => !waitsOn(node))]) {
      if (tasks < 0) return
      if (round.awaited.has(node) || !couldRun(node, wanted)) continue
      round.awaited.set(node, seq)
      tasks -= slots(node.capacity, wanted.requirements)
    }
  }
}

/** Crowded nodes that are looked at for a task that no free slot was found for. */
const MOST_CROWDED = 32

/** Room that what stands ahead of slots leaves alone: it must not keep out who could start at once. Cores only, no GPUs. */
function chooseBeside<N extends PlaceableNode>(nodes: readonly N[], wanted: Wanted): Chosen<N> | null {
  if (wanted.requirements.gpuCount > 0) return null
  let looks = 0
  for (const node of nodes) {
    if (!isOverfull(node) || node.held >= node.most || !wanted.mayRun(node) || !wanted.isWarm(node)) continue
    if (++looks > MOST_CROWDED) return null
    node.beside = node.beside === undefined ? (node.lookBeside?.() ?? null) : node.beside
    if (node.beside && fit(freeOf(node.capacity, node.beside), wanted.requirements)) return { node, gpus: [] }
  }
  return null
}

export function awaitedById(round: Round<PlaceableNode>): Map<string, number> {
  return new Map([...round.awaited].map(([{ id }, job]) => [id, job]))
}

/** More was given to it than fits: it holds tasks ahead of its slots. */
export function isOverfull({ capacity, used }: Pick<PlaceableNode, "capacity" | "used">): boolean {
  return used.cpu > capacity.cpu + ROUNDING || used.memoryMb > capacity.memoryMb || used.storageGb > capacity.storageGb
}

/** Sums of tenths of cores are not exact. */
const ROUNDING = 1e-6
