import { stringifyJson } from "../../protocol/base/json-text.ts"

/** An answer with a status or headers of its own. Handlers that return a plain value answer with the endpoint's status. */
export class Reply {
  readonly status: number
  readonly body: unknown
  readonly headers: Readonly<Record<string, string>>

  constructor(status: number, body: unknown, headers: Readonly<Record<string, string>> = {}) {
    this.status = status
    this.body = body
    this.headers = headers
  }
}

/**
 * A JSON body that is written piece by piece as its reader takes it: for pages whose rows together may be larger than memory
 * should hold. What fails before the first piece is a refusal as any other; what fails later can only break the connection.
 */
export class JsonPieces {
  readonly pieces: AsyncIterable<string>
  constructor(pieces: AsyncIterable<string>) {
    this.pieces = pieces
  }
}

/** `{name: [rows…], …rest}`; `rest` is asked for once the rows are written and counted. */
export async function* objectWithRows(
  name: string,
  rows: AsyncIterable<unknown>,
  rest: (count: number) => object | Promise<object>,
): AsyncGenerator<string, void, undefined> {
  let waiting = `{${JSON.stringify(name)}:[`
  let count = 0
  for await (const row of rows) {
    waiting += `${count === 0 ? "" : ","}${stringifyJson(row)}`
    count++
    if (waiting.length < PIECE_CHARACTERS) continue
    yield waiting
    waiting = ""
  }
  const more = stringifyJson(await rest(count)).slice(1)
  yield `${waiting}]${more === "}" ? "" : ","}${more}`
}
/** Small rows go out together. */
const PIECE_CHARACTERS = 64 * 1024
