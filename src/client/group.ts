/**
 * Recognises requests about one statement that have arrived whole: a simple Query, or one group of the extended protocol. Called by client/alone
 * for reads that may ride on a server with others (server/line) and for begins and ends of transactions, by client/question for what is
 * answered as a whole.
 *
 *     Query        [Parse] [Describe statement] [Bind] [Describe portal] [Execute] [Flush] Sync
 *
 * The one idea: what stands in the messages is found once, in one walk; who answers or sends them on says what it can do with.
 */
import type { Frame, FrameReader } from '../protocol/frame.ts';
import { ClientMessage, stringEnd } from '../protocol/messages.ts';

export interface Group {
  /** Messages behind the first, up to Sync. */
  rest: number;
  isExtended: boolean;
  /** The statement's name; '' is the unnamed one, and that of a Query. */
  name: string;
  hasParse: boolean;
  isBound: boolean;
  isExecuted: boolean;
  /** Rows wanted at most; 0: all. */
  rowsMax: number;
  /** The portal is described before it runs. */
  hasDescription: boolean;
  /** Described in another way: the statement, or the portal twice or late. */
  isDescribedElse: boolean;
  hasFlush: boolean;
  /** Nothing but names and text: no parameters and none of their types. Only then is it known what a server would say. */
  isBare: boolean;
  /** Nothing has arrived behind it. */
  isLast: boolean;
  /** The text, `source[start, end)`, and up to `typesEnd` the types of its parameters; with Parse, or of a Query. */
  text: { source: Buffer; start: number; end: number; typesEnd: number };
  /** Bind behind the names, `source[start, end)`: formats, parameters, formats of results. */
  values: { source: Buffer; start: number; end: number };
}

const HEADER = 5;
/** In Describe and Close. */
const STATEMENT = 0x53;
const PORTAL = 0x50;
/** No types of parameters, in Parse; in Bind: no formats of parameters, no parameters, and none for results. */
const NO_TYPES = 2;
const NO_VALUES = 6;

const nothing = Buffer.alloc(0);
/** One for all sessions, used at once. */
const group: Group = {
  rest: 0,
  isExtended: false,
  name: '',
  hasParse: false,
  isBound: false,
  isExecuted: false,
  rowsMax: 0,
  hasDescription: false,
  isDescribedElse: false,
  hasFlush: false,
  isBare: true,
  isLast: false,
  text: { source: nothing, start: 0, end: 0, typesEnd: 0 },
  values: { source: nothing, start: 0, end: 0 },
};

/**
 * The group that begins with `first` (a Query, Parse, Bind, or Describe of a statement) and goes on in `reader`; valid until the next call.
 * Null: it has not arrived whole, or is not about one statement and the unnamed portal.
 */
export function findGroup(first: Frame, reader: FrameReader): Group | null {
  if (!first.isStart || !first.isEnd || !begin(first)) return null;
  if (!group.isExtended) {
    group.isLast = reader.pending === 0;
    return group;
  }
  const { chunk } = reader;
  for (let at = reader.position; at + HEADER <= chunk.length; ) {
    const end = at + 1 + chunk.readUInt32BE(at + 1);
    if (end < at + HEADER || end > chunk.length) return null;
    group.rest++;
    if (chunk[at] === ClientMessage.Sync) {
      group.isLast = end === chunk.length;
      return end === at + HEADER ? group : null;
    }
    if (!add(chunk, chunk[at]!, at + HEADER, end)) return null;
    at = end;
  }
  return null;
}

function begin({ source, start, end, type }: Frame): boolean {
  group.rest = 0;
  group.name = '';
  group.isExtended = type !== ClientMessage.Query;
  group.hasParse = type === ClientMessage.Parse;
  group.isBound = group.isExecuted = group.hasFlush = group.hasDescription = group.isDescribedElse = false;
  group.rowsMax = 0;
  group.isBare = true;
  const body = start + HEADER;
  switch (type) {
    case ClientMessage.Query:
      return addText(source, body, end) && group.text.end === end - 1;
    case ClientMessage.Parse: {
      const nameEnd = stringEnd(source, body, end);
      if (nameEnd === -1 || !addText(source, nameEnd + 1, end)) return false;
      group.name = source.toString('latin1', body, nameEnd);
      group.isBare = end - (group.text.end + 1) === NO_TYPES && source.readUInt16BE(end - NO_TYPES) === 0;
      return true;
    }
    case ClientMessage.Bind:
    case ClientMessage.Describe: {
      const name = nameIn(source, type, start, end);
      if (name === null) return false;
      group.name = name;
      return add(source, type, body, end);
    }
    default:
      return false;
  }
}

function addText(source: Buffer, start: number, end: number): boolean {
  const textEnd = stringEnd(source, start, end);
  group.text.source = source;
  group.text.start = start;
  group.text.end = textEnd;
  group.text.typesEnd = end;
  return textEnd !== -1;
}

/** Takes one more message with its body in `source[body, end)` into the group; false: it does not belong there. */
function add(source: Buffer, type: number, body: number, end: number): boolean {
  switch (type) {
    case ClientMessage.Bind:
      return !group.isBound && addBind(source, body, end);
    case ClientMessage.Describe:
      if (source[body] === STATEMENT) {
        group.isDescribedElse = true;
        return isNamed(source, body + 1, end) && body + 1 + group.name.length + 1 === end;
      }
      if (!group.isBound || source[body] !== PORTAL || end !== body + 2) return false;
      if (group.hasDescription || group.isExecuted) group.isDescribedElse = true;
      else group.hasDescription = true;
      return true;
    case ClientMessage.Execute: // Of the unnamed portal.
      if (!group.isBound || group.isExecuted || source[body] !== 0 || end !== body + 5) return false;
      group.isExecuted = true;
      group.rowsMax = source.readUInt32BE(body + 1);
      return true;
    case ClientMessage.Flush:
      group.hasFlush = true;
      return end === body;
    default:
      return false;
  }
}

/** To the unnamed portal. */
function addBind(source: Buffer, body: number, end: number): boolean {
  if (source[body] !== 0 || !isNamed(source, body + 1, end)) return false;
  const start = body + 1 + group.name.length + 1;
  if (end - start < NO_VALUES) return false;
  group.isBound = true;
  group.values.source = source;
  group.values.start = start;
  group.values.end = end;
  const formats = source.readUInt16BE(start + 4);
  group.isBare &&= source.readUInt32BE(start) === 0 && end - start === NO_VALUES + 2 * formats;
  return true;
}

/** The string that begins at `start` is the name of the group's statement. */
function isNamed(source: Buffer, start: number, end: number): boolean {
  const { name } = group;
  const nameEnd = start + name.length;
  if (nameEnd >= end || source[nameEnd] !== 0) return false;
  return name === '' || source.toString('latin1', start, nameEnd) === name;
}

/** The name of the statement that a Parse, a Bind or a Describe is about; null: it is about a portal, or makes no sense. */
export function nameIn(source: Buffer, type: number, start: number, end: number): string | null {
  let from = start + HEADER;
  if (type === ClientMessage.Bind) from = stringEnd(source, from, end) + 1;
  else if (type === ClientMessage.Describe && source[from++] !== STATEMENT) return null;
  const nameEnd = from === 0 ? -1 : stringEnd(source, from, end);
  return nameEnd === -1 ? null : source.toString('latin1', from, nameEnd);
}
