/**
 * Messages put in other words, byte by byte: a client's names for the server's and back. Pure functions, called by
 * client/request, which decides when.
 */
import * as encode from '../protocol/encode.ts';
import { readErrorFields, ServerMessage } from '../protocol/messages.ts';
import type { Reference } from '../sql/effects.ts';

const HEADER = 5;

/**
 * What of a RowDescription a plan must not change: names and types. Table oid and column number of each field may
 * differ (a table that was made anew), so they are blanked.
 */
export function rowShape(bytes: Buffer): Buffer {
  if (bytes[0] !== ServerMessage.RowDescription) return bytes;
  const shape = Buffer.from(bytes);
  let at = HEADER + 2;
  for (let left = bytes.readUInt16BE(HEADER); left > 0; left--) {
    const nameEnd = bytes.indexOf(0, at);
    shape.fill(0, nameEnd + 1, nameEnd + 7);
    at = nameEnd + 19; // table 4, column 2, type 4, size 2, modifier 4, format 2
  }
  return shape;
}

/** Header and first strings of a message whose last `rest` bytes follow from elsewhere. */
export function header(type: number, strings: string, rest: number): Buffer {
  const text = Buffer.from(`${strings}\0`, 'latin1');
  const bytes = Buffer.allocUnsafe(HEADER + text.length);
  bytes[0] = type;
  bytes.writeUInt32BE(HEADER - 1 + text.length + rest, 1);
  text.copy(bytes, HEADER);
  return bytes;
}

/** Another name for what a text names somewhere. */
export interface Renaming {
  reference: Reference;
  name: string;
}

/** `text` with the names replaced that `renamings`, in its order, point at. */
export function rename(text: Buffer, renamings: readonly Renaming[]): Buffer {
  const pieces: Buffer[] = [];
  let end = 0;
  for (const { reference, name } of renamings) {
    pieces.push(text.subarray(end, reference.start), Buffer.from(`"${name}"`));
    end = reference.end;
  }
  return Buffer.concat([...pieces, text.subarray(end)]);
}

/** An error of the server about one of our names, put in terms of the client's. */
export function withName(bytes: Buffer, ours: string, theirs: string): Buffer {
  if (!bytes.includes(ours)) return bytes;
  const fields = new Map(readErrorFields(bytes.subarray(HEADER)));
  const text = Buffer.from(theirs, 'latin1').toString('utf8');
  for (const [code, value] of fields) fields.set(code, value.replaceAll(`"${ours}"`, `"${text}"`));
  return encode.errorFields(fields);
}

/** What Postgres says when a prepared statement's result has changed (RevalidateCachedQuery). */
export function planChanged(bytes: Buffer): Buffer {
  const fields = new Map(readErrorFields(bytes.subarray(HEADER)));
  fields.set('C', '0A000').set('M', 'cached plan must not change result type');
  // Drivers know it by its routine, and prepare anew.
  fields.set('F', 'plancache.c').set('R', 'RevalidateCachedQuery').delete('L');
  return encode.errorFields(fields);
}
