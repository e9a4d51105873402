/**
 * Opens the servers of one pool: from the wish to have one more to a server that is logged in, or the reason why there is
 * none. Made by server/pool, which decides when one more is wanted, where, and takes the room for it (server/cap).
 *
 *     open ──▶ connecting ──▶ onOpened
 *                  └──▶ onFailed ──▶ resting, longer each time ──▶ onMayOpen
 *
 * The one idea: what has failed once fails again, so after a failure the whole pool rests before the next attempt, and what
 * cannot work before somebody changes something is answered without one. Between an attempt and its end the pool may have
 * moved: an attempt knows its place, is ended when the pool leaves that, and what comes of it counts no longer.
 *
 * Invariants: at most CONNECTS_MAX attempts at a time, at the place where the pool is; room that was taken for a server is
 * released when the attempt fails, or by the server's end; those who ask what servers report (`learn`) are told once.
 */
import { isDeepStrictEqual } from 'node:util';
import type { PoolConfig } from '../config/schema.ts';
import { terminate } from '../protocol/encode.ts';
import { type Refusal, SqlState } from '../protocol/sqlstate.ts';
import type { Clock } from '../util/clock.ts';
import { messageOf } from '../util/errors.ts';
import { nextId } from '../util/ids.ts';
import type { Room } from './cap.ts';
import { ServerConnection } from './connection.ts';
import type { PoolCounts } from './counts.ts';
import type { Host } from './hosts.ts';
import { type LoggedIn, openServer, type Secret, ServerLoginError, type ServerTarget } from './login.ts';
import type { Settings, SettingsBook } from './settings.ts';

/** Where a pool's servers are, and as whom; the room is what all caps leave there. Another one is another object. */
export interface Place {
  readonly target: ServerTarget;
  readonly host: Host;
  readonly room: Room;
}

/** Is called when servers have answered, with null, or with why they never will. */
export type Learner = (failure: Refusal | ServerLoginError | null) => void;

export interface OpenerOptions {
  config: () => PoolConfig;
  clock: Clock;
  book: SettingsBook;
  counts: PoolCounts;
  /** What to log in with; asked again, with `isAgain`, after a wrong password. */
  secret: (isAgain: boolean) => Promise<Secret>;
  /** Are servers still wanted there? */
  isAt: (place: Place) => boolean;
  onOpened: (server: ServerConnection) => void;
  onFailed: (failure: ServerLoginError) => void;
  /** A server that was opened is gone. */
  onClosed: (server: ServerConnection, place: Place, reason: string) => void;
  /** One more attempt may be made than a moment ago. */
  onMayOpen: () => void;
  onEvent: (event: string, fields: Record<string, unknown>) => void;
}

const CONNECTS_MAX = 2;
const RETRY_MIN_MS = 100;
const RETRY_MAX_MS = 2_000;
/** How long a permanent failure answers requests without another attempt. */
const PERMANENT_MS = 1_000;
const LIFETIME_JITTER = 0.1;

export class Opener {
  /** Attempts under way, at the place where the pool is. */
  connecting = 0;
  /** What servers report at login; null until one has answered. */
  baseline: Settings | null = null;
  /** Why the last attempt failed; null when it did not. */
  failure: ServerLoginError | null = null;
  readonly #options: OpenerOptions;
  #failedAt = 0;
  /** In a row. */
  #failures = 0;
  /** Ends the rest after a failure; null: none is kept. */
  #cancelRest: (() => void) | null = null;
  #learners: Learner[] = [];
  /** Ends the attempts under way. */
  #ending = new AbortController();
  #isClosed = false;

  constructor(options: OpenerOptions) {
    this.#options = options;
  }

  /** May an attempt be made now? */
  get mayOpen(): boolean {
    return !this.#isClosed && this.#cancelRest === null && this.connecting < CONNECTS_MAX;
  }

  /** After a failure it waits for the next attempt. */
  get isResting(): boolean {
    return this.#cancelRest !== null;
  }

  /** Somebody waits for a server to answer, whichever. */
  get hasLearners(): boolean {
    return this.#learners.length > 0;
  }

  /** Why another attempt would be in vain; null: it need not be. */
  get hopeless(): ServerLoginError | null {
    if (!this.failure?.isPermanent) return null;
    return this.#options.clock.now() - this.#failedAt < PERMANENT_MS ? this.failure : null;
  }

