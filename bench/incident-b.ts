/**
 * `npm run bench -- incident-b`: a backlog is drained at a rate that looks normal, on databases that live on burst credits
 * (bench/metered). Which of them run dry, and which do not.
 *
 *     npm run bench -- incident-b [--compress N] [--hours N] [--variants base,lag,dead,cost,bypass,day,full] [--only REGEXP]
 *                                 [--fall cliff|taper] [--out FOLDER]
 *
 * All contenders of a variant run at the same time, each before a Postgres of its own. Critical work (15 % of the machine, open
 * loop, SLO 100 ms) goes on all the time; a backlog of three times what can be spent is there from the start, and workers take from
 * it so that the machine is at 70 %, which no alarm of utilisation minds. In `day` there is no backlog, but a day of 70 % of
 * what is earned, in bursts; `full` begins at 90 %. Times are of life; it runs `compress` times faster here, for pgweir too (`serve --pace`).
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { type EmbeddedPostgres, startEmbeddedPostgres } from '../src/embedded.ts';
import type { Status } from '../src/ops/status.ts';
import { AppPool, calibrate } from './clients.ts';
import { type Contender, direct, findPgbouncer, pgbouncer, pgweir } from './contenders.ts';
import { type Outcome, report } from './incident-report.ts';
import { EARN, type Fault, Meter, VCPU, VCPUS } from './metered.ts';
import { median, quantile } from './stats.ts';

export interface IncidentOptions {
  /** How many times faster than life. */
  compress: number;
  /** Of the life that is shown; a `day` has 24. */
  hours: number;
  variants: string[];
  only: RegExp;
  fall: 'cliff' | 'taper';
  out: string;
  pgbouncer: string | null;
}

interface Variant {
  /** In s. */
  lag: number;
  source: 'prometheus' | 'cloudwatch';
  /** From a quarter of the time on. */
  fault: Fault;
  /** By how much statements cost more from a third of the time on. */
  cost: number;
  /** vCPU that bypass the proxy, from a third of the time on. */
  bypass: number;
  isDay: boolean;
  /** Credits. */
  start: number;
  /** Of life, unless the options say. */
  hours?: number;
}

const CAPACITY = 576;
const base: Variant = {
  lag: 150,
  source: 'prometheus',
  fault: 'none',
  cost: 1,
  bypass: 0,
  isDay: false,
  start: 0.4 * CAPACITY,
};
const variants: Record<string, Variant> = {
  base,
  lag: { ...base, lag: 600, source: 'cloudwatch' },
  dead: { ...base, fault: 'dies' },
  cost: { ...base, cost: 2 },
  bypass: { ...base, bypass: 0.2 },
  day: { ...base, isDay: true },
  full: { ...base, start: 0.9 * CAPACITY, hours: 11 },
};

const RESERVE = 0.05 * CAPACITY;
const PERIOD_S = 300;
/** Of the machine: critical work, and what looks normal. */
const LIVE = 0.15;
const LOOKS_NORMAL = 0.7;
const SLO_MS = 100;
const WORKERS = 12;
/** Processor time of this machine that a critical statement and a job of the backlog take, more or less, in ms. */
const CRITICAL_MS = 2;
const JOB_MS = 20;
/** A day: vCPU of critical work, and of jobs in the first tenth of each hour and in the rest of it. 70 % of what is earned. */
const DAY = { critical: 0.1, burst: 1.2, calm: 0.067 };
/** The ablation switches batch work off below the first, and on above the second. */
const THRESHOLDS = [0.1 * CAPACITY, 0.2 * CAPACITY] as const;

/** Who takes part. Direct and PgBouncer do not see the metric: what happens to it makes no difference to them. */
function contendersOf({ fault, isDay, lag }: Variant, hasBouncer: boolean): string[] {
  if (isDay) return ['observe', 'enforce'];
  const others = ['observe', 'threshold', 'enforce'];
  if (fault !== 'none' || lag !== base.lag) return others;
  return ['direct', ...(hasBouncer ? ['pgbouncer'] : []), ...others];
}

