/**
 * `npm run bench -- failover`: the database dies, freezes, is cut off, slows down, goes away for minutes. What do its clients notice?
 *
 *     npm run bench -- failover [--only REGEXP] [--down S] [--soak S] [--seed N]
 *
 * The one idea: clients keep a log of what was acknowledged and when, and are as plain as applications are: no retry code, or retry at once.
 * What they saw is compared with what is in the database afterwards. Databases are real, with real streaming replication;
 * only killing, freezing, cutting and slowing them down is ours. PgBouncer stands beside where it has an answer at all.
 */
import { mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { type EmbeddedPostgres, freePort, startEmbeddedPostgres } from '../src/embedded.ts';
import type { Status } from '../src/ops/status.ts';
import { type Member, type Replicas, startReplicas } from '../test/fixtures/replicas.ts';
import { Soak } from '../test/fixtures/soak.ts';
import { LOG_ROWS, LOG_TABLE, Writers } from '../test/fixtures/writers.ts';
import { type Contender, cpuUs, findPgbouncer, pgbouncer, pgweir, rssKib } from './contenders.ts';
import { Cut } from './cut.ts';
import { quotaOf } from './quota.ts';
import { retryAtOnce } from './retriers.ts';

export interface FailoverOptions {
  only: RegExp;
  /** s that the database is down for, and that the soak takes. */
  down: number;
  soak: number;
  seed: number;
  out: string;
  pgbouncer: string | null;
}

interface Finding {
  what: string;
  value: string;
  /** What it must be; '': it is only told. */
  aim: string;
  isReached: boolean;
}

const CLIENTS = 200;
const POOL = 20;
/** What a client without a deadline of its own gets, in ms, in the scenarios that are about being stuck. */
const DEADLINE_MS = 5_000;
/** A silent server: the second that statement_timeout is over, the second for its cancel request, and ticks. */
const GRACE_MS = 3_000;

export async function failover(options: FailoverOptions): Promise<void> {
  mkdirSync(options.out, { recursive: true });
  const scenarios: Record<string, () => Promise<Finding[]>> = {
    kill,
    switchover,
    freeze,
    cut,
    slow,
    down: () => down(options),
    soak: () => soak(options),
  };
  const lines: string[] = [];
  for (const [name, run] of Object.entries(scenarios)) {
    if (!options.only.test(name)) continue;
    const found = await run();
    lines.push(`\n### ${name}\n\n| | | aim | |\n| --- | --- | --- | --- |`);
    for (const { what, value, aim, isReached } of found)
      lines.push(`| ${what} | ${value} | ${aim} | ${aim === '' ? '' : isReached ? 'reached' : 'NOT REACHED'} |`);
    writeFileSync(join(options.out, 'failover.md'), `${lines.join('\n')}\n`);
    console.log(lines.slice(-found.length - 1).join('\n'));
  }
}

const told = (what: string, value: string | number): Finding => ({
  what,
  value: String(value),
  aim: '',
  isReached: true,
});
const most = (what: string, value: number, aim: number, unit = ''): Finding => ({
  what,
  value: `${Number(value.toFixed(3))}${unit}`,
  aim: `at most ${aim}${unit}`,
  isReached: value <= aim,
});

// --- What is looked at -----------------------------------------------------------------------------------------------

/** pgweir before several hosts, or one. */
function proxyOf(hosts: readonly string[], pool: object = {}, database: object = {}): Promise<Contender> {
  return pgweir(
    'pgweir',
    { port: 0 } as EmbeddedPostgres,
    { size: POOL, ...pool },
    {
      database: { hosts, control: { user: 'postgres' }, ...database },
    },
  );
}

async function statusOf({ opsPort }: Contender): Promise<Status> {
  return (await (await fetch(`http://127.0.0.1:${opsPort}/status.json`)).json()) as Status;
}

/** Reads the metrics of the proxy every second: the worst lag of its event loop, memory, servers being connected. */
class Watch {
  lagP99 = 0;
  readonly rss: number[] = [];
  connectingMax = 0;
  #isOver = false;
  readonly #work: Promise<void>;

  constructor(proxy: Contender) {
    this.#work = this.#watch(proxy);
  }

  async #watch(proxy: Contender): Promise<void> {
    while (!this.#isOver) {
      this.rss.push(rssKib(proxy.pid!) / 1024);
      const text = await (await fetch(`http://127.0.0.1:${proxy.opsPort}/metrics`)).text();
      this.lagP99 = Math.max(this.lagP99, Number(/lag_seconds\{percentile="99"\} (\S+)/.exec(text)?.[1] ?? 0) * 1000);
      for (const [, count] of text.matchAll(/pgweir_servers\{.*state="connecting"\} (\d+)/g))
        this.connectingMax = Math.max(this.connectingMax, Number(count));
      await sleep(1_000);
    }
  }

  async stop(): Promise<void> {
    this.#isOver = true;
    await this.#work;
  }
}

