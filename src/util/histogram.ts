/**
 * A histogram with fixed bounds: one comparison loop and one array write per observation, no allocation. Read at
 * scrape time by ops/metrics.
 */

/** Upper bounds in seconds: sub-millisecond resolution, and the edges at which people set objectives. */
const secondsBounds = [
  0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10,
] as const;

export class Histogram {
  readonly bounds: readonly number[];
  /** Observations per bucket; the last one counts what exceeds every bound. */
  readonly counts: Float64Array;
  sum = 0;
  count = 0;

  constructor(bounds: readonly number[] = secondsBounds) {
    this.bounds = bounds;
    this.counts = new Float64Array(bounds.length + 1);
  }

  /** Adds one observation, in the unit of the bounds. */
  observe(value: number): void {
    let bucket = 0;
    while (bucket < this.bounds.length && value > this.bounds[bucket]!) bucket++;
    this.counts[bucket]!++;
    this.sum += value;
    this.count++;
  }
}

/** All that two histograms with the same bounds have seen. */
export function together(a: Histogram, b: Histogram): Histogram {
  const both = new Histogram(a.bounds);
  for (let bucket = 0; bucket < both.counts.length; bucket++)
    both.counts[bucket] = a.counts[bucket]! + b.counts[bucket]!;
  both.sum = a.sum + b.sum;
  both.count = a.count + b.count;
  return both;
}
