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
  /** No new clients from here on, but of the console. */
  refuseClients: () => void;
  /** And those that have no transaction are told to go. */
  drain: () => void;
  endReplications: (isMeant: (database: string) => boolean) => void;
  /** Clients, with those that replicate. */
  clients: () => number;
  /** The configuration has a key for this database; if not, '*' stands for it. */
  isNamed: (database: string) => boolean;
  /** Ends the process. */
  shutDown: () => void;
}

/** How long SUSPEND waits for clients to take what is on its way to them; then they are ended (suspend_timeout of PgBouncer). */
const SUSPEND_MS = 10_000;
const POLL_MS = 20;

export class Controls {
  readonly #house: ControlsHouse;
  isPaused = false;
  isSuspended = false;
  isShuttingDown = false;
  /** How often SUSPEND was said. */
  #suspensions = 0;
  readonly #paused = new Set<string>();
  readonly #disabled = new Set<string>();

  constructor(house: ControlsHouse) {
    this.#house = house;
  }

  /** A pool was made. */
  onPool(pool: ServerPool): void {
    if (this.isPaused || this.#has(this.#paused, pool.database)) pool.pause(() => {});
  }

  /** A client has logged in. */
  onSession(session: Session): void {
    if (this.isSuspended) session.suspend();
  }

  /** Is something said of all, of this one, or of all that '*' stands for, said of `database`? */
  #isMeant(said: string | null, database: string): boolean {
    return said === null || said === database || (said === '*' && !this.#house.isNamed(database));
  }

  #has(said: ReadonlySet<string>, database: string): boolean {
    return said.has(database) || (said.has('*') && this.#isMeant('*', database));
  }

  #poolsOf(said: string | null): ServerPool[] {
    return this.#house.pools().filter(({ database }) => this.#isMeant(said, database));
  }

  isDisabled(database: string): boolean {
    return this.#has(this.#disabled, database);
  }

  /** Nobody gets a server any more. Resolves when none is in use. */
  async pause(database: string | null): Promise<void> {
    if (database === null) this.isPaused = true;
    else this.#paused.add(database);
    await Promise.all(this.#poolsOf(database).map((pool) => new Promise<void>((done) => pool.pause(done))));
  }

  resume(database: string | null): void {
    if (this.isShuttingDown) return; // It waits for the servers to be free: they are not to be used again.
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
      if (this.#isMeant(database, session.database))
        session.end('terminating connection due to administrator command (KILL)');
    this.#house.endReplications((each) => this.#isMeant(database, each));
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

  /** Clients are not read any more. Resolves when nothing is in any buffer; what servers are doing goes on. */
  async suspend(): Promise<void> {
    this.isSuspended = true;
    const own = ++this.#suspensions;
    const isMeant = () => this.isSuspended && this.#suspensions === own;
    for (const session of this.#house.sessions()) session.suspend();
    const busy = () => [...this.#house.sessions()].filter((session) => !session.isFlushed);
    for (let waited = 0; isMeant() && busy().length > 0 && waited < SUSPEND_MS; waited += POLL_MS) await poll();
    if (!isMeant()) return;
    for (const session of busy()) session.end('terminating connection due to administrator command (SUSPEND)');
  }

  /** Returns at once. */
  shutDown(mode: ShutdownMode): void {
    void this.#shutDown(mode);
  }

  async #shutDown(mode: ShutdownMode): Promise<void> {
    this.isShuttingDown = true;
    if (mode !== 'now') this.#house.refuseClients();
    // Who waits for a server, or asks for one, is told: it would wait for whoever waits for it.
    while (mode === 'servers' && this.#poolsOf(null).some((pool) => pool.atWork > 0)) {
      this.#house.drain();
      await poll();
    }
    while (mode === 'clients' && this.#house.clients() > 0) await poll();
    this.#house.shutDown();
  }
}

function poll(): Promise<void> {
  return new Promise((done) => setTimeout(done, POLL_MS));
}