/** Nothing is left of what has happened. */
async function leaks(proxy: Contender): Promise<Finding[]> {
  await sleep(500);
  const { pools, hosts } = await statusOf(proxy);
  const servers = pools.reduce((sum, pool) => sum + pool.active + pool.idle, 0);
  return [
    most('servers afterwards', servers, POOL),
    most(
      'servers at work afterwards',
      pools.reduce((sum, pool) => sum + pool.active, 0),
      0,
    ),
    most(
      'requests that wait afterwards',
      pools.reduce((sum, pool) => sum + pool.waiting, 0),
      0,
    ),
    most('connections counted beyond those', hosts.reduce((sum, host) => sum + host.connections, 0) - servers, 0),
  ];
}

/** ms after `from` from which on clients get `share` of `normal`, in windows of half a second; infinite: not within `within`. */
function recoveredAfter(writers: Writers, from: number, normal: number, share = 0.95, within = 20_000): number {
  for (let at = from; at < from + within; at += 100) {
    if (writers.rate(at, at + 500) >= share * normal && writers.rate(at + 500, at + 1_500) >= 0.9 * share * normal)
      return at - from;
  }
  return Number.POSITIVE_INFINITY;
}

const codesOf = (errors: readonly { code: string }[]) => {
  const counts = new Map<string, number>();
  for (const { code } of errors) counts.set(code, (counts.get(code) ?? 0) + 1);
  return [...counts].map(([code, count]) => `${count} × ${code}`).join(', ') || 'none';
};

/** There may be more of them than a call takes arguments. */
const longest = (all: readonly number[]) => all.reduce((most, each) => Math.max(most, each), 0);

const addressesOf = ({ members }: Replicas) => members.map(({ port }) => `127.0.0.1:${port}`);

async function untilPrimary(proxy: Contender, { port }: Member): Promise<void> {
  for (;;) {
    const { hosts } = await statusOf(proxy);
    if (hosts.some((host) => host.host.endsWith(`:${port}`) && host.role === 'primary' && host.hold === 'open')) return;
    await sleep(50);
  }
}

// --- The primary dies, or is replaced --------------------------------------------------------------------------------

async function kill(): Promise<Finding[]> {
  const replicas = await startReplicas(['a', 'b', 'c'], { sql: LOG_TABLE });
  const [a, b, c] = replicas.members as [Member, Member, Member];
  const proxy = await proxyOf(addressesOf(replicas));
  await untilPrimary(proxy, a);
  const writers = new Writers(proxy.port, CLIENTS);
  await sleep(8_000);
  const killedAt = performance.now();
  const normal = writers.rate(killedAt - 5_000, killedAt);
  await a.kill();
  await sleep(5_000);
  await replicas.promote(b);
  const promotedAt = performance.now();
  await replicas.follow(c, b);
  await sleep(12_000);
  await writers.stop();
  const { missing, twice } = writers.check((await b.query(LOG_ROWS)).rows);
  const inFlight = writers.errors.filter(({ since }) => since <= killedAt);
  const findings = [
    told('rows acknowledged', writers.acknowledged.length),
    most('of these missing', missing.length, 0),
    most('rows written twice', twice.length, 0),
    most('errors of what was in flight', inFlight.length, POOL),
    told('which were', codesOf(inFlight)),
    most('other errors', writers.errors.length - inFlight.length, 0),
    most(
      'back to 95 % of the throughput after the promotion',
      recoveredAfter(writers, promotedAt, normal) / 1000,
      5,
      ' s',
    ),
    told('longest that a row took', `${(longest(writers.times.map(({ ms }) => ms)) / 1000).toFixed(1)} s`),
    ...(await leaks(proxy)),
  ];
  await proxy.stop();
  await replicas.stop();
  return findings;
}

