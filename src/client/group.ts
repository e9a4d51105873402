/**
 * One statement that is asked for as a whole, in one message or several which have all arrived; and how it is answered from one body. Called by
 * client/cached for reads, by client/signal for signals.
 *
 *     Query        [Parse] Bind [Describe portal] Execute [Flush] Sync          one statement, all of its rows, up to Sync
 *
 * The one idea: a group is answered as a whole or not at all (cache.md, traps 10 to 12), and only while nothing of it has been sent anywhere.
 */
import type { Entry } from '../cache/entry.ts';
import * as encode from '../protocol/encode.ts';
import type { Frame, FrameReader } from '../protocol/frame.ts';
import { ClientMessage, Status, stringEnd } from '../protocol/messages.ts';
import type { Statement } from '../server/statements.ts';

/** What the client has prepared by which names. */
export interface ClientNames {
  /** The settings that decide which tables a statement's names mean. */
  readonly planSettings: string;
  /** The statement that the client has prepared by this name. */
  statementNamed(name: string): Statement | undefined;
  /** A server would take a Parse of this name. */
  mayName(name: string): boolean;
}

/** One statement, asked for in one or more messages, the first of which is not counted in `rest`. */
export interface StatementGroup {
  rest: number;
  hasDescription: boolean;
  /** What is answered before the rows. */
  prefix: Buffer;
}

const HEADER = 5;
const PORTAL = 0x50;

/** What `findGroup` has found in the messages at hand; one for all sessions, used at once. */
export const found = {
  rest: 0,
  hasDescription: false,
  isExtended: false,
  hasParse: false,
  /** The statement's text, and the types of its parameters that Parse gives: Latin-1. */
  text: '',
  types: '',
  /** Bind behind the names: formats, parameters, formats of results. */
  source: Buffer.alloc(0) as Buffer,
  valuesStart: 0,
  valuesEnd: 0,
};

/** Fills `found` from the group that begins with `message`; false: it is not of the kind that is answered. */
export function findGroup(message: Frame, reader: FrameReader, client: ClientNames): boolean {
  found.rest = 0;
  found.hasDescription = false;
  const { source, start, end, type } = message;
  if (type === ClientMessage.Query) {
    if (source[end - 1] !== 0) return false;
    found.isExtended = false;
    found.hasParse = false;
    found.hasDescription = true;
    found.text = source.toString('latin1', start + HEADER, end - 1);
    return true;
  }
  found.isExtended = true;
  found.hasParse = type === ClientMessage.Parse;
  if (type === ClientMessage.Parse) {
    const nameEnd = stringEnd(source, start + HEADER, end);
    const textEnd = nameEnd === -1 ? -1 : stringEnd(source, nameEnd + 1, end);
    if (textEnd === -1) return false;
    const name = source.toString('latin1', start + HEADER, nameEnd);
    if (name !== '' && !client.mayName(name)) return false;
    found.text = source.toString('latin1', nameEnd + 1, textEnd);
    found.types = source.toString('latin1', textEnd + 1, end);
    return findRest(name, reader, client);
  }
  return findBind(source, start, end, null, client) && findRest(null, reader, client);
}

/** `parsed`: the name that Parse has given in this group; null: there was none. */
function findBind(source: Buffer, start: number, end: number, parsed: string | null, client: ClientNames): boolean {
  if (source[start + HEADER] !== 0) return false; // A named portal.
  const nameEnd = stringEnd(source, start + HEADER + 1, end);
  if (nameEnd === -1) return false;
  found.source = source;
  found.valuesStart = nameEnd + 1;
  found.valuesEnd = end;
  if (end - found.valuesStart < 6) return false;
  const name = source.toString('latin1', start + HEADER + 1, nameEnd);
  if (parsed !== null) return name === parsed;
  const statement = name === '' ? undefined : client.statementNamed(name);
  // Its names were looked up when it was prepared.
  if (statement === undefined || statement.planSettings !== client.planSettings) return false;
  found.text = statement.text;
  found.types = statement.types;
  return true;
}

/** What follows the first message, up to Sync. */
function findRest(parsed: string | null, { chunk, position }: FrameReader, client: ClientNames): boolean {
  let hasBind = parsed === null;
  let hasExecute = false;
  for (let at = position; at + HEADER <= chunk.length; ) {
    const end = at + 1 + chunk.readUInt32BE(at + 1);
    if (end < at + HEADER || end > chunk.length) return false;
    found.rest++;
    switch (chunk[at]) {
      case ClientMessage.Bind:
        if (hasBind || !findBind(chunk, at, end, parsed, client)) return false;
        hasBind = true;
        break;
      case ClientMessage.Describe:
        if (!hasBind || hasExecute || found.hasDescription || end !== at + HEADER + 2 || chunk[at + HEADER] !== PORTAL)
          return false;
        found.hasDescription = true;
        break;
      case ClientMessage.Execute:
        // The unnamed portal, all rows.
        if (!hasBind || hasExecute || end !== at + HEADER + 5 || chunk.readUInt32BE(at + HEADER + 1) !== 0)
          return false;
        hasExecute = true;
        break;
      case ClientMessage.Flush:
        if (end !== at + HEADER) return false;
        break;
      case ClientMessage.Sync:
        return hasExecute && end === at + HEADER;
      default:
        return false;
    }
    at = end;
  }
  return false;
}

/** RowDescription, the first `descriptionEnd` bytes of `body`, and what follows up to ReadyForQuery. */
export type Answer = Pick<Entry, 'body' | 'descriptionEnd'>;

/** What a client in this transaction status is sent. */
export function piecesOf(
  { body, descriptionEnd }: Answer,
  { hasDescription, prefix }: StatementGroup,
  status: number,
): readonly Buffer[] {
  const from = hasDescription ? 0 : descriptionEnd;
  if (status !== Status.Idle)
    return [prefix, body.subarray(from, body.length - READY_BYTES), encode.readyForQuery(status)];
  return [prefix, from === 0 ? body : body.subarray(from)];
}

const READY_BYTES = 6;

/** What `findGroup` has found. */
export function groupFound(): StatementGroup {
  const { rest, hasDescription, isExtended, hasParse } = found;
  return { rest, hasDescription, prefix: !isExtended ? NOTHING : hasParse ? PARSED : encode.bindComplete };
}

/** What `findGroup` has found, beginning with this message, as somebody asks it who has prepared nothing. */
export function requestFound({ source, start, end }: Frame): Buffer {
  if (!found.isExtended) return Buffer.from(source.subarray(start, end));
  return Buffer.concat([
    encode.parse('', Buffer.from(`${found.text}\0${found.types}`, 'latin1')),
    encode.message(ClientMessage.Bind, '\0\0', found.source.subarray(found.valuesStart, found.valuesEnd)),
    ...(found.hasDescription ? [encode.message(ClientMessage.Describe, 'P\0')] : []),
    encode.message(ClientMessage.Execute, '\0', encode.int32(0)),
    encode.sync,
  ]);
}

export const NOTHING: Buffer = Buffer.alloc(0);
export const PARSED = Buffer.concat([encode.parseComplete, encode.bindComplete]);
