/**
 * The message types of protocol 3, and readers for the few messages that the proxy looks inside. A byte means
 * different things per direction ('D' is Describe from a client and DataRow from a server), hence two tables.
 * Formats: Postgres manual, "Message Formats".
 */

/** Types of messages that clients send. */
export const ClientMessage = {
  Bind: 0x42, // B
  Close: 0x43, // C
  CopyData: 0x64, // d
  CopyDone: 0x63, // c
  CopyFail: 0x66, // f
  Describe: 0x44, // D
  Execute: 0x45, // E
  Flush: 0x48, // H
  FunctionCall: 0x46, // F
  Parse: 0x50, // P
  Password: 0x70, // p, also SASLInitialResponse and SASLResponse
  Query: 0x51, // Q
  Sync: 0x53, // S
  Terminate: 0x58, // X
} as const;

/** Types of messages that servers send. */
export const ServerMessage = {
  Authentication: 0x52, // R
  BackendKeyData: 0x4b, // K
  BindComplete: 0x32, // 2
  CloseComplete: 0x33, // 3
  CommandComplete: 0x43, // C
  CopyData: 0x64, // d
  CopyDone: 0x63, // c
  CopyInResponse: 0x47, // G
  CopyOutResponse: 0x48, // H
  CopyBothResponse: 0x57, // W
  DataRow: 0x44, // D
  EmptyQueryResponse: 0x49, // I
  ErrorResponse: 0x45, // E
  FunctionCallResponse: 0x56, // V
  NegotiateProtocolVersion: 0x76, // v
  NoData: 0x6e, // n
  NoticeResponse: 0x4e, // N
  NotificationResponse: 0x41, // A
  ParameterDescription: 0x74, // t
  ParameterStatus: 0x53, // S
  ParseComplete: 0x31, // 1
  PortalSuspended: 0x73, // s
  ReadyForQuery: 0x5a, // Z
  RowDescription: 0x54, // T
} as const;

/** Transaction status bytes of ReadyForQuery. */
export const Status = { Idle: 0x49, Transaction: 0x54, Failed: 0x45 } as const;

/** The zero byte that ends the string at `from`, or -1 when there is none before `end`. */
export function stringEnd(source: Buffer, from: number, end: number): number {
  const zero = source.indexOf(0, from);
  return zero === -1 || zero >= end ? -1 : zero;
}

/** Fields of an ErrorResponse or NoticeResponse by their one-letter code ("Error and Notice Message Fields"). */
export type ErrorFields = ReadonlyMap<string, string>;

/** Reads the body (after the header) of an ErrorResponse or NoticeResponse. Text is read as UTF-8. */
export function readErrorFields(body: Buffer): ErrorFields {
  const fields = new Map<string, string>();
  for (let at = 0; at < body.length && body[at] !== 0; ) {
    const end = stringEnd(body, at + 1, body.length);
    if (end === -1) break;
    fields.set(String.fromCharCode(body[at]!), body.toString('utf8', at + 1, end));
    at = end + 1;
  }
  return fields;
}

/** Reads name and value of a ParameterStatus body, as Latin-1: bytes are kept as they are. */
export function readParameter(body: Buffer): { name: string; value: string } {
  const nameEnd = stringEnd(body, 0, body.length);
  const valueEnd = stringEnd(body, nameEnd + 1, body.length);
  return { name: body.toString('latin1', 0, nameEnd), value: body.toString('latin1', nameEnd + 1, valueEnd) };
}

/** Reads the columns of a DataRow body in text format; null is null. */
export function readTextRow(body: Buffer): (string | null)[] {
  const row: (string | null)[] = [];
  let at = 2;
  for (let column = body.readUInt16BE(0); column > 0; column--) {
    const length = body.readInt32BE(at);
    at += 4;
    row.push(length < 0 ? null : body.toString('latin1', at, at + length));
    at += Math.max(0, length);
  }
  return row;
}
