/**
 * What a session tells its client when it ends, or when what was asked is cancelled. Pure functions, called by client/session, which decides when.
 *
 * Refusals for want of room are the pool's and the gate's (server/pool, client/turn), limits of time client/overdue's.
 */
import { error, fatal, type Refusal, SqlState } from '../protocol/sqlstate.ts';

/** By its own client. */
export function canceled(): Refusal {
  return error(SqlState.QueryCanceled, 'canceling statement due to user request');
}

export function unknownMessage(type: number): Refusal {
  return fatal(SqlState.ProtocolViolation, `invalid frontend message type ${type}`);
}

/** Its server is gone; `isCommitting`: amid a COMMIT, which may have taken effect. */
export function serverLost(reason: string, isCommitting: boolean): Refusal {
  return isCommitting
    ? fatal(
        SqlState.TransactionResolutionUnknown,
        'the server was lost during COMMIT: whether it took effect is not known',
        { detail: reason, hint: 'check before doing it again' },
      )
    : fatal(SqlState.AdminShutdown, 'terminating connection: the server was lost', {
        detail: reason,
        hint: 'connect again',
      });
}

/** What would follow could be anybody's. */
export function desynced(): Refusal {
  return fatal(SqlState.InternalError, 'the server sent a reply that does not fit any request', {
    hint: 'connect again',
  });
}

/** In mode statement. */
export function noTransactions(): Refusal {
  return fatal(SqlState.FeatureNotSupported, 'transaction blocks are not allowed in statement pooling mode', {
    hint: 'use pool.mode transaction',
  });
}

export function tooManyNotifications(): Refusal {
  return fatal(SqlState.ConfigurationLimit, 'too many notifications were kept for this client', {
    hint: 'read them, and end transactions, sooner',
  });
}
