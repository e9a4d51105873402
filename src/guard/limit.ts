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
 * and ρ is not above 1; a limit that nobody reaches does not grow; it starts at min, where baselines are those of calm; ρ is of
 * the last minute: what is not known any more is taken for normal, unless something is at work from which nothing comes back.
 */
import { Baselines, type Weather } from './baselines.ts';

export interface Limit {
  /** Servers that may be at work; not whole, so that it can move slowly. */
  readonly value: number;
  /** Latency relative to what is normal, of late; 1: normal, or not known. */
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
/** With fewer samples it is judged by nothing, and goes on: at one a second for twenty. For so long what was found before holds. */
const KNOWN_MS = 30_000;
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
  /** It goes on because too few statements come. */
  #isSparse = false;
  /** Of the last window, and when that was. */
  #ratio = 1;
  #knownAt = 0;
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
    const above = this.baselines.sample(shape, ms, this.#weather, this.#slowdown);
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

  /**
   * How much longer everything takes at this moment, as the last window and this one agree; 1: not known. A baseline that is
   * too low would keep the limit down for ever, one that is too high is corrected.
   */
  get #slowdown(): number {
    if (this.#count === 0 || this.#isSparse) return 1;
    return Math.min(this.#ratio, Math.exp(this.#logSum / this.#count));
  }

  tick(now: number, isBound: boolean, lagMs: number): void {
    if (this.#since < 0) this.#since = this.#knownAt = now;
    this.#isBound ||= isBound;
    this.#isLate ||= lagMs > LAG_MAX_MS;
    const elapsed = now - this.#since;
    if (elapsed < WINDOW_MS || (!this.#isSure && elapsed < WINDOW_MAX_MS)) return;
    // What a late loop has measured is not believed; that nothing came is.
    if (this.#count === 0 || !this.#isLate) {
      const isEnough = this.#count >= SAMPLES_MIN;
      this.#isSparse ||= !isEnough;
      if (!isEnough && now - this.#knownAt < KNOWN_MS) return;
      if (isEnough) this.#judge();
      else this.#guess();
      this.#knownAt = now;
    }
    this.#since = now;
    this.#count = 0;
    this.#cold = 0;
    this.#logSum = 0;
    this.#logSquares = 0;
    this.#atWorkSum = 0;
    this.#wasBound = this.#isBound;
    this.#isBound = false;
    this.#isLate = false;
    this.#isSparse = false;
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
    // Twenty samples may be slow by chance: where they are all that there is, a limit that is enough stays what it is.
    const isChance = this.#isSparse && !this.#isBound;
    if (this.#ratio > NEAR && !isChance) this.#move(gradient * this.value);
    else if (isWanted && isWarm && (this.#ratio < 1.02 || this.#correlation() <= CORRELATION_MAX))
      this.#move(this.value + Math.sqrt(this.value));
  }

  /** So few statements that what is missing of twenty counts as normal. */
  #guess(): void {
    const isStuck = this.#isBound && this.#count + this.#cold === 0;
    if (!isStuck) this.#ratio = Math.exp(this.#logSum / SAMPLES_MIN);
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
