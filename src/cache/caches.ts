/**
 * The read caches of all databases: one memory for the answers of all of them, and for each database what is known of its tables. Made by app.
 *
 * The one idea: databases that are the same one behind different names are told apart; nobody is given what another name has asked for.
 *
 * Invariant: a write that the shared cache could not be told is not forgotten: a space is followed by one that knows of it, or
 * nothing of before is believed.
 */
import { createHash } from 'node:crypto';
import type { CacheConfig, CacheRule } from '../config/schema.ts';
import type { Parser } from '../sql/parser.ts';
import type { Clock } from '../util/clock.ts';
import { messageOf } from '../util/errors.ts';
import { Backend, type Space } from './backend.ts';
import { Cache } from './cache.ts';
import { Freshness } from './freshness.ts';
import { type Control, Schema } from './schema.ts';
import { Store } from './store.ts';
import { type ChangeStream, type Heard, Wal } from './wal.ts';

export interface CachedDatabase {
  name: string;
  rules: readonly CacheRule[];
  /** Servers of its pools. */
  servers: number;
  /** What its control connection is made from: another one is another database. */
  place: string;
  openControl: () => Promise<Control>;
  /** Opens the stream of changes of its primary. */
  openChanges: (hear: (heard: Heard) => void) => Promise<ChangeStream>;
}

/** Files are read by app. */
export interface BackendConfig {
  url: string;
  budget: number;
  password: string | undefined;
  secret: string;
  /** Why it cannot be used; ''. */
  problem: string;
}

const SWEEP_MS = 1_000;

interface Kept {
  cache: Cache;
  schema: Schema;
  /** Only for who has a rule with consistency wal. */
  wal: Wal | null;
  place: string;
}

export class Caches {
  readonly #parse: Parser['parse'];
  readonly #clock: Clock;
  readonly #onEvent: (event: string, fields: Record<string, unknown>) => void;
  readonly #caches = new Map<string, Kept>();
  #store = new Store(0);
  #sweptAt = 0;
  #backend: Backend | null = null;
  #backendKey = 'null';
  #url = '';
  /** By place: databases of one place have one. */
  readonly #spaces = new Map<string, Space>();
  /** What the last process of this instance left: for the spaces that there are from the start. */
  #told: Readonly<Record<string, number>>;
  /** Why there is no backend although one is configured; ''. */
  backendProblem = '';

  /** `told`: what `told` was when the last process ended. */
  constructor(
    parse: Parser['parse'],
    clock: Clock,
    onEvent: (event: string, fields: Record<string, unknown>) => void,
    told: Readonly<Record<string, number>> = {},
  ) {
    this.#parse = parse;
    this.#clock = clock;
    this.#onEvent = onEvent;
    this.#told = told;
  }

  get backend(): Backend | null {
    return this.#backend;
  }

  get store(): Store {
    return this.#store;
  }

