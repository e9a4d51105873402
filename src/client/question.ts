/**
 * One statement that is asked for as a whole, apart from the messages that ask; and how it is answered from one body. Called by client/cached for
 * reads, by client/signal for signals.
 *
 *     Query        [Parse] Bind [Describe portal] Execute [Flush] Sync          all of its rows
 *
 * The one idea: it is answered as a whole or not at all (cache.md, traps 10 to 12), and only while nothing of it has been sent anywhere.
 */
import type { Entry } from '../cache/entry.ts';
import * as encode from '../protocol/encode.ts';
import type { Frame, FrameReader } from '../protocol/frame.ts';
import { ClientMessage, Status } from '../protocol/messages.ts';
import type { Statement } from '../server/statements.ts';
import { findGroup, type Group } from './group.ts';

/** What the client has prepared by which names. */
export interface ClientNames {
  /** The settings that decide which tables a statement's names mean. */
  readonly planSettings: string;
  /** The statement that the client has prepared by this name. */
  statementNamed(name: string): Statement | undefined;
  /** A server would take a Parse of this name. */
  mayName(name: string): boolean;
}

/** How it was asked, as far as the answer goes by that. */
export interface Form {
  /** Messages behind the first. */
  rest: number;
  hasDescription: boolean;
  /** What is answered before the rows. */
  prefix: Buffer;
}

export interface Question extends Form {
  isExtended: boolean;
  /** The statement's text, and the types of its parameters that Parse gives: Latin-1. */
  text: string;
  types: string;
  /** Bind behind the names: formats, parameters, formats of results. A part of what has arrived: to be used at once. */
  values: Buffer;
}

const READY_BYTES = 6;
export const NOTHING: Buffer = Buffer.alloc(0);
export const PARSED = Buffer.concat([encode.parseComplete, encode.bindComplete]);

/** What the group asks that begins with `message`; null: it is not of the kind that is answered. */
export function findQuestion(message: Frame, reader: FrameReader, client: ClientNames): Question | null {
  const group = findGroup(message, reader);
  if (group === null) return null;
  const { rest, isExtended } = group;
  if (!isExtended)
    return { rest, hasDescription: true, prefix: NOTHING, isExtended, text: textOf(group), types: '', values: NOTHING };
  if (!group.isExecuted || group.rowsMax !== 0 || group.isDescribedElse) return null;
  const { hasDescription } = group;
  const values = group.values.source.subarray(group.values.start, group.values.end);
  if (group.hasParse) {
    if (group.name !== '' && !client.mayName(group.name)) return null;
    const { source, end, typesEnd } = group.text;
    const types = source.toString('latin1', end + 1, typesEnd);
    return { rest, hasDescription, prefix: PARSED, isExtended, text: textOf(group), types, values };
  }
  const statement = group.name === '' ? undefined : client.statementNamed(group.name);
  // Its names were looked up when it was prepared.
  if (statement === undefined || statement.isOwn || statement.planSettings !== client.planSettings) return null;
  const { text, types } = statement;
  return { rest, hasDescription, prefix: encode.bindComplete, isExtended, text, types, values };
}

function textOf({ text }: Group): string {
  return text.source.toString('latin1', text.start, text.end);
}

/** The same question, which begins with `message`, as somebody asks it who has prepared nothing. */
export function requestOf({ isExtended, text, types, values, hasDescription }: Question, message: Frame): Buffer {
  if (!isExtended) return Buffer.from(message.source.subarray(message.start, message.end));
  return Buffer.concat([
    encode.parse('', Buffer.from(`${text}\0${types}`, 'latin1')),
    encode.message(ClientMessage.Bind, '\0\0', values),
    ...(hasDescription ? [encode.message(ClientMessage.Describe, 'P\0')] : []),
    encode.message(ClientMessage.Execute, '\0', encode.int32(0)),
    encode.sync,
  ]);
}

/** RowDescription, the first `descriptionEnd` bytes of `body`, and what follows up to ReadyForQuery. */
export type Answer = Pick<Entry, 'body' | 'descriptionEnd'>;

/** What a client in this transaction status is sent. */
export function piecesOf(
  { body, descriptionEnd }: Answer,
  { hasDescription, prefix }: Form,
  status: number,
): readonly Buffer[] {
  const from = hasDescription ? 0 : descriptionEnd;
  if (status !== Status.Idle)
    return [prefix, body.subarray(from, body.length - READY_BYTES), encode.readyForQuery(status)];
  return [prefix, from === 0 ? body : body.subarray(from)];
}
