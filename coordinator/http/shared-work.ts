/** Work that several ask for at the same time is done once. */
export interface SharedWork {
  /** What `work` gives; whoever asks for the same name while it is under way gets the same. */
  run<T>(name: string, work: () => Promise<T>): Promise<T>
}

export function createSharedWork(): SharedWork {
  const running = new Map<string, Promise<unknown>>()
  return {
    run<T>(name: string, work: () => Promise<T>): Promise<T> {
      const known = running.get(name)
      // A name stands for one kind of work.
      if (known) return known as Promise<T>
      const started = work().finally(() => running.delete(name))
      running.set(name, started)
      return started
    },
  }
}
