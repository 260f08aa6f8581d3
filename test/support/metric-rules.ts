/**
 * What `promtool check metrics` demands, for machines that do not have it: HELP and TYPE before the samples, `_total` on
 * counters alone, base units spelled out, no type in a name, and histograms whose buckets only grow. One line for each fault.
 */
export function metricProblems(text: string): string[] {
  const problems: string[] = []
  if (!text.endsWith("\n")) problems.push("the text does not end with a line break")
  const families = new Map<string, { type: string; help: boolean; samples: Sample[] }>()
  let current = ""
  for (const line of text.split("\n").slice(0, -1)) {
    const meta = /^# (HELP|TYPE) ([a-zA-Z_:][\w:]*) (.+)$/.exec(line)
    if (meta) {
      const [, what, name = "", value = ""] = meta
      const family = families.get(name) ?? { type: "", help: false, samples: [] }
      if (what === "HELP" && families.has(name)) problems.push(`${name} is described twice`)
      if (what === "HELP") family.help = true
      else family.type = value
      families.set(name, family)
      current = name
      continue
    }
    const sample = sampleOf(line)
    if (sample === null) problems.push(`no sample: ${line}`)
    else if (sample.name !== current && baseOf(sample.name) !== current)
      problems.push(`${sample.name} stands under ${current}`)
    else families.get(current)?.samples.push(sample)
  }
  for (const [name, family] of families) problems.push(...familyProblems(name, family))
  return problems
}

interface Sample {
  name: string
  labels: string
  le: string | null
  value: number
}

function sampleOf(line: string): Sample | null {
  const match = /^([a-zA-Z_:][\w:]*)(?:\{((?:[a-zA-Z_]\w*="(?:[^"\\\n]|\\[\\"n])*",?)*)\})? (\S+)$/.exec(line)
  const [, name = "", labels = "", text = ""] = match ?? []
  const value = text === "+Inf" ? Number.POSITIVE_INFINITY : Number(text)
  if (match === null || text === "" || Number.isNaN(value)) return null
  const le = /(?:^|,)le="([^"]*)"/.exec(labels)?.[1] ?? null
  return { name, labels: labels.replace(/,?le="[^"]*"/, ""), le, value }
}

const baseOf = (name: string): string => name.replace(/_(bucket|sum|count)$/, "")

/** Units as promlint knows them: each must be written as its base unit, in full. */
const OTHER_UNITS =
  /(?:^|_)(milliseconds?|microseconds?|nanoseconds?|minutes?|hours?|days?|kilobytes?|megabytes?|gigabytes?|kibibytes?|mebibytes?|gibibytes?|bits?|ms|us|ns|sec|secs|kb|mb|gb|kib|mib|gib)(?:_|$)/

function* familyProblems(
  name: string,
  { type, help, samples }: { type: string; help: boolean; samples: Sample[] },
): Generator<string> {
  if (!help) yield `${name} has no HELP`
  if (!["counter", "gauge", "histogram"].includes(type)) yield `${name} has no known TYPE`
  if ((type === "counter") !== name.endsWith("_total")) yield `${name}: _total belongs to counters, and to all of them`
  if (!/^[a-z][a-z0-9_]*$/.test(name)) yield `${name} is not in snake_case`
  if (/_(bucket|sum|count)$/.test(name)) yield `${name} ends as if it were part of a histogram`
  if (/(?:^|_)(counter|gauge|histogram|summary)(?:_|$)/.test(name)) yield `${name} has its type in its name`
  if (OTHER_UNITS.test(name)) yield `${name} is in no base unit`
  if (samples.length === 0) yield `${name} has no samples`
  const seen = new Set(samples.map((sample) => `${sample.name}{${sample.labels}}${sample.le}`))
  if (seen.size < samples.length) yield `${name} has a series twice`
  if (type === "counter" && samples.some(({ value }) => !(value >= 0))) yield `${name} counts below 0`
  if (type !== "histogram") {
    if (samples.some(({ le }) => le !== null)) yield `${name} has a label le and is no histogram`
    return
  }
  for (const [labels, group] of Map.groupBy(samples, (sample) => sample.labels)) {
    const buckets = group.filter((sample) => sample.name === `${name}_bucket`)
    const count = group.find((sample) => sample.name === `${name}_count`)
    if (buckets.at(-1)?.le !== "+Inf" || buckets.at(-1)?.value !== count?.value)
      yield `${name}{${labels}} has no full last bucket`
    if (buckets.some(({ value }, at) => value < (buckets[at - 1]?.value ?? 0)))
      yield `${name}{${labels}}: buckets shrink`
    if (!group.some((sample) => sample.name === `${name}_sum`)) yield `${name}{${labels}} has no sum`
  }
}
