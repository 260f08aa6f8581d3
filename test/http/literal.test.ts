import { execFileSync } from "node:child_process"
import { mkdirSync, readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { afterAll, beforeAll, describe, expect, test } from "vitest"
import { PROJECT_FILES, shell, startFleet, type Client, type Fleet, type Json } from "../support/fleet.ts"

/** Appendix A: what the documents print, replayed with the programs they print it for, against one live node. */

const JOB_PY = `import json, os
payload = json.load(open(os.environ["COMPUTALOT_TASK_PAYLOAD"]))
result = {"status": "ok", "source": "getting-started"}
json.dump(result, open(os.environ["COMPUTALOT_TASK_RESULT"], "w"))
`
const ECHO_PY = `import json, os
payload = json.load(open(os.environ["COMPUTALOT_TASK_PAYLOAD"]))
print("saw", sorted(payload))
json.dump({"saw": payload}, open(os.environ["COMPUTALOT_TASK_RESULT"], "w"))
`
/** As the documents have it, with numbers that the payload implies instead of a training. */
const SCORE_PY = `import json, os
payload = json.load(open(os.environ["COMPUTALOT_TASK_PAYLOAD"]))
result = {"saw": payload,
          "accuracy": payload.get("learning_rate", 0) * payload.get("batch_size", 0),
          "score": len(payload.get("model", "")) + payload.get("_replica", 0) / 10}
print("saw", sorted(payload))
json.dump(result, open(os.environ["COMPUTALOT_TASK_RESULT"], "w"))
`
const SEEDS_PY = `import json, os
payload = json.load(open(os.environ["COMPUTALOT_TASK_PAYLOAD"]))
start, count = payload["seed_start"], payload["seed_count"]
json.dump({"total_pnl": count, "sharpe_ratio": start, "sample_count": count, "max_drawdown": start + count},
          open(os.environ["COMPUTALOT_TASK_RESULT"], "w"))
`
const PRODUCE_PY = `import json, os
open(os.path.join(os.environ["COMPUTALOT_ARTIFACT_DIR"], "dataset.csv"), "w").write("a,b")
json.dump({"score": 0.5}, open(os.environ["COMPUTALOT_TASK_RESULT"], "w"))
`

let fleet: Fleet
let client: Client
let projects: string
beforeAll(async () => {
  fleet = await startFleet()
  client = await fleet.member(5)
  projects = join(fleet.folder, "home")
  for (const name of ["my-ml-project", "my-proj", "my-project"]) {
    mkdirSync(join(projects, name), { recursive: true })
    const files = {
      ...PROJECT_FILES,
      "job.py": JOB_PY,
      "script.py": ECHO_PY,
      "train.py": ECHO_PY,
      "evaluate.py": name === "my-proj" ? ECHO_PY : SCORE_PY,
      "eval.py": ECHO_PY,
      "simulate.py": ECHO_PY,
      "evaluate_seeds.py": SEEDS_PY,
      "produce.py": PRODUCE_PY,
      "sleep.py": "import time\nprint('sleeping', flush=True)\ntime.sleep(300)\n",
    }
    for (const [file, content] of Object.entries(files)) writeFileSync(join(projects, name, file), content)
  }
})
afterAll(async () => {
  await fleet[Symbol.asyncDispose]()
})

async function sh(script: string, cwd = "my-ml-project"): Promise<{ status: number; stdout: string; json: Json }> {
  const { origin, folder } = fleet
  const reply = await shell(script, { token: client.token, origin, folder, cwd: join(projects, cwd) })
  return { ...reply, json: reply.stdout.startsWith("{") ? (JSON.parse(reply.stdout) as Json) : {} }
}

const BEARER = `-H "Authorization: Bearer $TOKEN"`
const post = (path: string, body: string): string =>
  `curl -sS "$BASE_URL${path}" -X POST ${BEARER} -H "Content-Type: application/json" -d '${body}'`
const get = (path: string): string => `curl -sS "$BASE_URL${path}" ${BEARER}`

async function accepted(body: string): Promise<string> {
  const reply = await sh(post("/api/v1/jobs", body))
  expect(reply.status, reply.stdout).toBe(201)
  return String(reply.json["id"])
}

describe("appendix A", () => {
  test("A06, A07, A08, A09: balance, holds, ledger and quotes", async () => {
    const balance = await sh(get("/api/v1/account/balance"))
    expect(balance.status).toBe(200)
    expect(balance.json).toMatchObject({ ledger_balance_usd: 5, held_usd: 0, available_usd: 5, active_hold_count: 0 })
    const holds = await sh(get("/api/v1/account/holds"))
    expect([holds.status, holds.json["holds"]]).toEqual([200, []])
    const ledger = await sh(get("/api/v1/account/ledger"))
    expect([ledger.status, ledger.json["count"]]).toEqual([200, 1])
    const quotes = await sh(get("/api/v1/account/quotes"))
    expect([quotes.status, quotes.json["quotes"]]).toEqual([200, []])
  })

  test("A12, A13, A14: the three documented projects are created", async () => {
    const first = await sh(
      post(
        "/api/v1/projects",
        `{
"name": "my-ml-project",
"remote_dir": "/root/my-ml-project",
"env": {"CLICKHOUSE_HOST": "db.internal"},
"setup_timeout_s": 1200
}`,
      ),
    )
    expect(first.status, first.stdout).toBe(201)
    const second = await sh(
      `curl -sS -X POST ${BEARER} \\
  -H "Content-Type: application/json" \\
  $BASE_URL/api/v1/projects \\
  -d '{"name": "my-proj", "remote_dir": "/root/projects/my-proj"}'`,
    )
    expect(second.status, second.stdout).toBe(201)
    const third = await sh(post("/api/v1/projects", `{"name": "my-project", "remote_dir": "/root/my-project"}`))
    expect(third.status, third.stdout).toBe(201)
  })

  test("A15: push with the whole directory, and with named files", async () => {
    const whole = await sh(
      `tar czf ../code.tar.gz . && curl -sS "$BASE_URL/api/v1/projects/my-ml-project/push" -X POST ${BEARER} --data-binary @../code.tar.gz`,
    )
    expect(whole.status, whole.stdout).toBe(200)
    expect(whole.json).toMatchObject({ manifest_present: true })
    expect(String(whole.json["content_hash"])).toMatch(/^[0-9a-f]{64}$/)
    const named = await sh(
      `tar czf code.tar.gz Dockerfile computalot.project.json script.py evaluate.py eval.py sleep.py
curl -sS -X POST ${BEARER} --data-binary @code.tar.gz $BASE_URL/api/v1/projects/my-proj/push`,
      "my-proj",
    )
    expect(named.status, named.stdout).toBe(200)
    const third = await sh(
      `tar czf code.tar.gz Dockerfile computalot.project.json script.py evaluate.py evaluate_seeds.py
curl -sS "$BASE_URL/api/v1/projects/my-project/push" -X POST ${BEARER} --data-binary @code.tar.gz`,
      "my-project",
    )
    expect(third.status, third.stdout).toBe(200)
  })

  test("A19: status says that jobs can be submitted", async () => {
    const status = await sh(get("/api/v1/projects/my-ml-project/status"))
    expect(status.status).toBe(200)
    expect(status.json).toMatchObject({ project: "my-ml-project", can_accept_new_jobs: true, project_ready: true })
  })

  test("A16, A17, A18, A20: init, with and without a body, invalidate and the diagnostics", async () => {
    const project = "$BASE_URL/api/v1/projects/my-ml-project"
    const init = await sh(post("/api/v1/projects/my-ml-project/init", "{}"))
    expect(init.status, init.stdout).toBe(200)
    expect(init.json).toMatchObject({ ready_for_jobs: expect.any(Boolean) as boolean, init_status: {} })
    const bare = await sh(`curl -sS -X POST ${BEARER} -H "Content-Type: application/json" ${project}/init`)
    expect(bare.status, bare.stdout).toBe(200)
    const stale = await sh(`curl -sS "${project}/invalidate" -X POST ${BEARER}`)
    expect([stale.status, stale.json["ready_for_jobs"]], stale.stdout).toEqual([200, false])
    const details = await sh(get("/api/v1/projects/my-ml-project/status/details"))
    expect(details.status).toBe(200)
    expect(details.json).toMatchObject({ project: "my-ml-project", can_accept_new_jobs: true })
    expect(details.json["diagnostics"]).toEqual(expect.any(Array))
  })

  test("A21, A38–A41: the first job, its status, tasks, output and results", async () => {
    const submitted = await sh(
      post(
        "/api/v1/jobs",
        `{
"type": "structured_runner",
"runner_command": ["python3", "job.py"],
"payload": {"test_case": "getting-started"},
"project": "my-ml-project",
"timeout_s": 120,
"requirements": {
"cpu": 1,
"memory_mb": 256,
"profile": "cpu"
},
"reliability_mode": "strict_complete"
}`,
      ),
    )
    expect(submitted.status, submitted.stdout).toBe(201)
    expect(submitted.json).toMatchObject({
      reliability_mode: "strict_complete",
      requirements: { cpu: 1, memory_mb: 256, profile: "cpu" },
      summary: {
        billing_estimate: { reliability_mode: "strict_complete" },
        billing_admission: { admitted: true },
        billing_hold: { status: "active" },
      },
    })
    const id = String(submitted.json["id"])
    expect(id).toMatch(/^job_\d{8}_\d{6}_[a-z0-9]+$/)
    // The loop of 001 as it stands, but for its pause.
    const polled = await sh(
      `while true; do
STATUS=$(curl -sS ${BEARER} \\
$BASE_URL/api/v1/jobs/${id} | python3 -c "import sys,json; print(json.load(sys.stdin)['status'])")
case $STATUS in
completed|partial|failed|cancelled) break ;;
esac
sleep 0.1
done
echo $STATUS`,
    )
    expect(polled.stdout.trim()).toBe("completed")
    const results = await sh(get(`/api/v1/results/${id}`))
    expect(results.status).toBe(200)
    expect(results.json).toMatchObject({
      job_id: id,
      status: "completed",
      results: [
        {
          status: "completed",
          result: { status: "ok", source: "getting-started" },
          payload: { test_case: "getting-started" },
        },
      ],
    })
    const output = await sh(get(`/api/v1/jobs/${id}/output`))
    expect([output.status, output.json]).toEqual([200, { output: "", error: null }])
    const tasks = await sh(get(`/api/v1/jobs/${id}/tasks`))
    expect(tasks.status).toBe(200)
    expect(tasks.json).toMatchObject({ count: 1, tasks: [{ status: "completed", attempt: 1, result_present: true }] })
  })

  test("A22, C-34: the quickstart's job", async () => {
    const reply = await sh(
      `curl -sS -X POST ${BEARER} \\
  -H "Content-Type: application/json" \\
  $BASE_URL/api/v1/jobs \\
  -d '{"type": "structured_runner", "runner_command": ["python3", "script.py"], "payload": {"test": true}, "project": "my-proj", "timeout_s": 120}'`,
    )
    expect(reply.status, reply.stdout).toBe(201)
    expect(await client.ended(String(reply.json["id"]))).toMatchObject({
      status: "completed",
      output: "saw ['test']\n",
    })
    const other = await accepted(
      `{"type": "structured_runner", "runner_command": ["python3", "script.py"], "payload": {"test": true}, "project": "my-project", "timeout_s": 120}`,
    )
    expect(await client.ended(other)).toMatchObject({ status: "completed" })
  })

  test("A24: three items are three tasks with exactly these payloads", async () => {
    const id = await accepted(
      `{"type":"structured_runner","runner_command":["python","evaluate.py"],"fan_out":{"items":[{"params":[0.1,0.5,0.3],"generation":12},{"params":[0.2,0.4,0.6],"generation":12},{"params":[0.3,0.3,0.1],"generation":12}]},"project":"my-proj"}`,
    )
    expect(await client.ended(id)).toMatchObject({ status: "completed" })
    const expected = [
      { params: [0.1, 0.5, 0.3], generation: 12 },
      { params: [0.2, 0.4, 0.6], generation: 12 },
      { params: [0.3, 0.3, 0.1], generation: 12 },
    ]
    const tasks = await client.tasks(id)
    expect(tasks.map(({ payload }) => payload)).toEqual(expected)
    // What the program itself was given is the same.
    expect(tasks.map(({ result }) => result)).toEqual(expected.map((saw) => ({ saw })))
  })

  test("A25: twenty chunks start at 0, 500, … and cover 10,000", async () => {
    const id = await accepted(
      `{"type":"structured_runner","runner_command":["python","simulate.py"],"payload":{"total_seeds":10000},"fan_out":{"chunks":20,"range_field":"total_seeds","total":10000},"merge_strategy":"collect","project":"my-ml-project","timeout_s":1800}`,
    )
    expect(await client.ended(id)).toMatchObject({ status: "completed" })
    const payloads = (await client.tasks(id)).map(({ payload }) => payload as Json)
    expect(payloads.map(({ start }) => start)).toEqual(Array.from({ length: 20 }, (_, chunk) => chunk * 500))
    expect(payloads.every(({ count, total_seeds }) => count === 500 && total_seeds === 10_000)).toBe(true)
    const results = await client.results(id)
    expect(results["aggregate_result"]).toHaveLength(20)
  })

  test("A28, A29: an evaluation stays queued until its training, which needs a GPU, has completed", async () => {
    const reply = await sh(
      `# Step 1: Train
JOB1=$(curl -sS -X POST \\
${BEARER} \\
-H "Content-Type: application/json" \\
$BASE_URL/api/v1/jobs \\
-d '{
"type": "structured_runner",
"runner_command": ["python", "train.py"],
"payload": {"epochs": 50, "lr": 0.001},
"project": "my-ml-project",
"timeout_s": 7200,
"gpu_required": true
}' | python3 -c "import sys,json; print(json.load(sys.stdin)['id'])")
# Step 2: Evaluate (waits for step 1)
curl -sS -X POST \\
${BEARER} \\
-H "Content-Type: application/json" \\
$BASE_URL/api/v1/jobs \\
-d "{
\\"type\\": \\"structured_runner\\",
\\"runner_command\\": [\\"python\\", \\"evaluate.py\\"],
\\"payload\\": {\\"model_path\\": \\"/root/my-ml-project/model.pt\\"},
\\"depends_on\\": [\\"$JOB1\\"],
\\"project\\": \\"my-ml-project\\",
\\"timeout_s\\": 600
}"`,
    )
    expect(reply.status, reply.stdout).toBe(201)
    const second = String(reply.json["id"])
    const [first = ""] = reply.json["depends_on"] as string[]
    expect(await client.until(second, () => true)).toMatchObject({
      status: "queued",
      queue_reason: { code: "waiting_for_dependency", blocked_by: [first] },
    })
    await fleet.addNode({ flags: ["--gpus=1:24576"] })
    expect(await client.ended(second)).toMatchObject({ status: "completed", output: "saw ['model_path']\n" })
    expect(await client.ended(first)).toMatchObject({ status: "completed", output: "saw ['epochs', 'lr']\n" })
  })

  test("A31: fifty ranges are reduced to the three documented numbers", async () => {
    const id = await accepted(
      `{"type":"map_reduce","runner_command":["python","evaluate_seeds.py"],"project":"my-project","payload":{"strategy":"momentum"},"split":{"field":"seed","start":0,"total":10000,"chunks":50},"reduce":{"total_pnl":"sum","sharpe_ratio":"weighted_avg:sample_count","max_drawdown":"max"},"timeout_s":7200}`,
    )
    const job = await client.ended(id)
    expect(job).toMatchObject({
      status: "completed",
      summary: { reduced: { total_pnl: 10_000, sharpe_ratio: 4_900, max_drawdown: 10_000 } },
    })
    expect(Object.keys((job["summary"] as Json)["reduced"] as Json).sort()).toEqual([
      "max_drawdown",
      "sharpe_ratio",
      "total_pnl",
    ])
    const payloads = (await client.tasks(id)).map(({ payload }) => payload)
    expect(payloads).toEqual(
      Array.from({ length: 50 }, (_, chunk) =>
        expect.objectContaining({ strategy: "momentum", seed_start: chunk * 200, seed_count: 200 }),
      ),
    )
  })

  test("A42: the stream starts with a snapshot and ends with done", async () => {
    const id = await accepted(
      `{"type": "structured_runner", "runner_command": ["python3", "script.py"], "payload": {"test": true}, "project": "my-proj", "timeout_s": 120}`,
    )
    const live = await sh(`curl -sS -N ${BEARER} $BASE_URL/api/v1/jobs/${id}/stream`)
    expect(live.status).toBe(200)
    const events = [...live.stdout.matchAll(/^event: (.+)$/gm)].map(([, event]) => event)
    expect([events[0], events.at(-1)]).toEqual(["snapshot", "done"])
    const after = await sh(`curl -sS -N ${BEARER} $BASE_URL/api/v1/jobs/${id}/stream`)
    expect([...after.stdout.matchAll(/^event: (.+)$/gm)].map(([, event]) => event)).toEqual(["snapshot", "done"])
  })

  test("A43: one connection for three jobs, from their snapshot to done", async () => {
    const job = `{"type": "structured_runner", "runner_command": ["python3", "script.py"], "payload": {"test": true}, "project": "my-proj", "timeout_s": 120}`
    const ids = [await accepted(job), await accepted(job), await accepted(job)]
    const live = await sh(`curl -sS -N ${BEARER} \\
"$BASE_URL/api/v1/jobs/watch?ids=${ids.join(",")}"`)
    expect(live.status).toBe(200)
    const events = [...live.stdout.matchAll(/^event: (.+)$/gm)].map(([, event]) => event)
    expect([events[0], events.at(-1)]).toEqual(["snapshot", "done"])
    const done = /^event: done\nid: \d+\ndata: (.+)$/m.exec(live.stdout)?.[1] ?? "{}"
    expect(JSON.parse(done)).toEqual({
      reason: "all_terminal",
      statuses: Object.fromEntries(ids.map((id) => [id, "completed"])),
    })
  })

  test("A44: the project's stream shows its jobs as they change", async () => {
    const live = sh(`curl -sS -N --max-time 4 ${BEARER} \\
"$BASE_URL/api/v1/projects/my-proj/stream" || true`)
    await new Promise((resolve) => setTimeout(resolve, 500))
    const id = await accepted(
      `{"type": "structured_runner", "runner_command": ["python3", "script.py"], "payload": {"test": true}, "project": "my-proj", "timeout_s": 120}`,
    )
    await client.ended(id)
    const { stdout } = await live
    expect(stdout).toMatch(/^: connected\n\nevent: snapshot\nid: \d+\ndata: \{"active":\[/)
    const jobs = [...stdout.matchAll(/^event: job\n(?:id: \d+\n)?data: (.+)$/gm)].map(
      ([, data]) => (JSON.parse(data ?? "{}") as { job: Json }).job,
    )
    expect(jobs.filter((job) => job["id"] === id).at(-1)).toMatchObject({ status: "completed" })
  })

  test("A45: cancelling a running job ends its process and gives the money back", async () => {
    const id = await accepted(
      `{"type": "structured_runner", "runner_command": ["python3", "sleep.py"], "project": "my-proj", "timeout_s": 600}`,
    )
    await client.until(id, ({ feedback_summary: feedback }) => JSON.stringify(feedback ?? "").includes("sleeping"))
    expect(sleepers()).toHaveLength(1)
    expect(Number((await client.balance())["held_usd"])).toBeGreaterThan(0)
    const reply = await sh(
      `curl -sS -X PUT ${BEARER} \\
-H "Content-Type: application/json" \\
$BASE_URL/api/v1/jobs/${id}/cancel \\
-d '{"reason":"no longer needed"}'`,
    )
    expect(reply.status, reply.stdout).toBe(200)
    expect(await client.ended(id)).toMatchObject({ status: "cancelled", error: "no longer needed" })
    await expect.poll(sleepers).toEqual([])
    await expect.poll(async () => (await client.balance())["held_usd"]).toBe(0)
    expect(await client.tasks(id)).toMatchObject([{ status: "cancelled", failure_kind: "cancelled" }])
  })

  test("A47, A53, A54: an artifact goes up, is listed and comes down as it was", async () => {
    const bytes = Buffer.from(Array.from({ length: 70_000 }, (_, index) => (index * 7919) % 251))
    writeFileSync(join(projects, "my-ml-project", "model.pt"), bytes)
    const uploaded = await sh(
      `ART_ID=$(curl -sS -X POST \\
${BEARER} \\
-H "Content-Type: application/octet-stream" \\
-H "X-Artifact-Filename: model.pt" \\
--data-binary @model.pt \\
$BASE_URL/api/v1/artifacts | python3 -c "import sys,json; print(json.load(sys.stdin)['id'])")
echo $ART_ID`,
    )
    expect(uploaded.status).toBe(201)
    const id = uploaded.stdout.trim()
    const list = await sh(get("/api/v1/artifacts"))
    expect(list.json["artifacts"]).toMatchObject([{ id, filename: "model.pt", size: bytes.length }])
    const down = await sh(`curl -sS ${BEARER} $BASE_URL/api/v1/artifacts/${id} -o output.bin`)
    expect(down.status).toBe(200)
    expect(readFileSync(join(projects, "my-ml-project", "output.bin")).equals(bytes)).toBe(true)
  })

  test("A01, A02, A03: feedback needs no token", async () => {
    const anonymous = (body: string): string =>
      `curl -sS -X POST "$BASE_URL/api/v1/feedback" -H "Content-Type: application/json" -d '${body}'`
    for (const body of [
      `{"type":"bug","title":"Brief summary","description":"What happened, what you expected"}`,
      `{"type":"bug","title":"Brief summary","description":"What happened, what you expected, steps to reproduce"}`,
      `{"type":"feature_request","title":"Brief summary","description":"What you need and why"}`,
    ]) {
      const reply = await sh(anonymous(body))
      expect([reply.status, reply.json["status"]], reply.stdout).toEqual([201, "received"])
    }
    const kept = await fleet.admin("GET", "/api/v1/admin/feedback")
    expect(kept.json).toMatchObject({ count: 3, feedback: [{ type: "feature_request" }, { type: "bug" }, {}] })
  })

  test("A23, C-03: four models in packs of two are two tasks, and four keys", async () => {
    const id = await accepted(
      `{"type":"structured_runner","runner_command":["python","evaluate.py"],"payload":{"models":["model-a","model-b","model-c","model-d"],"config":{"n_trials":100}},"fan_out":{"by":"models","batch_size":2},"merge_strategy":"keyed","project":"my-ml-project","timeout_s":600}`,
    )
    expect(await client.ended(id)).toMatchObject({ status: "completed", summary: { logical_items: 4 } })
    const payloads = (await client.tasks(id)).map(({ payload }) => payload)
    expect(payloads).toMatchObject([{ models: ["model-a", "model-b"] }, { models: ["model-c", "model-d"], _batch: {} }])
    const merged = (await client.results(id))["aggregate_result"] as Json
    expect(Object.keys(merged)).toEqual(["model-a", "model-b", "model-c", "model-d"])
  })

  test("A26: the documented sweep makes nine tasks and a ranked summary", async () => {
    const id = await accepted(`{
"type": "sweep",
"runner_command": ["python", "evaluate.py"],
"project": "my-ml-project",
"parameters": {
"learning_rate": [0.001, 0.01, 0.1],
"batch_size": [32, 64, 128]
},
"fixed_payload": {"dataset": "cifar10", "epochs": 5},
"rank_by": "accuracy",
"rank_order": "desc",
"timeout_s": 3600
}`)
    const job = await client.ended(id)
    expect(job).toMatchObject({ status: "completed", task_counts: { total: 9 } })
    expect((await client.tasks(id))[0]).toMatchObject({
      payload: {
        learning_rate: 0.001,
        batch_size: 32,
        dataset: "cifar10",
        epochs: 5,
        _sweep_idx: 0,
        _sweep_params: { learning_rate: 0.001, batch_size: 32 },
      },
    })
    const { results, best } = job["summary"] as { results: Json[]; best: Json }
    expect(results).toHaveLength(9)
    expect(results.map(({ rank }) => rank)).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9])
    expect(best).toMatchObject({ params: { learning_rate: 0.1, batch_size: 128 }, rank: 1 })
    expect(results[0]).toEqual(best)
  })

  test("A30: the documented benchmark makes nine tasks and a leaderboard", async () => {
    const id = await accepted(`{
"type": "benchmark",
"runner_command": ["python", "evaluate.py"],
"project": "my-project",
"candidates": {
"strategy_a": {"model": "gpt4", "temperature": 0.7},
"strategy_b": {"model": "claude", "temperature": 0.5},
"baseline": {"model": "random"}
},
"shared_payload": {"dataset": "test_set_v3", "n_trials": 100},
"replicas": 3,
"rank_by": "score",
"timeout_s": 1800
}`)
    const job = await client.ended(id)
    expect(job).toMatchObject({ status: "completed", task_counts: { total: 9 } })
    expect((await client.tasks(id))[0]).toMatchObject({
      payload: {
        dataset: "test_set_v3",
        n_trials: 100,
        model: "gpt4",
        temperature: 0.7,
        _candidate: "strategy_a",
        _replica: 1,
      },
    })
    const { leaderboard } = job["summary"] as { leaderboard: Json[] }
    expect(leaderboard.map(({ candidate, count, rank }) => [candidate, count, rank])).toEqual([
      ["strategy_b", 3, 1],
      ["baseline", 3, 2],
      ["strategy_a", 3, 3],
    ])
    expect(leaderboard[0]).toMatchObject({ mean: expect.closeTo(6.2) as number, std: expect.closeTo(0.1) as number })
  })

  test("A32: three ranges are reduced to one mean", async () => {
    const id = await accepted(
      `{"type":"map_reduce","runner_command":["python","evaluate_seeds.py"],"project":"my-project","payload":{"strategy":"momentum"},"split":{"field":"seed","ranges":[{"start":860791000,"count":1000},{"start":200000000,"count":1000},{"start":500000000,"count":1000}]},"reduce":{"avg_edge":"mean"}}`,
    )
    const job = await client.ended(id)
    // The program of the documents writes other fields: every task is suspect, and there is nothing to reduce.
    expect(job).toMatchObject({
      status: "partial",
      task_counts: { total: 3 },
      summary: { reduced: { avg_edge: null } },
    })
    const payloads = (await client.tasks(id)).map(({ payload }) => payload)
    expect(payloads[1]).toEqual({ strategy: "momentum", seed_start: 200_000_000, seed_count: 1000 })
  })

  test("A27, A28, A34, A35, A36: what waits for a GPU or for long is taken, with its tasks", async () => {
    for (const name of ["ml-training", "monte-carlo"])
      await client.project(name, { "train.py": ECHO_PY, "simulate.py": ECHO_PY })
    const submissions: [body: string, tasks: number][] = [
      [
        `{"type":"structured_runner","runner_command":["python","train.py"],"payload":{"epochs":100,"batch_size":32},"project":"my-ml-project","timeout_s":7200,"requirements":{"profile":"gpu","gpu_count":1,"gpu_memory_mb":16384},"checkpointing":{"enabled":true,"resume_from_latest":true}}`,
        1,
      ],
      [
        `{"type":"structured_runner","runner_command":["python","train.py"],"payload":{"epochs":50,"lr":0.001},"project":"my-ml-project","timeout_s":7200,"gpu_required":true}`,
        1,
      ],
      [
        `{"type":"structured_runner","payload":{"model":"gpt4","dataset":"test_v3"},"project":"my-proj","runner_command":["python","evaluate.py"],"timeout_s":600}`,
        1,
      ],
      [
        `{"type":"sweep","gpu_required":true,"project":"ml-training","parameters":{"batch_size":[32,64,128],"learning_rate":[0.001,0.01,0.1]},"fixed_payload":{"dataset":"cifar10","epochs":5},"rank_by":"accuracy","rank_order":"desc","runner_command":["python","train.py"],"timeout_s":3600}`,
        9,
      ],
      [
        `{"type":"map_reduce","split":{"start":0,"total":10000,"chunks":50,"field":"seed"},"reduce":{"max_dd":"max","sharpe":"weighted_avg:sample_count","total_pnl":"sum"},"payload":{"strategy":"momentum"},"project":"monte-carlo","runner_command":["python","simulate.py"],"timeout_s":7200}`,
        50,
      ],
    ]
    for (const [body, tasks] of submissions) {
      const reply = await sh(post("/api/v1/jobs", body))
      expect(reply.status, reply.stdout).toBe(201)
      expect(reply.json).toMatchObject({ task_counts: { total: tasks }, warnings: [] })
      const id = String(reply.json["id"])
      await client.call("PUT", `/api/v1/jobs/${id}/cancel`)
      await client.ended(id)
    }
  })

  test("A37: a batch of two jobs", async () => {
    const reply = await sh(
      post(
        "/api/v1/jobs/batch",
        `{"jobs": [
{"type": "structured_runner", "runner_command": ["python", "eval.py"], "project": "my-proj", "payload": {"lr": 0.001}, "tags": ["sweep_72"]},
{"type": "structured_runner", "runner_command": ["python", "eval.py"], "project": "my-proj", "payload": {"lr": 0.01}, "tags": ["sweep_72"]}
]}`,
      ),
    )
    expect(reply.status, reply.stdout).toBe(201)
    expect(reply.json).toMatchObject({
      submitted: 2,
      errors: [],
      error_count: 0,
      jobs: [
        { index: 0, payload: { lr: 0.001 }, tags: ["sweep_72"] },
        { index: 1, payload: { lr: 0.01 } },
      ],
    })
    for (const { id } of reply.json["jobs"] as Json[])
      expect(await client.ended(String(id))).toMatchObject({ status: "completed" })
    const tagged = await sh(get("/api/v1/jobs?tag=sweep_72"))
    expect(tagged.json).toMatchObject({ total: 2 })
  })

  test("A46: a shared value is set, and a job that resolves it finds it", async () => {
    const set = await sh(
      `curl -sS -X PUT \\
${BEARER} \\
-H "Content-Type: application/json" \\
$BASE_URL/api/v1/projects/my-project/kv/dataset_ready \\
-d '{"value": {"status": "ready"}}'`,
    )
    expect(set.status, set.stdout).toBe(200)
    expect(set.json).toMatchObject({ project: "my-project", key: "dataset_ready", value: { status: "ready" } })
    const id = await accepted(
      `{"type":"structured_runner","runner_command":["python3","script.py"],"project":"my-project","timeout_s":120,"payload":{"_shared":{"resolve":{"dataset_ready":{"key":"dataset_ready"}}}}}`,
    )
    expect(await client.ended(id)).toMatchObject({ status: "completed" })
    const [task] = await client.tasks(id)
    expect(task?.["result"]).toMatchObject({ saw: { _shared: { values: { dataset_ready: { status: "ready" } } } } })
  })

  test("the fragments of 001 L516 and of state.publish: a file that is given, and values that are published", async () => {
    const uploaded = await client.call("POST", "/api/v1/artifacts", Buffer.from("some data"), {
      "x-artifact-filename": "data.csv",
    })
    const fragment = `{"payload":{"_artifacts":{"download":{"dataset":"art_abc123"}},"model_type":"base"}}`
    const publish = `{"state":{"publish":{"best_score":{"path":"results.0.score"},"ready":{"value":true}}}}`
    const id = await client.submit({
      project: "my-proj",
      runner_command: ["python3", "script.py"],
      ...(JSON.parse(fragment.replace("art_abc123", String(uploaded.get("id")))) as Json),
      ...(JSON.parse(publish) as Json),
    })
    expect(await client.ended(id)).toMatchObject({ status: "completed" })
    const [task] = await client.tasks(id)
    expect(task?.["result"]).toMatchObject({
      saw: {
        model_type: "base",
        _artifacts: { local_paths: { dataset: expect.stringMatching(/\/data\.csv$/) as unknown } },
      },
    })
    const kv = await sh(get("/api/v1/projects/my-proj/kv?limit=100"))
    // This program writes no score: that is an event, and the rest is published.
    expect(kv.json).toMatchObject({ count: 1, entries: [{ key: "ready", value: true }] })
    const events = await sh(get(`/api/v1/jobs/${id}/events?limit=200`))
    expect((events.json["events"] as Json[]).map(({ type }) => type)).toContain("state.publish_failed")
  })

  test("the fragments of 001 L523 and L544: what a job that is depended on named, and wrote", async ({ skip }) => {
    const upstream = await client.submit({
      project: "my-ml-project",
      runner_command: ["python3", "produce.py"],
      payload: { _artifacts: { upload: { dataset: "dataset.csv" } } },
      state: { publish: { dataset_ready: { value: { status: "ready" } } } },
    })
    await client.ended(upstream)
    for (const fragment of [
      `{"depends_on":["job_setup_123"],"payload":{"_artifacts":{"download":{"dataset":{"job_id":"job_setup_123","artifact":"dataset"}}}}}`,
      `{"depends_on":["job_setup_123"],"payload":{"_shared":{"resolve":{"dataset_ready":{"key":"dataset_ready"},"best_score":{"job_id":"job_setup_123","path":"results.0.score"}}}}}`,
    ]) {
      const body = { type: "structured_runner", project: "my-ml-project", runner_command: ["python3", "script.py"] }
      const given = JSON.parse(fragment.replaceAll("job_setup_123", upstream)) as Json
      const reply = await client.call("POST", "/api/v1/jobs", { ...body, timeout_s: 60, ...given })
      if (reply.json["code"] === "not_available_yet") skip("depends_on is not available yet")
      expect(reply.status, reply.text).toBe(201)
      expect(await client.ended(String(reply.get("id")))).toMatchObject({ status: "completed" })
      const [task] = await client.tasks(String(reply.get("id")))
      const { saw } = (task?.["result"] ?? {}) as { saw: Json }
      expect(saw["_shared"] ?? saw["_artifacts"]).toMatchObject(
        fragment.includes("_shared")
          ? { values: { dataset_ready: { status: "ready" }, best_score: 0.5 } }
          : { local_paths: { dataset: expect.stringMatching(/\/dataset\.csv$/) as unknown } },
      )
    }
  })

  test("A58, A59: jobs by tag, results by project and client_ref", async () => {
    const id = await accepted(
      `{"type": "structured_runner", "runner_command": ["python3", "script.py"], "project": "my-proj", "tags": ["experiment_42"], "client_ref": "batch_123", "timeout_s": 120}`,
    )
    await client.ended(id)
    const jobs = await sh(`curl -sS "$BASE_URL/api/v1/jobs?tag=experiment_42" ${BEARER}`)
    expect([jobs.status, jobs.json["jobs"]]).toEqual([200, [expect.objectContaining({ id })]])
    const results = await sh(`curl -sS "$BASE_URL/api/v1/results?project=my-proj&client_ref=batch_123" ${BEARER}`)
    expect([results.status, results.json["results"]]).toEqual([200, [expect.objectContaining({ job_id: id })]])
  })

  test("the money of all of it adds up", async () => {
    const ledger = (await sh(get("/api/v1/account/ledger"))).json["entries"] as Json[]
    const debits = ledger.filter(({ type }) => type === "debit")
    expect(new Set(debits.map(({ job_id: job }) => job)).size).toBe(debits.length)
    const micros = (usd: unknown): number => Math.round(Number(usd) * 1e6)
    const sum = ledger.reduce(
      (total, { type, amount_usd: usd }) => total + (type === "debit" ? -micros(usd) : micros(usd)),
      0,
    )
    const balance = await client.balance()
    expect(micros(balance["ledger_balance_usd"])).toBe(sum)
    expect(balance).toMatchObject({ held_usd: 0, active_hold_count: 0, available_usd: balance["ledger_balance_usd"] })
    await fleet.expectAudit()
  })
})

/** Processes of the sleeping program, wherever they are. */
function sleepers(): string[] {
  const listed = execFileSync("ps", ["-eo", "pid,args"], { encoding: "utf8" })
  return listed.split("\n").filter((line) => /python3? sleep\.py$/.test(line))
}
