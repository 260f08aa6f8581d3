import { existsSync, readdirSync, readFileSync } from "node:fs"
import { join } from "node:path"
import { describe, expect, test } from "vitest"
import { listFiles, parseSourceFiles, readSourceFiles, REPOSITORY, SOURCE_FOLDERS } from "./support/source-files.ts"
import {
  doorsLeaveTheStoreAlone,
  environmentHasTwoReaders,
  importsNameFiles,
  ladderIsKept,
  LADDERS,
  misnamedFiles,
  noBarrels,
  noCycles,
  noTwoWayFolders,
  PACKAGE_HOMES,
  packagesStayHome,
  sqlStaysHome,
  type TidyRule,
} from "./support/tidy-rules.ts"

type Sources = Record<string, string>

const files = readSourceFiles()

/** Put together, so that this file itself does not read as if it imported the planted one. */
const lateImport = (path: string): string => `const late = await import(${JSON.stringify(path)})`

/** Each rule with sources that break it (once for each line of `faults`) beside sources that look alike and keep it. */
const RULES: [promise: string, rule: TidyRule, sources: Sources, faults: RegExp[]][] = [
  [
    "a file imports from its own rung and lower ones, and the programs meet only in protocol",
    ladderIsKept,
    {
      "protocol/base/clock.ts": `export const clock = 1`,
      "protocol/wire/control.ts": `import type { topics } from "../gossip/topics.ts"`,
      "protocol/gossip/topics.ts": `export type topics = 1\nimport { clock } from "../mesh/mesh.ts"`,
      "protocol/mesh/mesh.ts": lateImport("../../coordinator/jobs/submit.ts"),
      "coordinator/jobs/submit.ts": `import { x } from "../billing/holds.ts"\nimport { clock } from "../../protocol/base/clock.ts"`,
      "coordinator/billing/holds.ts": `import type {\n  Job,\n} from "../jobs/submit.ts"`,
      "coordinator/extra/holds.ts": `export const x = 1`,
      "node-agent/cache/hasher.ts": "new Worker(new URL(`./../tasks/run${ending}`, import.meta.url))",
      "node-agent/tasks/run.ts": `export { x } from "../../coordinator/billing/holds.ts"`,
      "node-agent/main.ts": `import { x } from "./tasks/run.ts"`,
      "scripts/demo.ts": `import "../coordinator/jobs/submit.ts"`,
    },
    [
      /topics\.ts looks up to protocol\/mesh\/mesh\.ts/,
      /mesh\.ts reaches coordinator\/jobs\/submit\.ts: programs meet/,
      /holds\.ts looks up to coordinator\/jobs\/submit\.ts/,
      /coordinator\/extra\/holds\.ts stands on no rung/,
      /hasher\.ts looks up to node-agent\/tasks\/run\.ts/,
      /run\.ts reaches coordinator\/billing\/holds\.ts: programs meet/,
    ],
  ],
  [
    "the coordinator's doors leave the store to the domain",
    doorsLeaveTheStoreAlone,
    {
      "coordinator/http/app.ts": `import type { Store } from "../store/store.ts"`,
      "coordinator/http/routes/jobs.ts": `import { insertJob } from "../../store/jobs.ts"`,
    },
    [/routes\/jobs\.ts calls coordinator\/store\/jobs\.ts/],
  ],
  [
    "a package is imported only where it is at home",
    packagesStayHome,
    {
      "coordinator/http/app.ts": `import express from "express"\nimport { z } from "zod"\nimport "node:fs"`,
      "coordinator/jobs/submit.ts": `import express from "express"`,
      "protocol/domain/ids.ts": `import type { PeerId } from "@libp2p/interface"`,
      "protocol/mesh/mesh.ts": `import { createTopicScoreParams } from "@chainsafe/libp2p-gossipsub/score"`,
      "node-agent/cache/blobs.ts": `import leftPad from "left-pad"\nimport fs from "fs"`,
      "protocol/base/json-log.ts": `import { pino } from "pino"`,
      "test/unit/any.test.ts": `import { pino } from "pino"`,
    },
    [
      /submit\.ts imports express, whose home is coordinator\/http/,
      /ids\.ts imports @libp2p\/interface/,
      /blobs\.ts imports left-pad, which has no home/,
      /blobs\.ts: write "node:fs"/,
    ],
  ],
  [
    "process.env is read in the two config files",
    environmentHasTwoReaders,
    {
      "coordinator/config.ts": `export const port = process.env["PORT"]`,
      "coordinator/http/app.ts": `// process.env is not read here\nconst path = bundle.process.env`,
      "node-agent/cache/blobs.ts": `const home = process.env["HOME"]`,
      "node-agent/tasks/run.ts": `import { env } from "node:process"`,
    },
    [/blobs\.ts reads/, /run\.ts reads/],
  ],
  [
    "all SQL is in the store and in the outbox",
    sqlStaysHome,
    {
      "coordinator/store/jobs.ts": "tx.run(`UPDATE jobs SET state = ?`, state)",
      "coordinator/jobs/submit.ts": `const method = "DELETE"\nawait store.read((view) => readJob(view, id))`,
      "coordinator/jobs/report.ts": "export const late = `\n  SELECT id FROM tasks`",
      "coordinator/fleet/nodes.ts": "await tx.run(statement)",
    },
    [/report\.ts speaks SQL/, /nodes\.ts speaks SQL/],
  ],
  [
    "an import names a file with its .ts ending",
    importsNameFiles,
    { "test/a.ts": `import "./b.ts"\nimport "./b"\nimport "./b.js"`, "test/b.ts": `import { fc } from "fast-check"` },
    [/imports ".\/b"/, /imports ".\/b.js"/],
  ],
  [
    "no file only hands on what others define",
    noBarrels,
    {
      "protocol/wire/all.ts": `// everything\nexport * from "./a.ts"\nexport { b } from "./b.ts"`,
      "protocol/wire/kept.ts": `import { a } from "./a.ts"\nexport { a }`,
      "protocol/wire/more.ts": `export { b } from "./b.ts"\nexport const more = 1`,
      "scripts/demo.ts": `import "../coordinator/main.ts"`,
    },
    [/all\.ts only exports/, /kept\.ts only exports/],
  ],
  [
    "no files import each other in a circle",
    noCycles,
    {
      "protocol/base/a.ts": `import type { b } from "./b.ts"`,
      "protocol/base/b.ts": `import { c } from "./c.ts"`,
      "protocol/base/c.ts": lateImport("./a.ts"),
      "protocol/base/d.ts": `import { a } from "./a.ts"`,
    },
    [/a\.ts → protocol\/base\/b\.ts → protocol\/base\/c\.ts → protocol\/base\/a\.ts/],
  ],
  [
    "no two folders need each other",
    noTwoWayFolders,
    {
      "coordinator/jobs/submit.ts": `import { plan } from "./plan/plan.ts"`,
      "coordinator/jobs/plan/plan.ts": `import type { Kind } from "../kinds.ts"`,
      "coordinator/jobs/kinds.ts": `export type Kind = 1`,
      "protocol/api/jobs.ts": `import { x } from "../wire/deep/frames.ts"`,
      "protocol/wire/grant.ts": `import { x } from "../api/jobs.ts"`,
      "protocol/wire/deep/frames.ts": `import { x } from "../../base/clock.ts"`,
      "protocol/base/clock.ts": `export const x = 1`,
    },
    [/coordinator\/jobs ↔ coordinator\/jobs\/plan/, /protocol\/api ↔ protocol\/wire/],
  ],
]

