/**
 * The time limits of a session: which one is exceeded, if any. A pure function, called by client/session every fraction
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
}

/** 'query': the statement is to be cancelled. A Refusal: the session ends with it. */
export function overdue(limits: TimeLimits, doing: Doing, now: number): Refusal | 'query' | null {
  const isOver = (since: number, max: number) => max > 0 && now - since > max;
  if (doing.isIdle && !doing.isInTransaction)
    return isOver(doing.changedAt, limits.clientIdleMax)
      ? fatal(SqlState.IdleSessionTimeout, 'terminating connection due to idle-session timeout (pool.clientIdleMax)')
      : null;
  if (doing.workingSince > 0 && isOver(doing.workingSince, limits.queryMax)) return 'query';
  if (!doing.isInTransaction) return null;
  if (doing.workingSince === 0 && isOver(doing.changedAt, limits.idleInTransactionMax))
    return fatal(
      SqlState.IdleInTransactionTimeout,
      'terminating connection due to idle-in-transaction timeout (pool.idleInTransactionMax)',
    );
  if (isOver(doing.beganAt, limits.transactionMax))
    return fatal(
      SqlState.TransactionTimeout,
      'terminating connection due to transaction timeout (pool.transactionMax)',
    );
  return null;
}
