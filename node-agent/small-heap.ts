import { setFlagsFromString } from "node:v8"

/**
 * Imported before everything else: an agent idles on a machine that belongs to somebody, and V8 by default grows its heap for
 * speed (161 MB resident against 128). As flags of the program, so that nobody has to start it in a special way.
 */
setFlagsFromString("--optimize-for-size")
setFlagsFromString("--semi-space-growth-factor=1")
setFlagsFromString("--max-semi-space-size=1")
