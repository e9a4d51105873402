/**
 * pg_cancel_backend and pg_terminate_backend of the number that a client was told at its login. It is no server process, so a server would only warn:
 * the client's session is reached as by a cancel request (client/cancel). Called by client/session (pgAdmin and knex cancel in this way).
 *
 * Not seen are calls amid a greater statement; the process ids in pg_stat_activity are those of servers, which servers know.
 * Nor are those amid a transaction that has a server: they go there.
 *
 * A number is one of the hosts that its client works on; elsewhere it is unknown. Rights: Postgres manual, "Server Signaling Functions". Who is in
 * the role pg_signal_backend is not known here, and a superuser is only who is one under his own name.
 */
import * as encode from '../protocol/encode.ts';
import { error, type Refusal, SqlState } from '../protocol/sqlstate.ts';
import { addressOf } from '../server/hosts.ts';
import type { Settings } from '../server/settings.ts';
import type { Cancelable } from './cancel.ts';
import type { Answer, Question } from './question.ts';

export interface Signal {
  command: 'cancel' | 'terminate';
  pid: number;
  /** The name of the column. */
  column: string;
  isBinary: boolean;
}

/** A longer text is another statement. */
const TEXT_MAX = 200;
const CALL =
  /^select\s+(?:pg_catalog\.)?(pg_(cancel|terminate)_backend)\s*\(\s*(?:(\d{1,10})|\$1)(?:::int(?:4|eger)?)?\s*(?:,\s*\d+\s*)?\)(?:\s*as\s+"?(\w+)"?)?\s*;?$/i;
const BINARY = 1;

/** The signal that is asked for; null: it is another statement. */
export function signalIn({ text, isExtended, values: bind }: Question): Signal | null {
  const call = text.length > TEXT_MAX ? null : CALL.exec(text.trim());
  if (call === null) return null;
  const [, name, command, number, alias] = call as unknown as [string, string, string, string?, string?];
  const values = isExtended ? readValues(bind) : { pid: Number.NaN, isBinary: false };
  const pid = number === undefined ? values.pid : Number(number);
  if (!Number.isInteger(pid)) return null;
  return {
    command: command.toLowerCase() as Signal['command'],
    pid,
    column: alias ?? name.toLowerCase(),
    isBinary: values.isBinary,
  };
}

/** The first parameter as a number (NaN: there is none), and the format of the first column ("Bind", Message Formats). */
function readValues(source: Buffer): { pid: number; isBinary: boolean } {
  let at = 0;
  const next16 = () => {
    at += 2;
    return at <= source.length ? source.readUInt16BE(at - 2) : 0;
  };
  const formats = Array.from({ length: next16() }, next16);
  let pid = Number.NaN;
  for (let index = 0, count = next16(); index < count && at + 4 <= source.length; index++) {
    const size = source.readInt32BE(at);
    at += 4;
    const isThere = index === 0 && size > 0 && at + size <= source.length;
    if (isThere && formats[0] !== BINARY) pid = Number(source.toString('latin1', at, at + size));
    else if (isThere && size === 4) pid = source.readInt32BE(at);
    at += Math.max(size, 0);
  }
  return { pid, isBinary: Array.from({ length: next16() }, next16)[0] === BINARY };
}

/** Whom it is for; null: the asker's host knows nobody by this number. */
export function targetOf(
  { pid }: Signal,
  asker: Cancelable,
  holderOf: (pid: number) => Cancelable | null,
): Cancelable | null {
  const target = holderOf(pid);
  const isNear = target !== null && addressOf(target.pool.target.host) === addressOf(asker.pool.target.host);
  return isNear ? target : null;
}

/** May the asker signal the target? Whoever logs in to servers as somebody else has the rights of that one there, but not here. */
export function maySignal(asker: Cancelable & { readonly settings: Settings }, target: Cancelable): boolean {
  const isSuperuser = asker.settings.reported.get('is_superuser') === 'on';
  return target.user === asker.user || (isSuperuser && asker.pool.target.user === asker.user);
}

export function carryOut({ command }: Signal, target: Cancelable): void {
  if (command === 'cancel') target.cancel();
  else target.end('terminating connection due to administrator command');
}

/** Its answer: one row, true. */
export function signalAnswer({ column, isBinary }: Signal): Answer {
  const description = encode.rowDescription([
    { name: column, oid: encode.Oid.bool, ...(isBinary && { format: BINARY }) },
  ]);
  const row = encode.dataRow([isBinary ? '\x01' : 't']);
  const rest = [row, encode.commandComplete('SELECT 1'), encode.readyForQuery()];
  return { body: Buffer.concat([description, ...rest]), descriptionEnd: description.length };
}

/** Postgres' words for whose queries are not the user's (signalfuncs.c). */
export function signalDenied({ command }: Signal): Refusal {
  const what = command === 'cancel' ? 'cancel query' : 'terminate process';
  const does = command === 'cancel' ? 'cancel this query' : 'terminate this process';
  return error(SqlState.InsufficientPrivilege, `permission denied to ${what}`, {
    detail: `Only the user whose session it is, and superusers, may ${does} through the proxy.`,
    hint: 'or use the process id of the server in pg_stat_activity',
  });
}
