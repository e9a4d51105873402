/**
 * What one pool tells of the health of the host that its servers are on. Owned by server/pool.
 *
 *     counters of the pool ──tell──▶ breaker (guard/health)      silent servers ──watch──▶ silence (server/silence)
 *
 * The one idea: the data path only counts; several times a second the difference to what was told before goes to those who
 * judge the host by all of its pools.
 */

import type { TrafficCounts } from './connection.ts';
import type { Host } from './hosts.ts';
import type { SilentServer } from './silence.ts';

/** Keeps a host that cannot answer from being asked (guard/health). */
export interface Breaker {
  readonly isClosed: boolean;
  readonly why: string;
  passes(): boolean;
  count(requests: number, failures: number, now: number): void;
}

export interface VitalsOptions {
  host: Host;
  /** Of the pool. */
  counts: TrafficCounts;
  /** By the address of a host. */
  breakerOf: (address: string) => Breaker;
  /** Is anybody there? Rejects if not. */
  look: () => Promise<void>;
}

export class Vitals {
  /** Asked for every request. */
  breaker: Breaker;
  #host: Host;
  readonly #options: VitalsOptions;
  /** What the host's judges have been told of. */
  #told = { transactions: 0, failures: 0, received: 0 };

  constructor(options: VitalsOptions) {
    this.#options = options;
    this.#host = options.host;
    this.breaker = options.breakerOf(options.host.address);
  }

  /** What its host has answered since the last time. */
  tell(now: number): void {
    const { transactions, failures, received } = this.#options.counts;
    this.breaker.count(transactions - this.#told.transactions, failures - this.#told.failures, now);
    if (received !== this.#told.received) this.#host.silence.heard(now);
    this.#told = { transactions, failures, received };
  }

  /** `server` may owe something; called again and again. */
  watch(server: SilentServer, now: number): void {
    this.#host.silence.watch(server, now, this.#options.look);
  }

  /** What is counted from here on says something of another host. */
  move(host: Host, now: number): void {
    this.tell(now);
    this.#host = host;
    this.breaker = this.#options.breakerOf(host.address);
  }
}
