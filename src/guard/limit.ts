/**
 * How many servers of a host may be at work at the same time. Owned by guard/gate.
 *
 *     how long statements take / how long their shapes take when all is well  ──▶  gradient  ──▶  limit
 *
 * The one idea: a database that is given more than it can do at once does no more, it only takes longer. So the limit grows
 * while statements take what they always take, and shrinks by the factor that they take longer. Each is compared with
 * its own shape, so the mix does not matter; and by logarithms, so that one statement that waits for a lock does not
 * either.
 *
 * Formula: gradient g = clamp(1/ρ, 1/2, 1), ρ the geometric mean of a window of latency/baseline; limit' = g·limit + √limit
 * while ρ is near 1, else g·limit, smoothed (Netflix concurrency-limits, Gradient2Limit). No growth while latency rises
 * with the number at work (correlation, as in failsafe-go's adaptive limiter): that alone ends Gradient2's drift.
 *
 * Invariants: min ≤ limit ≤ max; what is slow is not learned as normal: baselines move only while the limit does not bind
 * and ρ is not above 1; a limit that nobody reaches does not grow; it starts at min, where baselines are those of calm.
 */
import { Baselines, type Weather } from './baselines.ts';

export interface Limit {
  /** Servers that may be at work; not whole, so that it can move slowly. */
  readonly value: number;
  /** Latency relative to what is normal; 1: normal, or not known. */
  readonly ratio: number;
  /** What is normal. */
  readonly baselines: Baselines;
  /** A statement of the shape with this number took `ms`, while `atWork` servers were. */
  sample(shape: number, ms: number, atWork: number): void;
  /** Called often. `isBound`: somebody waits. `lagMs`: how late the event loop is, which is not the database's fault. */
  tick(now: number, isBound: boolean, lagMs: number): void;
}

/** With so few at work nobody waits for others: a small database has two processors. */
const CALM_SERVERS = 2;

/** A limit that is what the configuration says; infinite: none. It learns what statements cost all the same. */
export class FixedLimit implements Limit {
  readonly value: number;
  readonly ratio = 1;
  readonly baselines: Baselines;
  #isBound = false;

  constructor(value: number, baselines = new Baselines()) {
    this.value = value;
    this.baselines = baselines;
  }

  sample(shape: number, ms: number, atWork = 1): void {
    this.baselines.sample(shape, ms, this.#isBound ? 'busy' : atWork <= CALM_SERVERS ? 'calm' : 'crowded', 1);
  }

  tick(_now: number, isBound: boolean): void {
    this.#isBound = isBound;
  }
}

const WINDOW_MS = 1_000;
/** A window that is not sure by then is judged by what there is. */
const WINDOW_MAX_MS = 5_000;
const SAMPLES_MIN = 20;
/** How sure the mean of a window must be: its standard error. */
const ERROR_MAX = 0.03;
/** How much of the way to the new limit is gone in one window. */
const SMOOTHING = 0.4;
/** ρ up to here is noise. */
const NEAR = 1.06;
/** Windows that the correlation remembers, and what of it stops growth. */
const WINDOWS = 30;
const CORRELATION_MAX = 0.5;
/** No growth while more than this share of what ran is of shapes that are not warm: they are best learned in calm. */
const COLD_MAX = 0.2;
/** A loop that is later than this says nothing about the database. */
const LAG_MAX_MS = 50;

export class AdaptiveLimit implements Limit {
  value: number;
  readonly baselines: Baselines;
  #min: number;
  #max: number;
  // The window.
  #since = -1;
  #count = 0;
  /** Samples of shapes that are not warm. */
  #cold = 0;
  #logSum = 0;
  #logSquares = 0;
  #atWorkSum = 0;
  #isBound = false;
  #wasBound = false;
  #isLate = false;
  /** Of the last window. */
  #ratio = 1;
  /** Of past windows: mean servers at work, and log of ρ. */
  readonly #history: { atWork: number; log: number }[] = [];

  constructor(min: number, max: number, baselines = new Baselines()) {
    this.baselines = baselines;
    this.#min = min;
    this.#max = max;
    this.value = min;
  }

  get ratio(): number {
    return this.#ratio;
  }

  setBounds(min: number, max: number): void {
    this.#min = min;
    this.#max = max;
    this.value = Math.min(max, Math.max(min, this.value));
  }

  sample(shape: number, ms: number, atWork: number): void {
    const above = this.baselines.sample(shape, ms, this.#weather, this.#ratio);
    if (above === null) {
      this.#cold++;
      return;
    }
    this.#count++;
    this.#logSum += above;
    this.#logSquares += above * above;
    this.#atWorkSum += atWork;
  }

  get #weather(): Weather {
    if (this.#isBound || this.#wasBound || this.#ratio >= NEAR) return 'busy';
    return this.#ratio < 1 / NEAR ? 'quick' : 'calm';
  }

  tick(now: number, isBound: boolean, lagMs: number): void {
    if (this.#since < 0) this.#since = now;
    this.#isBound ||= isBound;
    this.#isLate ||= lagMs > LAG_MAX_MS;
    const elapsed = now - this.#since;
    if (elapsed < WINDOW_MS || (!this.#isSure && elapsed < WINDOW_MAX_MS)) return;
    if (this.#count >= SAMPLES_MIN && !this.#isLate) this.#judge();
    this.#since = now;
    this.#count = 0;
    this.#cold = 0;
    this.#logSum = 0;
    this.#logSquares = 0;
    this.#atWorkSum = 0;
    this.#wasBound = this.#isBound;
    this.#isBound = false;
    this.#isLate = false;
  }

  /** The window has enough samples for its mean to mean something. */
  get #isSure(): boolean {
    const mean = this.#logSum / this.#count;
    const variance = this.#logSquares / this.#count - mean * mean;
    return this.#count >= SAMPLES_MIN && variance / this.#count <= ERROR_MAX * ERROR_MAX;
  }

  #judge(): void {
    const log = this.#logSum / this.#count;
    const atWork = this.#atWorkSum / this.#count;
    this.#ratio = Math.exp(log);
    this.#history.push({ atWork, log });
    if (this.#history.length > WINDOWS) this.#history.shift();
    const gradient = Math.min(1, Math.max(0.5, 1 / this.#ratio));
    const isWarm = this.#cold <= COLD_MAX * (this.#cold + this.#count);
    const isWanted = this.#isBound && atWork >= this.value / 2;
    if (this.#ratio > NEAR) this.#move(gradient * this.value);
    else if (isWanted && isWarm && (this.#ratio < 1.02 || this.#correlation() <= CORRELATION_MAX))
      this.#move(this.value + Math.sqrt(this.value));
  }

  #move(to: number): void {
    const next = this.value + SMOOTHING * (to - this.value);
    this.value = Math.min(this.#max, Math.max(this.#min, next));
  }

  /** Do statements take longer when more are at work? From -1 to 1 (Pearson); 0: not known. */
  #correlation(): number {
    const { length } = this.#history;
    if (length < WINDOWS / 3) return 0;
    let [x, y, xx, yy, xy] = [0, 0, 0, 0, 0];
    for (const { atWork, log } of this.#history) {
      x += atWork;
      y += log;
      xx += atWork * atWork;
      yy += log * log;
      xy += atWork * log;
    }
    const spreadX = xx / length - (x / length) ** 2;
    const spreadY = yy / length - (y / length) ** 2;
    if (spreadX < 1e-3 || spreadY < 1e-4) return 0;
    const covariance = xy / length - (x / length) * (y / length);
    return covariance / Math.sqrt(spreadX * spreadY);
  }
}
