/**
 * Recognises a request that may ride on a server with others (server/line): one simple Query, or one group of the
 * extended protocol, that is a read and has arrived whole. Called by client/request.
 *
 *     Query        Parse(unnamed) Bind [Describe] Execute Sync        Bind(named) [Describe] Execute Sync
 */
import { ClientMessage, stringEnd } from '../protocol/messages.ts';
import type { Wish } from '../server/line.ts';

/** A read that may ride, if its cost is small. */
export interface Read extends Wish {
  /** How many messages follow the first. */
  rest: number;
}

const HEADER = 5;
const PORTAL = 0x50;

/** Where the message at `start` ends. */
export function endOf(source: Buffer, start: number): number {
  return start + source.readUInt32BE(start + 1) + 1;
}

/**
 * Has the Query, Parse or Bind in `source[start, end)` nothing in it but its names and its text: no parameters, no types,
 * nothing behind them? Only then is it known what a server would say to it.
 */
export function isBare(type: number, source: Buffer, start: number, end: number): boolean {
  const first = stringEnd(source, start + HEADER, end);
  if (type === ClientMessage.Query) return first === end - 1;
  const second = first === -1 ? -1 : stringEnd(source, first + 1, end);
  if (second === -1) return false;
  const rest = end - (second + 1);
  if (type === ClientMessage.Parse) return rest === 2 && source.readUInt16BE(second + 1) === 0;
  // Formats of parameters, parameters, formats of results.
  if (rest < 6 || source.readUInt32BE(second + 1) !== 0) return false;
  return rest === 6 + 2 * source.readUInt16BE(second + 5);
}

/**
 * Counts the messages in `source[start, end)`, if they complete the group which a Parse or Bind (`first`) has begun and
 * nothing follows; otherwise 0.
 */
export function restOfGroup(first: number, source: Buffer, start: number, end: number): number {
  let wanted: 'Bind' | 'Execute' | 'Sync' = first === ClientMessage.Parse ? 'Bind' : 'Execute';
  let count = 0;
  for (let at = start; at + HEADER <= end; count++) {
    const size = source.readUInt32BE(at + 1) + 1;
    if (size < HEADER || at + size > end) return 0;
    const body = at + HEADER;
    switch (source[at]) {
      case ClientMessage.Bind: // The unnamed statement to the unnamed portal.
        if (wanted !== 'Bind' || size < HEADER + 2 || source.readUInt16BE(body) !== 0) return 0;
        wanted = 'Execute';
        break;
      case ClientMessage.Describe:
        if (wanted !== 'Execute' || size !== HEADER + 2 || source[body] !== PORTAL) return 0;
        break;
      case ClientMessage.Execute:
        if (wanted !== 'Execute' || size !== HEADER + 5 || source[body] !== 0) return 0;
        wanted = 'Sync';
        break;
      case ClientMessage.Sync:
        // A client that has sent more already is better served by a server of its own: its pipeline runs without a stop.
        return wanted === 'Sync' && size === HEADER && at + size === end ? count + 1 : 0;
      default:
        return 0;
    }
    at += size;
  }
  return 0;
}
