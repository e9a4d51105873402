/**
 * `npm run bench -- overload`: what of the work is still of use when more is asked for than the database can do. Postgres
 * itself, PgBouncer as it comes and tuned (pool of 2, wait of 2 s), and pgweir, in turns before one Postgres that has half a
 * processor.
 *
 *     npm run bench -- overload [--seconds N] [--loads 0.5,1,2,4,10] [--spike] [--only REGEXP] [--out FOLDER]
 *
 * Open loop: requests come when they come (Poisson), and their latency counts from when they were meant to start. Clients
 * are rude: an attempt that takes 2 s is given up, every error costs its connection (as in pg-pool), and each is followed
 * at once by another attempt, three times. What counts is goodput: processor time of requests that were answered within
 * their objective (SLO), per second.
 *
 * The database is kept to its share by a control group (cpu); generator and proxy must stay below 60 % of a core each, or
 * the run is void.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { startEmbeddedPostgres } from '../src/embedded.ts';
import type { Status } from '../src/ops/status.ts';
import { AppPool, calibrate, TIMEOUT_MS } from './clients.ts';
import { type Contender, cpuUs, direct, findPgbouncer, pgbouncer, pgweir } from './contenders.ts';
import { svg } from './plot.ts';
import { type Quota, quotaOf } from './quota.ts';
import { percent, quantile } from './stats.ts';

interface Kind {
  name: string;
  /** Of all requests, by number; processor ms of one; within how many ms its answer is of use. */
  share: number;
  cost: number;
  slo: number;
}

/** The mix of the issue: critical work is less than 3 % of the cost. */
const kinds: readonly Kind[] = [
  { name: 'critical', share: 0.1, cost: 2, slo: 100 },
  { name: 'normal', share: 0.2, cost: 6, slo: 300 },
  { name: 'batch', share: 0.4, cost: 20, slo: 2_000 },
  { name: 'deferrable', share: 0.3, cost: 50, slo: 10_000 },
];
const MEAN_COST = kinds.reduce((sum, { share, cost }) => sum + share * cost, 0);
/** What each is promised of the limit: the short ones a server at once, although long ones hold theirs. */
const floors: Record<string, string> = { critical: '50%', normal: '25%', batch: '5%', deferrable: '2%' };
/** What the database may use of a processor. */
const QUOTA = 0.5;
const RETRIES = 3;
const WARM_S = 4;
const BUSY_MAX = 0.6;
/** A generator that is later than this has measured itself (p99). */
const LATE_MAX_MS = 10;

interface Outcome {
  contender: string;
  load: number;
  /** Processor seconds of useful work per second. */
  goodput: number;
  /** Requests per second that were of use, and their share of all, by kind. */
  useful: number;
  shares: Record<string, number>;
  p99Critical: number;
  /** Of a core: the proxy and this process. */
  proxyBusy: number;
  generatorBusy: number;
  /** Of what it may use. */
  databaseBusy: number;
  /** Attempts that were not answered. */
  failures: number;
  lateMs: number;
}

/** The database: how much work a ms of a whole processor is, and what keeps it to its share. */
interface Rig {
  rowsPerMs: number;
  quota: Quota;
}

export interface OverloadOptions {
  seconds: number;
  loads: number[];
  out: string;
  pgbouncer: string | null;
  /** Contenders. */
  only: RegExp;
  /** Instead of loads: a spike. */
  isSpike: boolean;
}

