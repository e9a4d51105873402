/**
 * What is measured: each scenario puts one contender under one load for a while and gives one sample. Used by bench/run.
 *
 * The loads come from programs that everybody has: pgbench and psql; pipelines from node-postgres and postgres.js
 * (bench/pipeline, in a process of its own).
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { openSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type pg from 'pg';
import { type Contender, cpuUs, PASSWORD, rssKib } from './contenders.ts';
import { idleKib } from './idle.ts';
import { quantile } from './stats.ts';

/** One measurement of one contender. */
export interface Sample {
  /** In the unit of the scenario. */
  value: number;
  /** CPU time of the proxy per transaction, in microseconds. */
  cpuUs: number | null;
  /** Latencies in milliseconds. */
  p50: number | null;
  p99: number | null;
  /** Server connections that worked. */
  servers: number | null;
  /** Resident memory of the proxy. */
  rssKib: number | null;
}

export interface Scenario {
  name: string;
  unit: 'tps' | 'MB/s' | 'ms' | 'KiB';
  /** Clients log in with SCRAM. */
  isScram?: boolean;
  /** Uses prepared statements of the protocol, which PgBouncer has since 1.21. */
  isPrepared?: boolean;
  /** Part of `--quick`. */
  isQuick?: boolean;
  /** Makes no sense without a proxy. */
  isProxyOnly?: boolean;
  run(contender: Contender, place: Place): Promise<Sample>;
}

/** Where scenarios run. */
export interface Place {
  /** A connection to Postgres itself. */
  admin: pg.Client;
  /** A folder for temporary files. */
  folder: string;
  seconds: number;
  /** Transactions per second that are half of what the slowest contender can do. */
  halfLoad: number;
}

const WIDE_ROWS = 60_000;
/** How often COPY OUT sends the wide table: enough for the start of psql not to count. */
const OUT_TIMES = 5;
const IN_ROWS = 120_000;
/** Of pgbench's tables: with fewer branches than clients TPC-B measures little but their waiting for each other. */
const SCALE = 20;
const LOG_SHARE = 0.05;
/** Time for hundreds of clients, in seconds. */
const MANY_SECONDS = 4;

/** Makes the tables; pgbench makes its own. */
export async function prepareTables({ admin, folder }: Place, port: number): Promise<void> {
  await finish(start('pgbench', ['-i', '-q', '-s', `${SCALE}`], port, folder));
  await admin.query(`
    CREATE TABLE wide AS SELECT n AS id, repeat('x', 1000) AS payload FROM generate_series(1, ${WIDE_ROWS}) n;
    CREATE UNLOGGED TABLE sink (id int, payload text)`);
  writeFileSync(join(folder, 'wide.sql'), 'SELECT payload FROM wide LIMIT 1000;\n');
  const line = `${'y'.repeat(1000)}\n`;
  writeFileSync(join(folder, 'in.txt'), Array.from({ length: IN_ROWS }, (_, n) => `${n}\t${line}`).join(''));
}

const select = (mode: string, clients: number, isQuick = false): Scenario => ({
  name: `select ${mode}, ${clients} client${clients > 1 ? 's' : ''}`,
  unit: 'tps',
  isPrepared: mode === 'prepared',
  isQuick,
  run: (contender, place) => pgbench(contender, place, ['-S', '-M', mode, '-c', `${clients}`]),
});

const tpcb = (mode: string, clients: number, isQuick = false): Scenario => ({
  name: `TPC-B ${mode}, ${clients} client${clients > 1 ? 's' : ''}`,
  unit: 'tps',
  isPrepared: mode === 'prepared',
  isQuick,
  run: async (contender, place) => {
    await place.admin.query('TRUNCATE pgbench_history');
    return pgbench(contender, place, ['-M', mode, '-c', `${clients}`]);
  },
});

const copy = (name: string, sql: string, file: string | null, megabytes: number): Scenario => ({
  name,
  unit: 'MB/s',
  run: async (contender, place) => {
    await place.admin.query('TRUNCATE sink');
    const before = performance.now();
    // Nobody but psql reads what comes out: a reader in this process would cost as much as the proxy.
    await finish(start('psql', ['-qAt', '-o', '/dev/null', '-c', sql], contender.port, place.folder, file));
    return sample(megabytes / ((performance.now() - before) / 1000), contender);
  },
});

const pipeline = (driver: string): Scenario => ({
  name: `pipelines of ${driver}`,
  unit: 'tps',
  isPrepared: true,
  run: async (contender, place) => {
    const script = fileURLToPath(new URL('pipeline.ts', import.meta.url));
    const args = ['--import', 'tsx', script, driver, `${contender.port}`, `${place.seconds}`];
    return sample(Number(await finish(start(process.execPath, args, contender.port, place.folder))), contender);
  },
});

