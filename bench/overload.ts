/**
 * `npm run bench -- overload`: what of the work is still of use when more is asked for than the database can do. Postgres
 * itself, PgBouncer as it comes and tuned (pool of 2, wait of 2 s), and pgweir, in turns before one Postgres that has half a
 * processor.
 *
 *     npm run bench -- overload [--seconds N] [--loads 0.5,1,2,4,10] [--out FOLDER]
 *
 * Open loop: requests come when they come (Poisson), and their latency counts from when they were meant to start. Clients
 * are rude: an attempt that takes 2 s is given up, every error costs its connection (as in pg-pool), and each is followed
 * at once by another attempt, three times. What counts is goodput: processor time of requests that were answered within
 * their objective (SLO), per second.
 *
 * The database is kept to its share by a control group (cpu); generator and proxy must stay below 60 % of a core each, or
 * the run is void.
 */
import { existsSync, mkdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import type { Socket } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { type EmbeddedPostgres, startEmbeddedPostgres } from '../src/embedded.ts';
import { type Contender, cpuUs, direct, findPgbouncer, pgbouncer, pgweir } from './contenders.ts';
import { median, quantile } from './stats.ts';

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
const floors: Record<string, string> = { critical: '25%', normal: '25%', batch: '5%', deferrable: '2%' };
/** What the database may use of a processor. */
const QUOTA = 0.5;
const PERIOD_US = 20_000;
const TIMEOUT_MS = 2_000;
const RETRIES = 3;
/** Connections of each of the four applications. */
const APP_POOL = 40;
const WARM_S = 4;
const BUSY_MAX = 0.6;
/** A generator that is later than this has measured itself (p99). */
const LATE_MAX_MS = 10;
const ROWS = 200_000;

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
  lateMs: number;
}

/** Runs everything, prints and writes the results. */
export async function overload(options: { seconds: number; loads: number[]; out: string; pgbouncer: string | null }) {
  const path = findPgbouncer(options.pgbouncer);
  if (path === null) console.error('*** SKIPPED: there is no PgBouncer on PATH (--pgbouncer PATH) ***');
  const postgres = await startEmbeddedPostgres({ dataDir: null, settings: { fsync: 'off', max_connections: '400' } });
  const rows = await calibrate(postgres);
  const release = confine(postgres);
  const classes = kinds.map(({ name, slo }) => ({
    name,
    priority: name,
    match: [{ application: name }],
    deadline: `${Math.min(slo, TIMEOUT_MS)}ms`,
    floor: floors[name],
  }));
  const contenders: Contender[] = [
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
        top: { admission: { mode: 'enforce' }, limit: { mode: 'adaptive', min: 2, max: 20 }, classes },
      },
    ),
  ];
  const outcomes: Outcome[] = [];
  for (const load of options.loads) {
    for (const contender of contenders) {
      outcomes.push(await run(contender, load, options.seconds, rows));
      console.log(line(outcomes.at(-1)!));
    }
  }
  mkdirSync(options.out, { recursive: true });
  writeFileSync(join(options.out, 'overload.json'), `${JSON.stringify(outcomes, null, 2)}\n`);
  writeFileSync(join(options.out, 'overload.md'), table(outcomes));
  writeFileSync(join(options.out, 'overload.svg'), plot(outcomes));
  console.log(`\n${table(outcomes)}`);
  for (const contender of contenders) await contender.stop();
  await postgres.stop();
  release();
}

/** Gives the database its share of a processor; the returned function takes the group away. */
function confine(postgres: EmbeddedPostgres): () => void {
  const group = '/sys/fs/cgroup/cpu/pgweir-bench';
  if (!existsSync('/sys/fs/cgroup/cpu'))
    throw new Error('this needs the cpu controller of control groups (v1), as root');
  if (!existsSync(group)) mkdirSync(group);
  writeFileSync(join(group, 'cpu.cfs_period_us'), String(PERIOD_US));
  writeFileSync(join(group, 'cpu.cfs_quota_us'), String(PERIOD_US * QUOTA));
  // What the postmaster starts from here on is in its group; what it has started is moved.
  for (const pid of [postgres.pid, ...childrenOf(postgres.pid)]) {
    if (existsSync(`/proc/${pid}`)) writeFileSync(join(group, 'cgroup.procs'), String(pid));
  }
  return () => rmdirSync(group);
}

function childrenOf(pid: number): number[] {
  const text = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8');
  return text.split(' ').filter(Boolean).map(Number);
}

