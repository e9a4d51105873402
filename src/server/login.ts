/**
 * Opens one server connection: socket, TLS, login, up to the first ReadyForQuery. Called by server/opener for pooled
 * connections and by client/session for replication connections; and sends CancelRequests. Rare, so promises are fine.
 *
 * A failure is thrown as ServerLoginError, which says whether trying again can help.
 */
import { readFileSync } from 'node:fs';
import net from 'node:net';
import tls from 'node:tls';
import type { HostConfig, ServerTlsConfig } from '../config/schema.ts';
import * as encode from '../protocol/encode.ts';
import { emptyFrame, FrameReader } from '../protocol/frame.ts';
import { md5Answer, md5Secret } from '../protocol/md5.ts';
import { type ErrorFields, readErrorFields, readParameter, ServerMessage, Status } from '../protocol/messages.ts';
import {
  endPointOf,
  type Keys,
  SCRAM_SHA_256,
  SCRAM_SHA_256_PLUS,
  ScramClient,
  ScramMismatch,
} from '../protocol/scram.ts';
import { SqlState } from '../protocol/sqlstate.ts';
import { messageOf } from '../util/errors.ts';
import { connectWithSlab } from '../util/slab.ts';

/** What a user can prove itself with. */
export type Secret =
  | { kind: 'none' }
  | { kind: 'password'; password: string }
  /** `md5` and the hash of password and user name. */
  | { kind: 'md5'; secret: string }
  /** Taken from the client's own proof (pass-through). */
  | { kind: 'keys'; keys: Keys };

export interface ServerTarget {
  host: HostConfig;
  tls: ServerTlsConfig;
  database: string;
  user: string;
  /** Further startup parameters, such as `replication`. */
  parameters: readonly (readonly [string, string])[];
  /** Run once the login is done. */
  connectQuery: string | undefined;
}

export interface LoggedIn {
  socket: net.Socket;
  /** What the server reported, Latin-1. */
  reported: Map<string, string>;
  /** Process id and secret, for CancelRequest. */
  key: Buffer;
  /** Bytes that came after ReadyForQuery. */
  rest: Buffer;
}

export class ServerLoginError extends Error {
  override name = 'ServerLoginError';
  /** It took too long. */
  isTimeout = false;
  /** Nobody has answered: no connection, none that lasts, or nothing in time. */
  isSilent = false;
  /** What the server answered, when it was the server that refused. */
  readonly fields: ErrorFields | null;

  constructor(message: string, fields: ErrorFields | null = null) {
    super(message);
    this.fields = fields;
  }

  get sqlstate(): string {
    return this.fields?.get('C') ?? '';
  }

  /** What can be done about it; '' when nobody here knows. */
  get advice(): string {
    if (this.sqlstate.startsWith('28')) return 'check this user’s password: databases.*.passwordFile, or auth.users';
    return advices[this.sqlstate] ?? '';
  }

  /** Trying again cannot help before somebody changes something: wrong password, no such database or role. */
  get isPermanent(): boolean {
    return this.sqlstate.startsWith('28') || ['3D000', '42501', '42704', '22023'].includes(this.sqlstate);
  }
}

const advices: Readonly<Record<string, string>> = {
  '3D000': 'create the database, or check databases.*.dbname',
  '42501': 'grant CONNECT on the database to this user',
  '53300': 'lower pool.size or serversMax, or raise max_connections of the database',
  '57P03': 'it is starting or stopping: wait',
};

const MESSAGE_MAX = 1024 * 1024;
/** What Postgres calls itself in a handshake (ALPN). */
const PROTOCOL = 'postgresql';
/** An idle server whose host is gone is noticed some 20 s later: from here on libuv has one probe sent each second, ten in all. */
const KEEPALIVE_MS = 10_000;
const CANCEL_MS = 10_000;

