/**
 * Asks sources when it is time, and hands on what they say. Made by credits/book, ticked by app.
 *
 * The one idea: a source that hangs, lies or dies costs its own samples and nothing else: each has a circuit breaker
 * (opossum) with a time limit, and is never asked twice at a time.
 */
import CircuitBreaker from 'opossum';
import { messageOf } from '../util/errors.ts';
import type { Reading, Source } from './sources/source.ts';

export interface PollCounts {
  reads: number;
  failures: number;
  /** What went wrong last; '' when the last read was right. */
  problem: string;
  isOpen: boolean;
}

interface Entry {
  name: string;
  breaker: CircuitBreaker<[], Reading[]>;
  everyMs: number;
  dueAt: number;
  isRunning: boolean;
  /** The newest that was handed on, wall-clock ms. */
  newest: number;
  onReading: (reading: Reading) => void;
  counts: PollCounts;
}

const TIMEOUT_MS = 10_000;
/** Clocks may differ by so much. */
const FUTURE_MS = 5_000;
/** After so many failures in a row, more or less, a source is left alone for a while. */
const BREAKER = {
  timeout: TIMEOUT_MS,
  errorThresholdPercentage: 50,
  volumeThreshold: 3,
  rollingCountTimeout: 120_000,
  rollingCountBuckets: 6,
  resetTimeout: 30_000,
  rollingPercentilesEnabled: false,
  enableSnapshots: false,
} as const;

export class Poller {
  readonly #entries: Entry[] = [];
  readonly #wall: () => number;
  readonly #onProblem: (name: string, problem: string) => void;

  /** `wall`: ms since the Unix epoch. */
  constructor(wall: () => number, onProblem: (name: string, problem: string) => void) {
    this.#wall = wall;
    this.#onProblem = onProblem;
  }

  /** Asks `source` every `everyMs`; readings that are newer than what was handed on go to `onReading`, oldest first. */
  add(name: string, source: Source, everyMs: number, onReading: (reading: Reading) => void): void {
    const breaker = new CircuitBreaker(() => source.read(AbortSignal.timeout(TIMEOUT_MS)), { ...BREAKER, name });
    const counts = { reads: 0, failures: 0, problem: '', isOpen: false };
    this.#entries.push({
      name,
      breaker,
      everyMs,
      dueAt: Number.NEGATIVE_INFINITY,
      isRunning: false,
      newest: Number.NEGATIVE_INFINITY,
      onReading,
      counts,
    });
  }

  tick(now: number): void {
    for (const entry of this.#entries) {
      if (entry.isRunning || now < entry.dueAt) continue;
      entry.dueAt = now + entry.everyMs;
      entry.isRunning = true;
      void this.#ask(entry);
    }
  }

  async #ask(entry: Entry): Promise<void> {
    const { counts, breaker } = entry;
    counts.reads++;
    // The clock was set back: what was handed on is of a time that has not been.
    if (entry.newest > this.#wall() + FUTURE_MS) entry.newest = Number.NEGATIVE_INFINITY;
    try {
      for (const reading of await breaker.fire()) {
        if (reading.observedAt > this.#wall() + FUTURE_MS)
          throw new Error('it speaks of the future: is its clock right?');
        if (reading.observedAt <= entry.newest) continue;
        entry.newest = reading.observedAt;
        entry.onReading(reading);
      }
      counts.problem = '';
    } catch (thrown) {
      counts.failures++;
      const problem = messageOf(thrown);
      if (problem !== counts.problem) this.#onProblem(entry.name, problem);
      counts.problem = problem;
    }
    counts.isOpen = breaker.opened;
    entry.isRunning = false;
  }

  /** By the names of the sources. */
  get counts(): ReadonlyMap<string, PollCounts> {
    return new Map(this.#entries.map(({ name, counts }) => [name, counts]));
  }

  close(): void {
    for (const { breaker } of this.#entries) breaker.shutdown();
  }
}
