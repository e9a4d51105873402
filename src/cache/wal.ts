/**
 * Hears of writes that do not come through this proxy, and says how far what it has heard is to be trusted. One for each database that has a rule with
 * consistency `wal`; made by cache/caches.
 *
 *     wal          the stream of changes: within some ms, and never missing one
 *     statistics   counts of changed rows, asked for every second: within 12 s, for who cannot have the stream
 *     none         neither: what has consistency wal is not answered from the cache
 *
 * The one idea: a commit is heard of before others can see it (the record is decoded once it is flushed; it is visible when the standbys have
 * confirmed it). So a table that is heard of is unsettled, and nothing that is read of it is kept, until a snapshot shows the transaction
 * (cache.md §2.7).
 *
 * Invariant: a gap in what is heard invalidates everything.
 */
import type { Relations } from '../sql/relations.ts';
import type { Clock } from '../util/clock.ts';
import { messageOf } from '../util/errors.ts';
import type { Freshness, Table } from './freshness.ts';
import type { Control } from './schema.ts';

export type Tier = 'none' | 'statistics' | 'wal';

/** A commit or a position in the stream (server/changes). */
export type Heard =
  | { kind: 'started' }
  | { kind: 'commit'; xid: number; tables: readonly (readonly [string, string])[] | 'all' }
  | { kind: 'position'; lsn: bigint }
  | { kind: 'ended'; problem: string; sqlstate: string };

export interface ChangeStream {
  ping(): void;
  close(): void;
}

export interface WalOptions {
  open: () => Promise<Control>;
  openChanges: (hear: (heard: Heard) => void) => Promise<ChangeStream>;
  freshness: Freshness;
  relations: () => Relations | null;
  clock: Clock;
  onEvent: (event: string, fields: Record<string, unknown>) => void;
}

/** How often the position of the stream is compared with that of the database, in the time that the lag may be. */
const LOOKS_IN_LAG = 4;
const LOOK_MIN_MS = 20;
/** A look that fails is repeated after so long. */
const RETRY_MS = 1_000;
/** The stream is asked for again when it could not be had. */
const STREAM_RETRY_MS = 30_000;
const STATISTICS_MS = 1_000;
/** A look at the statistics that is older says nothing. */
const STATISTICS_AGE_MS = 3_000;
/** Between two looks whether commits are visible. */
const SETTLE_MS = 1;

/** What the stream cannot be had for: wal_level, rights, slots. */
const refusedStates = new Set(['55000', '42501', '53400', '42704', '28000', '0A000']);

const COUNTS = `
  SELECT s.relid, s.n_tup_ins + s.n_tup_upd + s.n_tup_del, c.relfilenode
  FROM pg_catalog.pg_stat_user_tables s JOIN pg_catalog.pg_class c ON c.oid = s.relid`;

export class Wal {
  tier: Tier = 'none';
  /** Why it is not what it could be; '': it is. */
  problem = '';
  readonly counts = { commits: 0, gaps: 0 };
  lagMax: number;
  readonly #options: WalOptions;
  #stream: ChangeStream | null = null;
  #control: Control | null = null;
  #position = 0n;
  /** Monotonic ms of the last moment of which everything has been heard. */
  #heardUntil = Number.NEGATIVE_INFINITY;
  /** What the stream must reach to have heard of everything at `since`. */
  #target: { lsn: bigint; since: number } | null = null;
  /** Commits that may not be visible, with the tables that wait for them. */
  #unsettled = new Map<number, readonly Table[]>();
  #isSettling = false;
  #statistics = new Map<string, string>();
  #triedAt = Number.NEGATIVE_INFINITY;
  #cancel: (() => void) | null = null;
  #isClosed = false;

  constructor(lagMax: number, options: WalOptions) {
    this.lagMax = lagMax;
    this.#options = options;
    void this.#look();
  }

