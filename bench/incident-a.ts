/**
 * `npm run bench -- incident-a`: the cache that is not there. Reads that the database can answer a tenth of, over more keys than memory holds; then the
 * shared cache is missing, killed, frozen, slow, flushed, and full.
 *
 *     npm run bench -- incident-a [--seconds N] [--only REGEXP] [--out FOLDER]
 *
 * The one idea: the same clients at the same rate, whatever happens, in an open loop: who is answered too late has not been answered. Contenders: an application with a cache of the
 * usual kind (get; on a miss ask the database and set) before Postgres and before PgBouncer, and pgweir, whose clients know of no cache.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Redis } from 'ioredis';
import pg from 'pg';
import { type EmbeddedPostgres, freePort, startEmbeddedPostgres } from '../src/embedded.ts';
import { calibrate } from './clients.ts';
import { type Contender, direct, findPgbouncer, pgbouncer, pgweir } from './contenders.ts';
import { percent, quantile } from './stats.ts';

export interface IncidentAOptions {
  /** s of each trouble. */
  seconds: number;
  only: RegExp;
  out: string;
  pgbouncer: string | null;
}

/** ms of a processor that one read takes. */
const READ_MS = 5;
/** Reads a second: five times what one processor can answer. */
const RATE = 1_000;
const CRITICAL_SHARE = 0.1;
const KEYS = 9_000;
/** Of the reads, for a key that nobody has asked for: never in a cache. */
const COLD = 0.1;
/** KEYS entries of about 700 bytes are more than twenty times this. */
const MEMORY = '256KiB';
const SLO_MS = 1_000;
const LIMIT = 4;
const SERVERS = 10;

interface Tally {
  asked: number;
  inTime: number;
  refused: number;
  errors: Map<string, number>;
  wrong: number;
  ms: number[];
}

const blank = (): Tally => ({ asked: 0, inTime: 0, refused: 0, errors: new Map(), wrong: 0, ms: [] });

/** What a read of this key says. */
const answerOf = (key: number) => String((key * 7919) % 100_003);

interface Client {
  read(key: number, isCritical: boolean): Promise<string>;
  close(): void;
}

/** Connections of one application; at most so many, as pools have them. */
function poolOf(port: number, name: string, size: number): pg.Pool {
  const pool = new pg.Pool({
    host: '127.0.0.1',
    port,
    user: 'postgres',
    database: 'postgres',
    application_name: name,
    max: size,
    connectionTimeoutMillis: SLO_MS,
  });
  pool.on('error', () => {});
  return pool;
}

export async function incidentA(options: IncidentAOptions): Promise<void> {
  mkdirSync(options.out, { recursive: true });
  const postgres = await startEmbeddedPostgres({ dataDir: null, settings: { fsync: 'off', max_connections: '300' } });
  const rows = Math.round((await calibrate(postgres)) * READ_MS);
  const admin = new pg.Client({ host: '127.0.0.1', port: postgres.port, user: 'postgres', database: 'postgres' });
  await admin.connect();
  await admin.query('CREATE TABLE facts (id int PRIMARY KEY, said text)');
  await admin.query(
    `INSERT INTO facts SELECT n, ((n::bigint * 7919) % 100003)::text FROM generate_series(0, 2000000) n`,
  );
  await admin.query('ANALYZE');
  const sql = (key: number) =>
    `SELECT said, (SELECT count(*) FROM generate_series(1, ${rows})) AS work FROM facts WHERE id = ${key}`;
  const lines = [
    '| contender | trouble | asked | critical in time | others in time | refused (53000) | other errors | wrong | most at work | back after | p99 of critical |',
    '|---|---|---|---|---|---|---|---|---|---|---|',
  ];
  const path = findPgbouncer(options.pgbouncer);
  for (const name of ['application and Postgres', 'application and PgBouncer', 'pgweir']) {
    if (!options.only.test(name) || (name.endsWith('PgBouncer') && path === null)) continue;
    const cache = await Cache.start();
    const contender =
      name === 'pgweir'
        ? await guarded(postgres, cache)
        : name.endsWith('Postgres')
          ? direct(postgres)
          : await pgbouncer(path!, postgres, SERVERS);
    const client = name === 'pgweir' ? throughProxy(contender, sql) : withOwnCache(contender, cache, sql);
    const stage = new Stage(client, admin);
    for (const found of await stage.play(cache, options.seconds)) {
      const row = [name, ...found].join(' | ');
      lines.push(`| ${row} |`);
      console.log(`| ${row} |`);
    }
    client.close();
    await contender.stop();
    await cache.stop();
    await sleep(3_000); // What was asked of the database and is not wanted any more.
  }
  writeFileSync(join(options.out, 'incident-a.md'), `${lines.join('\n')}\n`);
  await admin.end();
  await postgres.stop('immediate');
}

