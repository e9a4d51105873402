/**
 * The last moments of a client's socket: its answer is on the way, and what it still sends is read and dropped, so that
 * the answer is not lost to a reset. Called by client/listener and client/session after `socket.end`.
 *
 * The deadline is absolute: a client that neither reads nor stops sending would otherwise keep its socket for ever.
 */
import type net from 'node:net';
import type { Clock } from '../util/clock.ts';

const LINGER_MS = 5_000;

/** Closes `socket`, which has been ended, when its client has closed it too, or after five seconds. */
export function linger(socket: net.Socket, clock: Clock): void {
  const cancel = clock.after(LINGER_MS, () => socket.destroy());
  socket.once('close', cancel);
  socket.resume();
}