/** Where to connect: a host and port, or the socket of a directory. */
function addressOf(host: HostConfig): net.NetConnectOpts {
  return host.host.startsWith('/')
    ? { path: `${host.host}/.s.PGSQL.${host.port}` }
    : { host: host.host, port: host.port, noDelay: true, keepAlive: true, keepAliveInitialDelay: KEEPALIVE_MS };
}

/** Reads whole messages one by one, for the time of the login. */
class Inbox {
  readonly #socket: net.Socket;
  readonly #reader = new FrameReader((_, size) => size, MESSAGE_MAX);
  readonly #frame = emptyFrame();
  #wake: (() => void) | null = null;
  #error: Error | null = null;
  readonly #onData = (chunk: Buffer) => {
    this.#socket.pause();
    this.#reader.push(chunk);
    this.#wake?.();
  };
  readonly #onError = (error: Error) => this.#fail(error);
  readonly #onClose = () => this.#fail(new Error('the server closed the connection during login'));

  constructor(socket: net.Socket) {
    this.#socket = socket;
    socket.on('data', this.#onData).on('error', this.#onError).on('close', this.#onClose);
    socket.pause();
  }

  #fail(error: Error): void {
    this.#error ??= error;
    this.#wake?.();
  }

  async read(): Promise<{ type: number; body: Buffer }> {
    for (;;) {
      const found = this.#reader.next(this.#frame);
      if (found === 'badLength' || found === 'tooLong')
        throw new ServerLoginError('the server sent something that is not Postgres protocol');
      const { type, source, start, end } = this.#frame;
      if (found === 'frame') return { type, body: Buffer.from(source.subarray(start + 5, end)) };
      if (this.#error !== null) throw silent(this.#error);
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
        this.#socket.resume();
      });
      this.#wake = null;
    }
  }

  /** Lets go of the socket, which stays paused; gives what it had read too much. */
  close(): Buffer {
    this.#socket.off('data', this.#onData).off('error', this.#onError).off('close', this.#onClose);
    return this.#reader.rest();
  }
}

interface Progress {
  isLoggedIn: boolean;
  /** By which what runs can be cancelled. */
  key: Buffer | null;
}

/** Opens a connection and logs in; the whole attempt takes at most `limitMs`, and ends when `signal` says so. */
export async function openServer(
  target: ServerTarget,
  secret: Secret,
  limitMs: number,
  signal?: AbortSignal,
): Promise<LoggedIn> {
  if (signal?.aborted) throw unwanted();
  let socket: net.Socket | null = null;
  let timer: NodeJS.Timeout | undefined;
  let onAbort = () => {};
  const progress: Progress = { isLoggedIn: false, key: null };
  const end = new Promise<never>((_, reject) => {
    onAbort = () => reject(unwanted());
    signal?.addEventListener('abort', onAbort);
    timer = setTimeout(() => {
      const late = new ServerLoginError(
        progress.isLoggedIn ? `connectQuery takes longer than ${limitMs} ms` : `no login within ${limitMs} ms`,
      );
      late.isTimeout = true;
      late.isSilent = !progress.isLoggedIn;
      reject(late);
    }, limitMs);
  });
  const attempt = async () => {
    socket = await connect(target.host, isPlain(target));
    socket = await secure(socket, target);
    return logIn(socket, target, secret, progress);
  };
  const attempted = attempt();
  attempted.catch(() => {}); // When it is ended, its later failure is of no interest.
  try {
    return await Promise.race([attempted, end]);
  } catch (thrown) {
    (socket as net.Socket | null)?.on('error', () => {}).destroy();
    // What connectQuery runs would go on without us.
    if (progress.key !== null)
      sendCancel(
        target,
        progress.key,
        () => true,
        () => {},
      );
    void attempted.then(({ socket: late }) => late.destroy()).catch(() => {});
    if (thrown instanceof ServerLoginError) throw thrown;
    // Errors of the system have a code such as ECONNREFUSED; others are ours.
    if (/^E[A-Z]+$/.test(String((thrown as { code?: unknown }).code))) throw silent(thrown as Error);
    const fields: ErrorFields | null =
      thrown instanceof ScramMismatch ? new Map([['C', SqlState.InvalidAuthorization]]) : null;
    throw new ServerLoginError(messageOf(thrown), fields);
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener('abort', onAbort);
  }
}

