/**
 * A replication connection: it gets a server connection of its own, logged in with the same `replication` parameter,
 * and from then on bytes pass unseen in both directions. It never enters a pool. Made by client/listener.
 */
import type net from 'node:net';
import * as encode from '../protocol/encode.ts';
import { openServer, type Secret, type ServerTarget, sendCancel } from '../server/login.ts';
import type { Cancelable, CancelKey } from './cancel.ts';

export interface ReplicationOptions {
  socket: net.Socket;
  key: CancelKey;
  user: string;
  /** Bytes that the client has sent since its login. */
  rest: Buffer;
  /** As the client calls it. */
  database: string;
  target: ServerTarget;
  secret: Secret;
  connectMs: number;
  onEnd: () => void;
}

export class Replication implements Cancelable {
  readonly key: CancelKey;
  readonly user: string;
  readonly database: string;
  readonly pool: { readonly target: ServerTarget };
  readonly #client: net.Socket;
  #server: net.Socket | null = null;
  #serverKey: Buffer = Buffer.alloc(0);

  private constructor({ socket, target, key, user, database }: ReplicationOptions) {
    this.key = key;
    this.user = user;
    this.database = database;
    this.#client = socket;
    this.pool = { target };
  }

  /** Opens the server and joins the two; null: the client has gone meanwhile. Throws ServerLoginError when that fails. */
  static async open(options: ReplicationOptions): Promise<Replication | null> {
    const replication = new Replication(options);
    const { socket: client } = options;
    client.on('error', () => {});
    const { socket: server, reported, key, rest } = await openServer(options.target, options.secret, options.connectMs);
    replication.#server = server;
    if (client.destroyed) {
      server.on('error', () => {}).end(encode.terminate);
      return null;
    }
    replication.#serverKey = key;
    client.cork();
    client.write(encode.authenticationOk);
    for (const [name, value] of reported) client.write(encode.parameterStatus(name, value));
    client.write(encode.backendKeyData(options.key));
    client.write(encode.readyForQuery());
    if (rest.length > 0) client.write(rest);
    client.uncork();
    if (options.rest.length > 0) server.write(options.rest);
    const end = () => {
      client.destroy();
      server.destroy();
    };
    client.on('error', end);
    server.on('error', end).once('close', options.onEnd);
    // `pipe` stops reading the side that is ahead, and ends one side when the other has ended.
    client.pipe(server);
    server.pipe(client);
    // Nobody hears the server any more: it is read on so that its end is noticed.
    client.once('close', () => server.end().resume());
    return replication;
  }

  cancel(): void {
    const server = this.#server;
    if (server !== null)
      sendCancel(
        this.pool.target,
        this.#serverKey,
        () => !server.destroyed,
        () => {},
      );
  }

  end(): void {
    this.#client.destroy();
    this.#server?.destroy();
  }
}
