/**
 * How many servers the misses of one database need, and how many its hits spare: what the database would have to find were the cache lost.
 * Pure. Owned by cache/cache, shown by ops/caches.
 *
 * The one idea: by Little's law a second of server time that is asked for in each second is one server; the mean is over about a minute.
 */
const MEAN_MS = 60_000;
const TICK_MS = 1_000;

export class Need {
  /** In servers. */
  spared = 0;
  missed = 0;
  #sparedMs = 0;
  #missedMs = 0;
  #at: number | null = null;

  /** A hit has spared `ms` of a server's time. */
  spare(ms: number): void {
    this.#sparedMs += ms;
  }

  /** A miss asks for `ms` of it, whether it will be let through or not. */
  miss(ms: number): void {
    this.#missedMs += ms;
  }

  tick(now: number): void {
    const spent = this.#at === null ? 0 : now - this.#at;
    if (this.#at !== null && spent < TICK_MS) return;
    if (spent > 0) {
      const weight = 1 - Math.exp(-spent / MEAN_MS);
      this.spared += (this.#sparedMs / spent - this.spared) * weight;
      this.missed += (this.#missedMs / spent - this.missed) * weight;
    }
    this.#at = now;
    this.#sparedMs = 0;
    this.#missedMs = 0;
  }

  /** What is to be said about it where misses may have `max` servers of `servers`; '': nothing. */
  verdict(max: number, servers: number): string {
    const { missed, spared } = this;
    const tell = (count: number) => count.toFixed(1);
    if (missed > max) return `misses need ${tell(missed)} servers and may have ${tell(max)}: some are refused`;
    if (missed + spared > servers)
      return `without the cache ${tell(missed + spared)} servers would be needed, and there are ${tell(servers)}`;
    return '';
  }
}
