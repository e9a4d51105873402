/**
 * The open servers of one pool, each in the list of what it does. Owned by server/pool, which decides who is given one; ops
 * looks at the lists.
 *
 *     idle (LIFO) ──take──▶ active ──▶ idle
 *       │                     └──recover──▶ cleaning ──▶ onFree, else closed
 *       └──idle for long, then taken──▶ cleaning (does it answer?) ──▶ onFree, else closed
 *
 * The one idea: each state is a list, so counting states costs nothing. Idle servers are a stack, so that a pool that is
 * larger than the load shrinks by itself; of those on top one with the right settings is preferred.
 *
 * Invariants: an open server is in one list at most, and in none only while it is handed from one to another; a server in
 * `cleaning` has its Cleanup as its holder.
 */
import { Chain } from '../util/chain.ts';
import type { Clock } from '../util/clock.ts';
import { Cleanup } from './cleanup.ts';
import type { ServerConnection } from './connection.ts';
import type { Settings } from './settings.ts';

export interface StockOptions {
  clock: Clock;
  /** A server is clean, or has shown that it is there. */
  onFree: (server: ServerConnection) => void;
  /** A server that was to be used next turned out to be gone. */
  onMissing: () => void;
}

/** What a Cleanup is to do. */
type Wanted = Pick<ConstructorParameters<typeof Cleanup>[1], 'isDiscardWanted' | 'isPatient' | 'isCheckWanted'>;

export type ServerState = 'idle' | 'active' | 'cleaning';

/** How many idle servers are looked at for one with the right settings. */
const LOOK_MAX = 8;
/** A server that was idle for longer is asked for a sign of life before it is used (server_check_delay of PgBouncer). */
const STALE_MS = 30_000;

export class Stock {
  readonly idle = new Chain<ServerConnection>();
  readonly active = new Chain<ServerConnection>();
  readonly cleaning = new Chain<ServerConnection>();
  /** Idle servers that are being asked for a sign of life. */
  checking = 0;
  readonly #clock: Clock;
  readonly #onFree: StockOptions['onFree'];
  readonly #onMissing: StockOptions['onMissing'];
  readonly #cleanups = new Set<Cleanup>();

  constructor({ clock, onFree, onMissing }: StockOptions) {
    this.#clock = clock;
    this.#onFree = onFree;
    this.#onMissing = onMissing;
  }

  get size(): number {
    return this.idle.size + this.active.size + this.cleaning.size;
  }

  /** Some of those in use are not to be closed when they become free. */
  get hasReturning(): boolean {
    return [...this.active, ...this.cleaning].some(({ isDoomed }) => !isDoomed);
  }

  /** An idle server that is known to be there; null: there is none, or one is being asked. */
  take(settings: Settings): ServerConnection | null {
    const server = this.#takeIdle(settings);
    if (server === null || !this.isStale(server)) return server;
    this.#check(server);
    return null;
  }

  #takeIdle(settings: Settings): ServerConnection | null {
    let looked = 0;
    for (let server = this.idle.last; server !== null && looked < LOOK_MAX; server = server.before, looked++) {
      if (server.settings !== settings) continue;
      this.idle.remove(server);
      return server;
    }
    return this.idle.pop();
  }

  /** Takes `server` out of the list that it is in, if any. */
  remove(server: ServerConnection): void {
    if (server.chain !== null) (server.chain as Chain<ServerConnection>).remove(server);
  }

  /** It has not been heard of for so long that it must be asked whether it is there. */
  isStale(server: ServerConnection): boolean {
    return this.#clock.now() - server.changedAt > STALE_MS;
  }

  /** It has lived for as long as a server may. */
  isOld(server: ServerConnection): boolean {
    return server.lifetimeMs > 0 && this.#clock.now() - server.openedAt > server.lifetimeMs;
  }

  /** A server that nobody has used for long: does it still answer? */
  #check(server: ServerConnection): void {
    this.checking++;
    this.#clean(server, { isDiscardWanted: false, isPatient: false, isCheckWanted: true }, (isAlive) => {
      this.checking--;
      if (isAlive) return this.#onFree(server);
      server.close('it did not answer after being idle');
      this.#onMissing();
    });
  }

  /** Cleans a server that is not free, or whose session must be discarded; if that cannot be done it is closed. */
  recover(server: ServerConnection, isDiscardWanted: boolean, isPatient: boolean): void {
    this.remove(server);
    this.#clean(server, { isDiscardWanted, isPatient, isCheckWanted: false }, (isClean) => {
      if (isClean) this.#onFree(server);
      else server.close('could not be cleaned');
    });
  }

  #clean(server: ServerConnection, wanted: Wanted, done: (isClean: boolean) => void): void {
    const former = server.holder;
    this.cleaning.push(server);
    const cleanup = new Cleanup(server, {
      ...wanted,
      now: this.#clock.now(),
      done: (_, isClean) => {
        this.#cleanups.delete(cleanup);
        done(isClean);
      },
    });
    this.#cleanups.add(cleanup);
    cleanup.start(former);
  }

  /** Closes what is too old, or has been idle for more than `idleMax` ms (0: no limit) while there are some to spare. */
  tick(now: number, idleMax: number, hasSpare: () => boolean): void {
    for (const server of this.idle) {
      const isIdle = idleMax > 0 && now - server.changedAt > idleMax;
      if (server.isDoomed || this.isOld(server) || (isIdle && hasSpare())) {
        this.idle.remove(server);
        server.close('idle for too long, or too old');
      }
    }
    for (const cleanup of this.#cleanups) cleanup.tick(now);
  }

  /** None is used again: idle ones are closed, the others when they become free. */
  doom(reason: string): void {
    for (const chain of [this.active, this.cleaning]) for (const server of chain) server.isDoomed = true;
    for (const server of this.idle) {
      this.idle.remove(server);
      server.close(reason);
    }
  }

  /** Closes those that are in use, whatever they do. */
  closeUsed(reason: string): void {
    for (const chain of [this.active, this.cleaning]) for (const server of chain) server.close(reason);
  }

  /** Closes all. */
  close(reason: string): void {
    for (const server of this.idle) server.close(reason);
    this.closeUsed(reason);
  }

  /** All of them, with what they do. */
  list(): { server: ServerConnection; state: ServerState }[] {
    const each = (chain: Chain<ServerConnection>, state: ServerState) =>
      [...chain].map((server) => ({ server, state }));
    return [...each(this.active, 'active'), ...each(this.cleaning, 'cleaning'), ...each(this.idle, 'idle')];
  }
}
