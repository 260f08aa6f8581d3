import fc from "fast-check"
import { expect, test } from "vitest"
import { digest, nodeId, revisionId } from "../../protocol/domain/ids.ts"
import { parseEnvFile, taskEnvLayers } from "../../coordinator/projects/env-files.ts"
import { isBusy, readinessOf, type ReadinessFacts } from "../../coordinator/projects/readiness.ts"
import { sanitise } from "../../coordinator/projects/sanitise.ts"
import { diffListings, listingOf, normaliseName, type TreeEntry } from "../../coordinator/projects/tree.ts"

const NODES = ["node_a", "node_b", "node_c"].map(nodeId)
const ACTIVE = revisionId("rev_active")
const NOW = 1_000_000

const facts: fc.Arbitrary<ReadinessFacts> = fc
  .record({
    pushed: fc.boolean(),
    build: fc.constantFrom("queued", "building", "built", "failed"),
    states: fc.array(fc.constantFrom("initializing", "ready", "failed", "stale"), { maxLength: 3 }),
    live: fc.subarray(NODES),
    withoutImage: fc.boolean(),
    builders: fc.nat(1),
    trouble: fc.constantFrom(null, "the base is nowhere"),
    request: fc.option(
      fc.record({
        kind: fc.constantFrom("init", "refresh"),
        maxNodes: fc.option(fc.integer({ min: 1, max: 3 })),
        endsAt: fc.constantFrom(NOW - 1, NOW + 1),
      }),
    ),
  })
  .map(({ pushed, build, states, live, withoutImage, builders, trouble, request }) => ({
    project: { name: "p", lastReadyAt: null },
    revision: pushed
      ? {
          id: ACTIVE,
          project: 1,
          contentHash: digest("a".repeat(64)),
          tarball: { digest: digest("b".repeat(64)), size: 1 },
          manifest: null,
          hasDockerfile: true,
          env: {},
          build,
          builder: null,
          image: null,
          buildChangedAt: 1,
          pushedAt: 1,
        }
      : null,
    replicas: pushed
      ? states.map((state, index) => ({ state, node: NODES[index] ?? nodeId("x"), revision: ACTIVE, changedAt: 1 }))
      : [],
    request: pushed && request ? { ...request, project: 1, revision: ACTIVE, requestedAt: 1 } : null,
    diagnostics: [],
    fleet: {
      isLive: (node) => live.includes(node),
      workers: live.length,
      workersWithoutImage: withoutImage ? live.length : 0,
      builders,
      trouble: () => trouble,
    },
    load: { queuedTasks: 0, activeJobs: 0, activeTasks: 0 },
    now: NOW,
  }))

const INIT_STATES = ["not_initialized", "published", "initializing", "ready", "refreshing", "attention_required"]
const AVAILABILITIES = ["cold", "warming", "ready", "degraded", "mixed"]
const PHASES = ["queued", "running", "failed", "refreshing", "refresh_pending", "ready", "idle"]

test("PR-004, PR-005, PR-006, PR-007, PR-008, PR-010, PR-012, PR-013, PR-014: whatever the rows say, the fields agree with one another", () => {
  fc.assert(
    fc.property(facts, (given) => {
      const told = readinessOf(given)
      const { counts } = told
      expect(INIT_STATES).toContain(told.initState)
      expect(AVAILABILITIES).toContain(told.availabilityStatus)
      expect(PHASES).toContain(told.progressPhase)
      expect(told.initState === "ready").toBe(counts.ready > 0)
      expect(told.readyForJobs).toBe(counts.ready > 0)
      expect(told.canAcceptNewJobs).toBe(given.revision !== null)
      expect(told.initState === "not_initialized").toBe(given.revision === null)
      expect(told.projectReady).toBe(told.canAcceptNewJobs && told.initState !== "attention_required")
      expect(told.progressPhase === "failed").toBe(told.initState === "attention_required")
      expect(told.progressPhase === "ready").toBe(told.initState === "ready")
      expect(told.requestedState === null || told.pendingInit).toBe(true)
      expect(told.latestIssue !== null).toBe(
        told.initState === "attention_required" || told.availabilityStatus === "degraded",
      )
      expect(counts.ready + counts.initializing + counts.failed + counts.stale).toBe(given.replicas.length)
      expect(told.statusMessage.length * told.nextAction.length).toBeGreaterThan(0)
    }),
    { numRuns: 2000 },
  )
})

