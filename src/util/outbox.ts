/**
 * Bytes on their way to a socket that leave together, in one system call. Used for both sides of the data path.
 *
 * The one idea: most often there is one piece, and it is written as it is. Several small ones are copied together,
 * which costs less than a gathering write; only large ones are gathered by the socket.
 */
import type net from 'node:net';

/** Pieces of up to this size in all are copied together, in bytes. */
const COPY_MAX = 16 * 1024;

export class Outbox {
  readonly #socket: net.Socket;
  #first: Buffer | null = null;
  #others: Buffer[] | null = null;
  #size = 0;

  constructor(socket: net.Socket) {
    this.#socket = socket;
  }

  /** Bytes that have not been taken by the system, here and in the socket. */
  get pending(): number {
    return this.#size + this.#socket.writableLength;
  }

  /** Keeps `bytes` for the next `flush`. */
  add(bytes: Buffer): void {
    this.#size += bytes.length;
    if (this.#first === null) this.#first = bytes;
    else if (this.#others === null) this.#others = [bytes];
    else this.#others.push(bytes);
  }

  flush(): void {
    const first = this.#first;
    if (first === null) return;
    const others = this.#others;
    const size = this.#size;
    this.#first = null;
    this.#others = null;
    this.#size = 0;
    const socket = this.#socket;
    if (others === null) socket.write(first);
    else if (size <= COPY_MAX) socket.write(Buffer.concat([first, ...others], size));
    else {
      socket.cork();
      socket.write(first);
      for (const bytes of others) socket.write(bytes);
      socket.uncork();
    }
  }
}
