import { destination, pino } from "pino"
import type { Log, LogFacts } from "./log.ts"

/** JSON lines on standard error, one an event: what both programs log with. Standard output carries the ready line alone. */
export function createJsonLog(program: string, level: "debug" | "info" = "info"): Log {
  return wrap(
    pino(
      { base: { program }, level, messageKey: "event", timestamp: pino.stdTimeFunctions.isoTime },
      destination({ dest: 2, sync: true }),
    ),
  )
}

type Logger = Pick<ReturnType<typeof pino>, "debug" | "info" | "warn" | "error" | "child">

function wrap(logger: Logger): Log {
  return {
    debug: (event, facts = {}) => logger.debug(facts, event),
    info: (event, facts = {}) => logger.info(facts, event),
    warn: (event, facts = {}) => logger.warn(facts, event),
    error: (event, facts = {}) => logger.error(facts, event),
    child: (facts: LogFacts) => wrap(logger.child(facts)),
  }
}
