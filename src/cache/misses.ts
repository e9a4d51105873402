/**
 * How much of one database may be at work for answers that the cache has not got: the guard that stands between a cache that is lost and the
 * database. Pure. Owned by cache/cache; asked for statements which the cache has answered of late, since only these are more than the
 * database is used to.
 *
 * The one idea: congestion control. As long as fills take what they usually take one more server may work for them; when they take
 * twice as long, three in ten fewer (AIMD: Chiu and Jain 1989; cache.md §3.3).
 *
 * Invariants: `active`, in servers, exceeds `limit` by less than one fill, and the limit never exceeds `max`; whoever waits is admitted
 * or refused, once.
 */
export interface MissWaiter {
  /** 0 is let through first. */
  readonly rank: number;
  onTurn(): void;
  onRefused(): void;
}

interface Waiting {
  waiter: MissWaiter;
  weight: number;
  until: number;
}

const START = 4;
const GROWTH = 1;
const CUT = 0.7;
/** Times what fills usually take, beyond which the database has too much to do. */
const SLOW = 2;
const MEAN_SAMPLES = 50;
const WAITING_MAX = 2_000;
/** The longest wait, in ms; and while there was always somebody waiting for BUSY_MS. */
const WAIT_MS = 1_000;
const WAIT_BUSY_MS = 50;
const BUSY_MS = 1_000;

export class Misses {
  #max: number;
  #limit: number;
  readonly #waiting: Waiting[] = [];
  /** How long fills took, relative to what they usually take: a moving mean; and of how many since the limit last changed. */
  #slowness = 1;
  #samples = 0;
  /** Since when somebody of this rank waits, whoever it is. */
  readonly #busySince = new Map<number, number>();
  /** Servers at work for fills; shared ones in parts. */
  active = 0;
  readonly counts = { admitted: 0, waited: 0, refused: 0 };

  /** `max`: servers that fills may have at most. */
  constructor(max: number) {
    this.#max = Math.max(1, max);
    this.#limit = Math.min(START, this.#max);
  }

  get limit(): number {
    return Math.floor(this.#limit);
  }

  get waiting(): number {
    return this.#waiting.length;
  }

  get max(): number {
    return this.#max;
  }

  set max(max: number) {
    this.#max = Math.max(1, max);
    this.#limit = Math.min(this.#limit, this.#max);
  }

  /** True: it may ask the database at once, for `weight` of a server, and calls `end` afterwards. */
  enter(weight: number): boolean {
    if (this.active >= this.limit || this.#waiting.length > 0) return false;
    this.#let(weight);
    return true;
  }

  #let(weight: number): void {
    this.active += weight;
    this.counts.admitted++;
  }

  /**
   * It waits for some time; false: too many do. While somebody of its rank has waited all the time for a second, nobody of that rank waits for longer
   * than a moment (as CoDel does: Nichols and Jacobson 2012): a queue that does not empty only makes everybody late.
   */
  wait(waiter: MissWaiter, weight: number, now: number): boolean {
    const { rank } = waiter;
    if (!this.#waiting.some((each) => each.waiter.rank === rank)) this.#busySince.set(rank, now);
    const isBusy = now - this.#busySince.get(rank)! > BUSY_MS;
    const until = now + (isBusy ? WAIT_BUSY_MS : WAIT_MS);
    const last = this.#waiting.at(-1);
    if (this.#waiting.length >= WAITING_MAX && last !== undefined) {
      this.counts.refused++;
      if (last.waiter.rank <= rank) return false;
      // Somebody who matters more takes the place of the last one who matters least: who hears so at the next tick, and not amid this.
      last.until = now;
    }
    this.counts.waited++;
    let at = this.#waiting.length;
    while (at > 0 && this.#waiting[at - 1]!.waiter.rank > rank) at--;
    this.#waiting.splice(at, 0, { waiter, weight, until });
    return true;
  }

  /** It does not want to any more. */
  leave(waiter: MissWaiter): void {
    const at = this.#waiting.findIndex((each) => each.waiter === waiter);
    if (at !== -1) this.#waiting.splice(at, 1);
  }

  /** One that was let through has ended: after `ms`, where `usualMs` is usual; 0: it says nothing. */
  end(weight: number, ms: number, usualMs: number): void {
    this.active = Math.max(0, this.active - weight);
    if (usualMs > 0) this.#learn(ms / usualMs);
    while (this.#waiting.length > 0 && this.active < this.limit) {
      const next = this.#waiting.shift()!;
      this.#let(next.weight);
      next.waiter.onTurn();
    }
  }

  #learn(slowness: number): void {
    this.#samples++;
    this.#slowness += (slowness - this.#slowness) / MEAN_SAMPLES;
    if (this.#samples < this.limit) return;
    const isSlow = this.#slowness > SLOW;
    this.#limit = Math.min(this.#max, isSlow ? Math.max(1, this.#limit * CUT) : this.#limit + GROWTH);
    this.#samples = 0;
  }

  /** Refuses who has waited too long. */
  tick(now: number): void {
    for (let at = this.#waiting.length - 1; at >= 0; at--) {
      const { waiter, until } = this.#waiting[at]!;
      if (now < until) continue;
      this.#waiting.splice(at, 1);
      this.counts.refused++;
      waiter.onRefused();
    }
  }
}