/** How many rows of generate_series a backend counts in one millisecond of a whole processor. */
async function calibrate(postgres: EmbeddedPostgres): Promise<number> {
  const client = new pg.Client({ host: '127.0.0.1', port: postgres.port, user: 'postgres', database: 'postgres' });
  await client.connect();
  await client.query('CREATE TABLE items AS SELECT n AS id, 0 AS touched FROM generate_series(1, 10000) n');
  await client.query('CREATE UNIQUE INDEX ON items (id)');
  const times: number[] = [];
  for (let lap = 0; lap < 15; lap++) {
    const before = performance.now();
    await client.query(`SELECT count(*) FROM generate_series(1, ${ROWS})`);
    times.push(performance.now() - before);
  }
  await client.end();
  await sleep(200); // Its backend is gone by then.
  return ROWS / median(times);
}

// --- One application --------------------------------------------------------------------------------------------

/** The connections of one application: at most APP_POOL, and those that had an error are thrown away (as in pg-pool). */
class AppPool {
  readonly #options: pg.ClientConfig;
  readonly #idle: pg.Client[] = [];
  readonly #waiting: ((isClosed: boolean) => void)[] = [];
  #open = 0;
  isClosed = false;

  constructor(port: number, name: string) {
    this.#options = { host: '127.0.0.1', port, user: 'postgres', database: 'postgres', application_name: name };
  }

  /** Runs one statement, within TIMEOUT_MS from here on. True: it was answered. */
  async attempt(sql: string): Promise<boolean> {
    const end = performance.now() + TIMEOUT_MS;
    if (this.#idle.length === 0 && this.#open >= APP_POOL) await this.#turn(end);
    if (this.isClosed || performance.now() >= end) return false;
    let client = this.#idle.pop();
    let isGood = false;
    try {
      if (client === undefined) {
        this.#open++;
        client = new pg.Client(this.#options);
        client.on('error', () => {});
        await before(client.connect(), end);
      }
      await before(client.query(sql), end);
      isGood = true;
    } catch {
      // Refused, lost, or too late: the connection is thrown away whatever it was.
    }
    if (isGood) this.#idle.push(client!);
    else {
      this.#open--;
      streamOf(client!).destroy();
    }
    this.#waiting.shift()?.(false);
    return isGood;
  }

  #turn(end: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(give, end - performance.now());
      const waiting = this.#waiting;
      function give() {
        clearTimeout(timer);
        const at = waiting.indexOf(give);
        if (at >= 0) waiting.splice(at, 1);
        resolve();
      }
      waiting.push(give);
    });
  }

  close(): void {
    this.isClosed = true;
    for (const client of this.#idle) streamOf(client).destroy();
    for (const give of [...this.#waiting]) give(true);
  }
}

const streamOf = (client: pg.Client) => (client as unknown as { connection: { stream: Socket } }).connection.stream;

function before<T>(work: Promise<T>, end: number): Promise<T> {
  work.catch(() => {});
  let timer: NodeJS.Timeout;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error('too late')), Math.max(0, end - performance.now()));
  });
  return Promise.race([work, late]).finally(() => clearTimeout(timer));
}

// --- One run ----------------------------------------------------------------------------------------------------

