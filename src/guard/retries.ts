/**
 * What is asked again after a refusal, of one class at one gate. Asked by guard/gate when a request cannot be admitted at
 * once; while nobody has to wait, nothing here is looked at.
 *
 * The one idea: under overload retries are what keeps it going (Bronson and others, "Metastable Failures in Distributed
 * Systems", HotOS 2021). So each application may retry a tenth of what it asks; more than that queues behind everybody's first
 * attempts. And of an application that is refused most of the time, most is refused at once instead of after a wait:
 *
 *     p = max(0, (requests − K · admitted) / (requests + 1)), K = 2      (Site Reliability Engineering, "Handling Overload")
 *
 * over the last seconds. Both end by themselves: who is admitted at once is asked nothing.
 *
 * Invariants: bounded memory; a request is a retry only if the same bytes were refused to the same application before.
 */
import { LRUCache } from 'lru-cache';

/** K: an application may ask for so many times what it gets before it is refused at once. */
const ASKED_PER_ADMITTED = 2;
/** For how long admissions and refusals count, in ms: their weight falls to 1/e in it. */
const MEMORY_MS = 10_000;
/** How long a refused request is remembered. */
const RETRY_MS = 30_000;
/** The most retries that an application can save up. */
const BUDGET_MAX = 10;
const APPLICATIONS_MAX = 1_000;
const REFUSALS_MAX = 4_000;

/** One request that could not be admitted at once. */
export interface Attempt {
  readonly fingerprint: number;
  /** It was refused before. */
  readonly isRetry: boolean;
  /** It goes behind first attempts. */
  readonly isSurplus: boolean;
}

interface Tally {
  requests: number;
  admitted: number;
  at: number;
  /** Of refusals at once: one is due when it reaches 1. */
  due: number;
  /** Retries that are still allowed. */
  budget: number;
}

export class Retries {
  readonly #tallies = new LRUCache<string, Tally>({ max: APPLICATIONS_MAX });
  /** When what was refused last, by fingerprint. */
  readonly #refusals = new LRUCache<number, number>({ max: REFUSALS_MAX });

  /** A request of `application` cannot be admitted at once. `ratio`: retries allowed for each first attempt. */
  arrive(application: string, fingerprint: number, now: number, ratio: number): Attempt {
    const tally = this.#tallyOf(application, now);
    const refusedAt = this.#refusals.get(fingerprint);
    if (refusedAt === undefined || now - refusedAt > RETRY_MS) {
      tally.budget = Math.min(BUDGET_MAX, tally.budget + ratio);
      return { fingerprint, isRetry: false, isSurplus: false };
    }
    const isSurplus = tally.budget < 1;
    if (!isSurplus) tally.budget--;
    return { fingerprint, isRetry: true, isSurplus };
  }

  /** Is the next request of `application` to be refused at once? Of a share p, evenly. */
  isThrottled(application: string, now: number): boolean {
    const tally = this.#tallyOf(application, now);
    tally.due += Math.max(0, (tally.requests - ASKED_PER_ADMITTED * tally.admitted) / (tally.requests + 1));
    if (tally.due < 1) return false;
    tally.due--;
    return true;
  }

  admitted(application: string, now: number): void {
    if (this.#tallies.size === 0) return;
    const tally = this.#tallies.get(application);
    if (tally === undefined) return;
    this.#age(tally, now);
    tally.requests++;
    tally.admitted++;
  }

  /** It is refused; it will know at `answeredAt`. */
  refused(application: string, { fingerprint }: Attempt, answeredAt: number): void {
    this.#tallyOf(application, answeredAt).requests++;
    this.#refusals.set(fingerprint, answeredAt);
  }

  #tallyOf(application: string, now: number): Tally {
    let tally = this.#tallies.get(application);
    if (tally === undefined) {
      tally = { requests: 0, admitted: 0, at: now, due: 0, budget: 1 };
      this.#tallies.set(application, tally);
    }
    this.#age(tally, now);
    return tally;
  }

  #age(tally: Tally, now: number): void {
    if (now <= tally.at) return;
    const share = Math.exp((tally.at - now) / MEMORY_MS);
    tally.requests *= share;
    tally.admitted *= share;
    tally.at = now;
  }
}
