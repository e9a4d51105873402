/**
 * `npm run bench -- incident-b`: a backlog is drained at a rate that looks normal, on a database that lives on burst credits
 * (bench/metered). Who runs it dry, and who does not.
 *
 *     npm run bench -- incident-b [--compress N] [--hours N] [--variants base,lag,dead,cost,bypass] [--only REGEXP] [--out FOLDER]
 *
 * Critical work (15 % of the machine, open loop, SLO 100 ms) goes on all the time. At the start a backlog of three times what can be
 * spent of the balance is there, and workers take from it so that the machine is at 70 %, which no alarm of utilisation minds.
 * Time is compressed by making the bucket, the periods and the lag smaller; rates are those of the real machine.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { startEmbeddedPostgres } from '../src/embedded.ts';
import type { Status } from '../src/ops/status.ts';
import { AppPool, calibrate } from './clients.ts';
import { type Contender, direct, findPgbouncer, pgbouncer, pgweir } from './contenders.ts';
import { EARN, type Fault, Meter, VCPU, VCPUS } from './metered.ts';
import { percent, quantile } from './stats.ts';

export interface IncidentOptions {
  /** How many times faster than life. */
  compress: number;
  /** Of the life that is shown. */
  hours: number;
  variants: string[];
  only: RegExp;
  out: string;
  pgbouncer: string | null;
}

interface Variant {
  /** In s of life. */
  lag: number;
  fault: Fault;
  /** By how much statements cost more from a third of the time on. */
  cost: number;
  /** vCPU that bypass the proxy, from a third of the time on. */
  bypass: number;
}

const base: Variant = { lag: 150, fault: 'none', cost: 1, bypass: 0 };
const variants: Record<string, Variant> = {
  base,
  lag: { ...base, lag: 600 },
  dead: { ...base, fault: 'dies' },
  cost: { ...base, cost: 2 },
  bypass: { ...base, bypass: 0.2 },
};

const CAPACITY = 576;
const START = 0.4 * CAPACITY;
const RESERVE = 0.05;
const PERIOD_S = 300;
/** Share of the machine. */
const LIVE = 0.15;
const LOOKS_NORMAL = 0.7;
const CRITICAL = { ms: 2, slo: 100 };
const BATCH_MS = 20;
const WORKERS = 12;
/** vCPU-seconds of the instance for a ms of a whole processor here. */
const VCPU_PER_MS = 1 / 1000 / VCPU;

interface Point {
  /** Hours of life. */
  at: number;
  /** Credits of life. */
  balance: number;
  estimate: number | null;
  lower: number | null;
  exhaustion: number | null;
}

interface Outcome {
  variant: string;
  contender: string;
  least: number;
  /** Hours of life at zero. */
  atZero: number;
  /** Of all critical requests, and of the worst tenth of the time. */
  inTime: number;
  worst: number;
  /** Credits of backlog done, and what the law of conservation allows above the reserve. */
  done: number;
  possible: number;
  /** 95th percentile of |estimate − balance| as a share of the capacity; null: no estimate. */
  error: number | null;
  fitsAtStart: string | null;
  points: Point[];
}

export async function incidentB(options: IncidentOptions): Promise<void> {
  const path = findPgbouncer(options.pgbouncer);
  const outcomes: Outcome[] = [];
  const names = ['direct', ...(path === null ? [] : ['pgbouncer']), 'observe', 'threshold', 'enforce'];
  for (const variant of options.variants) {
    for (const name of names.filter((each) => options.only.test(each))) {
      outcomes.push(await run(variant, name, path, options));
      console.log(line(outcomes.at(-1)!));
    }
  }
  mkdirSync(options.out, { recursive: true });
  writeFileSync(join(options.out, 'incident-b.json'), `${JSON.stringify(outcomes)}\n`);
  const text = `${[HEAD, ...outcomes.map(line)].join('\n')}\n`;
  writeFileSync(join(options.out, 'incident-b.md'), text);
  for (const variant of options.variants)
    writeFileSync(join(options.out, `incident-b-${variant}.svg`), plot(variant, outcomes));
  console.log(`\n${text}`);
}

