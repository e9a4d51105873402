/** Writes that bypass the proxy: heard of by the stream of changes, or by statistics where there is none. */
import t, { type Test } from 'tap';
import { open, type RawClient } from '../fixtures/raw.ts';
import { startReplicas } from '../fixtures/replicas.ts';
import { connect, type Proxy as Pgweir, startProxy, until, withPostgres } from '../fixtures/stack.ts';

const logical = await withPostgres({ settings: { wal_level: 'logical' } });
const plain = await withPostgres();
t.after(async () => {
  await logical.stop();
  await plain.stop();
});

const SQL = `CREATE TABLE plans (id int PRIMARY KEY, n int); INSERT INTO plans SELECT id, 0 FROM generate_series(1, 100) id;
  CREATE TABLE "odd: Name." (id int); CREATE TABLE parts (id int) PARTITION BY LIST (id);
  CREATE TABLE part_1 PARTITION OF parts FOR VALUES IN (1)`;

for (const { port } of [logical, plain]) {
  const client = await connect(port);
  await client.query(SQL);
  await client.end();
}

async function start(t: Test, serverPort: number, lagMax = '2s'): Promise<Pgweir> {
  const proxy = await startProxy(serverPort, {
    database: { cache: 'all', control: { user: 'postgres' } },
    top: { cache: { mode: 'on', wal: { lagMax }, sets: { all: [{ tables: ['*'], ttl: '1h', consistency: 'wal' }] } } },
  });
  t.after(() => proxy.stop());
  const first = await connect(proxy.port);
  await until(() => sensesOf(proxy)?.schema.relations != null, 'the catalogue');
  await first.end();
  return proxy;
}

const sensesOf = ({ app }: Pgweir) => app.snapshot().caches.sensesOf('postgres');
const hits = ({ app }: Pgweir) => app.snapshot().caches.of('postgres')!.counts.hits;

async function warm(client: RawClient, proxy: Pgweir, sql: string): Promise<void> {
  await until(async () => {
    const before = hits(proxy);
    await client.rows(sql);
    return hits(proxy) > before;
  }, `a hit for ${sql}`);
}

t.test('a write past the proxy is seen within 50 ms (99 of 100), by the stream', async (t) => {
  const proxy = await start(t, logical.port);
  const client = await open(t, proxy.port);
  const writer = await open(t, logical.port);
  await until(() => sensesOf(proxy)!.wal!.tier === 'wal', 'the stream');
  /** ms after which each of two hundred writes was seen, in order. */
  const round = async (first: number) => {
    const took: number[] = [];
    for (let n = first; n < first + 200; n++) {
      await warm(client, proxy, 'SELECT n FROM plans WHERE id = 1');
      await writer.rows(`UPDATE plans SET n = ${n} WHERE id = 1`);
      const since = performance.now();
      while ((await client.rows('SELECT n FROM plans WHERE id = 1'))[0]![0] !== String(n));
      took.push(performance.now() - since);
    }
    return took.sort((a, b) => a - b);
  };
  // Others have the processors as well: it must be so in one round of three.
  let took = await round(1);
  for (let rounds = 1; took[197]! >= 50 && rounds < 3; rounds++) took = await round(1 + 200 * rounds);
  t.ok(
    took[197]! < 50,
    `p50 ${took[100]!.toFixed(1)} ms, p99 ${took[197]!.toFixed(1)} ms, longest ${took[199]!.toFixed(1)} ms`,
  );
  t.equal(proxy.bugs(), 0);
});

t.test('partitions, odd names, TRUNCATE, COPY, many rows', async (t) => {
  const proxy = await start(t, logical.port);
  const client = await open(t, proxy.port);
  const writer = await open(t, logical.port);
  await until(() => sensesOf(proxy)!.wal!.tier === 'wal', 'the stream');
  for (const [read, write] of [
    ['SELECT count(*) FROM parts', 'INSERT INTO part_1 VALUES (1)'],
    ['SELECT count(*) FROM "odd: Name."', 'INSERT INTO "odd: Name." VALUES (1)'],
    ['SELECT count(*) FROM plans', 'INSERT INTO plans SELECT id, 0 FROM generate_series(1000, 31000) id'],
    ['SELECT count(*) FROM plans', 'TRUNCATE plans, "odd: Name."'],
  ] as const) {
    await warm(client, proxy, read);
    await writer.rows(write);
    const wanted = await writer.rows(read);
    await until(async () => JSON.stringify(await client.rows(read)) === JSON.stringify(wanted), write, 2_000);
  }
  await writer.rows('INSERT INTO plans SELECT id, 0 FROM generate_series(1, 100) id');
  t.equal(proxy.bugs(), 0);
});

