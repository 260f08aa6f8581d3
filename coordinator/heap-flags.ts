/**
 * What V8 is told about its heap. It reads most of it before any of our code runs, so the program is run anew with it, as the
 * same process: nobody has to start it in a special way. Whoever names a size of young space on the command line is left alone.
 *
 * V8 by default lets garbage pile up: a job of 100,000 tasks took 510 MB resident, most of it dead. With a small young space,
 * and a collection of the rest whenever it has grown by 20 %, the same job takes 290 MB and no more processor time.
 */
const HEAP_FLAGS: readonly string[] = [
  "--heap-growing-percent=20",
  // In MB, a power of two. As large at the end of a quiet night as under load: what V8 takes back of it in a quiet minute is
  // missing later, and ten times as many collections then take a seventh of the thread.
  "--min-semi-space-size=16",
  "--max-semi-space-size=16",
  // Nothing is made old from the start because others made at the same place once lived long: after a few pages that waited for
  // their reader every row of every page was, and waited for a full collection (pages of 100 results: 15 ms instead of 9 of
  // cpu, p99 34 instead of 16).
  "--no-allocation-site-pretenuring",
]

/** Does not come back where the flags are still to be set. To be called before anything large is loaded: that is lost. */
export function runWithHeapFlags(): void {
  if (process.execArgv.some((flag) => flag.includes("semi-space-size"))) return
  process.execve?.(process.execPath, [process.execPath, ...HEAP_FLAGS, ...process.execArgv, ...process.argv.slice(1)])
}
