/**
 * The servers of one database and one user: who is given which, and whether one more is wanted. Called by client/session
 * (`lease`, `share`, `giveBack`, `recover`), by server/pools (`tick`) and by ops (snapshots).
 *
 *     waiters (FIFO) ──lease──▶ active ──giveBack──▶ the oldest waiter, else idle (LIFO)
 *                                  └────recover────▶ cleaning ──▶ as giveBack, else closed
 *
 * The one idea: a free server goes straight to the oldest waiter, and all that decides about it stands here. How it is done
 * is in rooms of their own that decide nothing: server/waiters (who waits), stock (the servers, by what they do), lines
 * (several reads on one of them), opener (from a wish to a server), vitals (is the host well?), refusals (what is said).
 *
 * Invariants: open + connecting ≤ size + sizeReserve (and, over several pools, ≤ their caps); only a free server
 * (server/connection) changes its holder, unless through a Cleanup.
 */
import type { HostConfig, PoolConfig } from '../config/schema.ts';
import { fatal, type Refusal, SqlState } from '../protocol/sqlstate.ts';
import type { Catalog } from '../sql/catalog.ts';
import type { Chain } from '../util/chain.ts';
import type { Clock } from '../util/clock.ts';
import { Histogram } from '../util/histogram.ts';
import { type Cap, Room, type Tenant } from './cap.ts';
import { Channels } from './channels.ts';
import type { Cluster, ClusterTenant } from './cluster.ts';
import type { ServerConnection } from './connection.ts';
import { noCounts, type PoolCounts, type TimeLimit } from './counts.ts';
import type { Host } from './hosts.ts';
import type { Line, Wish } from './line.ts';
import { Lines } from './lines.ts';
import { type Secret, ServerLoginError, type ServerTarget } from './login.ts';
import { type Learner, Opener, type Place } from './opener.ts';
import { ReadBook } from './reads.ts';
import { type RefusalReason, Refusals, type Refused } from './refusals.ts';
import type { Replicas } from './replicas.ts';
import { type Settings, SettingsBook } from './settings.ts';
import { type Statement, StatementBook } from './statements.ts';
import { type ServerState, Stock } from './stock.ts';
import { type Breaker, Vitals } from './vitals.ts';
import { type Waiter, Waiters } from './waiters.ts';

/** Words of its callers. */
export type { PoolCounts } from './counts.ts';
export type { Waiter } from './waiters.ts';

export interface PoolOptions {
  database: string;
  user: string;
  target: ServerTarget;
  config: PoolConfig;
  host: Host;
  /** The host at an address of the cluster. */
  hostOf: (host: HostConfig) => Host;
  /** Caps that hold beside that of the host. */
  caps: readonly Cap[];
  cluster: Cluster;
  breakerOf: (address: string) => Breaker;
  clock: Clock;
  catalog: Catalog | null;
  /** Of the pool of the primary, for one of a standby: clients move between them. */
  book?: SettingsBook;
  /** What to log in with; asked again, with `isAgain`, after a wrong password. */
  secret: (isAgain: boolean) => Promise<Secret>;
  onEvent: (event: string, fields: Record<string, unknown>) => void;
}

let nextSerial = 1;

