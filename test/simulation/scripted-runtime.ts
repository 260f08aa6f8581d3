import type { RuntimeSpec, ToCoordinator } from "../../protocol/wire/control.ts"
import type { DriverProbe, RuntimeDriver } from "../../node-agent/runtime/driver.ts"
import type { ChosenDriver } from "../../node-agent/runtime/choose-driver.ts"
import {
  FAILURE_RESTS_MS,
  RuntimeFailure,
  type HeldRuntime,
  type Runtimes,
  type RuntimesParts,
} from "../../node-agent/tasks/runtimes.ts"
import type { Program } from "./machine.ts"

/** Revisions become ready after a while, without being fetched: content has simulations of its own (test/mesh). */
export function scriptedRuntimes(program: Program, disk: Set<string>): (parts: RuntimesParts) => Runtimes {
  const prepareMs = program.chance.between(5, 1500)
  return (parts) => {
    const making = new Map<string, Promise<void>>()
    /** When it failed last, by revision. */
    const failed = new Map<string, number>()
    const say = (revision: string): void => {
      const state = disk.has(revision) ? "ready" : failed.has(revision) ? "failed" : "initializing"
      const message: ToCoordinator = { type: "replica", revision, state, message: null, log_tail: null }
      parts.send(message)
    }
    const make = (spec: RuntimeSpec): Promise<void> => {
      const known = making.get(spec.revision)
      // As the agent's own: what failed is tried, and told, again.
      const failedAtMs = failed.get(spec.revision) ?? Infinity
      if (known && program.clock.monotonicMs() - failedAtMs <= FAILURE_RESTS_MS) return known
      failed.delete(spec.revision)
      const { promise, resolve, reject } = Promise.withResolvers<void>()
      promise.catch(() => {})
      making.set(spec.revision, promise)
      if (disk.has(spec.revision)) resolve()
      else {
        say(spec.revision)
        program.clock.after(prepareMs, () => {
          if (spec.remote_dir === NEVER_PREPARED) {
            failed.set(spec.revision, program.clock.monotonicMs())
            say(spec.revision)
            return reject(new RuntimeFailure("validation", "it is never ready"))
          }
          disk.add(spec.revision)
          say(spec.revision)
          parts.changed()
          resolve()
        })
      }
      return promise
    }
    const held: HeldRuntime = {
      files: { kind: "tree", directory: "/", entries: null, venv: false, workdir: null } as never,
      [Symbol.dispose]() {},
    }
    return {
      async ready(spec) {
        await make(spec)
        return held
      },
      readyNow: (spec) => (disk.has(spec.revision) ? held : null),
      prepare: (spec) => void make(spec),
      warm: () => [...disk],
      knows: (revision) => disk.has(revision) || making.has(revision),
      announce() {
        for (const revision of [...disk, ...failed.keys()]) say(revision)
      },
      async restore() {},
      async [Symbol.asyncDispose]() {},
    }
  }
}

/** A driver that is there to be named; nothing is started through it. */
export function namedDriver(name: "process" | "gvisor"): ChosenDriver {
  const probe: DriverProbe = {
    available: true,
    problems: [],
    isolation: name === "gvisor" ? "gvisor" : "none",
    enforces: ["time"],
    network: "none",
    version: "0",
  }
  const unused = (): never => {
    throw new Error("the scripted runner starts nothing through the driver")
  }
  const driver: RuntimeDriver = {
    name,
    probe: async () => probe,
    prepare: unused,
    start: unused,
    adopt: unused,
    release: unused,
    remove: unused,
    sweep: unused,
    async [Symbol.asyncDispose]() {},
  }
  return { driver, probe, problems: [] }
}

/** A project that fails its checks on every node, by this mark. */
const NEVER_PREPARED = "/root/unprepared"