async function run(
  variantName: string,
  name: string,
  bouncer: string | null,
  options: IncidentOptions,
): Promise<Outcome> {
  const variant = variants[variantName]!;
  const { compress } = options;
  const seconds = (options.hours * 3600) / compress;
  const postgres = await startEmbeddedPostgres({ dataDir: null, settings: { fsync: 'off', max_connections: '200' } });
  const rowsPerMs = await calibrate(postgres);
  const meter = new Meter(postgres, {
    capacity: CAPACITY / compress,
    start: START / compress,
    period: PERIOD_S / compress,
    lag: variant.lag / compress,
  });
  await meter.publish();
  const contender = await contenderOf(name, bouncer, postgres, meter, compress);
  const stopPolling = name === 'direct' || name === 'pgbouncer' ? null : watch(contender.opsPort!);
  const began = performance.now();
  const elapsed = () => (performance.now() - began) / 1000;
  const isLate = () => elapsed() > seconds / 3;
  const sqlOf = (ms: number, cost: number) =>
    `SELECT count(*) FROM generate_series(1, ${Math.round(ms * cost * rowsPerMs)})`;
  let isOver = false;

  // Critical work, open loop.
  const pool = new AppPool(contender.port, 'critical');
  const critical: { at: number; isGood: boolean }[] = [];
  const criticalRate = (LIVE * VCPUS) / (CRITICAL.ms * VCPU_PER_MS);
  const live = (async () => {
    for (let due = 0; !isOver; ) {
      due += -Math.log(1 - Math.random()) / criticalRate;
      const wait = 1000 * (due - elapsed());
      if (wait > 0) await sleep(wait);
      const intended = due;
      void pool.attempt(sqlOf(CRITICAL.ms, 1)).then((isAnswered) => {
        critical.push({ at: intended, isGood: isAnswered && 1000 * (elapsed() - intended) <= CRITICAL.slo });
      });
    }
  })();

  // The backlog: as many jobs as three times what can be spent; workers keep the machine at 70 %, and are polite.
  const jobCredits = (BATCH_MS * VCPU_PER_MS) / 60;
  const backlog = (3 * (START - RESERVE * CAPACITY)) / compress / jobCredits;
  const jobsPerSecond = ((LOOKS_NORMAL - LIVE) * VCPUS) / (BATCH_MS * VCPU_PER_MS);
  let taken = 0;
  let doneCredits = 0;
  const worker = async () => {
    const client = new pg.Client({
      host: '127.0.0.1',
      port: contender.port,
      user: 'postgres',
      database: 'postgres',
      application_name: 'batch',
    });
    client.on('error', () => {});
    await client.connect();
    while (!isOver && taken < backlog) {
      // Never more than the rate allows, and nothing is made up for.
      if (taken > jobsPerSecond * elapsed()) {
        await sleep(10);
        continue;
      }
      taken++;
      const cost = isLate() ? variant.cost : 1;
      try {
        await client.query(sqlOf(BATCH_MS, cost));
        doneCredits += jobCredits * cost;
      } catch (thrown) {
        taken--;
        const wait = Number(/retry after (\d+)/.exec((thrown as { hint?: string }).hint ?? '')?.[1] ?? 1000);
        await sleep(wait);
      }
    }
    await client.end().catch(() => {});
  };
  const workers = Array.from({ length: WORKERS }, () => worker().catch(() => {}));
  const bypassing = (async () => {
    if (variant.bypass === 0) return;
    const client = new pg.Client({ host: '127.0.0.1', port: postgres.port, user: 'postgres', database: 'postgres' });
    client.on('error', () => {});
    await client.connect();
    const every = (BATCH_MS * VCPU_PER_MS) / variant.bypass;
    while (!isOver) {
      const since = elapsed();
      if (isLate()) await client.query(sqlOf(BATCH_MS, 1)).catch(() => {});
      await sleep(Math.max(1, 1000 * (every - (elapsed() - since))));
    }
    await client.end();
  })();

  while (elapsed() < seconds) {
    await sleep(200);
    if (variant.fault !== 'none' && elapsed() > seconds / 4) meter.fault = variant.fault;
    if (name === 'threshold') await threshold(contender.opsPort!, meter.published?.value ?? null, CAPACITY / compress);
  }
  isOver = true;
  const polled = (await stopPolling?.()) ?? [];
  const points = meter.log.map(({ at, balance }): Point => {
    const near = polled.find((each) => Math.abs(each.at - at - meter.beganAt) < 0.15);
    return {
      at: (at * compress) / 3600,
      balance: balance * compress,
      estimate: near === undefined ? null : near.balance,
      lower: near === undefined ? null : near.lower,
      exhaustion: near === undefined ? null : near.exhaustion,
    };
  });
  await Promise.race([Promise.all([live, ...workers, bypassing]), sleep(5_000)]);
  pool.close();
  await contender.stop();
  await postgres.stop('immediate');
  await meter.close();
  const errors = points
    .filter(({ estimate }) => estimate !== null)
    .map((each) => Math.abs(each.estimate! * compress - each.balance));
  const windows = Array.from({ length: 10 }, (_, at) =>
    critical.filter((each) => Math.floor((10 * each.at) / seconds) === at),
  ).filter((all) => all.length > 0);
  const share = (all: { isGood: boolean }[]) => all.filter(({ isGood }) => isGood).length / Math.max(1, all.length);
  const spent = (LIVE * VCPUS * options.hours + (variant.bypass * options.hours * 2) / 3) * 60;
  return {
    variant: variantName,
    contender: name,
    least: Math.min(...points.map(({ balance }) => balance)),
    atZero: (points.filter(({ balance }) => balance < 0.5).length / points.length) * options.hours,
    inTime: share(critical),
    worst: Math.min(...windows.map(share)),
    done: doneCredits * compress,
    possible: Math.min(backlog * jobCredits * compress, START - RESERVE * CAPACITY + EARN * 60 * options.hours - spent),
    error: errors.length === 0 ? null : (quantile(errors, 0.95) ?? 0) / CAPACITY,
    fitsAtStart: polled.find(({ fits }) => fits !== '')?.fits ?? null,
    points,
  };
}

