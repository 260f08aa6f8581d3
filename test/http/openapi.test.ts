import { afterAll, beforeAll, expect, test } from "vitest"
import { z } from "zod"
import { startFleet, type Fleet, type Json } from "../support/fleet.ts"
import { send } from "../support/http-door.ts"

/** /openapi.json of a real coordinator: whole, consistent, and its examples are what it says. */

interface Operation {
  operationId: string
  summary: string
  tags: string[]
  security?: unknown[]
  parameters: { name: string; in: string; required?: boolean; schema: Json }[]
  requestBody?: {
    required: boolean
    content: Record<string, { schema: Json; examples?: Record<string, { value: unknown }> }>
  }
  responses: Record<
    string,
    {
      $ref?: string
      description?: string
      content?: Record<string, { schema: Json }>
      links?: Record<string, { operationId: string; parameters: Json }>
    }
  >
}

let fleet: Fleet
let openapi: {
  openapi: string
  info: Json
  servers: Json[]
  tags: Json[]
  paths: Record<string, Record<string, Operation>>
  components: Record<string, Json>
}
beforeAll(async () => {
  fleet = await startFleet({ nodes: [] })
  openapi = (await send(fleet.origin, "GET", "/openapi.json")).json as unknown as typeof openapi
})
afterAll(() => fleet[Symbol.asyncDispose]())

const operations = (): [where: string, path: string, operation: Operation][] =>
  Object.entries(openapi.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]): [string, string, Operation] => [
      `${method} ${path}`,
      path,
      operation,
    ]),
  )

test("it is OpenAPI 3.1 of this origin, with title, version, license and described tags", () => {
  expect(openapi).toMatchObject({
    openapi: "3.1.0",
    info: { title: "Computalot", license: { name: "Apache-2.0" } },
    servers: [{ url: fleet.origin }],
  })
  const used = new Set(operations().flatMap(([, , { tags }]) => tags))
  expect(new Set(openapi.tags.map(({ name }) => name))).toEqual(used)
  for (const tag of openapi.tags) expect(String(tag["description"])).toMatch(/[.?]$/)
})

test("every operation has an id of its own, a summary, its path's parameters, a success and refusals", () => {
  const ids = operations().map(([, , { operationId }]) => operationId)
  expect(new Set(ids).size).toBe(ids.length)
  for (const [where, path, { operationId, summary, parameters, responses, requestBody }] of operations()) {
    expect(operationId, where).toMatch(/^[a-z][a-z0-9-]*$/)
    expect(summary, where).toMatch(/\.$/)
    const named = [...path.matchAll(/\{([a-z_]+)\}/g)].map(([, name]) => name)
    expect(
      parameters.filter((each) => each.in === "path").map(({ name }) => name),
      where,
    ).toEqual(named)
    for (const parameter of parameters) {
      expect(parameter.schema, where).toBeTruthy()
      if (parameter.in === "path") expect(parameter.required, where).toBe(true)
    }
    const names = parameters.map((each) => `${each.in} ${each.name}`)
    expect(new Set(names).size, where).toBe(names.length)
    const statuses = Object.keys(responses)
    expect(
      statuses.some((status) => status.startsWith("2") || ["402", "403"].includes(status)),
      where,
    ).toBe(true)
    expect(
      statuses.some((status) => status.startsWith("4")),
      where,
    ).toBe(true)
    expect(statuses, where).not.toContain("500")
    if (where.startsWith("get") || where.startsWith("delete")) expect(requestBody, where).toBeUndefined()
  }
})

test("no two paths can mean the same address, but for words that win over parameters (E-010)", () => {
  const shapes = Object.keys(openapi.paths).map((path) => path.replaceAll(/\{[a-z_]+\}/g, "{}"))
  expect(new Set(shapes).size).toBe(shapes.length)
})

test("every reference leads somewhere, and every component is used", () => {
  const text = JSON.stringify(openapi)
  const references = new Set(
    [...text.matchAll(/"\$ref":"#\/components\/(\w+)\/([\w.-]+)"/g)].map(([, kind, name]) => `${kind}/${name}`),
  )
  expect([...text.matchAll(/"\$ref"/g)].length).toBe(
    [...text.matchAll(/"\$ref":"#\/components\/\w+\/[\w.-]+"/g)].length,
  )
  const components = Object.entries(openapi.components)
    .filter(([kind]) => kind !== "securitySchemes")
    .flatMap(([kind, named]) => Object.keys(named).map((name) => `${kind}/${name}`))
  expect([...references].sort()).toEqual(components.sort())
  expect(text).not.toMatch(/"\$defs"|"shown":|"hidden":|"~standard"/)
})

test("links lead to operations that are there, with parameters of theirs", () => {
  const byId = new Map(operations().map(([, , operation]) => [operation.operationId, operation]))
  const links = operations().flatMap(([, , { responses }]) =>
    Object.values(responses).flatMap(({ links }) => Object.values(links ?? {})),
  )
  expect(links.length).toBeGreaterThan(15)
  for (const { operationId, parameters } of links) {
    const names = byId.get(operationId)?.parameters.map(({ name }) => name)
    expect(names, operationId).toEqual(expect.arrayContaining(Object.keys(parameters)))
  }
  const submit = openapi.paths["/api/v1/jobs"]?.["post"]?.responses["201"]?.links
  expect(Object.keys(submit ?? {})).toEqual(
    expect.arrayContaining(["jobs-get", "jobs-cancel", "jobs-tasks", "results-get"]),
  )
})

test("every example of a body is what its schema says", () => {
  const definitions = JSON.parse(
    JSON.stringify(openapi.components["schemas"]).replaceAll("#/components/schemas/", "#/$defs/"),
  ) as Json
  let examples = 0
  for (const [where, , { requestBody }] of operations()) {
    for (const { schema, examples: named } of Object.values(requestBody?.content ?? {})) {
      const local = JSON.parse(JSON.stringify(schema).replaceAll("#/components/schemas/", "#/$defs/")) as Json
      const parser = z.fromJSONSchema({ ...local, $defs: definitions } as Parameters<typeof z.fromJSONSchema>[0])
      for (const [name, { value }] of Object.entries(named ?? {})) {
        expect(parser.safeParse(value).error, `${where}: ${name}`).toBeUndefined()
        examples++
      }
    }
  }
  expect(examples).toBeGreaterThanOrEqual(7)
})

test("rulings, Waitlist: that a plain form is taken is said, too", () => {
  const { content } = openapi.paths["/api/v1/waitlist"]?.["post"]?.requestBody ?? {}
  expect(content?.["application/x-www-form-urlencoded"]?.schema).toEqual(content?.["application/json"]?.schema)
})

test("who may call is said: public routes need nothing, the others a bearer", () => {
  for (const [where, path, { security }] of operations()) {
    const isOpen = !path.startsWith("/api/v1") || path.startsWith("/api/v1/docs")
    // From elsewhere than the coordinator's own machine it takes a token (O-004).
    if (isOpen) expect(security, where).toEqual(path === "/metrics" ? [{}, { bearer: [] }] : [])
    if (path.startsWith("/api/v1/jobs") || path.startsWith("/api/v1/projects")) expect(security, where).toBeUndefined()
  }
})
