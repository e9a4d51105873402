/**
 * From an accepted socket to a client that may ask something: TLS, SSLRequest, GSSENCRequest, CancelRequest, startup packet,
 * authentication (client/authenticate). Called by client/listener, once per connection; everything later is client/session.
 *
 *     (TLS) packet ─ssl→ TLS ─┐      startup → (trust | md5 | SCRAM | cert) → known database? → outcome
 *             ▲───────────────┘      cancel  → handed to CancelKeys
 *
 * Logins are rare beside requests, so promises are fine. Whether a database exists is said only to those who have proved who
 * they are.
 */
import type net from 'node:net';
import type { ListenConfig } from '../config/schema.ts';
import * as encode from '../protocol/encode.ts';
import { fatal, type Refusal, SqlState } from '../protocol/sqlstate.ts';
import { parseOptions, readPacket, type StartupPacket } from '../protocol/startup.ts';
import { nextId } from '../util/ids.ts';
import { type Authentication, authenticate } from './authenticate.ts';
import type { CancelKeys } from './cancel.ts';
import { Gone, Incoming } from './incoming.ts';
import type { ClientTls } from './tls.ts';

export interface LoginContext extends Authentication {
  listen: ListenConfig;
  keys: CancelKeys;
  /** No more clients; cancel requests are welcome all the same. */
  isFull: () => boolean;
  /** How long logins as this user are refused at its address, in ms. */
  waitOf: (user: string) => number;
  /** TLS towards clients, or null. */
  tls: ClientTls | null;
}

/** A client that has proved who it is. */
export interface ClientIdentity {
  /** By which people name it. */
  id: number;
  socket: net.Socket;
  user: string;
  database: string;
  minor: number;
  /** Settings that it asked for, by name as written, Latin-1. */
  settings: [string, string][];
  /** The class that it asked for (`options=-c pgweir.class=…`); '' when it did not. */
  wantedClass: string;
  /** The `replication` parameter, when it asks for a replication connection. */
  replication: string | null;
  /** Bytes that it sent after its last login message. */
  rest: Buffer;
}

export type LoginOutcome =
  | { kind: 'client'; client: ClientIdentity }
  /** Nothing more to do: the client has gone. */
  | { kind: 'done' }
  /** A cancel request has been taken: the socket is to be closed. */
  | { kind: 'canceled'; socket: net.Socket }
  /** To be told so, and closed. */
  | { kind: 'refused'; socket: net.Socket; user: string; refusal: Refusal };

/** Meant for us, not for the server. */
const CLASS_SETTING = 'pgweir.class';
/** The first byte of a TLS handshake; no startup packet is so long. */
const TLS_HANDSHAKE = 0x16;
/** Longest name of a user or database, in bytes (NAMEDATALEN - 1). */
const NAME_MAX = 63;
/** What a startup packet says besides settings. */
const STARTUP_NAMES: readonly string[] = ['user', 'database', 'options', 'replication'];
const NAME = 'application_name';
const NO = Buffer.from('N');
const YES = Buffer.from('S');

/** Runs the login on `socket`, from `address` (null: by a Unix socket). Never throws. */
export async function logInClient(
  socket: net.Socket,
  address: string | null,
  context: LoginContext,
): Promise<LoginOutcome> {
  const incoming = new Incoming(socket, address);
  try {
    const outcome = await run(incoming, context);
    const rest = incoming.release();
    return outcome.kind === 'client' ? { kind: 'client', client: { ...outcome.client, rest } } : outcome;
  } catch (thrown) {
    incoming.release();
    incoming.socket.on('error', () => {}).destroy();
    if (thrown instanceof Gone) return { kind: 'done' };
    throw thrown;
  }
}

async function run(incoming: Incoming, context: LoginContext): Promise<LoginOutcome> {
  let user = '';
  const refused = (refusal: Refusal): LoginOutcome => ({ kind: 'refused', socket: incoming.socket, user, refusal });
  const packet = await negotiate(incoming, context);
  switch (packet.kind) {
    case 'bad':
      return refused(fatal(SqlState.ProtocolViolation, packet.reason));
    case 'cancel':
      context.keys.request(packet.key);
      return { kind: 'canceled', socket: incoming.socket };
    case 'ssl':
    case 'gss':
      return refused(fatal(SqlState.ProtocolViolation, 'encryption was asked for twice'));
    case 'startup':
      break;
    default:
      packet satisfies never;
  }
  if (context.isFull()) {
    return refused(tooManyClients(context.listen));
  }
  const { socket } = incoming;
  const client = identify(socket, packet, context.listen.ignoreParameters);
  if ('sqlstate' in client) return refused(client);
  user = client.user;
  const waitMs = context.waitOf(client.user);
  if (waitMs > 0)
    return refused(
      fatal(SqlState.InvalidAuthorization, 'too many logins from this address have failed', {
        hint: `connect again in ${Math.ceil(waitMs / 1000)} s (auth.failures)`,
      }),
    );
  const { mode } = context.listen.tls;
  const isTls = incoming.tls !== null;
  const isRequired = mode === 'require' || mode.startsWith('verify-');
  // A Unix socket needs no TLS.
  if (isRequired && !isTls && incoming.address !== null) {
    return refused(fatal(SqlState.InvalidAuthorization, 'TLS is required', { hint: 'connect with sslmode=require' }));
  }
  const { certificate } = incoming;
  if (certificate.kind === 'bad')
    return refused(fatal(SqlState.InvalidAuthorization, `the client certificate was not accepted: ${certificate.why}`));
  if (certificate.kind === 'none' && isTls && mode.startsWith('verify-'))
    return refused(
      fatal(SqlState.InvalidAuthorization, 'connection requires a valid client certificate', {
        hint: 'connect with sslcert and sslkey',
      }),
    );
  if (mode === 'verify-full' && certificate.kind === 'good' && certificate.names.commonName !== client.user) {
    return refused(fatal(SqlState.InvalidAuthorization, `the client certificate is not for user "${client.user}"`));
  }
  if (packet.negotiate !== null) {
    incoming.socket.write(encode.negotiateProtocolVersion((3 << 16) | packet.minor, packet.negotiate.options));
  }
  const failure = await authenticate(incoming, client, context);
  return failure === null ? { kind: 'client', client } : refused(failure);
}

