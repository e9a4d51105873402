/**
 * Writers for the messages that the proxy originates, in both directions. Everything else on the wire is forwarded as
 * it came. Formats: Postgres manual, "Message Formats".
 */
import { ClientMessage, type ErrorFields, ServerMessage, Status } from './messages.ts';
import type { Refusal } from './sqlstate.ts';

/** One message: type byte, length, and the parts of its body (strings as UTF-8, not ended by a zero). */
export function message(type: number, ...parts: (Buffer | string)[]): Buffer {
  const buffers = parts.map((part) => (typeof part === 'string' ? Buffer.from(part, 'utf8') : part));
  const size = buffers.reduce((sum, part) => sum + part.length, 5);
  const header = Buffer.allocUnsafe(5);
  header[0] = type;
  header.writeUInt32BE(size - 1, 1);
  return Buffer.concat([header, ...buffers], size);
}

/** A 4-byte big-endian integer. */
export function int32(value: number): Buffer {
  const bytes = Buffer.allocUnsafe(4);
  bytes.writeInt32BE(value);
  return bytes;
}

function int16(value: number): Buffer {
  const bytes = Buffer.allocUnsafe(2);
  bytes.writeInt16BE(value);
  return bytes;
}

// --- What a server says, to a client ---------------------------------------------------------------------------

export const parseComplete = message(ServerMessage.ParseComplete);
export const bindComplete = message(ServerMessage.BindComplete);
export const noData = message(ServerMessage.NoData);
/** ParameterDescription of a statement that has none. */
export const noParameters = message(ServerMessage.ParameterDescription, int16(0));
export const closeComplete = message(ServerMessage.CloseComplete);
export const authenticationOk = message(ServerMessage.Authentication, int32(0));

const ready = new Map(Object.values(Status).map((s) => [s, message(ServerMessage.ReadyForQuery, Buffer.from([s]))]));

/** ReadyForQuery with a transaction status byte. */
export function readyForQuery(status: number = Status.Idle): Buffer {
  return ready.get(status as typeof Status.Idle)!;
}

/** An ErrorResponse. */
export function errorResponse(refusal: Refusal): Buffer {
  const { severity, sqlstate, message: text, detail, hint } = refusal;
  const fields: [string, string][] = [
    ['S', severity],
    ['V', severity],
    ['C', sqlstate],
    ['M', text],
  ];
  if (detail !== undefined) fields.push(['D', detail]);
  if (hint !== undefined) fields.push(['H', hint]);
  return errorFields(new Map(fields));
}

/** An ErrorResponse from fields, for answers of a server that are passed on changed. */
export function errorFields(fields: ErrorFields): Buffer {
  return message(ServerMessage.ErrorResponse, [...fields].map(([code, text]) => `${code}${text}\0`).join('') + '\0');
}

/** A NoticeResponse with severity NOTICE. */
export function notice(text: string): Buffer {
  return message(ServerMessage.NoticeResponse, `SNOTICE\0VNOTICE\0C00000\0M${text}\0\0`);
}

/** A ParameterStatus; name and value as Latin-1, the bytes that a server once sent. */
export function parameterStatus(name: string, value: string): Buffer {
  return message(ServerMessage.ParameterStatus, Buffer.from(`${name}\0${value}\0`, 'latin1'));
}

/** A BackendKeyData: process id and secret (4 bytes in protocol 3.0, up to 256 in 3.2), as Latin-1. */
export function backendKeyData(key: string): Buffer {
  return message(ServerMessage.BackendKeyData, Buffer.from(key, 'latin1'));
}

/** NegotiateProtocolVersion: the newest minor version we speak and the `_pq_.` options that we do not know. */
export function negotiateProtocolVersion(version: number, options: readonly string[]): Buffer {
  const names = options.map((name) => `${name}\0`).join('');
  return message(ServerMessage.NegotiateProtocolVersion, int32(version), int32(options.length), names);
}

/** AuthenticationMD5Password with its 4-byte salt. */
export function authenticationMd5(salt: Buffer): Buffer {
  return message(ServerMessage.Authentication, int32(5), salt);
}

/** AuthenticationSASL offering `mechanisms`. */
export function authenticationSasl(mechanisms: readonly string[]): Buffer {
  return message(ServerMessage.Authentication, int32(10), mechanisms.map((name) => `${name}\0`).join('') + '\0');
}

/** AuthenticationSASLContinue. */
export function authenticationSaslContinue(data: string): Buffer {
  return message(ServerMessage.Authentication, int32(11), data);
}

/** AuthenticationSASLFinal. */
export function authenticationSaslFinal(data: string): Buffer {
  return message(ServerMessage.Authentication, int32(12), data);
}

/** Type oids of columns of our own. */
export const Oid = { bool: 16, int4: 23, text: 25, numeric: 1700 } as const;
const sizes: Partial<Record<number, number>> = { [Oid.bool]: 1, [Oid.int4]: 4 };

/** A RowDescription; `format`: 0 (text) or 1 (binary). */
export function rowDescription(columns: readonly { name: string; oid: number; format?: number }[]): Buffer {
  const parts = columns.flatMap(({ name, oid, format = 0 }) => [
    Buffer.from(`${name}\0`),
    int32(0),
    int16(0),
    int32(oid),
    int16(sizes[oid] ?? -1),
    int32(-1),
    int16(format),
  ]);
  return message(ServerMessage.RowDescription, int16(columns.length), ...parts);
}

