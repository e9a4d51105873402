/**
 * Bytes on their way to a socket that leave together, in one system call, at the end of the turn of the event loop. Used
 * for both sides of the data path.
 *
 * The one idea: a server is written to when everything has been read that has arrived, because several clients may have
 * something for it; a lone request is not held up, because the turn ends right behind it. A client is written to as soon
 * as its answer has been read (`flush`), so that it works while we read on.
 *
 * Most often there is one piece, and it is written as it is. Several small ones are copied together, which costs less
 * than a gathering write; only large ones are gathered by the socket.
 */
import type net from 'node:net';
import { atEndOfTurn, type Turning } from './turn.ts';

/** Pieces of up to this size in all are copied together, in bytes. */
const COPY_MAX = 16 * 1024;

export class Outbox implements Turning {
  readonly #socket: net.Socket;
  #first: Buffer | null = null;
  #others: Buffer[] | null = null;
  #size = 0;
  // The run that was added last, which the next bytes may continue: `#source[#start, #end)`.
  #source: Buffer | null = null;
  #start = 0;
  #end = 0;
  #isDue = false;

  constructor(socket: net.Socket) {
    this.#socket = socket;
  }

  /** Bytes that have not been taken by the system, here and in the socket. */
  get pending(): number {
    return this.#size + this.#socket.writableLength;
  }

  /** Writes `bytes` behind what was added before, at the end of the turn at the latest. */
  add(bytes: Buffer): void {
    this.#endRun();
    this.#grow(bytes.length);
    this.#push(bytes);
  }

  /** As `add`, with `source[start, end)`; neighbouring pieces of one source leave as one. */
  addRun(source: Buffer, start: number, end: number): void {
    this.#grow(end - start);
    if (source !== this.#source || start !== this.#end) {
      this.#endRun();
      this.#source = source;
      this.#start = start;
    }
    this.#end = end;
  }

  endTurn(): void {
    this.#isDue = false;
    this.flush();
  }

  /** Writes now. */
  flush(): void {
    this.#endRun();
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

  #grow(size: number): void {
    this.#size += size;
    if (this.#isDue) return;
    this.#isDue = true;
    atEndOfTurn(this);
  }

  #endRun(): void {
    const source = this.#source;
    if (source === null) return;
    this.#source = null;
    const isAll = this.#start === 0 && this.#end === source.length;
    this.#push(isAll ? source : source.subarray(this.#start, this.#end));
  }

  #push(bytes: Buffer): void {
    if (this.#first === null) this.#first = bytes;
    else if (this.#others === null) this.#others = [bytes];
    else this.#others.push(bytes);
  }
}
