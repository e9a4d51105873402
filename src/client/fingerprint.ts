/**
 * A number by which a request is known when it is asked again (guard/retries). Called by client/session for requests that
 * cannot be admitted at once.
 *
 * The one idea: who retries sends the same bytes again, and mostly in one packet. So it is a hash (FNV-1a, Fowler, Noll, Vo)
 * over the beginning of the message and of what has come with it: text and parameters alike.
 */
import type { Frame, FrameReader } from '../protocol/frame.ts';

const BYTES_MAX = 2048;

/** Of the request that begins with `message`, by a client of this `party`. */
export function fingerprintOf(message: Frame, reader: FrameReader, party: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < party.length; i++) hash = Math.imul(hash ^ party.charCodeAt(i), 0x01000193);
  hash = add(hash, message.source, message.start, Math.min(message.end, message.start + BYTES_MAX));
  const { chunk, position } = reader;
  return add(hash, chunk, position, Math.min(chunk.length, position + BYTES_MAX)) >>> 0;
}

function add(before: number, source: Buffer, start: number, end: number): number {
  let hash = before;
  for (let at = start; at < end; at++) hash = Math.imul(hash ^ source[at]!, 0x01000193);
  return hash;
}
