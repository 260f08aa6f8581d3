#!/usr/bin/env node
import { runWithHeapFlags } from "./heap-flags.ts"

runWithHeapFlags()
await import("./program.ts")
