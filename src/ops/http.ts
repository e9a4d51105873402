/**
 * The HTTP port. Made by app.
 *
 *     GET   /livez /readyz                  for orchestrators
 *     GET   /metrics /status.json           for tools; with the token, if there is one
 *     POST  /switches/NAME                  sets a switch: { "state": "off", "for": "10m", "reason": "…", "dryRun": false }
 *
 * /livez says that the event loop turns and never asks the database: a failing dependency must not restart the proxy.
 * /readyz stays 200 while the database is down, because the proxy is then needed most; it is 503 only while draining.
 */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { z } from 'zod';
import type { Users } from '../client/users.ts';
import type { Config } from '../config/schema.ts';
import { accessOf, hasToken } from './access.ts';
import type { Status } from './status.ts';
import { durationOf, positionOf, type Switchboard } from './switchboard.ts';

export interface OpsOptions {
  config: () => Pick<Config, 'ops' | 'auth'>;
  users: () => Users;
  isReady: () => boolean;
  /** Named conditions, shown by /readyz?verbose. */
  checks: () => Record<string, boolean>;
  metrics: () => Promise<string>;
  contentType: string;
  status: () => Status;
  switches: Switchboard;
}

const BODY_MAX = 16 * 1024;
const JSON_TYPE = 'application/json; charset=utf-8';
const PATHS = 'there are /livez, /readyz, /metrics, /status.json and /switches/NAME\n';

const wishSchema = z.strictObject({
  state: z.string(),
  for: z.string().optional(),
  reason: z.string().max(1000).prefault(''),
  dryRun: z.boolean().prefault(false),
});

interface Answer {
  status: number;
  body: string;
  type?: string;
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
    const { host, port } = this.#options.config().ops;
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
    const url = new URL(request.url ?? '/', 'http://ops');
    const [, name] = /^\/switches\/([\w-]+)$/.exec(url.pathname) ?? [];
    const answer = name === undefined ? await this.#read(request, url) : await this.#change(request, name);
    response.writeHead(answer.status, {
      'content-type': answer.type ?? 'text/plain; charset=utf-8',
      'cache-control': 'no-store',
    });
    response.end(answer.body);
  }

  async #read({ method, headers }: IncomingMessage, url: URL): Promise<Answer> {
    if (method !== 'GET' && method !== 'HEAD') return { status: 405, body: 'only GET\n' };
    const { config, checks, isReady, metrics, contentType, status } = this.#options;
    switch (url.pathname) {
      case '/livez':
        return { status: 200, body: 'ok\n' };
      case '/readyz': {
        const lines = Object.entries(checks()).map(([name, ok]) => `[${ok ? '+' : '-'}]${name}\n`);
        const verbose = url.searchParams.has('verbose') ? lines.join('') : '';
        return isReady() ? { status: 200, body: `${verbose}ok\n` } : { status: 503, body: `${verbose}not ready\n` };
      }
      case '/metrics':
      case '/status.json':
        if (!hasToken(headers, config().ops.tokenFile))
          return { status: 401, body: 'this needs the token of ops.tokenFile as a bearer token\n' };
        return url.pathname === '/metrics'
          ? { status: 200, body: await metrics(), type: contentType }
          : { status: 200, body: JSON.stringify(status()), type: JSON_TYPE };
      default:
        return { status: 404, body: PATHS };
    }
  }

  /** POST /switches/NAME: what it touches is said in any case, and done unless it is a dry run. */
  async #change(request: IncomingMessage, name: string): Promise<Answer> {
    if (request.method !== 'POST') return { status: 405, body: 'only POST\n' };
    const { config, users, switches } = this.#options;
    const access = await accessOf(request.headers, { ...config(), users: users() });
    if ('why' in access) return { status: access.status, body: `${access.why}\n` };
    // A form of another site cannot send this type without asking first.
    if (!/^application\/json\b/.test(request.headers['content-type'] ?? ''))
      return { status: 415, body: 'the content type must be application/json\n' };
    const wish = wishSchema.safeParse(await bodyOf(request));
    const position = wish.success ? positionOf(wish.data.state) : undefined;
    const forMs = wish.data?.for === undefined ? null : durationOf(wish.data.for);
    if (!wish.success || position === undefined || forMs === undefined)
      return { status: 400, body: 'expected {"state": "on|off|hold|25%|default", "for": "10m", "reason": "…"}\n' };
    const before = switches.find(name);
    const done = wish.data.dryRun
      ? { warning: '' }
      : switches.set({ name, position, forMs, reason: wish.data.reason, actor: access.actor });
    if ('problem' in done) return { status: 404, body: `${done.problem}\n` };
    const touched = { requests: before?.requests ?? 1, work: before?.work ?? 1 };
    return {
      status: 200,
      body: JSON.stringify({ name, isDone: !wish.data.dryRun, touched, warning: done.warning }),
      type: JSON_TYPE,
    };
  }
}

/** The body as JSON; undefined: it is none, or too long. */
async function bodyOf(request: IncomingMessage): Promise<unknown> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    size += chunk.length;
    if (size > BODY_MAX) return undefined;
    chunks.push(chunk);
  }
  try {
    return JSON.parse(Buffer.concat(chunks).toString('utf8'));
  } catch {
    return undefined;
  }
}
