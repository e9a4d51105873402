/**
 * Where clients come in: a TCP port, and a Unix socket beside it. Owned by client/listener.
 *
 * The one idea: who has the port can hand it to the process after it without a moment in which nobody listens; so a file for the socket is put in
 * the place of the old one at once, and is never taken away by whoever is not its last owner.
 */
import { chmodSync, existsSync, renameSync, unlinkSync } from 'node:fs';
import net from 'node:net';
import type { ListenConfig } from '../config/schema.ts';

/** Node's socket buffer: two large reads may be under way to a client before its server is not read. */
export const HIGH_WATER_MARK = 128 * 1024;
const BACKLOG = 1024;

export class Ports {
  readonly #onConnection: (socket: net.Socket, isLocal: boolean) => void;
  readonly #onError: (reason: string) => void;
  #tcp: net.Server | null = null;
  #unix: net.Server | null = null;
  #unixFile: string | null = null;

  /** `onConnection` gets paused sockets; `isLocal`: from the Unix socket. */
  constructor(onConnection: (socket: net.Socket, isLocal: boolean) => void, onError: (reason: string) => void) {
    this.#onConnection = onConnection;
    this.#onError = onError;
  }

  /** What listens for clients by TCP. */
  get tcp(): net.Server {
    return this.#tcp!;
  }

  /** Listens, on the socket `fd` if one was inherited; the promise fails with the system's error, such as EADDRINUSE. Gives the TCP port. */
  async open(listen: ListenConfig, fd?: number): Promise<number> {
    const tcp = this.#makeServer(false);
    this.#tcp = tcp;
    await bind(tcp, fd === undefined ? { host: listen.host, port: listen.port, backlog: BACKLOG } : { fd });
    const { port } = tcp.address() as net.AddressInfo;
    if (listen.socketDir !== null) {
      this.#unixFile = `${listen.socketDir}/.s.PGSQL.${port}`;
      this.#unix = this.#makeServer(true);
      // Renamed over that of the process before, at once; and not unlinked when this one closes, as it would be by the name it was bound to.
      const own = `${this.#unixFile}.${process.pid}`;
      if (existsSync(own)) unlinkSync(own);
      await bind(this.#unix, { path: own, backlog: BACKLOG });
      chmodSync(own, 0o777); // Who may connect is a matter of authentication, as in Postgres.
      renameSync(own, this.#unixFile);
    }
    return port;
  }

  #makeServer(isLocal: boolean): net.Server {
    const server = net.createServer({
      highWaterMark: HIGH_WATER_MARK,
      noDelay: true,
      keepAlive: true,
      pauseOnConnect: true,
    });
    server.on('connection', (socket) => this.#onConnection(socket, isLocal));
    server.on('error', (error) => this.#onError(error.message));
    return server;
  }

  /** Another process has the sockets from here on. */
  handOver(): void {
    this.closeTcp();
    this.#unix?.close();
    this.#unix = null;
    this.#unixFile = null;
  }

  /** Nobody comes in but by the Unix socket. */
  closeTcp(): void {
    this.#tcp?.close();
    this.#tcp = null;
  }

  /** Nobody comes in any more. */
  close(): void {
    this.closeTcp();
    this.#unix?.close();
    this.#unix = null;
    if (this.#unixFile !== null && existsSync(this.#unixFile)) unlinkSync(this.#unixFile);
    this.#unixFile = null;
  }
}

function bind(server: net.Server, options: net.ListenOptions | { fd: number }): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(options, () => {
      server.off('error', reject);
      resolve();
    });
  });
}
