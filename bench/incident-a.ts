/**
 * `npm run bench -- incident-a`: the cache that is not there. Reads of which the database can answer a fifth, over more keys than memory holds; then the
 * shared cache is configured where there is none, killed, frozen, slow, flushed, full of other people's answers, and full.
 *
 *     npm run bench -- incident-a [--seconds N] [--only REGEXP] [--variants REGEXP] [--out FOLDER]
 *
 * The one idea: the same clients at the same rate, whatever happens, in an open loop: who is answered too late has not been answered. The database is so small
 * (a control group) that the machine has room for everybody else. Contenders: an application with a cache of the usual kind (get; on a miss ask the database
 * and set) before Postgres and before PgBouncer, and pgweir, whose clients know of no cache.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Redis } from 'ioredis';
import pg from 'pg';
import { type EmbeddedPostgres, freePort, startEmbeddedPostgres } from '../src/embedded.ts';
import { calibrate } from './clients.ts';
import { type Contender, direct, findPgbouncer, type Json, pgbouncer, pgweir } from './contenders.ts';
import { quotaOf } from './quota.ts';
import { percent, quantile } from './stats.ts';

export interface IncidentAOptions {
  /** s of each trouble. */
  seconds: number;
  only: RegExp;
  /** Which troubles: by their names. */
  variants: RegExp;
  out: string;
  pgbouncer: string | null;
}

/** Of a processor, that Postgres has; ms of one that a read takes, at first; reads a second that it is to answer: the work is adjusted until it does. */
const PROCESSORS = 0.5;
const READ_MS = 5;
const CAPACITY = 100;
/** Reads a second: five times that. */
const RATE = 500;
const CRITICAL_SHARE = 0.1;
const KEYS = 1_000;
/** Of the reads, for a key that nobody has asked for: never in a cache, and half of what it can answer. */
const COLD = 0.1;
/** The answers to all KEYS are more than twenty times this. */
const MEMORY = '256KiB';
const ANSWER_BYTES = 6_000;
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
  /** Its cache is to be found on this port. */
  moveCache(port: number): void;
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
  let rows = Math.round((await calibrate(postgres)) * READ_MS);
  const quota = quotaOf(postgres);
  console.log(`the database has ${PROCESSORS} of a processor: ${quota.how}`);
  const admin = new pg.Client({ host: '127.0.0.1', port: postgres.port, user: 'postgres', database: 'postgres' });
  await admin.connect();
  await admin.query('CREATE TABLE facts (id int PRIMARY KEY, said text)');
  await admin.query(
    `INSERT INTO facts SELECT n, ((n::bigint * 7919) % 100003)::text FROM generate_series(0, 2000000) n`,
  );
  await admin.query('ANALYZE');
  const sql = (key: number) =>
    `SELECT said, rpad(said, ${ANSWER_BYTES}) AS more, (SELECT count(*) FROM generate_series(1, ${rows})) AS work FROM facts WHERE id = ${key}`;
  quota.set(PROCESSORS);
  for (let tries = 0; tries < 3; tries++) {
    const found = await capacityOf(postgres.port, sql);
    console.log(`it answers ${found.toFixed(0)} reads a second`);
    rows = Math.round((rows * found) / CAPACITY);
  }
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
    const stage = new Stage(client, admin, (found) => {
      lines.push(`| ${[name, ...found].join(' | ')} |`);
      console.log(lines.at(-1));
    });
    await stage.play(cache, options);
    client.close();
    await contender.stop();
    await cache.stop();
    await sleep(3_000); // What was asked of the database and is not wanted any more.
  }
  writeFileSync(join(options.out, 'incident-a.md'), `${lines.join('\n')}\n`);
  await admin.end();
  await postgres.stop('immediate');
  await quota.close();
}

/** Reads a second that are answered when as many are asked for at a time as pgweir lets at work. */
async function capacityOf(port: number, sql: (key: number) => string): Promise<number> {
  const pool = poolOf(port, 'calibration', LIMIT);
  const endAt = performance.now() + 5_000;
  let count = 0;
  const ask = async () => {
    for (; performance.now() < endAt; count++) await pool.query(sql(count));
  };
  await Promise.all(Array.from({ length: LIMIT }, ask));
  await pool.end();
  return count / 5;
}