/** Runs everything, prints and writes the results. */
export async function overload(options: OverloadOptions) {
  const path = findPgbouncer(options.pgbouncer);
  if (path === null) console.error('*** SKIPPED: there is no PgBouncer on PATH (--pgbouncer PATH) ***');
  const postgres = await startEmbeddedPostgres({ dataDir: null, settings: { fsync: 'off', max_connections: '400' } });
  const rows = await calibrate(postgres);
  const quota = quotaOf(postgres);
  quota.set(QUOTA);
  const rig = { rowsPerMs: rows, quota };
  const classes = kinds.map(({ name, slo }) => ({
    name,
    priority: name,
    match: [{ application: name }],
    deadline: `${Math.min(slo, TIMEOUT_MS)}ms`,
    floor: floors[name],
  }));
  const all: Contender[] = [
    direct(postgres),
    ...(path === null
      ? []
      : [
          { ...(await pgbouncer(path, postgres, 20)), name: 'pgbouncer' },
          { ...(await pgbouncer(path, postgres, 2, { waitSeconds: 2 })), name: 'pgbouncer tuned' },
        ]),
    await pgweir(
      'pgweir',
      postgres,
      { size: 20, queueMax: 20_000 },
      {
        top: { admission: { mode: 'enforce' }, limit: { mode: 'adaptive', min: 1, max: 20 }, classes },
      },
    ),
  ];
  const contenders = all.filter(({ name }) => options.only.test(name));
  mkdirSync(options.out, { recursive: true });
  if (options.isSpike) {
    const lines = [spikeHead];
    for (const contender of contenders) {
      lines.push(await spike(contender, rig));
      console.log(lines.at(-1));
    }
    writeFileSync(join(options.out, 'spike.md'), `${lines.join('\n')}\n`);
    console.log(`\n${lines.join('\n')}`);
  } else await sweep(contenders, options, rig);
  for (const contender of all) await contender.stop();
  await postgres.stop();
  await quota.close();
}

async function sweep(contenders: Contender[], { loads, seconds, out }: OverloadOptions, rig: Rig): Promise<void> {
  const outcomes: Outcome[] = [];
  for (const load of loads) {
    for (const contender of contenders) {
      outcomes.push(await run(contender, load, seconds, rig));
      console.log(line(outcomes.at(-1)!), await shedBy(contender));
    }
  }
  writeFileSync(join(out, 'overload.json'), `${JSON.stringify(outcomes, null, 2)}\n`);
  writeFileSync(join(out, 'overload.md'), table(outcomes));
  writeFileSync(join(out, 'overload.svg'), plot(outcomes));
  console.log(`\n${table(outcomes)}`);
}

/** What pgweir has refused since its start, by class and reason. */
async function shedBy({ opsPort }: Contender): Promise<string> {
  if (opsPort === undefined) return '';
  const { classes } = (await (await fetch(`http://127.0.0.1:${opsPort}/status.json`)).json()) as Status;
  const found = classes.flatMap(({ name, shed }) =>
    Object.entries(shed).flatMap(([reason, count]) => (count > 0 ? [`${name} ${reason} ${count}`] : [])),
  );
  return `refused: ${found.join(', ') || 'nothing'}`;
}

// --- One run ----------------------------------------------------------------------------------------------------

/** One request, when it was meant to start (ms after the start of the run), and whether it was answered in time. */
interface Asked {
  kind: Kind;
  at: number;
  tookMs: number;
  isUseful: boolean;
}

interface Driven {
  asked: Asked[];
  /** Attempts that were not answered. */
  failures: number;
  /** p99 of how late the generator was. */
  lateMs: number;
  /** Of a core, from `from` on. */
  proxyBusy: number;
  generatorBusy: number;
  /** Of what it may use. */
  databaseBusy: number;
}

