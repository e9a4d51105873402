/**
 * COPY FROM STDIN, from the client's side: what becomes of each message until its end. Pure functions, called by client/request.
 *
 *     none ──COPY──▶ asked ──data──▶ fed ──end of data──▶ none
 *                                     └──Sync amid the data──▶ loose ──end of data, or a violation──▶ ended (until all is answered)
 *
 * The one idea: as long as nothing says whether the server reads data, what means one thing to a COPY and another to a server that
 * has refused it must wait; so must everything behind a loose Sync but data ("COPY Operations").
 */
import { ClientMessage } from '../protocol/messages.ts';

/**
 * 'asked': its statement was sent; 'fed': data, too; 'loose': a Sync amid the data; 'ended': the end of the data after that. The end of a
 * COPY without a loose Sync is 'none'.
 */
export type CopyState = 'none' | 'asked' | 'fed' | 'loose' | 'ended';

/**
 * 'pass': the message is treated like any other. 'raw': it is passed on although it has no place here, and the server says so. 'await': it waits
 * until all is answered. 'resync': so it does, but first the server is made to end what it is at.
 */
export interface CopyMove {
  does: 'pass' | 'raw' | 'await' | 'resync';
  state: CopyState;
}

const to = (does: CopyMove['does']): Readonly<Record<CopyState, CopyMove>> => ({
  none: { does, state: 'none' },
  asked: { does, state: 'asked' },
  fed: { does, state: 'fed' },
  loose: { does, state: 'loose' },
  ended: { does, state: 'ended' },
});
const pass = to('pass');
const raw = to('raw');
const wait = to('await');
const resync = to('resync');

/** What becomes of a message of `type`. `isOpen`: the server has said that it reads data; not all that was sent has been answered. */
export function copyMove(before: CopyState, type: number, isOpen: boolean): CopyMove {
  if (before === 'ended' || (before === 'loose' && !isOpen)) return wait[before];
  const state = before === 'none' ? 'fed' : before; // A COPY that its text did not show.
  switch (type) {
    case ClientMessage.Flush:
      return pass[state];
    case ClientMessage.CopyData:
      return pass[state === 'asked' ? 'fed' : state];
    case ClientMessage.CopyDone:
    case ClientMessage.CopyFail:
      return pass[state === 'loose' ? 'ended' : 'none'];
    case ClientMessage.Sync:
      if (state === 'asked') return pass[state];
      return isOpen ? pass.loose : wait[state];
    default:
      if (!isOpen) return wait[state];
      // Either the server has refused the data, or its answer to a Resync will be that of a violation, too.
      return state === 'loose' ? resync.ended : raw[state];
  }
}
