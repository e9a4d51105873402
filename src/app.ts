/**
 * READ FIRST. The composition root: from a configuration to a running proxy, and everything that changes it as a
 * whole: start, reload, stop. The only file that sees everything; nothing but cli (and the tests) calls it.
 *
 *     Config → clusters → pools ← sessions ← listener        ops (HTTP, console, metrics) reads them all
 *                           └─ tick: the one timer of all pools
 *
 * The one idea: rooms know nothing of each other where one is not below the other, so each is handed functions here. What grows
 * while the proxy runs is kept where it is understood: server/pools and server/clusters, client/secrets, ops/departure for the end.
 */

import { readFileSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { type BackendConfig, type CachedDatabase, Caches } from './cache/caches.ts';
import { Groups } from './client/groups.ts';
import { type Hba, readHba } from './client/hba.ts';
import { Listener, type ListenerContext } from './client/listener.ts';
import { Secrets } from './client/secrets.ts';
import { type ClientTls, readClientTls } from './client/tls.ts';
import { Usage } from './client/usage.ts';
import { Users } from './client/users.ts';
import { adviceFor } from './config/advice.ts';
import { controlDatabaseOf, databaseOf, isNamed, userOf } from './config/entries.ts';
import type { Loaded } from './config/load.ts';
import { type Config, type DatabaseConfig, RESTART_KEYS } from './config/schema.ts';
import { CreditBook, type Residents } from './credits/book.ts';
import { descriptorOf, type ListeningSockets } from './fleet/handover.ts';
import { Admission } from './guard/admission.ts';
import { Breakers } from './guard/breakers.ts';
import { Door } from './guard/door.ts';
import { readToken } from './ops/access.ts';
import { Bypass, type Watched } from './ops/bypass.ts';
import { Console } from './ops/console.ts';
import { Controls } from './ops/controls.ts';
import { couplingAt } from './ops/coupling.ts';
import { Departure } from './ops/departure.ts';
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
import { openChanges } from './server/changes.ts';
import { Clusters } from './server/clusters.ts';
import { addressOf } from './server/hosts.ts';
import { Pools } from './server/pools.ts';
import { Targets } from './server/targets.ts';
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
const GATE_TICK_MS = 20;
const SHARES_MS = 10_000;
const MEMORY_MS = 60_000;
const EVENTS_MS = 1_000;
const BYPASS_MS = 15_000;
const GROUPS_MS = 60_000;

export class App {
  config: Config;
  readonly log: Logger;
  readonly #options: AppOptions;
  readonly #clock: Clock;
  readonly #targets: Targets;
  readonly #clusters: Clusters;
  readonly #pools: Pools;
  readonly #secrets: Secrets;
  readonly #breakers: Breakers;
  readonly #parser: Parser;
  readonly #judge: Judge;
  readonly #admission: Admission;
  readonly #credits: CreditBook;
  readonly #caches: Caches;
  readonly #listener: Listener;
  readonly #shares: Shares;
  readonly #memory: Memory;
  readonly #controls: Controls;
  readonly #departure: Departure;
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
  #hba: Hba | null;
  readonly #groups: Groups;
  #tls: ClientTls | null;
  #stopTicking: (() => void) | null = null;
  #isListening = false;
  #reloadedAt: number;
  #isReloadOk = true;

  constructor(options: AppOptions) {
    this.#options = options;
    this.config = options.config;
    this.log = options.log;
    this.#clock = options.clock ?? systemClock;
    this.#startedAt = this.#clock.wall();
    this.#reloadedAt = this.#startedAt;
    const config = () => this.config;
    this.#breakers = new Breakers(options.config.breaker);
    const targets = new Targets((file) => this.#path(file));
    this.#clusters = new Clusters({
      clock: this.#clock,
      targets,
      doorOf: (addresses) => new Door(this.#admission, addresses),
      lineageOf: (addresses) => this.#memory.lineageOf(addresses),
      onLineage: (addresses, lineage) => {
        const isFirst = this.#memory.lineageOf(addresses.split(',')) === null;
        this.#memory.saveLineage(addresses, lineage);
        this.#caches.startAnew(isFirst);
      },
      onEvent: (event, fields, isAlarm) => (isAlarm ? this.log.warn(fields, event) : this.log.info(fields, event)),
    });
    this.#secrets = new Secrets({
      config,
      clock: this.#clock,
      targets,
      clusters: this.#clusters,
      users: this.#readUsers(options.config),
      onProblem: (database, problem) => this.log.warn({ database, problem }, 'auth.query cannot be asked'),
    });
    this.#pools = new Pools({
      config,
      clock: this.#clock,
      targets,
      clusters: this.#clusters,
      secretOf: (of, database, user) => this.#secrets.of(of, database, user),
      breakerOf: (address) => this.#breakers.at(address),
      isShort: (address) => ['RED', 'BLACK'].includes(this.#admission.gateOf(address).zone),
      onPool: (pool, of) => {
        this.#admission.gateOf(pool.hostAddress); // From here on it is to be seen.
        if (of.cache !== null && this.#caches.of(pool.database) === null) this.#setCaches();
        this.#controls.onPool(pool);
      },
      onForgotten: (databases) => {
        // Every session hears of it, so only where there is something to hear.
        if (databases.some((name) => this.#caches.of(name) !== null)) this.#setCaches();
      },
      onEvent: (event, fields) => this.log.info(fields, event),
    });
    this.#targets = targets;
    this.#checkToken(options.config);
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
    this.#admission = new Admission(options.config, this.#clock.now());
    const state = new StateDir(this.#path(options.config.state.dir));
    const admission = this.#admission;
    this.#memory = new Memory(admission, state, (problem) => this.log.error(problem));
    this.#caches = new Caches(
      (sql, done) => this.#parser.parse(sql, done),
      this.#clock,
      (event, fields) => this.log.info(fields, event),
      this.#memory.told,
    );
    // Instances are told apart in cancel keys; until they share anything, chance is as good as a number.
    this.#listener = new Listener(Math.floor(Math.random() * 128), () => this.#listenerContext());
    this.#usage.restore(this.#memory.usage);
    this.#credits = new CreditBook(
      {
        clock: this.#clock,
        query: (database, sql) => {
          const config = databaseOf(this.config, database)!;
          return this.#clusters.query(config, config.dbname ?? database, sql);
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
    const switches = new Switchboard({
      admission,
      config,
      clock: this.#clock,
      state,
      shares: this.#shares,
      onProblem: (problem) => this.log.error(problem),
    });
    for (const problem of state.problems) this.log.error(problem);
    this.#controls = new Controls({
      pools: () => this.#pools.all,
      sessions: () => this.#listener.sessions,
      refuseClients: () => this.#listener.refuseClients(),
      drain: () => this.#listener.drain(),
      endReplications: (isMeant) => this.#listener.endReplications(isMeant),
      clients: () => this.#listener.clients,
      isNamed: (database) => isNamed(this.config, database),
      shutDown: () => (options.onShutdown ?? (() => void this.stop()))(),
    });
    this.#switches = switches;
    const { startSuccessor } = options;
    this.#departure = new Departure({
      config: () => this.config.drain,
      clock: this.#clock,
      log: this.log,
      isShuttingDown: () => this.#controls.isShuttingDown,
      drain: () => this.#listener.drain(),
      clients: () => this.#listener.clients + this.#listener.loggingIn,
      startSuccessor:
        startSuccessor === undefined
          ? null
          : async () => {
              const sockets = { clients: descriptorOf(this.#listener.server), ops: descriptorOf(this.#ops.server) };
              return startSuccessor(sockets, (key) => this.#listener.keys.request(key));
            },
      handOver: () => {
        this.#memory.handOver();
        this.#switches.handOver();
        this.#listener.handOver();
      },
      closeOps: () => this.#ops.close(),
      stop: () => this.stop(),
      onGone: options.onShutdown ?? (() => {}),
    });
    this.#console = new Console(() => this.snapshot(), {
      controls: this.#controls,
      reload: () => this.reload(),
      upgrade: () => this.#departure.upgrade(),
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
      users: () => this.#secrets.users,
      status: () => this.#status(),
      coupling: (since) => couplingAt(this.snapshot(), since),
      explain: (id) => this.#journal.explain(id),
      history: this.#history,
      events: this.#events,
      clock: this.#clock,
      switches,
      upgrade: () => this.#departure.upgrade(),
      isReady: () => this.#isReady,
      checks: () => this.#checks(),
      metrics: () => this.#metrics.render(),
      contentType: this.#metrics.contentType,
      onProblem: (url, problem) => this.log.error({ url, problem }, 'a request over HTTP cannot be answered'),
    });
  }

  /** Listens for clients and on the HTTP port; gives the ports. */
  async start(): Promise<{ port: number; opsPort: number }> {
    this.#configure();
    // Who is the primary is found out before anybody asks.
    this.#clusters.configure(this.config.databases);
    this.#groups.configure(this.#hba?.groups ?? []);
    this.#pools.openMinimum();
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
      every(this.#clock, EVENTS_MS, () => {
        this.#switches.tick();
        this.#events.look(this.snapshot(), this.#switches.rows());
      }),
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
    this.#clusters.tick(now);
    this.#pools.tick(now);
    this.#tickBreakers(now);
    for (const host of this.#pools.hosts) host.silence.tick(now);
  }

  // --- What clients need ----------------------------------------------------------------------------------------

  #listenerContext(): ListenerContext {
    return {
      listen: this.config.listen,
      auth: this.config.auth,
      users: this.#secrets.users,
      authQueryOf: (database) => this.#secrets.authQueryOf(database),
      hba: this.#hba,
      isMember: this.#groups.isMember,
      tls: this.#tls,
      judge: this.#judge,
      clock: this.#clock,
      admission: this.#admission,
      usage: this.#usage,
      journal: this.#journal,
      poolOf: (database, user) => this.#pools.of(database, user),
      clientsMaxOf: (database, user) => ({
        database: databaseOf(this.config, database)?.clientsMax ?? this.config.listen.databaseClientsMax,
        user: userOf(this.config, user)?.clientsMax ?? 0,
      }),
      cacheOf: (pool) => this.#caches.of(pool.database),
      isDisabled: (database) => this.#controls.isDisabled(database),
      onSession: (session) => this.#controls.onSession(session),
      replicationOf: async (pool, mode) => ({
        target: { ...pool.target, connectQuery: undefined, parameters: [['replication', mode]] },
        secret: await this.#secrets.of(databaseOf(this.config, pool.database)!, pool.database, pool.target.user),
        connectMs: pool.config.connectMax,
      }),
      openConsole: (client) => this.#console.open(client, this.config.auth),
      onEvent: (event, fields) => this.log.info(fields, event),
      onBug: (where, thrown) => this.log.error({ where, err: thrown }, 'bug: a session was ended'),
    };
  }

  /** Without a primary, and when somebody wants plain pooling, nothing is to be learned from answers. */
  #tickBreakers(now: number): void {
    const { missing } = this.#clusters;
    const isExcused = (address: string) => this.#admission.isPassthrough || missing.has(address);
    this.#breakers.tick(now, isExcused, (address, { state, why }) => {
      this.log.warn({ host: address, state, why }, 'breaker');
      if (state !== 'open') return;
      for (const pool of this.#pools.all) if (pool.hostAddress === address) pool.onBreaker();
    });
  }

  /** Groups are asked for of the first database that has somebody to ask. */
  async #askMembers(sql: string, values: readonly string[]): Promise<(string | null)[][]> {
    const found = Object.entries(this.config.databases).find(([, { control }]) => control !== undefined);
    if (found === undefined) throw new Error('no database has a control user');
    const [name, config] = found;
    return this.#clusters.query(config, controlDatabaseOf(name, config), sql, values);
  }

  /** Every primary that a control user may look at, once. */
  #watched(): Watched[] {
    const pids = this.#pools.all.flatMap((pool) => [
      ...pool.servers().map(({ server }) => server.pid),
      ...(pool.channels.server === null ? [] : [pool.channels.server.pid]),
    ]);
    const watched = new Map<string, Watched>();
    for (const [name, config] of Object.entries(this.config.databases)) {
      if (config.control === undefined) continue;
      const host = addressOf(this.#clusters.of(config, name).primary);
      const database = controlDatabaseOf(name, config);
      watched.set(host, { host, pids, query: (sql) => this.#clusters.query(config, database, sql) });
    }
    return [...watched.values()];
  }

  // --- Configuration --------------------------------------------------------------------------------------------

  #path<File extends string | null>(file: File): File {
    if (file === null || this.#options.file === null) return file;
    return resolve(dirname(this.#options.file), file) as File;
  }

  /** It is read again with each request: here only so that what is wrong with it shows at once. */
  #checkToken({ ops }: Config): void {
    if (ops.tokenFile !== null) readToken(this.#path(ops.tokenFile));
  }

  #readUsers(config: Config): Users {
    return Users.read(this.#path(config.auth.users));
  }

  /** What the configuration decides for all of the house. */
  #configure(): void {
    const databases = Object.values(this.config.databases);
    this.#journal.slowMs = this.config.log.slow;
    this.#credits.configure(this.config, residentsOf(databases));
    this.#admission.setBudgets(this.#credits.hosts);
    this.#admission.configure(this.config, this.#clock.now());
    const isCached = this.config.cache.mode !== 'off' && databases.some(({ cache }) => cache !== null);
    this.#judge.want({
      reads: isCached || databases.some(({ pool, reads }) => pool.share === 'auto' || reads !== 'primary'),
      places: databases.some(({ reads }) => reads !== 'primary'),
    });
    this.#setCaches();
    this.#breakers.configure(this.config.breaker);
    this.#pools.setCaps();
  }

  /** The read caches: of databases by the names that clients ask for. */
  #setCaches(): void {
    const names = new Set([...Object.keys(this.config.databases), ...this.#pools.databases]);
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
    // As it is configured by then: of what is not configured any more no cluster is to begin.
    const now = () => {
      const found = databaseOf(this.config, name);
      if (found?.control === undefined) throw new Error('it is not configured any more');
      return { found, dbname: found.dbname ?? name, primary: this.#clusters.of(found, name).primary };
    };
    return {
      name,
      rules: this.config.cache.sets[config.cache]!,
      servers: config.pool.size,
      place: JSON.stringify([config.hosts, config.control, config.tls, config.dbname]),
      openControl: async () => {
        const { found, dbname, primary } = now();
        return this.#targets.openControl(found, dbname, primary);
      },
      openChanges: async (hear) => {
        const { found, dbname, primary } = now();
        const password = await this.#targets.controlPassword(found);
        return openChanges(this.#targets.of(dbname, found.control!.user, found, primary), password, hear);
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
    const users = this.config.auth.method === 'trust' ? null : this.#secrets.users.names;
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
      this.#checkToken(config);
      users = this.#readUsers(config);
      hba = readHba(config, (file) => this.#path(file));
      clientTls = readClientTls(config.listen.tls, (file) => this.#path(file));
    } catch (thrown) {
      return [messageOf(thrown)];
    }
    const before = this.config;
    for (const key of changedKeys(before, config))
      if (RESTART_KEYS.includes(key)) this.log.warn(`${key} needs a restart to take effect`);
    this.config = config;
    this.#secrets.reload(users, before);
    this.#hba = hba;
    this.#groups.configure(hba?.groups ?? []);
    this.#tls = clientTls;
    this.log.level = config.log.level;
    this.#configure();
    this.#pools.reload(before);
    this.#clusters.configure(config.databases);
    this.#clusters.sweep(config.databases);
    this.#pools.openMinimum();
    return [];
  }

  // --- Seeing it ------------------------------------------------------------------------------------------------

  #checks(): Record<string, boolean> {
    return { config: this.#isReloadOk, listener: this.#isListening, draining: !this.#departure.isEnding };
  }

  get #isReady(): boolean {
    return this.#isListening && !this.#departure.isEnding;
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
      pools: this.#pools.ofPrimaries,
      standbyPools: this.#pools.ofStandbys,
      hosts: [...this.#pools.hosts],
      clusters: [...this.#clusters],
      breakers: this.#breakers.all,
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
      statements: this.#pools.statements,
      users: this.#secrets.users,
      authQuery: this.#secrets.authQuery,
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
  drain(): Promise<void> {
    return this.#departure.drain();
  }

  /** Ends everything at once; servers are closed with Terminate. */
  async stop(): Promise<void> {
    this.#departure.cut();
    this.#stopTicking?.();
    this.#listener.close();
    this.#console.close();
    this.#pools.close('the proxy is shutting down');
    this.#memory.saveTold(this.#caches.told);
    this.#clusters.close();
    this.#secrets.close();
    for (const host of this.#pools.hosts) host.connector.close();
    await this.#ops.close();
    this.#caches.close();
    await this.#parser.close();
    await this.#save();
    this.#credits.close();
    // One turn of the loop, so that what was written last is sent.
    await new Promise((done) => setTimeout(done, 10));
    this.log.info('stopped');
  }
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
