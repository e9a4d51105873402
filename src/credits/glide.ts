/**
 * How much a host may spend, so that a reserve is never touched by anything but critical work. Made by credits/host for each
 * ledger, ticked every second.
 *
 *     spend ≤ min( θ · most,  η · earn + (lower − reserve)⁺ / horizon )
 *
 * The one idea: a glide path. What is above the reserve is spread over the horizon, and that is solved anew every second from
 * the lower bound: the balance comes down to the reserve without ever reaching it, and an old sample lowers the budget by
 * itself. There is nothing to tune: the plant is an integrator with minutes of dead time, and whatever reacts to the raw
 * metric swings with a period of four times that. (Research, control law.)
 *
 * Down at once, up by a tenth of the most per minute. Without a sample: what is earned, times η ("baseline").
 *
 * Invariants: pure; the budget is never negative; a missing input never raises it.
 */
import type { Estimate } from './ledger.ts';

/** Share of what can be spent at all, and of what is earned. */
const MOST_SHARE = 0.85;
const EARN_SHARE = 0.95;
/** How fast the budget may rise: share of the most, in a minute. */
const RISE_PER_MINUTE = 0.1;

export interface GlideSpec {
  /** Units. */
  capacity: number;
  reserve: number;
  /** Units per second; null: not known. */
  earn: number | null;
  spendMax: number | null;
  /** How long what is above the reserve is to last, in s. */
  horizon: number;
}

/** What is known at the moment; null: nothing is. */
export interface Inputs {
  estimate: Estimate;
  kappa: number;
  kappaUpper: number;
  /** Units per second; with earnings that are not known, less these. */
  background: number;
  /** Critical work, in servers at work. */
  critical: number;
}

export interface Budget {
  /** What may be spent in all, in units per second; infinite: not limited. */
  spend: number;
  /** Work that is not critical, in servers at work. */
  work: number;
}

export class Glide {
  readonly #spec: GlideSpec;
  #work = Number.POSITIVE_INFINITY;
  #at = -1;

  constructor(spec: GlideSpec) {
    this.#spec = spec;
  }

  /** The budget from `now` on. */
  tick(now: number, inputs: Inputs): Budget {
    const { estimate, kappa, kappaUpper, background, critical } = inputs;
    const { reserve, earn, spendMax, horizon } = this.#spec;
    const above = Math.max(0, estimate.lower - reserve) / horizon;
    // With earnings that are not known the background is less these: then what is above is all there is.
    const spend = Math.min(MOST_SHARE * (spendMax ?? Number.POSITIVE_INFINITY), EARN_SHARE * (earn ?? 0) + above);
    const wanted = Math.max(0, spend - background - kappa * critical) / kappaUpper;
    return { spend, work: this.#approach(now, wanted, kappa) };
  }

  /** Nothing is known of the balance: as much as is surely earned. */
  baseline(now: number, { kappa, kappaUpper, background, critical }: Omit<Inputs, 'estimate'>): Budget {
    const spend = EARN_SHARE * (this.#spec.earn ?? 0);
    const wanted = Math.max(0, spend - Math.max(0, background) - kappaUpper * critical) / kappaUpper;
    return { spend, work: this.#approach(now, wanted, kappa) };
  }

  /** Down at once, up slowly. */
  #approach(now: number, wanted: number, kappa: number): number {
    const { spendMax, earn, capacity, horizon } = this.#spec;
    const most = (spendMax ?? (earn ?? 0) + capacity / horizon) / kappa;
    const minutes = this.#at < 0 ? 0 : (now - this.#at) / 60_000;
    const isFirst = this.#at < 0;
    this.#at = now;
    this.#work = isFirst ? wanted : Math.min(wanted, this.#work + RISE_PER_MINUTE * most * minutes);
    return this.#work;
  }
}
