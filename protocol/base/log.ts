/** Structured log: an event and its facts. User code, keys and payloads stay out. */
export interface Log {
  debug(event: string, facts?: LogFacts): void
  info(event: string, facts?: LogFacts): void
  warn(event: string, facts?: LogFacts): void
  error(event: string, facts?: LogFacts): void
  child(facts: LogFacts): Log
}

export type LogFacts = Record<string, unknown>

/** For tests and tools that do not look at logs. */
export const silentLog: Log = {
  debug() {},
  info() {},
  warn() {},
  error() {},
  child: () => silentLog,
}