export function tooManyClients({ clientsMax }: ListenConfig): Refusal {
  return fatal(SqlState.TooManyConnections, 'sorry, too many clients already', {
    detail: `${clientsMax} clients are connected to this proxy`,
    hint: 'raise listen.clientsMax (max_client_conn), or connect later',
  });
}

/** Answers encryption requests until something else comes. */
async function negotiate(incoming: Incoming, { tls }: LoginContext): Promise<StartupPacket> {
  const seen = new Set<string>();
  if ((await incoming.peek()) === TLS_HANDSHAKE) {
    if (tls === null) throw new Gone(); // It would not understand an answer.
    if (!(await incoming.secure(tls)))
      return { kind: 'bad', reason: 'TLS without SSLRequest needs the protocol "postgresql" (ALPN)' };
    seen.add('ssl').add('gss');
  }
  for (;;) {
    const bytes = await incoming.packet();
    if (bytes === null) return { kind: 'bad', reason: 'invalid length of startup packet' };
    const packet = readPacket(bytes);
    if ((packet.kind !== 'ssl' && packet.kind !== 'gss') || seen.has(packet.kind)) return packet;
    seen.add(packet.kind);
    if (packet.kind === 'gss' || tls === null) {
      incoming.socket.write(NO);
      continue;
    }
    // CVE-2021-23214: what was sent in clear text before the handshake must not be taken for part of the session.
    if (incoming.isStuffed) return { kind: 'bad', reason: 'received unencrypted data after SSL request' };
    incoming.socket.write(YES);
    await incoming.secure(tls);
    seen.add('gss');
  }
}

function identify(
  socket: net.Socket,
  packet: StartupPacket & { kind: 'startup' },
  ignored: readonly string[],
): ClientIdentity | Refusal {
  const { parameters, minor } = packet;
  // As Postgres cuts names, lest somebody be another one there than here.
  const utf8 = (name: string) =>
    Buffer.from((parameters.get(name) ?? '').slice(0, NAME_MAX), 'latin1').toString('utf8');
  const user = utf8('user');
  if (user === '') return fatal(SqlState.InvalidAuthorization, 'no PostgreSQL user name specified in startup packet');
  const options = parseOptions(parameters.get('options') ?? '');
  if (options === null) {
    return fatal(SqlState.InvalidParameterValue, `invalid command-line argument in startup parameter "options"`, {
      hint: 'use -c name=value or --name=value',
    });
  }
  const reserved = options.find(([name]) => STARTUP_NAMES.includes(name.toLowerCase()));
  if (reserved !== undefined)
    return fatal(SqlState.InvalidParameterValue, `unrecognized configuration parameter "${reserved[0]}"`, {
      hint: 'it is none of options',
    });
  // As in Postgres, the packet's own parameters are applied after the options.
  const own = [...parameters].filter(([name]) => !STARTUP_NAMES.includes(name.toLowerCase()));
  const asked = parameters.get('replication') ?? 'off';
  const isReplication = asked === 'database' || readBoolean(asked);
  if (isReplication === null)
    return fatal(SqlState.InvalidParameterValue, `invalid value for parameter "replication": "${asked}"`, {
      hint: 'valid values are: "false", 0, "true", 1, "database"',
    });
  return {
    id: nextId(),
    socket,
    user,
    database: utf8('database') || user,
    minor,
    settings: [...options, ...own].filter(
      ([name]) => name.toLowerCase() !== CLASS_SETTING && !ignored.includes(name.toLowerCase()),
    ),
    wantedClass: options.findLast(([name]) => name.toLowerCase() === CLASS_SETTING)?.[1] ?? '',
    replication: isReplication ? (asked === 'database' ? asked : 'true') : null,
    rest: Buffer.alloc(0),
  };
}

/** What the client has asked for; with its address in its name, where that is wanted (application_name_add_host of PgBouncer). */
export function settingsOf(
  settings: [string, string][],
  socket: net.Socket,
  { applicationNameAddHost }: ListenConfig,
): [string, string][] {
  if (applicationNameAddHost === 'off') return settings;
  const { remoteAddress, remotePort } = socket;
  const address = remoteAddress === undefined ? 'unix' : `${remoteAddress}:${remotePort}`;
  const [, name] = settings.findLast(([key]) => key.toLowerCase() === NAME) ?? [NAME, 'app'];
  return [...settings.filter(([key]) => key.toLowerCase() !== NAME), [NAME, `${name} - ${address}`]];
}

/** As Postgres reads a boolean (parse_bool): any beginning of a word that only one has; null: it is none. */
function readBoolean(text: string): boolean | null {
  const lower = text.toLowerCase();
  if (lower === '1' || lower === '0') return lower === '1';
  if (lower === '' || lower === 'o') return null;
  if (['true', 'yes', 'on'].some((word) => word.startsWith(lower))) return true;
  return ['false', 'no', 'off'].some((word) => word.startsWith(lower)) ? false : null;
}
