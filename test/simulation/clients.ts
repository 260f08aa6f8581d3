import { errorText } from "../../protocol/base/error-text.ts"
import type { Deployment } from "./deployment.ts"
import type { HttpAnswer, HttpAsk } from "./in-process-http.ts"
import type { Machine } from "./machine.ts"
import type { Action } from "./plan.ts"
import type { Watch } from "./watch.ts"
import { ADMIN_TOKEN } from "./coordinator-machine.ts"
import { followJob, type StreamHeard } from "./job-follower.ts"

/** People who submit jobs, cancel and look, each over the real API; an answer that does not come is asked for again. */
export class Clients {
  readonly #machine: Machine
  readonly #deployment: Deployment
  readonly #watch: Watch
  readonly #http: (from: Machine, ask: HttpAsk) => Promise<HttpAnswer>
  /** By the plan's name. */
  readonly jobs = new Map<string, string>()
  readonly #submitting = new Map<string, Promise<void>>()
  /** How often the coordinator went on from a copy. */
  #era = 0
  readonly #lastEvent = new Map<string, number>()
  readonly answers = new Map<number, number>()
  /** Members that the admin asked to be revoked, and machines that are to be taken back. */
  readonly revoked = new Set<string>()
  readonly drained = new Set<number>()
  #admin: Promise<void> = Promise.resolve()
  readonly #stream: (from: Machine, ask: HttpAsk, heard: (text: string) => void) => Promise<StreamHeard>
  readonly #nodeId: (node: number) => string | null
  waiting = 0

  constructor(parts: {
    machine: Machine
    deployment: Deployment
    watch: Watch
    http: (from: Machine, ask: HttpAsk) => Promise<HttpAnswer>
    stream: (from: Machine, ask: HttpAsk, heard: (text: string) => void) => Promise<StreamHeard>
    nodeId: (node: number) => string | null
  }) {
    this.#machine = parts.machine
    this.#deployment = parts.deployment
    this.#watch = parts.watch
    this.#http = parts.http
    this.#stream = parts.stream
    this.#nodeId = parts.nodeId
  }

  /** These jobs are gone: the coordinator was restored from a copy that is older. Event ids begin again from there. */
  forget(names: readonly string[]): void {
    this.#era += 1
    for (const name of names) this.jobs.delete(name)
    this.#lastEvent.clear()
  }

