import { endpoint } from "./endpoint.ts"

// Documents are public, also for those who have no account yet (A-005, D-010). All are made from one source and kept ready.

const page = {
  method: "GET",
  access: "public",
  stream: "text",
  replies: { 304: { description: "If-None-Match names what is there" } },
} as const
const html = { ...page, contentType: "text/html" } as const
const markdown = { ...page, contentType: "text/markdown" } as const
const plain = { ...page, contentType: "text/plain" } as const
const json = { ...page, contentType: "application/json" } as const

export const documentEndpoints = [
  endpoint({ ...html, id: "landing", path: "/", summary: "What this is, and how to get in." }),
  endpoint({ ...html, id: "docs-web", path: "/docs", summary: "Where to start reading." }),
  endpoint({
    ...html,
    id: "docs-manifest",
    path: "/docs/projects/project-manifest",
    summary: "What stands in computalot.project.json.",
  }),
  endpoint({
    ...json,
    id: "docs-manifest-schema",
    path: "/docs/projects/project-manifest/schema.json",
    summary: "The JSON Schema of computalot.project.json.",
  }),
  endpoint({ ...html, id: "docs-errors", path: "/docs/errors", summary: "Every error code, and what to do about it." }),
  endpoint({ ...html, id: "docs-reference", path: "/docs/reference", summary: "The full reference, for reading." }),
  endpoint({ ...markdown, id: "skill", path: "/skill.md", summary: "An Agent Skill: install it and start." }),
  endpoint({ ...plain, id: "llms", path: "/llms.txt", summary: "The compact reference." }),
  endpoint({ ...plain, id: "llms-full", path: "/llms-full.txt", summary: "The full reference, with worked examples." }),
  endpoint({ ...json, id: "openapi", path: "/openapi.json", summary: "Every route as OpenAPI 3.1." }),
  endpoint({ ...json, id: "docs-index", path: "/api/v1/docs", summary: "The index of the API, for machines." }),
  endpoint({
    ...markdown,
    id: "docs-workflows",
    path: "/api/v1/docs/workflows",
    summary: "Patterns of work: which one fits what you have.",
  }),
  endpoint({ ...markdown, id: "docs-recipes", path: "/api/v1/docs/recipes", summary: "The guide to sealed recipes." }),
  endpoint({
    ...markdown,
    id: "docs-python-sdk",
    path: "/api/v1/docs/python-sdk",
    summary: "The guide to the Python SDK and its command line.",
  }),
] as const