async function contenderOf(
  name: string,
  bouncer: string | null,
  postgres: Awaited<ReturnType<typeof startEmbeddedPostgres>>,
  meter: Meter,
  compress: number,
): Promise<Contender> {
  if (name === 'direct') return direct(postgres);
  if (name === 'pgbouncer') return pgbouncer(bouncer!, postgres, 20);
  const every = `${Math.max(100, Math.round((1000 * PERIOD_S) / compress / 5))}ms`;
  const ledger = {
    metric: {
      source: 'prometheus',
      url: meter.url,
      query: 'aws_rds_cpucredit_balance_average{dbinstance_identifier="db-1"}',
      every,
    },
    load: {
      source: 'http',
      url: `${meter.url}/load.json`,
      value: '/load',
      time: '/at',
      every: `${Math.round((1000 * PERIOD_S) / compress)}ms`,
    },
    unit: 'cpu-credits',
    capacity: CAPACITY / compress,
    earnPerHour: EARN * 60,
    vcpus: VCPUS,
    reserve: '5%',
    horizon: `${Math.round(3600 / compress)}s`,
    mode: name === 'enforce' ? 'enforce' : 'observe',
  };
  return pgweir(
    `pgweir ${name}`,
    postgres,
    { size: 30 },
    {
      top: {
        admission: { mode: name === 'observe' ? 'observe' : 'enforce' },
        ledgers: { cpu: ledger },
        classes: [
          { name: 'critical', priority: 'critical', match: [{ application: 'critical' }] },
          { name: 'batch', priority: 'batch', match: [{ application: 'batch' }], queue: { waitMax: '1s' } },
        ],
      },
      database: { ledgers: ['cpu'] },
    },
  );
}

/** The ablation: what everybody does first. Below a fifth of the raw metric batch work is switched off, above it is on. */
async function threshold(opsPort: number, value: number | null, capacity: number): Promise<void> {
  if (value === null) return;
  await fetch(`http://127.0.0.1:${opsPort}/switches/batch`, {
    method: 'POST',
    headers: {
      'content-type': 'application/json',
      authorization: `Basic ${Buffer.from('postgres:').toString('base64')}`,
    },
    body: JSON.stringify({ state: value < 0.2 * capacity ? 'off' : 'on' }),
  });
}