function unwanted(): ServerLoginError {
  return new ServerLoginError('the connection is not wanted any more');
}

/** `isPlain`: no TLS will be spoken on it. */
function connect(host: HostConfig, isPlain: boolean, limitMs = 0): Promise<net.Socket> {
  return new Promise((resolve, reject) => {
    const options = addressOf(host);
    const socket = isPlain ? connectWithSlab(options) : net.connect(options);
    socket.setTimeout(limitMs, () => socket.destroy(new Error(`no connection within ${limitMs} ms`)));
    socket.once('error', reject);
    socket.once('connect', () => {
      socket.off('error', reject).setTimeout(0).removeAllListeners('timeout');
      resolve(socket);
    });
  });
}

/** TLS is not asked for: by configuration, or on a Unix socket. */
export function isPlain({ tls: { mode }, host }: Pick<ServerTarget, 'tls' | 'host'>): boolean {
  return mode === 'disable' || host.host.startsWith('/');
}

/** Asks for TLS as `tls.mode` says. The answer must be exactly one byte: more would be stuffed in by someone else. */
async function secure(socket: net.Socket, { tls: options, host }: ServerTarget): Promise<net.Socket> {
  if (isPlain({ tls: options, host })) return socket;
  if (options.negotiation === 'direct') {
    const secured = await handshake(socket, { tls: options, host });
    if (secured.alpnProtocol === PROTOCOL) return secured;
    throw new ServerLoginError('the server does not speak TLS without being asked: set tls.negotiation to postgres');
  }
  socket.write(encode.sslRequest);
  const answer = await new Promise<Buffer>((resolve, reject) => {
    socket
      .once('error', reject)
      .once('close', () => reject(new Error('the server closed the connection when asked for TLS')));
    socket.once('data', (chunk: Buffer) => {
      socket.pause();
      resolve(chunk);
    });
  });
  socket.removeAllListeners('error').removeAllListeners('close');
  if (answer.length !== 1) throw new ServerLoginError('the server answered SSLRequest with more than one byte');
  if (answer[0] === 0x4e) {
    if (options.mode === 'prefer') return socket;
    throw new ServerLoginError(`the server does not offer TLS, which tls.mode ${options.mode} asks for`);
  }
  if (answer[0] !== 0x53) throw new ServerLoginError('the server answered SSLRequest with neither S nor N');
  return handshake(socket, { tls: options, host });
}

/** What `tls` means for the host that it is spoken with. */
export function tlsOptionsOf({ tls: options, host: { host } }: Pick<ServerTarget, 'tls' | 'host'>) {
  const { mode, ca, crl, cert, key, minVersion, ciphers } = options;
  const read = (file: string | undefined) => (file === undefined ? undefined : readFileSync(file));
  return {
    ca: read(ca),
    crl: read(crl),
    cert: read(cert),
    key: read(key),
    minVersion,
    ciphers,
    ALPNProtocols: [PROTOCOL],
    servername: net.isIP(host) ? '' : host,
    rejectUnauthorized: mode.startsWith('verify-'),
    ...(mode === 'verify-full' ? { host } : { checkServerIdentity: () => undefined }),
  };
}

function handshake(socket: net.Socket, target: Pick<ServerTarget, 'tls' | 'host'>): Promise<tls.TLSSocket> {
  return new Promise((resolve, reject) => {
    const secured = tls.connect({ socket, ...tlsOptionsOf(target) });
    secured.once('error', reject);
    secured.once('secureConnect', () => {
      secured.off('error', reject);
      resolve(secured);
    });
  });
}