describe.each(RULES)("%s", (_promise, rule, sources, faults) => {
  test("in this repository", () => {
    expect(rule(files)).toEqual([])
  })

  test("or the fault is named", () => {
    expect(rule(parseSourceFiles(new Map(Object.entries(sources))))).toEqual(
      faults.map((fault) => expect.stringMatching(fault)),
    )
  })
})

test("file and folder names are kebab-case", () => {
  expect(misnamedFiles(listFiles())).toEqual([])
  expect(
    misnamedFiles([
      "protocol/wire/control.ts",
      "test/tidy.test.ts",
      "scripts/demo/Dockerfile",
      "scripts/Demo",
      "test/some_tests/a.ts",
    ]),
  ).toEqual(["scripts/Demo", "test/some_tests/a.ts"])
})

test("every package that the programs need has a home", () => {
  const manifest = JSON.parse(readFileSync(join(REPOSITORY, "package.json"), "utf8")) as {
    dependencies: Record<string, string>
  }
  expect(Object.keys(PACKAGE_HOMES).sort()).toEqual(Object.keys(manifest.dependencies).sort())
})

test("the README's map names every top-level folder and every rung, and nothing that is not there", () => {
  const readme = readFileSync(join(REPOSITORY, "README.md"), "utf8")
  const map = /^## Where things are\n(?<section>.*?)(?=^## |$(?![\s\S]))/ms.exec(readme)?.groups?.["section"] ?? ""
  const named = [...map.matchAll(/`(?<path>[\w./-]+)`/g)].map((match) =>
    (match.groups?.["path"] ?? "").replace(/\/$/, ""),
  )

  // A program's own files stand in the map by their name alone.
  const rungs = Object.entries(LADDERS).flatMap(([program, ladder]) =>
    ladder
      .flat()
      .map((name) => ({ path: `${program}/${name}`, shown: name.endsWith(".ts") ? name : `${program}/${name}` })),
  )
  const there = rungs.filter((rung) => existsSync(join(REPOSITORY, rung.path))).map((rung) => rung.shown)
  expect(named).toEqual(expect.arrayContaining([...SOURCE_FOLDERS, ...unlistedFolders(), ...there]))
  expect(named.filter((path) => path.includes("/") && !existsSync(join(REPOSITORY, path)))).toEqual([])
})

/** Top-level folders beside the known ones; those that git ignores hold nothing to read. */
function unlistedFolders(): string[] {
  const ignored = readFileSync(join(REPOSITORY, ".gitignore"), "utf8").split("\n")
  return readdirSync(REPOSITORY, { withFileTypes: true })
    .filter((entry) => entry.isDirectory() && !entry.name.startsWith(".") && !ignored.includes(`${entry.name}/`))
    .map((entry) => entry.name)
    .filter((name) => !SOURCE_FOLDERS.some((folder) => folder === name))
}
