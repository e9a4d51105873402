/**
 * How far a cache backend is trusted. Pure: time is an argument. Owned by cache/backend.
 *
 *     disarmed ──url──▶ probing ──3 good canaries──▶ ramping 1 5 25 100 % ──▶ armed
 *                          ▲  └─bad─▶ open ◀─lost, wrong──┬──┘ ▲               │ slow, errors, full
 *                          └──backoff──┘                  └── degraded ◀───────┘
 *                                                              └─10 s clean─▶ ramping, or probing if nobody has asked
 *
 * The one idea: a backend earns its traffic, and loses it at once: nothing that it does may cost the database more than its absence
 * would (cache.md §3.1).
 */
export type ArmingState =
  /** There is none, or its configuration cannot work. */
  | 'disarmed'
  /** Canaries only. */
  | 'probing'
  /** A growing share of the keys. */
  | 'ramping'
  | 'armed'
  /** A sample of the reads, and no writes. */
  | 'degraded'
  /** Nothing, until the next probe. */
  | 'open';

export const armingStates: readonly ArmingState[] = ['disarmed', 'probing', 'ramping', 'armed', 'degraded', 'open'];

/** How a command has ended. */
export type Result =
  /** It was answered in time, and as it should be. */
  | 'good'
  | 'bad'
  /** It was not answered in time, but the process was late itself: it counts only if the next ones are no better. */
  | 'unclear';

const CANARIES = 3;
const CANARY_MS = 350;
const STEPS = [0.01, 0.05, 0.25, 1];
const STEP_MS = 3_000;
const WINDOW_MS = 10_000;
/** What is judged by its share: of so many, and over so long, lest one pause be all there is. */
const SAMPLES_MIN = 20;
const SAMPLE_MS = 1_000;
const ERRORS = 0.05;
const ERRORS_CLEAN = 0.01;
const DEGRADED_SHARE = 0.05;
const CLEAN_MS = 10_000;
const FAILURES_IN_ROW = 5;
const WRONG_MAX = 2;
const BACKOFF_MS = 250;
/** So that half a minute after its return it is armed and filled: this, three canaries, four steps. */
const BACKOFF_MAX_MS = 5_000;
const LATENCIES = 256;
const FULL_MS = 100;
const IN_ROW = `${FAILURES_IN_ROW} commands in a row have failed`;
const BY_AND_BY = 'it is being given its share by and by';

export class Arming {
  state: ArmingState = 'disarmed';
  /** Why it is not armed; ''. */
  why = '';
  /** Times that it was opened. */
  opened = 0;
  readonly #budgetMs: number;
  readonly #random: () => number;
  readonly #pace: number;
  #step = 0;
  #changedAt = 0;
  #canaries = 0;
  #firstCanaryAt = 0;
  #attempts = 0;
  #probeAt = 0;
  #windowAt = 0;
  #results = 0;
  #errors = 0;
  #inRow = 0;
  #failedAt = 0;
  #wrong: number[] = [];
  #fullSince = 0;
  readonly #latencies = new Float64Array(LATENCIES);
  #latencyCount = 0;

  /** `pace`: how many times faster than in earnest it is trusted again; 1 but for tests. */
  constructor(budgetMs: number, { random = Math.random, pace = 1 } = {}) {
    this.#budgetMs = budgetMs;
    this.#pace = pace;
    this.#random = random;
  }

  begin(now: number): void {
    this.#become('probing', now, 'it has not been probed yet');
  }

