/**
 * All pools: made when the first client of a database and user comes, kept while somebody may come back, moved or retired when
 * the configuration changes, and forgotten. With them what they have together: caps over databases and users, hosts, and what is
 * known of a database's functions. Made and ticked by app, which hands out what `of` gives.
 *
 *     of ──▶ kept ──unused for long──▶ closed
 *              ├──▶ standbys, one for each host that is read from; they stay with it when it is retired, and are gone with it
 *              └──reload──▶ its user or its entry is another ──▶ retired ──the last client leaves──▶ closed
 *
 * The one idea: names of databases and users are the clients' to choose (`*`), so whatever is kept by a name is also forgotten,
 * and there is one place that knows when.
 *
 * Invariants: a pool is found by its database, the user of its servers and the entries of `users` that shape it; who has a pool
 * keeps it until he leaves, whatever the configuration says by then.
 */
import { databaseOf, type Entry, entryOf, isNamed, poolConfigOf, userOf } from '../config/entries.ts';
import type { Config, DatabaseConfig, HostConfig } from '../config/schema.ts';
import { Catalog } from '../sql/catalog.ts';
import type { Clock } from '../util/clock.ts';
import { Caps } from './cap.ts';
import type { Cluster } from './cluster.ts';
import type { Clusters } from './clusters.ts';
import { addressOf, Hosts } from './hosts.ts';
import type { Secret } from './login.ts';
import { ServerPool } from './pool.ts';
import { Replicas } from './replicas.ts';
import type { Targets } from './targets.ts';
import type { Breaker } from './vitals.ts';

export interface PoolsOptions {
  /** As it is now: it is another one after a reload. */
  config: () => Config;
  clock: Clock;
  targets: Targets;
  clusters: Clusters;
  /** What servers of a database are logged in to with as `user`. */
  secretOf: (config: DatabaseConfig, database: string, user: string) => Promise<Secret>;
  /** By the address of a host. */
  breakerOf: (address: string) => Breaker;
  /** The reserve of the host at an address is nearly used up. */
  isShort: (address: string) => boolean;
  /** A pool was made. */
  onPool: (pool: ServerPool, config: DatabaseConfig) => void;
  /** These databases have no pool any more. */
  onForgotten: (databases: readonly string[]) => void;
  onEvent: (event: string, fields: Record<string, unknown>) => void;
}

/** More pools than these are not kept once they are unused. */
const POOLS_KEPT = 1_000;

/** A pool that clients are given, and the entries of `users` that shape it. */
interface Kept {
  pool: ServerPool;
  entry: Entry;
}

export class Pools {
  readonly hosts = new Hosts();
  readonly #options: PoolsOptions;
  /** Of servers: over all users of a database, and over all databases of a user. */
  readonly #databaseCaps = new Caps();
  readonly #userCaps = new Caps();
  readonly #kept = new Map<string, Kept>();
  /** By the pool of the primary and the address. */
  readonly #standbys = new Map<string, ServerPool>();
  /** Of an earlier configuration, while they still have clients. */
  readonly #retired = new Map<ServerPool, 'primary' | 'standby'>();
  /** By the name of their database. */
  readonly #catalogs = new Map<string, Catalog>();

  constructor(options: PoolsOptions) {
    this.#options = options;
  }