async function switchover(): Promise<Finding[]> {
  const replicas = await startReplicas(['a', 'b', 'c'], { sql: LOG_TABLE });
  const [a, b, c] = replicas.members as [Member, Member, Member];
  const proxy = await proxyOf(addressesOf(replicas));
  await untilPrimary(proxy, a);
  const writers = new Writers(proxy.port, CLIENTS);
  await sleep(5_000);
  const admin = new pg.Client({ host: '127.0.0.1', port: proxy.port, user: 'postgres', database: 'pgweir' });
  await admin.connect();
  const pausedAt = performance.now();
  await admin.query('PAUSE');
  const { rows } = await a.query('SELECT pg_current_wal_lsn() AS lsn');
  while (!(await b.query(`SELECT pg_last_wal_replay_lsn() >= '${rows[0].lsn}' AS is`)).rows[0].is) await sleep(20);
  await a.postgres.stop();
  await replicas.promote(b);
  await replicas.follow(c, b);
  for (let isThere = false; !isThere; await sleep(50))
    isThere = (await statusOf(proxy)).hosts.some((host) => host.host.endsWith(`:${b.port}`) && host.role === 'primary');
  await admin.query('RESUME');
  const resumedAt = performance.now();
  await sleep(5_000);
  await writers.stop();
  await admin.end();
  const { missing, twice } = writers.check((await b.query(LOG_ROWS)).rows);
  const findings = [
    told('rows acknowledged', writers.acknowledged.length),
    most('errors', writers.errors.length, 0),
    most('acknowledged rows missing', missing.length, 0),
    most('rows written twice', twice.length, 0),
    told('from PAUSE to RESUME', `${((resumedAt - pausedAt) / 1000).toFixed(1)} s`),
  ];
  await proxy.stop();
  await replicas.stop();
  return findings;
}

// --- The primary is there and does not answer ------------------------------------------------------------------------

/** 10 s of trouble with one host, under clients with a deadline. */
async function trouble(
  postgres: EmbeddedPostgres,
  host: string,
  begin: () => void,
  end: () => void,
): Promise<Finding[]> {
  await run(host, postgres.port, LOG_TABLE);
  const proxy = await proxyOf([`${host}:${postgres.port}`]);
  const watch = new Watch(proxy);
  const writers = new Writers(proxy.port, CLIENTS, { options: { statement_timeout: DEADLINE_MS } });
  await sleep(6_000);
  const beganAt = performance.now();
  const normal = writers.rate(beganAt - 4_000, beganAt);
  begin();
  await sleep(10_000);
  end();
  const endedAt = performance.now();
  await sleep(15_000);
  await writers.stop();
  await watch.stop();
  const waits = [...writers.times.map(({ ms }) => ms), ...writers.errors.map(({ since, at }) => at - since)];
  const findings = [
    told('errors', codesOf(writers.errors)),
    most(
      'longest that a client waited for an answer, row or error',
      longest(waits) / 1000,
      (DEADLINE_MS + GRACE_MS) / 1000,
      ' s',
    ),
    most('back to 95 % of the throughput', recoveredAfter(writers, endedAt, normal, 0.95, 15_000) / 1000, 5, ' s'),
    most('lag of the event loop, p99 of the worst second', watch.lagP99, 50, ' ms'),
    ...(await leaks(proxy)),
  ];
  await proxy.stop();
  return findings;
}

async function freeze(): Promise<Finding[]> {
  const replicas = await startReplicas(['a'], { isSynchronous: false });
  const [a] = replicas.members as [Member];
  try {
    return await trouble(
      a.postgres,
      '127.0.0.1',
      () => a.freeze(),
      () => a.thaw(),
    );
  } finally {
    await replicas.stop();
  }
}

async function cut(): Promise<Finding[]> {
  const cable = Cut.make();
  if (typeof cable === 'string') {
    console.error(`*** SKIPPED: the network cannot be cut here: ${cable} ***`);
    return [told('skipped', cable)];
  }
  const postgres = await startEmbeddedPostgres({
    dataDir: null,
    port: await freePort(),
    namespace: cable.namespace,
    settings: { fsync: 'off', listen_addresses: cable.address },
    hba: 'host all all 0.0.0.0/0 trust\n',
  });
  try {
    return await trouble(
      postgres,
      cable.address,
      () => cable.cut(),
      () => cable.mend(),
    );
  } finally {
    cable.mend();
    await postgres.stop('immediate');
    cable.remove();
  }
}

/** All queries take fifty times as long: as with a slow disk, but by the processor, which can be taken away without one. */
async function slow(): Promise<Finding[]> {
  const postgres = await startEmbeddedPostgres({ dataDir: null, settings: { fsync: 'off', max_connections: '200' } });
  const quota = quotaOf(postgres);
  const SLOW = 0.02;
  const findings = await trouble(
    postgres,
    '127.0.0.1',
    () => quota.set(SLOW),
    () => quota.set(Number.POSITIVE_INFINITY),
  );
  quota.set(Number.POSITIVE_INFINITY);
  await postgres.stop('immediate');
  await quota.close();
  return [told('how', quota.how), ...findings];
}

