/**
 * From an accepted socket to a client that may ask something: SSLRequest, GSSENCRequest, CancelRequest, startup packet,
 * authentication. Called by client/listener, once per connection; everything later is client/session.
 *
 *     packet ─ssl→ TLS ─┐      startup → (trust | md5 | SCRAM) → known database? → outcome
 *       ▲───────────────┘      cancel  → handed to CancelKeys, socket closed
 *
 * Logins are rare beside requests, so promises are fine; what is costly (key derivation) runs off the event loop. A
 * user that does not exist is told from a wrong password neither by the answer nor by the messages before it, and
 * whether a database exists is said only to those who have proved who they are.
 */
import { randomBytes } from 'node:crypto';
import type net from 'node:net';
import tls from 'node:tls';
import type { AuthConfig, ListenConfig } from '../config/schema.ts';
import * as encode from '../protocol/encode.ts';
import { emptyFrame, FrameReader } from '../protocol/frame.ts';
import { md5Answer } from '../protocol/md5.ts';
import { ClientMessage, stringEnd } from '../protocol/messages.ts';
import { mockVerifier, SCRAM_SHA_256, ScramServer, type Verifier } from '../protocol/scram.ts';
import { fatal, type Refusal, SqlState } from '../protocol/sqlstate.ts';
import { packetSize, parseOptions, readPacket, type StartupPacket } from '../protocol/startup.ts';
import type { AuthQuery } from './auth-query.ts';
import type { CancelKeys } from './cancel.ts';
import { md5Of, type UserSecret, type Users, verifierOf } from './users.ts';

export interface LoginContext {
  listen: ListenConfig;
  auth: AuthConfig;
  users: Users;
  /** Secrets of users that are not among these; null: nobody is asked. */
  authQuery: AuthQuery | null;
  keys: CancelKeys;
  /** No more clients; cancel requests are welcome all the same. */
  isFull: () => boolean;
  /** TLS towards clients, or null. */
  secureContext: tls.SecureContext | null;
}

