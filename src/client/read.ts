/**
 * Recognises requests of one statement that have arrived whole: a simple Query, or one group of the extended protocol. Called
 * by client/alone, for reads that may ride on a server with others (server/line), and for begins and ends of transactions.
 *
 *     Query        Parse(unnamed) Bind [Describe] Execute Sync        Bind(named) [Describe] Execute Sync
 */
import type { Frame } from '../protocol/frame.ts';
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
function endOf(source: Buffer, start: number): number {
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

/** What one statement, and nothing else, is asked for: by whatever names and in however many messages, up to Sync. */
export interface Group {
  /** The statement's name. */
  name: string;
  /** Messages that follow the first. */
  rest: number;
  isExecuted: boolean;
}

const STATEMENT = 0x53;

/**
 * The group that begins with `first` (a Parse, Bind or Describe) and goes on at `position` in `chunk`: of a statement
 * without parameters, run once at most. Null: it has not arrived whole, or there is more in it.
 */
export function controlGroup(first: Frame, chunk: Buffer, position: number): Group | null {
  const found: Group & { isBound: boolean } = { name: '', rest: 0, isExecuted: false, isBound: false };
  const name = first.isEnd ? nameIn(first.source, first.type, first.start, first.end) : null;
  if (name === null) return null;
  found.name = name;
  if (!addTo(found, first.source, first.type, first.start, first.end, first.type === ClientMessage.Parse)) return null;
  for (let at = position; at + HEADER <= chunk.length; at = endOf(chunk, at)) {
    const end = endOf(chunk, at);
    if (end < at + HEADER || end > chunk.length) return null;
    found.rest++;
    if (chunk[at] === ClientMessage.Sync) return end === at + HEADER ? found : null;
    if (!addTo(found, chunk, chunk[at]!, at, end, false)) return null;
  }
  return null;
}

/** Takes one more message into the group; false: it does not belong there. */
function addTo(
  group: Group & { isBound: boolean },
  source: Buffer,
  type: number,
  start: number,
  end: number,
  mayParse: boolean,
): boolean {
  const body = start + HEADER;
  switch (type) {
    case ClientMessage.Parse:
      return mayParse && isBare(type, source, start, end);
    case ClientMessage.Bind: {
      const isFirst = !group.isBound;
      group.isBound = true;
      const isUnnamedPortal = source[body] === 0;
      return (
        isFirst &&
        isUnnamedPortal &&
        isBare(type, source, start, end) &&
        nameIn(source, type, start, end) === group.name
      );
    }
    case ClientMessage.Describe:
      if (source[body] === STATEMENT) return nameIn(source, type, start, end) === group.name;
      return group.isBound && source[body] === PORTAL && end === body + 2;
    case ClientMessage.Execute: {
      const isFirst = !group.isExecuted;
      group.isExecuted = true;
      return group.isBound && isFirst && source[body] === 0 && end === body + 5;
    }
    case ClientMessage.Flush:
      return end === body;
    default:
      return false;
  }
}

/** The name of the statement that a Parse, a Bind or a Describe is about; null: it is about a portal, or makes no sense. */
export function nameIn(source: Buffer, type: number, start: number, end: number): string | null {
  let from = start + HEADER;
  if (type === ClientMessage.Bind) from = stringEnd(source, from, end) + 1;
  else if (type === ClientMessage.Describe && source[from++] !== STATEMENT) return null;
  const nameEnd = from === 0 ? -1 : stringEnd(source, from, end);
  return nameEnd === -1 ? null : source.toString('latin1', from, nameEnd);
}
