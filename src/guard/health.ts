/**
 * The circuit breaker for what a host answers: one for each host, fed by its pools, asked by them before a transaction begins.
 *
 *     closed ──too many failures──▶ open ──openFor──▶ half-open ──the share has grown to all──▶ closed
 *                                    ▲                    │
 *                                    └──failures again────┘
 *
 * The one idea: a database that answers most requests with "I cannot" is not helped by more of them; who asks gets a refusal at
 * once instead. Only what speaks of the database's own health counts, never what a client did wrong (protocol/sqlstate), and
 * nothing counts while there is no primary: that is what a hold is for. It comes back by a growing share of the traffic.
 *
 * Invariants: pure, time is an argument; asking and feeding cost the same whatever the window holds; with fewer than `requestsMin`
 * requests in the window nothing opens it.
 */

export type HealthState = 'closed' | 'open' | 'half-open';

export interface HealthConfig {
  /** ms that are looked back. */
  window: number;
  /** Share of requests that failed, from 0 to 1, that opens it. */
  failures: number;
  requestsMin: number;
  /** ms. */
  openFor: number;
}

const BUCKETS = 10;
/** Half-open: what passes at first, by how much it grows, and how often. */
const SHARE_FIRST = 0.05;
const SHARE_GROWTH = 2;
const STEP_MS = 1_000;

export class Health {
  config: HealthConfig;
  state: HealthState = 'closed';
  /** What passes, from 0 to 1. */
  share = 1;
  /** Times that it has opened. */
  opened = 0;
  /** In the window. */
  requests = 0;
  failures = 0;
  readonly #requests = new Float64Array(BUCKETS);
  readonly #failures = new Float64Array(BUCKETS);
  #bucket = 0;
  /** The window's last bucket, counted from the beginning of time. */
  #turned = Number.NEGATIVE_INFINITY;
  /** Monotonic ms of the last change of state, or of the share. */
  #changedAt = 0;
  /** What has passed, in fractions: who brings it to a whole one may go. */
  #passed = 0;
  /** Something has failed since the last `tick`. */
  #hasNews = false;
  /** Of the present step while it is half-open. */
  #stepRequests = 0;
  #stepFailures = 0;

  constructor(config: HealthConfig) {
    this.config = config;
  }

  get isClosed(): boolean {
    return this.state === 'closed';
  }

  /** May one more transaction begin? */
  passes(): boolean {
    if (this.share === 1) return true;
    this.#passed += this.share;
    if (this.#passed < 1) return false;
    this.#passed -= 1;
    return true;
  }

  /** Why it does not pass; '' when it is closed. */
  get why(): string {
    if (this.isClosed) return '';
    return `${Math.round(100 * this.config.failures)} % or more of its answers said that it cannot (53, 57P0, 08, timeouts), so the breaker is ${this.state}`;
  }

  /** So many requests were answered since the last call, and so many of them failed, or were lost. */
  count(requests: number, failures: number, now: number): void {
    this.#turn(now);
    const all = Math.max(requests, failures);
    if (failures > 0) this.#hasNews = true;
    this.#stepRequests += all;
    this.#stepFailures += failures;
    this.#requests[this.#bucket]! += all;
    this.#failures[this.#bucket]! += failures;
    this.requests += all;
    this.failures += failures;
  }

  /** Moves on. True: the state has changed. */
  tick(now: number): boolean {
    this.#turn(now);
    const hasNews = this.#hasNews;
    this.#hasNews = false;
    switch (this.state) {
      case 'closed': {
        const { requestsMin, failures } = this.config;
        // It opens because something fails, and not because it is long ago that anything did not.
        if (!hasNews) return false;
        if (this.requests < requestsMin || this.failures < failures * this.requests) return false;
        return this.#open(now);
      }
      case 'open':
        if (now - this.#changedAt < this.config.openFor) return false;
        this.state = 'half-open';
        this.#step(now, SHARE_FIRST);
        this.#passed = 1; // The first may go.
        return true;
      case 'half-open': {
        const isBad = this.#stepFailures > 0 && this.#stepFailures >= this.config.failures * this.#stepRequests;
        if (isBad) return this.#open(now);
        // Nobody has found out anything yet.
        if (now - this.#changedAt < STEP_MS || this.#stepRequests === 0) return false;
        const share = SHARE_GROWTH * this.share;
        if (share < 1) {
          this.#step(now, share);
          return false;
        }
        this.reset();
        return true;
      }
      default:
        return this.state satisfies never;
    }
  }

  #open(now: number): true {
    this.reset();
    this.state = 'open';
    this.opened++;
    this.#step(now, 0);
    return true;
  }

  #step(now: number, share: number): void {
    this.share = share;
    this.#changedAt = now;
    this.#stepRequests = 0;
    this.#stepFailures = 0;
  }

  /** Goes to the bucket of `now`, and forgets what is older than the window. */
  #turn(now: number): void {
    const bucketMs = this.config.window / BUCKETS;
    const at = Math.floor(now / bucketMs);
    if (this.#turned === at) return;
    for (let gone = Math.min(BUCKETS, at - this.#turned); gone > 0; gone--) {
      const index = (((at - gone + 1) % BUCKETS) + BUCKETS) % BUCKETS;
      this.requests -= this.#requests[index]!;
      this.failures -= this.#failures[index]!;
      this.#requests[index] = 0;
      this.#failures[index] = 0;
    }
    this.#turned = at;
    this.#bucket = ((at % BUCKETS) + BUCKETS) % BUCKETS;
  }

  /** Closed, and nothing is known. */
  reset(): void {
    this.state = 'closed';
    this.share = 1;
    this.requests = 0;
    this.failures = 0;
    this.#requests.fill(0);
    this.#failures.fill(0);
    this.#stepRequests = 0;
    this.#stepFailures = 0;
  }
}
