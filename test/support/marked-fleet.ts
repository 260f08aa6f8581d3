import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { startFleet, type Client, type Fleet, type FleetNode, type FleetOptions, type Json } from "./fleet.ts"

/** A fleet, a client with one project, and a folder (MARKS to its programs) in which programs and the test tell each other things. */
export interface MarkedFleet extends AsyncDisposable {
  readonly fleet: Fleet
  readonly client: Client
  readonly marks: string
  /** Leaves a mark: a program waits for it. */
  go(mark: string): void
  /** How often programs left an x in the mark. */
  runs(mark: string): number
  node(index: number): FleetNode
  /** A test that failed must not take the slots of the next one. */
  cancelActive(): Promise<void>
}

export interface MarkedFleetOptions extends FleetOptions {
  project: string
  files: Record<string, string>
  creditUsd?: number
}

export async function startMarkedFleet({
  project,
  files,
  creditUsd,
  ...options
}: MarkedFleetOptions): Promise<MarkedFleet> {
  await using opening = new AsyncDisposableStack()
  const marks = mkdtempSync(join(tmpdir(), "computalot-marks-"))
  opening.defer(() => rmSync(marks, { recursive: true, force: true }))
  const fleet = opening.use(await startFleet(options))
  const client = await fleet.member(creditUsd)
  await client.project(project, files, { env: { MARKS: marks } })
  const opened = opening.move()
  return {
    fleet,
    client,
    marks,
    go: (mark) => writeFileSync(join(marks, mark), ""),
    runs: (mark) => (existsSync(join(marks, mark)) ? readFileSync(join(marks, mark), "utf8").length : 0),
    node(index) {
      const found = fleet.nodes[index]
      if (!found) throw new Error(`no node ${index}`)
      return found
    },
    async cancelActive() {
      const active = (await client.call("GET", "/api/v1/jobs?limit=500")).json["jobs"] as Json[] | undefined
      for (const { id, status } of active ?? []) {
        if (status === "running" || status === "queued") await client.call("PUT", `/api/v1/jobs/${String(id)}/cancel`)
      }
    },
    [Symbol.asyncDispose]: () => opened.disposeAsync(),
  }
}

/**
 * Leaves an x in MARKS/NAME, waits for MARKS/GO when there is a GO, leaves a file of so many MiB when there is a SIZE, and tells
 * its name.
 */
export const WORK_PY = `import json, os, time
payload = json.load(open(os.environ["COMPUTALOT_TASK_PAYLOAD"]))
marks = os.environ["MARKS"]
with open(os.path.join(marks, payload["name"]), "a") as file:
    file.write("x")
while "go" in payload and not os.path.exists(os.path.join(marks, payload["go"])):
    time.sleep(0.05)
if "size" in payload:
    with open(os.path.join(os.environ["COMPUTALOT_ARTIFACT_DIR"], "large.bin"), "wb") as file:
        for n in range(payload["size"]):
            file.write(os.urandom(2 ** 20))
json.dump({"name": payload["name"]}, open(os.environ["COMPUTALOT_TASK_RESULT"], "w"))
`

/** A program that does what its payload says, with these helpers beside `write` and `wait_for`. */
export const runPy = (helpers: string): string => `import json, os, sys, time
payload = json.load(open(os.environ["COMPUTALOT_TASK_PAYLOAD"]))
marks = os.environ.get("MARKS", "")
def write(value):
    with open(os.environ["COMPUTALOT_TASK_RESULT"], "w") as file:
        json.dump(value, file)
def wait_for(name):
    while not os.path.exists(os.path.join(marks, name)):
        time.sleep(0.02)
${helpers}
exec(payload["do"])
`

/** A job of the project `run` that does `program`. */
export function doing(program: string, more: Json = {}): Json {
  const { payload, ...fields } = more
  return {
    project: "run",
    runner_command: ["python3", "run.py"],
    payload: { do: program, ...(payload as Json) },
    ...fields,
  }
}