  act(action: Action): void {
    this.waiting += 1
    void this.#act(action).finally(() => {
      this.waiting -= 1
    })
  }

  async #act(action: Action): Promise<void> {
    switch (action.kind) {
      case "submit": {
        const submitted = this.#submit(action)
        this.#submitting.set(action.name, submitted)
        return await submitted
      }
      case "cancel":
        return await this.#cancel(action)
      case "read":
        return await this.#read(action)
      case "follow":
        return await this.#follow(action)
      case "retry":
        return await this.#retry(action)
      case "push":
        return await this.#push(action)
      case "set node":
        // One admin: no word of his overtakes a later one.
        this.#admin = this.#admin.then(() => this.#setNode(action))
        return await this.#admin
    }
  }

  async #submit({ client, name, body, after }: Extract<Action, { kind: "submit" }>): Promise<void> {
    for (const other of after) await this.#submitting.get(other)
    const era = this.#era
    const dependsOn = after.flatMap((other) => this.jobs.get(other) ?? [])
    const whole = dependsOn.length === 0 ? body : { ...body, depends_on: dependsOn }
    const answer = await this.#insist(client, "POST", "/api/v1/jobs", whole, `key-${name}`)
    this.#machine.tell(`submit ${name}${after.length > 0 ? ` after ${after.join(", ")}` : ""}: ${answer.status}`)
    // What it depends on may be gone with what came after the copy that the coordinator was restored from.
    if (answer.status === 422 && dependsOn.length > 0 && this.#era !== era) return
    if (answer.status !== 201) {
      const isRefused = answer.status === 402 || (answer.status === 409 && "reservation" in body)
      if (!isRefused) this.#watch.wrong(`submit ${name} was answered ${answer.status}: ${answer.body.toString()}`)
      return
    }
    const { id } = JSON.parse(answer.body.toString()) as { id: string }
    this.jobs.set(name, id)
    this.#watch.accepted.set(id, { name, atMs: this.#machine.time.nowMs })
  }

  async #cancel({ client, job }: Extract<Action, { kind: "cancel" }>): Promise<void> {
    await this.#submitting.get(job)
    const id = this.jobs.get(job)
    if (id === undefined) return
    const askedMs = this.#machine.time.nowMs
    const answer = await this.#insist(client, "PUT", `/api/v1/jobs/${id}/cancel`, {}, null)
    this.#machine.tell(`cancel ${job}: ${answer.status}`)
    if (answer.status === 200 && this.jobs.get(job) === id) {
      const { status } = JSON.parse(answer.body.toString()) as { status: string }
      if (status !== "cancelled" && !this.#watch.mayRunAgain.has(id))
        this.#watch.wrong(`6: ${job} was cancelled and is shown as ${status}`)
      this.#watch.jobSeen(id, status, askedMs, this.#machine.time.nowMs)
    } else if (answer.status !== 409 && this.jobs.get(job) === id)
      this.#watch.wrong(`cancel of ${job} was answered ${answer.status}`)
  }

  async #retry({ client, job, body, atMs }: Extract<Action, { kind: "retry" }>): Promise<void> {
    await this.#submitting.get(job)
    const id = this.jobs.get(job)
    if (id === undefined) return
    // From now on it may have been done, whether or not the answer arrives.
    this.#watch.mayRunAgain.add(id)
    const answer = await this.#insist(client, "POST", `/api/v1/jobs/${id}/retry`, body, `retry-${job}-${atMs}`)
    this.#machine.tell(`retry ${job}: ${answer.status}`)
    const isRefusal = answer.status === 402 || answer.status === 409 || answer.status === 422
    if (answer.status !== 200 && !isRefusal && this.jobs.get(job) === id)
      this.#watch.wrong(`retry of ${job} was answered ${answer.status}: ${answer.body.toString()}`)
  }

  async #read({ client, job, what }: Extract<Action, { kind: "read" }>): Promise<void> {
    const id = this.jobs.get(job)
    if (id === undefined) return
    const after = this.#lastEvent.get(id) ?? 0
    const paths = {
      job: `/api/v1/jobs/${id}`,
      tasks: `/api/v1/jobs/${id}/tasks`,
      events: `/api/v1/jobs/${id}/events?after=${after}`,
      results: `/api/v1/results/${id}`,
      output: `/api/v1/jobs/${id}/output`,
    }
    const askedMs = this.#machine.time.nowMs
    const answer = await this.#insist(client, "GET", paths[what], null, null)
    if (this.jobs.get(job) !== id) return
    if (answer.status !== 200) return this.#watch.wrong(`6: ${what} of ${job} was answered ${answer.status}`)
    if (what === "job")
      this.#watch.jobSeen(
        id,
        (JSON.parse(answer.body.toString()) as { status: string }).status,
        askedMs,
        this.#machine.time.nowMs,
      )
    if (what === "events") this.#followEvents(id, after, answer)
  }

  async #follow({ client, job }: Extract<Action, { kind: "follow" }>): Promise<void> {
    await this.#submitting.get(job)
    const id = this.jobs.get(job)
    if (id === undefined) return
    const era = this.#era
    await followJob({
      machine: this.#machine,
      watch: this.#watch,
      job: id,
      isGone: () => this.#era !== era,
      open: (lastId, heard) => {
        const headers = {
          authorization: `Bearer ${this.#tokenOf(client)}`,
          ...(lastId === null ? {} : { "last-event-id": lastId }),
        }
        return this.#stream(
          this.#machine,
          { method: "GET", path: `/api/v1/jobs/${id}/stream`, headers, body: null },
          heard,
        )
      },
    })
  }

  /** Of two at once either may be the later: what was asked after another was answered is. */
  async #push({ client, text }: Extract<Action, { kind: "push" }>): Promise<void> {
    const askedMs = this.#machine.time.nowMs
    const era = this.#era
    const answer = await this.#insist(client, "POST", "/api/v1/projects/p/push", Buffer.from(text), `push-${askedMs}`)
    this.#machine.tell(`push ${text}: ${answer.status}`)
    const account = this.#deployment.clients[client]?.account ?? 0
    // It is being prepared, that is said before a byte is read: perhaps for an earlier try, whose answer was lost.
    if (answer.status === 409) return void this.#watch.unsurePushes.add(account)
    // Asked of a coordinator that was restored since; what this one took counts.
    if (answer.status !== 200 && era !== this.#era) return
    if (answer.status !== 200)
      return this.#watch.wrong(`a push was answered ${answer.status}: ${answer.body.toString()}`)
    const { content_hash } = JSON.parse(answer.body.toString()) as { content_hash: string }
    this.#watch.pushed.push({ account, hash: content_hash, askedMs, atMs: this.#machine.time.nowMs })
  }

  async #setNode({ node, state }: Extract<Action, { kind: "set node" }>): Promise<void> {
    const id = this.#nodeId(node)
    if (id === null) return
    if (state === "revoked") {
      this.revoked.add(id)
      this.#watch.hasRevoked = true
    }
    if (state === "draining") this.drained.add(node)
    const answer = await this.#insist(ADMIN, "PUT", `/api/v1/admin/nodes/${id}`, { state }, null)
    this.#machine.tell(`${id} is to be ${state}: ${answer.status}`)
    const mayRefuse = answer.status === 409 ? this.revoked.has(id) : answer.status === 404 && this.#era > 0
    if (answer.status !== 200 && !mayRefuse)
      this.#watch.wrong(`${id} could not be set ${state}: ${answer.status} ${answer.body.toString()}`)
  }

  /** 7: ids only grow, also from one page to the next. */
  #followEvents(id: string, after: number, answer: HttpAnswer): void {
    const { events } = JSON.parse(answer.body.toString()) as { events: { id: number }[] }
    let last = after
    for (const event of events) {
      if (event.id <= last) this.#watch.wrong(`7: job ${id} shows event ${event.id} after ${last}`)
      last = event.id
    }
    this.#lastEvent.set(id, Math.max(last, this.#lastEvent.get(id) ?? 0))
  }

  /** Asks until it is answered by a coordinator that is not busy starting or stopping. */
  async #insist(
    client: number,
    method: string,
    path: string,
    body: object | Buffer | null,
    key: string | null,
  ): Promise<HttpAnswer> {
    const token = this.#tokenOf(client)
    for (;;) {
      try {
        const answer = await this.#http(this.#machine, {
          method,
          path,
          headers: {
            authorization: `Bearer ${token}`,
            "content-type": Buffer.isBuffer(body) ? "application/gzip" : "application/json",
            ...(key === null ? {} : { "idempotency-key": key }),
          },
          body: body === null || Buffer.isBuffer(body) ? body : Buffer.from(JSON.stringify(body)),
        })
        this.answers.set(answer.status, (this.answers.get(answer.status) ?? 0) + 1)
        if (answer.status < 500) return answer
        this.#machine.tell(`${method} ${path}: ${answer.status} ${answer.body.toString()}`)
      } catch (error) {
        // It may have been done or not.
        this.#machine.tell(`${method} ${path}: ${errorText(error)}`)
      }
      await this.#rest(this.#machine.chance.between(300, 1_500))
    }
  }

  #tokenOf(client: number): string {
    return client === ADMIN ? ADMIN_TOKEN : (this.#deployment.clients[client]?.token ?? "")
  }

  #rest(ms: number): Promise<void> {
    const { time, lane } = this.#machine
    return new Promise((resolve) => void time.at(time.nowMs + ms, lane, resolve))
  }
}

/** Instead of a client's number. */
const ADMIN = -1
