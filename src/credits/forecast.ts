/**
 * When a reserve will be used up, when it will have recovered, and whether what is waiting fits. Called by credits/host every
 * second for each ledger; shown by ops.
 *
 * The one idea: credits obey a conservation law. Over a time T what can be spent besides live work is
 * `balance − reserve + (earn − live) · T`; no controller makes more of it. So what does not fit is known at once, and the answer to
 * it is a bigger database, by a time that can be said.
 */
import type { Estimate } from './ledger.ts';

/** What the burn rate is averaged over, in s. */
const FAST_S = 60;
const SLOW_S = 15 * 60;

export interface Forecast {
  /** Units per second that go out, less what is earned; over a minute, and over a quarter of an hour. */
  burnFast: number;
  burnSlow: number;
  /** Seconds until the reserve is reached, by the worse of both; infinite: never at this rate. */
  exhaustion: number;
  /** Seconds until half of the capacity is back; infinite: never at this rate; 0: it is there. */
  recovery: number;
}

/** 'fits'; or it does not, and the database should be bigger in `scaleUpIn` s at the latest. */
export type Verdict = { fits: true } | { fits: false; scaleUpIn: number };

export class Forecaster {
  #fast: number | null = null;
  #slow: number | null = null;
  #at = -1;

  /** `drain`: units per second that go out now, less what is earned. `reserve` and `half` are balances. */
  tick(now: number, drain: number, { lower, balance }: Estimate, reserve: number, half: number): Forecast {
    const seconds = this.#at < 0 ? 0 : (now - this.#at) / 1000;
    this.#at = now;
    const ease = (before: number | null, span: number) =>
      before === null ? drain : before + (drain - before) * (1 - Math.exp(-seconds / span));
    this.#fast = ease(this.#fast, FAST_S);
    this.#slow = ease(this.#slow, SLOW_S);
    const worse = Math.max(this.#fast, this.#slow);
    const better = Math.max(-this.#fast, 0);
    return {
      burnFast: this.#fast,
      burnSlow: this.#slow,
      exhaustion: worse > 0 ? Math.max(0, lower - reserve) / worse : Number.POSITIVE_INFINITY,
      recovery: balance >= half ? 0 : better > 0 ? (half - balance) / better : Number.POSITIVE_INFINITY,
    };
  }
}

/**
 * Does what is wanted fit into what is there? `spendable`: units above the reserve, by the lower bound; `earn`: units per second;
 * `live`: units per second of all work that cannot wait; `backlog`: units of work that can; `backlogRate`: units per second at
 * which it would be done if nothing held it back.
 */
export function feasibility({
  spendable,
  earn,
  live,
  backlog,
  backlogRate,
}: Record<'spendable' | 'earn' | 'live' | 'backlog' | 'backlogRate', number>): Verdict {
  const drain = live - earn;
  // Live work alone eats the reserve up.
  if (drain > 0 && backlog <= 0) return { fits: false, scaleUpIn: spendable / drain };
  if (backlog <= 0 || backlogRate <= 0) return { fits: true };
  const seconds = backlog / backlogRate;
  if (backlog <= spendable - drain * seconds) return { fits: true };
  const net = drain + backlogRate;
  return net <= 0 ? { fits: true } : { fits: false, scaleUpIn: spendable / net };
}
