/**
 * What reads cost, by shape: how long a server works for them, and how much it answers. Decides which reads are short
 * enough to share a server (server/line). Called by server/pool, client/session and server/line.
 *
 * The one idea: a quantile is only ever compared with a limit, so it is enough to count what exceeds the limit. "The
 * 95th percentile is below 10 ms" is "at most one in twenty took longer".
 *
 * Invariant: counts are halved from time to time, so that a shape which changes its ways is found out.
 */
import { LRUCache } from 'lru-cache';

/** Service times of shared reads stay below this, at the 95th percentile. */
const SERVICE_MAX_MS = 10;
/** Their answers stay below this, in bytes, at the 99th percentile. */
const SIZE_MAX = 64 * 1024;
/** Samples without which nothing is known. */
const SAMPLES_MIN = 20;
/** Samples after which old ones count half. */
const SAMPLES_MAX = 1000;
/** How many samples the mean remembers. */
const MEAN_SAMPLES = 32;
const SHAPES_MAX = 10_000;

export class ReadCost {
  /** The number of the shape. */
  readonly number: number;
  /** Recent mean of the service time in ms. */
  meanMs = 0;
  #count = 0;
  #slow = 0;
  #large = 0;

  constructor(number: number) {
    this.number = number;
  }

  /** One read took `ms` of its server's time, from ReadyForQuery to ReadyForQuery, and answered `bytes`. */
  add(ms: number, bytes: number): void {
    this.#count++;
    if (ms > SERVICE_MAX_MS) this.#slow++;
    if (bytes > SIZE_MAX) this.#large++;
    this.meanMs += (ms - this.meanMs) / Math.min(this.#count, MEAN_SAMPLES);
    if (this.#count < SAMPLES_MAX) return;
    this.#count /= 2;
    this.#slow /= 2;
    this.#large /= 2;
  }

  /** Enough is known, and it is short in time and size. */
  get isSmall(): boolean {
    return this.#count >= SAMPLES_MIN && this.#slow * 20 <= this.#count && this.#large * 100 <= this.#count;
  }
}

/** The costs of all shapes of one pool. */
export class ReadBook {
  readonly #costs = new LRUCache<number, ReadCost>({ max: SHAPES_MAX });

  /** The cost of the shape with this key (sql/read). */
  of(key: number): ReadCost {
    let cost = this.#costs.get(key);
    if (cost === undefined) {
      cost = new ReadCost(key);
      this.#costs.set(key, cost);
    }
    return cost;
  }
}
