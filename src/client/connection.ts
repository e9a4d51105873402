/**
 * A client's socket: messages come in, answers go out. Owned by client/session, whose data path begins and ends here.
 *
 *     socket ──▶ FrameReader ──next──▶ session        session ──send──▶ outbox ──▶ socket
 *
 * The one idea: neither side is waited for with unbounded memory. A client that is ahead of its server is not read, and nothing is handled
 * for one that does not read its answers. While it is read, its leaving is noticed.
 *
 * Listeners are functions that all clients share: closures of its own would cost each idle client a quarter KiB.
 */
import type net from 'node:net';
import { type Frame, FrameReader } from '../protocol/frame.ts';
import { ClientMessage } from '../protocol/messages.ts';
import { fatal, type Refusal, SqlState } from '../protocol/sqlstate.ts';
import { TEXT_BYTES_MAX } from '../sql/verdict.ts';
import type { Clock } from '../util/clock.ts';
import { sharedReads } from '../util/intake.ts';
import { Outbox } from '../util/outbox.ts';
import { linger } from './linger.ts';

/** Who is told what happens on the socket. */
export interface SocketOwner {
  /** The client has sent something. */
  receive(chunk: Buffer): void;
  /** The client reads again. */
  onDrain(): void;
  /** The client has gone. */
  onGone(): void;
}

/** Bytes kept from a client that is ahead of its server, beyond which it is not read. */
export const INPUT_MAX = 128 * 1024;
/** Bytes kept for a client that does not read; see also the listener's high-water mark. */
const OUTPUT_MAX = 256 * 1024;
/** Bytes kept for a client that does not read while it cannot be waited for: more, and it is ended. */
const UNREAD_MAX = 1024 * 1024;

const HEADER = 5;
/** Postgres' own bound for messages that carry only a name or two (PQ_SMALL_MESSAGE_LIMIT). */
const SMALL_MAX = 10_000;
/** The names at the start of a Bind must end within this many bytes. */
const BIND_NAMES_MAX = 4096;
/** A FunctionCall begins with the oid of its function. */
export const FUNCTION_OID_END = HEADER + 4;

export class ClientConnection {
  readonly socket: net.Socket;
  /** What has come in and was not handled. */
  readonly reader: FrameReader;
  readonly #outbox: Outbox;
  /** Bytes that the client has been given. */
  sent = 0;
  #isPaused = false;
  /** An administrator wants nothing new to be read (SUSPEND). */
  isSuspended = false;

  /** `messageMax`: bytes of the largest message. */
  constructor(socket: net.Socket, messageMax: number) {
    this.socket = socket;
    this.reader = new FrameReader(clientWants, messageMax);
    this.#outbox = new Outbox(socket);
  }

  /** From here on `owner` is told. */
  listen(owner: SocketOwner): void {
    const socket = this.socket as ClientSocket;
    socket.owner = owner;
    socket.on('data', onData).on('drain', onDrain).on('error', onError).on('end', onEnd).on('close', onEnd);
  }

  // --- From the client ------------------------------------------------------------------------------------------

  /** Fills `frame` with the next piece of a message; or says why there can be none any more. */
  next(frame: Frame): 'frame' | 'starved' | Refusal {
    const found = this.reader.next(frame);
    switch (found) {
      case 'badLength':
        return fatal(SqlState.ProtocolViolation, 'invalid message length');
      case 'tooLong':
        return fatal(SqlState.ProgramLimit, 'the message is too large', { hint: 'the limit is listen.messageMax' });
      default:
        return found;
    }
  }

  /** Reads on, unless its owner, or its own slowness, forbids it. */
  readOn(mustWait: boolean): void {
    const mustPause = mustWait || this.isSuspended || this.socket.writableLength > OUTPUT_MAX;
    if (mustPause === this.#isPaused) return;
    this.#isPaused = mustPause;
    if (mustPause) this.socket.pause();
    else this.socket.resume();
  }

  /** The socket was made paused. */
  startReading(): void {
    if (!this.#isPaused) this.socket.resume();
  }

  // --- To the client --------------------------------------------------------------------------------------------

  /** Bytes for the client, in order. */
  send(bytes: Buffer): void {
    this.sent += bytes.length;
    this.#outbox.add(bytes);
    if (this.#outbox.pending > OUTPUT_MAX) this.#outbox.flush();
  }

  flush(): void {
    this.#outbox.flush();
  }

  /** It has so much to read that nothing more is done for it. */
  get isBehind(): boolean {
    return this.#outbox.pending > OUTPUT_MAX;
  }

  /** There is room for more of an answer. Only what the system has not taken counts: for that there will be a 'drain'. */
  get hasRoom(): boolean {
    return this.socket.writableLength <= OUTPUT_MAX;
  }

  /** So much is kept for it that it is ended, where it cannot be waited for. */
  get isStuck(): boolean {
    return this.socket.writableLength > UNREAD_MAX;
  }

  /** All that was sent has left. */
  get isFlushed(): boolean {
    return this.#outbox.pending === 0;
  }

  /** Sends what is left, and that there will be no more. */
  end(): void {
    this.#outbox.flush();
    if (!this.socket.writableEnded) this.socket.end();
  }

  /** As `end`; the socket is closed when its client has heard of it. */
  leave(clock: Clock): void {
    this.end();
    linger(this.socket, clock);
  }

  /** At once: what it is being sent may be half a message, so there is no last word. */
  destroy(): void {
    this.socket.destroy();
  }
}

/** How much of a client's message must be seen at once (protocol/frame). */
function clientWants(type: number, size: number): number {
  switch (type) {
    case ClientMessage.Query:
    case ClientMessage.Parse:
      return size <= TEXT_BYTES_MAX ? size : HEADER;
    case ClientMessage.Bind:
      return Math.min(size, BIND_NAMES_MAX);
    case ClientMessage.FunctionCall:
      return Math.min(size, FUNCTION_OID_END);
    case ClientMessage.CopyData:
    case ClientMessage.CopyFail:
      return HEADER;
    default:
      return Math.min(size, SMALL_MAX);
  }
}

type ClientSocket = net.Socket & { owner: SocketOwner };

function onData(this: net.Socket, chunk: Buffer): void {
  (this as ClientSocket).owner.receive(chunk);
}

/** For sockets that do not emit 'data'. */
export const clientReads = sharedReads(onData);

function onDrain(this: net.Socket): void {
  (this as ClientSocket).owner.onDrain();
}

function onEnd(this: net.Socket): void {
  (this as ClientSocket).owner.onGone();
}

function onError(): void {}