const cacheAt = (port: number): Json => ({
  mode: 'on',
  memoryMax: MEMORY,
  verify: '0%',
  backend: { url: `redis://127.0.0.1:${port}` },
  sets: { all: [{ tables: ['facts'], ttl: '1h', staleIfError: '1h', consistency: 'session' }] },
});

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
        cache: cacheAt(port),
      },
      database: { cache: 'all', control: { user: 'postgres' } },
    },
  );
}

function throughProxy({ port, reconfigure }: Contender, sql: (key: number) => string): Client {
  const pools = { critical: poolOf(port, 'critical', 60), others: poolOf(port, 'others', 300) };
  return {
    read: async (key, isCritical) =>
      (await pools[isCritical ? 'critical' : 'others'].query(sql(key))).rows[0]?.said ?? '',
    moveCache: (at) => reconfigure?.({ cache: cacheAt(at) }),
    close: () => {
      for (const pool of Object.values(pools)) void pool.end().catch(() => {});
    },
  };
}

/** As it stands in a thousand services: the defaults of the client, and the database when the cache has nothing to say. */
function withOwnCache({ port }: Contender, cache: Cache, sql: (key: number) => string): Client {
  const pools = { critical: poolOf(port, 'critical', 20), others: poolOf(port, 'others', 60) };
  const connect = (at: number) => {
    const client = new Redis({
      host: '127.0.0.1',
      port: at,
      commandTimeout: 200,
      maxRetriesPerRequest: 0,
      enableOfflineQueue: false,
    });
    client.on('error', () => {});
    return client;
  };
  let redis = connect(cache.port);
  return {
    read: async (key, isCritical) => {
      const kept = await redis.get(`fact:${key}`).catch(() => null);
      if (kept !== null) return kept;
      const said = (await pools[isCritical ? 'critical' : 'others'].query(sql(key))).rows[0]?.said ?? '';
      redis.set(`fact:${key}`, said, 'EX', 3600).catch(() => {});
      return said;
    },
    moveCache: (at) => {
      redis.disconnect();
      redis = connect(at);
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
  readonly #tell: (row: string[]) => void;
  #tallies = { critical: blank(), others: blank() };
  #atWork = 0;
  #cold = KEYS;

  constructor(client: Client, admin: pg.Client, tell: (row: string[]) => void) {
    this.#client = client;
    this.#admin = admin;
    this.#tell = tell;
  }

  async play(cache: Cache, { seconds, variants }: IncidentAOptions): Promise<void> {
    await this.#fill();
    let isOver = false;
    const load = (async () => {
      const beganAt = performance.now();
      for (let sent = 0; !isOver; await sleep(5)) {
        const due = ((performance.now() - beganAt) / 1000) * RATE;
        for (; sent < due; sent++) this.#ask();
      }
    })();
    const watching = (async () => {
      for (; !isOver; await sleep(200)) {
        const { rows } = await this.#admin.query(
          `SELECT count(*)::int AS n FROM pg_stat_activity WHERE state = 'active' AND application_name IN ('critical', 'others')`,
        );
        this.#atWork = Math.max(this.#atWork, rows[0].n);
      }
    })();
    await sleep(SETTLE_MS);
    this.#reset();
    this.#tell(this.#row('none', await this.#measure(seconds), 0));
    for (const { name, begin, end } of troublesOf(cache, this.#client)) {
      if (!variants.test(name)) continue;
      this.#reset();
      await begin();
      const during = await this.#measure(seconds);
      await end();
      this.#tell(this.#row(name, during, await this.#recovery()));
      await sleep(SETTLE_MS);
    }
    isOver = true;
    await load;
    await watching;
  }

  /** Asks for every key, as much at a time as the database can bear, until the cache has most. */
  async #fill(): Promise<void> {
    await sleep(ARM_MS);
    for (let slow = KEYS, laps = 0; slow > 0.02 * KEYS && laps < 10; laps++) {
      let next = 0;
      slow = 0;
      const fill = async () => {
        while (next < KEYS) {
          const since = performance.now();
          const said = await this.#client.read(next++, true).catch(() => null);
          if (said === null || performance.now() - since > QUICK_MS) slow++;
        }
      };
      await Promise.all([fill(), fill()]);
    }
  }

  /** s until in two seconds in a row 95 % were in time. */
  async #recovery(): Promise<number> {
    const endedAt = performance.now();
    let back = Number.POSITIVE_INFINITY;
    for (let calm = 0; performance.now() - endedAt < RECOVERY_MS && calm < 2; ) {
      const beganAt = performance.now();
      const { others, critical } = await this.#measure(1);
      const isWell = others.inTime + critical.inTime >= 0.95 * (others.asked + critical.asked);
      calm = isWell ? calm + 1 : 0;
      if (calm === 1) back = (beganAt - endedAt) / 1000;
      if (calm === 0) back = Number.POSITIVE_INFINITY;
    }
    return back;
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
      trouble === 'none' ? '' : `${Number.isFinite(back) ? back.toFixed(0) : `more than ${RECOVERY_MS / 1000}`} s`,
      `${quantile(critical.ms, 0.99)?.toFixed(0)} ms`,
    ];
  }
}