export class ServerPool implements Tenant, ClusterTenant {
  readonly database: string;
  readonly user: string;
  /** Tells it from others of the same database and user. */
  readonly serial = nextSerial++;
  readonly book: SettingsBook;
  readonly statements = new StatementBook();
  /** Nobody is to give up a server for them when there are none. */
  readonly waiters = new Waiters(() => this.#place.room.leaveQueue());
  /** Servers of `active` that several clients' reads are in flight on. */
  readonly lines: Lines;
  readonly reads = new ReadBook();
  readonly waits = new Histogram();
  /** Where reads may go instead; null: nowhere. */
  replicas: Replicas | null = null;
  /** LISTEN for all its clients, on one more connection. */
  readonly channels = new Channels(() => this.#openForChannels());
  readonly counts: PoolCounts = noCounts();
  /** Servers that are pinned to one client each at the moment. */
  pinned = 0;
  /** Clients that use this pool. */
  clients = 0;
  /** When it was last seen in use. */
  usedAt: number;
  /** When the newest of its servers was opened. */
  openedAt = 0;
  isPaused = false;
  config: PoolConfig;
  catalog: Catalog | null;

  /** Where its servers are. */
  #place: Place;
  readonly #caps: readonly Cap[];
  #cluster: Cluster;
  readonly #hostOf: (host: HostConfig) => Host;
  readonly #vitals: Vitals;
  /** One more server would have been used. */
  #isWanted = false;
  readonly #clock: Clock;
  readonly #stock: Stock;
  readonly #opener: Opener;
  readonly #refusals: Refusals;
  readonly #onEvent: PoolOptions['onEvent'];
  /** What who comes after its end is told; null: it is open. */
  #closed: Refusal | null = null;
  #onDrained: (() => void)[] = [];

  constructor(options: PoolOptions) {
    this.book = options.book ?? new SettingsBook();
    this.database = options.database;
    this.user = options.user;
    this.config = options.config;
    this.catalog = options.catalog;
    this.#hostOf = options.hostOf;
    this.#cluster = options.cluster;
    this.#clock = options.clock;
    this.usedAt = options.clock.now();
    this.#onEvent = options.onEvent;
    this.#refusals = new Refusals(options.database, options.user, this.counts.refused);
    this.#vitals = new Vitals({
      host: options.host,
      counts: this.counts,
      breakerOf: options.breakerOf,
      look: () => this.#opener.look(this.#place),
    });
    this.lines = new Lines({
      clock: options.clock,
      isOld: (server) => this.#stock.isOld(server),
      onRoom: (line) => this.#boardWaiters(line),
      onEnd: (server) => {
        if (!server.isClosed) this.giveBack(server);
      },
    });
    this.#stock = new Stock({
      clock: options.clock,
      onFree: (server) => this.giveBack(server),
      onMissing: () => this.#grow(),
    });
    this.#opener = new Opener({
      config: () => this.config,
      clock: options.clock,
      book: this.book,
      counts: this.counts,
      secret: options.secret,
      isAt: (place) => place === this.#place && this.#closed === null,
      onOpened: (server) => this.#onOpened(server),
      onFailed: (failure) => this.#onConnectFailed(failure),
      onClosed: (server, { room }, reason) => this.#onClosed(server, room, reason),
      onMayOpen: () => this.#grow(),
      onEvent: options.onEvent,
    });
    this.#caps = options.caps;
    this.#place = { target: options.target, host: options.host, room: this.#enter(options.host) };
    this.#cluster.join(this);
  }

  /** Its servers are on `host` from here on, and count there. */
  #enter(host: Host): Room {
    const room = new Room(this, [...this.#caps, host]);
    room.join();
    return room;
  }

  /** The address of the host that its servers are on. */
  get hostAddress(): string {
    return this.#place.host.address;
  }

  get cluster(): Cluster {
    return this.#cluster;
  }

  get target(): ServerTarget {
    return this.#place.target;
  }

  /** What servers report at login; null until one has answered. */
  get baseline(): Settings | null {
    return this.#opener.baseline;
  }

  get connecting(): number {
    return this.#opener.connecting;
  }

  get idle(): Chain<ServerConnection> {
    return this.#stock.idle;
  }

  get active(): Chain<ServerConnection> {
    return this.#stock.active;
  }

  get cleaning(): Chain<ServerConnection> {
    return this.#stock.cleaning;
  }

  get serverCount(): number {
    return this.#stock.size + this.connecting;
  }

  get idleCount(): number {
    return this.idle.size;
  }

  get openCount(): number {
    return this.#stock.size;
  }

  get atWork(): number {
    return this.active.size;
  }

  get waiting(): number {
    return this.waiters.size;
  }

  get waitingBytes(): number {
    return this.waiters.bytes;
  }

  get size(): number {
    return this.config.size;
  }

  get hasHeld(): boolean {
    // Who is paused is not waiting for a primary.
    return !this.isPaused && this.waiters.first !== null && this.waiters.wasHeld(this.waiters.first);
  }

  /** No primary can be reached, for longer than requests are held. */
  get isUnreachable(): boolean {
    return this.#cluster.hold.state === 'refusing';
  }

  /** No primary can be reached, and requests wait for one. */
  get isHeld(): boolean {
    return this.isPaused || this.#cluster.hold.state === 'holding';
  }

  /** Why the last connection attempt failed; '' when it did not. */
  get lastFailure(): string {
    return this.#opener.failure?.message ?? '';
  }

  get pinnedMax(): number {
    return Math.max(1, Math.floor(this.config.pinnedMax * this.config.size));
  }

  /** Somebody has it, or waits for something of it. */
  get isInUse(): boolean {
    return this.clients + this.atWork + this.waiters.size > 0 || this.#opener.hasLearners;
  }

  /** Nobody uses it: it can be forgotten. Of those that only look out for their host to be back one is enough. */
  get isUnused(): boolean {
    if (this.isInUse || this.openCount > 0) return false;
    return this.#isLookout ? !this.#cluster.isLast : this.connecting === 0 && !this.#opener.isResting;
  }

  /** It is to have its least number of servers although nobody asks: it has met them, and nothing must be changed before it can. */
  get keepsMinimum(): boolean {
    return this.config.sizeMin > 0 && this.baseline !== null && !this.#opener.failure?.isPermanent;
  }

  /** While nobody waits somebody must find out when an outage is over; probes do, where there are any. */
  get #isLookout(): boolean {
    return this.#cluster.hold.isClosed && !this.#cluster.isProbed && this.openCount === 0;
  }

  /** Gives a free server, or a refusal, at once; null: `waiter` will be called. */
  lease(waiter: Waiter): ServerConnection | Refusal | null {
    waiter.waitingSince = this.#clock.now();
    if (this.#closed !== null) return this.#closed;
    if (!this.#vitals.breaker.passes()) return this.#refuseUnhealthy();
    const server = this.#mayServe && this.waiters.size === 0 ? this.#stock.take(waiter.settings) : null;
    if (server !== null) {
      this.#countWait(0);
      this.#grant(server);
      return server;
    }
    const refusal = this.#refuseAtOnce(waiter);
    if (refusal !== null) return refusal;
    this.waiters.push(waiter);
    this.#grow();
    return null;
  }

  /**
   * A line that the read of `waiter` may board at once; null: it must wait, or have a server of its own. Nobody boards
   * ahead of those who wait, so lines end when somebody waits for a server of his own. `mayOpen`: an idle server may be
   * put to work.
   */
  share({ settings }: Waiter, wish: Wish, mayOpen: boolean): Line | null {
    if (!this.#mayServe || this.waiters.size > 0 || this.#owes(this.serverCount) || !this.#vitals.breaker.isClosed)
      return null;
    const server = this.idle.last;
    const best = this.lines.best(settings, wish);
    const isFit =
      server !== null && server.settings === settings && has(server, wish.statement) && !this.#stock.isStale(server);
    if (isFit && mayOpen && this.lines.isBetterAlone(best, this.active.size)) return this.#openLine(server);
    return best;
  }

  /** An idle server at once, for a read that need not wait here; null: there is none, and one more is opened if there may be. */
  takeIdle(settings: Settings): ServerConnection | null {
    const mayServe = this.#mayServe && this.waiters.size === 0 && this.#vitals.breaker.isClosed;
    const server = mayServe ? this.#stock.take(settings) : null;
    if (server !== null) {
      this.#countWait(0);
      this.#grant(server);
      return server;
    }
    this.#isWanted = mayServe;
    this.#grow();
    return null;
  }

  /** Makes a line of a free server. */
  #openLine(server: ServerConnection): Line {
    this.#stock.remove(server);
    this.#countWait(0);
    this.#grant(server);
    return this.lines.open(server);
  }

  /** The oldest waiters board, as far as their reads may ride. */
  #boardWaiters(line: Line): void {
    for (let waiter = this.waiters.first; waiter !== null; waiter = this.waiters.first) {
      const { wish } = waiter;
      const mayBoard =
        wish !== null && this.#mayServe && !this.#stock.isOld(line.server) && !this.#owes(this.serverCount);
      if (!mayBoard || !line.suits(waiter.settings, wish)) return;
      this.waiters.remove(waiter);
      this.#countServed(waiter);
      waiter.onBoard(line);
    }
  }

  /** Gives a free server to the oldest waiter, or to several whose reads may ride. */
  #serve(server: ServerConnection, waiter: Waiter): void {
    if (waiter.wish !== null && server.settings === waiter.settings) {
      const line = this.#openLine(server);
      this.#boardWaiters(line);
      if (line.size > 0) return;
      this.lines.drop(line); // It does not suit after all.
      this.active.remove(server);
    }
    this.waiters.remove(waiter);
    this.#countServed(waiter);
    this.#grant(server);
    waiter.onLease(server);
  }

  /** Nothing keeps servers that are free from those who wait. */
  get #mayServe(): boolean {
    return !this.isPaused && this.#cluster.mayWork;
  }

  /** It has waited, and is served now. */
  #countServed(waiter: Waiter): void {
    if (this.waiters.wasHeld(waiter)) this.#cluster.hold.counts.released++;
    this.#countWait(this.#clock.now() - waiter.waitingSince);
  }

  #refuseAtOnce(waiter: Waiter): Refusal | null {
    const whyNotHeld = this.isPaused ? '' : this.#cluster.whyNotHeld(waiter.heldBytes);
    if (whyNotHeld !== '') return this.#refuseHeld(whyNotHeld);
    const { hopeless } = this.#opener;
    if (hopeless !== null && this.serverCount === 0) return this.#refusals.unreachable(hopeless);
    if (this.waiters.size >= this.config.queueMax) {
      return this.refuse('queue', `${this.waiters.size} requests already wait for a server (pool.queueMax)`);
    }
    return null;
  }

  /** A waiter has gone away. */
  leave(waiter: Waiter): void {
    if (waiter.chain === this.waiters) this.waiters.remove(waiter);
  }

  /** Takes a free server back from its holder. */
  giveBack(server: ServerConnection): void {
    server.holder = null;
    server.changedAt = this.#clock.now();
    server.resume(); // Its last holder may have stopped it.
    this.#stock.remove(server);
    if (this.#isSpent(server)) {
      server.close('closed by the pool');
      this.#checkDrained();
      return;
    }
    const waiter = this.#mayServe ? this.waiters.first : null;
    if (waiter !== null) return this.#serve(server, waiter);
    this.idle.push(server);
    if (this.#place.room.hasQueue) this.evictIdle();
    this.#checkDrained();
  }

  #isSpent(server: ServerConnection): boolean {
    if (server.isDoomed || this.#closed !== null || this.isPaused) return true;
    if (this.serverCount >= this.config.size + this.config.sizeReserve) return true;
    // It is in no list at the moment.
    return this.#stock.isOld(server) || this.#owes(this.serverCount + 1);
  }

  /** One of `count` servers is to be given up for another pool. */
  #owes(count: number): boolean {
    return this.#place.room.owes(count, this.#clock);
  }

  /**
   * Takes back a server that is not free, or whose session must be discarded: cleans it, or closes it. `isPatient`: what
   * it runs may come to its end, for a while.
   */
  recover(server: ServerConnection, isDiscardWanted: boolean, isPatient = false): void {
    if (!server.isClosed) this.#stock.recover(server, isDiscardWanted, isPatient);
  }

  /** Makes the ERROR 53000 that refused work gets, and counts it. */
  refuse(reason: RefusalReason, why: string, who?: Refused): Refusal {
    return this.#refusals.make(reason, why, who);
  }

  /**
   * Calls `done` once the pool knows what its servers report: with null, or with why it never will. At once when it
   * knows already, otherwise after a connection attempt.
   */
  learn(done: Learner): void {
    if (this.#closed !== null) return done(this.#closed);
    if (this.baseline !== null) return done(null);
    if (this.isUnreachable) return done(new ServerLoginError(this.#cluster.hold.why));
    this.#opener.learn(done);
    this.#grow();
  }

  /** `learn` is no longer wanted. */
  unlearn(done: Learner): void {
    this.#opener.unlearn(done);
  }

  evictIdle(): void {
    const server = this.idle.shift();
    server?.close('closed to make room for another pool');
  }

  onRoom(): void {
    this.#grow();
  }

  /** Everything that time brings: refusals, idle and old servers, reads and cleanups that take too long, minimum size. */
  tick(): void {
    const now = this.#clock.now();
    this.#vitals.tell(now);
    this.#expire(now);
    this.#stock.tick(now, this.config.idleMax, () => this.serverCount > this.config.sizeMin);
    this.lines.tick(now, this.config.queryMax, (limit) => this.countTimeout(limit));
    this.channels.tick(now);
    for (const chain of [this.active, this.cleaning]) {
      for (const server of chain) {
        server.tick(now);
        this.#vitals.watch(server, now);
      }
    }
    if (this.channels.server !== null) this.#vitals.watch(this.channels.server, now);
    this.#grow();
  }

  /** Refuses who has waited for too long. While requests are held only their own deadlines and that of the hold count. */
  #expire(now: number): void {
    if (this.isPaused) return;
    const { hold } = this.#cluster;
    if (!hold.isClosed) return this.waiters.refuseLate(now, this.config.waitMax, () => this.#refuseLate());
    this.waiters.serveFrom(now);
    if (hold.state === 'refusing') {
      this.waiters.refuseAll(() => this.#refuseHeld(`no primary can be reached: ${hold.why}`));
      return;
    }
    this.waiters.refuseOverdue(now, () =>
      this.refuse('deadline', `its deadline has passed while it was held: ${hold.why || 'the primary is coming back'}`),
    );
  }

  /** Somebody has exceeded a limit, and is being ended. */
  countTimeout(limit: TimeLimit): void {
    this.counts.timeouts[limit]++;
    if (limit === 'query' || limit === 'deadline') this.counts.failures++;
  }

  /** The breaker has opened: nobody waits in vain. */
  onBreaker(): void {
    this.waiters.refuseAll(() => this.#refuseUnhealthy());
  }

  #refuseUnhealthy(): Refusal {
    return this.refuse('breaker', `${this.hostAddress} is not well: ${this.#vitals.breaker.why}`);
  }

  #refuseHeld(why: string): Refusal {
    this.#cluster.hold.counts.refused++;
    return this.refuse('hold', why);
  }

  /** What the hold says has changed. */
  onHold(): void {
    const { state } = this.#cluster.hold;
    if (state === 'releasing' || state === 'open') {
      this.#place.host.connector.reset();
      this.#opener.wake();
      this.#dispatch();
    } else if (state === 'refusing') {
      this.#expire(this.#clock.now());
      this.#opener.tell(new ServerLoginError(this.#cluster.hold.why));
    }
  }

  /** The primary is another host: nothing may reach the one that was it. */
  onPrimary(host: HostConfig): void {
    this.retarget({ ...this.target, host }, this.#hostOf(host), this.#cluster);
    this.#stock.closeUsed('its host is the primary no longer');
  }

  /** No more leases until `resume`, and no servers: they are closed, as they become free. `done` is called when none is left. */
  pause(done: () => void): void {
    this.isPaused = true;
    this.channels.reconnect('PAUSE');
    while (this.idle.size > 0) this.idle.shift()!.close('PAUSE');
    this.#onDrained.push(done);
    this.#checkDrained();
  }

  resume(): void {
    this.isPaused = false;
    this.waiters.serveFrom(this.#clock.now());
    for (const done of this.#onDrained.splice(0)) done();
    this.#dispatch();
  }

  /** Ends all servers at once. */
  closeServers(reason: string): void {
    this.channels.reconnect(reason);
    this.#stock.close(reason);
  }

  /** Every server is closed when it becomes free; idle ones now. */
  reconnect(): void {
    this.channels.reconnect('closed to connect anew');
    this.#stock.doom('closed to connect anew');
    this.#dispatch();
  }

  /** From here on servers are those at `target`, a host of `cluster`. */
  retarget(target: ServerTarget, host: Host, cluster: Cluster): void {
    let { room } = this.#place;
    if (cluster !== this.#cluster) {
      this.#cluster.part(this);
      this.#cluster = cluster;
      cluster.join(this);
    }
    if (host !== this.#place.host) {
      room.part();
      this.#vitals.move(host, this.#clock.now());
      room = this.#enter(host);
    }
    this.#place = { target, host, room };
    this.#opener.move();
    this.reconnect();
  }

  /** Closes everything. */
  close(reason: string): void {
    const refusal = fatal(SqlState.AdminShutdown, `terminating connection: ${reason}`);
    this.#closed = refusal;
    this.channels.close(reason);
    this.#opener.close();
    this.#place.room.part();
    this.#cluster.part(this);
    this.closeServers(reason);
    this.waiters.refuseAll(() => refusal);
    this.#opener.tell(refusal);
  }

  #checkDrained(): void {
    if (!this.isPaused || this.active.size + this.cleaning.size > 0) return;
    for (const done of this.#onDrained.splice(0)) done();
  }

  #grant(server: ServerConnection): void {
    this.counts.leases++;
    server.changedAt = this.#clock.now();
    this.active.push(server);
  }

  #countWait(ms: number): void {
    this.counts.waitMs += ms;
    this.waits.observe(ms / 1000);
  }

  /** Gives idle servers to waiters. */
  #dispatch(): void {
    while (this.waiters.size > this.#stock.checking && this.idle.size > 0 && this.#mayServe) {
      const waiter = this.waiters.first!;
      const server = this.#stock.take(waiter.settings);
      if (server !== null) this.#serve(server, waiter);
    }
    this.#grow();
  }

  /** With those in reserve, once somebody has waited for long (reserve_pool_timeout of PgBouncer). */
  get #sizeNow(): number {
    const { size, sizeReserve, reserveAfter } = this.config;
    if (sizeReserve === 0 || this.waiters.first === null) return size;
    return this.#clock.now() - this.waiters.first.waitingSince < reserveAfter ? size : size + sizeReserve;
  }

  /** Connects as many servers as are wanted and allowed. */
  #grow(): void {
    while (this.#opener.mayOpen) {
      const { hold, isProbed } = this.#cluster;
      if (hold.isClosed && isProbed) return;
      const isWanted =
        (this.#isLookout && this.connecting === 0) ||
        (this.waiters.size > this.connecting + this.#stock.checking && !this.isPaused) ||
        (this.#opener.hasLearners && this.serverCount === 0) ||
        (this.#isWanted && this.connecting === 0);
      const isForLater = this.serverCount < this.config.sizeMin && this.keepsMinimum && !this.isPaused;
      if ((!isWanted && !isForLater) || this.serverCount >= this.#sizeNow) return;
      // Pools that take servers from each other only to have them would never end.
      if (!(isWanted ? this.#place.room.take() : this.#place.room.takeSpare())) return;
      if (this.serverCount >= this.config.size) this.#onEvent('a server of the reserve is opened', {});
      this.#isWanted = false;
      void this.#opener.open(this.#place);
    }
  }

  /** It is not one of those that are leased, but counts for its host. */
  async #openForChannels(): Promise<ServerConnection | null> {
    const isWanted = this.#closed === null && !this.isPaused && !this.#cluster.hold.isClosed;
    if (!isWanted || !this.#takeRoom()) return null;
    const server = await this.#opener.openApart(this.#place);
    if (server === null || !this.isPaused) return server;
    server.close('paused meanwhile');
    return null;
  }

  /** Room for a connection that no waiter stands in the queue for: if need be, that of an idle server. */
  #takeRoom(): boolean {
    const { room } = this.#place;
    if (room.take()) return true;
    if (this.idle.size > 0) {
      this.evictIdle();
      if (room.take()) return true;
    }
    if (this.waiters.size === 0) room.leaveQueue();
    return false;
  }

  #onOpened(server: ServerConnection): void {
    this.openedAt = this.#clock.now();
    this.#cluster.onConnected();
    this.giveBack(server);
    this.#grow();
  }

  #onConnectFailed(failure: ServerLoginError): void {
    this.#cluster.onConnectFailed(failure);
    this.#onEvent('connect failed', { sqlstate: failure.sqlstate, reason: failure.message });
    if (!failure.isPermanent) return;
    this.#opener.tell(failure);
    // Who is in use and to be closed will not serve anybody else.
    if (this.connecting === 0 && !this.#stock.hasReturning)
      this.waiters.refuseAll(() => this.#refusals.unreachable(failure));
  }

  /** Somebody has waited for as long as anybody may. */
  #refuseLate(): Refusal {
    const { failure } = this.#opener;
    if (failure !== null && this.serverCount === 0) return this.#refusals.unreachable(failure);
    return this.#refusals.late(this.config.waitMax, failure);
  }

  #onClosed(server: ServerConnection, room: Room, reason: string): void {
    const wasIdle = server.chain === this.idle;
    this.#stock.remove(server);
    room.release();
    this.#onEvent('server closed', { server: server.id, pid: server.pid, reason, wasIdle });
    this.#checkDrained();
    if (this.#closed === null) this.#grow();
  }

  /** Servers by state, for ops. */
  servers(): { server: ServerConnection; state: ServerState }[] {
    return this.#stock.list();
  }
}

function has(server: ServerConnection, statement: Statement | null): boolean {
  return statement === null || server.statements.isReady(statement);
}
