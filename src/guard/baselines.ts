/**
 * How long statements take by shape when all is well. One book for each host; its limit (guard/limit) decides when all is
 * well, its gate asks what a request will cost.
 *
 * The one idea: normal is what was measured in calm. A database that has been slow for hours is not normal for it, so
 * nothing is learned from samples that were taken while somebody had to wait; and what is known outlives a restart (ops/memory),
 * because that may come at the worst time.
 *
 * Means are geometric: one statement that waits for a lock hardly moves them.
 */
import { LRUCache } from 'lru-cache';

interface Baseline {
  /** Logarithm of ms. */
  log: number;
  count: number;
}

/** What is kept of one shape: its number, the logarithm of its ms, and how many samples that rests on. */
export type SavedBaseline = readonly [shape: number, log: number, count: number];

/** Samples of a shape until its baseline counts. */
const WARM = 100;
/** How fast baselines follow in calm, and when they have proved too high. */
const FOLLOW = 0.002;
const CORRECT = 0.02;
const SHAPES_MAX = 10_000;
/** Logarithms beyond are no durations. */
const LOG_MAX = 20;

/**
 * 'calm': this is normal. 'quick': it is quicker than normal, which cannot be. 'crowded': nobody knows what of it is waiting for
 * others; but what was quicker than normal was not. 'busy': nothing is to be learned.
 */
export type Weather = 'calm' | 'quick' | 'crowded' | 'busy';

export class Baselines {
  readonly #known = new LRUCache<number, Baseline>({ max: SHAPES_MAX });

  /**
   * A statement of `shape` took `ms`. Gives the logarithm of how much longer than normal that is; null while the shape is
   * not known well. `ratio`: how much longer everything takes at the moment, as far as is known.
   */
  sample(shape: number, ms: number, weather: Weather, ratio: number): number | null {
    const log = Math.log(Math.max(ms, 0.01));
    let baseline = this.#known.get(shape);
    if (baseline === undefined) {
      baseline = { log: 0, count: 0 };
      this.#known.set(shape, baseline);
    }
    if (baseline.count < WARM) {
      // What is new is as slow at the moment as everything else.
      const normal = log - Math.max(0, Math.log(ratio));
      baseline.log += (normal - baseline.log) / ++baseline.count;
      return null;
    }
    const above = log - baseline.log;
    if (weather === 'calm') baseline.log += FOLLOW * above;
    else if (weather === 'quick' || (weather === 'crowded' && above < 0)) baseline.log += CORRECT * above;
    return above;
  }

  /** What a statement of `shape` costs, in ms of a server; 0: not known. */
  costOf(shape: number): number {
    const baseline = shape === 0 ? undefined : this.#known.get(shape);
    return baseline === undefined ? 0 : Math.exp(baseline.log);
  }

  /** All that is known well. */
  save(): SavedBaseline[] {
    const all: SavedBaseline[] = [];
    for (const [shape, { log, count }] of this.#known.entries()) if (count >= WARM) all.push([shape, log, count]);
    return all;
  }

  restore(saved: Iterable<SavedBaseline>): void {
    for (const [shape, log, count] of saved) {
      if (Math.abs(log) < LOG_MAX && count >= WARM) this.#known.set(shape, { log, count });
    }
  }
}