  /** Those that there are, in the order of the configuration. */
  get all(): Cache[] {
    return [...this.#caches.values()].map(({ cache }) => cache);
  }

  /** What each knows of the definitions in its database, and how it hears of writes. */
  sensesOf(database: string): { schema: Schema; wal: Wal | null } | null {
    return this.#caches.get(database) ?? null;
  }

  of(database: string): Cache | null {
    return this.#caches.get(database)?.cache ?? null;
  }

  /** The spaces that have been told of every write, and since when (Space.since): for the process that comes after. */
  get told(): Record<string, number> {
    const told = [...this.#spaces].filter(([, { hasToldAll }]) => hasToldAll);
    return Object.fromEntries(told.map(([place, { since }]) => [this.#nameOf(place), since]));
  }

  /** Makes what is new, and closes what is not wanted any more. */
  configure(config: CacheConfig, databases: readonly CachedDatabase[], backend: BackendConfig | null): void {
    this.#configureBackend(config.mode === 'off' ? null : backend);
    if (this.#store.memoryMax !== config.memoryMax) this.#store = new Store(config.memoryMax);
    const wanted = config.mode === 'off' ? [] : databases;
    for (const [name, kept] of this.#caches) {
      const now = wanted.find((each) => each.name === name);
      const isSame = now?.place === kept.place && kept.cache.store === this.#store;
      if (isSame && wantsWal(now.rules) === (kept.wal !== null)) continue;
      close(kept);
      this.#caches.delete(name);
    }
    for (const database of wanted) {
      const kept = this.#caches.get(database.name);
      if (kept === undefined) this.#caches.set(database.name, this.#make(config, database));
      else {
        kept.cache.configure(config, database.rules, database.servers);
        if (kept.wal !== null) kept.wal.lagMax = config.wal.lagMax;
      }
    }
    // What comes later may have been written to meanwhile, past the cache.
    this.#told = {};
    const places = new Set([...this.#caches.values()].map(({ place }) => place));
    for (const [place, space] of this.#spaces) {
      if (places.has(place)) continue;
      space.close();
      this.#spaces.delete(place);
    }
  }

  /** A backend that cannot be is none: the proxy serves all the same. */
  #configureBackend(config: BackendConfig | null): void {
    const key = JSON.stringify(config);
    if (key === this.#backendKey) return;
    this.#backendKey = key;
    this.#backend?.close();
    this.#backend = null;
    this.backendProblem = config?.problem ?? '';
    if (config !== null && config.problem === '') {
      try {
        this.#backend = new Backend({ ...config, clock: this.#clock, onEvent: this.#onEvent });
      } catch (thrown) {
        this.backendProblem = messageOf(thrown);
      }
    }
    if (this.backendProblem !== '') this.#onEvent('cache backend', { state: 'disarmed', why: this.backendProblem });
    this.#succeed(config?.url ?? '');
    // What is in memory counts as before.
    for (const { cache, place } of this.#caches.values()) cache.space = this.#spaceOf(place);
  }

  /** Spaces of the backend before are followed by what the one at `url` has for them: the same, if it is the same. */
  #succeed(url: string): void {
    const before = this.#url === url ? [...this.#spaces] : [];
    this.#url = url;
    this.#spaces.clear();
    if (this.#backend === null) return;
    for (const [place, { since, hasToldAll }] of before) {
      const space = this.#backend.space(place, since);
      if (!hasToldAll) space.invalidate('all');
      this.#spaces.set(place, space);
    }
  }

  #spaceOf(place: string): Space | null {
    if (this.#backend === null) return null;
    let space = this.#spaces.get(place);
    if (space === undefined) {
      space = this.#backend.space(place, this.#told[this.#nameOf(place)] ?? this.#clock.wall());
      this.#spaces.set(place, space);
    }
    return space;
  }

  /** What a place is known by over a restart. */
  #nameOf(place: string): string {
    return createHash('sha256').update(`${this.#url} ${place}`).digest('hex');
  }

  #make(config: CacheConfig, database: CachedDatabase): Kept {
    const { name, rules, servers, place, openControl, openChanges } = database;
    const freshness = new Freshness((oids) => cache.space?.invalidate(oids));
    const schema = new Schema({ open: openControl, parse: this.#parse, freshness, clock: this.#clock });
    const wal = wantsWal(rules)
      ? new Wal(config.wal.lagMax, {
          open: openControl,
          openChanges,
          freshness,
          relations: () => schema.relations,
          clock: this.#clock,
          onEvent: (event, fields) => this.#onEvent(event, { database: name, ...fields }),
        })
      : null;
    const cache: Cache = new Cache({
      database: name,
      config,
      rules,
      store: this.#store,
      freshness,
      schema: () => {
        const { relations, views } = schema;
        return relations === null || views === null ? null : { relations, views };
      },
      onDefined: () => schema.read(),
      stream: wal ?? { isReliable: () => false },
      servers,
      space: this.#spaceOf(place),
      clock: this.#clock,
    });
    return { cache, schema, wal, place };
  }

  /**
   * There is another primary somewhere, which need not have what was read of the one before. `isFirst`: of one before nothing is known, and
   * others need not hear of it: a restart does not empty what they share.
   */
  startAnew(isFirst: boolean): void {
    for (const { cache, schema, wal } of this.#caches.values()) {
      if (isFirst) cache.freshness.redefineHere();
      else cache.freshness.redefine();
      schema.reconnect();
      wal?.reconnect();
    }
  }

  /** Everything that time brings. */
  tick(now: number): void {
    for (const { cache } of this.#caches.values()) cache.tick(now);
    if (now - this.#sweptAt >= SWEEP_MS) {
      this.#sweptAt = now;
      this.#store.sweep(now);
    }
    this.#backend?.tick(now);
  }

  close(): void {
    for (const kept of this.#caches.values()) close(kept);
    this.#backend?.close();
  }
}

function close({ schema, wal }: Kept): void {
  schema.close();
  wal?.close();
}

function wantsWal(rules: readonly CacheRule[]): boolean {
  return rules.some(({ consistency }) => consistency === 'wal');
}
