/**
 * What one session has written and nobody else may have heard of yet. Owned by client/cached.
 *
 * The one idea: the tables of a write are known before it is sent, and their versions are raised with every answer that reaches its client until
 * the transaction has ended: whenever the client learns that something has happened, the cache knows before it does
 * (cache.md §2.6). Once too often costs a miss.
 */
import type { Space } from '../cache/backend.ts';
import type { Cache } from '../cache/cache.ts';
import type { Identity } from '../cache/key.ts';
import { writtenBy } from '../cache/writes.ts';
import type { Verdict } from '../sql/verdict.ts';

export class Written {
  readonly #cache: Cache;
  #tables: Set<number> | 'all' | null = null;
  #isDefining = false;
  readonly #announced: number[] = [];
  /** Where they were announced: a reload may have put another cache in its place since. */
  #space: Space | null = null;

  constructor(cache: Cache) {
    this.#cache = cache;
  }

  get isPending(): boolean {
    return this.#tables !== null || this.#isDefining;
  }

  /** A statement with this verdict is sent. */
  add(verdict: Verdict, identity: Identity): void {
    const written = writtenBy(verdict, identity, this.#cache.relations);
    if (written === 'nothing') return;
    if (written === 'definitions') this.#isDefining = true;
    else if (written === 'all' || this.#tables === 'all') this.#tables = 'all';
    else {
      const tables = this.#tables ?? new Set();
      this.#tables = tables;
      const isNew = written.filter((oid) => !tables.has(oid));
      for (const oid of isNew) tables.add(oid);
      if (isNew.length > 0) this.#announce(isNew);
    }
  }

  /** It may have written anything. */
  addAll(): void {
    this.#tables = 'all';
  }

  /** Others share a cache with us: what they read of these tables from here on may be either. */
  #announce(oids: readonly number[]): void {
    // Who comes later has not heard of what was announced, and must not be told that it is over.
    this.#space ??= this.#cache.space;
    this.#space?.announce(oids);
    this.#announced.push(...oids);
  }

  /** Its client is about to be told something. */
  bump(): void {
    const { freshness } = this.#cache;
    if (this.#isDefining) this.#cache.redefine();
    // Others know that it is under way; of what is not known they hear at its end.
    if (this.#tables !== null) freshness.bumpHere(this.#tables === 'all' ? 'all' : [...this.#tables]);
  }

  /** Its transaction has ended, in whatever way, or its server is gone. */
  end(): void {
    if (!this.isPending) return;
    this.bump();
    if (this.#tables === 'all') this.#cache.space?.invalidate('all');
    this.#tables = null;
    this.#isDefining = false;
    const announced = this.#announced.splice(0);
    const { space } = this.#cache;
    if (announced.length > 0 && this.#space === space) space?.settle(announced);
    else if (announced.length > 0) space?.invalidate(announced);
    this.#space = null;
  }
}