async function logIn(socket: net.Socket, target: ServerTarget, secret: Secret, progress: Progress): Promise<LoggedIn> {
  const inbox = new Inbox(socket);
  const parameters: (readonly [string, string])[] = [
    ['user', bytesOf(target.user)],
    ['database', bytesOf(target.database)],
    // A second user or database would count instead of ours.
    ...target.parameters.filter(([name]) => name !== 'user' && name !== 'database'),
  ];
  socket.write(encode.startup(encode.Version.v3_0, parameters));
  const reported = new Map<string, string>();
  let key: Buffer = Buffer.alloc(0);
  let scram: ScramClient | null = null;
  for (;;) {
    const { type, body } = await inbox.read();
    switch (type) {
      case ServerMessage.Authentication:
        scram = await answer(socket, body, target, secret, scram);
        break;
      case ServerMessage.ParameterStatus: {
        const { name, value } = readParameter(body);
        reported.set(name, value);
        break;
      }
      case ServerMessage.BackendKeyData:
        key = body;
        break;
      case ServerMessage.ErrorResponse: {
        const fields = readErrorFields(body);
        throw new ServerLoginError(fields.get('M') ?? 'the server refused the login', fields);
      }
      case ServerMessage.NoticeResponse:
      case ServerMessage.NegotiateProtocolVersion:
        break;
      case ServerMessage.ReadyForQuery:
        Object.assign(progress, { isLoggedIn: true, key });
        if (target.connectQuery !== undefined) await runFirst(target.connectQuery, socket, inbox, reported);
        return { socket, reported, key, rest: inbox.close() };
      default:
        throw new ServerLoginError(`the server sent a message of type ${String.fromCharCode(type)} during login`);
    }
  }
}

/** A text as messages have it: its UTF-8, byte by byte. */
function bytesOf(name: string): string {
  return Buffer.from(name, 'utf8').toString('latin1');
}

/** Runs `sql` on the new connection; what it sets counts as reported at login. */
async function runFirst(sql: string, socket: net.Socket, inbox: Inbox, reported: Map<string, string>): Promise<void> {
  socket.write(encode.query(bytesOf(sql)));
  let failure: ServerLoginError | null = null;
  for (;;) {
    const { type, body } = await inbox.read();
    if (type === ServerMessage.ParameterStatus) {
      const { name, value } = readParameter(body);
      reported.set(name, value);
    } else if (type === ServerMessage.ErrorResponse) {
      const fields = readErrorFields(body);
      failure = new ServerLoginError(`connectQuery failed: ${fields.get('M')}`, fields);
    } else if (type === ServerMessage.CopyInResponse) {
      throw new ServerLoginError('connectQuery must not be COPY FROM');
    } else if (type === ServerMessage.ReadyForQuery) {
      if (failure !== null) throw failure;
      if (body[0] !== Status.Idle) throw new ServerLoginError('connectQuery must not leave a transaction open');
      return;
    }
  }
}

