import fc from "fast-check"
import { expect, test } from "vitest"
import { auditMoney } from "../../coordinator/billing/audit.ts"
import { chargeAttempts, placeHold, settleHold, type Hold } from "../../coordinator/billing/holds.ts"
import { adjustCredit, readBalance } from "../../coordinator/billing/ledger.ts"
import { unreachable } from "../../protocol/base/assert.ts"
import { systemClock } from "../../protocol/base/clock.ts"
import { ComputalotError } from "../../protocol/domain/errors.ts"
import { claimNumber, holdId, jobId, type HoldId } from "../../protocol/domain/ids.ts"
import { fundedAccount } from "../support/accounts.ts"
import { openTestStore } from "../support/store.ts"

// Ids from small ranges, so that repetitions and collisions are the rule.
const accountIndex = fc.integer({ min: 0, max: 1 })
const holdIndex = fc.integer({ min: 0, max: 4 })
const amount = fc.bigInt({ min: 0n, max: 400n })
const charge = fc.record({ claim: fc.integer({ min: 1, max: 12 }), hold: holdIndex, amount })
const credit = fc.record({
  act: fc.constant("credit"),
  account: accountIndex,
  amount: fc.bigInt({ min: -800n, max: 1_000n }),
})
const anAct = fc.oneof(
  { weight: 2, arbitrary: credit },
  { weight: 3, arbitrary: fc.record({ act: fc.constant("hold"), account: accountIndex, hold: holdIndex, amount }) },
  { weight: 4, arbitrary: fc.record({ act: fc.constant("charge"), charges: fc.array(charge, { maxLength: 5 }) }) },
  { weight: 2, arbitrary: fc.record({ act: fc.constant("settle"), hold: holdIndex }) },
)

test("whatever is credited, held, charged and settled, in any order and again: the sums agree, nobody is below zero, no charge above its hold", async () => {
  let placed = 0
  let settled = 0
  await fc.assert(
    fc.asyncProperty(fc.array(anAct, { minLength: 10, maxLength: 40, size: "max" }), async (acts) => {
      await using store = await openTestStore()
      const parts = { store, clock: systemClock }
      const accounts = [await fundedAccount(store, 1_500n), await fundedAccount(store, 0n)] as const
      const holds = new Set<HoldId>()
      const settlements = new Map<HoldId, Hold>()
      for (const [at, step] of acts.entries()) {
        switch (step.act) {
          case "credit": {
            const credit = { account: accounts[step.account as 0 | 1], amount: step.amount, description: null }
            await adjustCredit(parts, credit).catch((error: unknown) => {
              if (!(error instanceof ComputalotError)) throw error
            })
            break
          }
          case "hold": {
            const id = holdId(`hold_${step.hold}`)
            const [account, job] = [accounts[step.account as 0 | 1], jobId(`job_${step.hold}`)]
            const asked = store.write((tx) => placeHold(tx, { id, account, job, round: 1, amount: step.amount, at }))
            if (holds.has(id)) await asked.catch(() => undefined)
            else if ((await asked).placed) holds.add(id)
            break
          }
          case "charge": {
            const charges = step.charges
              .map((charge) => ({ ...charge, hold: holdId(`hold_${charge.hold}`), claim: claimNumber(charge.claim) }))
              .filter(({ hold }) => holds.has(hold))
            await store.write((tx) =>
              chargeAttempts(
                tx,
                charges.map((charge) => ({ ...charge, milliseconds: 1, at })),
              ),
            )
            break
          }
          case "settle": {
            const id = holdId(`hold_${step.hold}`)
            if (!holds.has(id)) break
            const settlement = await store.write((tx) => settleHold(tx, id, at))
            expect(settlement).toEqual(settlements.get(id) ?? settlement)
            settlements.set(id, settlement)
            break
          }
          default:
            unreachable(step as never)
        }
        const audit = await auditMoney(store)
        const balances = await store.read(async (view) => [
          await readBalance(view, accounts[0], at),
          await readBalance(view, accounts[1], at),
        ])
        expect(audit.checks.filter(({ ok }) => !ok)).toEqual([])
        for (const { available, held } of balances) expect(available >= 0n && held >= 0n).toBe(true)
      }
      placed += holds.size
      settled += [...settlements.values()].filter(({ status }) => status === "settled").length
    }),
    { numRuns: 60 },
  )
  // The sequences reach what they are to try.
  expect(placed).toBeGreaterThan(50)
  expect(settled).toBeGreaterThan(10)
})
