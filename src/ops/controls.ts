/**
 * What an administrator does to traffic as a whole: PAUSE, RESUME, RECONNECT, WAIT_CLOSE, DISABLE, ENABLE, KILL, KILL_CLIENT, SUSPEND and
 * SHUTDOWN, as in PgBouncer. Made by app, called by ops/console and by signals.
 *
 * The one idea: what was said of a database holds for pools that come later as well, so it is kept here and not in the pools.
 *
 * Invariants: no request is lost by PAUSE, RECONNECT and SUSPEND; RESUME undoes PAUSE, KILL and SUSPEND.
 */
import type { Session } from '../client/session.ts';
import type { ServerPool } from '../server/pool.ts';

/** How the process ends: now; when no server is in use; when the last client has left. */
export type ShutdownMode = 'now' | 'servers' | 'clients';

export interface ControlsHouse {
  pools: () => readonly ServerPool[];
  sessions: () => ReadonlySet<Session>;
  /** No new clients from here on. */
  stopListening: () => void;
  /** Ends the process. */
  shutDown: () => void;
}

/** How long SUSPEND waits for answers that are under way; then their clients are ended (suspend_timeout of PgBouncer). */
const SUSPEND_MS = 10_000;
const POLL_MS = 20;

export class Controls {
  readonly #house: ControlsHouse;
  isPaused = false;
  isSuspended = false;
  readonly #paused = new Set<string>();
  readonly #disabled = new Set<string>();

  constructor(house: ControlsHouse) {
    this.#house = house;
  }

  /** A pool was made. */
  onPool(pool: ServerPool): void {
    if (this.isPaused || this.#paused.has(pool.database)) pool.pause(() => {});
  }

  /** A client has logged in. */
  onSession(session: Session): void {
    if (this.isSuspended) session.suspend();
  }

  #poolsOf(database: string | null): ServerPool[] {
    return this.#house.pools().filter((pool) => database === null || pool.database === database);
  }

  isDisabled(database: string): boolean {
    return this.#disabled.has(database);
  }

  /** Nobody gets a server any more. Resolves when none is in use. */
  async pause(database: string | null): Promise<void> {
    if (database === null) this.isPaused = true;
    else this.#paused.add(database);
    await Promise.all(this.#poolsOf(database).map((pool) => new Promise<void>((done) => pool.pause(done))));
  }

  resume(database: string | null): void {
    if (database === null) {
      this.isPaused = false;
      this.#paused.clear();
      this.isSuspended = false;
      for (const session of this.#house.sessions()) session.unsuspend();
    } else this.#paused.delete(database);
    for (const pool of this.#poolsOf(database)) if (!this.isPaused) pool.resume();
  }

  /** Servers are closed when they become free, and opened anew when they are needed. */
  reconnect(database: string | null): void {
    for (const pool of this.#poolsOf(database)) pool.reconnect();
  }

  /** Resolves when no server is left that is to be closed (RECONNECT, RELOAD, another primary). */
  async waitClose(database: string | null): Promise<void> {
    while (this.#poolsOf(database).some((pool) => pool.servers().some(({ server }) => server.isDoomed))) await poll();
  }

  /** New clients are refused; those that are there stay. */
  disable(database: string): void {
    this.#disabled.add(database);
  }

  enable(database: string): void {
    this.#disabled.delete(database);
  }

  /** Ends all clients and servers at once; requests of new clients wait until RESUME. */
  kill(database: string | null): void {
    if (database === null) this.isPaused = true;
    else this.#paused.add(database);
    for (const pool of this.#poolsOf(database)) pool.pause(() => {});
    for (const session of this.#house.sessions())
      if (database === null || session.database === database)
        session.end('terminating connection due to administrator command (KILL)');
    for (const pool of this.#poolsOf(database)) pool.closeServers('KILL');
  }

  /** False: there is no such client. */
  killClient(id: number): boolean {
    for (const session of this.#house.sessions()) {
      if (session.id !== id) continue;
      session.end('terminating connection due to administrator command (KILL_CLIENT)');
      return true;
    }
    return false;
  }

  /** Clients are not read any more. Resolves when all that was under way has been answered, and nothing is in any buffer. */
  async suspend(): Promise<void> {
    this.isSuspended = true;
    for (const session of this.#house.sessions()) session.suspend();
    const busy = () => [...this.#house.sessions()].filter((session) => !session.isSettled);
    for (let waited = 0; busy().length > 0 && waited < SUSPEND_MS; waited += POLL_MS) await poll();
    for (const session of busy()) session.end('terminating connection due to administrator command (SUSPEND)');
  }

  /** Returns at once. */
  shutDown(mode: ShutdownMode): void {
    void this.#shutDown(mode);
  }

  async #shutDown(mode: ShutdownMode): Promise<void> {
    if (mode !== 'now') this.#house.stopListening();
    if (mode === 'servers') await this.pause(null);
    while (mode === 'clients' && this.#house.sessions().size > 0) await poll();
    this.#house.shutDown();
  }
}

function poll(): Promise<void> {
  return new Promise((done) => setTimeout(done, POLL_MS));
}