/** Offers `loadAt` (times the capacity, by ms after the start) for `ms`; processors are looked at from `from` on. */
async function drive(
  contender: Contender,
  loadAt: (ms: number) => number,
  ms: number,
  from: number,
  { rowsPerMs, quota }: Rig,
): Promise<Driven> {
  const pools = new Map(kinds.map(({ name }) => [name, new AppPool(contender.port, name)]));
  const asked: Asked[] = [];
  const lateness: number[] = [];
  const started = performance.now();
  const request = async (kind: Kind, at: number) => {
    const pool = pools.get(kind.name)!;
    const rows = Math.round(kind.cost * rowsPerMs);
    const id = 1 + Math.floor(Math.random() * 10_000);
    const sql =
      kind.name === 'critical'
        ? `WITH done AS (UPDATE items SET touched = touched + 1 WHERE id = ${id} RETURNING id) SELECT count(*) FROM generate_series(1, ${rows})`
        : `SELECT count(*) FROM generate_series(1, ${rows})`;
    const mine: Asked = { kind, at, tookMs: TIMEOUT_MS * (RETRIES + 1), isUseful: false };
    asked.push(mine);
    let isAnswered = false;
    for (let tries = 0; tries <= RETRIES && !isAnswered && !pool.isClosed; tries++)
      isAnswered = await pool.attempt(sql);
    if (!isAnswered) return;
    mine.tookMs = performance.now() - started - at;
    mine.isUseful = mine.tookMs <= kind.slo;
  };
  const cpu = () => ({
    proxy: contender.pid === null ? 0 : cpuUs(contender.pid),
    self: process.cpuUsage(),
    databaseNs: quota.usedNs,
  });
  let before = cpu();
  let isWarm = false;
  for (let due = 0; ; ) {
    due += (-Math.log(1 - Math.random()) * MEAN_COST) / (loadAt(due) * QUOTA);
    if (due >= ms) break;
    const wait = due - (performance.now() - started);
    if (wait > 0) await sleep(wait);
    if (!isWarm && due >= from) {
      isWarm = true;
      before = cpu();
    }
    if (isWarm) lateness.push(performance.now() - started - due);
    void request(pick(Math.random()), due);
  }
  const after = cpu();
  const self = after.self.user + after.self.system - before.self.user - before.self.system;
  // What was meant to start in time may yet be answered in time.
  await sleep(Math.max(...kinds.map(({ slo }) => slo)) > 5_000 ? 5_000 : 2_000);
  for (const pool of pools.values()) pool.close();
  await sleep(3_000); // What Postgres still runs for nobody is not to burden the next.
  return {
    asked,
    failures: [...pools.values()].reduce((sum, { failures }) => sum + failures, 0),
    lateMs: quantile(lateness, 0.99) ?? 0,
    proxyBusy: (after.proxy - before.proxy) / 1000 / (ms - from),
    generatorBusy: self / 1000 / (ms - from),
    databaseBusy: (after.databaseNs - before.databaseNs) / 1e6 / (ms - from) / QUOTA,
  };
}

/** One load for some seconds. */
async function run(contender: Contender, load: number, seconds: number, rig: Rig): Promise<Outcome> {
  const from = WARM_S * 1000;
  const { asked, ...busy } = await drive(contender, () => load, from + seconds * 1000, from, rig);
  const measured = asked.filter(({ at }) => at >= from);
  const useful = measured.filter(({ isUseful }) => isUseful);
  const critical = measured.filter(({ kind }) => kind === kinds[0]).map(({ tookMs }) => tookMs);
  const countOf = (all: Asked[], of: Kind) => all.filter(({ kind }) => kind === of).length;
  return {
    contender: contender.name,
    load,
    goodput: workOf(useful) / seconds,
    useful: useful.length / seconds,
    shares: Object.fromEntries(kinds.map((of) => [of.name, countOf(useful, of) / Math.max(1, countOf(measured, of))])),
    p99Critical: quantile(critical, 0.99) ?? 0,
    ...busy,
  };
}

/** Processor seconds. */
function workOf(asked: readonly Asked[]): number {
  return asked.reduce((sum, { kind }) => sum + kind.cost / 1000, 0);
}

const SPIKE = { calmS: 20, spikeS: 30, afterS: 40, calm: 0.7, spike: 10 };
/** Windows that are told, in seconds after the end of the spike; before it, and in it, come first. */
const WINDOWS = [
  [-SPIKE.spikeS - SPIKE.calmS + WARM_S, -SPIKE.spikeS],
  [-SPIKE.spikeS, 0],
  [0, 5],
  [5, 10],
  [10, 20],
  [20, SPIKE.afterS],
] as const;

