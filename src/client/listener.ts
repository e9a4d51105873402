/**
 * Lets clients in: limits their number, runs their login (client/login) and makes each a Session, a replication
 * connection or a console. Called by app, which says which pool a client belongs to.
 *
 *     client/ports ──socket──▶ login ──▶ console │ replication │ session (once its pool knows what its servers report)
 *
 * Invariants: at most `clientsMax` clients are logged in; sockets that are not logged in are bounded too, in number and
 * by `loginTimeout` in time.
 */
import type net from 'node:net';
import type { Cache } from '../cache/cache.ts';
import type { Fill } from '../cache/flight.ts';
import { Identities } from '../cache/key.ts';
import type { ListenConfig } from '../config/schema.ts';
import type { Admission } from '../guard/admission.ts';
import * as encode from '../protocol/encode.ts';
import { fatal, type Refusal, SqlState } from '../protocol/sqlstate.ts';
import { ServerLoginError } from '../server/login.ts';
import type { ServerPool } from '../server/pool.ts';
import type { Settings } from '../server/settings.ts';
import type { Judge } from '../sql/verdict.ts';
import { type Clock, every } from '../util/clock.ts';
import { messageOf } from '../util/errors.ts';
import { moveConnection } from '../util/intake.ts';
import type { Authentication } from './authenticate.ts';
import { type CancelKey, CancelKeys } from './cancel.ts';
import { clientReads } from './connection.ts';
import { runErrand } from './errand.ts';
import { FailedLogins } from './failures.ts';
import { Headcount } from './headcount.ts';
import type { SessionHouse, SessionJournal } from './house.ts';
import { linger, refuse } from './linger.ts';
import { type ClientIdentity, logInClient, settingsOf, tooManyClients } from './login.ts';
import { HIGH_WATER_MARK, Ports } from './ports.ts';
import { type ReplicationLogin, Replications } from './replications.ts';
import { Session } from './session.ts';
import type { ClientTls } from './tls.ts';
import type { Usage } from './usage.ts';

/** What the listener is told by app. All of it may change with a reload; it is read anew for each client. */
export interface ListenerContext extends Authentication {
  listen: ListenConfig;
  tls: ClientTls | null;
  judge: Judge;
  clock: Clock;
  admission: Admission;
  usage: Usage;
  journal: SessionJournal;
  /** The pool for a database and user, or null when no key of `databases` fits. */
  poolOf(database: string, user: string): ServerPool | null;
  /** How many clients a database and a user may have; 0: any number. */
  clientsMaxOf(database: string, user: string): { database: number; user: number };
  /** The read cache of its database. */
  cacheOf(pool: ServerPool): Cache | null;
  /** New clients of this database are refused (DISABLE). */
  isDisabled(database: string): boolean;
  /** Somebody has logged in, and is about to be served. */
  onSession(session: Session): void;
  replicationOf(pool: ServerPool, replication: string): Promise<ReplicationLogin>;
  /** Takes over a client of the console; or says why it may not use it. */
  openConsole(client: ClientIdentity): Refusal | null;
  onEvent(event: string, fields: Record<string, unknown>): void;
  onBug(where: string, thrown: unknown): void;
}

export interface ClientCounts {
  accepted: number;
  refused: number;
  loginFailures: number;
  /** Of these, beyond listen.loginTimeout. */
  loginTimeouts: number;
  bugs: number;
}

/** Sockets beyond clientsMax that may be open for cancel requests and refusals. */
const CANCELS_MAX = 256;
const TICK_MS = 250;
const KEEPALIVE_MS = 60_000;
const consoleDatabases: readonly string[] = ['pgbouncer', 'pgweir'];

export class Listener {
  readonly #context: () => ListenerContext;
  readonly keys: CancelKeys;
  readonly sessions = new Set<Session>();
  readonly #replications: Replications;
  readonly #headcount = new Headcount();
  /** Sockets that are logging in. */
  readonly #loggingIn = new Set<net.Socket>();
  readonly failures = new FailedLogins();
  readonly counts: ClientCounts = { accepted: 0, refused: 0, loginFailures: 0, loginTimeouts: 0, bugs: 0 };
  /** Sockets open. */
  open = 0;
  readonly #ports: Ports;
  #stopTicking: (() => void) | null = null;
  readonly #house: SessionHouse;
  #isDraining = false;

