/**
 * The HTTP port: /livez, /readyz and /metrics. Made by app.
 *
 * /livez says that the event loop turns and never asks the database: a failing dependency must not restart the proxy.
 * /readyz stays 200 while the database is down, because the proxy is then needed most; it is 503 only while draining.
 */
import { timingSafeEqual } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Config } from '../config/schema.ts';

export interface OpsOptions {
  config: () => Config['ops'];
  isReady: () => boolean;
  /** Named conditions, shown by /readyz?verbose. */
  checks: () => Record<string, boolean>;
  metrics: () => Promise<string>;
  contentType: string;
}

export class OpsServer {
  readonly #options: OpsOptions;
  readonly #server: Server;

  constructor(options: OpsOptions) {
    this.#options = options;
    this.#server = createServer((request, response) => {
      this.#answer(request, response).catch(() => response.writeHead(500).end());
    });
  }

  /** Listens; gives the port. */
  start(): Promise<number> {
    const { host, port } = this.#options.config();
    return new Promise((resolve, reject) => {
      this.#server.once('error', reject);
      this.#server.listen(port, host, () => {
        this.#server.off('error', reject);
        resolve((this.#server.address() as AddressInfo).port);
      });
    });
  }

  async close(): Promise<void> {
    if (!this.#server.listening) return;
    await new Promise<void>((resolve) => {
      this.#server.close(() => resolve());
      this.#server.closeAllConnections();
    });
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const text = (status: number, body: string, type = 'text/plain; charset=utf-8') =>
      void response.writeHead(status, { 'content-type': type, 'cache-control': 'no-store' }).end(body);
    if (request.method !== 'GET' && request.method !== 'HEAD') return text(405, 'only GET\n');
    const url = new URL(request.url ?? '/', 'http://ops');
    switch (url.pathname) {
      case '/livez':
        return text(200, 'ok\n');
      case '/readyz': {
        const lines = Object.entries(this.#options.checks()).map(([name, ok]) => `[${ok ? '+' : '-'}]${name}\n`);
        const isReady = this.#options.isReady();
        return text(
          isReady ? 200 : 503,
          `${url.searchParams.has('verbose') ? lines.join('') : ''}${isReady ? 'ok' : 'not ready'}\n`,
        );
      }
      case '/metrics':
        if (!this.#isAllowed(request)) return text(401, 'this needs the token of ops.tokenFile as a bearer token\n');
        return text(200, await this.#options.metrics(), this.#options.contentType);
      default:
        return text(404, 'there are /livez, /readyz and /metrics\n');
    }
  }

  #isAllowed(request: IncomingMessage): boolean {
    const { tokenFile } = this.#options.config();
    if (tokenFile === null) return true;
    const wanted = Buffer.from(`Bearer ${readFileSync(tokenFile, 'utf8').trim()}`);
    const given = Buffer.from(request.headers.authorization ?? '');
    return wanted.length === given.length && timingSafeEqual(wanted, given);
  }
}
