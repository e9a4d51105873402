/**
 * While no primary can be reached: what waits for a server is kept, for a while, and then let go little by little. One for each
 * set of hosts (server/cluster), asked by its pools.
 *
 *     open ──fail──▶ holding ──hold.for──▶ refusing
 *      ▲                │                     │
 *      └──── all ── releasing ◀───reach───────┘
 *
 * The one idea: a short outage is nobody's business but ours, a long one is everybody's. What never left the proxy can wait
 * without harm; but not for ever, and what comes back all at once would drown a database that has just started: one server
 * at work, then two, then four, as long as nothing goes wrong (the buffer of Vitess: drain concurrency).
 *
 * Invariants: pure, time is an argument; a hold is over `for` after the start of its outage, whatever happens; no other begins
 * within twice that after the end of it.
 */

export type HoldState =
  /** Nothing is held. */
  | 'open'
  /** Requests wait. */
  | 'holding'
  /** For too long: they are refused. */
  | 'refusing'
  /** The primary is back: `allowance` servers may be at work. */
  | 'releasing';

export const holdStates: readonly HoldState[] = ['open', 'holding', 'refusing', 'releasing'];

export interface HoldConfig {
  /** ms; 0: nothing is held. */
  for: number;
  /** Most requests, and their bytes. */
  requestsMax: number;
  bytesMax: number;
}

export interface HoldCounts {
  outages: number;
  /** ms in which there was no primary. */
  outageMs: number;
  /** Requests that were held and then ran, and those that were refused because of an outage. */
  released: number;
  refused: number;
}

const STEP_MS = 200;
/** No second hold before so many times `for` have passed. */
const PAUSE = 2;

export class Hold {
  config: HoldConfig;
  state: HoldState = 'open';
  /** Servers that may be at work. */
  allowance = Number.POSITIVE_INFINITY;
  /** What cannot be reached, and why; '' when nothing is wrong. */
  why = '';
  readonly counts: HoldCounts = { outages: 0, outageMs: 0, released: 0, refused: 0 };
  /** Start of the outage, since when there is no primary, end of the last hold, last step of the release; monotonic ms. */
  #since = 0;
  #closedAt = 0;
  #endedAt = Number.NEGATIVE_INFINITY;
  #steppedAt = 0;
  /** It is not an outage, but the beginning: nobody knows yet who the primary is. */
  #isBeginning = false;

  constructor(config: HoldConfig) {
    this.config = config;
  }

  /** Requests wait, or are refused. */
  get isClosed(): boolean {
    return this.state === 'holding' || this.state === 'refusing';
  }

  /** Nobody knows yet who the primary is. */
  get isBeginning(): boolean {
    return this.isClosed && this.#isBeginning;
  }

  /** Who the primary is has to be found out first. */
  begin(now: number): void {
    this.state = 'holding';
    this.allowance = 0;
    this.why = 'it is being found out which host is the primary';
    this.#since = now;
    this.#closedAt = now;
    this.#isBeginning = true;
  }

  /** The primary cannot be reached. True: that is news. */
  fail(now: number, why: string): boolean {
    this.why = why;
    if (this.isClosed) return false;
    if (this.state === 'open') {
      this.counts.outages++;
      this.#since = now;
    }
    // Who fails again before all is released has not recovered: it is the same outage.
    const isSame = this.state === 'releasing';
    this.#closedAt = now;
    const mayHold = isSame ? now - this.#since < this.config.for : now - this.#endedAt >= PAUSE * this.config.for;
    this.state = this.config.for > 0 && mayHold ? 'holding' : 'refusing';
    this.allowance = 0;
    return true;
  }

  /** The primary can be reached. True: that is news. */
  reach(now: number): boolean {
    if (!this.isClosed) return false;
    if (this.state === 'holding' && !this.#isBeginning) this.#endedAt = now;
    if (!this.#isBeginning) this.counts.outageMs += now - this.#closedAt;
    this.#isBeginning = false;
    this.state = 'releasing';
    this.why = '';
    this.allowance = 1;
    this.#steppedAt = now;
    return true;
  }

  /** Something went wrong with the primary while it is let go: not so fast. */
  stumble(now: number): void {
    if (this.state !== 'releasing') return;
    this.allowance = 1;
    this.#steppedAt = now;
  }

  /** `most`: servers that may be at work at all; `hasHeld`: somebody who was held still waits. True: something has changed. */
  tick(now: number, most: number, hasHeld: boolean): boolean {
    if (this.state === 'holding' && now - this.#since >= this.config.for) {
      this.state = 'refusing';
      this.#endedAt = now;
      return true;
    }
    if (this.state !== 'releasing' || now - this.#steppedAt < STEP_MS) return false;
    this.#steppedAt = now;
    this.allowance = Math.min(2 * this.allowance, most);
    if (this.allowance >= most && !hasHeld) {
      this.state = 'open';
      this.allowance = Number.POSITIVE_INFINITY;
    }
    return true;
  }

  /** ms since when there is no primary; 0 when there is one. */
  outageMs(now: number): number {
    return this.isClosed ? now - this.#closedAt : 0;
  }
}