export async function incidentB(options: IncidentOptions): Promise<void> {
  const path = findPgbouncer(options.pgbouncer);
  if (path === null) console.error('*** SKIPPED: there is no PgBouncer on PATH (--pgbouncer PATH) ***');
  mkdirSync(options.out, { recursive: true });
  const outcomes: Outcome[] = [];
  for (const name of options.variants) {
    const names = contendersOf(variants[name]!, path !== null).filter((each) => options.only.test(each));
    const stages: Stage[] = [];
    // One after another, so that each is alone when it is measured what its statements cost.
    for (const each of names) stages.push(await Stage.open(name, each, path, options));
    outcomes.push(...(await Promise.all(stages.map((stage) => stage.play()))));
    // After each variant: what there is is not lost.
    const { table, chart } = report(outcomes, RESERVE);
    writeFileSync(join(options.out, 'incident-b.json'), `${JSON.stringify(outcomes)}\n`);
    writeFileSync(join(options.out, 'incident-b.md'), table);
    writeFileSync(join(options.out, 'incident-b.svg'), chart);
    console.log(`\n${stages[0]?.meter.how ?? ''}\n${table}`);
  }
}

/** A contender before its own database, and its clients. */
class Stage {
  readonly meter: Meter;
  readonly #variantName: string;
  readonly #variant: Variant;
  readonly #name: string;
  readonly #hours: number;
  readonly #postgres: EmbeddedPostgres;
  readonly #contender: Contender;
  readonly #rowsPerMs: number;
  /** vCPU-seconds that a critical statement and a job cost, as measured. */
  #cost = { critical: 0, job: 0 };
  #isOver = false;
  readonly #critical: { at: number; isGood: boolean }[] = [];
  /** vCPU-seconds of jobs that were done, and of all that was asked for, by what it should cost. */
  #doneCost = 0;
  #allCost = 0;
  #refused = 0;
  /** By how much arrivals were late, in ms. */
  readonly #late: number[] = [];

  private constructor(
    variantName: string,
    name: string,
    options: IncidentOptions,
    {
      postgres,
      meter,
      contender,
      rowsPerMs,
    }: { postgres: EmbeddedPostgres; meter: Meter; contender: Contender; rowsPerMs: number },
  ) {
    this.#variantName = variantName;
    this.#variant = variants[variantName]!;
    this.#name = name;
    this.#hours = this.#variant.isDay ? 24 : (this.#variant.hours ?? options.hours);
    this.#postgres = postgres;
    this.meter = meter;
    this.#contender = contender;
    this.#rowsPerMs = rowsPerMs;
  }

  static async open(variantName: string, name: string, bouncer: string | null, options: IncidentOptions) {
    const { lag, source, start, isDay } = variants[variantName]!;
    const { compress: pace, fall } = options;
    const postgres = await startEmbeddedPostgres({ dataDir: null, settings: { fsync: 'off', max_connections: '200' } });
    const rowsPerMs = await calibrate(postgres);
    const meter = new Meter(postgres, { pace, capacity: CAPACITY, start, period: PERIOD_S, lag, fall });
    await meter.listen();
    const contender = await contenderOf(name, bouncer, postgres, meter, { pace, source, isDay });
    const stage = new Stage(variantName, name, options, { postgres, meter, contender, rowsPerMs });
    await stage.#measure();
    return stage;
  }

  /** On a vCPU that is slower than a processor of this machine a statement takes as much longer. */
  #sql(ms: number, name: 'critical' | 'job'): string {
    const rows = Math.round(ms * this.#rowsPerMs);
    // Of a shape of its own: what is quick and what is slow are different statements.
    return `SELECT count(*) AS ${name}, pg_sleep(${((ms / 1000) * (1 / VCPU - 1)).toFixed(5)}) FROM generate_series(1, ${rows})`;
  }

