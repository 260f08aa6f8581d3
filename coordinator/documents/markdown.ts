/** The Markdown that our own texts are written in, as HTML: headings, paragraphs, lists, tables, quotes, code, links. */
export function markdownToHtml(markdown: string): string {
  const blocks: string[] = []
  const lines = markdown.split("\n")
  let at = 0
  const takeWhile = (fits: (line: string) => boolean): string[] => {
    const from = at
    while (at < lines.length && fits(lines[at] ?? "")) at++
    return lines.slice(from, at)
  }
  while (at < lines.length) {
    const line = lines[at] ?? ""
    const heading = /^(?<marks>#{1,4}) (?<text>.+)$/.exec(line)?.groups
    if (line.startsWith("```")) {
      at++
      blocks.push(`<pre><code>${escapeHtml(takeWhile((each) => !each.startsWith("```")).join("\n"))}</code></pre>`)
      at++
    } else if (heading) {
      const level = heading["marks"]?.length ?? 1
      const text = heading["text"] ?? ""
      blocks.push(`<h${level} id="${slug(text)}">${inline(text)}</h${level}>`)
      at++
    } else if (line.startsWith("|")) blocks.push(table(takeWhile((each) => each.startsWith("|"))))
    else if (line.startsWith("> "))
      blocks.push(
        `<blockquote>${inline(
          takeWhile((each) => each.startsWith("> "))
            .map((each) => each.slice(2))
            .join(" "),
        )}</blockquote>`,
      )
    else if (line.startsWith("- "))
      blocks.push(
        list(
          "ul",
          takeWhile((each) => each.startsWith("- ")),
          /^- /,
        ),
      )
    else if (/^\d+\. /.test(line))
      blocks.push(
        list(
          "ol",
          takeWhile((each) => /^\d+\. /.test(each)),
          /^\d+\. /,
        ),
      )
    else if (line.startsWith("<")) blocks.push(...takeWhile((each) => each !== ""))
    else if (line.trim() === "") at++
    else blocks.push(`<p>${inline(takeWhile(isProse).join(" "))}</p>`)
  }
  return blocks.join("\n")
}

const isProse = (line: string): boolean => line.trim() !== "" && !/^(?:#|```|\||> |- |\d+\. |<)/.test(line)

function list(tag: "ul" | "ol", lines: string[], mark: RegExp): string {
  return `<${tag}>${lines.map((line) => `<li>${inline(line.replace(mark, ""))}</li>`).join("")}</${tag}>`
}

function table([head = "", , ...rows]: string[]): string {
  const cells = (line: string, tag: "th" | "td"): string =>
    line
      .replace(/^\|/, "")
      .replace(/\|\s*$/, "")
      .split("|")
      .map((cell) => `<${tag}>${inline(cell.trim())}</${tag}>`)
      .join("")
  const body = rows.map((row) => `<tr>${cells(row, "td")}</tr>`).join("")
  return `<table><thead><tr>${cells(head, "th")}</tr></thead><tbody>${body}</tbody></table>`
}

function inline(text: string): string {
  // Every second part is code, in which nothing else means anything.
  return text
    .split("`")
    .map((part, index) => (index % 2 === 1 ? `<code>${escapeHtml(part)}</code>` : withLinks(escapeHtml(part))))
    .join("")
}

function withLinks(escaped: string): string {
  return escaped
    .replaceAll(/\*\*(?<bold>.+?)\*\*/g, "<strong>$<bold></strong>")
    .replaceAll(/\[(?<text>[^\]]+)\]\((?<address>[^)\s]+)\)/g, '<a href="$<address>">$<text></a>')
}

const slug = (text: string): string =>
  text
    .toLowerCase()
    .replaceAll(/[^a-z0-9]+/g, "-")
    .replaceAll(/^-|-$/g, "")

export function escapeHtml(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;")
}