/** A DataRow of values in the format that its columns have. */
export function dataRow(values: readonly (string | number | null)[]): Buffer {
  const parts = values.flatMap((value) => {
    if (value === null) return [int32(-1)];
    const bytes = Buffer.from(String(value), 'utf8');
    return [int32(bytes.length), bytes];
  });
  return message(ServerMessage.DataRow, int16(values.length), ...parts);
}

/** A CommandComplete. */
export function commandComplete(tag: string): Buffer {
  return message(ServerMessage.CommandComplete, `${tag}\0`);
}

// --- What a client says, to a server ---------------------------------------------------------------------------

/** Protocol version numbers: major in the upper 16 bits, minor in the lower. */
export const Version = { v3_0: 0x00030000, v3_2: 0x00030002 } as const;

/** Codes in the place of a version ("SSLRequest", "CancelRequest", "GSSENCRequest"). */
export const RequestCode = { cancel: 80877102, ssl: 80877103, gss: 80877104 } as const;

export const sync = message(ClientMessage.Sync);
export const flush = message(ClientMessage.Flush);
export const terminate = message(ClientMessage.Terminate);

/** A simple Query. SQL as Latin-1: text that came from the wire keeps its bytes. */
export function query(sql: string): Buffer {
  return message(ClientMessage.Query, Buffer.from(`${sql}\0`, 'latin1'));
}

/** A Parse with a name and the rest of a Parse message: query, zero, parameter types. */
export function parse(name: string, body: Buffer): Buffer {
  return message(ClientMessage.Parse, `${name}\0`, body);
}

/** A Describe or Close of a prepared statement. */
export function aboutStatement(
  type: typeof ClientMessage.Describe | typeof ClientMessage.Close,
  name: Buffer | string,
): Buffer {
  return message(type, 'S', typeof name === 'string' ? Buffer.from(name, 'latin1') : name, '\0');
}

/** A Sync and an empty Query: what a Resync consists of (protocol/outstanding). */
export const resync = Buffer.concat([sync, query('')]);

const ASIDE = 'pgweir';

/** The messages that run one statement in the extended protocol and leave nothing behind, with their kinds. */
export function aside(sql: string) {
  const noParameters = Buffer.alloc(2);
  const noFormats = Buffer.alloc(6);
  return [
    ['Parse', message(ClientMessage.Parse, `${ASIDE}\0`, Buffer.from(`${sql}\0`, 'latin1'), noParameters)],
    ['Bind', message(ClientMessage.Bind, `${ASIDE}\0${ASIDE}\0`, noFormats)],
    ['Execute', message(ClientMessage.Execute, `${ASIDE}\0`, int32(0))],
    ['Close', message(ClientMessage.Close, `P${ASIDE}\0`)],
    ['Close', message(ClientMessage.Close, `S${ASIDE}\0`)],
  ] as const;
}

/**
 * Begins a transaction in the extended protocol, by the unnamed statement and portal, without Sync: so the server answers
 * together with what is sent behind it, in one message to the network instead of two. The portal is not left
 * behind, unless `hasPortal` (whoever executes it again is told that it cannot be run).
 */
export function begin(sql: string, hasPortal: boolean): Buffer {
  return Buffer.concat([
    parse('', Buffer.from(`${sql}\0\0\0`, 'latin1')),
    message(ClientMessage.Bind, Buffer.alloc(8)),
    message(ClientMessage.Execute, Buffer.alloc(5)),
    // Its answer tells that the server is done; a portal of that name need not be there.
    message(ClientMessage.Close, hasPortal ? 'Ppgweir_none\0' : 'P\0'),
  ]);
}

/** A CopyFail. */
export function copyFail(reason: string): Buffer {
  return message(ClientMessage.CopyFail, `${reason}\0`);
}

/** A PasswordMessage (clear text or md5). */
export function password(text: string): Buffer {
  return message(ClientMessage.Password, `${text}\0`);
}

/** A SASLInitialResponse. */
export function saslInitialResponse(mechanism: string, data: string): Buffer {
  return message(ClientMessage.Password, `${mechanism}\0`, int32(Buffer.byteLength(data)), data);
}

/** A SASLResponse. */
export function saslResponse(data: string): Buffer {
  return message(ClientMessage.Password, data);
}

/** A StartupMessage: length, version, name and value pairs (as Latin-1), zero. */
export function startup(version: number, parameters: Iterable<readonly [string, string]>): Buffer {
  const pairs = [...parameters].map(([name, value]) => `${name}\0${value}\0`).join('');
  return untyped(int32(version), Buffer.from(pairs + '\0', 'latin1'));
}

/** An SSLRequest. */
export const sslRequest = untyped(int32(RequestCode.ssl));

/** A CancelRequest with the key (process id and secret) of a server connection. */
export function cancelRequest(key: Buffer): Buffer {
  return untyped(int32(RequestCode.cancel), key);
}

function untyped(...parts: Buffer[]): Buffer {
  const size = parts.reduce((sum, part) => sum + part.length, 4);
  return Buffer.concat([int32(size), ...parts], size);
}