  /** Has every write been heard of that ended more than `lagMax` ago (12 s, by statistics)? */
  isReliable(now: number): boolean {
    switch (this.tier) {
      case 'wal':
        return now - this.#heardUntil <= this.lagMax;
      case 'statistics':
        return now - this.#heardUntil <= STATISTICS_AGE_MS;
      case 'none':
        return false;
      default:
        return this.tier satisfies never;
    }
  }

  /** ms since when not everything has been heard. */
  lagAt(now: number): number {
    return now - this.#heardUntil;
  }

  /** The connections may lead to a host that is not the primary any more. */
  reconnect(): void {
    this.#control?.close();
    this.#control = null;
    this.#triedAt = Number.NEGATIVE_INFINITY;
    const stream = this.#stream;
    if (stream === null) return;
    stream.close();
    this.#onEnded('there is another primary', '');
  }

  close(): void {
    this.#isClosed = true;
    this.#cancel?.();
    this.#stream?.close();
    this.#control?.close();
  }

  // --- Looking --------------------------------------------------------------------------------------------------

  async #look(): Promise<void> {
    const { clock, open } = this.#options;
    let again = RETRY_MS;
    try {
      this.#control ??= await open();
      // Nobody has asked while there was no connection.
      if (this.#unsettled.size > 0) void this.#settle();
      const now = clock.now();
      if (this.#stream === null && now - this.#triedAt >= STREAM_RETRY_MS) await this.#begin(now);
      if (this.tier === 'wal') {
        await this.#lookAtPosition(this.#control);
        again = Math.max(LOOK_MIN_MS, this.lagMax / LOOKS_IN_LAG);
      } else if (this.#stream === null) {
        await this.#lookAtStatistics(this.#control);
        again = STATISTICS_MS;
      } else again = LOOK_MIN_MS;
    } catch (thrown) {
      this.problem = messageOf(thrown);
      this.#control?.close();
      this.#control = null;
      this.#statistics.clear();
    }
    if (this.#isClosed) return this.close();
    this.#cancel = clock.after(again, () => void this.#look());
  }

  async #lookAtPosition(control: Control): Promise<void> {
    const since = this.#options.clock.now();
    const [[text]] = (await control.query('SELECT pg_catalog.pg_current_wal_flush_lsn()::text')) as [[string]];
    const lsn = lsnOf(text);
    this.#target ??= { lsn, since };
    this.#check();
    if (this.#target !== null) this.#stream?.ping();
  }

  #check(): void {
    if (this.#target === null || this.#position < this.#target.lsn) return;
    this.#heardUntil = this.#target.since;
    this.#target = null;
  }

  /** Whoever has written may keep it to himself for ten seconds: statistics are told once a second, and when a session is idle. */
  async #lookAtStatistics(control: Control): Promise<void> {
    const since = this.#options.clock.now();
    const rows = await control.query(COUNTS);
    const isFirst = this.#statistics.size === 0;
    const changed: number[] = [];
    for (const [oid, count, file] of rows) {
      const seen = `${count} ${file}`;
      if (this.#statistics.get(String(oid)) !== seen) changed.push(Number(oid));
      this.#statistics.set(String(oid), seen);
    }
    const { freshness } = this.#options;
    if (isFirst) freshness.bump('all');
    else for (const oid of changed) freshness.bump(this.#options.relations()?.withAncestors(oid) ?? 'all');
    if (this.tier === 'none') this.#become('statistics');
    this.#heardUntil = since;
  }

  #become(tier: Tier): void {
    if (this.tier === tier) return;
    this.tier = tier;
    this.#options.onEvent('changes', { tier, problem: this.problem });
  }

  // --- The stream -----------------------------------------------------------------------------------------------

  async #begin(now: number): Promise<void> {
    this.#triedAt = now;
    this.#position = 0n;
    this.#target = null;
    this.#stream = await this.#options.openChanges((heard) => this.#hear(heard));
  }

  #hear(heard: Heard): void {
    if (this.#isClosed) return;
    switch (heard.kind) {
      case 'started':
        // What was read before nobody has watched.
        this.#options.freshness.bump('all');
        this.problem = '';
        this.#become('wal');
        break;
      case 'commit':
        this.counts.commits++;
        this.#onCommit(heard.xid, heard.tables);
        break;
      case 'position':
        this.#position = heard.lsn;
        this.#check();
        break;
      case 'ended':
        this.#onEnded(heard.problem, heard.sqlstate);
        break;
      default:
        heard satisfies never;
    }
  }

  #onEnded(problem: string, sqlstate: string): void {
    this.#stream = null;
    this.problem = problem;
    this.#heardUntil = Number.NEGATIVE_INFINITY;
    for (const tables of this.#unsettled.values()) for (const table of tables) table.unsettled--;
    this.#unsettled.clear();
    this.#statistics.clear();
    if (this.tier === 'wal') {
      this.counts.gaps++;
      this.#options.freshness.bump('all');
      // It was there a moment ago: the connection is lost, and it is asked for again at once.
      if (!refusedStates.has(sqlstate)) this.#triedAt = Number.NEGATIVE_INFINITY;
    }
    this.#become('none');
  }

  #onCommit(xid: number, names: readonly (readonly [string, string])[] | 'all'): void {
    const tables = this.#tablesOf(names);
    for (const table of tables) {
      table.unsettled++;
      this.#bump(table);
    }
    this.#unsettled.set(xid, tables);
    void this.#settle();
  }

