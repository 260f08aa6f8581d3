import { afterAll, beforeAll, expect, test } from "vitest"
import { startFleet, type Client, type Fleet, type Json } from "../support/fleet.ts"

/** What a job is given by one that it depends on, with the process runtime. */

const RUN_PY = `import json, os
payload = json.load(open(os.environ["COMPUTALOT_TASK_PAYLOAD"]))
def write(value):
    with open(os.environ["COMPUTALOT_TASK_RESULT"], "w") as file:
        json.dump(value, file)
def keep(path, text):
    with open(os.path.join(os.environ["COMPUTALOT_ARTIFACT_DIR"], path), "w") as file:
        file.write(text)
exec(payload["do"])
`

let fleet: Fleet
let client: Client
beforeAll(async () => {
  fleet = await startFleet()
  client = await fleet.member(100)
  await client.project("run", { "run.py": RUN_PY })
}, 120_000)
afterAll(async () => {
  await fleet[Symbol.asyncDispose]()
})

const BASE = { project: "run", runner_command: ["python3", "run.py"] }
const PRODUCER = {
  ...BASE,
  fan_out: {
    items: [
      { do: `keep("data.txt", "of task 0")\nwrite({"score": 0.5})`, _artifacts: { upload: { dataset: "data.txt" } } },
      { do: `keep("data.txt", "of task 1")\nwrite({"score": 2})`, _artifacts: { upload: { dataset: "data.txt" } } },
    ],
  },
  state: { publish: { dataset_ready: { value: { status: "ready" } } } },
}
const LOOK = `
read = {name: open(path).read() for name, path in payload["_artifacts"]["local_paths"].items()}
write({"read": read, "values": payload["_shared"]["values"], "env": os.environ.get("COMPUTALOT_SHARED_BEST_SCORE")})`

test("AW-004, SS-001, SS-002, SS-004, GAP-54: a dependent finds what its upstream named, wrote and published", async ({
  skip,
}) => {
  const upstream = await client.submit(PRODUCER)
  const dependent = {
    ...BASE,
    type: "structured_runner",
    depends_on: [upstream],
    payload: {
      do: LOOK,
      _artifacts: {
        download: {
          dataset: { job_id: upstream, artifact: "dataset" },
          second: { job_id: upstream, artifact: "dataset", task_index: 1 },
        },
      },
      _shared: {
        resolve: {
          dataset_ready: { key: "dataset_ready" },
          best_score: { job_id: upstream, path: "results.0.score" },
          status: { job_id: upstream, path: "status" },
        },
      },
    },
  }
  const reply = await client.call("POST", "/api/v1/jobs", dependent)
  if (reply.json["code"] === "not_available_yet") skip("depends_on is not available yet")
  expect(reply.status, reply.text).toBe(201)
  const id = String(reply.get("id"))
  expect(await client.ended(id)).toMatchObject({ status: "completed" })
  const [task] = await client.tasks(id)
  expect(task?.["result"]).toEqual({
    read: { dataset: "of task 0", second: "of task 1" },
    values: { dataset_ready: { status: "ready" }, best_score: 0.5, status: "completed" },
    env: "0.5",
  })
  await fleet.expectAudit()
})

test("AW-004, SS-001, rulings: what the upstream never made fails the dependent's task, without a retry", async ({
  skip,
}) => {
  const upstream = await client.submit(PRODUCER)
  const ask = async (payload: Json): Promise<Json | undefined> => {
    const body = { ...BASE, type: "structured_runner", depends_on: [upstream], max_retries: 2, payload }
    const reply = await client.call("POST", "/api/v1/jobs", body)
    if (reply.json["code"] === "not_available_yet") skip("depends_on is not available yet")
    expect(reply.status, reply.text).toBe(201)
    await client.ended(String(reply.get("id")))
    return (await client.tasks(String(reply.get("id"))))[0]
  }
  const missingFile = await ask({
    do: LOOK,
    _artifacts: { download: { d: { job_id: upstream, artifact: "nothing" } } },
  })
  expect(missingFile).toMatchObject({ failure_kind: "artifact_unavailable" })
  const missingValue = await ask({
    do: LOOK,
    _shared: { resolve: { d: { job_id: upstream, path: "results.7.score" } } },
  })
  expect(missingValue).toMatchObject({ failure_kind: "shared_unresolved" })
})
