/**
 * Memory for what is read from one socket. Used by server/login for connections in clear text.
 *
 * The one idea: each read goes behind the one before, into the same block, until little is left of it. Nothing that was
 * handed out is ever written again, so slices may be kept as long as anybody likes; and hundreds of small reads cost one
 * allocation instead of one each. Unless the reader says that nobody keeps anything of the last read (`rewind`): then
 * the next one takes its place, and a long result runs through memory that stays in the processor's cache.
 */
import net from 'node:net';

const BLOCK = 64 * 1024;
/** A block for a socket that had more to say than there was room for. */
const LARGE_BLOCK = 256 * 1024;
/** Less room than this is not worth a read. */
const ROOM_MIN = 16 * 1024;

export class Slab {
  #block = Buffer.allocUnsafeSlow(BLOCK);
  #at = 0;
  /** Where the last read begins. */
  #start = 0;

  /** Where the next read goes. */
  get room(): Buffer {
    return this.#block.subarray(this.#at);
  }

  /** The next `size` bytes have been read. */
  take(size: number): Buffer {
    this.#start = this.#at;
    this.#at += size;
    return this.#block.subarray(this.#start, this.#at);
  }

  /** Nothing of the last read is needed any more. */
  rewind(): void {
    this.#at = this.#start;
  }

  /** Makes room for the next read. */
  prepare(): void {
    if (this.#block.length - this.#at >= ROOM_MIN) return;
    this.#block = Buffer.allocUnsafeSlow(this.#at === this.#block.length ? LARGE_BLOCK : BLOCK);
    this.#at = 0;
  }
}

/**
 * Connects a socket that reads into a slab. It emits what it reads as 'data', as it would without, and the slab as a second
 * argument.
 */
export function connectWithSlab(options: net.NetConnectOpts): net.Socket {
  const slab = new Slab();
  const socket = net.connect({
    ...options,
    onread: {
      buffer: () => slab.room,
      callback: (size) => {
        socket.emit('data', slab.take(size), slab);
        slab.prepare();
        return true;
      },
    },
  });
  return socket;
}
