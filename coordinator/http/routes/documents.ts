import { documentEndpoints } from "../../../protocol/api/documents.ts"
import type { DocumentId, Documents } from "../../documents/documents.ts"
import { mount, type HttpApp, type HttpRequest } from "../app.ts"
import { unavailable } from "../errors.ts"
import { namesEtag } from "../etag.ts"

export interface DocumentRouteParts {
  documents: Documents
  /** Null: clients reach this deployment at the address of the socket that they come by (rulings, Origin). */
  publicOrigin: string | null
}

/** The public documents (D-*): made once for an origin, answered from memory. */
export function mountDocuments(app: Pick<HttpApp, "add" | "isOpen">, parts: DocumentRouteParts): void {
  for (const row of documentEndpoints) {
    mount(app, row, async (request) => {
      // Before, routes are missing that the documents are made from.
      if (!app.isOpen()) throw unavailable("the coordinator is starting or stopping")
      await send(request, row, parts)
    })
  }
}

async function send(
  { headers, response }: Pick<HttpRequest, "headers" | "response">,
  row: { id: DocumentId; contentType: string },
  { documents, publicOrigin }: DocumentRouteParts,
): Promise<void> {
  const { body, etag } = await documents.get(row.id, publicOrigin ?? originOfSocket(response))
  const about = {
    etag,
    // Cheap to ask again: an upgraded deployment shows its own documents at once.
    "cache-control": "public, no-cache",
    "content-type": `${row.contentType}; charset=utf-8`,
    ...(row.contentType === "text/html" && { "content-security-policy": PAGE_POLICY }),
  }
  if (namesEtag(headers["if-none-match"], etag)) return void response.writeHead(304, about).end()
  response.writeHead(200, { ...about, "content-length": body.length })
  response.end(body)
}

/** Our pages load nothing and run nothing; a form goes to this origin alone. */
const PAGE_POLICY =
  "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

/** Never what `Host` says: whoever writes that header would choose where copied commands go. */
function originOfSocket(response: HttpRequest["response"]): string {
  const { localAddress = "127.0.0.1", localPort = 80 } = response.req.socket
  const address = localAddress.replace(/^::ffff:(?=\d+\.)/, "")
  return `http://${address.includes(":") ? `[${address}]` : address}:${localPort}`
}