  /** What statements cost with all that comes with them. */
  async #measure(): Promise<void> {
    const client = new pg.Client({ ...LOGIN, port: this.#postgres.port });
    await client.connect();
    const costOf = async (sql: string, times: number) => {
      const before = this.meter.usedMs;
      for (let n = 0; n < times; n++) await client.query(sql);
      return (this.meter.usedMs - before) / 1000 / VCPU / times;
    };
    const laps: { critical: number; job: number }[] = [];
    for (let lap = 0; lap < 5; lap++)
      laps.push({
        critical: await costOf(this.#sql(CRITICAL_MS, 'critical'), 30),
        job: await costOf(this.#sql(JOB_MS, 'job'), 8),
      });
    this.#cost = { critical: median(laps.map((lap) => lap.critical)), job: median(laps.map((lap) => lap.job)) };
    await client.end();
  }

  async play(): Promise<Outcome> {
    const { meter } = this;
    const end = 3600 * this.#hours;
    const pool = new AppPool(this.#contender.port, 'critical');
    // Its connections are there when it begins.
    await Promise.all(Array.from({ length: 20 }, () => pool.attempt(this.#sql(CRITICAL_MS, 'critical'))));
    meter.start();
    const asked = this.#contender.opsPort === undefined ? null : watch(this.#contender.opsPort, meter);
    const work = [
      this.#arrive(
        () => (this.#variant.isDay ? DAY.critical : LIVE * VCPUS) / this.#cost.critical,
        (at) => {
          const since = performance.now();
          return pool.attempt(this.#sql(CRITICAL_MS, 'critical')).then((isAnswered) => {
            if (isAnswered) this.#allCost += this.#cost.critical;
            this.#critical.push({ at, isGood: isAnswered && performance.now() - since <= SLO_MS });
          });
        },
      ),
      ...(this.#variant.isDay ? [this.#workInBursts()] : this.#drain(end)),
      this.#bypass(end),
    ];
    let isOff = false;
    while (meter.now < end) {
      await sleep(200);
      if (meter.now > end / 4) meter.fault = this.#variant.fault;
      if (this.#name !== 'threshold') continue;
      const balance = meter.published?.balance ?? this.#variant.start;
      const isToBeOff: boolean = balance < THRESHOLDS[isOff ? 1 : 0];
      if (isToBeOff !== isOff) await setSwitch(this.#contender.opsPort!, isToBeOff ? 'off' : 'on');
      isOff = isToBeOff;
    }
    this.#isOver = true;
    const views = (await asked?.()) ?? [];
    const outcome = this.#outcome(end, views);
    meter.stop();
    await Promise.race([Promise.all(work), sleep(5_000)]);
    pool.close();
    await this.#contender.stop();
    await this.#postgres.stop('immediate');
    await meter.close();
    return outcome;
  }

  /** Open loop: so many arrivals per second, whatever becomes of them. */
  async #arrive(rate: () => number, attempt: (at: number) => Promise<void>): Promise<void> {
    for (let due = performance.now(); !this.#isOver; ) {
      due += (-Math.log(1 - Math.random()) / rate()) * 1000;
      const wait = due - performance.now();
      if (wait > 0) await sleep(wait);
      this.#late.push(performance.now() - due);
      void attempt(this.meter.now);
    }
  }

  /** Workers that take from a backlog, together no faster than looks normal, and are polite when they are refused. */
  #drain(end: number): Promise<void>[] {
    const { meter } = this;
    const { job } = this.#cost;
    let left = Math.round((3 * (this.#variant.start - RESERVE) * 60) / job);
    const normal = ((LOOKS_NORMAL - LIVE) * VCPUS) / job;
    let perSecond = normal;
    let nextAt = performance.now();
    let refusedBefore = 0;
    const steer = setInterval(() => {
      // What statements cost is not known to the percent: the machine is at 70 %, if nothing else holds it back.
      const recent = meter.log.slice(-50);
      const used = recent.reduce((sum, point) => sum + point.used, 0) / Math.max(1, recent.length);
      const isHeldBack = this.#refused > refusedBefore;
      refusedBefore = this.#refused;
      if (isHeldBack) perSecond = Math.min(perSecond, normal);
      else perSecond += (0.1 * (LOOKS_NORMAL * VCPUS - used)) / job;
      perSecond = Math.min(1.15 * normal, Math.max(0.5 * normal, perSecond));
      if (this.#isOver) clearInterval(steer);
    }, 1000);
    meter.jobs = left;
    const worker = async () => {
      const client = new pg.Client({ ...LOGIN, port: this.#contender.port, application_name: 'batch' });
      client.on('error', () => {});
      await client.connect();
      while (!this.#isOver && left > 0) {
        const now = performance.now();
        if (now < nextAt) {
          await sleep(nextAt - now);
          continue;
        }
        // Nothing is made up for.
        nextAt = Math.max(nextAt, now - 1000 / perSecond) + 1000 / perSecond;
        meter.jobs = --left;
        const cost = meter.now > end / 3 ? this.#variant.cost : 1;
        const isDone = await this.#do(client, cost);
        if (!isDone) meter.jobs = ++left;
      }
      await client.end().catch(() => {});
    };
    return Array.from({ length: WORKERS }, () => worker().catch(() => {}));
  }

  /** One job; a refusal says when to ask again. */
  async #do(client: pg.Client, cost: number): Promise<boolean> {
    try {
      await client.query(this.#sql(JOB_MS * cost, 'job'));
      this.#allCost += this.#cost.job * cost;
      this.#doneCost += this.#cost.job * cost;
      return true;
    } catch (thrown) {
      this.#refused++;
      await sleep(Number(/retry after (\d+)/.exec((thrown as { hint?: string }).hint ?? '')?.[1] ?? 1000));
      return false;
    }
  }

  /** A day: jobs come as they come, more in the first tenth of each hour. */
  async #workInBursts(): Promise<void> {
    const clients = Array.from(
      { length: WORKERS },
      () => new pg.Client({ ...LOGIN, port: this.#contender.port, application_name: 'batch' }),
    );
    for (const client of clients) {
      client.on('error', () => {});
      await client.connect();
    }
    const free = [...clients];
    let waiting = 0;
    const take = async (): Promise<void> => {
      const client = free.pop();
      if (client === undefined) return;
      waiting--;
      await this.#do(client, 1);
      free.push(client);
      if (waiting > 0) return take();
    };
    const isBurst = () => this.meter.now % 3600 < 360;
    await this.#arrive(
      () => (isBurst() ? DAY.burst : DAY.calm) / this.#cost.job,
      () => {
        waiting++;
        return take();
      },
    );
    for (const client of clients) void client.end().catch(() => {});
  }

  /** Somebody works on the database and not by the proxy. */
  async #bypass(end: number): Promise<void> {
    if (this.#variant.bypass === 0) return;
    const client = new pg.Client({ ...LOGIN, port: this.#postgres.port });
    client.on('error', () => {});
    await client.connect();
    const every = (1000 * this.#cost.job) / this.#variant.bypass;
    while (!this.#isOver) {
      const since = performance.now();
      if (this.meter.now > end / 3) {
        this.#allCost += this.#cost.job;
        await client.query(this.#sql(JOB_MS, 'job')).catch(() => {});
      }
      await sleep(Math.max(1, every - (performance.now() - since)));
    }
    await client.end();
  }

  #outcome(end: number, views: View[]): Outcome {
    const { log, spent } = this.meter;
    const known = views.filter(({ isKnown }) => isKnown);
    const at = (time: number) => log.find((point) => point.at >= time)?.balance ?? log.at(-1)!.balance;
    const errors = known.map((view) => Math.abs(view.balance - at(view.at)));
    const tenths = Array.from({ length: 10 }, (_, index) =>
      this.#critical.filter((each) => Math.floor((10 * each.at) / end) === index),
    ).filter((all) => all.length > 0);
    const inTime = (all: { isGood: boolean }[]) => all.filter(({ isGood }) => isGood).length / Math.max(1, all.length);
    // What is left above the reserve after all that was not the backlog: more of it could not be done.
    const done = (spent * this.#doneCost) / this.#allCost;
    const others = spent - done;
    const { start } = this.#variant;
    const possible = start - RESERVE + EARN * 60 * this.#hours - others;
    const backlog = this.#variant.isDay ? done : 3 * (start - RESERVE);
    const reached = log.find(({ balance }) => balance <= RESERVE)?.at ?? null;
    const hourBefore = reached === null ? undefined : known.find((view) => view.at >= reached - 3600);
    return {
      variant: this.#variantName,
      contender: this.#name,
      how: this.meter.how,
      isUnderReserveAllowed: this.#variant.bypass > 0 || this.#variant.fault !== 'none',
      least: Math.min(...log.map(({ balance }) => balance)),
      atZeroHours: (log.filter(({ balance }) => balance < 0.5).length / log.length) * this.#hours,
      inTime: inTime(this.#critical),
      worst: Math.min(...tenths.map(inTime)),
      refused: this.#refused,
      done,
      possible: Math.min(backlog, possible),
      error: errors.length === 0 ? null : quantile(errors, 0.95) / CAPACITY,
      forecast: hourBefore?.exhaustion == null ? null : hourBefore.exhaustion / Math.max(1, reached! - hourBefore.at),
      verdict: known[0] === undefined ? null : known[0].fits,
      rightVerdict: this.#variant.isDay,
      start,
      amber: known.find(({ line }) => /^(AMBER|RED): .* left at this rate/.test(line))?.at ?? null,
      empty: log.find(({ balance }) => balance < 0.5)?.at ?? null,
      lateMs: quantile(this.#late, 0.99),
      points: log.filter((_, index) => index % 10 === 0).map((point) => ({ ...point, at: point.at / 3600 })),
      views,
    };
  }
}

const LOGIN = { host: '127.0.0.1', user: 'postgres', database: 'postgres' };

async function contenderOf(
  name: string,
  bouncer: string | null,
  postgres: EmbeddedPostgres,
  meter: Meter,
  { pace, source, isDay }: { pace: number; source: Variant['source']; isDay: boolean },
): Promise<Contender> {
  if (name === 'direct') return direct(postgres);
  if (name === 'pgbouncer') return pgbouncer(bouncer!, postgres, 20);
  const metric = (awsName: string, query: string) =>
    source === 'cloudwatch'
      ? { source, region: 'eu-west-1', name: awsName, dimensions: { DBInstanceIdentifier: 'db-1' }, period: '5m' }
      : { source, url: meter.url, query: `${query}{dbinstance_identifier="db-1"}`, every: '60s' };
  const ledger = {
    metric: metric('CPUCreditBalance', 'aws_rds_cpucredit_balance_average'),
    load: {
      ...metric('CPUUtilization', 'aws_rds_cpuutilization_average'),
      ...(source === 'prometheus' && { every: '5m' }),
    },
    backlog: {
      class: 'batch',
      metric: { source: 'http', url: `${meter.url}/backlog.json`, value: '/jobs', every: '60s' },
    },
    unit: 'cpu-credits',
    capacity: CAPACITY,
    earnPerHour: EARN * 60,
    vcpus: VCPUS,
    reserve: '5%',
    mode: name === 'enforce' ? 'enforce' : 'observe',
  };
  return pgweir(
    `pgweir ${name}`,
    postgres,
    { size: 30 },
    {
      flags: ['--pace', String(pace)],
      env: { AWS_ENDPOINT_URL_CLOUDWATCH: meter.url, AWS_ACCESS_KEY_ID: 'test', AWS_SECRET_ACCESS_KEY: 'test' },
      top: {
        admission: { mode: name === 'observe' ? 'observe' : 'enforce' },
        ledgers: { cpu: ledger },
        classes: [
          { name: 'critical', priority: 'critical', match: [{ application: 'critical' }] },
          {
            name: 'batch',
            priority: 'batch',
            serversMax: 3,
            match: [{ application: 'batch' }],
            queue: { waitMax: isDay ? '30s' : '1s' },
          },
        ],
      },
      database: { ledgers: ['cpu'] },
    },
  );
}

/** The ablation: what everybody does first, with the raw metric. */
async function setSwitch(opsPort: number, state: 'on' | 'off'): Promise<void> {
  await fetch(`http://127.0.0.1:${opsPort}/switches/batch`, {
    method: 'POST',
    headers: {
      'content-type': 'application/json',
      authorization: `Basic ${Buffer.from('postgres:').toString('base64')}`,
    },
    body: JSON.stringify({ state }),
  });
}

/** How the proxy sees its ledger. */
export interface View {
  /** s of life. */
  at: number;
  isKnown: boolean;
  balance: number;
  lower: number;
  /** s of life; null: never. */
  exhaustion: number | null;
  zone: string;
  fits: boolean;
  backlog: number;
  /** The verdict, as the dashboard shows it. */
  line: string;
}

/** Asks the proxy twice a second; gives a function that ends it. */
function watch(opsPort: number, meter: Meter): () => Promise<View[]> {
  const views: View[] = [];
  let isOver = false;
  const asking = (async () => {
    while (!isOver) {
      const status = (await (await fetch(`http://127.0.0.1:${opsPort}/status.json`)).json()) as Status;
      const [ledger] = status.ledgers;
      if (ledger !== undefined)
        views.push({
          at: meter.now,
          isKnown: ledger.missing === '' && ledger.balance !== null,
          balance: Number(ledger.balance),
          lower: Number(ledger.lower),
          exhaustion: ledger.exhaustion_s === null ? null : Number(ledger.exhaustion_s),
          zone: String(ledger.zone),
          fits: ledger.fits === 'yes',
          backlog: Number(ledger.backlog),
          line: status.verdict.line,
        });
      await sleep(500);
    }
  })().catch(() => {});
  return async () => {
    isOver = true;
    await asking;
    return views;
  };
}
