/**
 * `npm run bench -- cache-soak`: does the cache keep to its memory? Answers of all sizes, writes, definitions that change, and statements that are never
 * asked again, at random, for as long as is asked for.
 *
 *     npm run bench -- cache-soak [--seconds N] [--seed N] [--out FOLDER]
 *
 * The one idea: what is counted is what the proxy says of its answers, and what the system says of the process.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { startEmbeddedPostgres } from '../src/embedded.ts';
import { randomOf } from '../test/fixtures/random.ts';
import { pgweir, rssKib } from './contenders.ts';

export interface CacheSoakOptions {
  seconds: number;
  seed: number;
  out: string;
}

const MEMORY_MIB = 64;
const CLIENTS = 16;
const ROWS = 20_000;
/** Sizes are spread evenly over their logarithms. */
const SIZE_MIN = 50;
const SIZE_MAX = 400_000;
/** Of the statements, of a shape that nobody has asked for and nobody will again. */
const ONCE = 0.1;
const SAMPLE_MS = 1_000;

export async function cacheSoak({ seconds, seed, out }: CacheSoakOptions): Promise<void> {
  const postgres = await startEmbeddedPostgres({ dataDir: null, settings: { fsync: 'off' } });
  const connect = async (port: number) => {
    const client = new pg.Client({ host: '127.0.0.1', port, user: 'postgres', database: 'postgres' });
    await client.connect();
    return client;
  };
  const random = randomOf(seed);
  const admin = await connect(postgres.port);
  await admin.query('CREATE TABLE blobs (id int PRIMARY KEY, size int)');
  await admin.query(
    `INSERT INTO blobs SELECT n, ${SIZE_MIN} * (${SIZE_MAX / SIZE_MIN} ^ ((n * 7919 % ${ROWS}) / ${ROWS}.0)) FROM generate_series(1, ${ROWS}) n`,
  );
  const proxy = await pgweir(
    'pgweir',
    postgres,
    { size: 10 },
    {
      top: {
        cache: {
          mode: 'on',
          memoryMax: `${MEMORY_MIB}MiB`,
          sets: { all: [{ tables: ['*'], ttl: '30s', staleWhileRevalidate: '5s', consistency: 'proxy' }] },
        },
      },
      database: { cache: 'all', control: { user: 'postgres' } },
    },
  );
  const idleKib = rssKib(proxy.pid!);
  const endAt = performance.now() + 1_000 * seconds;
  const counts = { reads: 0, writes: 0, definitions: 0, errors: 0 };
  const work = async (index: number) => {
    const client = await connect(proxy.port);
    while (performance.now() < endAt) {
      const id = 1 + Math.floor(ROWS * random() ** 3);
      const name = random() < ONCE ? `once_${index}_${counts.reads}` : 'body';
      await client
        .query(`SELECT repeat('x', size) AS ${name} FROM blobs WHERE id = ${id}`)
        .catch(() => counts.errors++);
      counts.reads++;
      if (index > 0 || counts.reads % 50 !== 0) continue;
      counts.writes++;
      await client.query(`UPDATE blobs SET size = size WHERE id = ${id}`).catch(() => counts.errors++);
      if (counts.writes % 40 !== 0) continue;
      counts.definitions++;
      await client.query(`CREATE TABLE t_${counts.definitions} (id int)`).catch(() => counts.errors++);
    }
    await client.end();
  };
  const samples: { bytes: number; kib: number }[] = [];
  const watch = async () => {
    for (; performance.now() < endAt; await sleep(SAMPLE_MS)) {
      const text = await (await fetch(`http://127.0.0.1:${proxy.opsPort}/metrics`)).text();
      const bytes = Number(/^pgweir_cache_bytes (\d+)/m.exec(text)?.[1]);
      samples.push({ bytes, kib: rssKib(proxy.pid!) });
    }
  };
  await Promise.all([watch(), ...Array.from({ length: CLIENTS }, (_, index) => work(index))]);
  const most = Math.max(...samples.map(({ bytes }) => bytes)) / 2 ** 20;
  const mib = samples.map(({ kib }) => (kib - idleKib) / 1024);
  const at = (share: number) => mib[Math.floor(share * (mib.length - 1))]!.toFixed(0);
  const text = [
    `${seconds} s, seed ${seed}: ${counts.reads} reads, ${counts.writes} writes, ${counts.definitions} new tables, ${counts.errors} errors`,
    `answers: at most ${most.toFixed(1)} MiB of ${MEMORY_MIB}`,
    `the process, above what it had idle: ${at(0.1)}, ${at(0.5)}, ${at(1)} MiB after a tenth, half and all of the time; at most ${Math.max(...mib).toFixed(0)}`,
  ].join('\n');
  console.log(text);
  mkdirSync(out, { recursive: true });
  writeFileSync(join(out, 'cache-soak.txt'), `${text}\n`);
  await proxy.stop();
  await admin.end();
  await postgres.stop();
  if (most > 1.1 * MEMORY_MIB) process.exitCode = 1;
}