  get #config(): Config {
    return this.#options.config();
  }

  /** Those that clients have. */
  get ofPrimaries(): ServerPool[] {
    return [...this.#current, ...this.#retiredOf('primary')];
  }

  /** Those that reads of their clients may go to instead. */
  get ofStandbys(): ServerPool[] {
    return [...this.#standbys.values(), ...this.#retiredOf('standby')];
  }

  get all(): ServerPool[] {
    return [...this.ofPrimaries, ...this.ofStandbys];
  }

  get #current(): ServerPool[] {
    return [...this.#kept.values()].map(({ pool }) => pool);
  }

  #retiredOf(wanted: 'primary' | 'standby'): ServerPool[] {
    return [...this.#retired].filter(([, of]) => of === wanted).map(([pool]) => pool);
  }

  /** Names of the databases that clients have pools of. */
  get databases(): Set<string> {
    return new Set(this.#current.map(({ database }) => database));
  }

  /** Prepared statements known, over all clients. */
  get statements(): number {
    return this.#current.reduce((sum, pool) => sum + pool.statements.size, 0);
  }

  /** The pool of a client; null: there is no such database. */
  of(database: string, client: string): ServerPool | null {
    const config = databaseOf(this.#config, database);
    if (config === null) return null;
    const user = config.user ?? client;
    const entry = entryOf(this.#config, user, client);
    const key = JSON.stringify([database, user, entry]);
    const kept = this.#kept.get(key);
    if (kept !== undefined) return kept.pool;
    const pool = this.#make(database, user, config, entry);
    this.#kept.set(key, { pool, entry });
    this.#options.onPool(pool, config);
    return pool;
  }

  /** Databases with a user of their own have their least number of servers before anybody asks. */
  openMinimum(): void {
    for (const [name, { user, pool }] of Object.entries(this.#config.databases))
      if (name !== '*' && user !== undefined && pool.sizeMin > 0) this.of(name, user)!.learn(() => {});
  }

  #make(database: string, user: string, config: DatabaseConfig, entry: Entry): ServerPool {
    const { clusters, targets } = this.#options;
    const cluster = clusters.of(config, database);
    const pool = new ServerPool({
      ...this.#optionsOf(database, user, config),
      target: targets.of(database, user, config, cluster.primary),
      config: poolConfigOf(this.#config, config, entry),
      host: this.hosts.get(cluster.primary, config.serversMax),
      cluster,
    });
    pool.replicas = this.#replicasOf(pool, config, cluster);
    return pool;
  }

  /** What pools of the primary and of its standbys have in common. */
  #optionsOf(database: string, user: string, config: DatabaseConfig) {
    const { clock, secretOf, breakerOf, onEvent } = this.#options;
    const now = () => databaseOf(this.#config, database) ?? config;
    return {
      database,
      user,
      hostOf: (each: HostConfig) => this.hosts.get(each, now().serversMax),
      caps: [this.#databaseCaps.of(database), this.#userCaps.of(user)],
      breakerOf,
      clock,
      catalog: this.#catalogOf(database, config),
      secret: () => secretOf(now(), database, user),
      onEvent: (event: string, fields: Record<string, unknown>) => onEvent(event, { pool: database, user, ...fields }),
    };
  }

  #replicasOf(pool: ServerPool, config: DatabaseConfig, cluster: Cluster): Replicas | null {
    if (config.reads === 'primary') return null;
    const { isShort } = this.#options;
    return new Replicas({
      cluster,
      poolAt: (host) => this.#standbyOf(pool, config, host),
      lagMax: config.lagMax,
      isWanted: config.reads === 'spill' ? () => isShort(addressOf(cluster.primary)) : () => true,
    });
  }

  /** The pool on a standby that goes with a pool of the primary, `of` the database as that was made for: it may be gone since. */
  #standbyOf({ database, user, book, config, serial }: ServerPool, of: DatabaseConfig, at: HostConfig): ServerPool {
    const key = JSON.stringify([serial, addressOf(at)]);
    let standby = this.#standbys.get(key);
    if (standby === undefined) {
      standby = new ServerPool({
        ...this.#optionsOf(database, user, of),
        target: this.#options.targets.of(database, user, of, at),
        config: { ...config, sizeMin: 0 },
        host: this.hosts.get(at, of.serversMax),
        // Nobody is held for a standby: there is the primary.
        cluster: this.#options.clusters.alone(at),
        book,
      });
      this.#standbys.set(key, standby);
    }
    return standby;
  }

  #catalogOf(database: string, config: DatabaseConfig): Catalog | null {
    if (config.control === undefined) return null;
    const { clusters, clock } = this.#options;
    let catalog = this.#catalogs.get(database);
    if (catalog === undefined) {
      catalog = new Catalog((sql) => clusters.query(config, config.dbname ?? database, sql), clock);
      this.#catalogs.set(database, catalog);
      void catalog.refresh();
    }
    return catalog;
  }

  /** Everything that time brings to them; those that nobody needs any more are closed. */
  tick(now: number): void {
    const forgotten = new Set<string>();
    for (const [pool, of] of this.#retired) {
      pool.tick();
      if (pool.isInUse) continue;
      this.#retired.delete(pool);
      if (of === 'primary') this.#close(pool, 'the configuration has changed');
      else pool.close('the configuration has changed');
      forgotten.add(pool.database);
      this.#options.clusters.sweep(this.#config.databases);
    }
    for (const [key, { pool }] of this.#kept) {
      pool.tick();
      if (!pool.isUnused) pool.usedAt = now;
      else if (!pool.keepsMinimum && !this.#isKept(pool, now)) {
        this.#forget(key, pool);
        forgotten.add(pool.database);
      }
    }
    if (forgotten.size > 0) this.#sweep(forgotten);
    for (const standby of this.#standbys.values()) {
      standby.cluster.tick(now);
      standby.tick();
    }
  }

  /** A pool that has met its servers is kept, or for a while: logins then need no live server. */
  #isKept(pool: ServerPool, now: number): boolean {
    if (pool.baseline === null || this.#kept.size > POOLS_KEPT) return false;
    const ofDatabase = isNamed(this.#config, pool.database)
      ? 0
      : (databaseOf(this.#config, pool.database)?.unusedMax ?? 0);
    return [pool.config.unusedMax, ofDatabase].every((max) => max === 0 || now - pool.usedAt < max);
  }

  #forget(key: string, pool: ServerPool): void {
    this.#kept.delete(key);
    this.#close(pool, 'unused');
    this.#options.onEvent('an unused pool is forgotten', { database: pool.database, user: pool.user });
  }

  /** Closes a pool of the primary, and those on standbys that go with it. */
  #close(pool: ServerPool, reason: string): void {
    pool.close(reason);
    for (const [key, standby] of this.#standbys) {
      if (standby.book !== pool.book) continue;
      standby.close(reason);
      this.#standbys.delete(key);
    }
  }

  /** What is known of databases that "*" stood for, and that have no pool any more, is forgotten. */
  #sweep(forgotten: Iterable<string> = []): void {
    const kept = new Set(this.all.map(({ database }) => database));
    for (const name of this.#catalogs.keys())
      if (!kept.has(name) && !isNamed(this.#config, name)) this.#catalogs.delete(name);
    this.#databaseCaps.sweep();
    this.#userCaps.sweep();
    this.#options.onForgotten([...forgotten].filter((name) => !kept.has(name)));
  }

  /** What the configuration decides for all of them together. */
  setCaps(): void {
    const { databases, instances } = this.#config;
    this.#databaseCaps.configure((name) => databaseOf(this.#config, name)?.pool.sizeTotal ?? 0);
    this.#userCaps.configure((name) => userOf(this.#config, name)?.serversMax ?? 0);
    this.hosts.setCaps(
      Object.values(databases).flatMap(({ hosts, serversMax }) => hosts.map((host) => [host, serversMax] as const)),
      instances,
    );
  }

  /** The configuration is another one than `before`. */
  reload(before: Config): void {
    this.#catalogs.clear();
    for (const [key, kept] of this.#kept) this.#reloadPool(key, kept, before);
    this.#sweep();
  }

  /** A pool keeps its servers unless where or how they log in has changed. */
  #reloadPool(key: string, { pool, entry }: Kept, before: Config): void {
    const old = databaseOf(before, pool.database);
    const now = databaseOf(this.#config, pool.database);
    // Where a database has a user of its own, clients with several entries may share that.
    const [ofServers, ofClients] = entryOf(this.#config, pool.user, pool.user);
    const isClients =
      now?.user === undefined ? entry[1] === ofClients : entry[1] === '' || Object.hasOwn(this.#config.users, entry[1]);
    const isKnown = entry[0] === ofServers && isClients;
    if (now === null || (now.user ?? pool.user) !== pool.user || !isKnown) {
      // Its clients keep it until they leave; new ones are refused, or get another.
      this.#kept.delete(key);
      this.#retired.set(pool, 'primary');
      return;
    }
    const isSame = old !== null && identityOf(old) === identityOf(now);
    pool.config = poolConfigOf(this.#config, now, entry);
    pool.catalog = this.#catalogOf(pool.database, now);
    if (!isSame) {
      const cluster = this.#options.clusters.of(now, pool.database);
      const host = this.hosts.get(cluster.primary, now.serversMax);
      pool.retarget(this.#options.targets.of(pool.database, pool.user, now, cluster.primary), host, cluster);
      pool.replicas = this.#replicasOf(pool, now, cluster);
    }
    for (const [key, standby] of this.#standbys) {
      if (standby.book !== pool.book) continue;
      standby.config = { ...pool.config, sizeMin: 0 };
      standby.catalog = pool.catalog;
      if (isSame) continue;
      // It is made anew when it is wanted; who reads there at the moment may come to his end.
      this.#standbys.delete(key);
      this.#retired.set(standby, 'standby');
    }
  }

  close(reason: string): void {
    for (const pool of this.all) pool.close(reason);
  }
}

/** What of a database its servers are made from: if that is the same, they stay. */
function identityOf({ pool: _, serversMax: __, hold: ___, clientsMax: ____, ...rest }: DatabaseConfig): string {
  return JSON.stringify(rest);
}
