/**
 * READ FIRST. The composition root: from a configuration to a running proxy, and everything that changes it as a
 * whole: start, reload, drain, stop. The only file that sees everything; nothing but cli (and the tests) calls it.
 *
 *     Config → hosts → pools ← sessions ← listener        ops (HTTP, console, metrics) reads them all
 *                        └─ tick: the one timer of all pools
 */

import { readFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { type BackendConfig, type CachedDatabase, Caches } from './cache/caches.ts';
import { AuthQuery } from './client/auth-query.ts';
import { Groups } from './client/groups.ts';
import { type Hba, readHba } from './client/hba.ts';
import { Listener, type ListenerContext } from './client/listener.ts';
import { type ClientTls, readClientTls } from './client/tls.ts';
import { Usage } from './client/usage.ts';
import { Users } from './client/users.ts';
import { adviceFor } from './config/advice.ts';
import {
  authQueryOf,
  controlDatabaseOf,
  databaseOf,
  type Entry,
  entryOf,
  isNamed,
  poolConfigOf,
  userOf,
} from './config/entries.ts';
import type { Loaded } from './config/load.ts';
import type { Config, DatabaseConfig, HostConfig } from './config/schema.ts';
import { CreditBook, type Residents } from './credits/book.ts';
import { descriptorOf, type ListeningSockets } from './fleet/handover.ts';
import { Admission } from './guard/admission.ts';
import { Door } from './guard/door.ts';
import { Health } from './guard/health.ts';
import { Bypass, type Watched } from './ops/bypass.ts';
import { Console } from './ops/console.ts';
import { Controls } from './ops/controls.ts';
import { couplingAt } from './ops/coupling.ts';
import { changedKeys, Events, hashOf } from './ops/events.ts';
import { History, SAMPLE_MS } from './ops/history.ts';
import { OpsServer } from './ops/http.ts';
import { Journal } from './ops/journal.ts';
import type { Logger } from './ops/log.ts';
import { Memory } from './ops/memory.ts';
import { Metrics } from './ops/metrics.ts';
import { Shares } from './ops/shares.ts';
import type { Snapshot } from './ops/snapshot.ts';
import { StateDir } from './ops/state.ts';
import { type Status, statusOf } from './ops/status.ts';
import { Switchboard } from './ops/switchboard.ts';
import { version } from './ops/version.ts';
import { SqlState } from './protocol/sqlstate.ts';
import { Askers } from './server/askers.ts';
import { Caps } from './server/cap.ts';
import { openChanges } from './server/changes.ts';
import { Cluster } from './server/cluster.ts';
import { type ControlConnection, openControl } from './server/control.ts';
import type { HoldConfig } from './server/hold.ts';
import { addressOf, Hosts } from './server/hosts.ts';
import { type Secret, ServerLoginError, type ServerTarget } from './server/login.ts';
import { ServerPool } from './server/pool.ts';
import { Replicas } from './server/replicas.ts';
import { Catalog } from './sql/catalog.ts';
import { Parser } from './sql/parser.ts';
import { Judge } from './sql/verdict.ts';
import { type Clock, every, systemClock } from './util/clock.ts';
import { messageOf } from './util/errors.ts';

export interface AppOptions {
  config: Config;
  /** Loads the configuration again, for RELOAD and SIGHUP. */
  reload: () => Loaded;
  /** File that relative paths in the configuration start from; null: the working directory. */
  file: string | null;
  log: Logger;
  clock?: Clock;
  /** How many times faster than the clock the time of ledgers runs; 1 but for rehearsals. */
  pace?: number;
  /** Ends the process (SHUTDOWN); without it the proxy is only stopped. */
  onShutdown?: () => void;
  /** Sockets that this process was started with. */
  inherited?: ListeningSockets;
  /** Cancel requests that are about nobody here. */
  passCancel?: (key: Buffer) => void;
  /** Starts the process that takes over, with these sockets (UPGRADE); gives its id. */
  startSuccessor?: (sockets: Required<ListeningSockets>, cancel: (key: Buffer) => void) => Promise<number>;
}

const TICK_MS = 200;
/** More pools than these are not kept once they are unused. */
const POOLS_KEPT = 1_000;
const GATE_TICK_MS = 20;
const SHARES_MS = 10_000;
const MEMORY_MS = 60_000;
const EVENTS_MS = 1_000;
const BYPASS_MS = 15_000;
const DRAIN_CHECK_MS = 50;
/** Time for the answer to who has asked for an upgrade over HTTP. */
const ANSWER_MS = 500;
const GROUPS_MS = 60_000;
const PROBE_MS = 1_000;
/** Where standbys are read from, hosts are asked so often in the time that their lag may be. */
const PROBES_IN_LAG = 4;

export class App {
  config: Config;
  readonly log: Logger;
  readonly #options: AppOptions;
  readonly #clock: Clock;
  readonly #hosts = new Hosts();
  /** Of servers: over all users of a database, and over all databases of a user. */
  readonly #databaseCaps = new Caps();
  readonly #userCaps = new Caps();
  /** By what they are made from. */
  readonly #clusters = new Map<string, Cluster>();
  /** By the address of their host. */
  readonly #breakers = new Map<string, Health>();
  readonly #pools = new Map<string, ServerPool>();
  /** By the pool of the primary and the address. */
  readonly #standbyPools = new Map<string, ServerPool>();
  readonly #catalogs = new Map<string, Catalog>();
  readonly #parser: Parser;
  readonly #judge: Judge;
  readonly #admission: Admission;
  readonly #credits: CreditBook;
  readonly #caches: Caches;
  readonly #listener: Listener;
  readonly #shares: Shares;
  readonly #memory: Memory;
  readonly #controls: Controls;
  readonly #console: Console;
  readonly #metrics: Metrics;
  readonly #history = new History();
  readonly #bypass = new Bypass();
  readonly #usage: Usage;
  readonly #journal: Journal;
  readonly #events: Events;
  readonly #switches: Switchboard;
  readonly #ops: OpsServer;
  readonly #startedAt: number;
  #users: Users;
  /** What is known of users by `auth.query`; made anew when that changes. */
  #authQuery: AuthQuery;
  readonly #askers: Askers;
  #hba: Hba | null;
  readonly #groups: Groups;
  #tls: ClientTls | null;
  #stopTicking: (() => void) | null = null;
  #isListening = false;
  #isDraining = false;
  #isUpgrading = false;
  #reloadedAt: number;
  #isReloadOk = true;

  constructor(options: AppOptions) {
    this.#options = options;
    this.config = options.config;
    this.log = options.log;
    this.#clock = options.clock ?? systemClock;
    this.#startedAt = this.#clock.wall();
    this.#reloadedAt = this.#startedAt;
    this.#users = this.#readUsers(options.config);
    this.#authQuery = this.#makeAuthQuery();
    this.#askers = new Askers(this.#clock);
    this.#hba = readHba(options.config, (file) => this.#path(file));
    this.#groups = new Groups(
      (sql, values) => this.#askMembers(sql, values),
      (thrown) =>
        this.log.warn({ problem: messageOf(thrown) }, 'auth.hba: who is a member of which group cannot be asked'),
    );
    this.#tls = readClientTls(options.config.listen.tls, (file) => this.#path(file));
    this.#parser = new Parser(this.#clock);
    this.#judge = new Judge(this.#parser);
    const natureOf = (number: number) => this.#judge.natureOf(number);
    this.#usage = new Usage(natureOf, () => this.#clock.wall());
    this.#journal = new Journal(this.#clock, natureOf, (fields, message) => this.log.info(fields, message));
    this.#admission = new Admission(options.config);
    this.#caches = new Caches(
      (sql, done) => this.#parser.parse(sql, done),
      this.#clock,
      (event, fields) => this.log.info(fields, event),
    );
    // Instances are told apart in cancel keys; until they share anything, chance is as good as a number.
    this.#listener = new Listener(Math.floor(Math.random() * 128), () => this.#listenerContext());
    const state = new StateDir(this.#path(options.config.state.dir));
    const admission = this.#admission;
    this.#memory = new Memory(admission, state, (problem) => this.log.error(problem));
    this.#usage.restore(this.#memory.usage);
    this.#credits = new CreditBook(
      {
        clock: this.#clock,
        query: (database, sql) => {
          const config = databaseOf(this.config, database)!;
          return this.#query(config, config.dbname ?? database, sql);
        },
        demandOf: (address) => {
          const gate = admission.gateOf(address);
          return { backlogMs: gate.backlogMs, costOf: (name) => gate.costOf(name) };
        },
        pace: options.pace ?? 1,
        onProblem: (source, problem) => this.log.warn({ source, problem }, 'a metric cannot be read'),
      },
      this.#memory.learned,
    );
    this.#shares = new Shares(
      () => admission.gates.values(),
      () => admission.classes.hits,
    );
    this.#events = new Events(() => this.#clock.wall());
    const switches = new Switchboard(admission, () => this.config, this.#clock, state, this.#shares);
    for (const problem of state.problems) this.log.error(problem);
    this.#controls = new Controls({
      pools: () => this.#allPools,
      sessions: () => this.#listener.sessions,
      refuseClients: () => this.#listener.refuseClients(),
      drain: () => this.#listener.drain(),
      endReplications: (isMeant) => this.#listener.endReplications(isMeant),
      clients: () => this.#listener.clients,
      isNamed: (database) => isNamed(this.config, database),
      shutDown: () => (options.onShutdown ?? (() => void this.stop()))(),
    });
    this.#switches = switches;
    this.#console = new Console(() => this.snapshot(), {
      controls: this.#controls,
      reload: () => this.reload(),
      upgrade: () => this.#upgrade(),
      switches,
      events: this.#events,
      clock: this.#clock,
    });
    this.#metrics = new Metrics(() => this.snapshot());
    this.#ops = new OpsServer({
      config: () => ({
        ops: { ...this.config.ops, tokenFile: this.#path(this.config.ops.tokenFile) },
        auth: this.config.auth,
      }),
      users: () => this.#users,
      status: () => this.#status(),
      coupling: (since) => couplingAt(this.snapshot(), since),
      explain: (id) => this.#journal.explain(id),
      history: this.#history,
      events: this.#events,
      clock: this.#clock,
      switches,
      upgrade: () => this.#upgrade(),
      isReady: () => this.#isReady,
      checks: () => this.#checks(),
      metrics: () => this.#metrics.render(),
      contentType: this.#metrics.contentType,
    });
  }

  /** Listens for clients and on the HTTP port; gives the ports. */
  async start(): Promise<{ port: number; opsPort: number }> {
    this.#setCaps();
    // Who is the primary is found out before anybody asks.
    this.#setHolds();
    this.#groups.configure(this.#hba?.groups ?? []);
    this.#openMinimum();
    const { inherited = {}, passCancel = () => {} } = this.#options;
    this.#listener.keys.passUnknown(passCancel);
    const opsPort = await this.#ops.start(inherited.ops);
    const port = await this.#listener.start(inherited.clients).catch(async (thrown: unknown) => {
      await this.#ops.close();
      throw thrown;
    });
    this.#isListening = true;
    const stopPools = every(this.#clock, TICK_MS, () => this.#tick());
    let dueAt = this.#clock.now() + GATE_TICK_MS;
    const stopGates = every(this.#clock, GATE_TICK_MS, () => {
      const now = this.#clock.now();
      this.#credits.tick(now);
      this.#caches.tick(now);
      this.#admission.tick(now, this.#clock.wall(), now - dueAt);
      dueAt = now + GATE_TICK_MS;
    });
    const stops = [
      stopPools,
      stopGates,
      every(this.#clock, SHARES_MS, () => this.#shares.tick()),
      every(this.#clock, EVENTS_MS, () => this.#events.look(this.snapshot(), this.#switches.rows())),
      every(this.#clock, SAMPLE_MS, () => this.#history.sample(this.snapshot(), this.#clock.wall())),
      every(this.#clock, GROUPS_MS, () => void this.#groups.refresh()),
      every(this.#clock, BYPASS_MS, () => void this.#bypass.look(this.#watched())),
      every(this.#clock, MEMORY_MS, () => {
        this.#usage.tick();
        void this.#save();
      }),
    ];
    this.#stopTicking = () => {
      for (const stop of stops) stop();
    };
    this.log.info({ host: this.config.listen.host, port, opsPort }, 'listening');
    this.#advise();
    this.#events.look(this.snapshot(), this.#switches.rows());
    this.#events.add('start', `pgweir ${version} with the configuration ${hashOf(this.config)}`);
    return { port, opsPort };
  }

  #save(): Promise<void> {
    return this.#memory.save(this.#credits.save(), () => this.#usage.periods());
  }

  #tick(): void {
    const now = this.#clock.now();
    for (const cluster of this.#clusters.values()) cluster.tick(now);
    for (const pool of this.#retired) {
      pool.tick();
      if (pool.clients + pool.atWork > 0) continue;
      pool.close('the configuration has changed');
      this.#retired.delete(pool);
      this.#sweepClusters();
    }
    const forgotten = new Set<string>();
    for (const [key, pool] of this.#pools) {
      pool.tick();
      if (!pool.isUnused) pool.usedAt = now;
      else if (pool.config.sizeMin === 0 && !this.#keepsPool(pool, now)) {
        pool.close('unused');
        this.#pools.delete(key);
        this.log.info({ database: pool.database, user: pool.user }, 'an unused pool is forgotten');
        for (const [at, standby] of this.#standbyPools) {
          if (standby.book !== pool.book) continue;
          standby.close('unused');
          this.#standbyPools.delete(at);
        }
        forgotten.add(pool.database);
      }
    }
    if (forgotten.size > 0) this.#sweepDatabases(forgotten);
    for (const standby of this.#standbyPools.values()) {
      standby.cluster.tick(now);
      standby.tick();
    }
    this.#tickBreakers(now);
    for (const host of this.#hosts) host.silence.tick(now);
  }

  /** A pool that has met its servers is kept, or for a while: logins then need no live server. */
  #keepsPool(pool: ServerPool, now: number): boolean {
    if (pool.baseline === null || this.#pools.size > POOLS_KEPT) return false;
    const ofDatabase = isNamed(this.config, pool.database)
      ? 0
      : (databaseOf(this.config, pool.database)?.unusedMax ?? 0);
    return [pool.config.unusedMax, ofDatabase].every((max) => max === 0 || now - pool.usedAt < max);
  }

  /** What is known of databases that "*" stood for, and that have no pool any more, is forgotten. */
  #sweepDatabases(forgotten: Iterable<string> = []): void {
    const kept = new Set(this.#allPools.map(({ database }) => database));
    for (const name of this.#catalogs.keys())
      if (!kept.has(name) && !isNamed(this.config, name)) this.#catalogs.delete(name);
    this.#databaseCaps.sweep();
    this.#userCaps.sweep();
    // Every session hears of it, so only where there is something to hear.
    for (const name of forgotten)
      if (this.#caches.of(name) !== null && !kept.has(name)) {
        this.#setCaches();
        return;
      }
  }

  // --- What clients need ----------------------------------------------------------------------------------------

  #listenerContext(): ListenerContext {
    return {
      listen: this.config.listen,
      auth: this.config.auth,
      users: this.#users,
      authQueryOf: (database) => (authQueryOf(this.config, database) === null ? null : this.#authQuery),
      hba: this.#hba,
      isMember: this.#groups.isMember,
      tls: this.#tls,
      judge: this.#judge,
      clock: this.#clock,
      admission: this.#admission,
      usage: this.#usage,
      journal: this.#journal,
      poolOf: (database, user) => this.#poolOf(database, user),
      clientsMaxOf: (database, user) => ({
        database: databaseOf(this.config, database)?.clientsMax ?? this.config.listen.databaseClientsMax,
        user: userOf(this.config, user)?.clientsMax ?? 0,
      }),
      cacheOf: (pool) => this.#caches.of(pool.database),
      isDisabled: (database) => this.#controls.isDisabled(database),
      onSession: (session) => this.#controls.onSession(session),
      replicationOf: async (pool, mode) => ({
        target: { ...pool.target, connectQuery: undefined, parameters: [['replication', mode]] },
        secret: await this.#secretOf(databaseOf(this.config, pool.database)!, pool.database, pool.target.user),
        connectMs: pool.config.connectMax,
      }),
      openConsole: (client) => this.#console.open(client, this.config.auth),
      onEvent: (event, fields) => this.log.info(fields, event),
      onBug: (where, thrown) => this.log.error({ where, err: thrown }, 'bug: a session was ended'),
    };
  }

  /** Databases with a user of their own have their least number of servers before anybody asks. */
  #openMinimum(): void {
    for (const [name, { user, pool }] of Object.entries(this.config.databases))
      if (name !== '*' && user !== undefined && pool.sizeMin > 0) this.#poolOf(name, user)!.learn(() => {});
  }

  #poolOf(database: string, client: string): ServerPool | null {
    const config = databaseOf(this.config, database);
    if (config === null) return null;
    const user = config.user ?? client;
    const entry = entryOf(this.config, user, client);
    const key = JSON.stringify([database, user, entry]);
    let pool = this.#pools.get(key);
    if (pool === undefined) {
      pool = this.#makePool(database, user, config, entry);
      this.#pools.set(key, pool);
      if (config.cache !== null && this.#caches.of(database) === null) this.#setCaches();
      this.#controls.onPool(pool);
    }
    return pool;
  }

  #makePool(database: string, user: string, config: DatabaseConfig, entry: Entry): ServerPool {
    const cluster = this.#clusterOf(config, database);
    const host = this.#hosts.get(cluster.primary, config.serversMax);
    this.#admission.gateOf(host.address); // From here on it is to be seen.
    const pool = new ServerPool({
      ...this.#poolOptions(database, user, config),
      target: this.#targetOf(database, user, config, cluster.primary),
      config: poolConfigOf(this.config, config, entry),
      host,
      cluster,
    });
    pool.replicas = this.#replicasOf(pool, config, cluster);
    return pool;
  }

  /** What pools of the primary and of its standbys have in common. */
  #poolOptions(database: string, user: string, config: DatabaseConfig) {
    return {
      database,
      user,
      hostOf: (each: HostConfig) => this.#hosts.get(each, (databaseOf(this.config, database) ?? config).serversMax),
      caps: [this.#databaseCaps.of(database), this.#userCaps.of(user)],
      breakerOf: (address: string) => this.#breakerAt(address),
      clock: this.#clock,
      catalog: this.#catalogOf(database, config),
      secret: () => this.#secretOf(databaseOf(this.config, database) ?? config, database, user),
      onEvent: (event: string, fields: Record<string, unknown>) =>
        this.log.info({ pool: database, user, ...fields }, event),
    };
  }

  #replicasOf(pool: ServerPool, config: DatabaseConfig, cluster: Cluster): Replicas | null {
    if (config.reads === 'primary') return null;
    const isShort = () => ['RED', 'BLACK'].includes(this.#admission.gateOf(addressOf(cluster.primary)).zone);
    return new Replicas({
      cluster,
      poolAt: (host) => this.#standbyPool(pool, host),
      lagMax: config.lagMax,
      isWanted: config.reads === 'spill' ? isShort : () => true,
    });
  }

  /** The pool on a standby that goes with a pool of the primary. */
  #standbyPool({ database, user, book, config, serial }: ServerPool, at: HostConfig): ServerPool {
    const key = JSON.stringify([serial, addressOf(at)]);
    let standby = this.#standbyPools.get(key);
    if (standby === undefined) {
      const of = databaseOf(this.config, database)!;
      standby = new ServerPool({
        ...this.#poolOptions(database, user, of),
        target: this.#targetOf(database, user, of, at),
        config: { ...config, sizeMin: 0 },
        host: this.#hosts.get(at, of.serversMax),
        // Nobody is held for a standby: there is the primary.
        cluster: alone(at, this.#clock),
        book,
      });
      this.#standbyPools.set(key, standby);
    }
    return standby;
  }

  #breakerAt(address: string): Health {
    let breaker = this.#breakers.get(address);
    if (breaker === undefined) {
      breaker = new Health(this.config.breaker);
      this.#breakers.set(address, breaker);
    }
    return breaker;
  }

  /** Without a primary, and when somebody wants plain pooling, nothing is to be learned from answers. */
  #tickBreakers(now: number): void {
    const down = new Set(
      [...this.#clusters.values()].filter(({ hold }) => hold.isClosed).map(({ primary }) => addressOf(primary)),
    );
    for (const [address, breaker] of this.#breakers) {
      if (this.#admission.isPassthrough || down.has(address)) breaker.reset();
      else if (breaker.tick(now)) {
        this.log.warn({ host: address, state: breaker.state, why: breaker.why }, 'breaker');
        if (breaker.state !== 'open') continue;
        for (const pool of this.#allPools) if (pool.hostAddress === address) pool.onBreaker();
      }
    }
  }

  /** The cluster that a database lives on; databases with the same hosts share it. */
  #clusterOf(config: DatabaseConfig, database: string): Cluster {
    const addresses = config.hosts.map(addressOf).join();
    const key = JSON.stringify([addresses, config.control, config.tls, config.reads, config.lagMax]);
    let cluster = this.#clusters.get(key);
    if (cluster === undefined) {
      const isControlled = config.control !== undefined;
      cluster = new Cluster({
        hosts: config.hosts,
        hold: config.hold,
        door: new Door(this.#admission, config.hosts.map(addressOf)),
        clock: this.#clock,
        probeMs: config.reads === 'primary' ? PROBE_MS : Math.min(PROBE_MS, config.lagMax / PROBES_IN_LAG),
        openControl: isControlled
          ? (host) => this.#openControl(config, controlDatabaseOf(database, config), host)
          : null,
        lineage: this.#memory.lineageOf(config.hosts.map(addressOf)),
        onLineage: (lineage) => {
          this.#memory.saveLineage(addresses, lineage);
          this.#caches.startAnew();
        },
        onEvent: (event, fields, isAlarm) => (isAlarm ? this.log.warn(fields, event) : this.log.info(fields, event)),
      });
      this.#clusters.set(key, cluster);
    }
    return cluster;
  }

  /** Databases on the same hosts are held together: for as long as any of them wants. */
  #setHolds(): void {
    const holds = new Map<Cluster, HoldConfig[]>();
    for (const [name, config] of Object.entries(this.config.databases)) {
      const cluster = this.#clusterOf(config, name);
      holds.set(cluster, [...(holds.get(cluster) ?? []), config.hold]);
    }
    for (const [cluster, all] of holds)
      cluster.hold.config = {
        for: Math.max(...all.map((hold) => hold.for)),
        requestsMax: Math.max(...all.map((hold) => hold.requestsMax)),
        bytesMax: Math.max(...all.map((hold) => hold.bytesMax)),
      };
  }

  #targetOf(database: string, user: string, config: DatabaseConfig, host: HostConfig): ServerTarget {
    const { tls } = config;
    const files = (['ca', 'crl', 'cert', 'key'] as const).flatMap((name) =>
      tls[name] === undefined ? [] : [[name, this.#path(tls[name])]],
    );
    return {
      host,
      tls: { ...tls, ...Object.fromEntries(files) },
      database: config.dbname ?? database,
      user,
      parameters: [],
      connectQuery: config.connectQuery,
    };
  }

  /** What to log in to a server as `user` with. Files are read each time: a changed password takes effect at once. */
  async #secretOf(config: DatabaseConfig, database: string, user: string): Promise<Secret> {
    if (config.passwordFile !== undefined)
      return { kind: 'password', password: await this.#readSecret(config.passwordFile) };
    const isListed = this.#users.get(user) !== null;
    const asked = isListed ? null : this.#authQuery.known(database, user);
    const keys = asked?.keys ?? this.#users.keys(user);
    const secret = asked?.secret ?? this.#users.get(user);
    if (secret?.kind === 'password') return { kind: 'password', password: secret.password };
    if (secret?.kind === 'md5') return secret;
    return keys === null ? { kind: 'none' } : { kind: 'keys', keys };
  }

  #makeAuthQuery(): AuthQuery {
    return new AuthQuery((database, user) => this.#askSecret(database, user), this.#clock);
  }

  /** By `auth.query`, on a connection that is kept for each database while it is asked. */
  async #askSecret(asked: string, user: string): Promise<string | null> {
    const query = authQueryOf(this.config, asked);
    if (query === null) return null;
    const database = query.database ?? asked;
    const config = databaseOf(this.config, database) ?? Object.values(this.config.databases)[0]!;
    const at = this.#clusterOf(config, database).primary;
    const asker = this.#askers.at(JSON.stringify([database, query.user, addressOf(at)]), async () => {
      const listed = this.#users.get(query.user);
      const own = listed?.kind === 'password' ? listed.password : undefined;
      const password = query.passwordFile === undefined ? own : await this.#readSecret(query.passwordFile);
      const target = this.#targetOf(database, query.user, config, at);
      return openControl(target, password, { options: '-c search_path=pg_catalog' });
    });
    let row: (string | null)[] | undefined;
    try {
      [row] = await asker.ask(query.sql, [user]);
    } catch (thrown) {
      // Whether there is such a database is said to those who have proved who they are.
      if ((thrown as { code?: string }).code === SqlState.InvalidCatalogName) return null;
      this.log.warn({ database, problem: messageOf(thrown) }, 'auth.query cannot be asked');
      throw thrown;
    }
    // A name that is another's would let one in with the password of somebody else.
    return row === undefined || row[0] !== user ? null : (row[1] ?? '');
  }

  /** Groups are asked for of the first database that has somebody to ask. */
  async #askMembers(sql: string, values: readonly string[]): Promise<(string | null)[][]> {
    const found = Object.entries(this.config.databases).find(([, { control }]) => control !== undefined);
    if (found === undefined) throw new Error('no database has a control user');
    const [name, config] = found;
    return this.#query(config, controlDatabaseOf(name, config), sql, values);
  }

  async #readSecret(file: string): Promise<string> {
    try {
      return (await readFile(this.#path(file), 'utf8')).replace(/\r?\n$/, '');
    } catch (thrown) {
      throw new ServerLoginError(`the password file cannot be read: ${messageOf(thrown)}`);
    }
  }

  #catalogOf(database: string, config: DatabaseConfig): Catalog | null {
    const { control } = config;
    if (control === undefined) return null;
    let catalog = this.#catalogs.get(database);
    if (catalog === undefined) {
      catalog = new Catalog((sql) => this.#query(config, config.dbname ?? database, sql), this.#clock);
      this.#catalogs.set(database, catalog);
      void catalog.refresh();
    }
    return catalog;
  }

  /** Runs SQL as the control user, on a connection of its own. */
  async #query(
    config: DatabaseConfig,
    database: string,
    sql: string,
    values?: readonly string[],
  ): Promise<(string | null)[][]> {
    const connection = await this.#openControl(config, database, this.#clusterOf(config, database).primary);
    try {
      return await connection.query(sql, values);
    } finally {
      connection.close();
    }
  }

  /** A connection of the control user to one host. */
  async #openControl(config: DatabaseConfig, database: string, at: HostConfig): Promise<ControlConnection> {
    const { user, passwordFile } = config.control!;
    const password = passwordFile === undefined ? undefined : await this.#readSecret(passwordFile);
    return openControl(this.#targetOf(database, user, config, at), password);
  }

  /** Every primary that a control user may look at, once. */
  #watched(): Watched[] {
    const pids = this.#allPools.flatMap((pool) => [
      ...pool.servers().map(({ server }) => server.pid),
      ...(pool.channels.server === null ? [] : [pool.channels.server.pid]),
    ]);
    const watched = new Map<string, Watched>();
    for (const [name, config] of Object.entries(this.config.databases)) {
      if (config.control === undefined) continue;
      const host = addressOf(this.#clusterOf(config, name).primary);
      const database = controlDatabaseOf(name, config);
      watched.set(host, { host, pids, query: (sql) => this.#query(config, database, sql) });
    }
    return [...watched.values()];
  }

  // --- Configuration --------------------------------------------------------------------------------------------

  #path<File extends string | null>(file: File): File {
    if (file === null || this.#options.file === null) return file;
    return resolve(dirname(this.#options.file), file) as File;
  }

  #readUsers(config: Config): Users {
    return Users.read(this.#path(config.auth.users));
  }

  /** What the configuration decides for all pools together. */
  #setCaps(): void {
    const databases = Object.values(this.config.databases);
    this.#journal.slowMs = this.config.log.slow;
    this.#credits.configure(this.config, residentsOf(databases));
    this.#admission.setBudgets(this.#credits.hosts);
    this.#admission.configure(this.config);
    const isCached = this.config.cache.mode !== 'off' && databases.some(({ cache }) => cache !== null);
    this.#judge.want({
      reads: isCached || databases.some(({ pool, reads }) => pool.share === 'auto' || reads !== 'primary'),
      places: databases.some(({ reads }) => reads !== 'primary'),
    });
    this.#setCaches();
    for (const breaker of this.#breakers.values()) breaker.config = this.config.breaker;
    this.#databaseCaps.configure((name) => databaseOf(this.config, name)?.pool.sizeTotal ?? 0);
    this.#userCaps.configure((name) => userOf(this.config, name)?.serversMax ?? 0);
    this.#hosts.setCaps(
      databases.flatMap((database) => database.hosts.map((host) => [host, database.serversMax] as const)),
      this.config.instances,
    );
  }

  /** The read caches: of databases by the names that clients ask for. */
  #setCaches(): void {
    const names = new Set(Object.keys(this.config.databases));
    for (const { database } of this.#pools.values()) names.add(database);
    names.delete('*');
    const cached = [...names].flatMap((name) => this.#cachedDatabase(name, databaseOf(this.config, name)) ?? []);
    this.#caches.configure(this.config.cache, cached, this.#backendConfig());
    for (const session of this.#listener.sessions) session.onCacheChanged();
  }

  #backendConfig(): BackendConfig | null {
    const { backend } = this.config.cache;
    if (backend === undefined) return null;
    const { url, budget, passwordFile, macSecretFile } = backend;
    const read = (file: string | null) =>
      file === null ? undefined : readFileSync(this.#path(file), 'utf8').replace(/\r?\n$/, '');
    try {
      return { url, budget, password: read(passwordFile), secret: read(macSecretFile) ?? '', problem: '' };
    } catch (thrown) {
      return { url, budget, password: undefined, secret: '', problem: messageOf(thrown) };
    }
  }

  #cachedDatabase(name: string, config: DatabaseConfig | null): CachedDatabase | null {
    if (config === null || config.cache === null) return null;
    return {
      name,
      rules: this.config.cache.sets[config.cache]!,
      servers: config.pool.size,
      place: JSON.stringify([config.hosts, config.control, config.tls, config.dbname]),
      openControl: () => this.#openControl(config, config.dbname ?? name, this.#clusterOf(config, name).primary),
      openChanges: async (hear) => {
        const { user, passwordFile } = config.control!;
        const password = passwordFile === undefined ? undefined : await this.#readSecret(passwordFile);
        const target = this.#targetOf(config.dbname ?? name, user, config, this.#clusterOf(config, name).primary);
        return openChanges(target, password, hear);
      },
    };
  }

  /** Loads the configuration again: all of it takes effect, or nothing. Gives problems; none means it worked. */
  reload(): string[] {
    const before = this.config;
    const problems = this.#reload();
    this.#isReloadOk = problems.length === 0;
    if (problems.length === 0) {
      this.#reloadedAt = this.#clock.wall();
      const keys = changedKeys(before, this.config);
      this.log.info({ keys }, 'configuration reloaded');
      this.#advise();
      this.#events.add('reload', `${hashOf(this.config)}: ${keys.join(', ') || 'nothing has changed'}`);
    } else {
      this.log.error({ problems }, 'configuration not reloaded: the old one stays in force');
      this.#events.add('reload', `failed: ${problems.join('; ')}`);
    }
    return problems;
  }

  /** What may not be meant. */
  #advise(): void {
    const users = this.config.auth.method === 'trust' ? null : this.#users.names;
    for (const note of adviceFor(this.config, users)) this.log.warn({ note }, 'configuration');
  }

  #reload(): string[] {
    const loaded = this.#options.reload();
    if (!loaded.ok) return loaded.problems;
    const { config } = loaded;
    let users: Users;
    let hba: Hba | null;
    let clientTls: ClientTls | null;
    try {
      users = this.#readUsers(config);
      hba = readHba(config, (file) => this.#path(file));
      clientTls = readClientTls(config.listen.tls, (file) => this.#path(file));
    } catch (thrown) {
      return [messageOf(thrown)];
    }
    const before = this.config;
    for (const key of ['host', 'port', 'socketDir'] as const) {
      if (before.listen[key] !== config.listen[key]) this.log.warn(`listen.${key} needs a restart to take effect`);
    }
    users.inherit(this.#users);
    this.config = config;
    this.#users = users;
    this.#askers.retire();
    if (!isDeepStrictEqual(queriesOf(before), queriesOf(config))) this.#authQuery = this.#makeAuthQuery();
    this.#hba = hba;
    this.#groups.configure(hba?.groups ?? []);
    this.#tls = clientTls;
    this.log.level = config.log.level;
    this.#setCaps();
    this.#catalogs.clear();
    for (const [key, pool] of this.#pools) this.#reloadPool(key, pool, before);
    this.#sweepDatabases();
    this.#setHolds();
    this.#sweepClusters();
    this.#openMinimum();
    return [];
  }

  /** Those that neither the configuration nor a pool has any more. */
  #sweepClusters(): void {
    const kept = new Set(Object.entries(this.config.databases).map(([name, each]) => this.#clusterOf(each, name)));
    for (const [key, cluster] of this.#clusters) {
      if (kept.has(cluster) || !cluster.isUnused) continue;
      cluster.close();
      this.#clusters.delete(key);
    }
  }

  /** A pool keeps its servers unless where or how they log in has changed. */
  #reloadPool(key: string, pool: ServerPool, before: Config): void {
    const old = databaseOf(before, pool.database);
    const now = databaseOf(this.config, pool.database);
    const [, , entry] = JSON.parse(key) as [string, string, Entry];
    // Where a database has a user of its own, clients with several entries may share that.
    const [ofServers, ofClients] = entryOf(this.config, pool.user, pool.user);
    const isClients =
      now?.user === undefined ? entry[1] === ofClients : entry[1] === '' || Object.hasOwn(this.config.users, entry[1]);
    const isKnown = entry[0] === ofServers && isClients;
    if (now === null || (now.user ?? pool.user) !== pool.user || !isKnown) {
      // Its clients keep it until they leave; new ones are refused, or get another.
      this.#pools.delete(key);
      this.#retired.add(pool);
      return;
    }
    const identity = ({ pool: _, serversMax: __, hold: ___, clientsMax: ____, ...rest }: DatabaseConfig) =>
      JSON.stringify(rest);
    pool.config = poolConfigOf(this.config, now, entry);
    pool.catalog = this.#catalogOf(pool.database, now);
    if (old === null || identity(old) !== identity(now)) {
      const cluster = this.#clusterOf(now, pool.database);
      const host = this.#hosts.get(cluster.primary, now.serversMax);
      pool.retarget(this.#targetOf(pool.database, pool.user, now, cluster.primary), host, cluster);
      pool.replicas = this.#replicasOf(pool, now, cluster);
    }
    for (const [key, standby] of this.#standbyPools) {
      if (standby.book !== pool.book) continue;
      standby.config = { ...pool.config, sizeMin: 0 };
      if (old !== null && identity(old) === identity(now)) continue;
      // It is made anew when it is wanted; who reads there at the moment may come to his end.
      this.#standbyPools.delete(key);
      this.#retired.add(standby);
    }
  }

  /** Pools of an earlier configuration that still have clients. */
  readonly #retired = new Set<ServerPool>();

  get #allPools(): ServerPool[] {
    return [...this.#pools.values(), ...this.#retired, ...this.#standbyPools.values()];
  }

  // --- Seeing it ------------------------------------------------------------------------------------------------

  #checks(): Record<string, boolean> {
    return { config: this.#isReloadOk, listener: this.#isListening, draining: !this.#isEnding };
  }

  /** No new clients are wanted: TERM, or SHUTDOWN that waits. */
  get #isEnding(): boolean {
    return this.#isDraining || this.#controls.isShuttingDown;
  }

  get #isReady(): boolean {
    return this.#isListening && !this.#isEnding;
  }

  #status(): Status {
    const sources = { switches: this.#switches, history: this.#history, events: this.#events };
    return statusOf(this.snapshot(), sources, this.#clock.wall());
  }

  /** What there is to see, for ops. */
  snapshot(): Snapshot {
    return {
      config: this.config,
      now: this.#clock.now(),
      startedAt: this.#startedAt,
      reloadedAt: this.#reloadedAt,
      isReloadOk: this.#isReloadOk,
      isPaused: this.#controls.isPaused,
      isSuspended: this.#controls.isSuspended,
      isDisabled: (database) => this.#controls.isDisabled(database),
      isReady: this.#isReady,
      clientsMax: this.config.listen.clientsMax,
      open: this.#listener.open,
      loggingIn: this.#listener.loggingIn,
      refusedAddresses: this.#listener.failures.refused,
      replications: this.#listener.replications,
      counts: this.#listener.counts,
      cancels: this.#listener.keys.counts,
      sessions: this.#listener.sessions,
      consoleClients: this.#console.clients,
      consoleCounts: this.#console.counts,
      pools: [...this.#pools.values(), ...this.#retired],
      standbyPools: [...this.#standbyPools.values()],
      hosts: [...this.#hosts],
      clusters: [...this.#clusters.values()],
      breakers: this.#breakers,
      parser: this.#parser.counts,
      gates: this.#admission.gates,
      tarpit: this.#admission.tarpit,
      credits: this.#credits.hosts,
      sources: this.#credits.sources,
      isPassthrough: this.#admission.isPassthrough,
      caches: this.#caches,
      bypass: this.#bypass,
      usage: this.#usage,
      journal: this.#journal,
      statements: [...this.#pools.values()].reduce((sum, pool) => sum + pool.statements.size, 0),
      users: this.#users,
      authQuery: this.#authQuery,
    };
  }

  /** As PAUSE and RESUME. */
  pause(): void {
    void this.#controls.pause(null);
  }

  resume(): void {
    this.#controls.resume(null);
  }

  /** Something was thrown where nothing should be: count it, say so, go on. */
  onBug(where: string, thrown: unknown): void {
    this.#listener.counts.bugs++;
    this.log.error({ where, err: thrown }, 'bug');
  }

  // --- The end --------------------------------------------------------------------------------------------------

  /** TERM: not ready, no new clients, idle clients told to go, transactions finished within the limit. */
  async drain(): Promise<void> {
    if (this.#isDraining) return;
    this.#isDraining = true;
    const { delay, timeout } = this.config.drain;
    this.log.info({ delay, timeout }, 'draining');
    await this.#sleep(delay);
    const until = this.#clock.now() + timeout;
    while (!this.#listener.drain() && this.#clock.now() < until) await this.#sleep(DRAIN_CHECK_MS);
    await this.stop();
  }

  /** Another process takes over. Gives its id; rejects with why there is none, and then nothing has changed. */
  async #upgrade(): Promise<number> {
    const { startSuccessor } = this.#options;
    if (startSuccessor === undefined) throw new Error('only pgweir serve --config can be upgraded');
    if (this.#isUpgrading || this.#isEnding) throw new Error('it is ending already');
    this.#isUpgrading = true;
    try {
      const sockets = { clients: descriptorOf(this.#listener.server), ops: descriptorOf(this.#ops.server) };
      const pid = await startSuccessor(sockets, (key) => this.#listener.keys.request(key));
      this.log.info({ pid }, 'another process takes over');
      void this.#leave();
      return pid;
    } catch (thrown) {
      this.#isUpgrading = false;
      this.log.error({ problem: messageOf(thrown) }, 'no other process takes over');
      throw thrown;
    }
  }

  /** Serves who is there until they leave, or have had their time. */
  async #leave(): Promise<void> {
    this.#memory.handOver();
    this.#listener.handOver();
    await this.#sleep(ANSWER_MS);
    await this.#ops.close();
    const until = this.#clock.now() + this.config.drain.clients;
    const isAlone = () => this.#listener.clients + this.#listener.loggingIn === 0;
    while (!isAlone() && !this.#isDraining && this.#clock.now() < until) await this.#sleep(DRAIN_CHECK_MS);
    if (this.#isDraining) return; // TERM has come.
    await this.drain();
    (this.#options.onShutdown ?? (() => {}))();
  }

  #sleep(ms: number): Promise<void> {
    return new Promise((done) => setTimeout(done, ms));
  }

  /** Ends everything at once; servers are closed with Terminate. */
  async stop(): Promise<void> {
    this.#isDraining = true;
    this.#stopTicking?.();
    this.#listener.close();
    this.#console.close();
    for (const pool of this.#allPools) pool.close('the proxy is shutting down');
    for (const cluster of this.#clusters.values()) cluster.close();
    this.#askers.close();
    for (const host of this.#hosts) host.connector.close();
    await this.#ops.close();
    this.#caches.close();
    await this.#parser.close();
    await this.#save();
    this.#credits.close();
    // One turn of the loop, so that what was written last is sent.
    await this.#sleep(10);
    this.log.info('stopped');
  }
}

/** All that secrets are asked by. */
function queriesOf({ auth, databases }: Config) {
  return [auth.query, Object.entries(databases).map(([name, { authQuery }]) => [name, authQuery])];
}

/** The ledgers of each host, over all databases on it. */
function residentsOf(databases: readonly DatabaseConfig[]): Residents {
  const found = new Map<string, Set<string>>();
  for (const { hosts, ledgers } of databases) {
    for (const host of hosts) {
      const names = found.get(addressOf(host)) ?? new Set();
      for (const name of host.ledgers ?? ledgers) names.add(name);
      found.set(addressOf(host), names);
    }
  }
  return [...found].map(([address, names]) => [address, [...names]] as const);
}

/** One host that nobody is held for. */
function alone(host: HostConfig, clock: Clock): Cluster {
  return new Cluster({
    hosts: [host],
    hold: { for: 0, requestsMax: 0, bytesMax: 0 },
    door: { waiting: 0, waitingBytes: 0, limitOf: () => Number.POSITIVE_INFINITY, setOutage() {}, moveFrom() {} },
    clock,
    probeMs: PROBE_MS,
    openControl: null,
    lineage: null,
    onLineage() {},
    onEvent() {},
  });
}
