import type { Clock, Instant } from "../../protocol/base/clock.ts"
import type { Random } from "../../protocol/base/random.ts"
import { notFound } from "../../protocol/domain/errors.ts"
import type { AccountId } from "../../protocol/domain/ids.ts"
import { findAccount } from "../store/accounts.ts"
import type { Store, Tx } from "../store/store.ts"
import { ensureSecrets, findSecrets, rotateSecret, type WebhookSecrets } from "../store/webhooks.ts"
import { newSecret } from "./sign.ts"

export interface SecretParts {
  store: Store
  clock: Clock
  random: Random
}

/** What an account's calls are signed with; `previousUntil` null where one secret alone signs. */
export interface ShownSecret {
  secret: string
  previousUntil: Instant | null
}

/** How long the secret before signs too (rulings, Webhook secret). */
const OVERLAP_MS = 24 * 3600 * 1000

/** The account's secret, made when it is asked for the first time. Refuses unknown accounts with `not_found`. */
export async function getWebhookSecret(parts: SecretParts, account: AccountId): Promise<ShownSecret> {
  return shown(await secretsOf(parts, account), parts.clock.now())
}

/** A new secret; the one before signs too for a day, and the one before that no longer. `also` runs in the same write. */
export async function rotateWebhookSecret(
  parts: SecretParts,
  account: AccountId,
  also?: (tx: Tx, made: ShownSecret) => Promise<void>,
): Promise<ShownSecret> {
  const secret = newSecret(parts.random)
  const at = parts.clock.now()
  return await parts.store.write(async (tx) => {
    if (!(await findAccount(tx, account))) throw notFound(`the account ${account}`)
    await rotateSecret(tx, account, secret, at + OVERLAP_MS)
    const made = shown(await ensureSecrets(tx, account, secret), at)
    await also?.(tx, made)
    return made
  })
}

/** The secrets that sign now, the present one first. */
export async function signingSecrets(parts: SecretParts, account: AccountId): Promise<string[]> {
  const { secret, previous } = await secretsOf(parts, account)
  return previous !== null && previous.until > parts.clock.now() ? [secret, previous.secret] : [secret]
}

async function secretsOf(parts: SecretParts, account: AccountId): Promise<WebhookSecrets> {
  const known = await parts.store.read((view) => findSecrets(view, account))
  if (known) return known
  const secret = newSecret(parts.random)
  return await parts.store.write(async (tx) => {
    if (!(await findAccount(tx, account))) throw notFound(`the account ${account}`)
    return await ensureSecrets(tx, account, secret)
  })
}

function shown({ secret, previous }: WebhookSecrets, at: Instant): ShownSecret {
  return { secret, previousUntil: previous !== null && previous.until > at ? previous.until : null }
}
