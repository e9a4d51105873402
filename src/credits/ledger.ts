/**
 * How much of one reserve is left: the estimator of a ledger, between samples that come minutes late. Made by credits/host,
 * ticked every second.
 *
 *     balance' = earn − κ · work rate − background            0 ≤ balance ≤ capacity
 *
 *     sample (late) ──▶ plausible? ──▶ anchor at its own time ──▶ work since then, at κ and background ──▶ now
 *                            └─ no ──▶ quarantine
 *
 * The one idea: what a metric says is minutes old, but what the proxy has done since then it knows. Two numbers are
 * learned from each new sample by recursive least squares with forgetting (a Kalman filter of two states): κ, what one second of
 * work spends, and the net background, which is what goes on beside the proxy less what is earned. How unsure they are is
 * part of the answer: the lower bound is what budgets are made from, and old samples lower it by themselves.
 *
 * Units: balance in the ledger's own unit (credits, percent); rates in units per second; work rate in servers at work.
 * Source: research on burst credits (estimator, plausibility); Kalman, "A New Approach to Linear Filtering", 1960.
 *
 * Invariants: pure; 0 ≤ lower ≤ balance ≤ capacity; κ is never negative; an implausible sample changes nothing until those right
 * behind it agree with it.
 */
import type { WorkLog } from './work.ts';

export interface LedgerSpec {
  name: string;
  capacity: number;
  /** Units per second; null: not known, learned as part of the background. */
  earn: number | null;
  /** The most that can be spent, in units per second; null: not known. */
  spendMax: number | null;
  /** What one second of one server's work is thought to spend before anything is learned; in units. */
  kappa: number;
  /** Steps in which the metric moves. */
  quantum: number;
}

/** A value of the balance, or of the spend rate. */
export interface Sample {
  value: number;
  /** Monotonic ms of what it describes. */
  observedAt: number;
}

/** What became of a sample. 'repeated': nothing new. 'moved': several agree that the balance is elsewhere; it starts anew there. */
export type Reception = 'accepted' | 'repeated' | 'quarantined' | 'moved';

export interface Estimate {
  balance: number;
  /** Two standard deviations below. */
  lower: number;
  sigma: number;
}

/** What is learned, kept over a restart. */
export interface Learned {
  kappa: number;
  background: number;
  kappaVariance: number;
  backgroundVariance: number;
}

/** A change by more than so many times the greatest that is possible is not believed. */
const PLAUSIBLE = 1.2;
/** Samples that must agree before a jump is believed: downwards, and upwards, where a mistake costs more. */
const AGREE_DOWN = 2;
const AGREE_UP = 3;
/** How fast what is learned may drift: standard deviation in a minute, as a share. */
const KAPPA_DRIFT = 0.03;
const BACKGROUND_DRIFT = 0.01;
/** Noise of a rate that was measured, as a share of the greatest possible. */
const NOISE = 0.02;
/** Growth of the balance's own uncertainty, as a share of the greatest rate, per √s. */
const WANDER = 0.01;
const KAPPA_RANGE = 20;
/** For so long a value that does not change may be one that is not made anew. */
const UNCHANGED_MS = 10 * 60_000;

export class Ledger {
  readonly spec: LedgerSpec;
  readonly #work: WorkLog;
  #kappa: number;
  /** Background less earnings, in units per second. */
  #net: number;
  // Covariance of both.
  #pkk: number;
  #pkn = 0;
  #pnn: number;
  #learnedAt = -1;
  #anchor: Sample | null = null;
  /** Samples that were not believed, in a row. */
  #suspects: Sample[] = [];

  constructor(spec: LedgerSpec, work: WorkLog, learned: Learned | null = null) {
    this.spec = spec;
    this.#work = work;
    this.#kappa = learned?.kappa ?? spec.kappa;
    this.#net = (learned?.background ?? 0) - (spec.earn ?? 0);
    this.#pkk = learned?.kappaVariance ?? spec.kappa ** 2;
    this.#pnn = learned?.backgroundVariance ?? (0.2 * this.#rateMax) ** 2;
  }