async function run(contender: Contender, load: number, seconds: number, rowsPerMs: number): Promise<Outcome> {
  const pools = new Map(kinds.map(({ name }) => [name, new AppPool(contender.port, name)]));
  const perSecond = (load * QUOTA * 1000) / MEAN_COST;
  const meant: Record<string, number> = {};
  const inTime: Record<string, number> = {};
  const critical: number[] = [];
  const lateness: number[] = [];
  let good = 0;
  let useful = 0;
  const started = performance.now();
  const isMeasured = (at: number) => at - started >= WARM_S * 1000 && at - started < (WARM_S + seconds) * 1000;

  const request = async (kind: Kind, intended: number) => {
    const pool = pools.get(kind.name)!;
    const rows = Math.round(kind.cost * rowsPerMs);
    const id = 1 + Math.floor(Math.random() * 10_000);
    const sql =
      kind.name === 'critical'
        ? `WITH done AS (UPDATE items SET touched = touched + 1 WHERE id = ${id} RETURNING id) SELECT count(*) FROM generate_series(1, ${rows})`
        : `SELECT count(*) FROM generate_series(1, ${rows})`;
    let isAnswered = false;
    for (let tries = 0; tries <= RETRIES && !isAnswered && !pool.isClosed; tries++)
      isAnswered = await pool.attempt(sql);
    if (!isMeasured(intended)) return;
    const took = performance.now() - intended;
    if (kind.name === 'critical') critical.push(isAnswered ? took : TIMEOUT_MS * (RETRIES + 1));
    if (!isAnswered || took > kind.slo) return;
    good += kind.cost / 1000;
    useful++;
    inTime[kind.name] = (inTime[kind.name] ?? 0) + 1;
  };

  let proxyBefore = 0;
  let selfBefore = process.cpuUsage();
  let due = started;
  const end = started + (WARM_S + seconds) * 1000;
  let isWarm = false;
  while (due < end) {
    due += (-Math.log(1 - Math.random()) * 1000) / perSecond;
    const wait = due - performance.now();
    if (wait > 0) await sleep(wait);
    if (!isWarm && due - started >= WARM_S * 1000) {
      isWarm = true;
      proxyBefore = contender.pid === null ? 0 : cpuUs(contender.pid);
      selfBefore = process.cpuUsage();
    }
    const kind = pick(Math.random());
    if (isMeasured(due)) {
      meant[kind.name] = (meant[kind.name] ?? 0) + 1;
      lateness.push(performance.now() - due);
    }
    void request(kind, due);
  }
  const self = process.cpuUsage(selfBefore);
  const proxyUs = contender.pid === null ? 0 : cpuUs(contender.pid) - proxyBefore;
  // What was meant to start in time may yet be answered in time.
  await sleep(Math.max(...kinds.map(({ slo }) => slo)) > 5_000 ? 5_000 : 2_000);
  for (const pool of pools.values()) pool.close();
  await sleep(3_000); // What Postgres still runs for nobody is not to burden the next.
  return {
    contender: contender.name,
    load,
    goodput: good / seconds,
    useful: useful / seconds,
    shares: Object.fromEntries(kinds.map(({ name }) => [name, (inTime[name] ?? 0) / Math.max(1, meant[name] ?? 0)])),
    p99Critical: quantile(critical, 0.99) ?? 0,
    proxyBusy: proxyUs / 1e6 / seconds,
    generatorBusy: (self.user + self.system) / 1e6 / seconds,
    lateMs: quantile(lateness, 0.99) ?? 0,
  };
}

function pick(dice: number): Kind {
  let left = dice;
  for (const kind of kinds) {
    left -= kind.share;
    if (left <= 0) return kind;
  }
  return kinds[0]!;
}

// --- Telling ----------------------------------------------------------------------------------------------------

const percent = (share: number) => `${(100 * share).toFixed(1)} %`;

function line({ contender, load, goodput, shares, proxyBusy, generatorBusy, lateMs }: Outcome): string {
  const kindsText = kinds.map(({ name }) => `${name} ${percent(shares[name]!)}`).join(', ');
  return `${load}× ${contender.padEnd(16)} goodput ${goodput.toFixed(3)}; ${kindsText}; proxy ${percent(proxyBusy)}, generator ${percent(generatorBusy)}, late ${lateMs.toFixed(1)} ms`;
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

const COLORS: Record<string, string> = {
  direct: '#8a8f93',
  pgbouncer: '#c79a3b',
  'pgbouncer tuned': '#a3552f',
  pgweir: '#2a7f9e',
};

/** Goodput over load, one line for each contender. */
function plot(outcomes: readonly Outcome[]): string {
  const loads = [...new Set(outcomes.map(({ load }) => load))];
  const [width, height, left, bottom] = [640, 320, 60, 40];
  const x = (load: number) => left + (loads.indexOf(load) * (width - left - 150)) / Math.max(1, loads.length - 1);
  const y = (goodput: number) => height - bottom - (goodput / QUOTA) * (height - bottom - 40);
  const names = [...new Set(outcomes.map(({ contender }) => contender))];
  const lines = names.map((name, index) => {
    const own = outcomes.filter(({ contender }) => contender === name);
    const points = own.map(({ load, goodput }) => `${x(load).toFixed(1)},${y(goodput).toFixed(1)}`);
    return `<polyline fill="none" stroke="${COLORS[name]}" stroke-width="2.5" points="${points.join(' ')}"/>
<text x="${width - 140}" y="${60 + 20 * index}" fill="${COLORS[name]}">${name}</text>`;
  });
  const marks = loads.map((load) => `<text x="${x(load)}" y="${height - 15}" text-anchor="middle">${load}×</text>`);
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" font-family="sans-serif" font-size="13">
<title>Goodput over load, by contender</title>
<text x="8" y="20" font-size="15">Useful work (CPU seconds per second) over offered load; the database has ${QUOTA}</text>
<line x1="${left}" y1="${y(QUOTA)}" x2="${width - 150}" y2="${y(QUOTA)}" stroke="#ccc"/>
<line x1="${left}" y1="${y(0)}" x2="${width - 150}" y2="${y(0)}" stroke="#888"/>
<text x="${left - 8}" y="${y(QUOTA) + 4}" text-anchor="end">${QUOTA}</text>
<text x="${left - 8}" y="${y(0) + 4}" text-anchor="end">0</text>
${lines.join('\n')}
${marks.join('\n')}
</svg>
`;
}