  /** Opens one at `place`, where room for it has been taken. */
  async open(place: Place): Promise<void> {
    const { counts, isAt, onClosed, onMayOpen } = this.#options;
    this.connecting++;
    counts.connects++;
    let loggedIn: LoggedIn;
    try {
      loggedIn = await this.#logIn(place);
    } catch (thrown) {
      const isHere = isAt(place);
      if (isHere) this.connecting--;
      place.room.release();
      if (!isHere) return onMayOpen(); // It says nothing of where servers are by now.
      return this.#onFailed(thrown instanceof ServerLoginError ? thrown : new ServerLoginError(messageOf(thrown)));
    }
    if (!isAt(place)) {
      discard(loggedIn);
      place.room.release();
      return onMayOpen();
    }
    this.connecting--;
    this.#onOpened(this.#make(loggedIn, place, (closed, reason) => onClosed(closed, place, reason)));
  }

  /** Opens one that is not for leases, at `place`, where room for it has been taken; null: it cannot be opened. */
  async openApart(place: Place): Promise<ServerConnection | null> {
    try {
      const loggedIn = await this.#logIn(place);
      if (this.#options.isAt(place)) return this.#make(loggedIn, place, () => place.room.release());
      discard(loggedIn);
    } catch (thrown) {
      this.#options.onEvent('the connection that listens cannot be opened', { reason: messageOf(thrown) });
    }
    place.room.release();
    return null;
  }

  /** Is anybody there? Rejects if not. */
  async look({ target }: Place): Promise<void> {
    const { secret, config } = this.#options;
    try {
      discard(await openServer(target, await secret(false), config().connectMax));
    } catch (thrown) {
      // Whatever is answered, somebody is there.
      if (thrown instanceof ServerLoginError && thrown.isSilent) throw thrown;
    }
  }

  async #logIn({ target, host }: Place): Promise<LoggedIn> {
    const { secret: ask, config } = this.#options;
    const { signal } = this.#ending;
    const secret = await ask(false);
    try {
      return await host.connector.open(() => openServer(target, secret, config().connectMax, signal));
    } catch (thrown) {
      // The password may have been changed: read it again, once.
      if (!(thrown instanceof ServerLoginError) || thrown.sqlstate !== SqlState.InvalidPassword) throw thrown;
      const again = await ask(true);
      if (isDeepStrictEqual(again, secret)) throw thrown;
      return host.connector.open(() => openServer(target, again, config().connectMax, signal));
    }
  }

  #make(
    loggedIn: LoggedIn,
    { target }: Place,
    onClose: (closed: ServerConnection, reason: string) => void,
  ): ServerConnection {
    const { book, clock, config, counts } = this.#options;
    // A client need not know that it is on a standby for a moment; those that are promoted say so themselves.
    if (loggedIn.reported.has('in_hot_standby')) loggedIn.reported.set('in_hot_standby', 'off');
    return new ServerConnection(loggedIn, {
      id: nextId(),
      target,
      now: clock.now(),
      lifetimeMs: config().lifetimeMax * (1 - Math.random() * LIFETIME_JITTER),
      preparedMax: () => config().preparedMax,
      book,
      counts,
      onClose,
    });
  }

  #onOpened(server: ServerConnection): void {
    this.#failures = 0;
    this.failure = null;
    this.baseline = server.login;
    this.tell(null);
    this.#options.onOpened(server);
  }

  #onFailed(failure: ServerLoginError): void {
    const { counts, clock, onFailed, onMayOpen } = this.#options;
    counts.connectFailures++;
    if (failure.isTimeout) counts.timeouts.connect++;
    this.failure = failure;
    this.#failedAt = clock.now();
    onFailed(failure);
    if (this.#cancelRest !== null || this.#isClosed) return;
    const delay = Math.min(RETRY_MAX_MS, RETRY_MIN_MS * 2 ** this.#failures++) * (0.5 + Math.random() / 2);
    this.#cancelRest = clock.after(delay, () => {
      this.#cancelRest = null;
      onMayOpen();
    });
  }

  /** The host is known to be there: the next attempt need not wait. */
  wake(): void {
    this.#failures = 0;
    this.#cancelRest?.();
    this.#cancelRest = null;
  }

  /** The pool is elsewhere, or otherwise configured: what is under way is ended, what has failed forgotten; nothing keeps the next attempt. */
  move(): void {
    this.#ending.abort();
    this.#ending = new AbortController();
    this.connecting = 0;
    this.failure = null;
    this.wake();
  }

  /** Calls `learner` when it is known what servers report, or that it never will be. */
  learn(learner: Learner): void {
    this.#learners.push(learner);
  }

  /** `learn` is no longer wanted. */
  unlearn(learner: Learner): void {
    this.#learners = this.#learners.filter((each) => each !== learner);
  }

  /** Tells all who want to know what servers report. */
  tell(failure: Refusal | ServerLoginError | null): void {
    for (const learner of this.#learners.splice(0)) learner(failure);
  }

  /** No more attempts. */
  close(): void {
    this.#isClosed = true;
    this.#ending.abort();
    this.#cancelRest?.();
  }
}

function discard({ socket }: LoggedIn): void {
  socket.on('error', () => {}).end(terminate);
}
