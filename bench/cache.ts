/**
 * `npm run bench -- cache`: what the read cache is worth when it hits, and what it costs when it does not.
 *
 *     npm run bench -- cache [--rounds N] [--seconds N] [--only REGEXP] [--out FOLDER]
 *
 * The one idea: the same pgbench scripts against Postgres, PgBouncer, pgweir without a cache and pgweir with one, in turns. Nineteen reads of
 * twenty ask for one of a thousand keys, one for any of a million, so that hits are 95 % once the cache is warm.
 */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import { startEmbeddedPostgres } from '../src/embedded.ts';
import type { Status } from '../src/ops/status.ts';
import { type Contender, direct, findPgbouncer, PASSWORD, pgbouncer, pgbouncerVersion, pgweir } from './contenders.ts';
import { summarize, table } from './report.ts';
import { type Place, pgbench, type Sample, type Scenario } from './scenarios.ts';

export interface CacheBenchOptions {
  rounds: number;
  seconds: number;
  only: RegExp;
  out: string;
  pgbouncer: string | null;
}

const POOL = 20;
const CLIENTS = 64;
const ROWS = 1_000_000;
const HOT = 1_000;
/** pgbench has no conditional expression but CASE. */
const ID = `\\set any random(1, ${ROWS})
\\set hot random(1, ${HOT})
\\set dice random(1, 20)
\\set id case when :dice = 1 then :any else :hot end
`;
const scripts: Record<string, string> = {
  point: `${ID}SELECT balance FROM points WHERE id = :id;\n`,
  join: `\\set c random(1, 20)
SELECT s.name, count(*), sum(o.amount) FROM orders o JOIN customers c ON c.id = o.customer JOIN shops s ON s.id = o.shop
 WHERE c.city = :c GROUP BY s.name ORDER BY s.name;\n`,
  miss: `\\set id random(1, ${ROWS})\nSELECT balance FROM points WHERE id = :id + ${ROWS};\n`,
};

const SCHEMA = `
  CREATE TABLE points AS SELECT id, id % 1000 AS balance FROM generate_series(1, ${2 * ROWS}) id;
  ALTER TABLE points ADD PRIMARY KEY (id);
  CREATE TABLE shops AS SELECT id, 'shop ' || id AS name FROM generate_series(1, 20) id;
  CREATE TABLE customers AS SELECT id, id % 20 + 1 AS city FROM generate_series(1, 2000) id;
  CREATE TABLE orders AS SELECT id, id % 2000 + 1 AS customer, id % 20 + 1 AS shop, id % 97 AS amount FROM generate_series(1, 20000) id;
  ANALYZE`;

const RULES = {
  sets: { all: [{ tables: ['*'], ttl: '1h', consistency: 'proxy' }] },
  memoryMax: '256MiB',
  verify: '0%',
};

export async function cacheBench(options: CacheBenchOptions): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'pgweir-bench-'));
  const postgres = await startEmbeddedPostgres({ dataDir: null, settings: { fsync: 'off', max_connections: '400' } });
  const admin = new pg.Client({ host: '127.0.0.1', port: postgres.port, user: 'postgres', database: 'postgres' });
  await admin.connect();
  await admin.query(`ALTER ROLE postgres PASSWORD '${PASSWORD}'`);
  await admin.query(SCHEMA);
  for (const [name, text] of Object.entries(scripts)) writeFileSync(join(folder, `${name}.sql`), text);
  const place: Place = { admin, folder, seconds: options.seconds, halfLoad: 0 };
  const path = findPgbouncer(options.pgbouncer);
  if (path === null) console.error('*** SKIPPED: there is no PgBouncer on PATH (--pgbouncer PATH) ***');
  const cached = (mode: string) => ({
    top: { cache: { ...RULES, mode } },
    database: { cache: 'all', control: { user: 'postgres' } },
  });
  const pool = { size: POOL, queueMax: 20_000 };
  const contenders: Contender[] = [
    direct(postgres),
    ...(path === null ? [] : [await pgbouncer(path, postgres, POOL)]),
    await pgweir('pgweir', postgres, pool),
    await pgweir('pgweir observing', postgres, pool, cached('observe')),
    await pgweir('pgweir cached', postgres, pool, cached('on')),
  ];
  const isOld = path !== null && pgbouncerVersion(path)[1] < 21;
  const lines: string[] = [];
  for (const scenario of scenariosOf(folder).filter(({ name }) => options.only.test(name))) {
    const able = contenders.filter(({ name }) => !(scenario.isPrepared && name === 'pgbouncer' && isOld));
    // What is not known yet is not what is measured.
    for (const contender of able) await scenario.run(contender, place);
    const samples = new Map<string, Sample[]>(able.map(({ name }) => [name, []]));
    for (let round = 0; round < options.rounds; round++)
      for (const contender of able) samples.get(contender.name)!.push(await scenario.run(contender, place));
    lines.push(table([summarize(scenario, samples)]));
    console.log(lines.at(-1));
  }
  const { caches } = (await (
    await fetch(`http://127.0.0.1:${contenders.at(-1)!.opsPort}/status.json`)
  ).json()) as Status;
  lines.push(`The cache at the end: ${JSON.stringify(caches[0])}`);
  console.log(lines.at(-1));
  mkdirSync(options.out, { recursive: true });
  writeFileSync(join(options.out, 'cache.md'), `${lines.join('\n')}\n`);
  for (const contender of contenders) await contender.stop();
  await admin.end();
  await postgres.stop();
  rmSync(folder, { recursive: true, force: true });
}

function scenariosOf(folder: string): Scenario[] {
  const scenario = (name: string, script: string, mode: string): Scenario => ({
    name: `${name} ${mode}, ${CLIENTS} clients`,
    unit: 'tps',
    isPrepared: mode === 'prepared',
    run: (contender, place) =>
      pgbench(contender, place, ['-M', mode, '-c', `${CLIENTS}`, '-f', join(folder, `${script}.sql`)]),
  });
  return [
    scenario('point read, 95 % hits,', 'point', 'simple'),
    scenario('point read, 95 % hits,', 'point', 'extended'),
    scenario('point read, 95 % hits,', 'point', 'prepared'),
    scenario('join of three tables,', 'join', 'simple'),
    scenario('misses only,', 'miss', 'simple'),
    scenario('misses only,', 'miss', 'prepared'),
  ];
}
