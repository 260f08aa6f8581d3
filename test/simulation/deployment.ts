import { cpSync, mkdirSync } from "node:fs"
import { join } from "node:path"
import { silentLog } from "../../protocol/base/log.ts"
import { newRevisionId, digest } from "../../protocol/domain/ids.ts"
import { manifestSchema } from "../../protocol/domain/manifest.ts"
import { createKey } from "../../coordinator/accounts/keys.ts"
import { createUser } from "../../coordinator/accounts/users.ts"
import { openObjectFiles } from "../../coordinator/artifacts/object-files.ts"
import { adjustCredit } from "../../coordinator/billing/ledger.ts"
import { createJoinToken } from "../../coordinator/fleet/enrol.ts"
import { openStore } from "../../coordinator/store/open-store.ts"
import { findProject, insertProject, insertRevision, setActiveRevision } from "../../coordinator/store/projects.ts"
import { addBlobReference } from "../../coordinator/store/blobs.ts"
import { identityFromSeed } from "../../protocol/mesh/identity.ts"
import { Chance } from "./chance.ts"
import { layTraces } from "./traces.ts"
import { EPOCH_MS } from "./machine.ts"

export interface Deployment {
  /** A coordinator's data directory as every world begins with it. */
  readonly directory: string
  readonly joinToken: string
  readonly clients: { token: string; account: number }[]
}

/** Enough for some worlds and not for others: refusals for want of money belong to the game. */
const CREDITS_MICRO = [50_000_000n, 2_000_000n, 60_000n]

/** Makes what all worlds share, once: a migrated database with clients, a project and a join token. */
export async function makeDeployment(directory: string): Promise<Deployment> {
  mkdirSync(directory, { recursive: true })
  const random = new Chance("deployment")
  const at = EPOCH_MS - 60_000
  const clock = { now: () => at, monotonicMs: () => 0, after: () => ({ cancel() {} }) }
  const store = await openStore({
    dataDir: directory,
    clock,
    log: silentLog,
    onFatal: (error) => {
      throw error
    },
  })
  const clients: Deployment["clients"] = []
  const files = await openObjectFiles(directory, random)
  const bytes = Buffer.from("a tarball that nobody unpacks")
  using blob = await files.put(once(bytes), { maxBytes: bytes.length })
  for (const amount of CREDITS_MICRO) {
    const user = await createUser({ store, clock }, { name: "client", email: null, role: "member", account: null })
    const { token } = await createKey(
      { store, clock, random },
      { user: user.id, name: null, role: null, expiresAt: null },
    )
    await adjustCredit({ store, clock }, { account: user.account, amount, description: null })
    clients.push({ token, account: user.account })
    for (const name of ["p", "unprepared"])
      await store.write(async (tx) => {
        const fields = { remoteDir: `/root/${name}`, env: {}, setupTimeoutSeconds: 600, runtimeKind: "oci" as const }
        const more = { imageRef: null, imageDigest: null, manifest: null, cachePolicy: null, runtimeVersion: 1, at }
        await insertProject(tx, { account: user.account, name, ...fields, ...more })
        const project = await findProject(tx, user.account, name)
        if (!project) throw new Error("the project is there")
        const id = newRevisionId(new Chance(`revision ${name} ${user.account}`))
        await insertRevision(tx, {
          id,
          project: project.id,
          contentHash: digest("a".repeat(64)),
          tarball: { digest: blob.digest, size: blob.size },
          manifest: MANIFEST,
          hasDockerfile: true,
          env: {},
          build: "queued",
          builder: null,
          image: null,
          buildChangedAt: at,
          pushedAt: at,
        })
        await addBlobReference(tx, blob.digest, { kind: "revision", owner: id })
        await setActiveRevision(tx, project.id, { revision: id, manifest: null, at })
      })
  }
  const key = await identityFromSeed(random.bytes(32))
  const token = await createJoinToken(
    { store, clock, random, key, certificateTtlMs: 1 },
    { name: null, maxUses: 100_000, ttlMs: 1e10, roles: ["worker", "builder"], account: null },
  )
  await store[Symbol.asyncDispose]()
  layTraces(join(directory, "computalot.db"))
  return { directory, joinToken: token.token, clients }
}

/** A data directory of its own, as it was in the beginning. */
export function copyDeployment({ directory }: Deployment, to: string): void {
  cpSync(directory, to, { recursive: true, filter: (path) => !path.endsWith("/lock") })
}

async function* once(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield bytes
}

const MANIFEST = manifestSchema.parse({
  version: 1,
  runtime: { kind: "oci", sandbox: "gvisor", workdir: "/workspace" },
  entrypoint: { command: ["python3", "job.py"] },
})