/** No read of the database is as quick. */
const QUICK_MS = 8;
/** Until a backend that behaves is armed. */
const ARM_MS = 18_000;
const SETTLE_MS = 5_000;
const RECOVERY_MS = 60_000;

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
      [
        '--port',
        `${this.port}`,
        '--bind',
        '127.0.0.1',
        '--save',
        '',
        '--appendonly',
        'no',
        '--enable-debug-command',
        'yes',
      ],
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

  /** Puts another key's answer where one was, or writes into it. */
  async spoil(): Promise<void> {
    const client = new Redis({ host: '127.0.0.1', port: this.port });
    client.on('error', () => {});
    const keys = (await client.keys('*')).filter((key) => /^fact:|:d:/.test(key));
    const pipeline = client.pipeline();
    for (const [at, key] of keys.entries()) {
      if (at % 2 === 0) pipeline.copy(keys.at(at - 2)!, key, 'REPLACE');
      else pipeline.setrange(key, 0, 'garbage');
    }
    await pipeline.exec();
    client.disconnect();
    await sleep(500);
  }

  async stop(): Promise<void> {
    this.signal('SIGCONT');
    await this.kill();
  }
}

interface Trouble {
  name: string;
  begin(): Promise<void> | void;
  end(): Promise<void> | void;
}

function troublesOf(cache: Cache, client: Client): Trouble[] {
  let stop: (() => Promise<void>) | null = null;
  return [
    {
      name: '(a) configured where there is none',
      begin: async () => client.moveCache(await freePort()),
      end: () => client.moveCache(cache.port),
    },
    { name: '(b) killed', begin: () => cache.kill(), end: () => cache.run() },
    { name: '(c) frozen', begin: () => cache.signal('SIGSTOP'), end: () => cache.signal('SIGCONT') },
    {
      name: '(d) slow: it answers once a second',
      begin: () => {
        stop = repeatedly(() => cache.command('DEBUG', 'SLEEP', '1'));
      },
      end: () => stop?.(),
    },
    { name: '(e) flushed', begin: () => cache.command('FLUSHALL'), end: () => {} },
    {
      name: '(f) damaged, and other keys’ answers',
      begin: () => {
        stop = repeatedly(() => cache.spoil());
      },
      end: () => stop?.(),
    },
    {
      name: '(g) full: it takes no writes',
      begin: async () => {
        await cache.command('CONFIG', 'SET', 'maxmemory-policy', 'noeviction');
        await cache.command('CONFIG', 'SET', 'maxmemory', '1');
      },
      end: () => cache.command('CONFIG', 'SET', 'maxmemory', '0'),
    },
  ];
}

/** Does it again and again, until what it gives is called. */
function repeatedly(act: () => Promise<void>): () => Promise<void> {
  let isOver = false;
  const running = (async () => {
    while (!isOver) {
      await act();
      await sleep(1);
    }
  })();
  return () => {
    isOver = true;
    return running;
  };
}
