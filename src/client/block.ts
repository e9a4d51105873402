/**
 * A transaction that no server knows of: BEGIN is answered at once, and sent ahead of the first statement that needs a
 * server. Decides, as pure functions, what becomes of requests until then. Called by client/alone, which keeps it, while
 * its session holds no server.
 *
 *     none ──BEGIN──▶ begun ──COMMIT, ROLLBACK──▶ none        answered here
 *                       │ ├──anything else──▶ a server: BEGIN, then that
 *                       │ └──refused, cancelled──▶ failed ──COMMIT, ROLLBACK──▶ none
 *
 * The one idea: a client that has begun has asked for nothing yet. So BEGIN takes no server from anybody, costs no round
 * trip to it, and what is refused is the first statement, with the database untouched.
 *
 * What differs from a server of one's own: `now()` is the time of the first statement.
 */
import { ClientMessage, Status } from '../protocol/messages.ts';
import { error, type Refusal, SqlState } from '../protocol/sqlstate.ts';
import type { Settings } from '../server/settings.ts';
import type { Control } from '../sql/control.ts';
import type { Verdict } from '../sql/verdict.ts';

export type Block =
  | 'none'
  /** BEGIN was answered; `sql` is what a server is to be sent. `hasPortal`: in the extended protocol, whose unnamed portal is still there. */
  | { sql: string; hasPortal: boolean }
  /** As after an error: everything is refused until ROLLBACK or COMMIT. */
  | 'failed';

/** What becomes of a request: it is answered with `tag`, and the client is in `block` then; or it is refused. */
export type Move = { tag: string; block: Block } | 'refused';

/** The transaction status that the client is told. */
export function statusOf(block: Block): number {
  if (block === 'none') return Status.Idle;
  return block === 'failed' ? Status.Failed : Status.Transaction;
}

/** It begins a transaction, alone or with more behind it. */
export function isBegin(verdict: Verdict | null): boolean {
  return verdict?.control?.kind === 'begin' || verdict?.control?.kind === 'beginning';
}

/** It has begun at READ COMMITTED, and no server knows: each statement in it would see what has been committed by then. */
export function seesCommitted(block: Block, { custom }: Settings): boolean {
  if (typeof block === 'string') return false;
  const isolation = custom.get('default_transaction_isolation') ?? 'read committed';
  return !/serializable|repeatable|uncommitted/i.test(block.sql) && isolation.toLowerCase() === 'read committed';
}

/** What a request that begins with a message of `type` means in `block`; null: a server must have it. */
export function moveOf(block: Block, control: Control | null, type: number): Move | null {
  switch (control?.kind) {
    case 'begin':
      if (block === 'failed') return 'refused';
      return block === 'none'
        ? { tag: control.tag, block: { sql: control.sql, hasPortal: type !== ClientMessage.Query } }
        : null;
    case 'commit':
      if (block === 'none') return null; // The server warns.
      return { tag: block === 'failed' ? 'ROLLBACK' : 'COMMIT', block: 'none' };
    case 'rollback':
      return block === 'none' ? null : { tag: 'ROLLBACK', block: 'none' };
    case 'mixed':
    case 'prepared':
      return null;
    default:
      return block === 'failed' && isRefused(type) ? 'refused' : null;
  }
}

/** Postgres refuses these in a transaction that has failed. */
function isRefused(type: number): boolean {
  switch (type) {
    case ClientMessage.Query:
    case ClientMessage.Parse:
    case ClientMessage.Bind:
    case ClientMessage.Execute:
    case ClientMessage.FunctionCall:
      return true;
    default:
      return false;
  }
}

/** Brings a server into a transaction that has failed. */
export const FAIL = 'BEGIN; SELECT 1/0';

export function blockFailed(): Refusal {
  return error(
    SqlState.InFailedTransaction,
    'current transaction is aborted, commands ignored until end of transaction block',
  );
}
