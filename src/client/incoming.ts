/**
 * What a socket brings before anybody is logged in on it: untyped packets, then password messages, in clear text and then
 * perhaps in TLS. Called by client/login and client/authenticate.
 *
 * The one idea: it is read on demand, and paused otherwise, so that nothing that belongs to the session is read too early.
 */
import type net from 'node:net';
import type tls from 'node:tls';
import { emptyFrame, FrameReader } from '../protocol/frame.ts';
import { ClientMessage } from '../protocol/messages.ts';
import { packetSize } from '../protocol/startup.ts';
import { type Certificate, type ClientTls, certificateOf, PROTOCOL, startTls } from './tls.ts';

/** Longest message of the authentication exchange. */
const MESSAGE_MAX = 64 * 1024;

function ignore(): void {}

/** The client has gone: no answer is needed. */
export class Gone extends Error {}

export class Incoming {
  socket: net.Socket;
  /** Where it comes from, as it was when it came (a socket that has gone has no address any more); null: a Unix socket. */
  readonly address: string | null;
  /** Set within TLS. */
  tls: tls.TLSSocket | null = null;
  certificate: Certificate = { kind: 'none' };
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

  constructor(socket: net.Socket, address: string | null) {
    this.socket = socket;
    this.address = address;
    this.#listen();
  }

  #listen(): void {
    // What becomes of a socket between its login and what comes next must end nobody but its client.
    this.socket.on('error', ignore);
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

  /** The next byte, which stays where it is. */
  async peek(): Promise<number> {
    while (this.#bytes.length === 0) await this.#more();
    return this.#bytes[0]!;
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

  /** Continues inside TLS, whose first bytes may be there already. False: the client has not said that it speaks Postgres (ALPN). */
  async secure(secrets: ClientTls): Promise<boolean> {
    const plain = this.socket;
    const rest = this.release();
    if (rest.length > 0) plain.unshift(rest);
    this.#bytes = Buffer.alloc(0);
    const secured = startTls(plain, secrets);
    // What was read already is taken by the TLS socket itself, unless it has begun to flow.
    if (rest.length === 0) plain.resume();
    await new Promise<void>((resolve, reject) => {
      secured.once('secure', resolve);
      secured.once('error', () => reject(new Gone()));
      secured.once('close', () => reject(new Gone()));
    });
    secured.removeAllListeners('error').removeAllListeners('close').on('error', ignore);
    // As tls.Server does: from here on a broken record is an error, and ends the connection.
    (secured as unknown as { _releaseControl?(): void })._releaseControl?.();
    if (secrets.isCertificateAsked) this.certificate = certificateOf(secured);
    this.socket = secured;
    this.tls = secured;
    this.#listen();
    return secured.alpnProtocol === PROTOCOL;
  }
}