  /** May the key whose hash is `hash`, from 0 to 1, be read there? */
  mayRead(hash: number): boolean {
    switch (this.state) {
      case 'armed':
        return true;
      case 'ramping':
        return hash < STEPS[this.#step]!;
      case 'degraded':
        return hash < DEGRADED_SHARE;
      default:
        return false;
    }
  }

  /** While it is ramping what may be read in the next step is written in this one: then it is there. */
  mayWrite(hash: number): boolean {
    return this.state === 'armed' || (this.state === 'ramping' && hash < (STEPS[this.#step + 1] ?? 1));
  }

  /** Writes of tables are told to it. */
  get isTold(): boolean {
    return this.state === 'armed' || this.state === 'ramping' || this.state === 'degraded';
  }

  /** A canary is due. */
  wantsProbe(now: number): boolean {
    return (this.state === 'probing' || this.state === 'open') && now >= this.#probeAt;
  }

  /** A canary has come back after `ms`, or not: `why`. */
  onCanary(why: string, ms: number, now: number): void {
    if (why !== '') return this.#open(why, now);
    if (this.state === 'open') this.#become('probing', now, this.why);
    if (ms > this.#budgetMs) {
      this.#canaries = 0;
      this.why = `a canary took ${ms.toFixed(1)} ms, more than its budget`;
      this.#probeAt = now + CANARY_MS / this.#pace;
      return;
    }
    if (this.#canaries === 0) this.#firstCanaryAt = now;
    this.#canaries++;
    this.#probeAt = now + CANARY_MS / this.#pace;
    if (this.#canaries >= CANARIES && now - this.#firstCanaryAt >= (CANARY_MS * (CANARIES - 1)) / this.#pace)
      this.#ramp(now);
  }

  /** A command of ours took `ms`. Failures of commands that were under way together are one in a row: a moment's pause strikes them all. */
  onResult(result: Result, ms: number, now: number): void {
    this.#results++;
    if (result === 'good') {
      this.#latencies[this.#latencyCount++ % LATENCIES] = ms;
      this.#inRow = 0;
      return;
    }
    if (result === 'bad') this.#errors++;
    if (this.#inRow > 0 && now - ms < this.#failedAt) return;
    this.#failedAt = now;
    this.#inRow++;
    if (this.#inRow < FAILURES_IN_ROW) return;
    if (this.state === 'degraded') this.#open(IN_ROW, now);
    else if (this.state === 'armed' || this.state === 'ramping') this.#degrade(IN_ROW, now);
  }

  /** An answer that is damaged, or another's. */
  onWrong(why: string, now: number): void {
    this.#wrong = [...this.#wrong.filter((at) => now - at < WINDOW_MS), now];
    if (this.#wrong.length >= WRONG_MAX && this.isTold) this.#open(`its answers are wrong (${why})`, now);
  }

  /** The connection is gone, or it says that it cannot: LOADING, READONLY, NOAUTH. */
  onLost(why: string, now: number): void {
    if (this.state !== 'disarmed' && this.state !== 'open') this.#open(why, now);
  }

  /** As many commands are under way as may be, or no longer. */
  onFull(isFull: boolean, now: number): void {
    if (!isFull) this.#fullSince = 0;
    else if (this.#fullSince === 0) this.#fullSince = now;
  }

  tick(now: number): void {
    if (this.#fullSince > 0 && now - this.#fullSince > FULL_MS && this.isTold && this.state !== 'degraded')
      this.#degrade('too many commands are under way', now);
    const isEnough = this.#results >= SAMPLES_MIN && now - this.#windowAt >= SAMPLE_MS;
    const errors = this.#results === 0 ? 0 : this.#errors / this.#results;
    switch (this.state) {
      case 'armed':
        if (isEnough && errors >= ERRORS) this.#degrade(`${Math.round(100 * errors)} % of its answers fail`, now);
        else if (isEnough && this.#p95 > this.#budgetMs) this.#degrade('it takes longer than its budget', now);
        else if (now - this.#windowAt >= WINDOW_MS) this.#newWindow(now);
        break;
      case 'ramping':
        if (isEnough && errors >= ERRORS) this.#degrade(`${Math.round(100 * errors)} % of its answers fail`, now);
        else if (now - this.#changedAt >= STEP_MS / this.#pace) this.#grow(now, isEnough, errors);
        break;
      case 'degraded':
        if (now - this.#windowAt < CLEAN_MS / this.#pace) break;
        // Without any traffic nothing is known: a canary finds out.
        if (this.#results === 0) this.#become('probing', now, this.why);
        else if (errors < ERRORS_CLEAN) this.#ramp(now);
        else this.#newWindow(now);
        break;
      default:
    }
  }

  /** Slower than half of its budget, or with a failure in a hundred, its share stays as it is. */
  #grow(now: number, isEnough: boolean, errors: number): void {
    const slowness = isEnough ? this.#p95 / this.#budgetMs : 0;
    if (slowness > 1) return this.#degrade('it takes longer than its budget', now);
    const isSlow = slowness > 0.5;
    if (isSlow || (isEnough && errors >= ERRORS_CLEAN)) {
      this.why = `${isSlow ? 'it takes longer than half of its budget' : 'some of its answers fail'}: its share does not grow`;
      this.#changedAt = now;
      return this.#newWindow(now);
    }
    if (this.#step === STEPS.length - 1) return this.#become('armed', now, '');
    this.#step++;
    this.why = BY_AND_BY;
    this.#changedAt = now;
    this.#newWindow(now);
  }

  #ramp(now: number): void {
    this.#step = 0;
    this.#attempts = 0;
    this.#become('ramping', now, BY_AND_BY);
  }

  #degrade(why: string, now: number): void {
    this.#become('degraded', now, why);
  }

  #open(why: string, now: number): void {
    if (this.state !== 'open' && this.state !== 'probing') this.opened++;
    const ms = Math.min(BACKOFF_MAX_MS, BACKOFF_MS * 2 ** Math.min(this.#attempts++, 10));
    this.#become('open', now, why);
    this.#probeAt = now + (ms * this.#random()) / this.#pace;
  }

  #become(state: ArmingState, now: number, why: string): void {
    this.state = state;
    this.why = why;
    this.#changedAt = now;
    this.#canaries = 0;
    this.#inRow = 0;
    this.#fullSince = 0;
    this.#newWindow(now);
  }

  #newWindow(now: number): void {
    this.#windowAt = now;
    this.#results = 0;
    this.#errors = 0;
    this.#latencyCount = 0;
  }

  get #p95(): number {
    const count = Math.min(this.#latencyCount, LATENCIES);
    if (count === 0) return 0;
    return Float64Array.from(this.#latencies.subarray(0, count)).sort()[Math.floor(count * 0.95)]!;
  }
}
