/**
 * The HTTP port. Made by app.
 *
 *     GET   /livez /readyz                  for orchestrators
 *     GET   /                               the dashboard: a page, its style and its script (ops/dashboard)
 *     GET   /metrics /status.json /history.json /events.json       for tools; with the token, if there is one
 *     GET   /live                           the status once a second, as server-sent events; with the token as well
 *     POST  /events                         somebody has changed something elsewhere: { "what": "deployed 1.2", "subject": "billing" }
 *     POST  /switches/NAME                  sets a switch: { "state": "off", "for": "10m", "reason": "…", "dryRun": false }
 *     POST  /upgrade                        another process takes over (fleet/handover)
 *
 * /livez says that the event loop turns and never asks the database: a failing dependency must not restart the proxy.
 * /readyz stays 200 while the database is down, because the proxy is then needed most; it is 503 only while draining.
 */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { z } from 'zod';
import { FailedLogins } from '../client/failures.ts';
import type { Users } from '../client/users.ts';
import type { Config } from '../config/schema.ts';
import { type Clock, every } from '../util/clock.ts';
import { messageOf } from '../util/errors.ts';
import { type Access, accessOf, whyNotRead } from './access.ts';
import type { Coupling } from './coupling.ts';
import { pageAt } from './dashboard.ts';
import type { Events } from './events.ts';
import type { History } from './history.ts';
import type { RefusalRecord } from './journal.ts';
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
  /** What is known from this time (wall-clock ms) on. */
  coupling: (since: number) => Coupling;
  /** The refusal with this id; null: it is not known. */
  explain: (id: number) => RefusalRecord | null;
  history: History;
  events: Events;
  switches: Switchboard;
  /** Gives the process id of the one that takes over; rejects with why there is none. */
  upgrade: () => Promise<number>;
  /** A request could not be answered. */
  onProblem: (url: string, problem: string) => void;
  clock: Clock;
}

const BODY_MAX = 16 * 1024;
const JSON_TYPE = 'application/json; charset=utf-8';
const PATHS =
  'there are /, /livez, /readyz, /metrics, /status.json, /history.json, /events.json, /coupling.json, /refusals/ID, /live, /events, /switches/NAME and /upgrade\n';
const LIVE_MS = 1_000;
/** Dashboards that are open. */
const LIVE_MAX = 20;
/** The page loads nothing from elsewhere, and nobody may put it into a frame. */
const PAGE_POLICY =
  "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";
const WRONG_TYPE: Answer = { status: 415, body: 'the content type must be application/json\n' };
const noteSchema = z.strictObject({ what: z.string().min(1).max(500), subject: z.string().max(200).prefault('') });

const wishSchema = z.strictObject({
  state: z.string(),
  for: z.string().optional(),
  reason: z.string().max(1000).prefault(''),
  dryRun: z.boolean().prefault(false),
});

interface Answer {
  status: number;
  body: string | Buffer;
  type?: string;
  headers?: Record<string, string>;
}

export class OpsServer {
  readonly #options: OpsOptions;
  readonly #server: Server;
  #lives = 0;
  readonly #failures = new FailedLogins();

