import { readFileSync } from "node:fs"
import { assert } from "../../protocol/base/assert.ts"
import type { DocumentFacts } from "./facts.ts"
import { FEATURES, isFeatureName, type FeatureName } from "./features.ts"

/** What `@name argument` and `{{name argument}}` stand for in a text. */
export type Insertions = Readonly<Record<string, (argument: string) => string>>

export type TextName =
  | "docs"
  | "errors"
  | "landing"
  | "llms"
  | "llms-full"
  | "manifest"
  | "python-sdk"
  | "recipes"
  | "skill"
  | "workflows"

/**
 * One of the Markdown files in `text/`, made for this deployment. On lines of their own: `@if feature`, `@else`, `@end` choose,
 * `@note feature` says that a feature is missing where it is, `@include text` brings another file without its title, and
 * `@name` inserts a block. Inside a line: `{{origin}}`, `{{name argument}}`, and `{{if feature}}…{{else}}…{{end}}`.
 */
export function renderText(name: TextName, facts: DocumentFacts, insertions: Insertions): string {
  const source = readFileSync(new URL(`text/${name}.md`, import.meta.url), "utf8")
  const lines: string[] = []
  const shown: boolean[] = []
  for (const line of source.split("\n")) {
    const directive = /^@(?<word>[a-z-]+)(?: (?<argument>\S+))?$/.exec(line)?.groups
    const word = directive?.["word"]
    const argument = directive?.["argument"] ?? ""
    if (word === "if") shown.push(facts.has(featureNamed(argument)))
    else if (word === "else") shown.push(!(shown.pop() ?? true))
    else if (word === "end") assert(shown.pop() !== undefined, `${name}.md closes only what it opened`)
    else if (shown.includes(false)) continue
    else if (word === "note") lines.push(...missingNote(featureNamed(argument), facts))
    else if (word === "include") lines.push(withoutTitle(renderText(argument as TextName, facts, insertions)))
    else if (word !== undefined) lines.push(inserted(insertions, word, argument))
    else lines.push(line)
  }
  assert(shown.length === 0, `${name}.md closes what it opened`)
  return filled(lines.join("\n"), facts, insertions)
}

function missingNote(feature: FeatureName, facts: DocumentFacts): string[] {
  return facts.has(feature) ? [] : ["", `> ${FEATURES[feature].otherwise}`]
}

function filled(text: string, facts: DocumentFacts, insertions: Insertions): string {
  return text
    .replaceAll(
      /\{\{if (?<feature>[a-z_]+)\}\}(?<yes>.*?)(?:\{\{else\}\}(?<no>.*?))?\{\{end\}\}/g,
      (_match, feature: string, yes: string, no: string | undefined) =>
        facts.has(featureNamed(feature)) ? yes : (no ?? ""),
    )
    .replaceAll("{{origin}}", facts.origin)
    .replaceAll(/\{\{(?<name>[a-z-]+)(?: (?<argument>[a-z]+))?\}\}/g, (_match, name: string, argument?: string) =>
      inserted(insertions, name, argument ?? ""),
    )
}

function inserted(insertions: Insertions, name: string, argument: string): string {
  const insertion = Object.hasOwn(insertions, name) ? insertions[name] : undefined
  assert(insertion !== undefined, `a text inserts ${name}, which is known`)
  return insertion(argument)
}

function featureNamed(name: string): FeatureName {
  assert(isFeatureName(name), `a text asks for the feature ${name}, which is known`)
  return name
}

const withoutTitle = (text: string): string => text.replace(/^# .*\n+/, "")