  #bump(table: Table): void {
    const { freshness } = this.#options;
    freshness.bump(table === freshness.any ? 'all' : [table.oid]);
  }

  #tablesOf(names: readonly (readonly [string, string])[] | 'all'): readonly Table[] {
    const { freshness } = this.#options;
    const relations = this.#options.relations();
    if (names === 'all' || relations === null) return [freshness.any];
    const oids = new Set<number>();
    for (const [schema, name] of names) {
      const relation = relations.named(schema, name);
      // What CLUSTER or a refresh writes, or a table that is newer than what is known.
      if (relation === undefined) return [freshness.any];
      for (const oid of relations.withAncestors(relation.oid)) oids.add(oid);
    }
    return [...oids].map((oid) => freshness.table(oid));
  }

  /** Asks until all commits that have been heard of are visible. */
  async #settle(): Promise<void> {
    if (this.#isSettling) return;
    this.#isSettling = true;
    const { clock } = this.#options;
    while (this.#unsettled.size > 0 && !this.#isClosed) {
      try {
        const control = this.#control;
        if (control === null) break;
        const xids = [...this.#unsettled.keys()];
        const rows = await control.query(visibleOf(xids));
        for (const [xid] of rows) {
          const tables = this.#unsettled.get(Number(xid));
          if (tables === undefined) continue;
          this.#unsettled.delete(Number(xid));
          for (const table of tables) {
            table.unsettled--;
            // Who asked before it was visible may have read what was there before.
            this.#bump(table);
          }
        }
      } catch {
        // The look that comes next will say so.
      }
      if (this.#unsettled.size > 0) await new Promise<void>((done) => void clock.after(SETTLE_MS, done));
    }
    this.#isSettling = false;
  }
}

/** A position in the WAL, as Postgres writes it. */
function lsnOf(text: string): bigint {
  const [high, low] = text.split('/');
  return (BigInt(`0x${high}`) << 32n) + BigInt(`0x${low}`);
}

/** Which of these transactions, by their lower 32 bits, everybody can see. */
function visibleOf(xids: readonly number[]): string {
  return `
    SELECT x FROM (SELECT pg_catalog.pg_current_snapshot() AS s) AS now,
      LATERAL (SELECT pg_catalog.pg_snapshot_xmax(s)::text::bigint AS m) AS max,
      LATERAL (SELECT m - m % 4294967296 AS e) AS epoch,
      pg_catalog.unnest(ARRAY[${xids.join()}]::bigint[]) AS x
    WHERE pg_catalog.pg_visible_in_snapshot((CASE WHEN e + x > m THEN e + x - 4294967296 ELSE e + x END)::text::xid8, s)`;
}
