import { parentPort, workerData } from "node:worker_threads"
import { assert } from "../../protocol/base/assert.ts"
import { findDamage } from "./integrity.ts"

assert(parentPort !== null, "the check of the database runs in a worker")
parentPort.postMessage(findDamage(String(workerData)))
