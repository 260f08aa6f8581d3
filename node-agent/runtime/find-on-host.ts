import { accessSync, constants } from "node:fs"
import { join } from "node:path"

/** Where distributions put administrators' programs; a service's PATH often lacks half of them. */
const PLACES = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]

/** The path of a program that belongs to the machine, or null. */
export function findOnHost(name: string): string | null {
  return PLACES.map((place) => join(place, name)).find(isExecutable) ?? null
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK)
    return true
  } catch {
    return false
  }
}