  /** The greatest rate at which the balance can change. */
  get #rateMax(): number {
    const { earn, spendMax, kappa, capacity } = this.spec;
    const most = Math.max(earn ?? 0, (spendMax ?? 0) - (earn ?? 0));
    // Of a reserve of which nothing is known: it lasts for a quarter of an hour at the least.
    return most > 0 ? most : Math.max(kappa, capacity / 900);
  }

  get kappa(): number {
    return this.#kappa;
  }

  /** κ with two standard deviations on top, and more the longer nothing has been learned. */
  kappaUpper(now: number): number {
    const minutes = this.#learnedAt < 0 ? 0 : Math.max(0, now - this.#learnedAt) / 60_000;
    return this.#kappa + 2 * Math.sqrt(this.#pkk + (KAPPA_DRIFT * this.#kappa) ** 2 * minutes);
  }

  /** What goes on beside the proxy, in units per second; with earnings that are not known, less these. */
  get background(): number {
    return this.#net + (this.spec.earn ?? 0);
  }

  /** Monotonic ms of the newest sample that was believed; null: there was none. */
  get anchoredAt(): number | null {
    return this.#anchor?.observedAt ?? null;
  }

  /** Samples in a row that were not believed. */
  get suspects(): number {
    return this.#suspects.length;
  }

  get learned(): Learned {
    return {
      kappa: this.#kappa,
      background: this.background,
      kappaVariance: this.#pkk,
      backgroundVariance: this.#pnn,
    };
  }

  /** What is left at `now`; null: no sample was ever believed. */
  estimate(now: number): Estimate | null {
    if (this.#anchor === null) return null;
    const { value, observedAt } = this.#anchor;
    const seconds = Math.max(0, now - observedAt) / 1000;
    const work = this.#work.between(observedAt, now);
    const balance = this.#clamp(value - this.#kappa * work - this.#net * seconds);
    const wander = (WANDER * this.#rateMax) ** 2 * seconds;
    const model = work * work * this.#pkk + 2 * work * seconds * this.#pkn + seconds * seconds * this.#pnn;
    // What was done before the log began is not known: up to all that can be.
    const unseen = (this.#rateMax * Math.max(0, this.#work.since - observedAt)) / 2000;
    const sigma = Math.sqrt(this.spec.quantum ** 2 / 12 + Math.max(0, model) + wander + unseen * unseen);
    return { balance, lower: Math.max(0, balance - 2 * sigma), sigma };
  }

  #clamp(balance: number): number {
    return Math.min(this.spec.capacity, Math.max(0, balance));
  }

  /** A balance has come. */
  observe(sample: Sample): Reception {
    const anchor = this.#anchor;
    if (anchor === null) {
      // A zero may be an exporter without data: the first one is not believed alone.
      if (sample.value > 0 || this.#isAgreed(sample, AGREE_DOWN)) return this.#start(sample);
      return 'quarantined';
    }
    if (sample.observedAt <= anchor.observedAt) return 'repeated';
    // A metric of five minutes that is looked at every half: what has not changed says nothing new, for a while.
    const isFull = sample.value >= this.spec.capacity - this.spec.quantum;
    if (sample.value === anchor.value && !isFull && sample.observedAt - anchor.observedAt < UNCHANGED_MS) {
      // But it says that what came between was not so.
      if (this.#isNewest(sample)) this.#suspects = [];
      return 'repeated';
    }
    if (!this.#isPlausible(anchor, sample)) {
      const isUp = sample.value > anchor.value;
      if (!this.#isAgreed(sample, isUp ? AGREE_UP : AGREE_DOWN)) return 'quarantined';
      // Another database, or a bigger one: what was learned of this one may hold no longer.
      this.#pkk = Math.max(this.#pkk, (0.5 * this.#kappa) ** 2);
      this.#pnn = Math.max(this.#pnn, (0.2 * this.#rateMax) ** 2);
      this.#start(sample);
      return 'moved';
    }
    const seconds = (sample.observedAt - anchor.observedAt) / 1000;
    // At the ends of the scale it says nothing of rates.
    const isFree = [anchor, sample].every(({ value }) => value > 0 && value < this.spec.capacity - this.spec.quantum);
    if (isFree && anchor.observedAt >= this.#work.since) {
      const noise = (this.spec.quantum / 2 / seconds) ** 2 + (NOISE * this.#rateMax) ** 2;
      const work = this.#work.between(anchor.observedAt, sample.observedAt) / seconds;
      this.#learn(work, (anchor.value - sample.value) / seconds, noise, sample.observedAt);
    }
    this.#start(sample);
    return 'accepted';
  }

  /** The spend rate between two times (monotonic ms) was `rate`, in units per second: a sample of load. */
  observeSpend(from: number, to: number, rate: number): void {
    if (this.spec.earn === null || from < this.#work.since || to <= from) return;
    if (rate < 0 || (this.spec.spendMax !== null && rate > PLAUSIBLE * this.spec.spendMax)) return;
    const work = this.#work.between(from, to) / ((to - from) / 1000);
    this.#learn(work, rate - this.spec.earn, (NOISE * this.#rateMax) ** 2, to);
  }

  #start(sample: Sample): Reception {
    this.#anchor = { ...sample, value: this.#clamp(sample.value) };
    this.#suspects = [];
    return 'accepted';
  }

  #isPlausible(before: Sample, after: Sample): boolean {
    const seconds = (after.observedAt - before.observedAt) / 1000;
    const change = after.value - before.value;
    const { earn, spendMax, quantum, capacity } = this.spec;
    if (after.value < 0 || after.value > capacity + quantum) return false;
    const unknown = earn === null || spendMax === null;
    const up = unknown ? this.#rateMax : earn;
    const down = unknown ? this.#rateMax : Math.max(spendMax - earn, earn);
    // A drop to zero that is possible, but not expected, is what an exporter without data looks like.
    if (after.value === 0 && this.#expected(after.observedAt) > 0.05 * capacity) return false;
    return change <= PLAUSIBLE * up * seconds + 2 * quantum && -change <= PLAUSIBLE * down * seconds + 2 * quantum;
  }

  #expected(at: number): number {
    return this.estimate(at)?.balance ?? 0;
  }

  /** No sample that was not believed is as new. */
  #isNewest({ observedAt }: Sample): boolean {
    const last = this.#suspects.at(-1);
    return last === undefined || observedAt > last.observedAt;
  }

  /** `sample` and those right before it, which were not believed either, agree with each other. */
  #isAgreed(sample: Sample, wanted: number): boolean {
    if (!this.#isNewest(sample)) return false;
    const isLike = (other: Sample) => {
      const seconds = (sample.observedAt - other.observedAt) / 1000;
      return Math.abs(sample.value - other.value) <= PLAUSIBLE * this.#rateMax * seconds + 2 * this.spec.quantum;
    };
    if (!this.#suspects.every(isLike)) this.#suspects = [];
    this.#suspects.push(sample);
    return this.#suspects.length >= wanted;
  }

  /** One step of the filter: at a work rate of `work` the balance fell by `drain` per second. */
  #learn(work: number, drain: number, noise: number, at: number): void {
    const minutes = this.#learnedAt < 0 ? 1 : Math.max(0, at - this.#learnedAt) / 60_000;
    this.#learnedAt = Math.max(this.#learnedAt, at);
    this.#pkk += (KAPPA_DRIFT * this.#kappa) ** 2 * minutes;
    this.#pnn += (BACKGROUND_DRIFT * this.#rateMax) ** 2 * minutes;
    const error = drain - (this.#kappa * work + this.#net);
    const expected = this.#pkk * work * work + 2 * this.#pkn * work + this.#pnn + noise;
    // What does not fit at all says that something has changed: be less sure of what was learned, and follow.
    if (error * error > 9 * expected) {
      this.#pkk += (0.25 * this.#kappa) ** 2;
      this.#pnn += (0.05 * this.#rateMax) ** 2;
    }
    const hk = this.#pkk * work + this.#pkn;
    const hn = this.#pkn * work + this.#pnn;
    const variance = hk * work + hn + noise;
    const [gk, gn] = [hk / variance, hn / variance];
    const { kappa, earn } = this.spec;
    this.#kappa = Math.min(KAPPA_RANGE * kappa, Math.max(kappa / KAPPA_RANGE, this.#kappa + gk * error));
    this.#net += gn * error;
    if (earn !== null) this.#net = Math.max(-earn, this.#net);
    this.#pkk = Math.max(1e-12 * kappa * kappa, this.#pkk - gk * hk);
    this.#pnn = Math.max(1e-18, this.#pnn - gn * hn);
    this.#pkn -= gk * hn;
  }
}
