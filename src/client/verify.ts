/**
 * Compares what the cache has given with what the database says. Called by client/cached for a sample of its answers, after its client has them.
 *
 * The one idea: a difference has two causes. Asked once more, the database says the same as before, and then the cache was wrong; or it says
 * something else each time, and then the statement should never have been kept.
 */
import type { Cache } from '../cache/cache.ts';
import type { Entry } from '../cache/entry.ts';
import type { Fill } from '../cache/flight.ts';
import * as encode from '../protocol/encode.ts';
import { ServerMessage, Status } from '../protocol/messages.ts';
import { type Form, NOTHING, PARSED, piecesOf } from './question.ts';

export interface AskingAgain {
  /** Asks the database what the client has asked for once more, for the cache alone: to keep it as `fill`, or to see what it says. */
  askAgain(request: Buffer, fill: Fill | null, done: (answer: Buffer | null) => void): void;
}

/** Is `entry`, which was given in this form, what the database says to `request`? The cache is told when that is known. */
export function verify(cache: Cache, entry: Entry, form: Form, request: Buffer, client: AskingAgain): void {
  const prefix = form.prefix.length > 0 ? PARSED : NOTHING;
  const given = Buffer.concat(piecesOf(entry, { ...form, prefix }, Status.Idle));
  cache.isVerifying = true;
  client.askAgain(request, null, (answer) => {
    cache.isVerifying = false;
    if (answer === null || !isAnswer(answer)) return;
    if (answer.equals(given)) return cache.onVerified(entry, 'same');
    cache.isVerifying = true;
    client.askAgain(request, null, (again) => {
      cache.isVerifying = false;
      if (again !== null && isAnswer(again)) cache.onVerified(entry, again.equals(answer) ? 'other' : 'volatile');
    });
  });
}

/** Neither an error nor a refusal. */
function isAnswer(answer: Buffer): boolean {
  return answer[0] !== ServerMessage.ErrorResponse && !answer.includes(FAILED);
}

/** ErrorResponse behind Parse and Bind, which are answered first. */
const FAILED = Buffer.concat([encode.bindComplete, Buffer.from('E')]);