/** Answers one Authentication message ("Message Flow", Start-up). */
async function answer(
  socket: net.Socket,
  body: Buffer,
  { user, tls: { channelBinding } }: ServerTarget,
  secret: Secret,
  scram: ScramClient | null,
): Promise<ScramClient | null> {
  const data = () => body.toString('utf8', 4);
  switch (body.readInt32BE(0)) {
    case 0: // Ok
      if (scram?.isVerified === false)
        throw new ServerLoginError('the server has not proved that it knows the password');
      if (channelBinding === 'require' && scram?.mechanism !== SCRAM_SHA_256_PLUS) throw unbound();
      return scram;
    case 3: // CleartextPassword
      if (channelBinding === 'require') throw unbound();
      if (secret.kind !== 'password') throw needsSecret(user, 'a password in clear text');
      socket.write(encode.password(secret.password));
      return null;
    case 5: // MD5Password
      if (channelBinding === 'require') throw unbound();
      if (secret.kind !== 'password' && secret.kind !== 'md5') throw needsSecret(user, 'a password or its md5');
      socket.write(
        encode.password(
          md5Answer(secret.kind === 'md5' ? secret.secret : md5Secret(secret.password, user), body.subarray(4, 8)),
        ),
      );
      return null;
    case 10: {
      // SASL
      const offered = data().split('\0').filter(Boolean);
      if (!offered.includes(SCRAM_SHA_256))
        throw new ServerLoginError(
          `the server wants ${offered.join(' or ')} of user "${user}", and only SCRAM-SHA-256 can be done here`,
          new Map([['C', SqlState.InvalidAuthorization]]),
        );
      if (secret.kind !== 'password' && secret.kind !== 'keys') throw needsSecret(user, 'a password or SCRAM keys');
      const endPoint = channelBinding === 'disable' ? null : endPointAt(socket);
      const known = secret.kind === 'password' ? secret.password : secret.keys;
      const started = new ScramClient(known, endPoint, offered.includes(SCRAM_SHA_256_PLUS));
      if (channelBinding === 'require' && started.mechanism !== SCRAM_SHA_256_PLUS) throw unbound();
      socket.write(encode.saslInitialResponse(started.mechanism, started.first()));
      return started;
    }
    case 11: // SASLContinue
      if (scram === null) throw new ServerLoginError('the server sent SASLContinue before SASL');
      socket.write(encode.saslResponse(await scram.final(data())));
      return scram;
    case 12: // SASLFinal
      scram?.verify(data());
      return scram;
    default:
      throw new ServerLoginError(
        `the server asks for authentication method ${body.readInt32BE(0)}, which is not supported`,
      );
  }
}

/** What a login within TLS can be bound to; null: nothing. */
function endPointAt(socket: net.Socket): Buffer | null {
  const certificate = socket instanceof tls.TLSSocket ? socket.getPeerX509Certificate() : undefined;
  try {
    return certificate === undefined ? null : endPointOf(certificate.raw);
  } catch {
    return null; // A signature of a kind that has no hash of its own: as libpq, without.
  }
}

function unbound(): ServerLoginError {
  return new ServerLoginError('the server does not bind the login to its certificate (tls.channelBinding: require)');
}

function needsSecret(user: string, what: string): ServerLoginError {
  return new ServerLoginError(
    `the server asks user "${user}" for ${what}, and the proxy has none: set databases.*.passwordFile, or auth.users with this user's password`,
    new Map([
      ['C', SqlState.InvalidAuthorization],
      ['M', `no secret for user "${user}"`],
    ]),
  );
}

/**
 * Sends a CancelRequest. `isStillWanted` is asked once the connection stands: between then and sending nothing else
 * happens. `done` is called when the server has closed the connection, which is after it has sent the signal.
 */
export function sendCancel(target: ServerTarget, key: Buffer, isStillWanted: () => boolean, done: () => void): void {
  const run = async () => {
    const plain = await connect(target.host, isPlain(target), CANCEL_MS);
    plain.setTimeout(CANCEL_MS, () => plain.destroy());
    // TLS as the connection itself, so that the key crosses the network no more readable than anything else.
    const socket = await secure(plain, target).catch((thrown: unknown) => {
      plain.destroy();
      throw thrown;
    });
    if (isStillWanted()) socket.write(encode.cancelRequest(key));
    else socket.end();
    await new Promise<void>((resolve) => {
      socket
        .on('error', () => {})
        .on('data', () => {})
        .on('end', () => socket.end());
      plain.on('close', () => resolve());
      socket.on('close', () => resolve());
      socket.resume();
    });
  };
  run().then(done, done);
}

function silent({ message }: Error): ServerLoginError {
  const failure = new ServerLoginError(message);
  failure.isSilent = true;
  return failure;
}
