/**
 * Memory for what is read from one socket. Used by server/login for connections in clear text.
 *
 * The one idea: each read goes behind the one before, into the same block, until little is left of it. Nothing that was
 * handed out is ever written again, so slices may be kept as long as anybody likes; and hundreds of small reads cost one
 * allocation instead of one each.
 */
import type net from 'node:net';

const BLOCK = 64 * 1024;
/** A block for a socket that had more to say than there was room for. */
const LARGE_BLOCK = 256 * 1024;
/** Less room than this is not worth a read. */
const ROOM_MIN = 16 * 1024;

/** The option `onread` of net.connect for a socket that emits what it reads as 'data', as it would without. */
export function readIntoSlab(socket: () => net.Socket): net.OnReadOpts {
  let block = Buffer.allocUnsafeSlow(BLOCK);
  let at = 0;
  return {
    buffer: () => block.subarray(at),
    callback: (size) => {
      const bytes = block.subarray(at, at + size);
      at += size;
      if (block.length - at < ROOM_MIN) {
        block = Buffer.allocUnsafeSlow(at === block.length ? LARGE_BLOCK : BLOCK);
        at = 0;
      }
      socket().emit('data', bytes);
      return true;
    },
  };
}
