import fc from "fast-check"
import { expect, test } from "vitest"
import { checkDockerfile, fullImageName } from "../../node-agent/runtime/images/dockerfile-policy.ts"

const BASE = "docker.io/library/python:3.11-slim"
const REFERENCES = new Map([[BASE, "localhost/base:1"]])

function problemsOf(text: string, options = {}): string[] {
  const checked = checkDockerfile(text, options)
  return checked.ok ? [] : checked.problems.map(({ line, reason }) => `${line}: ${reason}`)
}

test("an ordinary Dockerfile passes, names its bases in full and is written one instruction a line", () => {
  const checked = checkDockerfile(
    [
      "# a comment",
      "ARG PYTHON=3.11-slim",
      "FROM python:${PYTHON} AS build",
      "RUN pip install \\",
      "  # which one",
      "",
      "  numpy && \\",
      "  echo done",
      "VOLUME /data",
      "from build",
      "COPY --from=build --chown=1:1 /a /b",
      "ADD data.tar.gz /data/",
      "FROM scratch",
      "COPY --from=0 /a /b",
    ].join("\r\n"),
  )
  if (!checked.ok) throw new Error(JSON.stringify(checked.problems))
  expect(checked.bases).toEqual([BASE])
  expect(checked.hasRun).toBe(true)
  expect(checked.render(REFERENCES)).toBe(
    [
      "ARG PYTHON=3.11-slim",
      "FROM localhost/base:1 AS build",
      "RUN pip install   numpy &&   echo done",
      "FROM build",
      "COPY --from=build --chown=1:1 /a /b",
      "ADD data.tar.gz /data/",
      "FROM scratch",
      "COPY --from=0 /a /b",
      "",
    ].join("\n"),
  )
})

test.each([
  ["python", "docker.io/library/python:latest"],
  ["python:3", "docker.io/library/python:3"],
  ["team/app", "docker.io/team/app:latest"],
  ["registry.example:5000/app", "registry.example:5000/app:latest"],
  ["localhost/app:1", "localhost/app:1"],
])("the image name %s means %s", (name, full) => {
  expect(fullImageName(name)).toBe(full)
})

test.each<[string, number, RegExp]>([
  ["# syntax=docker/dockerfile:1\nFROM scratch", 1, /syntax/],
  ["#escape=`\nFROM scratch", 1, /escape/],
  ["FROM scratch\nRUN --mount=type=bind,source=/,target=/host ls /host", 2, /RUN --mount/],
  ["FROM scratch\nRUN --mount=type=cache,target=/x true", 2, /RUN --mount/],
  ["FROM scratch\nRUN --net\\\nwork=host true", 2, /RUN --network/],
  ["FROM scratch\nRUN \\\n  --security=insecure true", 2, /RUN --security/],
  ["FROM scratch\nRUN --device=/dev/kvm true", 2, /RUN --device/],
  ["FROM scratch\nRUN\u00a0--network=host true", 2, /RUN --network/],
  ["FROM scratch\nRUN true\u0085--network=host", 2, /control/],
  ["FROM scratch\nADD http://example.com/x /x", 2, /ADD takes files/],
  ['FROM scratch\nADD h"ttp"://example.com/x /x', 2, /ADD takes files/],
  ["FROM scratch\nARG U=http\nADD $U /x", 3, /ADD takes files/],
  ['FROM scratch\nADD ["https://example.com/x", "/x"]', 2, /ADD takes files/],
  ["FROM scratch\nADD git@example.com:a/b.git /x", 2, /ADD takes files/],
  ["FROM scratch\nADD github.com/a/b /x", 2, /ADD takes files/],
  ["FROM scratch\nADD --keep-git-dir=true x /x", 2, /--keep-git-dir/],
  ["FROM scratch\nCOPY --from=alpine /etc/passwd /", 2, /no earlier stage/],
  ["FROM scratch AS a\nCOPY --from=a /x /y", 2, /no earlier stage/],
  ["FROM scratch\nCOPY --from=1 /x /y", 2, /no earlier stage/],
  ["FROM scratch\nARG F=a\nCOPY --from=$F /x /y", 3, /plain value/],
  ["FROM scratch\nCOPY --parents x /y", 2, /--parents/],
  ["FROM scratch\nONBUILD RUN true", 2, /ONBUILD/],
  ["FROM scratch\nRUN <<EOF\nADD http://example.com/x /\nEOF", 2, /heredoc/],
  ["FROM scratch\nCOPY <<x /etc/y\nhello\nx", 2, /heredoc/],
  ["FROM ${BASE}", 1, /BASE has no value/],
  ["ARG BASE\nFROM $BASE", 2, /BASE has no value/],
  ["FROM --platform=linux/arm64 scratch", 1, /--platform/],
  ["FROM docker-archive:/etc/shadow.tar", 1, /no name of an image/],
  ["FROM oci:../../x", 1, /no name of an image/],
  ["FROM scratch\nRUN true \\\\\n", 2, /backslash/],
  ["FROM scratch\nFETCH x", 2, /no instruction/],
  ["RUN true\nFROM scratch", 1, /before the first FROM/],
  ["", 1, /no FROM/],
])("GAP-16: %j is refused at its line", (text, line, reason) => {
  const problems = problemsOf(text)
  expect(problems.find((problem) => problem.startsWith(`${line}: `))).toMatch(reason)
})

test("the manifest's arguments decide FROM, and its target must be a stage", () => {
  const text = "ARG BASE\nARG TAG=${BASE:-x}\nFROM ${BASE} AS runtime"
  expect(checkDockerfile(text, { args: { BASE: "python:3.11-slim" }, target: "Runtime" })).toMatchObject({
    bases: [BASE],
  })
  expect(problemsOf(text, { args: { BASE: "python" }, target: "other" })).toEqual([
    '0: build.target "other" is no stage of this Dockerfile',
  ])
  expect(problemsOf("FROM scratch", { args: { "A B": "1" } })[0]).toMatch(/build argument/)
  expect(problemsOf("FROM scratch", { args: { A: "1\n2" } })[0]).toMatch(/control/)
})

test("whatever passes is written as lines that each start with a known instruction and carry no refused flag", () => {
  const words =
    'FROM RUN COPY ADD ARG ONBUILD scratch AS a --from=a --from=0 --mount=x \\ # $A http://x/ <<EOF [" "] true'
  const breaks = ["\n", "\n", "\n", "\r\n", "\t", "\\\n", "\u00a0", "\u0000", "# syntax=x"]
  const word = fc.constantFrom(...words.split(" "), ...breaks)
  fc.assert(
    fc.property(fc.array(word, { maxLength: 40 }), fc.string(), (chosen, noise) => {
      const checked = checkDockerfile(`FROM scratch\n${chosen.join(" ")}${noise}`)
      if (!checked.ok) return
      const lines = checked
        .render(new Map(checked.bases.map((base) => [base, "localhost/x"])))
        .split("\n")
        .slice(0, -1)
      for (const line of lines) {
        expect(line).toMatch(/^(FROM|RUN|COPY|ADD|ENV|ARG|WORKDIR|USER|SHELL|CMD|ENTRYPOINT|LABEL) \S/)
        expect(line).not.toMatch(/\\[ \t]*$|^RUN\s+--|^FROM --|^ADD.*(:|@)/)
      }
    }),
    { numRuns: 2_000 },
  )
})
