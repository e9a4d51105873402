/**
 * `npm run bench`: pgweir beside PgBouncer and Postgres itself, in one run on one machine.
 *
 *     npm run bench -- [--quick] [--check] [--only REGEXP] [--rounds N] [--seconds N] [--pgbouncer PATH] [--out FOLDER]
 *
 *     npm run bench -- overload [--seconds N] [--loads 0.5,1,2,4,10] [--spike] [--only REGEXP]     (bench/overload)
 *     npm run bench -- cache [--rounds N] [--seconds N] [--only REGEXP]     (bench/cache)
 *     npm run bench -- cache-soak [--seconds N] [--seed N]     (bench/cache-soak)
 *     npm run bench -- failover [--only REGEXP] [--down S] [--soak S] [--seed N]     (bench/failover)
 *     npm run bench -- incident-a [--seconds N] [--only REGEXP] [--variants REGEXP]     (bench/incident-a)
 *     npm run bench -- incident-b [--compress N] [--hours N] [--variants …] [--fall cliff|taper] [--only REGEXP]   (bench/incident-b)
 *
 * The one idea: only ratios mean anything on a small, noisy machine. Contenders take turns (A B C A B C …), ratios are
 * taken within a round, and what is told is their median and spread. `--check` holds the ratios against
 * bench/baseline.json; `--quick` is for CI and takes less than a minute.
 */
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import pg from 'pg';
import { startEmbeddedPostgres } from '../src/embedded.ts';
import { cacheBench } from './cache.ts';
import { cacheSoak } from './cache-soak.ts';
import { type Contender, direct, findPgbouncer, PASSWORD, pgbouncer, pgbouncerVersion, pgweir } from './contenders.ts';
import { failover } from './failover.ts';
import { incidentA } from './incident-a.ts';
import { incidentB } from './incident-b.ts';
import { overload } from './overload.ts';
import { type Baseline, chart, check, type Result, summarize, table } from './report.ts';
import { type Place, prepareTables, type Sample, type Scenario, scenarios } from './scenarios.ts';

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    quick: { type: 'boolean', default: false },
    check: { type: 'boolean', default: false },
    only: { type: 'string' },
    rounds: { type: 'string' },
    seconds: { type: 'string' },
    pgbouncer: { type: 'string' },
    loads: { type: 'string', default: '0.5,1,2,4,10' },
    spike: { type: 'boolean', default: false },
    compress: { type: 'string', default: '20' },
    hours: { type: 'string', default: '6' },
    variants: { type: 'string' },
    fall: { type: 'string', default: 'cliff' },
    down: { type: 'string', default: '300' },
    soak: { type: 'string', default: '600' },
    seed: { type: 'string', default: '1' },
    out: { type: 'string', default: 'bench/results' },
  },
});
if (positionals[0] === 'incident-b') {
  await incidentB({
    compress: Number(options.compress),
    hours: Number(options.hours),
    variants: (options.variants ?? 'base,lag,dead,cost,bypass,day').split(','),
    only: new RegExp(options.only ?? ''),
    fall: options.fall === 'taper' ? 'taper' : 'cliff',
    out: options.out,
    pgbouncer: options.pgbouncer ?? null,
  });
  process.exit(0);
}
if (positionals[0] === 'failover') {
  await failover({
    only: new RegExp(options.only ?? ''),
    down: Number(options.down),
    soak: Number(options.soak),
    seed: Number(options.seed),
    out: options.out,
    pgbouncer: options.pgbouncer ?? null,
  });
  process.exit(0);
}
if (positionals[0] === 'incident-a') {
  await incidentA({
    seconds: Number(options.seconds ?? 10),
    only: new RegExp(options.only ?? ''),
    variants: new RegExp(options.variants ?? ''),
    out: options.out,
    pgbouncer: options.pgbouncer ?? null,
  });
  process.exit(0);
}
if (positionals[0] === 'cache-soak') {
  await cacheSoak({ seconds: Number(options.seconds ?? 600), seed: Number(options.seed), out: options.out });
  process.exit();
}
if (positionals[0] === 'cache') {
  await cacheBench({
    rounds: Number(options.rounds ?? 3),
    seconds: Number(options.seconds ?? 4),
    only: new RegExp(options.only ?? ''),
    out: options.out,
    pgbouncer: options.pgbouncer ?? null,
  });
  process.exit(0);
}
if (positionals[0] === 'overload') {
  await overload({
    seconds: Number(options.seconds ?? 20),
    loads: options.loads.split(',').map(Number),
    out: options.out,
    pgbouncer: options.pgbouncer ?? null,
    only: new RegExp(options.only ?? ''),
    isSpike: options.spike,
  });
  process.exit(0);
}

const POOL = 16;
const BASELINE = 'bench/baseline.json';
/** How often a scenario whose ratio has fallen is measured again before that is believed: bad seconds pass, bad code stays. */
const REPEATS = 5;
const baseline =
  options.check && existsSync(BASELINE) ? (JSON.parse(readFileSync(BASELINE, 'utf8')) as Baseline) : null;
