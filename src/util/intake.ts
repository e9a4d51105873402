/**
 * Reads all clients' sockets into one buffer. Called by client/listener when a client has logged in.
 *
 * The one idea: what a request needs is small and is copied out at once, so thousands of sockets can share one block of
 * memory, and Node need not allocate 64 KiB for each read, give most of it back, and run the machinery of streams
 * (4 of 31 µs per transaction of `pgbench -S`).
 *
 * Node reads into a buffer of ours (`onread`) only where a socket is constructed, and constructs accepted sockets itself.
 * So the system's connection (`_handle`) is moved to a socket that is constructed here. That property is Node's own:
 * where it is not what is expected, or the socket is not plain (TLS), the socket is used as it is.
 */
import net from 'node:net';

const shared = Buffer.allocUnsafeSlow(64 * 1024);

interface Inner {
  _handle: { useUserBuffer?: unknown } | null;
}

/** Hands what is read to `take`, which is called as a method of the socket and may keep it. One serves all sockets. */
export function sharedReads(take: (this: net.Socket, bytes: Buffer) => void): net.OnReadOpts {
  return {
    buffer: shared,
    callback(this: unknown, size: number): boolean {
      const bytes = Buffer.allocUnsafe(size);
      shared.copy(bytes, 0, 0, size);
      take.call(this as net.Socket, bytes);
      return true;
    },
  };
}

/**
 * A paused socket for the connection of `socket`, with `reads` of `sharedReads`; `socket` must not be used any more. Where
 * that cannot be, it is `socket` itself.
 */
export function moveConnection(socket: net.Socket, reads: net.OnReadOpts, highWaterMark: number): net.Socket {
  const inner = socket as unknown as Inner;
  const handle = inner._handle;
  const isPlain = socket.constructor === net.Socket && typeof handle?.useUserBuffer === 'function';
  // What has been read, or has not been written yet, would be lost.
  const isBusy = socket.destroyed || socket.readableLength > 0 || socket.readableEnded || socket.writableLength > 0;
  if (!isPlain || isBusy) return socket;
  inner._handle = null;
  return new net.Socket({ handle, pauseOnCreate: true, highWaterMark, onread: reads } as net.SocketConstructorOpts);
}
