/**
 * Cuts a byte stream into protocol messages without copying them. Used in both directions, by client/connection
 * and server/connection.
 *
 *     chunk   | C…………… | D………………………………| D……   (rest in the next chunk)
 *     frames  |  whole  |  whole       | start, then "more" pieces until isEnd
 *
 * The one idea: the caller says per message type how many bytes it must see at once (`wants`); everything beyond that
 * flows through in whatever pieces the network delivers. Bytes are copied only when a message that must be seen at
 * once is split over chunks, into a buffer that grows with what has arrived, never with what a length field claims.
 *
 * Invariants: the frames of a stream, concatenated, are the stream, for any chunking; a length below 4 or above the
 * limit is reported before anything is kept.
 */

/** The smallest length field: it counts itself ("Message Formats"). */
const LENGTH_MIN = 4;
const HEADER = 5;

/** What `next` found: bytes `source[start, end)` of one message. Valid until the next call. */
export interface Frame {
  /** The message type, as the byte on the wire. */
  type: number;
  /** Bytes of the whole message, header included. */
  size: number;
  source: Buffer;
  start: number;
  end: number;
  /** The piece begins with the message's header. */
  isStart: boolean;
  /** The piece ends with the message's last byte. */
  isEnd: boolean;
}

/** A frame to hand to `next`; one can serve any number of readers, because frames are consumed at once. */
export function emptyFrame(): Frame {
  return { type: 0, size: 0, source: Buffer.alloc(0), start: 0, end: 0, isStart: false, isEnd: false };
}

/** How many bytes of a message of this type and size must be seen at once (header included). */
export type Wants = (type: number, size: number) => number;

/** 'badLength': no message has this length. 'tooLong': a message may, but not here. */
export type Cut = 'frame' | 'starved' | 'badLength' | 'tooLong';

const NOTHING = Buffer.alloc(0);

export class FrameReader {
  readonly #wants: Wants;
  readonly #sizeMax: number;
  #chunk: Buffer = NOTHING;
  #position = 0;
  /** Bytes of the present message that are still to come, after its first piece. */
  #left = 0;
  #type = 0;
  #size = 0;
  /** The beginning of a message that must be seen at once and is not complete; `#heldSize` bytes are filled. */
  #held: Buffer | null = null;
  #heldSize = 0;

  constructor(wants: Wants, sizeMax: number) {
    this.#wants = wants;
    this.#sizeMax = sizeMax;
  }

  /** Gives the reader the next chunk. The one before must be used up (`next` said 'starved'). */
  push(chunk: Buffer): void {
    this.#chunk = this.#position < this.#chunk.length ? Buffer.concat([this.rest(), chunk]) : chunk;
    this.#position = 0;
  }

  /** Bytes given but not yet cut, a held beginning included. */
  get pending(): number {
    return this.#chunk.length - this.#position + this.#heldSize;
  }

  /** The stream stands inside a message of which a part was already handed out. */
  get isInside(): boolean {
    return this.#left > 0;
  }

  /** Where in the present chunk stands what is not yet cut. */
  get position(): number {
    return this.#position;
  }

  /** The present chunk; bytes from `position` on are not yet cut. */
  get chunk(): Buffer {
    return this.#chunk;
  }

  /** Takes what is not yet cut out of the present chunk, for a change of protocol (TLS). */
  rest(): Buffer {
    const rest = this.#chunk.subarray(this.#position);
    this.#chunk = NOTHING;
    this.#position = 0;
    return rest;
  }

  /** Fills `frame` with the next piece; 'starved' means that the next chunk is needed. */
  next(frame: Frame): Cut {
    const chunk = this.#chunk;
    const start = this.#position;
    const available = chunk.length - start;
    if (this.#left > 0) {
      if (available === 0) return this.#starve();
      return this.#give(frame, chunk, start, start + Math.min(this.#left, available), false);
    }
    if (this.#held !== null) return this.#fill(frame);
    if (available < HEADER) return available === 0 ? this.#starve() : this.#hold(HEADER);
    const length = chunk.readUInt32BE(start + 1);
    const wrong = this.#wrong(length);
    if (wrong !== null) return wrong;
    this.#begin(chunk[start]!, length + 1);
    const wanted = Math.min(this.#size, this.#wants(this.#type, this.#size));
    if (available < wanted) return this.#hold(wanted);
    return this.#give(frame, chunk, start, start + Math.min(this.#size, available), true);
  }

  #begin(type: number, size: number): void {
    this.#type = type;
    this.#size = size;
  }

  #give(frame: Frame, source: Buffer, start: number, end: number, isStart: boolean): Cut {
    this.#left = (isStart ? this.#size : this.#left) - (end - start);
    if (source === this.#chunk) this.#position = end;
    frame.type = this.#type;
    frame.size = this.#size;
    frame.source = source;
    frame.start = start;
    frame.end = end;
    frame.isStart = isStart;
    frame.isEnd = this.#left === 0;
    return 'frame';
  }

  /** Nothing is left of the chunk: let go of its memory. */
  #starve(): Cut {
    this.#chunk = NOTHING;
    this.#position = 0;
    return 'starved';
  }

  /** Keeps the rest of the chunk as the beginning of a message of which `wanted` bytes are needed at once. */
  #hold(wanted: number): Cut {
    const available = this.#chunk.length - this.#position;
    this.#held = Buffer.allocUnsafeSlow(Math.min(wanted, Math.max(2 * available, HEADER)));
    this.#heldSize = this.#chunk.copy(this.#held, 0, this.#position);
    return this.#starve();
  }

  /** Completes the held beginning from the chunk. */
  #fill(frame: Frame): Cut {
    for (;;) {
      const wanted = this.#heldWanted();
      if (typeof wanted === 'string') return wanted;
      if (this.#heldSize >= wanted) {
        const held = this.#held!;
        const size = this.#heldSize;
        this.#held = null;
        this.#heldSize = 0;
        return this.#give(frame, held, 0, size, true);
      }
      const take = Math.min(wanted - this.#heldSize, this.#chunk.length - this.#position);
      if (take === 0) return this.#starve();
      this.#keep(take, wanted);
    }
  }

  #wrong(length: number): 'badLength' | 'tooLong' | null {
    if (length < LENGTH_MIN) return 'badLength';
    return length >= this.#sizeMax ? 'tooLong' : null;
  }

  /** Bytes of the held message that are needed at once: the header first, then what its type asks for. */
  #heldWanted(): number | 'badLength' | 'tooLong' {
    if (this.#heldSize < HEADER) return HEADER;
    const length = this.#held!.readUInt32BE(1);
    const wrong = this.#wrong(length);
    if (wrong !== null) return wrong;
    this.#begin(this.#held![0]!, length + 1);
    return Math.min(this.#size, this.#wants(this.#type, this.#size));
  }

  #keep(take: number, wanted: number): void {
    const needed = this.#heldSize + take;
    if (needed > this.#held!.length) {
      const grown = Buffer.allocUnsafeSlow(Math.min(wanted, Math.max(needed, 2 * this.#held!.length)));
      this.#held!.copy(grown, 0, 0, this.#heldSize);
      this.#held = grown;
    }
    this.#chunk.copy(this.#held!, this.#heldSize, this.#position, this.#position + take);
    this.#heldSize = needed;
    this.#position += take;
  }
}