const rounds = Number(options.rounds ?? (options.quick ? 3 : 5));
const seconds = Number(options.seconds ?? (options.quick ? 1 : 3));

const path = findPgbouncer(options.pgbouncer ?? null);
if (path === null) {
  if (process.env.CI === 'true') throw new Error('PgBouncer is required in CI');
  console.error('*** SKIPPED: there is no PgBouncer on PATH, so nothing is compared with it (--pgbouncer PATH) ***');
}
const isNew = path !== null && pgbouncerVersion(path)[1] >= 21;
if (path !== null && !isNew)
  console.error(
    '*** This PgBouncer is older than 1.21 and cannot do prepared statements: those are compared with direct ***',
  );

const folder = mkdtempSync(join(tmpdir(), 'pgweir-bench-'));
const postgres = await startEmbeddedPostgres({ dataDir: null, settings: { fsync: 'off', max_connections: '400' } });
const admin = new pg.Client({ host: '127.0.0.1', port: postgres.port, user: 'postgres', database: 'postgres' });
await admin.connect();
await admin.query(`ALTER ROLE postgres PASSWORD '${PASSWORD}'`);
const place: Place = { admin, folder, seconds, halfLoad: 2000 };
await prepareTables(place, postgres.port);

const pool = { size: POOL, queueMax: 20_000 };
const open = async (isScram: boolean): Promise<Contender[]> => [
  direct(postgres),
  ...(path === null ? [] : [await pgbouncer(path, postgres, POOL, { isScram })]),
  await pgweir('pgweir off', postgres, { ...pool, share: 'off' }, { isScram }),
  await pgweir('pgweir auto', postgres, { ...pool, share: 'auto' }, { isScram }),
];

const chosen = scenarios.filter(
  ({ name, isQuick }) =>
    (!options.quick || isQuick) && (options.only === undefined || new RegExp(options.only).test(name)),
);
const trusting = await open(false);
const proving = chosen.some(({ isScram }) => isScram) ? await open(true) : [];
const results: Result[] = [];
const failures: string[] = [];
for (const scenario of chosen) {
  const result = await outcome(scenario).catch((thrown: unknown) => {
    failures.push(`${scenario.name}: ${thrown}`);
    console.error(`*** FAILED: ${failures.at(-1)} ***`);
    return null;
  });
  if (result === null) continue;
  results.push(result);
  if (scenario.name === 'select simple, 16 clients')
    place.halfLoad = Math.min(...result.rows.map(({ value }) => value)) / 2;
  console.log(table([results.at(-1)!]));
}

mkdirSync(options.out, { recursive: true });
writeFileSync(join(options.out, 'results.json'), `${JSON.stringify(results, null, 2)}\n`);
writeFileSync(join(options.out, 'results.md'), table(results));
for (const result of results)
  writeFileSync(join(options.out, `${result.scenario.replaceAll(/\W+/g, '-')}.svg`), chart(result));

for (const contender of [...trusting, ...proving]) await contender.stop();
await admin.end();
await postgres.stop();
rmSync(folder, { recursive: true, force: true });

if (failures.length > 0) process.exitCode = 1;
if (baseline !== null) {
  const problems = check(results, baseline);
  for (const problem of problems) console.error(problem);
  console.log(`bench: ${problems.length === 0 ? 'no ratio has fallen' : `${problems.length} ratios have fallen`}`);
  if (problems.length > 0) process.exitCode = 1;
}

/** What one scenario comes to. With a baseline to hold: what has fallen below it is measured again, with all rounds counted. */
async function outcome(scenario: Scenario): Promise<Result> {
  const all = scenario.isScram ? proving : trusting;
  const samples = await measure(scenario, all);
  for (let repeat = 0; repeat < REPEATS && baseline !== null; repeat++) {
    const problems = check([summarize(scenario, samples)], baseline);
    if (problems.length === 0) break;
    console.error(`measured again: ${problems.join('; ')}`);
    for (const [name, more] of await measure(scenario, all)) samples.get(name)!.push(...more);
  }
  return summarize(scenario, samples);
}

/** All rounds of one scenario. */
async function measure(scenario: Scenario, all: Contender[]): Promise<Map<string, Sample[]>> {
  const able = all.filter(
    ({ name, pid }) =>
      !(scenario.isPrepared && name === 'pgbouncer' && !isNew) && !(scenario.isProxyOnly && pid === null),
  );
  const samples = new Map<string, Sample[]>(able.map(({ name }) => [name, []]));
  const times = scenario.isProxyOnly ? 1 : rounds;
  // A round that does not count: code is compiled, the parser's thread started, before anything is compared.
  if (times > 1) for (const contender of able) await scenario.run(contender, place);
  for (let round = 0; round < times; round++) {
    for (const contender of able) samples.get(contender.name)!.push(await scenario.run(contender, place));
  }
  return samples;
}
