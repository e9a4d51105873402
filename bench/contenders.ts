/**
 * What is measured: Postgres itself, PgBouncer and the built pgweir, each as a process of its own in front of one
 * Postgres. Used by bench/run and bench/idle.
 *
 * The one idea: all contenders run at the same time and are measured in turns, so that what disturbs the machine
 * disturbs them all.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, chownSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type EmbeddedPostgres, freePort } from '../src/embedded.ts';

export interface Contender {
  name: string;
  port: number;
  /** The process whose CPU time and memory count; null for Postgres itself. */
  pid: number | null;
  /** The HTTP port of pgweir. */
  opsPort?: number;
  stop(): Promise<void>;
  /** Puts other top-level keys into the configuration of a pgweir, which loads it again. */
  reconfigure?(top: Json): void;
}

export type Json = { [key: string]: unknown };

export const PASSWORD = 'bench';

/** Postgres itself. */
export function direct(postgres: EmbeddedPostgres): Contender {
  return { name: 'direct', port: postgres.port, pid: null, stop: async () => {} };
}

/**
 * The built pgweir; `pool` are keys of databases.*.pool, `database` others of the database. `isScram`: clients log in with SCRAM
 * instead of trust. `flags` are of `pgweir serve`.
 */
export async function pgweir(
  name: string,
  postgres: EmbeddedPostgres,
  pool: Json,
  {
    isScram = false,
    listen = {} as Json,
    top = {} as Json,
    database = {} as Json,
    cli = 'dist/cli.js',
    flags: own = [] as string[],
    env = {} as Record<string, string>,
  } = {},
): Promise<Contender> {
  const folder = mkdtempSync(join(tmpdir(), 'pgweir-bench-'));
  const [port, opsPort] = [await freePort(), await freePort()];
  const users = join(folder, 'users.txt');
  writeFileSync(users, `"postgres" "${PASSWORD}"\n`);
  const config = join(folder, 'config.yaml');
  const base = {
    listen: { port, clientsMax: 20_000, ...listen },
    ops: { port: opsPort },
    log: { level: 'warn' },
    auth: isScram ? { method: 'scram-sha-256', users } : { method: 'trust' },
    databases: { '*': { hosts: [`127.0.0.1:${postgres.port}`], tls: { mode: 'disable' }, pool, ...database } },
    ...top,
  };
  writeFileSync(config, JSON.stringify(base));
  // As `pgweir`, `npm start` and the image run it.
  const flags = [`--max-semi-space-size=${process.env.SEMI_SPACE ?? 8}`, ...(process.env.NODE_FLAGS?.split(' ') ?? [])];
  const child = spawn(process.execPath, [...flags, cli, 'serve', '-c', config, ...own], {
    stdio: ['ignore', 'ignore', 'inherit'],
    env: { ...process.env, ...env },
  });
  await untilListening(port, child);
  return {
    name,
    port,
    opsPort,
    pid: child.pid!,
    stop: () => end(child, folder),
    reconfigure: (keys) => {
      writeFileSync(config, JSON.stringify({ ...base, ...keys }));
      child.kill('SIGHUP');
    },
  };
}

/** Where PgBouncer is: `--pgbouncer`, or on PATH; null when there is none. */
export function findPgbouncer(given: string | null): string | null {
  if (given !== null) return given;
  const found = spawnSync('sh', ['-c', 'PATH=$PATH:/usr/sbin command -v pgbouncer'], {
    encoding: 'utf8',
  }).stdout.trim();
  return found === '' ? null : found;
}

/** Its version, such as [1, 18]. */
export function pgbouncerVersion(path: string): [number, number] {
  const [, major, minor] = /(\d+)\.(\d+)/.exec(spawnSync(path, ['--version'], { encoding: 'utf8' }).stdout) ?? [];
  return [Number(major), Number(minor)];
}

/** PgBouncer with `size` servers for each user and database. It refuses to run as root: then it runs as nobody. */
export async function pgbouncer(
  path: string,
  postgres: EmbeddedPostgres,
  size: number,
  { isScram = false, waitSeconds = 120, mode = 'transaction' } = {},
): Promise<Contender> {
  const folder = mkdtempSync(join(tmpdir(), 'pgweir-bench-'));
  const port = await freePort();
  const users = join(folder, 'users.txt');
  writeFileSync(users, `"postgres" "${PASSWORD}"\n`);
  const file = join(folder, 'pgbouncer.ini');
  const [, minor] = pgbouncerVersion(path);
  writeFileSync(
    file,
    `[databases]
* = host=127.0.0.1 port=${postgres.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = ${port}
unix_socket_dir =
auth_type = ${isScram ? 'scram-sha-256' : 'trust'}
auth_file = ${users}
pool_mode = ${mode}
default_pool_size = ${size}
max_client_conn = 15000
query_wait_timeout = ${waitSeconds}
${minor >= 21 ? 'max_prepared_statements = 200' : ''}
ignore_startup_parameters = extra_float_digits
log_connections = 0
log_disconnections = 0
`,
  );
  const isRoot = process.getuid?.() === 0;
  chmodSync(folder, 0o755);
  if (isRoot) for (const each of [folder, users, file]) chownSync(each, 65534, 65534);
  const child = spawn(path, ['-q', file], {
    stdio: ['ignore', 'ignore', 'inherit'],
    ...(isRoot && { uid: 65534, gid: 65534 }),
  });
  await untilListening(port, child);
  return { name: 'pgbouncer', port, pid: child.pid!, stop: () => end(child, folder) };
}

async function end(child: ChildProcess, folder: string): Promise<void> {
  if (child.exitCode === null) {
    const gone = once(child, 'exit');
    child.kill('SIGTERM');
    await gone;
  }
  rmSync(folder, { recursive: true, force: true });
}

/** Resident memory of a process in KiB. */
export function rssKib(pid: number): number {
  return Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))![1]);
}

/** CPU time that a process has used, in microseconds (to the hundredth of a second that the kernel counts in). */
export function cpuUs(pid: number): number {
  // The name, in parentheses, may hold spaces; utime and stime are fields 14 and 15.
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]!.split(' ');
  return (Number(fields[11]) + Number(fields[12])) * 10_000;
}

async function untilListening(port: number, child: ChildProcess): Promise<void> {
  for (let tries = 0; tries < 200 && child.exitCode === null; tries++) {
    const socket = net.connect(port, '127.0.0.1');
    const isOpen = await new Promise<boolean>((resolve) =>
      socket.once('connect', () => resolve(true)).once('error', () => resolve(false)),
    );
    socket.destroy();
    if (isOpen) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error(`nobody listens on port ${port}`);
}