/** A client that has proved who it is. */
export interface ClientIdentity {
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
  /** Nothing more to do: a cancel request, or the client has gone. */
  | { kind: 'done' }
  /** To be told so, and closed. */
  | { kind: 'refused'; socket: net.Socket; refusal: Refusal };

/** Longest message of the authentication exchange. */
const MESSAGE_MAX = 64 * 1024;
/** Meant for us, not for the server. */
const CLASS_SETTING = 'pgweir.class';
const NO = Buffer.from('N');
const YES = Buffer.from('S');

/** A new secret per process makes the salts of users who do not exist stable while it runs. */
const mockSecret = randomBytes(32);

/** The client has gone: no answer is needed. */
class Gone extends Error {}

/** Reads from the socket on demand; the socket is paused otherwise. */
class Incoming {
  socket: net.Socket;
  /** Why the client's certificate is no good, when one is asked for. */
  certificateError: string | null = null;
  #bytes: Buffer = Buffer.alloc(0);
  #wake: (() => void) | null = null;
  #isGone = false;
  readonly #onData = (chunk: Buffer) => {
    this.socket.pause();
    this.#bytes = this.#bytes.length === 0 ? chunk : Buffer.concat([this.#bytes, chunk]);
    this.#wake?.();
  };
  readonly #onGone = () => {
    this.#isGone = true;
    this.#wake?.();
  };

  constructor(socket: net.Socket) {
    this.socket = socket;
    this.#listen();
  }

  #listen(): void {
    this.socket.on('data', this.#onData).on('error', this.#onGone).on('end', this.#onGone).on('close', this.#onGone);
    this.socket.pause();
  }

  /** Stops listening; gives the bytes not yet used. */
  release(): Buffer {
    this.socket
      .off('data', this.#onData)
      .off('error', this.#onGone)
      .off('end', this.#onGone)
      .off('close', this.#onGone);
    return this.#bytes;
  }

  async #more(): Promise<void> {
    if (this.#isGone) throw new Gone();
    await new Promise<void>((resolve) => {
      this.#wake = resolve;
      this.socket.resume();
    });
    this.#wake = null;
  }

  /** One untyped packet; null when its length is impossible. */
  async packet(): Promise<Buffer | null> {
    for (;;) {
      const size = packetSize(this.#bytes);
      if (size === -1) return null;
      if (size > 0 && this.#bytes.length >= size) {
        const packet = this.#bytes.subarray(0, size);
        this.#bytes = this.#bytes.subarray(size);
        return packet;
      }
      await this.#more();
    }
  }

  /** One password message's body; null when it is another message or has an impossible length. */
  async password(): Promise<Buffer | null> {
    const reader = new FrameReader((_, size) => size, MESSAGE_MAX);
    const frame = emptyFrame();
    for (;;) {
      reader.push(this.#bytes);
      this.#bytes = Buffer.alloc(0);
      const found = reader.next(frame);
      if (found !== 'starved') {
        if (found !== 'frame' || frame.type !== ClientMessage.Password) return null;
        const body = Buffer.from(frame.source.subarray(frame.start + 5, frame.end));
        this.#bytes = reader.rest();
        return body;
      }
      await this.#more();
    }
  }

  /** Are there bytes that the client sent before it could have known our answer? */
  get isStuffed(): boolean {
    return this.#bytes.length > 0;
  }

  /** Continues inside TLS. */
  async secure(secureContext: tls.SecureContext, mode: ListenConfig['tls']['mode']): Promise<void> {
    this.release();
    const plain = this.socket;
    const secured = new tls.TLSSocket(plain, {
      isServer: true,
      secureContext,
      requestCert: mode.startsWith('verify-'),
      rejectUnauthorized: mode.startsWith('verify-'),
    });
    plain.resume();
    await new Promise<void>((resolve, reject) => {
      secured.once('secure', resolve);
      secured.once('error', () => reject(new Gone()));
      secured.once('close', () => reject(new Gone()));
    });
    secured.removeAllListeners('error').removeAllListeners('close');
    // Only tls.Server judges certificates by itself; the handle knows what the handshake found.
    const { ssl } = secured as unknown as { ssl: { verifyError(): Error | null | undefined } };
    this.certificateError = mode.startsWith('verify-') ? (ssl.verifyError()?.message ?? null) : null;
    this.socket = secured;
    this.#bytes = Buffer.alloc(0);
    this.#listen();
  }
}

/** Runs the login on `socket`. Never throws. */
export async function logInClient(socket: net.Socket, context: LoginContext): Promise<LoginOutcome> {
  const incoming = new Incoming(socket);
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
  const refused = (refusal: Refusal): LoginOutcome => ({ kind: 'refused', socket: incoming.socket, refusal });
  const packet = await negotiate(incoming, context);
  switch (packet.kind) {
    case 'bad':
      return refused(fatal(SqlState.ProtocolViolation, packet.reason));
    case 'cancel':
      context.keys.request(packet.key);
      incoming.socket.end();
      return { kind: 'done' };
    case 'ssl':
    case 'gss':
      return refused(fatal(SqlState.ProtocolViolation, 'encryption was asked for twice'));
    case 'startup':
      break;
    default:
      packet satisfies never;
  }
  if (context.isFull()) {
    return refused(
      fatal(SqlState.TooManyConnections, 'sorry, too many clients already', {
        detail: `${context.listen.clientsMax} clients are connected to this proxy`,
        hint: 'raise listen.clientsMax, or connect later',
      }),
    );
  }
  const client = identify(incoming.socket, packet);
  if ('sqlstate' in client) return refused(client);
  const { mode } = context.listen.tls;
  const isTls = incoming.socket instanceof tls.TLSSocket;
  const isRequired = mode === 'require' || mode.startsWith('verify-');
  // Asking for the address would keep it in the socket for good; a Unix socket has none, and needs no TLS.
  if (isRequired && !isTls && incoming.socket.remoteAddress !== undefined) {
    return refused(fatal(SqlState.InvalidAuthorization, 'TLS is required', { hint: 'connect with sslmode=require' }));
  }
  if (incoming.certificateError !== null) {
    return refused(
      fatal(SqlState.InvalidAuthorization, `the client certificate was not accepted: ${incoming.certificateError}`),
    );
  }
  if (mode === 'verify-full' && isTls && commonName(incoming.socket as tls.TLSSocket) !== client.user) {
    return refused(fatal(SqlState.InvalidAuthorization, `the client certificate is not for user "${client.user}"`));
  }
  if (packet.negotiate !== null) {
    incoming.socket.write(encode.negotiateProtocolVersion((3 << 16) | packet.minor, packet.negotiate.options));
  }
  const failure = await authenticate(incoming, client, context);
  return failure === null ? { kind: 'client', client } : refused(failure);
}

/** Answers encryption requests until something else comes. */
async function negotiate(incoming: Incoming, { secureContext, listen }: LoginContext): Promise<StartupPacket> {
  const seen = new Set<string>();
  for (;;) {
    const bytes = await incoming.packet();
    if (bytes === null) return { kind: 'bad', reason: 'invalid length of startup packet' };
    const packet = readPacket(bytes);
    if ((packet.kind !== 'ssl' && packet.kind !== 'gss') || seen.has(packet.kind)) return packet;
    seen.add(packet.kind);
    if (packet.kind === 'gss' || secureContext === null) {
      incoming.socket.write(NO);
      continue;
    }
    // CVE-2021-23214: what was sent in clear text before the handshake must not be taken for part of the session.
    if (incoming.isStuffed) return { kind: 'bad', reason: 'received unencrypted data after SSL request' };
    incoming.socket.write(YES);
    await incoming.secure(secureContext, listen.tls.mode);
    seen.add('gss');
  }
}

function commonName(socket: tls.TLSSocket): string {
  const name = socket.getPeerCertificate().subject?.CN;
  return Array.isArray(name) ? (name[0] ?? '') : (name ?? '');
}

function identify(socket: net.Socket, packet: StartupPacket & { kind: 'startup' }): ClientIdentity | Refusal {
  const { parameters, minor } = packet;
  const utf8 = (name: string) => Buffer.from(parameters.get(name) ?? '', 'latin1').toString('utf8');
  const user = utf8('user');
  if (user === '') return fatal(SqlState.InvalidAuthorization, 'no PostgreSQL user name specified in startup packet');
  const options = parseOptions(parameters.get('options') ?? '');
  if (options === null) {
    return fatal(SqlState.InvalidParameterValue, `invalid command-line argument in startup parameter "options"`, {
      hint: 'use -c name=value or --name=value',
    });
  }
  // As in Postgres, the packet's own parameters are applied after the options.
  const own = [...parameters].filter(([name]) => !['user', 'database', 'options', 'replication'].includes(name));
  const replication = parameters.get('replication')?.toLowerCase() ?? null;
  const isReplication = replication !== null && !['false', 'off', 'no', '0', 'f', 'n'].includes(replication);
  return {
    socket,
    user,
    database: utf8('database') || user,
    minor,
    settings: [...options, ...own].filter(([name]) => name.toLowerCase() !== CLASS_SETTING),
    wantedClass: options.findLast(([name]) => name.toLowerCase() === CLASS_SETTING)?.[1] ?? '',
    replication: isReplication ? replication : null,
    rest: Buffer.alloc(0),
  };
}

/** Null when the client has proved to be its user. */
async function authenticate(
  incoming: Incoming,
  { user, database }: ClientIdentity,
  { auth, users, authQuery }: LoginContext,
): Promise<Refusal | null> {
  const listed = users.get(user);
  if (auth.method === 'trust') {
    const isListed = auth.users === null || listed !== null;
    return isListed ? null : fatal(SqlState.InvalidAuthorization, `user "${user}" is not in the userlist`);
  }
  const asked = listed === null ? authQuery : null;
  let secret: UserSecret | null = listed;
  try {
    if (asked !== null) secret = await asked.find(database, user);
  } catch {
    // Said of every user that is not in the file, whether it exists or not; why is in the log.
    return fatal(SqlState.CannotConnectNow, 'nobody can be asked for the password at the moment', {
      hint: 'connect again later; the log of the proxy says why (auth.query)',
    });
  }
  const failure = fatal(SqlState.InvalidPassword, `password authentication failed for user "${user}"`);
  // As in PgBouncer, method md5 does SCRAM for a user of whom only a verifier is known.
  const md5 = auth.method === 'md5' && secret !== null ? md5Of(secret, user) : null;
  if (md5 !== null || (auth.method === 'md5' && secret === null)) {
    if (await checkMd5(incoming, md5)) return null;
    asked?.doubt(database, user);
    return failure;
  }
  const verifier = secret === null ? null : verifierOf(secret);
  const keys = await checkScram(incoming, (await verifier) ?? mockVerifier(user, mockSecret));
  if (keys === null) {
    asked?.doubt(database, user);
    return failure;
  }
  if (asked === null) users.remember(user, keys);
  else asked.remember(database, user, keys);
  return null;
}

async function checkMd5(incoming: Incoming, secret: string | null): Promise<boolean> {
  const salt = randomBytes(4);
  incoming.socket.write(encode.authenticationMd5(salt));
  const body = await incoming.password();
  if (body === null || secret === null) return false;
  return body.toString('utf8', 0, Math.max(0, body.length - 1)) === md5Answer(secret, salt);
}

async function checkScram(incoming: Incoming, verifier: Verifier) {
  const scram = new ScramServer(verifier);
  incoming.socket.write(encode.authenticationSasl([SCRAM_SHA_256]));
  const initial = await incoming.password();
  const mechanismEnd = initial === null ? -1 : stringEnd(initial, 0, initial.length);
  if (initial === null || mechanismEnd === -1 || initial.toString('latin1', 0, mechanismEnd) !== SCRAM_SHA_256)
    return null;
  const serverFirst = scram.first(initial.toString('utf8', mechanismEnd + 5));
  if (serverFirst === null) return null;
  incoming.socket.write(encode.authenticationSaslContinue(serverFirst));
  const response = await incoming.password();
  const final = response === null ? null : scram.final(response.toString('utf8'));
  if (final === null) return null;
  incoming.socket.write(encode.authenticationSaslFinal(final.reply));
  return final.keys;
}
