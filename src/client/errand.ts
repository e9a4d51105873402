/**
 * A request of the proxy's own, made as a client would: through the same pool, gate and settings. Used to ask again for what the cache has given, and
 * to compare.
 *
 * The one idea: it is a session whose socket is a pair of functions, so nothing that holds for clients can be forgotten.
 */
import type net from 'node:net';
import { Duplex } from 'node:stream';
import type { Fill } from '../cache/flight.ts';
import { ServerMessage } from '../protocol/messages.ts';
import type { SessionHouse, SessionOptions } from './house.ts';
import { Session } from './session.ts';

const HEADER = 5;

/** Sends `request`, which ends with Query or Sync; calls `done` with the answer up to ReadyForQuery, or with null. Never throws. */
export function runErrand(
  options: Pick<SessionOptions, 'user' | 'pool' | 'settings' | 'messageMax' | 'wantedClass'>,
  house: SessionHouse,
  request: Buffer,
  fill: Fill | null,
  done: (answer: Buffer | null) => void,
): void {
  const answer: Buffer[] = [];
  let isDone = false;
  const finish = (whole: Buffer | null) => {
    if (isDone) return;
    isDone = true;
    done(whole);
    session.onGone();
  };
  const socket = new Duplex({
    read() {},
    write(bytes: Buffer, _, next) {
      answer.push(bytes);
      const all = answer.length === 1 ? bytes : Buffer.concat(answer.splice(0));
      if (all !== bytes) answer.push(all);
      if (isWhole(all)) finish(all);
      next();
    },
  });
  const session: Session = new Session({
    ...options,
    id: 0,
    socket: socket as unknown as net.Socket,
    key: '', // Nobody cancels it.
    house: { ...house, onEnd: () => finish(null) },
  });
  session.beginErrand(fill);
  // Later: whoever asks for it is amid a message of its own, and the frame is shared by all sessions.
  setImmediate(() => session.start(Buffer.alloc(0), request));
}

/** Does it end with ReadyForQuery? */
function isWhole(answer: Buffer): boolean {
  for (let at = 0; at + HEADER <= answer.length; ) {
    if (answer[at] === ServerMessage.ReadyForQuery) return true;
    at += answer.readUInt32BE(at + 1) + 1;
  }
  return false;
}
