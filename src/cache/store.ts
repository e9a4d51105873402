/**
 * Answers in memory, bounded in bytes. Owned by cache/cache; one for the whole process.
 *
 * The one idea: lru-cache keeps the order and the bound; in front of it a sketch of what is asked for decides whether a new answer is worth
 * more than the one that would go for it, so that a scan of a thousand keys does not drive out the ten that everybody wants.
 *
 * Entries that nobody may be given any more are found by `sweep`, a few at a time: nothing is timed.
 */
import { LRUCache } from 'lru-cache';
import { type Entry, sizeOf } from './entry.ts';
import { Sketch } from './sketch.ts';

/** Below this share of its memory there is room for everything. */
const ROOMY = 0.8;
/** Bytes of memory for each counter of the sketch: several for each entry, or what is asked for once drowns what is asked for often. */
const COUNTER_BYTES = 128;
/** All are looked at within so many sweeps; at least so many at a time. */
const SWEEPS = 100;
const SWEEP_MIN = 100;

export class Store {
  readonly counts = { stored: 0, rejected: 0, evicted: 0, expired: 0 };
  readonly #entries: LRUCache<string, Entry>;
  readonly #sketch: Sketch;
  /** Keys that have not been looked at in this round. */
  #unswept: string[] = [];

  /** Bytes. */
  readonly memoryMax: number;

  constructor(memoryMax: number) {
    this.memoryMax = memoryMax;
    this.#sketch = new Sketch(memoryMax / COUNTER_BYTES);
    this.#entries = new LRUCache({
      maxSize: Math.max(1, memoryMax),
      sizeCalculation: (entry) => sizeOf(entry),
      dispose: (_, __, reason) => {
        if (reason === 'evict') this.counts.evicted++;
      },
    });
  }

  get bytes(): number {
    return this.#entries.calculatedSize;
  }

  get size(): number {
    return this.#entries.size;
  }

  get(key: string): Entry | undefined {
    this.#sketch.count(key);
    return this.#entries.get(key);
  }

  /** As `get`, without counting it as wanted. */
  peek(key: string): Entry | undefined {
    return this.#entries.peek(key);
  }

  /** False: it is not worth the place of what would have to go. */
  set(entry: Entry): boolean {
    const entries = this.#entries;
    const isNew = !entries.has(entry.key);
    if (isNew && entries.calculatedSize + sizeOf(entry) > this.memoryMax * ROOMY) {
      const victim = entries.rkeys().next();
      if (
        !victim.done &&
        entries.calculatedSize + sizeOf(entry) > this.memoryMax &&
        this.#sketch.estimate(entry.key) <= this.#sketch.estimate(victim.value)
      ) {
        this.counts.rejected++;
        return false;
      }
    }
    this.counts.stored++;
    entries.set(entry.key, entry);
    return true;
  }

  delete(key: string): void {
    this.#entries.delete(key);
  }

  clear(): void {
    this.#entries.clear();
  }

  /** Looks at some entries and drops those of which nobody may be given any more. */
  sweep(now: number): void {
    if (this.#unswept.length === 0) this.#unswept = [...this.#entries.keys()];
    const count = Math.max(SWEEP_MIN, Math.ceil(this.#entries.size / SWEEPS));
    for (const key of this.#unswept.splice(-count)) {
      const entry = this.#entries.peek(key);
      if (entry === undefined || Math.max(entry.staleUntil, entry.errorUntil) > now) continue;
      this.#entries.delete(key);
      this.counts.expired++;
    }
  }
}
