/**
 * pgweir as the `pgbouncer` executable, for PgBouncer's own tests. Run by ./pgbouncer, which suite.ts names to them as BOUNCER_EXE.
 *
 *     pgbouncer.ini → config/import, as `pgweir import` has it → App          SET key = value, in the console → ini and RELOAD
 *
 * The one idea: nothing is made up here. What `pgweir import` does not understand has no effect, so a test that needs it fails. This file only
 * lends what belongs to the process and not to the protocol: its arguments, signals, log file, and SET of the keys of an ini.
 *
 * Log lines are those of pgweir, or say what a client was told, in PgBouncer's form ("closing because: …"); where the tests look for other words
 * for the same event, `words` has them.
 */
import { appendFileSync, existsSync, readFileSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import { dirname, resolve } from 'node:path';
import { parse, stringify } from 'yaml';
import { App } from '../../src/app.ts';
import { Session } from '../../src/client/session.ts';
import { importPgbouncer } from '../../src/config/import.ts';
import { type Loaded, parseConfig } from '../../src/config/load.ts';
import { Console } from '../../src/ops/console.ts';
import { Controls } from '../../src/ops/controls.ts';
import { makeLogger } from '../../src/ops/log.ts';
import { version } from '../../src/ops/version.ts';
import { Connector } from '../../src/server/connector.ts';
import { ServerPool } from '../../src/server/pool.ts';
import { messageOf } from '../../src/util/errors.ts';

const USAGE = 'Usage: pgbouncer [--quiet] [--reboot] config.ini';
/** The tests' own user, whom PgBouncer lets in by the socket's owner. */
const ADMIN = 'pgbouncer';
/** How long the process before may take to let go of its port. */
const TAKEOVER_MS = 60_000;

const options = process.argv.slice(2).filter((each) => each.startsWith('-'));
const [file] = process.argv.slice(2).filter((each) => !each.startsWith('-'));
if (options.includes('--version') || options.includes('-V')) exit(`pgweir ${version}`);
if (options.includes('--help') || options.includes('-h')) exit(USAGE);
if (file === undefined) exit(USAGE, 1);

const ini = resolve(file);
const pidFile = `${ini}.pid`;
/** What SET has said since the file was read. */
const overrides = new Map<string, string>();
/** RELOADs to come that are a SET. */
let sets = 0;
let logFile: string | null = null;

const logger = makeLogger({ level: 'debug', format: 'json', slow: 0 }, (line) => {
  const { time: _, level, msg, ...fields } = JSON.parse(line) as Record<string, unknown>;
  const rest = Object.entries(fields).map(([name, value]) => ` ${name}=${JSON.stringify(value)}`);
  log(`${msg}${rest.join('')}`, String(level));
  const { sqlstate, reason } = fields;
  if (msg === 'connect failed' && /^no login within/.test(String(reason)))
    log('S: closing because: connect timeout (age=0s)');
  if (msg === 'connect failed' && sqlstate !== '') log(`server login failed: FATAL ${reason}`, 'warn');
  if (msg === 'a server of the reserve is opened') log('taking connection from reserve_pool');
  if (msg === 'an unused pool is forgotten') log('cleaning up idle pool');
  if (msg === 'server closed') log(`S: closing because: ${reason} (age=0s)`);
});

tellWhatClientsAreTold();
tellConnections();
tellTimeouts();
letConsoleSet();
const loaded = load();
if (!loaded.ok) exit(loaded.problems.join('\n'), 1);
await run(loaded.config);

async function run(config: (Loaded & { ok: true })['config']): Promise<void> {
  if (options.includes('--reboot')) await sendAway();
  const app = new App({ config, reload, file: ini, log: logger, onShutdown: () => void end() });
  const end = async () => {
    await app.stop();
    process.exit(0);
  };
  await app.start();
  writeFileSync(pidFile, String(process.pid));
  const controls = controlsOf(app);
  process.on('SIGHUP', () => app.reload());
  let isEnding = false;
  for (const [signal, mode] of [
    ['SIGTERM', 'clients'],
    ['SIGINT', 'servers'],
  ] as const) {
    process.on(signal, () => {
      log(`got ${signal}, shutting down`);
      if (isEnding) void end();
      else controls.shutDown(mode);
      isEnding = true;
    });
  }
  process.on('SIGQUIT', () => void end());
  process.on('SIGUSR1', () => app.pause());
  process.on('SIGUSR2', () => {
    if (controls.isShuttingDown) log('got SIGUSR2 while shutting down, ignoring');
    else app.resume();
  });
  process.on('uncaughtException', (thrown) => app.onBug('uncaught exception', thrown));
  process.on('unhandledRejection', (thrown) => app.onBug('unhandled rejection', thrown));
}

/** As signals reach them. */
function controlsOf(app: App): Controls {
  const { resume } = Controls.prototype;
  let found: Controls | null = null;
  Controls.prototype.resume = function () {
    found = this;
  };
  app.resume();
  Controls.prototype.resume = resume;
  return found!;
}

/** `--reboot`: the process before serves its clients to their end, and this one those who come. Sockets are not taken over. */
async function sendAway(): Promise<void> {
  if (!existsSync(pidFile)) return;
  const pid = Number(readFileSync(pidFile, 'utf8'));
  process.kill(pid, 'SIGTERM');
  const isThere = () => {
    try {
      return process.kill(pid, 0);
    } catch {
      return false;
    }
  };
  const until = Date.now() + TAKEOVER_MS;
  while (isThere() && Date.now() < until) await new Promise((done) => setTimeout(done, 50));
}

// --- The ini ----------------------------------------------------------------------------------------------------

function reload(): Loaded {
  if (sets > 0) sets--;
  else overrides.clear();
  const again = load();
  if (!again.ok) for (const problem of again.problems) log(problem, 'error');
  return again;
}

function load(): Loaded {
  try {
    const folder = dirname(ini);
    const read = (path: string) => readFileSync(resolve(folder, path), 'utf8');
    const set = [...overrides].map(([key, value]) => `${key} = ${value}\n`).join('');
    const text = `${read(ini)}\n[pgbouncer]\n${set}`;
    logFile ??= /^\s*logfile\s*=\s*(.+?)\s*$/gm.exec(text.split('\n').reverse().join('\n'))?.[1] ?? null;
    const { yaml, notes, secrets } = importPgbouncer(text, read);
    for (const each of secrets) writeFileSync(resolve(folder, each.file), each.text, { mode: 0o600 });
    for (const note of notes) log(note, 'debug');
    const config = parse(yaml) as { ops?: object; auth: { admins?: string[] } };
    config.ops = { port: 0 };
    config.auth.admins = [...(config.auth.admins ?? []), ADMIN];
    return parseConfig(stringify(config), ini, {});
  } catch (thrown) {
    return { ok: false, problems: [messageOf(thrown)] };
  }
}

// --- SET in the console -----------------------------------------------------------------------------------------

/** What drivers set, and what is ours. */
const NOT_KEYS = ['switch', 'client_encoding', 'datestyle', 'timezone', 'application_name', 'extra_float_digits'];

/** `SET key = value` of the console: becomes RELOAD of the ini with that key behind it. */
function letConsoleSet(): void {
  const { open } = Console.prototype;
  Console.prototype.open = function (client, auth) {
    if (!auth.admins.includes(client.user)) return open.call(this, client, auth);
    const translate = translator();
    const { socket } = client;
    const on = socket.on.bind(socket) as (event: string, listener: (...values: never[]) => void) => typeof socket;
    socket.on = ((event: string, listener: (...values: never[]) => void) =>
      on(
        event,
        event === 'data' ? (chunk: Buffer) => (listener as (chunk: Buffer) => void)(translate(chunk)) : listener,
      )) as typeof socket.on;
    return open.call(this, { ...client, rest: translate(client.rest) }, auth);
  };
}

function translator(): (chunk: Buffer) => Buffer {
  let kept = Buffer.alloc(0);
  return (chunk) => {
    kept = Buffer.concat([kept, chunk]);
    const done: Buffer[] = [];
    while (kept.length >= 5 && kept.length > kept.readInt32BE(1)) {
      const size = kept.readInt32BE(1) + 1;
      done.push(translated(kept.subarray(0, size)));
      kept = kept.subarray(size);
    }
    return Buffer.concat(done);
  };
}

function translated(message: Buffer): Buffer {
  if (message.toString('latin1', 0, 1) !== 'Q') return message;
  const command = message.toString('utf8', 5, message.length - 1);
  const [, key, quoted, bare] = /^\s*set\s+(\w+)\s*(?:=|\bto\b)\s*(?:'(.*)'|(.*?))\s*;?\s*$/is.exec(command) ?? [];
  if (key === undefined || NOT_KEYS.includes(key.toLowerCase())) return message;
  overrides.set(key.toLowerCase(), quoted ?? bare!);
  sets++;
  return query('RELOAD');
}

function query(text: string): Buffer {
  const body = Buffer.from(`${text}\0`);
  const head = Buffer.alloc(5);
  head.write('Q');
  head.writeInt32BE(body.length + 4, 1);
  return Buffer.concat([head, body]);
}

// --- The log ----------------------------------------------------------------------------------------------------

/** What PgBouncer calls what a client is told with this SQLSTATE. */
const words: Readonly<Record<string, string>> = {
  '25P03': 'idle transaction timeout',
  '25P04': 'transaction timeout',
  '57P05': 'client_idle_timeout',
};

function log(line: string, level = 'info'): void {
  if (logFile === null) return;
  const names: Record<string, string> = { debug: 'DEBUG', info: 'LOG', warn: 'WARNING', error: 'ERROR' };
  const at = new Date().toISOString().replace('T', ' ').replace('Z', ' UTC');
  appendFileSync(resolve(dirname(ini), logFile), `${at} [${process.pid}] ${names[level] ?? level} ${line}\n`);
}

/** FATAL ends a session, and with it PgBouncer says why. */
function tellWhatClientsAreTold(): void {
  const tell = (bytes: unknown) => {
    if (!Buffer.isBuffer(bytes) || bytes.toString('latin1', 0, 1) !== 'E' || bytes.length < 7) return;
    const fields = new Map(
      bytes
        .toString('utf8', 5)
        .split('\0')
        .map((field) => [field.slice(0, 1), field.slice(1)] as const),
    );
    const [, name] = /^prepared statement "(.*)" already exists$/.exec(fields.get('M') ?? '') ?? [];
    if (name !== undefined) log(`prepared statement '${name}' was already prepared`, 'warn');
    if (fields.get('S') !== 'FATAL') return;
    const [, noSuch] = /\(PgBouncer: (.*)\)/.exec(fields.get('H') ?? '') ?? [];
    const own = noSuch ?? words[fields.get('C') ?? ''];
    for (const why of own === undefined ? ['M', 'D'].map((field) => fields.get(field)) : [own])
      if (why !== undefined) log(`C: closing because: ${why} (age=0s)`);
  };
  const { deliver } = Session.prototype;
  Session.prototype.deliver = function (bytes) {
    tell(bytes);
    return deliver.call(this, bytes);
  };
  const { end } = net.Socket.prototype;
  net.Socket.prototype.end = function (this: net.Socket, ...values: unknown[]) {
    tell(values[0]);
    return end.apply(this, values as Parameters<typeof end>);
  } as typeof end;
}

function tellConnections(): void {
  const { open } = Connector.prototype;
  Connector.prototype.open = async function (attempt) {
    const loggedIn = await open.call(this, attempt);
    const { localAddress, localPort, remoteAddress, remotePort } = loggedIn.socket;
    log(`S: ${remoteAddress}:${remotePort} new connection to server (from ${localAddress}:${localPort})`);
    return loggedIn;
  };
}

/** Of time limits that do not end the client PgBouncer writes the same words. */
function tellTimeouts(): void {
  const { countTimeout } = ServerPool.prototype;
  ServerPool.prototype.countTimeout = function (limit) {
    if (limit === 'query') log('S: closing because: query timeout (age=0s)');
    return countTimeout.call(this, limit);
  };
}

function exit(line: string, code = 0): never {
  (code === 0 ? console.log : console.error)(line);
  process.exit(code);
}
