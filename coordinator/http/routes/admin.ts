import type { z } from "zod"
import {
  createKey,
  createUser,
  creditAccount,
  getAccount,
  getAudit,
  listAccounts,
  listKeys,
  listUsers,
  revokeKey,
  type account,
  type key,
  type user,
} from "../../../protocol/api/admin.ts"
import { timestampText } from "../../../protocol/api/common.ts"
import type { Clock } from "../../../protocol/base/clock.ts"
import type { Random } from "../../../protocol/base/random.ts"
import { accountId, keyId, userId } from "../../../protocol/domain/ids.ts"
import type { Authenticator } from "../../accounts/authenticate.ts"
import * as keys from "../../accounts/keys.ts"
import * as users from "../../accounts/users.ts"
import { auditMoney } from "../../billing/audit.ts"
import * as ledger from "../../billing/ledger.ts"
import type { Store } from "../../store/store.ts"
import { mount, type HttpApp } from "../app.ts"
import { balanceBody, entryRow } from "./account.ts"

export interface AdminRouteParts extends users.UserParts {
  store: Store
  clock: Clock
  random: Random
  authenticator: Pick<Authenticator, "forget">
}

/** Users and their keys, accounts and their credit, and the audit (interfaces.md, Admin API). */
export function mountAdmin(app: Pick<HttpApp, "add">, parts: AdminRouteParts): void {
  mount(app, createUser, async ({ body, idempotency }) => {
    const wanted: users.NewUser = {
      name: body.name,
      email: body.email ?? null,
      role: body.role,
      account: body.account_id === undefined ? null : accountId(body.account_id),
    }
    const reply = (made: users.User) => ({ user: userRow(made) })
    return reply(
      await users.createUser(
        parts,
        wanted,
        idempotency.remember((made) => ({ status: 201, body: reply(made) })),
      ),
    )
  })

  mount(app, listUsers, async () => {
    const all = await users.listUsers(parts.store)
    return { users: all.map(userRow), count: all.length }
  })

  mount(app, createKey, async ({ params, body, idempotency }) => {
    const wanted: keys.NewKey = {
      user: userId(params.id),
      name: body.name ?? null,
      role: body.role ?? null,
      expiresAt: body.expires_at ?? null,
    }
    // A repetition gives the same id without the secret, which is stored nowhere (rulings, Idempotency).
    const again = (issued: keys.IssuedKey) => ({ status: 201, body: { key: newKeyRow(issued.key), token: null } })
    const issued = await keys.createKey(parts, wanted, idempotency.remember(again))
    return { key: newKeyRow(issued.key), token: issued.token }
  })

  mount(app, listKeys, async ({ params }) => {
    const all = await keys.listKeys(parts.store, userId(params.id))
    return { keys: all.map(keyRow), count: all.length }
  })

  mount(app, revokeKey, async ({ params }) => {
    await keys.revokeKey(parts, keyId(params.id))
    return { status: "revoked" as const, id: params.id }
  })

  mount(app, creditAccount, async ({ params, body, idempotency }) => {
    const credit = { account: accountId(params.id), amount: body.amount_usd, description: body.description ?? null }
    const reply = (made: ledger.CreditReceipt) => ({ entry: entryRow(made.entry), balance: balanceBody(made.balance) })
    return reply(
      await ledger.adjustCredit(
        parts,
        credit,
        idempotency.remember((made) => ({ status: 201, body: reply(made) })),
      ),
    )
  })

  mount(app, listAccounts, async () => {
    const all = await ledger.listAccountBalances(parts)
    return { accounts: all.map(accountRow), count: all.length }
  })

  mount(app, getAccount, async ({ params }) => ({
    account: accountRow(await ledger.getAccountBalance(parts, accountId(params.id))),
  }))

  mount(app, getAudit, async () => auditMoney(parts.store))
}

export function userRow(row: users.User): z.output<typeof user> {
  return {
    id: row.id,
    account_id: row.account,
    name: row.name,
    email: row.email,
    role: row.role,
    created_at: timestampText(row.createdAt),
  }
}

function accountRow(row: ledger.AccountBalance): z.output<typeof account> {
  return { id: row.id, name: row.name, created_at: timestampText(row.createdAt), ...balanceBody(row.balance) }
}

export function newKeyRow(row: keys.Key): Omit<z.output<typeof key>, "revoked_at"> {
  return {
    id: row.id,
    name: row.name,
    role: row.role,
    prefix: row.prefix,
    created_at: timestampText(row.createdAt),
    expires_at: timestampText(row.expiresAt),
  }
}

function keyRow(row: keys.Key): z.output<typeof key> {
  return { ...newKeyRow(row), revoked_at: timestampText(row.revokedAt) }
}
