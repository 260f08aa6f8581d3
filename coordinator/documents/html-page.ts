import { escapeHtml, markdownToHtml } from "./markdown.ts"

/** A whole page out of Markdown. It loads nothing from anywhere and runs no script. */
export function htmlPage(markdown: string): string {
  const title = /^# (?<title>.+)$/m.exec(markdown)?.groups?.["title"] ?? "Computalot"
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escapeHtml(title.startsWith("Computalot") ? title : `${title} · Computalot`)}</title>
<style>${STYLE}</style>
</head>
<body>
<nav><a href="/">Computalot</a> <a href="/docs">Documentation</a> <a href="/docs/reference">Reference</a> <a href="/docs/errors">Errors</a></nav>
<main>
${markdownToHtml(markdown)}
</main>
</body>
</html>
`
}

const STYLE = `
:root{color-scheme:light dark;--line:#8884;--soft:#8881}
body{margin:0 auto;max-width:52rem;padding:1rem 1.25rem 4rem;font:1rem/1.6 system-ui,sans-serif}
nav{display:flex;gap:1.25rem;flex-wrap:wrap;border-bottom:1px solid var(--line);padding-bottom:.75rem}
nav a:first-child{font-weight:700}
h1,h2,h3,h4{line-height:1.25;margin:2rem 0 .75rem}
pre{overflow-x:auto;padding:.75rem 1rem;background:var(--soft);border:1px solid var(--line);border-radius:.4rem;font-size:.875rem;line-height:1.45}
code{font-family:ui-monospace,monospace;font-size:.9em}
table{border-collapse:collapse;display:block;overflow-x:auto;font-size:.925rem}
th,td{border:1px solid var(--line);padding:.35rem .6rem;text-align:left;vertical-align:top}
blockquote{margin:1rem 0;padding:.5rem 1rem;border-left:.25rem solid var(--line);background:var(--soft)}
label{display:block;margin:.5rem 0}
`
  .trim()
  .replaceAll("\n", "")