function guarded(postgres: EmbeddedPostgres, { port }: Cache): Promise<Contender> {
  return pgweir(
    'pgweir',
    postgres,
    { size: SERVERS, queueMax: 20_000 },
    {
      top: {
        admission: { mode: 'enforce' },
        limit: { mode: 'fixed', max: LIMIT },
        classes: [
          { name: 'critical', priority: 'critical', match: [{ application: 'critical' }] },
          { name: 'others', priority: 'batch', match: [{ application: 'others' }], queue: { waitMax: '500ms' } },
        ],
        cache: {
          mode: 'on',
          memoryMax: MEMORY,
          verify: '0%',
          backend: { url: `redis://127.0.0.1:${port}` },
          sets: { all: [{ tables: ['facts'], ttl: '1h', staleIfError: '1h', consistency: 'session' }] },
        },
      },
      database: { cache: 'all', control: { user: 'postgres' } },
    },
  );
}

function throughProxy({ port }: Contender, sql: (key: number) => string): Client {
  const pools = { critical: poolOf(port, 'critical', 60), others: poolOf(port, 'others', 300) };
  return {
    read: async (key, isCritical) =>
      (await pools[isCritical ? 'critical' : 'others'].query(sql(key))).rows[0]?.said ?? '',
    close: () => {
      for (const pool of Object.values(pools)) void pool.end().catch(() => {});
    },
  };
}

/** As it stands in a thousand services: the defaults of the client, and the database when the cache has nothing to say. */
function withOwnCache({ port }: Contender, cache: Cache, sql: (key: number) => string): Client {
  const pools = { critical: poolOf(port, 'critical', 20), others: poolOf(port, 'others', 60) };
  const redis = new Redis({
    host: '127.0.0.1',
    port: cache.port,
    commandTimeout: 200,
    maxRetriesPerRequest: 0,
    enableOfflineQueue: false,
  });
  redis.on('error', () => {});
  return {
    read: async (key, isCritical) => {
      const kept = await redis.get(`fact:${key}`).catch(() => null);
      if (kept !== null) return kept;
      const said = (await pools[isCritical ? 'critical' : 'others'].query(sql(key))).rows[0]?.said ?? '';
      redis.set(`fact:${key}`, said, 'EX', 3600).catch(() => {});
      return said;
    },
    close: () => {
      redis.disconnect();
      for (const pool of Object.values(pools)) void pool.end().catch(() => {});
    },
  };
}

class Stage {
  readonly #client: Client;
  readonly #admin: pg.Client;
  #tallies = { critical: blank(), others: blank() };
  #atWork = 0;
  #cold = KEYS;

  constructor(client: Client, admin: pg.Client) {
    this.#client = client;
    this.#admin = admin;
  }

  async play(cache: Cache, seconds: number): Promise<string[][]> {
    let isOver = false;
    const load = (async () => {
      const beganAt = performance.now();
      for (let sent = 0; !isOver; await sleep(5)) {
        const due = ((performance.now() - beganAt) / 1000) * RATE * this.#ramp(beganAt);
        for (; sent < due; sent++) this.#ask();
      }
    })();
    const watching = (async () => {
      for (; !isOver; await sleep(200)) {
        const { rows } = await this.#admin.query(
          `SELECT count(*)::int AS n FROM pg_stat_activity WHERE state = 'active' AND backend_type = 'client backend' AND pid <> pg_backend_pid()`,
        );
        this.#atWork = Math.max(this.#atWork, rows[0].n);
      }
    })();
    const found: string[][] = [];
    // The caches are filled, by and by.
    await sleep(WARM_MS);
    const normal = await this.#measure(seconds);
    found.push(this.#row('none', normal, 0));
    for (const [trouble, begin, end] of troublesOf(cache)) {
      this.#reset();
      await begin();
      const during = await this.#measure(seconds);
      await end();
      const endedAt = performance.now();
      let back = Number.POSITIVE_INFINITY;
      for (let calm = 0; performance.now() - endedAt < RECOVERY_MS && calm < 2; ) {
        const { others, critical } = await this.#measure(1);
        const isWell = others.inTime + critical.inTime >= 0.95 * (others.asked + critical.asked);
        calm = isWell ? calm + 1 : 0;
        if (calm === 1) back = (performance.now() - endedAt) / 1000 - 1;
        if (calm === 0) back = Number.POSITIVE_INFINITY;
      }
      found.push(this.#row(trouble, during, back));
    }
    isOver = true;
    await load;
    await watching;
    return found;
  }

  /** At first fewer, so that filling the cache drowns nobody. */
  #ramp(beganAt: number): number {
    const spent = performance.now() - beganAt;
    return spent < WARM_MS ? 0.15 + 0.35 * (spent / WARM_MS) : 1 - (0.5 * WARM_MS) / spent;
  }

