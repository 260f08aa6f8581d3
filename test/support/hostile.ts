import { expect } from "vitest"
import type { ResultItem } from "../../protocol/wire/control.ts"
import { startWorker, type ScriptedNode, type TestCoordinator, type Worker } from "./scripted-node.ts"

/** The node's row in `GET /admin/nodes`. */
export async function rowOf(rig: TestCoordinator, { id }: ScriptedNode): Promise<Record<string, unknown>> {
  const nodes = (await rig.call("GET", "/admin/nodes")).get("nodes") as Record<string, unknown>[]
  return nodes.find((row) => row["id"] === id) ?? {}
}

/** Why it is on probation; undefined while it is not. */
export async function probationOf(rig: TestCoordinator, node: ScriptedNode): Promise<string | undefined> {
  return ((await rowOf(rig, node))["probation"] as { reason: string } | null)?.reason
}

export async function completed(rig: TestCoordinator, ...jobs: string[]): Promise<void> {
  for (const job of jobs) {
    await expect.poll(async () => (await rig.job(job))["status"], { timeout: 40_000 }).toBe("completed")
  }
}

/** Does the same with every task it is granted. */
export function does(node: Worker, act: (claim: number) => Promise<void>): Disposable {
  const seen = new Set<number>()
  const timer = setInterval(() => {
    for (const { claim } of node.granted) {
      if (seen.has(claim)) continue
      seen.add(claim)
      void act(claim).catch(() => {})
    }
  }, 10)
  return { [Symbol.dispose]: () => clearInterval(timer) }
}

const RUNTIME_MS = 50
export const works =
  (node: Worker) =>
  async (claim: number): Promise<void> => {
    node.mine.add(claim)
    await node.say({ type: "accept", claims: [claim] })
    await node.say({ type: "started", claims: [claim] })
    await new Promise((resolve) => setTimeout(resolve, RUNTIME_MS + 10))
    await node.report(claim, { runtime_ms: RUNTIME_MS })
    node.mine.delete(claim)
  }

export const reports =
  (node: Worker, item: Partial<ResultItem>) =>
  async (claim: number): Promise<void> => {
    await node.say({ type: "accept", claims: [claim] })
    await node.report(claim, item)
  }

export const FAILS: Partial<ResultItem> = { failure_kind: "exit_code", exit_code: 1, result: null }

/** The bad one is asked first: it has been there for longer. */
export async function pair(rig: TestCoordinator): Promise<{ bad: Worker; good: Worker }> {
  return { bad: await startWorker(rig), good: await startWorker(rig) }
}