t.test(
  'when the stream is lost nothing is answered from the cache until it is there again, and nothing of before',
  async (t) => {
    const proxy = await start(t, logical.port);
    const client = await open(t, proxy.port);
    const writer = await open(t, logical.port);
    await until(() => sensesOf(proxy)!.wal!.tier === 'wal', 'the stream');
    await warm(client, proxy, 'SELECT n FROM plans WHERE id = 2');
    const { wal } = sensesOf(proxy)!;
    const gaps = wal!.counts.gaps;
    await writer.rows(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'walsender'`);
    await until(() => wal!.counts.gaps > gaps, 'the gap');
    await writer.rows('UPDATE plans SET n = 77 WHERE id = 2');
    t.same(await client.rows('SELECT n FROM plans WHERE id = 2'), [['77']]);
    await until(() => wal!.tier === 'wal', 'the stream again');
    await warm(client, proxy, 'SELECT n FROM plans WHERE id = 2');
    const [[slots]] = (await writer.rows('SELECT count(*) FROM pg_replication_slots')) as [[string]];
    t.equal(slots, '1', 'the old slot is gone with its connection');
    t.equal(proxy.bugs(), 0);
  },
);

t.test(
  'a commit that waits for a standby is heard of before it can be seen: nothing old is kept for new',
  async (t) => {
    const replicas = await startReplicas(['a', 'b'], {
      sql: SQL,
      isSynchronous: true,
      settings: { wal_level: 'logical' },
    });
    t.after(() => replicas.stop());
    const [a, b] = replicas.members as [(typeof replicas.members)[0], (typeof replicas.members)[0]];
    const proxy = await start(t, a.port, '2s');
    const client = await open(t, proxy.port);
    const writer = await open(t, a.port);
    await until(() => sensesOf(proxy)!.wal!.tier === 'wal', 'the stream');
    await warm(client, proxy, 'SELECT n FROM plans WHERE id = 3');
    const { wal } = sensesOf(proxy)!;
    const heard = wal!.counts.commits;
    b.freeze();
    const writing = writer.rows('UPDATE plans SET n = 5 WHERE id = 3');
    await until(() => wal!.counts.commits > heard, 'the commit');
    for (let n = 0; n < 50; n++) t.same(await client.rows('SELECT n FROM plans WHERE id = 3'), [['0']]);
    b.thaw();
    await writing;
    await until(async () => (await client.rows('SELECT n FROM plans WHERE id = 3'))[0]![0] === '5', 'the row');
    await warm(client, proxy, 'SELECT n FROM plans WHERE id = 3');
    t.same(await client.rows('SELECT n FROM plans WHERE id = 3'), [['5']]);
    t.equal(proxy.bugs(), 0);
  },
);

t.test('without logical WAL statistics tell, within 12 s', async (t) => {
  const proxy = await start(t, plain.port);
  const client = await open(t, proxy.port);
  const writer = await open(t, plain.port);
  await until(() => sensesOf(proxy)!.wal!.tier === 'statistics', 'the statistics');
  t.match(sensesOf(proxy)!.wal!.problem, /wal_level/);
  await warm(client, proxy, 'SELECT n FROM plans WHERE id = 4');
  await writer.rows('UPDATE plans SET n = 1 WHERE id = 4');
  const since = performance.now();
  await until(async () => (await client.rows('SELECT n FROM plans WHERE id = 4'))[0]![0] === '1', 'the row', 14_000);
  t.ok(performance.now() - since < 12_000, `${Math.round(performance.now() - since)} ms`);
  await warm(client, proxy, 'SELECT count(*) FROM plans');
  await writer.rows('TRUNCATE plans');
  await until(async () => (await client.rows('SELECT count(*) FROM plans'))[0]![0] === '0', 'TRUNCATE', 14_000);
  t.equal(proxy.bugs(), 0);
});