/** Ten times the capacity for half a minute amid a calm load: which share of the work is in time, before, in it and after. */
async function spike(contender: Contender, rig: Rig): Promise<string> {
  const { calmS, spikeS, afterS, calm, spike: high } = SPIKE;
  const end = (calmS + spikeS) * 1000;
  const loadAt = (ms: number) => (ms >= calmS * 1000 && ms < end ? high : calm);
  const { asked } = await drive(contender, loadAt, end + afterS * 1000, 0, rig);
  const cells = WINDOWS.map(([from, to]) => {
    const here = asked.filter(({ at }) => at >= end + from * 1000 && at < end + to * 1000);
    return percent(workOf(here.filter(({ isUseful }) => isUseful)) / Math.max(1e-9, workOf(here)));
  });
  return `| ${[contender.name, ...cells].join(' | ')} |`;
}

const spikeHead = `| contender | ${SPIKE.calm}× before | ${SPIKE.spike}×, ${SPIKE.spikeS} s | ${WINDOWS.slice(2)
  .map(([from, to]) => `${from}–${to} s after`)
  .join(' | ')} |
|---|${'---|'.repeat(WINDOWS.length)}`;

function pick(dice: number): Kind {
  let left = dice;
  for (const kind of kinds) {
    left -= kind.share;
    if (left <= 0) return kind;
  }
  return kinds[0]!;
}

// --- Telling ----------------------------------------------------------------------------------------------------

function line({
  contender,
  load,
  goodput,
  shares,
  proxyBusy,
  generatorBusy,
  databaseBusy,
  failures,
  lateMs,
}: Outcome): string {
  const kindsText = kinds.map(({ name }) => `${name} ${percent(shares[name]!)}`).join(', ');
  return `${load}× ${contender.padEnd(16)} goodput ${goodput.toFixed(3)}; ${kindsText}; proxy ${percent(proxyBusy)}, generator ${percent(generatorBusy)}, database ${percent(databaseBusy)}, ${failures} attempts failed, late ${lateMs.toFixed(1)} ms`;
}

function table(outcomes: readonly Outcome[]): string {
  const rows = outcomes.map((each) => {
    const isVoid = each.proxyBusy > BUSY_MAX || each.generatorBusy > BUSY_MAX || each.lateMs > LATE_MAX_MS;
    const cells = [
      `${each.load}×`,
      each.contender,
      each.goodput.toFixed(3),
      each.useful.toFixed(1),
      ...kinds.map(({ name }) => percent(each.shares[name]!)),
      each.p99Critical.toFixed(0),
      isVoid ? `void: proxy ${percent(each.proxyBusy)}, generator ${percent(each.generatorBusy)}` : 'valid',
    ];
    return `| ${cells.join(' | ')} |`;
  });
  return `| load | contender | goodput, CPU s/s | requests/s in time | ${kinds.map(({ name }) => name).join(' | ')} | p99 critical, ms | run |
|---|---|---|---|${'---|'.repeat(kinds.length)}---|---|
${rows.join('\n')}
`;
}

/** Goodput over load, one line for each contender. */
function plot(outcomes: readonly Outcome[]): string {
  const loads = [...new Set(outcomes.map(({ load }) => load))];
  const names = [...new Set(outcomes.map(({ contender }) => contender))];
  return svg('Goodput over load, by contender', [
    {
      title: `Useful work (CPU seconds per second) over offered load; the database has ${QUOTA}`,
      series: names.map((name) => ({
        name,
        points: outcomes
          .filter(({ contender }) => contender === name)
          .map(({ load, goodput }) => [loads.indexOf(load), goodput] as const),
      })),
      right: Math.max(1, loads.length - 1),
      top: QUOTA,
      rules: [QUOTA, 0].map((value) => ({ y: value, text: String(value) })),
      marks: loads.map((load, index) => ({ x: index, text: `${load}×` })),
    },
  ]);
}