  constructor(options: OpsOptions) {
    this.#options = options;
    this.#server = createServer((request, response) => {
      this.#answer(request, response).catch((thrown) => {
        this.#options.onProblem(request.url ?? '', messageOf(thrown));
        if (response.headersSent) return response.destroy();
        response.writeHead(500).end(`${messageOf(thrown)}\n`);
      });
    });
  }

  get server(): Server {
    return this.#server;
  }

  /** Listens, on the socket `fd` if one was inherited; gives the port. */
  start(fd?: number): Promise<number> {
    const { host, port } = this.#options.config().ops;
    return new Promise((resolve, reject) => {
      this.#server.once('error', reject);
      this.#server.listen(fd === undefined ? { port, host } : { fd }, () => {
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
    const isLive = url.pathname === '/live' && request.method === 'GET';
    if (isLive && this.#refuseReading(request) === null) return this.#live(response);
    const answer =
      name !== undefined
        ? await this.#change(request, name)
        : url.pathname === '/events'
          ? await this.#note(request)
          : url.pathname === '/upgrade'
            ? await this.#upgrade(request)
            : await this.#read(request, url);
    response.writeHead(answer.status, {
      'content-type': answer.type ?? 'text/plain; charset=utf-8',
      'cache-control': 'no-store',
      'x-content-type-options': 'nosniff',
      ...answer.headers,
    });
    response.end(answer.body);
  }

  /** The answer to who may not read; null: it may. */
  #refuseReading({ headers }: IncomingMessage): Answer | null {
    const refused = whyNotRead(headers, this.#options.config().ops);
    return refused === null ? null : { status: refused.status, body: `${refused.why}\n` };
  }

  /** The status, now and every second, until the reader goes away. */
  #live(response: ServerResponse): void {
    if (this.#lives >= LIVE_MAX) {
      response.writeHead(503, { 'retry-after': '10' }).end(`${LIVE_MAX} others look already\n`);
      return;
    }
    const { clock, status } = this.#options;
    response.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-store' });
    // Who does not read is not written to.
    const tell = () => {
      if (response.writableNeedDrain) return;
      response.write(`data: ${JSON.stringify(status())}\n\n`);
    };
    tell();
    this.#lives++;
    const stop = every(clock, LIVE_MS, tell);
    response.on('close', () => {
      stop();
      this.#lives--;
    });
  }

  async #read(request: IncomingMessage, url: URL): Promise<Answer> {
    if (request.method !== 'GET' && request.method !== 'HEAD') return { status: 405, body: `only GET here; ${PATHS}` };
    const { checks, isReady, metrics, contentType } = this.#options;
    const json = (value: unknown): Answer => ({ status: 200, body: JSON.stringify(value), type: JSON_TYPE });
    const page = pageAt(url.pathname);
    if (page !== null)
      return {
        status: 200,
        ...page,
        headers: { 'content-security-policy': PAGE_POLICY, 'referrer-policy': 'no-referrer' },
      };
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
      case '/history.json':
      case '/events.json':
      case '/coupling.json':
      case '/live': {
        const refused = this.#refuseReading(request);
        if (refused !== null) return refused;
        if (url.pathname === '/metrics') return { status: 200, body: await metrics(), type: contentType };
        return json(this.#data(url));
      }
      default:
        return this.#explain(request, url);
    }
  }

  #data(url: URL): unknown {
    const { status, history, events, coupling } = this.#options;
    switch (url.pathname) {
      case '/events.json':
        return events.since(sinceOf(url));
      case '/history.json':
        return history.view(sinceOf(url));
      case '/coupling.json':
        return coupling(sinceOf(url));
      default:
        return status();
    }
  }

  /** GET /refusals/ID. */
  #explain(request: IncomingMessage, url: URL): Answer {
    const [, id] = /^\/refusals\/(\d{1,15})$/.exec(url.pathname) ?? [];
    if (id === undefined) return { status: 404, body: PATHS };
    const refused = this.#refuseReading(request);
    if (refused !== null) return refused;
    const record = this.#options.explain(Number(id));
    if (record === null)
      return {
        status: 404,
        body: `no refusal ${id} is kept here: of each process the last 2,000 are, by the id in the error's DETAIL\n`,
      };
    return { status: 200, body: JSON.stringify(record), type: JSON_TYPE };
  }

  #accessOf(request: IncomingMessage): Promise<Access> {
    const { config, users, clock } = this.#options;
    const now = clock.now();
    const house = { ...config(), users: users(), failures: this.#failures, now };
    return accessOf(request.headers, request.socket.remoteAddress ?? '', house);
  }

  /** POST /events: a deploy, a change of a configuration elsewhere, an incident's beginning. */
  async #note(request: IncomingMessage): Promise<Answer> {
    if (request.method !== 'POST') return { status: 405, body: 'only POST; what has happened is at /events.json\n' };
    const { events } = this.#options;
    const access = await this.#accessOf(request);
    if ('why' in access) return { status: access.status, body: `${access.why}\n` };
    if (!isJson(request)) return WRONG_TYPE;
    const note = noteSchema.safeParse(await bodyOf(request));
    if (!note.success) return { status: 400, body: 'expected {"what": "deployed 1.2", "subject": "billing"}\n' };
    const happening = events.add('note', note.data.what, { subject: note.data.subject, actor: access.actor });
    return { status: 200, body: JSON.stringify(happening), type: JSON_TYPE };
  }

  /** POST /upgrade: answered once the new process listens. */
  async #upgrade(request: IncomingMessage): Promise<Answer> {
    if (request.method !== 'POST') return { status: 405, body: 'only POST\n' };
    const { upgrade } = this.#options;
    const access = await this.#accessOf(request);
    if ('why' in access) return { status: access.status, body: `${access.why}\n` };
    if (!isJson(request)) return WRONG_TYPE;
    try {
      return { status: 200, body: JSON.stringify({ pid: await upgrade() }), type: JSON_TYPE };
    } catch (thrown) {
      return { status: 409, body: `${messageOf(thrown)}\n` };
    }
  }

  /** POST /switches/NAME: what it touches is said in any case, and done unless it is a dry run. */
  async #change(request: IncomingMessage, name: string): Promise<Answer> {
    if (request.method !== 'POST') return { status: 405, body: 'only POST\n' };
    const { switches } = this.#options;
    const access = await this.#accessOf(request);
    if ('why' in access) return { status: access.status, body: `${access.why}\n` };
    if (!isJson(request)) return WRONG_TYPE;
    const wish = wishSchema.safeParse(await bodyOf(request));
    const position = wish.success ? positionOf(wish.data.state) : undefined;
    const forMs = wish.data?.for === undefined ? null : durationOf(wish.data.for);
    if (!wish.success || position === undefined || forMs === undefined)
      return { status: 400, body: 'expected {"state": "on|off|hold|25%|default", "for": "10m", "reason": "…"}\n' };
    const before = switches.find(name);
    const unknown = switches.problemOf(name);
    if (unknown !== null) return { status: 404, body: `${unknown}\n` };
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

/** `?since=`: an event's id, or wall-clock ms; 0: from the beginning. */
function sinceOf(url: URL): number {
  return Number(url.searchParams.get('since') ?? 0) || 0;
}

/** A form of another site cannot send this type without asking first. */
function isJson({ headers }: IncomingMessage): boolean {
  return /^application\/json\b/.test(headers['content-type'] ?? '');
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
