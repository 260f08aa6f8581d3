import { z } from "zod"
import { endpoint } from "./endpoint.ts"

const alive = z.object({ status: z.literal("ok"), app: z.literal("computalot_api") })
const check = z.enum(["ok", "down"])
const readiness = z.object({
  status: z.enum(["ready", "unavailable"]),
  checks: z.object({ repo: check, api_supervisor: check, controller_core: check }),
})

export const getHealth = endpoint({
  id: "health",
  method: "GET",
  path: "/health",
  access: "public",
  summary: "Says that the process answers.",
  reply: alive,
})

export const getLive = endpoint({
  id: "live",
  method: "GET",
  path: "/live",
  access: "public",
  summary: "The same as /health, for orchestrators.",
  reply: alive,
})

export const getReady = endpoint({
  id: "ready",
  method: "GET",
  path: "/ready",
  access: "public",
  summary: "Says whether work is accepted, and which part is missing where it is not.",
  reply: readiness,
  replies: { 503: { description: "starting, stopping, or unable to store anything", schema: readiness } },
})

export const getMetrics = endpoint({
  id: "metrics",
  method: "GET",
  path: "/metrics",
  access: "public",
  summary:
    "Counts in the text format of Prometheus, for requests of the coordinator's own machine, administrators, and the metrics token.",
  stream: "text",
  replies: {
    401: { description: "the request comes from elsewhere and has no valid token" },
    403: { description: "the token is neither an administrator's nor the metrics token" },
  },
})

export const opsEndpoints = [getHealth, getLive, getReady, getMetrics] as const
