import { decode, encode, rfc8949EncodeOptions } from "cborg"

/**
 * Canonical CBOR (RFC 8949 core deterministic): the same value gives the same bytes, so that bytes can be signed and
 * compared. Properties that are undefined are left out.
 */
export function encodeCbor(value: unknown): Uint8Array {
  return encode(value, { ...rfc8949EncodeOptions, ignoreUndefinedProperties: true })
}

/**
 * Reads canonical CBOR. Throws on anything else: indefinite lengths, longer integers than needed, duplicate keys, NaN,
 * tags, bytes after the value, or bytes that encode the value in another way (so each value has exactly one form).
 */
export function decodeCbor(bytes: Uint8Array): unknown {
  const value: unknown = decode(bytes, {
    strict: true,
    allowIndefinite: false,
    allowUndefined: false,
    allowInfinity: false,
    allowNaN: false,
    allowBigInt: false,
    rejectDuplicateMapKeys: true,
  })
  if (Buffer.compare(encodeCbor(value), bytes) !== 0) throw new Error("the CBOR is not in its canonical form")
  return value
}