  #reset(): void {
    this.#tallies = { critical: blank(), others: blank() };
    this.#atWork = 0;
  }

  async #measure(seconds: number): Promise<{ critical: Tally; others: Tally }> {
    this.#tallies = { critical: blank(), others: blank() };
    const tallies = this.#tallies;
    await sleep(1_000 * seconds);
    this.#tallies = { critical: blank(), others: blank() };
    await sleep(SLO_MS);
    return tallies;
  }

  #ask(): void {
    const isCritical = Math.random() < CRITICAL_SHARE;
    const tally = this.#tallies[isCritical ? 'critical' : 'others'];
    const key = Math.random() < COLD ? this.#cold++ : Math.floor(Math.random() * KEYS);
    const since = performance.now();
    tally.asked++;
    this.#client.read(key, isCritical).then(
      (said) => {
        const ms = performance.now() - since;
        tally.ms.push(ms);
        if (said !== answerOf(key)) tally.wrong++;
        else if (ms <= SLO_MS) tally.inTime++;
      },
      (thrown: { code?: string; message: string }) => {
        if (thrown.code === '53000') tally.refused++;
        else {
          const what = thrown.code ?? thrown.message.slice(0, 40);
          tally.errors.set(what, (tally.errors.get(what) ?? 0) + 1);
        }
      },
    );
  }

  #row(trouble: string, { critical, others }: { critical: Tally; others: Tally }, back: number): string[] {
    const errors = new Map(critical.errors);
    for (const [what, count] of others.errors) errors.set(what, (errors.get(what) ?? 0) + count);
    return [
      trouble,
      String(critical.asked + others.asked),
      percent(critical.inTime / critical.asked),
      percent(others.inTime / others.asked),
      `${critical.refused} critical, ${others.refused} others`,
      [...errors].map(([what, count]) => `${count} × ${what}`).join(', ') || 'none',
      String(critical.wrong + others.wrong),
      String(this.#atWork),
      trouble === 'none' ? '' : `${Number.isFinite(back) ? back.toFixed(0) : 'more than 40'} s`,
      `${quantile(critical.ms, 0.99)?.toFixed(0)} ms`,
    ];
  }
}

const WARM_MS = 60_000;
const RECOVERY_MS = 40_000;

/** A real Redis, which may be killed, frozen, slowed down (by a wire that is), flushed, and filled. */
class Cache {
  #child: ChildProcess | null = null;
  readonly port: number;

  private constructor(port: number) {
    this.port = port;
  }

  static async start(): Promise<Cache> {
    const cache = new Cache(await freePort());
    await cache.run();
    return cache;
  }

  async run(): Promise<void> {
    this.#child = spawn(
      'redis-server',
      ['--port', `${this.port}`, '--bind', '127.0.0.1', '--save', '', '--appendonly', 'no'],
      { stdio: 'ignore' },
    );
    await sleep(300);
  }

  async kill(): Promise<void> {
    this.#child?.kill('SIGKILL');
    await sleep(50);
  }

  signal(signal: 'SIGSTOP' | 'SIGCONT'): void {
    this.#child?.kill(signal);
  }

  async command(...words: string[]): Promise<void> {
    const client = new Redis({ host: '127.0.0.1', port: this.port });
    client.on('error', () => {});
    await client.call(words[0]!, ...words.slice(1)).catch(() => {});
    client.disconnect();
  }

  async stop(): Promise<void> {
    this.signal('SIGCONT');
    await this.kill();
  }
}

type Trouble = [string, () => Promise<void>, () => Promise<void>];

function troublesOf(cache: Cache): Trouble[] {
  const nothing = async () => {};
  return [
    ['killed', () => cache.kill(), () => cache.run()],
    ['frozen', async () => cache.signal('SIGSTOP'), async () => cache.signal('SIGCONT')],
    ['flushed', () => cache.command('FLUSHALL'), nothing],
    [
      'full, and takes no writes',
      async () => {
        await cache.command('CONFIG', 'SET', 'maxmemory-policy', 'noeviction');
        await cache.command('CONFIG', 'SET', 'maxmemory', '1');
      },
      () => cache.command('CONFIG', 'SET', 'maxmemory', '0'),
    ],
  ];
}
