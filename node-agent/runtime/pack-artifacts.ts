import { runTool } from "./images/run-tool.ts"

/**
 * Packs the files, directories and links below `directory` into a tar.gz, in child processes. Links are packed as links and
 * never followed; pipes, sockets and devices are left out. Rejects when it cannot be written or read.
 */
export async function packArtifacts(directory: string, archive: string): Promise<void> {
  const end = await runTool(["sh", "-c", PACK, "pack", directory, archive])
  if (end.exitCode !== 0) throw new Error(`the artifacts cannot be packed: ${end.output.trim().slice(-500)}`)
}

/** Sorted, without the names of this machine's users. Level 3: twice as fast as 6 and a few per cent larger. */
const PACK = `set -e
cd -- "$1"
find . -mindepth 1 \\( -type f -o -type d -o -type l \\) -printf '%P\\0' | LC_ALL=C sort -z |
tar --create --null --no-recursion --verbatim-files-from --files-from=- --owner=0 --group=0 --numeric-owner \\
  --use-compress-program='gzip -3' --file "$2"`