interface Polled {
  /** performance.now(), in s. */
  at: number;
  balance: number;
  lower: number;
  exhaustion: number | null;
  fits: string;
}

/** Asks the proxy how it sees its ledger, twice a second. */
function watch(opsPort: number): () => Promise<Polled[]> {
  const polled: Polled[] = [];
  let isOver = false;
  const asking = (async () => {
    while (!isOver) {
      const at = performance.now() / 1000;
      const status = (await (await fetch(`http://127.0.0.1:${opsPort}/status.json`)).json()) as Status;
      const [ledger] = status.ledgers;
      if (ledger !== undefined && ledger.balance !== null)
        polled.push({
          at,
          balance: Number(ledger.balance),
          lower: Number(ledger.lower),
          exhaustion: ledger.exhaustion_s === null ? null : Number(ledger.exhaustion_s),
          fits: ledger.missing === '' ? String(ledger.fits) : '',
        });
      await sleep(500);
    }
  })().catch(() => {});
  return async () => {
    isOver = true;
    await asking;
    return polled;
  };
}

const HEAD = `| variant | contender | least balance | hours at 0 | critical in time | in its worst tenth | backlog done, of possible | error p95 | fits at the start |
|---|---|---|---|---|---|---|---|---|`;

function line({
  variant,
  contender,
  least,
  atZero,
  inTime,
  worst,
  done,
  possible,
  error,
  fitsAtStart,
}: Outcome): string {
  const cells = [
    variant,
    contender,
    `${least.toFixed(1)} (reserve ${(RESERVE * CAPACITY).toFixed(1)})`,
    atZero.toFixed(2),
    percent(inTime),
    percent(worst),
    `${done.toFixed(0)} of ${possible.toFixed(0)} (${percent(done / possible)})`,
    error === null ? '' : percent(error),
    fitsAtStart ?? '',
  ];
  return `| ${cells.join(' | ')} |`;
}

const COLORS: Record<string, string> = {
  direct: '#8a8f93',
  pgbouncer: '#c79a3b',
  observe: '#7b68a6',
  threshold: '#a3552f',
  enforce: '#2a7f9e',
};

/** The balance of all contenders of one variant over time. */
function plot(variant: string, outcomes: readonly Outcome[]): string {
  const own = outcomes.filter((each) => each.variant === variant);
  const [width, height, left, bottom] = [640, 320, 60, 40];
  const last = Math.max(...own.flatMap(({ points }) => points.map(({ at }) => at)), 1);
  const most = 1.1 * START;
  const x = (at: number) => left + (at / last) * (width - left - 130);
  const y = (balance: number) => height - bottom - (balance / most) * (height - bottom - 40);
  const lines = own.map(({ contender, points }, index) => {
    const some = points.filter((_, at) => at % 20 === 0);
    const path = some.map(({ at, balance }) => `${x(at).toFixed(1)},${y(balance).toFixed(1)}`).join(' ');
    return `<polyline fill="none" stroke="${COLORS[contender]}" stroke-width="2" points="${path}"/>
<text x="${width - 120}" y="${60 + 20 * index}" fill="${COLORS[contender]}">${contender}</text>`;
  });
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" font-family="sans-serif" font-size="13">
<title>Balance of burst credits over time, by contender</title>
<text x="8" y="20" font-size="15">Credits left over hours, while a backlog is drained (${variant})</text>
<line x1="${left}" y1="${y(RESERVE * CAPACITY)}" x2="${width - 130}" y2="${y(RESERVE * CAPACITY)}" stroke="#c66" stroke-dasharray="4"/>
<text x="${left - 8}" y="${y(RESERVE * CAPACITY) + 4}" text-anchor="end">reserve</text>
<line x1="${left}" y1="${y(0)}" x2="${width - 130}" y2="${y(0)}" stroke="#888"/>
<text x="${left - 8}" y="${y(0) + 4}" text-anchor="end">0</text>
<text x="${x(last)}" y="${height - 15}" text-anchor="end">${last.toFixed(1)} h</text>
${lines.join('\n')}
</svg>
`;
}