  constructor(instance: number, context: () => ListenerContext) {
    this.keys = new CancelKeys(instance, 0);
    this.#context = context;
    this.#replications = new Replications(this.keys);
    this.#ports = new Ports(
      (socket, isLocal) => this.#onConnection(socket, isLocal),
      (reason) => context().onEvent('listener error', { reason }),
    );
    const { judge, clock, admission, usage, journal } = context();
    this.#house = {
      judge,
      clock,
      admission,
      identities: new Identities(),
      cacheOf: (pool) => context().cacheOf(pool),
      runErrand: (session, request, fill, done) => this.#runErrand(session, request, fill, done),
      holderOf: (pid) => this.keys.holderOf(pid),
      usage,
      journal,
      onEnd: this.#onEnd,
      onBug: this.#onBug,
    };
  }

  get loggingIn(): number {
    return this.#loggingIn.size;
  }

  /** Clients that have logged in. */
  get clients(): number {
    return this.sessions.size + this.#replications.size + this.#replications.opening;
  }

  get replications(): number {
    return this.#replications.size;
  }

  /** Listens, on the socket `fd` if one was inherited; the promise fails with the system's error, such as EADDRINUSE. Gives the TCP port. */
  async start(fd?: number): Promise<number> {
    const { listen, clock } = this.#context();
    const port = await this.#ports.open(listen, fd);
    this.#stopTicking = every(clock, TICK_MS, () => this.#tick());
    return port;
  }

  #tick(): void {
    const now = this.#context().clock.now();
    for (const session of this.sessions) session.tick(now);
  }

  #onConnection(socket: net.Socket, isLocal: boolean): void {
    this.counts.accepted++;
    this.open++;
    socket.on('close', this.#onSocketClosed);
    const context = this.#context();
    // Beyond clientsMax a socket may still bring a cancel request; so many of them at once are an attack.
    if (this.open > context.listen.clientsMax + CANCELS_MAX) {
      this.counts.refused++;
      return void socket.destroy();
    }
    // One that has gone already has no address, and must not be taken for one that needs none.
    const address = isLocal ? null : socket.remoteAddress;
    if (address === undefined) return void socket.destroy();
    socket.setKeepAlive(true, KEEPALIVE_MS);
    this.#loggingIn.add(socket);
    this.#logIn(socket, address, context).catch((thrown: unknown) => {
      this.#loggingIn.delete(socket);
      this.#onBug('login', thrown);
      socket.destroy();
    });
  }

  async #logIn(socket: net.Socket, address: string | null, context: ListenerContext): Promise<void> {
    const cancelTimer = context.clock.after(context.listen.loginTimeout, () => {
      this.counts.loginTimeouts++;
      socket.destroy();
    });
    const { failures } = this;
    failures.configure(context.auth.failures);
    const outcome = await logInClient(socket, address, {
      ...context,
      keys: this.keys,
      waitOf: (user) => failures.waitOf(address, user, context.clock.now()),
      isFull: () => this.clients >= context.listen.clientsMax,
    });
    cancelTimer();
    this.#loggingIn.delete(socket);
    if (outcome.kind === 'done') return;
    if (outcome.kind === 'canceled') {
      outcome.socket.end();
      return linger(outcome.socket, context.clock);
    }
    if (outcome.kind === 'refused') {
      const { sqlstate, message } = outcome.refusal;
      if (sqlstate === SqlState.TooManyConnections) this.counts.refused++;
      else this.counts.loginFailures++;
      if (sqlstate === SqlState.InvalidPassword) failures.onFailure(address, outcome.user, context.clock.now());
      context.onEvent('login refused', { sqlstate, reason: message, address });
      return refuse(outcome.socket, outcome.refusal, context.clock);
    }
    const { client } = outcome;
    // Nobody would hear of its end any more.
    if (socket.destroyed || client.socket.destroyed) return;
    failures.onSuccess(address, client.user);
    if (this.#openConsole(client, context)) return;
    const decline = (refusal: Refusal) => this.#decline(client, refusal, context);
    if (this.#isDraining)
      return decline(fatal(SqlState.AdminShutdown, 'the proxy is shutting down', { hint: 'connect again' }));
    if (context.isDisabled(client.database))
      return decline(
        fatal(SqlState.NotAccepting, `database "${client.database}" is disabled`, {
          hint: 'by an administrator (DISABLE); ENABLE lets clients in again',
        }),
      );
    const pool = context.poolOf(client.database, client.user);
    if (pool === null)
      return decline(
        fatal(SqlState.InvalidCatalogName, `database "${client.database}" does not exist`, {
          hint: `no key of databases fits this name (PgBouncer: no such database: ${client.database})`,
        }),
      );
    if (client.replication !== null) return this.#replicate(client, pool, client.replication, context);
    this.#welcome(client, pool, context);
  }

  /** Tells somebody who has logged in that he cannot stay after all. */
  #decline(
    { socket, user, database }: ClientIdentity,
    refusal: Refusal | ServerLoginError,
    context: ListenerContext,
  ): void {
    const { sqlstate, message } = refusal;
    const advice = refusal instanceof ServerLoginError ? refusal.advice : refusal.hint;
    if (sqlstate === SqlState.TooManyConnections) this.counts.refused++;
    else this.counts.loginFailures++;
    context.onEvent('login refused', { sqlstate, reason: message, advice, user, database });
    refuse(socket, refusal, context.clock);
  }

  /** True: the client wants the console. It counts as a client, and administrators are let in beyond what there may be. */
  #openConsole(client: ClientIdentity, context: ListenerContext): boolean {
    const { socket, user, database } = client;
    if (!consoleDatabases.includes(database)) return false;
    const isReplication = client.replication !== null;
    const crowded = context.auth.admins.includes(user) ? null : this.#refuseMore(client, context);
    const refusal = isReplication
      ? fatal(SqlState.FeatureNotSupported, 'the console has nothing to replicate')
      : (crowded ?? context.openConsole(client));
    if (refusal !== null) this.#decline(client, refusal, context);
    else socket.once('close', this.#headcount.hold(client));
    return true;
  }

  /** Lets the client in once it is known what the pool's servers report: at once, but for the very first. */
  #welcome(client: ClientIdentity, pool: ServerPool, context: ListenerContext): void {
    const { socket } = client;
    let settled = false;
    const finish = (failure: Refusal | ServerLoginError | null) => {
      if (settled) return;
      settled = true;
      cancelTimer();
      socket.off('close', onGone).off('error', onGone);
      if (failure === null) this.#serve(client, pool, context);
      else this.#decline(client, failure, context);
    };
    const onGone = () => {
      pool.unlearn(finish);
      finish(fatal(SqlState.AdminShutdown, 'gone'));
    };
    const [limitMs, limit] = waitOf(pool, context.listen);
    const cancelTimer = context.clock.after(limitMs, () => {
      this.counts.loginTimeouts++;
      pool.unlearn(finish);
      finish(
        fatal(SqlState.CannotConnectNow, 'no server of this database has answered yet', {
          detail: pool.lastFailure,
          hint: `check databases.*.hosts, and connect again (${limit})`,
        }),
      );
    });
    socket.once('close', onGone).once('error', onGone);
    pool.learn(finish);
  }

  /** Why there may be no more clients of this database, or of this user; null: there may. */
  #refuseMore(client: ClientIdentity, context: ListenerContext): Refusal | null {
    // More than one may have found room as they began to log in.
    if (this.clients >= context.listen.clientsMax) return tooManyClients(context.listen);
    return this.#headcount.refuse(client, context.clientsMaxOf(client.database, client.user));
  }

  #serve(client: ClientIdentity, pool: ServerPool, context: ListenerContext): void {
    const refusal = this.#refuseMore(client, context);
    if (refusal !== null) return this.#decline(client, refusal, context);
    const socket = moveConnection(client.socket, clientReads, HIGH_WATER_MARK);
    if (socket !== client.socket) {
      client.socket.off('close', this.#onSocketClosed);
      socket.on('close', this.#onSocketClosed);
    }
    const key = this.keys.issue(client.minor);
    const settings = pool.book.withStartup(pool.baseline!, settingsOf(client.settings, socket, context.listen));
    const session = new Session({
      id: client.id,
      socket,
      // One string for all clients of a pool.
      user: client.user === pool.user ? pool.user : client.user,
      key,
      pool,
      settings,
      messageMax: context.listen.messageMax,
      wantedClass: client.wantedClass,
      house: this.#house,
    });
    this.keys.hold(session);
    this.sessions.add(session);
    this.#headcount.add(session);
    pool.clients++;
    pool.counts.logins++;
    context.onSession(session);
    session.start(greeting(settings, key), client.rest);
  }

  /** For the cache: what `session` has asked is asked again, as it would. */
  #runErrand(
    { user, pool, settings }: Session,
    request: Buffer,
    fill: Fill | null,
    done: (answer: Buffer | null) => void,
  ): void {
    const { listen } = this.#context();
    const options = { user, pool, settings, messageMax: listen.messageMax, wantedClass: '' };
    runErrand(options, this.#house, request, fill, done);
  }

  readonly #onSocketClosed = (): void => {
    this.open--;
  };

  readonly #onEnd = (session: Session): void => {
    this.keys.revoke(session);
    if (!this.sessions.delete(session)) return;
    session.pool.clients--;
    this.#headcount.remove(session);
  };

  readonly #onBug = (where: string, thrown: unknown): void => {
    this.counts.bugs++;
    this.#context().onBug(where, thrown);
  };

  async #replicate(client: ClientIdentity, pool: ServerPool, mode: string, context: ListenerContext): Promise<void> {
    const refusal = this.#refuseMore(client, context);
    if (refusal !== null) return this.#decline(client, refusal, context);
    try {
      await this.#replications.open(
        client,
        pool,
        () => context.replicationOf(pool, mode),
        this.#headcount.hold(client),
      );
    } catch (thrown) {
      const failure = thrown instanceof ServerLoginError ? thrown : new ServerLoginError(messageOf(thrown));
      refuse(client.socket, failure, context.clock);
    }
  }

  /** Ends the replication connections of some databases. */
  endReplications(isMeant: (database: string) => boolean): void {
    this.#replications.end(isMeant);
  }

  /** What listens for clients by TCP. */
  get server(): net.Server {
    return this.#ports.tcp;
  }

  /** Another process has the sockets from here on; who has connected by now is served here. */
  handOver(): void {
    this.#ports.handOver();
  }

  /** No new clients, but of the console: by the Unix socket, where there is one. */
  refuseClients(): void {
    this.#isDraining = true;
    this.#ports.closeTcp();
  }

  /** No new clients; those without a transaction are told to go. True when none is left. */
  drain(): boolean {
    this.refuseClients();
    for (const session of this.sessions) session.drain();
    return this.sessions.size === 0;
  }

  /** Ends everything. */
  close(): void {
    this.#isDraining = true;
    this.#ports.close();
    this.#stopTicking?.();
    for (const session of this.sessions) session.end('terminating connection due to administrator command');
    this.#replications.end(() => true);
    for (const socket of this.#loggingIn) socket.destroy();
  }
}

/** How long a client may wait for the first server of its pool, and what says so. */
function waitOf({ config, isHeld }: ServerPool, { loginTimeout }: ListenConfig): [ms: number, limit: string] {
  const limits: [number, string][] = [[loginTimeout, 'listen.loginTimeout']];
  // While no primary can be reached nobody waits for a server.
  if (!isHeld) limits.push([config.waitMax, 'pool.waitMax, query_wait_timeout']);
  if (config.queryMax > 0) limits.push([config.queryMax, 'pool.queryMax, query_timeout']);
  return limits.reduce((least, each) => (each[0] < least[0] ? each : least));
}

/** Everything between a successful authentication and the first request, in one write. */
function greeting(settings: Settings, key: CancelKey): Buffer {
  return Buffer.concat([
    encode.authenticationOk,
    ...[...settings.reported].map(([name, value]) => encode.parameterStatus(name, value)),
    encode.backendKeyData(key),
    encode.readyForQuery(),
  ]);
}