export const scenarios: readonly Scenario[] = [
  ...[1, 16, 64, 256].map((clients) => select('simple', clients, clients === 16)),
  ...[1, 16, 64, 256].map((clients) => select('extended', clients)),
  ...[1, 16, 64, 256].map((clients) => select('prepared', clients, clients === 16)),
  tpcb('simple', 16, true),
  tpcb('simple', 64),
  tpcb('prepared', 16),
  {
    name: 'connection storm',
    unit: 'tps',
    isScram: true,
    run: (contender, place) => pgbench(contender, place, ['-C', '-S', '-c', '16']),
  },
  {
    name: 'wide results',
    unit: 'MB/s',
    run: async (contender, place) => {
      const found = await pgbench(contender, place, ['-f', join(place.folder, 'wide.sql'), '-c', '4']);
      return { ...found, value: found.value * 1.01 }; // A thousand rows of a thousand bytes, and their headers.
    },
  },
  copy(
    'COPY OUT',
    `COPY (SELECT wide.* FROM wide, generate_series(1, ${OUT_TIMES})) TO STDOUT`,
    null,
    (OUT_TIMES * WIDE_ROWS * 1006) / 1e6,
  ),
  copy('COPY IN', 'COPY sink FROM STDIN', 'in.txt', (IN_ROWS * 1006) / 1e6),
  pipeline('node-postgres'),
  pipeline('postgres.js'),
  {
    name: 'latency at half load',
    unit: 'ms',
    run: async (contender, place) => {
      const found = await pgbench(contender, place, ['-S', '-c', '16', '-R', `${Math.round(place.halfLoad)}`]);
      return { ...found, value: found.p50! };
    },
  },
  {
    name: 'memory per idle client',
    unit: 'KiB',
    isPrepared: true,
    isProxyOnly: true,
    run: async (contender) => sample((await idleKib(contender, 10_000)).each, contender),
  },
];

function sample(value: number, contender: Contender): Sample {
  const rss = contender.pid === null ? null : rssKib(contender.pid);
  return { value, cpuUs: null, p50: null, p99: null, servers: null, rssKib: rss };
}

/** Runs pgbench with `args` against a contender. */
export async function pgbench(
  contender: Contender,
  { admin, folder, seconds }: Place,
  args: string[],
): Promise<Sample> {
  // pgbench counts from before it connects.
  const duration = Math.max(seconds, args.includes('256') ? MANY_SECONDS : 0);
  const log = ['-l', `--log-prefix=${join(folder, 'latency')}`, `--sampling-rate=${LOG_SHARE}`];
  const [{ now }] = (await admin.query('SELECT clock_timestamp()::text AS now')).rows as [{ now: string }];
  const cpuBefore = contender.pid === null ? 0 : cpuUs(contender.pid);
  const output = await finish(start('pgbench', ['-n', '-T', `${duration}`, ...log, ...args], contender.port, folder));
  const [, tps] = /tps = ([\d.]+)/.exec(output) ?? [];
  const [, count] = /actually processed: (\d+)/.exec(output) ?? [];
  if (tps === undefined || /failed transactions: [1-9]/.test(output)) throw new Error(`pgbench: ${output}`);
  const servers = await admin.query(
    `SELECT count(*)::int AS used FROM pg_stat_activity
      WHERE query_start > $1::timestamptz AND pid <> pg_backend_pid() AND backend_type = 'client backend'`,
    [now],
  );
  const latencies = takeLatencies(folder);
  return {
    value: Number(tps),
    cpuUs: contender.pid === null ? null : (cpuUs(contender.pid) - cpuBefore) / Number(count),
    p50: quantile(latencies, 0.5),
    p99: quantile(latencies, 0.99),
    servers: contender.pid === null ? null : (servers.rows[0] as { used: number }).used,
    rssKib: contender.pid === null ? null : rssKib(contender.pid),
  };
}

/** Latencies in ms from the files that pgbench wrote: the third column, in microseconds. Removes the files. */
function takeLatencies(folder: string): number[] {
  const all: number[] = [];
  for (const name of readdirSync(folder).filter((each) => each.startsWith('latency'))) {
    const path = join(folder, name);
    for (const line of readFileSync(path, 'utf8').split('\n')) {
      const [, , us] = line.split(' ');
      if (us !== undefined) all.push(Number(us) / 1000);
    }
    rmSync(path);
  }
  return all;
}

function start(program: string, args: string[], port: number, folder: string, input: string | null = null) {
  const env = { ...process.env, PGHOST: '127.0.0.1', PGPORT: `${port}`, PGUSER: 'postgres', PGDATABASE: 'postgres' };
  const stdin = input === null ? 'ignore' : openSync(join(folder, input), 'r');
  return spawn(program, args, { env: { ...env, PGPASSWORD: PASSWORD }, stdio: [stdin, 'pipe', 'pipe'] });
}

/** What a program prints, in the end; throws when it fails. Long output is counted, not kept. */
async function finish(child: ChildProcess): Promise<string> {
  let output = '';
  let errors = '';
  child.stdout!.on('data', (chunk: Buffer) => {
    if (output.length < 65_536) output += chunk.toString('latin1', 0, 4096);
  });
  child.stderr!.on('data', (chunk: Buffer) => {
    errors += chunk;
  });
  const [code] = (await once(child, 'close')) as [number];
  if (code !== 0) throw new Error(`${child.spawnfile} failed: ${errors}`);
  return output;
}
