import { expect, test } from "vitest"
import { createRouteTable } from "../../coordinator/http/route-table.ts"

const table = createRouteTable(
  [
    { method: "GET", path: "/" },
    { method: "GET", path: "/api/v1/docs" },
    { method: "GET", path: "/docs/schema.json" },
    { method: "GET", path: "/api/v1/jobs/:id" },
    { method: "GET", path: "/api/v1/jobs" },
    { method: "POST", path: "/api/v1/jobs" },
    { method: "GET", path: "/api/v1/jobs/:id/tasks" },
    { method: "GET", path: "/api/v1/jobs/watch" },
    { method: "POST", path: "/api/v1/jobs/watch/:word" },
    { method: "GET", path: "/api/v1/projects/:name/kv/:key" },
  ],
  (row) => row,
)
const found = (method: string, url: string) => {
  const match = table.find(method, url)
  return match && { path: match.route.path, params: match.params, query: { ...match.query } }
}

test("E-010: static words win over parameters, in whatever order rows were mounted", () => {
  expect(found("GET", "/api/v1/jobs/watch")).toMatchObject({ path: "/api/v1/jobs/watch", params: {} })
  expect(found("GET", "/api/v1/jobs/watch2")).toMatchObject({ path: "/api/v1/jobs/:id", params: { id: "watch2" } })
  // A word that leads nowhere is a parameter after all.
  expect(found("GET", "/api/v1/jobs/watch/tasks")).toBeNull()
  expect(found("POST", "/api/v1/jobs/watch/tasks")).toMatchObject({ params: { word: "tasks" } })
  expect(found("GET", "/api/v1/jobs/job_1/tasks")).toMatchObject({ params: { id: "job_1" } })
})

test("a row is found by its path and method, with its parameters and its query", () => {
  expect(found("GET", "/")).toEqual({ path: "/", params: {}, query: {} })
  expect(found("GET", "/docs/schema.json?")).toEqual({ path: "/docs/schema.json", params: {}, query: {} })
  expect(found("GET", "/api/v1/projects/my.p-1/kv/a:b@c")).toMatchObject({ params: { name: "my.p-1", key: "a:b@c" } })
  expect(found("GET", "/api/v1/jobs?tag=a%20b+c&tag=d&limit=2&x=?/")).toMatchObject({
    query: { tag: ["a b c", "d"], limit: "2", x: "?/" },
  })
  expect(found("POST", "/api/v1/jobs")).toMatchObject({ path: "/api/v1/jobs" })
})

test("what is no plain address of a row is left to Express", () => {
  const urls = [
    "/api/v1/jobs/",
    "/api/v1//jobs",
    "/API/v1/jobs",
    "/api/v1/jobs/a%20b",
    "/api/v1/jobs/%77atch",
    "/api/v1/projects//kv/a",
    "/api/v1/jobs#x",
    "/api/v1/jobs?a=b#x",
    "/api/v1/jobs?tag=ü",
    "/api/v1",
    "/nowhere",
    "//",
    "*",
    "",
    "http://localhost/api/v1/jobs",
  ]
  for (const url of urls) expect([url, found("GET", url)]).toEqual([url, null])
  for (const method of ["DELETE", "HEAD", "OPTIONS", "PUT", ""]) expect(found(method, "/api/v1/jobs")).toBeNull()
})

test("no name of the address reaches an object's own prototype", () => {
  const { params, query } = table.find("GET", "/api/v1/jobs/__proto__?__proto__=a&constructor=b") ?? {}
  expect(params).toEqual({ id: "__proto__" })
  expect(Object.getPrototypeOf(query)).toBeNull()
  expect(Object.entries(query ?? {})).toEqual([
    ["__proto__", "a"],
    ["constructor", "b"],
  ])
})

test("a parameter is a whole segment", () => {
  const rows = [{ method: "GET", path: "/files/:name.json" }]
  expect(() => createRouteTable(rows, (row) => row)).toThrow("whole segments")
})
