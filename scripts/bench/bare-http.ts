import { createServer } from "node:http"
import type { AddressInfo } from "node:net"

/** What Node's own server costs when it answers every request with a text as long as a job's: what no poll can be cheaper than. */
const text = JSON.stringify({ filler: "x".repeat(2_000) })
const server = createServer((_request, response) => {
  response.setHeader("content-type", "application/json; charset=utf-8")
  response.setHeader("content-length", Buffer.byteLength(text))
  response.end(text)
})
// Whoever started it holds its input: it ends with them, however they end.
process.stdin.resume().on("end", () => process.exit())
server.listen(0, "127.0.0.1", () => console.log(`http://127.0.0.1:${(server.address() as AddressInfo).port}`))
