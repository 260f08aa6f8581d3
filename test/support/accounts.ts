import { insertAccount } from "../../coordinator/store/accounts.ts"
import { creditSignup } from "../../coordinator/billing/ledger.ts"
import type { Store } from "../../coordinator/store/store.ts"
import type { AccountId } from "../../protocol/domain/ids.ts"
import type { MicroUsd } from "../../protocol/domain/money.ts"

/** A new account with this much credit. */
export async function fundedAccount(store: Store, credit: MicroUsd): Promise<AccountId> {
  return store.write(async (tx) => {
    const account = await insertAccount(tx, { name: "test", at: 1 })
    await creditSignup(tx, account, credit, 1)
    return account
  })
}
