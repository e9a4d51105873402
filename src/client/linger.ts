/**
 * The last moments of a client's socket: its last answer is on the way, and what it still sends is read and dropped, so that
 * the answer is not lost to a reset. Called by client/listener, and by client/connection after `socket.end`.
 *
 * The deadline is absolute: a client that neither reads nor stops sending would otherwise keep its socket for ever.
 */
import type net from 'node:net';
import { errorFields, errorResponse } from '../protocol/encode.ts';
import { fatal, type Refusal, SqlState } from '../protocol/sqlstate.ts';
import { ServerLoginError } from '../server/login.ts';
import type { Clock } from '../util/clock.ts';

const LINGER_MS = 5_000;

/** Closes `socket`, which has been ended, when its client has closed it too, or after five seconds. */
export function linger(socket: net.Socket, clock: Clock): void {
  const cancel = clock.after(LINGER_MS, () => socket.destroy());
  socket.once('close', cancel);
  socket.resume();
}

/** Tells a client that has no session why it cannot stay. */
export function refuse(socket: net.Socket, failure: Refusal | ServerLoginError, clock: Clock): void {
  socket.on('error', () => {});
  let bytes: Buffer;
  if (!(failure instanceof ServerLoginError)) bytes = errorResponse(failure);
  else if (failure.fields === null) bytes = errorResponse(fatal(SqlState.CannotConnectNow, failure.message));
  else {
    const hint: [string, string][] = failure.advice === '' ? [] : [['H', failure.advice]];
    bytes = errorFields(new Map([['S', 'FATAL'], ['V', 'FATAL'], ...hint, ...failure.fields]));
  }
  socket.end(bytes);
  linger(socket, clock);
}
