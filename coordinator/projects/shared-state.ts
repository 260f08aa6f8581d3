import { setImmediate as turn } from "node:timers/promises"
import type { Clock, Instant } from "../../protocol/base/clock.ts"
import { ComputalotError, notFound } from "../../protocol/domain/errors.ts"
import type { AccountId } from "../../protocol/domain/ids.ts"
import { LARGEST_STATE_VALUE_BYTES } from "../../protocol/domain/shared-state.ts"
import {
  deleteExpiredKvEntries,
  deleteKvEntry,
  findKvEntry,
  listKvEntries,
  putKvEntry,
  type KvEntry,
} from "../store/project-kv.ts"
import { dropSpentSharedValues } from "../store/shared-values.ts"
import type { Store } from "../store/store.ts"
import { requireProject } from "./project.ts"

/**
 * A project's shared state: small JSON values by key, for its jobs and their owner (KV). `account` null is an administrator
 * without one; other accounts' projects are `not_found`.
 */
export interface SharedStateParts {
  store: Store
  clock: Clock
}

/** Sets an entry; an earlier one's time to live goes with it. Refuses with `body_too_large` above 64 KiB of UTF-8 JSON. */
export async function putSharedValue(
  parts: SharedStateParts,
  account: AccountId | null,
  name: string,
  wanted: { key: string; value: unknown; ttlSeconds: number | null },
): Promise<KvEntry> {
  const value = JSON.stringify(wanted.value)
  const bytes = Buffer.byteLength(value)
  if (bytes > LARGEST_STATE_VALUE_BYTES) throw valueTooLarge(bytes)
  const at = parts.clock.now()
  const { key, ttlSeconds } = wanted
  const expiresAt = ttlSeconds === null ? null : at + ttlSeconds * 1000
  return await parts.store.write(async (tx) => {
    const project = await requireProject(tx, account, name)
    const entry = { key, value, ttlSeconds, expiresAt, updatedAt: at, account, job: null }
    await putKvEntry(tx, project.id, entry)
    return entry
  })
}

function valueTooLarge(bytes: number): ComputalotError {
  return new ComputalotError(
    "body_too_large",
    `the value has ${bytes} bytes as JSON: must have at most ${LARGEST_STATE_VALUE_BYTES}`,
    {
      recommendedAction: "Upload large values as artifacts (POST /api/v1/artifacts) and keep their ids here.",
      details: { value_bytes: bytes, limit_bytes: LARGEST_STATE_VALUE_BYTES },
    },
  )
}

/** Throws `not_found` also for an entry whose time is over. */
export async function getSharedValue(
  { store, clock }: SharedStateParts,
  account: AccountId | null,
  name: string,
  key: string,
): Promise<KvEntry> {
  return await store.read(async (view) => {
    const project = await requireProject(view, account, name)
    const entry = await findKvEntry(view, project.id, key, clock.now())
    return entry ?? missing(key)
  })
}

export async function deleteSharedValue(
  parts: SharedStateParts,
  account: AccountId | null,
  name: string,
  key: string,
): Promise<void> {
  const at = parts.clock.now()
  await parts.store.write(async (tx) => {
    const project = await requireProject(tx, account, name)
    if (!(await deleteKvEntry(tx, project.id, key, at))) missing(key)
  })
}

function missing(key: string): never {
  throw notFound(`the key ${key}`)
}

export interface SharedValuesPage {
  prefix: string
  /** Keys up to this one, in byte order, are left out. */
  after: string
  limit: number
}

/** Up to `limit` entries in byte order of their keys, read in slices: together they may be larger than memory should hold. */
export async function* listSharedValues(
  { store, clock }: SharedStateParts,
  project: number,
  { prefix, after, limit }: SharedValuesPage,
): AsyncGenerator<KvEntry, void, undefined> {
  let last = after
  for (let left = limit; left > 0;) {
    const page = { prefix, after: last, limit: Math.min(left, ENTRIES_AT_ONCE) }
    const slice = await store.read((view) => listKvEntries(view, project, page, clock.now()))
    yield* slice
    if (slice.length < page.limit) return
    left -= slice.length
    last = slice.at(-1)?.key ?? last
    await turn()
  }
}

/** Four megabytes at the most. */
const ENTRIES_AT_ONCE = 64

/** Which project's entries are listed; throws `not_found`. */
export async function stateProject(
  { store }: SharedStateParts,
  account: AccountId | null,
  name: string,
): Promise<{ id: number; name: string }> {
  return await store.read((view) => requireProject(view, account, name))
}

/** Frees what reads refuse already: entries whose time is over, and what attempts of ended jobs were given. */
export async function sweepSharedState({ store }: { store: Store }, now: Instant): Promise<void> {
  for (let last = ROWS_AT_ONCE; last === ROWS_AT_ONCE;) {
    last = await store.write((tx) => deleteExpiredKvEntries(tx, now, ROWS_AT_ONCE))
  }
  for (let last = ROWS_AT_ONCE; last === ROWS_AT_ONCE;) {
    last = await store.write((tx) => dropSpentSharedValues(tx, ROWS_AT_ONCE))
  }
}

/** A slice takes a few milliseconds. */
const ROWS_AT_ONCE = 200
