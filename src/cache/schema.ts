/**
 * Keeps what is known of one database's definitions up to date: the catalogue is read by the control user, and looked at once a second for changes
 * that did not come through the proxy. One for each database with a cache; made by cache/caches.
 *
 * The one idea: Postgres counts the rows that change in its catalogue; only when the counts have moved is it read again, and only
 * when what was read differs (a temporary table changes nothing) do answers lose their value.
 *
 * Limit, documented: a session that changes definitions and then does nothing may report it up to ten seconds late (its statistics);
 * what comes through the proxy is known at once.
 */
import type { Parser } from '../sql/parser.ts';
import { Relations } from '../sql/relations.ts';
import type { Clock } from '../util/clock.ts';
import { messageOf } from '../util/errors.ts';
import type { Freshness } from './freshness.ts';
import { Views } from './views.ts';

/** A connection of the control user. */
export interface Control {
  query(sql: string): Promise<(string | null)[][]>;
  close(): void;
}

const LOOK_MS = 1_000;
const RETRY_MS = [250, 500, 1_000, 2_000, 5_000];
const COUNTS = `
  SELECT sum(n_tup_ins + n_tup_upd + n_tup_del) FROM pg_catalog.pg_stat_sys_tables
  WHERE relname IN ('pg_class', 'pg_attribute', 'pg_proc', 'pg_policy', 'pg_auth_members', 'pg_authid', 'pg_namespace', 'pg_type',
    'pg_operator', 'pg_rewrite', 'pg_constraint', 'pg_trigger', 'pg_inherits', 'pg_enum', 'pg_db_role_setting')`;

export class Schema {
  relations: Relations | null = null;
  views: Views | null = null;
  /** Why the last look failed; '': it did not. */
  problem = '';
  readonly #open: () => Promise<Control>;
  readonly #parse: Parser['parse'];
  readonly #freshness: Freshness;
  readonly #clock: Clock;
  #control: Control | null = null;
  #counts = '';
  #failures = 0;
  #isLooking = false;
  /** Somebody wants it to be read again, whatever the counts say. */
  #isDue = true;
  #cancel: (() => void) | null = null;
  #isClosed = false;

  constructor(options: { open: () => Promise<Control>; parse: Parser['parse']; freshness: Freshness; clock: Clock }) {
    this.#open = options.open;
    this.#parse = options.parse;
    this.#freshness = options.freshness;
    this.#clock = options.clock;
    void this.#look();
  }

  /** Definitions have changed: they are read again at once. */
  read(): void {
    this.#isDue = true;
    this.#cancel?.();
    void this.#look();
  }

  /** The connection may lead to a host that is not the primary any more. */
  reconnect(): void {
    this.#control?.close();
    this.#control = null;
    this.read();
  }

  close(): void {
    this.#isClosed = true;
    this.#cancel?.();
    this.#control?.close();
  }

  async #look(): Promise<void> {
    if (this.#isLooking || this.#isClosed) return;
    this.#isLooking = true;
    try {
      this.#control ??= await this.#open();
      await this.#lookWith(this.#control);
      this.problem = '';
      this.#failures = 0;
    } catch (thrown) {
      this.problem = messageOf(thrown);
      this.#control?.close();
      this.#control = null;
      this.#isDue = true;
      this.#failures++;
    }
    this.#isLooking = false;
    if (this.#isClosed) return this.close();
    const again = this.#failures === 0 ? LOOK_MS : RETRY_MS[Math.min(this.#failures, RETRY_MS.length) - 1]!;
    this.#cancel = this.#clock.after(this.#isDue && this.#failures === 0 ? 0 : again, () => void this.#look());
  }

  async #lookWith(control: Control): Promise<void> {
    const counts = String((await control.query(COUNTS))[0]?.[0]);
    if (counts === this.#counts && !this.#isDue) return;
    this.#isDue = false;
    const relations = await Relations.read((sql) => control.query(sql));
    this.#counts = counts;
    if (relations.digest === this.relations?.digest) return;
    const isFirst = this.relations === null;
    this.relations = relations;
    this.views = new Views(relations, this.#parse);
    // What others have kept is found by the definitions that it is of.
    if (isFirst) this.#freshness.redefineHere();
    else this.#freshness.redefine();
  }
}
