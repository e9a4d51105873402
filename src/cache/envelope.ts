/**
 * How an answer travels to the cache backend and back. Pure. Called by cache/backend.
 *
 *     PGWC | version 1 | 0 | epoch 8 | key 32 | created 8 | ttl 4 | cost 4 | n 2 | (oid 4, version 8) × n | describes 4 | size 4 | body | MAC 16
 *
 * The one idea: what comes back is believed by nobody until it has proved to be the answer to the very question: the key stands inside, because a client
 * library that has lost step gives one caller what another has asked for (cache.md, trap 18), and the messages are walked through.
 *
 * Integers are big-endian. The MAC is HMAC-SHA256, cut to 16 bytes, over everything before it; without a secret it is keyed with nothing,
 * and only finds damage.
 */
import { createHmac, timingSafeEqual } from 'node:crypto';
import { ServerMessage, Status } from '../protocol/messages.ts';

export interface Enveloped {
  /** SHA-256 of the question. */
  key: Buffer;
  epoch: bigint;
  /** Wall-clock ms. */
  createdAt: number;
  ttlMs: number;
  costMs: number;
  versions: readonly { oid: number; version: bigint }[];
  descriptionEnd: number;
  body: Buffer;
}

export type Opened =
  | { kind: 'ok'; content: Enveloped }
  /** Of another version of this program: nobody's fault. */
  | { kind: 'foreign' }
  | { kind: 'bad'; why: 'short' | 'magic' | 'mac' | 'key' | 'messages' };

const MAGIC = 0x50475743;
const VERSION = 1;
const FIXED = 4 + 1 + 1 + 8 + 32 + 8 + 4 + 4 + 2;
const DEPENDENCY = 12;
const MAC = 16;
const HEADER = 5;

export function seal(content: Enveloped, secret: string): Buffer {
  const { key, epoch, createdAt, ttlMs, costMs, versions, descriptionEnd, body } = content;
  const size = FIXED + DEPENDENCY * versions.length + 8 + body.length;
  const sealed = Buffer.allocUnsafe(size + MAC);
  let at = sealed.writeUInt32BE(MAGIC, 0);
  at = sealed.writeUInt8(VERSION, at);
  at = sealed.writeUInt8(0, at);
  at = sealed.writeBigUInt64BE(epoch, at);
  at += key.copy(sealed, at);
  at = sealed.writeDoubleBE(createdAt, at);
  at = sealed.writeUInt32BE(Math.min(ttlMs, 0xffff_ffff), at);
  at = sealed.writeFloatBE(costMs, at);
  at = sealed.writeUInt16BE(versions.length, at);
  for (const { oid, version } of versions) {
    at = sealed.writeUInt32BE(oid, at);
    at = sealed.writeBigUInt64BE(version, at);
  }
  at = sealed.writeUInt32BE(descriptionEnd, at);
  at = sealed.writeUInt32BE(body.length, at);
  at += body.copy(sealed, at);
  macOf(sealed.subarray(0, at), secret).copy(sealed, at);
  return sealed;
}

/** Opens what is said to be the answer to the question `key`. */
export function openEnvelope(sealed: Buffer, key: Buffer, secret: string): Opened {
  const bad = (why: (Opened & { kind: 'bad' })['why']): Opened => ({ kind: 'bad', why });
  if (sealed.length < FIXED + 8 + MAC) return bad('short');
  if (sealed.readUInt32BE(0) !== MAGIC) return bad('magic');
  if (sealed[4] !== VERSION) return { kind: 'foreign' };
  const end = sealed.length - MAC;
  if (!timingSafeEqual(macOf(sealed.subarray(0, end), secret), sealed.subarray(end))) return bad('mac');
  if (!sealed.subarray(14, 46).equals(key)) return bad('key');
  const count = sealed.readUInt16BE(62);
  const bodyAt = FIXED + DEPENDENCY * count + 8;
  if (bodyAt > end || sealed.readUInt32BE(bodyAt - 4) !== end - bodyAt) return bad('short');
  const versions = Array.from({ length: count }, (_, index) => ({
    oid: sealed.readUInt32BE(FIXED + DEPENDENCY * index),
    version: sealed.readBigUInt64BE(FIXED + DEPENDENCY * index + 4),
  }));
  const body = Buffer.allocUnsafeSlow(end - bodyAt);
  sealed.copy(body, 0, bodyAt, end);
  const descriptionEnd = sealed.readUInt32BE(bodyAt - 8);
  if (!isAnswer(body, descriptionEnd)) return bad('messages');
  return {
    kind: 'ok',
    content: {
      key,
      epoch: sealed.readBigUInt64BE(6),
      createdAt: sealed.readDoubleBE(46),
      ttlMs: sealed.readUInt32BE(54),
      costMs: sealed.readFloatBE(58),
      versions,
      descriptionEnd,
      body,
    },
  };
}

function macOf(bytes: Buffer, secret: string): Buffer {
  return createHmac('sha256', secret).update(bytes).digest().subarray(0, MAC);
}

/** Is it [RowDescription] DataRow* CommandComplete ReadyForQuery(idle), with as many rows as it says? */
function isAnswer(body: Buffer, descriptionEnd: number): boolean {
  let rows = 0;
  let tag = '';
  for (let at = 0; at + HEADER <= body.length; ) {
    const type = body[at];
    const end = at + 1 + body.readUInt32BE(at + 1);
    if (end < at + HEADER || end > body.length) return false;
    if (type === ServerMessage.RowDescription) {
      if (at !== 0 || end !== descriptionEnd) return false;
    } else if (type === ServerMessage.DataRow && tag === '') rows++;
    else if (type === ServerMessage.CommandComplete && tag === '') tag = body.toString('latin1', at + HEADER, end - 1);
    else
      return (
        type === ServerMessage.ReadyForQuery &&
        end === body.length &&
        body[end - 1] === Status.Idle &&
        tag === `SELECT ${rows}`
      );
    at = end;
  }
  return false;
}