test("C-11: nothing keeps a push out past the deadline, or while no node could do anything", () => {
  fc.assert(
    fc.property(facts, (given) => {
      const told = readinessOf(given)
      if (!isBusy(told)) return
      expect(given.request?.endsAt).toBeGreaterThan(NOW)
      expect(given.fleet.workers).toBeGreaterThan(0)
      expect(told.pendingInit).toBe(true)
    }),
    { numRuns: 2000 },
  )
})

const name = fc.stringMatching(/^[a-z]{1,3}(\/[a-z]{1,3}){0,2}$/)
const tree = fc
  .dictionary(name, fc.record({ executable: fc.boolean(), digest: fc.constantFrom("1", "2") }))
  .map(
    (entries) =>
      new Map<string, TreeEntry>(Object.entries(entries).map(([at, facts]) => [at, { type: "file", ...facts }])),
  )

test("P-020: a diff names exactly what differs, and trees that are equal have equal listings", () => {
  fc.assert(
    fc.property(tree, tree, (before, after) => {
      const diff = diffListings(listingOf(before), listingOf(after))
      expect(diff.addedFiles).toEqual([...after.keys()].filter((at) => !before.has(at)).sort())
      expect(diff.removedFiles).toEqual([...before.keys()].filter((at) => !after.has(at)).sort())
      const changed = [...after].filter(
        ([at, entry]) => before.has(at) && JSON.stringify(before.get(at)) !== JSON.stringify(entry),
      )
      expect(diff.changedFiles).toEqual(changed.map(([at]) => at).sort())
      expect(listingOf(new Map([...after].reverse()))).toBe(listingOf(after))
    }),
  )
})

test("a name that is taken never leads out of the tree, whatever was sent", () => {
  fc.assert(
    fc.property(fc.string({ unit: fc.constantFrom("a", ".", "/", "\0", "\n", "ä", "\\") }), (raw) => {
      const normal = normaliseName(raw)
      if ("reason" in normal) return
      expect(normal.name.split("/")).not.toContain("..")
      expect(normal.name.startsWith("/")).toBe(false)
      expect(normaliseName(normal.name)).toEqual(normal)
    }),
  )
})

test("rulings, Env files: lines, comments, export, quotes, nothing interpolated", () => {
  const text = [
    "\uFEFFA=1",
    "# comment",
    "",
    "  export B = two words  ",
    `C="quoted # not a comment"`,
    "D='single'",
    `E="unmatched'`,
    "F=$A",
    "G=",
    "not a line",
    "1BAD=x",
    "COMPUTALOT_TASK_RESULT=x",
    "H=a=b\r",
  ].join("\n")
  expect(parseEnvFile(text)).toEqual({
    A: "1",
    B: "two words",
    C: "quoted # not a comment",
    D: "single",
    E: `"unmatched'`,
    F: "$A",
    G: "",
    H: "a=b",
  })
})

test("M-009, RP-010: later layers win, and the platform's names come from nobody else", () => {
  const layered = taskEnvLayers(
    { A: "file", B: "file", C: "file" },
    { B: "project", C: "project", COMPUTALOT_X: "1" },
    { C: "job" },
  )
  expect(layered).toEqual({ A: "file", B: "project", C: "job" })
  expect(taskEnvLayers({}, {}, undefined)).toEqual({})
})

test("X-004: what sanitise keeps is short, and its end is the text's end", () => {
  expect(sanitise("x".repeat(50_000), 100)).toHaveLength(100)
  expect(sanitise("File /workspace/job.py, line 1, version 1.2.3.4", 100)).toBe(
    "File /workspace/job.py, line 1, version 1.2.3.4",
  )
  expect(sanitise("to /ip4/10.0.0.1/tcp/4001/p2p/x and 192.168.1.1:80", 100)).toBe("to [address] and [address]")
  expect(sanitise("/tmp/buildah123/mnt/x and /root/node-data/runs/7", 100)).toBe("[path] and [path]")
})
