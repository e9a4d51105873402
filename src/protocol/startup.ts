/**
 * The first packet of a connection, which has no type byte: StartupMessage, SSLRequest, GSSENCRequest or
 * CancelRequest (Postgres manual, "Message Formats"). Called by client/login. A packet may arrive in any number of
 * segments, and several packets may arrive in one.
 */
import { RequestCode, Version } from './encode.ts';

/** Longest startup packet, as in Postgres (MAX_STARTUP_PACKET_LENGTH). */
const STARTUP_MAX = 10_000;
const LENGTH_BYTES = 4;
const PACKET_MIN = 8;

export type StartupPacket =
  | { kind: 'ssl' }
  | { kind: 'gss' }
  | { kind: 'cancel'; key: Buffer }
  | {
      kind: 'startup';
      /** Minor version to speak: 0 to 2. */
      minor: number;
      /** Newer minor version or unknown `_pq_.` options: NegotiateProtocolVersion must be sent, once. */
      negotiate: { options: string[] } | null;
      /** Names and values as Latin-1. */
      parameters: Map<string, string>;
    }
  | { kind: 'bad'; reason: string };

/** Size of the packet at the start of `bytes`; 0 when more bytes are needed to know, -1 when it cannot be one. */
export function packetSize(bytes: Buffer): number {
  if (bytes.length < LENGTH_BYTES) return 0;
  const size = bytes.readUInt32BE(0);
  return size < PACKET_MIN || size > STARTUP_MAX ? -1 : size;
}

/** Reads one whole packet. */
export function readPacket(packet: Buffer): StartupPacket {
  const code = packet.readUInt32BE(LENGTH_BYTES);
  const isBare = packet.length === PACKET_MIN;
  if (code === RequestCode.ssl && isBare) return { kind: 'ssl' };
  if (code === RequestCode.gss && isBare) return { kind: 'gss' };
  if (code === RequestCode.cancel) {
    // Process id and a secret of 4 to 256 bytes ("CancelRequest", protocol 3.2).
    if (packet.length < PACKET_MIN + 8 || packet.length > PACKET_MIN + 4 + 256) {
      return { kind: 'bad', reason: 'invalid length of cancel request packet' };
    }
    return { kind: 'cancel', key: Buffer.from(packet.subarray(PACKET_MIN)) };
  }
  const major = code >>> 16;
  if (major !== 3) {
    return {
      kind: 'bad',
      reason: `unsupported frontend protocol ${major}.${code & 0xffff}: server supports 3.0 to 3.2`,
    };
  }
  return readStartup(code & 0xffff, packet);
}

function readStartup(minor: number, packet: Buffer): StartupPacket {
  const bad = { kind: 'bad', reason: 'invalid startup packet layout: expected terminator as last byte' } as const;
  const parameters = new Map<string, string>();
  const options: string[] = [];
  let at = PACKET_MIN;
  while (at < packet.length && packet[at] !== 0) {
    const nameEnd = packet.indexOf(0, at);
    const valueEnd = nameEnd === -1 ? -1 : packet.indexOf(0, nameEnd + 1);
    if (valueEnd === -1) return bad;
    const name = packet.toString('latin1', at, nameEnd);
    if (name.startsWith('_pq_.')) options.push(name);
    else parameters.set(name, packet.toString('latin1', nameEnd + 1, valueEnd));
    at = valueEnd + 1;
  }
  if (at !== packet.length - 1) return bad;
  const newest = Version.v3_2 & 0xffff;
  const isNegotiated = minor > newest || options.length > 0;
  return { kind: 'startup', minor: Math.min(minor, newest), negotiate: isNegotiated ? { options } : null, parameters };
}

/**
 * Reads the startup parameter `options` as Postgres' command line: `-c name=value`, `-cname=value`, `--name=value`,
 * split at white space, with backslash as escape (pg_split_opts). Other switches give null.
 */
export function parseOptions(options: string): [name: string, value: string][] | null {
  const words = [...options.matchAll(/(?:\\[\s\S]|[^\\\s])+/g)].map(([word]) => word.replace(/\\([\s\S])/g, '$1'));
  const settings: [string, string][] = [];
  for (let at = 0; at < words.length; at++) {
    const word = words[at]!;
    let assignment: string | undefined;
    if (word === '-c' || word === '--') assignment = words[++at];
    else if (word.startsWith('-c')) assignment = word.slice(2);
    else if (word.startsWith('--')) assignment = word.slice(2);
    const equals = assignment?.indexOf('=') ?? -1;
    if (assignment === undefined || equals < 1) return null;
    // Dashes stand for underscores in names (ParseLongOption).
    settings.push([assignment.slice(0, equals).replaceAll('-', '_'), assignment.slice(equals + 1)]);
  }
  return settings;
}
