/**
 * Looks on while a server answers its client, and keeps a copy: the bytes of an answer that can be given again. One for each answer that is to be
 * kept; fed by client/session with what it delivers.
 *
 * The one idea: only an answer of the plainest kind is kept: [ParseComplete] [BindComplete] [RowDescription] DataRow* CommandComplete
 * ReadyForQuery(idle), and nothing else in between. An error, a notice, a changed setting, a suspended portal end it.
 *
 * Invariants: at most `max` bytes are held; what is held is copied, so that no chunk of a socket is kept alive by it.
 */
import { readErrorFields, ServerMessage, Status } from '../protocol/messages.ts';

const HEADER = 5;
const NOTHING: Buffer = Buffer.alloc(0);

export type Collected =
  /** More is to come. */
  | 'open'
  /** It is whole, and can be kept. */
  | 'whole'
  /** It is nothing to be kept: `why` says the reason. */
  | 'spoiled';

export class Collector {
  state: Collected = 'open';
  why = '';
  /** Spoiled by an error, which need not come again; then the answer is over when ReadyForQuery has come. */
  isError = false;
  isOver = false;
  #error: Buffer[] = [];
  /** The first byte that tells success from failure has come: a row, its tag or an error. */
  isDecided = false;
  /** Bytes of the RowDescription, which comes first; 0: there is none. */
  descriptionEnd = 0;
  /** Bytes that are held. */
  size = 0;
  readonly #max: number;
  #chunks: Buffer[] = [];
  /** The messages that are kept have begun; all that follows is part of them. */
  #isKeeping = false;
  /** Of the message that is passing: its type, and its bytes that are still to come. */
  #type = 0;
  #left = 0;
  /** A header that has come in part. */
  #header: Buffer = NOTHING;
  #hasTag = false;

  constructor(max: number) {
    this.#max = max;
  }

  /** The server has answered `bytes` more. */
  add(bytes: Buffer): void {
    let at = 0;
    let from = this.#isKeeping ? 0 : -1;
    while (at < bytes.length && (this.state === 'open' || (this.isError && !this.isOver))) {
      if (this.#left > 0) {
        const passed = Math.min(bytes.length - at, this.#left);
        if (this.#type === ServerMessage.ErrorResponse) this.#error.push(Buffer.from(bytes.subarray(at, at + passed)));
        at += passed;
        this.#left -= passed;
        if (this.#left === 0 && this.#type === ServerMessage.ReadyForQuery) this.#end(bytes[at - 1]!);
        continue;
      }
      const start = at;
      const before = this.#header;
      at = Math.min(bytes.length, at + HEADER - before.length);
      const header =
        before.length === 0 ? bytes.subarray(start, at) : Buffer.concat([before, bytes.subarray(start, at)]);
      if (header.length < HEADER) {
        this.#header = Buffer.from(header);
        break;
      }
      this.#header = NOTHING;
      this.#begin(header[0]!, header.readUInt32BE(1) + 1);
      if (!this.#isKeeping || from !== -1) continue;
      from = start;
      if (before.length > 0) this.#keep(before);
    }
    if (from !== -1) this.#keep(bytes.subarray(from, at));
  }

  #begin(type: number, size: number): void {
    this.#type = type;
    this.#left = size - HEADER;
    if (this.isError) return;
    switch (type) {
      case ServerMessage.ParseComplete:
      case ServerMessage.BindComplete:
        if (this.#isKeeping) this.#spoil('it has several results');
        return;
      case ServerMessage.RowDescription:
        if (this.#isKeeping) return this.#spoil('it has several results');
        this.descriptionEnd = size;
        break;
      case ServerMessage.DataRow:
        if (this.#hasTag) return this.#spoil('it has several results');
        this.isDecided = true;
        break;
      case ServerMessage.CommandComplete:
        if (this.#hasTag) return this.#spoil('it has several results');
        this.isDecided = true;
        this.#hasTag = true;
        break;
      case ServerMessage.ReadyForQuery:
        if (!this.#hasTag) return this.#spoil('it has no result');
        break;
      default:
        this.isDecided = true;
        this.isError = type === ServerMessage.ErrorResponse;
        return this.#spoil(this.isError ? 'it is an error' : 'it is more than rows');
    }
    this.#isKeeping = true;
  }

  #end(status: number): void {
    this.isOver = true;
    if (this.isError) return;
    if (status === Status.Idle) this.state = 'whole';
    else this.#spoil('it is part of a transaction');
  }

  #keep(bytes: Buffer): void {
    if (this.state === 'spoiled') return;
    this.size += bytes.length;
    if (this.size > this.#max) this.#spoil('it is too large (cache.entryMax)');
    else {
      // Of its own: a slice would keep the chunk of the socket alive.
      const copy = Buffer.allocUnsafeSlow(bytes.length);
      bytes.copy(copy);
      this.#chunks.push(copy);
    }
  }

  #spoil(why: string): void {
    this.state = 'spoiled';
    this.why = why;
    this.#chunks = [];
    this.size = 0;
  }

  /** Of the error, if there was one. */
  get sqlstate(): string {
    return readErrorFields(Buffer.concat(this.#error)).get('C') ?? '';
  }

  /** The answer, in a buffer of its own. */
  take(): Buffer {
    if (this.#chunks.length === 1) return this.#chunks.pop()!;
    const body = Buffer.allocUnsafeSlow(this.size);
    let at = 0;
    for (const chunk of this.#chunks) at += chunk.copy(body, at);
    this.#chunks = [];
    return body;
  }
}
