import { joinJsonObject, splitJsonObject } from "../base/json-text.ts"

/** What earlier attempts of a task left to go on from, each part as its own JSON text. */
export interface ResumeParts {
  /** The last progress line of all. */
  progress: string | null
  /** The other fields of the line that carried the checkpoint. */
  line: string | null
  /** The checkpoint object, with what its publication added. */
  checkpoint: string | null
}

/**
 * What a next attempt finds under `_resume` (C-08, CK-004): the latest progress at the top, overlaid by the checkpoint's
 * fields, and the checkpoint itself. What the checkpoint's own line told stands above what later lines told: a program must
 * not go on at epoch 7 with the file of epoch 5. `path` takes the place of the checkpoint's own (CK-006). Null: nothing.
 */
export function resumeText({ progress, line, checkpoint }: ResumeParts, path: string | null = null): string | null {
  const state = membersOf(checkpoint)
  if (path !== null) state.set("path", JSON.stringify(path))
  const all = new Map([...membersOf(progress), ...membersOf(line), ...state])
  all.delete("checkpoint")
  if (checkpoint !== null) all.set("checkpoint", joinJsonObject(state))
  return all.size === 0 ? null : joinJsonObject(all)
}

/** A checkpoint and the rest of what it came in, a progress line or a result; null where there is no checkpoint object. */
export function splitCheckpoint(text: string): { checkpoint: string; line: string } | null {
  // Most progress lines have none: those are not taken apart.
  const members = text.includes('"checkpoint"') ? splitJsonObject(text) : null
  const checkpoint = members?.get("checkpoint")
  if (!members || checkpoint?.startsWith("{") !== true) return null
  members.delete("checkpoint")
  return { checkpoint, line: joinJsonObject(members) }
}

/** JSON text of anything but an object has no fields. */
function membersOf(text: string | null): Map<string, string> {
  return (text === null ? null : splitJsonObject(text)) ?? new Map<string, string>()
}