// --- The database is gone for minutes --------------------------------------------------------------------------------

const CROWD = 2_000;

async function down({ down: seconds, pgbouncer: given }: FailoverOptions): Promise<Finding[]> {
  const path = findPgbouncer(given);
  if (path === null) console.error('*** SKIPPED: there is no PgBouncer on PATH (--pgbouncer PATH) ***');
  const findings: Finding[] = [];
  for (const name of path === null ? ['pgweir'] : ['pgweir', 'pgbouncer']) {
    const replicas = await startReplicas(['a'], { isSynchronous: false, sql: LOG_TABLE });
    const [a] = replicas.members as [Member];
    const proxy = name === 'pgweir' ? await proxyOf(addressesOf(replicas)) : await pgbouncer(path!, a.postgres, POOL);
    const crowd = await retryAtOnce(proxy.port, CROWD);
    await sleep(8_000);
    const before = await crowd.take();
    await a.kill();
    await sleep(1_000);
    const rss: number[] = [];
    let connectingMax = 0;
    const since = { cpu: cpuUs(proxy.pid!), at: performance.now() };
    await crowd.take();
    for (const end = performance.now() + seconds * 1_000; performance.now() < end; await sleep(500)) {
      rss.push(rssKib(proxy.pid!) / 1024);
      if (name !== 'pgweir') continue;
      const { pools } = await statusOf(proxy);
      connectingMax = Math.max(connectingMax, ...pools.map(({ connecting }) => connecting));
    }
    const cpu = (cpuUs(proxy.pid!) - since.cpu) / (performance.now() - since.at) / 10;
    const during = await crowd.take();
    await a.restart();
    const p99s: number[] = [];
    for (let second = 0; second < 20; second++) {
      await sleep(1_000);
      p99s.push((await crowd.take()).p99);
    }
    await crowd.stop();
    // The first second from which on it stays there.
    const normal = p99s.findLastIndex((p99) => !(p99 <= 1.5 * before.p99)) + 1;
    const isOurs = name === 'pgweir';
    const aim = (finding: Finding): Finding => (isOurs ? finding : { ...finding, aim: '', isReached: true });
    findings.push(
      aim(most(`${name}: processor while the database is down`, cpu, 30, ' % of a core')),
      told(`${name}: attempts of ${CROWD} clients meanwhile`, `${Math.round(during.failed / seconds)} a second`),
      aim(most(`${name}: memory grows by`, Math.max(0, rss.at(-1)! - rss[Math.min(20, rss.length - 1)]!), 20, ' MiB')),
      ...(isOurs ? [most(`${name}: connects at a time`, connectingMax, 2)] : []),
      aim(most(`${name}: p99 back to normal (${before.p99.toFixed(0)} ms) after`, normal, 15, ' s')),
    );
    await proxy.stop();
    await replicas.stop();
  }
  return findings;
}

// --- All of it at random ---------------------------------------------------------------------------------------------

async function soak({ soak: seconds, seed }: FailoverOptions): Promise<Finding[]> {
  const replicas = await startReplicas(['a'], { isSynchronous: false, sql: Soak.sql });
  const [a] = replicas.members as [Member];
  const proxy = await proxyOf(addressesOf(replicas));
  const filesOf = () => readdirSync(`/proc/${proxy.pid}/fd`).length;
  const work = new Soak(proxy.port, a, { clients: 40, seed });
  await sleep(5_000);
  const before = { files: filesOf(), rss: rssKib(proxy.pid!) / 1024 };
  await work.run(seconds * 1_000);
  const verdict = await work.verdict();
  const findings = [
    told('seed', seed),
    told('faults', verdict.faults),
    told('transactions', `${verdict.committed} acknowledged, ${verdict.failed} failed, ${verdict.unknown} not known`),
    most('sums that differ', verdict.differing, 0),
    most('acknowledged transactions missing', verdict.missing, 0),
    most('transactions that failed and are there', verdict.undead, 0),
    most('transactions there twice', verdict.twice, 0),
    ...(await leaks(proxy)),
    most('file descriptors more than before', filesOf() - before.files, POOL),
    most('memory more than before', rssKib(proxy.pid!) / 1024 - before.rss, 50, ' MiB'),
    most('bugs', (await statusOf(proxy)).bugs, 0),
  ];
  await proxy.stop();
  await replicas.stop();
  return findings;
}

async function run(host: string, port: number, sql: string): Promise<void> {
  const client = new pg.Client({ host, port, user: 'postgres', database: 'postgres' });
  await client.connect();
  await client.query(sql);
  await client.end();
}
