/** One metric in the text format of Prometheus. */
export interface MetricFamily {
  /** snake_case, with its unit last (`_seconds`, `_bytes`); a counter ends in `_total`. */
  name: string
  help: string
  type: "counter" | "gauge" | "histogram"
  samples: readonly Sample[]
}

export interface Sample {
  /** Of a histogram: `_bucket`, `_sum`, `_count`. */
  suffix?: string
  labels?: Readonly<Record<string, string>>
  value: number
}

/** `text/plain; version=0.0.4`, as every Prometheus reads it. Families without samples are left out. */
export function exposition(families: readonly MetricFamily[]): string {
  const lines: string[] = []
  for (const { name, help, type, samples } of families) {
    if (samples.length === 0) continue
    lines.push(`# HELP ${name} ${help.replaceAll("\\", "\\\\").replaceAll("\n", "\\n")}`, `# TYPE ${name} ${type}`)
    for (const { suffix = "", labels = {}, value } of samples) {
      lines.push(`${name}${suffix}${labelText(labels)} ${numberText(value)}`)
    }
  }
  return `${lines.join("\n")}\n`
}

export const EXPOSITION_TYPE = "text/plain; version=0.0.4; charset=utf-8"

function labelText(labels: Readonly<Record<string, string>>): string {
  const pairs = Object.entries(labels).map(([name, value]) => `${name}="${escaped(value)}"`)
  return pairs.length === 0 ? "" : `{${pairs.join(",")}}`
}

const escaped = (value: string): string => value.replaceAll("\\", "\\\\").replaceAll('"', '\\"').replaceAll("\n", "\\n")

const numberText = (value: number): string =>
  value === Number.POSITIVE_INFINITY ? "+Inf" : value === Number.NEGATIVE_INFINITY ? "-Inf" : String(value)
