/**
 * The time limits of a session: which one is exceeded, if any. A pure function, called by client/work every fraction
 * of a second.
 */
import { fatal, type Refusal, SqlState } from '../protocol/sqlstate.ts';

/** Limits in ms, of `databases.*.pool`; 0: none. */
export interface TimeLimits {
  clientIdleMax: number;
  queryMax: number;
  idleInTransactionMax: number;
  transactionMax: number;
}

/** What a session is doing, and since when in monotonic ms. */
export interface Doing {
  isIdle: boolean;
  /** A transaction is open, on its server or only for the client (client/block). */
  isInTransaction: boolean;
  /** Since when its server has owed something; 0: it does not. */
  workingSince: number;
  /** Last change of state. */
  changedAt: number;
  /** When the transaction that is open began. */
  beganAt: number;
  /** Its statement_timeout in ms, 0: none; and for how long its server has owed something and said nothing. */
  timeoutMs: number;
  silentMs: number;
}

/** What is exceeded, and what follows: the statement is cancelled, or the session ends. */
export type Overdue =
  | { follows: 'cancel'; limit: 'query' | 'deadline' }
  | { follows: 'end'; limit: 'clientIdle' | 'idleInTransaction' | 'transaction'; refusal: Refusal };

const query: Overdue = { follows: 'cancel', limit: 'query' };
const deadline: Overdue = { follows: 'cancel', limit: 'deadline' };
const clientIdle: Overdue = {
  follows: 'end',
  limit: 'clientIdle',
  refusal: fatal(
    SqlState.IdleSessionTimeout,
    'terminating connection due to idle-session timeout (pool.clientIdleMax, client_idle_timeout)',
  ),
};
const idleInTransaction: Overdue = {
  follows: 'end',
  limit: 'idleInTransaction',
  refusal: fatal(
    SqlState.IdleInTransactionTimeout,
    'terminating connection due to idle-in-transaction timeout (pool.idleInTransactionMax, idle_transaction_timeout)',
  ),
};
const transaction: Overdue = {
  follows: 'end',
  limit: 'transaction',
  refusal: fatal(
    SqlState.TransactionTimeout,
    'terminating connection due to transaction timeout (pool.transactionMax, transaction_timeout)',
  ),
};

/** A server that has not kept a statement_timeout by then, in ms, will not. */
const GRACE_MS = 1_000;

/** Null: nothing is exceeded. */
export function overdue(limits: TimeLimits, doing: Doing, now: number): Overdue | null {
  const isOver = (since: number, max: number) => max > 0 && now - since > max;
  if (doing.isIdle && !doing.isInTransaction) return isOver(doing.changedAt, limits.clientIdleMax) ? clientIdle : null;
  if (doing.workingSince > 0 && isOver(doing.workingSince, limits.queryMax)) return query;
  if (doing.timeoutMs > 0 && doing.silentMs > doing.timeoutMs + GRACE_MS) return deadline;
  if (!doing.isInTransaction) return null;
  if (doing.workingSince === 0 && isOver(doing.changedAt, limits.idleInTransactionMax)) return idleInTransaction;
  return isOver(doing.beganAt, limits.transactionMax) ? transaction : null;
}
