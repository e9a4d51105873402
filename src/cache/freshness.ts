/**
 * How new an answer is: a version for each table, raised by every write that is known of. Pure. Called by cache/cache for reads, and by
 * whoever hears of writes: sessions, the WAL, the statistics.
 *
 * The one idea: nothing is deleted. An answer remembers the versions that its tables had before it was asked for, and
 * is valid as long as they are the same. A write that ends between asking and answering raises a version that the answer does not have,
 * whatever the order in which the two are heard of (cache.md §2.6).
 *
 * Invariants: versions only grow; `generation` is part of all of them, so raising it ends everything.
 */

export class Table {
  readonly oid: number;
  version = 0;
  /** Commits that have been heard of and may not be visible yet: until they are, what is read may be older than the version says. */
  unsettled = 0;

  constructor(oid: number) {
    this.oid = oid;
  }
}

/** The versions of some tables at some moment. */
export interface Stamp {
  readonly definitions: number;
  readonly generation: number;
  readonly tables: readonly Table[];
  readonly versions: readonly number[];
}

export class Freshness {
  /** Somebody else is to hear of writes as well: a cache that a fleet shares. */
  readonly #onBump: (oids: readonly number[] | 'all') => void;
  readonly #tables = new Map<number, Table>();
  /** Stands for all of them, when it is not known which was written to. */
  readonly any = new Table(0);
  generation = 0;
  /** Counts changes of definitions and rights, and of primaries: what was read before them does not count, whatever its age may be. */
  definitions = 0;
  /** Writes that were heard of, and of which it was not known what they wrote. */
  readonly counts = { writes: 0, unknown: 0 };

  constructor(onBump: (oids: readonly number[] | 'all') => void = () => {}) {
    this.#onBump = onBump;
  }

  table(oid: number): Table {
    let table = this.#tables.get(oid);
    if (table === undefined) {
      table = new Table(oid);
      this.#tables.set(oid, table);
    }
    return table;
  }

  /** These tables were, or may have been, written to. */
  bump(oids: readonly number[] | 'all'): void {
    this.#onBump(oids);
    this.bumpHere(oids);
  }

  /** As `bump`, when whoever shares a cache with us is told by other means. */
  bumpHere(oids: readonly number[] | 'all'): void {
    if (oids === 'all') {
      this.counts.unknown++;
      this.generation++;
      return;
    }
    this.counts.writes++;
    for (const oid of oids) {
      const table = this.#tables.get(oid);
      if (table !== undefined) table.version++;
    }
  }

  /** Definitions or rights have changed, or the database is another one. */
  redefine(): void {
    this.redefineHere();
    this.#onBump('all');
  }

  /** As `redefine`, when what whoever shares a cache with us has kept is known to be of the same definitions. */
  redefineHere(): void {
    this.definitions++;
    this.generation++;
  }

  stamp(tables: readonly Table[]): Stamp {
    return {
      definitions: this.definitions,
      generation: this.generation,
      tables,
      versions: tables.map((table) => table.version),
    };
  }

  /** Has nothing been written to since? */
  isCurrent({ generation, tables, versions }: Stamp): boolean {
    if (generation !== this.generation) return false; // It grows with the definitions.
    for (let at = 0; at < tables.length; at++) if (tables[at]!.version !== versions[at]) return false;
    return true;
  }

  /** May what was read with this stamp be kept? */
  mayKeep(stamp: Stamp): boolean {
    return this.any.unsettled === 0 && this.isCurrent(stamp) && stamp.tables.every((table) => table.unsettled === 0);
  }
}
