import { execFileSync } from "node:child_process"
import { existsSync, readFileSync } from "node:fs"
import { join } from "node:path"
import { expect, test } from "vitest"
import { readBases } from "../../node-agent/runtime/images/bases.ts"
import { layerStore, makeBases, missingTools, scratchDirectory } from "../support/images.ts"

const skipped = missingTools("mmdebstrap", "bwrap", "flock", "zstd") !== null

test.skipIf(skipped)(
  "python:3.11-slim has the whole standard library, pip without PEP 668's marker, hash-based byte code and no devices",
  { timeout: 300_000 },
  async () => {
    const work = await scratchDirectory()
    await makeBases(join(work, "bases"), "python")
    const listed = JSON.parse(readFileSync(join(work, "bases/bases.json"), "utf8")) as unknown
    const folder = "python-3.11-slim"
    expect(listed).toEqual({ "python:3.11-slim": folder, "docker.io/library/python:3.11-slim": folder })

    const bases = await readBases(join(work, "bases"))
    expect(bases.problems).toEqual([])
    const layer = bases.find("python:3.11-slim")?.image.layers[0]
    if (layer === undefined) throw new Error("the base has no layer")
    const store = await layerStore(join(work, "layers"))
    // Unpacking refuses devices.
    await store.add(layer.diffId, layer.path)
    const root = store.path(layer.diffId)
    expect(existsSync(join(root, "usr/lib/python3.11/EXTERNALLY-MANAGED"))).toBe(false)
    expect(existsSync(join(root, "etc/resolv.conf"))).toBe(false)
    expect(existsSync(join(root, "dev"))).toBe(true)
    const byteCode = readFileSync(join(root, "usr/lib/python3.11/json/__pycache__/__init__.cpython-311.pyc"))
    expect(byteCode.readUInt32LE(4), "flags: hash-based, unchecked").toBe(1)

    const view = ["--unshare-all", "--ro-bind", root, "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
    const run = (...command: string[]): string =>
      execFileSync("bwrap", [...view, "--clearenv", "--setenv", "PATH", "/usr/local/bin:/usr/bin:/bin", ...command], {
        encoding: "utf8",
      })
    const missing = JSON.parse(run("python", "-c", IMPORT_ALL)) as string[]
    expect(missing.filter((name) => !LEFT_OUT.has(name))).toEqual([])
    expect(run("pip", "--version")).toMatch(/python 3\.11/)
  },
)

test.skipIf(skipped)("an image that make-bases does not know is refused in one line", async () => {
  await expect(makeBases(await scratchDirectory(), "perl")).rejects.toThrow(/python, node and debian, not perl/)
})

const IMPORT_ALL = `
import importlib, json, sys
missing = []
for name in sorted(sys.stdlib_module_names - {"antigravity", "this"}):
    try: importlib.import_module(name)
    except ImportError: missing.append(name)
print(json.dumps(missing))
`
/** Without X11's libraries, and the modules of other systems. */
const LEFT_OUT: ReadonlySet<string> = new Set([
  ..."tkinter _tkinter turtle turtledemo idlelib _gdbm".split(" "),
  ..."_msi _overlapped _scproxy _winapi msilib msvcrt nt winreg winsound".split(" "),
])
