/**
 * What servers do for one session: since when, on whose account, and no longer than it may. Owned by client/session, which says when a
 * server has something to do and when it owes nothing; asked every fraction of a second for what takes too long.
 *
 *     take ──▶ start ──▶ end (paid for) ──▶ start … ──▶ giveBack          read that shares a server: ride
 *
 * The one idea: time is taken where it begins and ends, once; counters, accounts (client/usage), the log of slow statements and the limits
 * (client/overdue) all go by it.
 */
import type { Refusal } from '../protocol/sqlstate.ts';
import { CANCEL_MS, type Owner, type ServerConnection } from '../server/connection.ts';
import type { ServerPool } from '../server/pool.ts';
import type { Settings } from '../server/settings.ts';
import { opaque, type Verdict } from '../sql/verdict.ts';
import type { Read } from './alone.ts';
import type { SessionHouse } from './house.ts';
import { overdue } from './overdue.ts';
import { statementTimeoutOf } from './turn.ts';
import { Account } from './usage.ts';

/** Whom servers work for. */
export interface WorkClient extends Owner {
  readonly user: string;
  readonly pool: ServerPool;
  readonly settings: Settings;
  /** Bytes that the client has been given so far. */
  readonly delivered: number;
  /** A statement of the shape with this number (0: not known) has taken so long that somebody may want to know. */
  onSlow(shape: number, ms: number, verdict: Verdict | null): void;
}

/** The class of what is done, and what it would have cost in calm (client/turn). */
interface Pricing {
  readonly className: string;
  sample(shape: number, ms: number): number;
}

/** A server that has not kept a statement_timeout, and says nothing, is not waited for as long as one that works. */
const SILENT_CANCEL_MS = 1_000;
const limitNames = { query: 'pool.queryMax', deadline: 'its statement_timeout' };
const limitTexts = {
  query: 'canceling statement due to query timeout (pool.queryMax, query_timeout)',
  deadline: 'canceling statement due to statement timeout',
};

export class Work {
  readonly #client: WorkClient;
  readonly #house: Pick<SessionHouse, 'usage' | 'journal'>;
  /** What it asks for; null: nothing so far. */
  #account: Account | null = null;
  #leasedAt = 0;
  /** `delivered` at that moment. */
  #deliveredBefore = 0;
  /** Monotonic ms when it has last done something that may not have been a read. */
  #wroteAt = Number.NEGATIVE_INFINITY;
  /** Monotonic ms since when the server owes something, or 0. */
  #since = 0;
  /** Monotonic ms when the transaction that is open, or was last, began. */
  #beganAt = 0;
  /** When the server was asked to cancel what takes too long; 0: it was not. */
  #canceledAt = 0;

  constructor(client: WorkClient, house: Pick<SessionHouse, 'usage' | 'journal'>) {
    this.#client = client;
    this.#house = house;
  }

  /** A server owes something. */
  get isOn(): boolean {
    return this.#since > 0;
  }

  /** What was committed later than this (monotonic ms) may be the client's own. */
  get wroteAt(): number {
    return this.#wroteAt;
  }

  get #own(): Account {
    this.#account ??= new Account(this.#house.usage, this.#client.pool, this.#client.user);
    return this.#account;
  }

  /** A server is the session's from here on. */
  take(now: number): void {
    this.#leasedAt = now;
    this.#deliveredBefore = this.#client.delivered;
  }

  /** A transaction begins. */
  begin(now: number): void {
    this.#beganAt = now;
  }

  /** The server has something to do. */
  start(now: number): void {
    this.#since = now;
  }

  /** A text with this verdict is sent to a server that works for nobody else. */
  ask(verdict: Verdict): void {
    const { settings } = this.#client;
    // Where strings end is not known while backslashes escape.
    this.#own.begin(settings.isOpaque ? opaque : verdict, settings);
  }

  /** The server has done all: statements of the shape with this number, of which `verdict` is known. `turn`: null while admission is off. */
  end(shape: number, verdict: Verdict, turn: Pricing | null, now: number): void {
    const ms = now - this.#since;
    this.#client.pool.counts.queryMs += ms;
    this.#since = 0;
    this.#canceledAt = 0;
    const costMs = turn?.sample(shape, ms) ?? ms;
    this.#account?.end(ms, costMs, turn?.className ?? '');
    this.#noteSlow(shape, ms, verdict);
  }

  /** A read that shared a server has taken `ms`, at a cost of `costMs`. */
  ride(shape: number, ms: number, costMs: number, className: string): void {
    this.#own.ride(shape, ms, costMs, this.#client.settings, className);
    this.#noteSlow(shape, ms, null);
  }

  /** Of what cannot be told apart from its values nothing is said. */
  #noteSlow(shape: number, ms: number, verdict: Verdict | null): void {
    if (ms < this.#house.journal.slowMs) return;
    const isKnown = shape !== 0 && !this.#client.settings.isOpaque;
    this.#client.onSlow(isKnown ? shape : 0, ms, isKnown ? verdict : null);
  }

  /** The server goes back to its pool. `read`: what it was leased for, of which the cost is learned; null: anything. */
  giveBack(read: Read | null, now: number): void {
    const { pool, delivered } = this.#client;
    const ms = now - this.#leasedAt;
    pool.counts.transactionMs += ms;
    read?.cost.add(ms, delivered - this.#deliveredBefore);
    if (read === null) this.#wroteAt = now; // As far as anybody knows.
  }

  /** The server is lost: nobody pays for what it was at. */
  lose(): void {
    this.#since = 0;
    this.#canceledAt = 0;
    this.#account?.forget();
  }

  /**
   * Stops the statement that takes too long. Gives what the session is to end with, if something else does; null: nothing.
   * `server`: null while it has none; `changedAt`: when its state last changed.
   */
  check(server: ServerConnection | null, isInTransaction: boolean, changedAt: number, now: number): Refusal | null {
    const { pool, settings } = this.#client;
    const found = overdue(
      pool.config,
      {
        isIdle: server === null,
        isInTransaction,
        workingSince: this.#since,
        changedAt,
        beganAt: this.#beganAt,
        timeoutMs: server === null ? 0 : statementTimeoutOf(settings),
        silentMs: server?.silentFor(now) ?? 0,
      },
      now,
    );
    if (found === null) return null;
    if (found.follows === 'end') {
      pool.countTimeout(found.limit);
      return found.refusal;
    }
    this.#stop(server!, found.limit, now);
    return null;
  }

  #stop(server: ServerConnection, limit: 'query' | 'deadline', now: number): void {
    const { pool } = this.#client;
    if (this.#canceledAt === 0) {
      this.#canceledAt = now;
      pool.countTimeout(limit);
      server.cancel(this.#client, limitTexts[limit]);
    } else if (now - this.#canceledAt > (limit === 'query' ? CANCEL_MS : SILENT_CANCEL_MS)) {
      pool.countTimeout('cancel');
      server.close(`a statement beyond ${limitNames[limit]} did not react to its cancel request`);
    }
  }
}
