import { setImmediate as turn } from "node:timers/promises"
import { joinJsonObject, splitJsonObject, type JsonValue } from "../../protocol/base/json-text.ts"
import { slices } from "../../protocol/base/slices.ts"
import type { Instant } from "../../protocol/base/clock.ts"
import { invalidRequest, notFound, type FieldProblem } from "../../protocol/domain/errors.ts"
import { artifactId, type AccountId } from "../../protocol/domain/ids.ts"
import { missingArtifacts } from "../store/artifacts.ts"
import type { Store } from "../store/store.ts"
import type { Plan } from "./plan/plan.ts"
import type { Submission } from "./submission/submission.ts"
import {
  asksForInputs,
  INPUT_MEMBERS,
  taskInputs,
  type InputMember,
  type TaskInputs,
} from "./submission/task-inputs.ts"

/**
 * Checks what the tasks of a submission are to be given: refuses what is wrong by field (422), and with `not_found` an artifact
 * that is not the account's. What goes away later fails the task then.
 */
export async function checkInputs(
  parts: { store: Store },
  submission: Submission,
  plan: Plan,
  { account, dependsOn, at }: { account: AccountId; dependsOn: readonly string[]; at: Instant },
): Promise<void> {
  const problems: FieldProblem[] = []
  const named = new Set<string>()
  const jobs = new Set(dependsOn)
  if (plan.batched) await refusePacked(submission, plan, problems)
  const count = plan.batched || areAllAlike(submission) ? 1 : plan.count
  for (let index = 0; index < count && problems.length < MOST_PROBLEMS; index++) {
    if (index % CHECKED_AT_ONCE === CHECKED_AT_ONCE - 1) await turn()
    const members = membersOf(plan, index)
    if (!INPUT_MEMBERS.some((member) => asksForInputs(members[member]))) continue
    const where = { path: pathOf(submission, members, index), dependsOn: (job: string) => jobs.has(job) }
    for (const { from } of taskInputs(members, where, problems).downloads) {
      if ("artifactId" in from) named.add(from.artifactId)
    }
  }
  // What stands in the common payload is wrong for every task.
  if (problems.length > 0) throw invalidRequest([...new Map(problems.map((one) => [one.path, one])).values()])
  for (const ids of slices([...named], LOOKED_UP_AT_ONCE)) {
    const [missing] = await parts.store.read((view) => missingArtifacts(view, ids.map(artifactId), account, at))
    if (missing !== undefined) throw notFound(`the artifact ${missing}`)
  }
}

/** Tasks checked before others get a turn. */
const CHECKED_AT_ONCE = 5_000
const MOST_PROBLEMS = 50
const LOOKED_UP_AT_ONCE = 200

/** What a planned task is to be given; null: nothing. The submission was checked, so nothing of it is wrong. */
export function inputsOf(plan: Plan, index: number): (TaskInputs & { members: InputMembers }) | null {
  const members = membersOf(plan, index)
  if (!INPUT_MEMBERS.some((member) => asksForInputs(members[member]))) return null
  return { members, ...taskInputs(members, { path: "payload", dependsOn: () => true }, []) }
}

type InputMembers = Partial<Record<InputMember, JsonValue | undefined>>

function membersOf(plan: Plan, index: number): InputMembers {
  const item = plan.itemsOf(index).first
  return { _shared: plan.itemField(item, "_shared"), _artifacts: plan.itemField(item, "_artifacts") }
}

/** Most jobs: what their tasks differ in are numbers, or one field. Then one task tells for all. */
function areAllAlike({ work }: Submission): boolean {
  if (work.type === "map_reduce") return true
  if (work.type !== "structured_runner") return false
  const { fanOut } = work
  if (fanOut?.shape === "by") return !(INPUT_MEMBERS as readonly string[]).includes(fanOut.field)
  return fanOut?.shape !== "items"
}

/** A task that carries several items has one payload: what an item asks for would be nobody's. */
async function refusePacked(submission: Submission, plan: Plan, problems: FieldProblem[]): Promise<void> {
  if (areAllAlike(submission)) return
  for (let item = 0; item < plan.logicalItems; item++) {
    if (item % CHECKED_AT_ONCE === CHECKED_AT_ONCE - 1) await turn()
    const member = INPUT_MEMBERS.find((name) => {
      const value = plan.itemField(item, name)
      return asksForInputs(value) && value !== submission.payload[name]
    })
    if (member === undefined) continue
    const problem = "stands in an item, and batch_size packs items into one task: put it into payload"
    // One is enough.
    return void problems.push({ path: `fan_out.items[${item}].${member}`, problem })
  }
}

/** Where the client wrote it. */
function pathOf({ payload, work }: Submission, members: InputMembers, index: number): string {
  const isCommon = INPUT_MEMBERS.every((member) => members[member] === undefined || members[member] === payload[member])
  if (isCommon) return "payload"
  const isItems = work.type === "structured_runner" && work.fanOut?.shape === "items" && work.fanOut.batchSize === null
  return isItems ? `fan_out.items[${index}]` : `the payload of task ${index}`
}

/** The payload with what its aliases came to (SS-001): both are JSON text. */
export function withSharedValues(payload: string, values: string): string {
  const members = splitJsonObject(payload) ?? new Map<string, string>()
  const shared = splitJsonObject(members.get("_shared") ?? "{}") ?? new Map<string, string>()
  return joinJsonObject(members.set("_shared", joinJsonObject(shared.set("values", values))))
}
