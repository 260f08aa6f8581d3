import { runTool } from "./images/run-tool.ts"

/**
 * Packs the files, directories and links below `directory` into a tar.gz, in child processes. Links are packed as links and
 * never followed; pipes, sockets and devices are left out, and so are the paths in the file `leftOut`: relative ones in order
 * of their bytes, each ended by a NUL. Rejects when it cannot be written or read.
 */
export async function packArtifacts(directory: string, archive: string, leftOut: string | null = null): Promise<void> {
  const script = leftOut === null ? pack("") : pack('LC_ALL=C comm -z -23 - "$3" |')
  const end = await runTool(["sh", "-c", script, "pack", directory, archive, ...(leftOut === null ? [] : [leftOut])])
  if (end.exitCode !== 0) throw new Error(`the artifacts cannot be packed: ${end.output.trim().slice(-500)}`)
}

/** Sorted, without the names of this machine's users. Level 3: twice as fast as 6 and a few per cent larger. */
const pack = (filter: string): string => `set -e
cd -- "$1"
find . -mindepth 1 \\( -type f -o -type d -o -type l \\) -printf '%P\\0' | LC_ALL=C sort -z | ${filter}
tar --create --null --no-recursion --verbatim-files-from --files-from=- --owner=0 --group=0 --numeric-owner \\
  --use-compress-program='gzip -3' --file "$2"`
