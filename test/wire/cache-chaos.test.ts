/**
 * A shared cache that misbehaves in every way, behind a whole proxy: its clients notice nothing but the time that the database takes. The backend is a FAKE
 * (a real Redis is in test/cache/backend); so that nine of them need be waited for once, there are nine proxies.
 */
import t from 'tap';
import { open, send, sqlstates } from '../fixtures/raw.ts';
import { FakeRedis, faults } from '../fixtures/resp.ts';
import { connect, startProxy, until, withPostgres } from '../fixtures/stack.ts';

const KEYS = 40;
const LAPS = 3;
const CLIENTS = 8;
/** Servers of a pool, and the half of them that misses may have. */
const SERVERS = 4;
/** More than a read takes on a busy machine, and much less than a backend is silent. */
const PATIENCE_MS = 1_000;
const postgres = await withPostgres({ settings: { max_connections: '200' } });
const admin = await connect(postgres.port);
await admin.query('CREATE TABLE facts (id int PRIMARY KEY, said text)');
await admin.query(`INSERT INTO facts SELECT n, 'fact ' || n FROM generate_series(1, ${KEYS}) n`);
await admin.end();

/** Long enough for the database that the backend is asked, and too large for all of them to stay in memory. */
const sql = (key: number) =>
  `SELECT said, repeat('x', 8000), (SELECT count(*) FROM generate_series(1, 100000)) FROM facts WHERE id = ${key}`;

async function start() {
  const redis = await FakeRedis.start();
  const proxy = await startProxy(postgres.port, {
    pool: { size: SERVERS },
    database: { cache: 'all', control: { user: 'postgres' } },
    top: {
      cache: {
        mode: 'on',
        verify: '0%',
        memoryMax: '64KiB',
        // This process is ten proxies, ten backends and all their clients.
        backend: { url: `redis://127.0.0.1:${redis.port}`, budget: '100ms' },
        sets: { all: [{ tables: ['facts'], ttl: '1h', consistency: 'proxy' }] },
      },
    },
  });
  const { caches } = proxy.app.snapshot();
  return { redis, proxy, cache: () => caches.of('postgres')!, arming: caches.backend!.arming };
}

const started = await Promise.all([...faults, 'killed' as const].map(async (fault) => ({ fault, ...(await start()) })));
t.teardown(async () => {
  for (const { proxy, redis, fault } of started) {
    await proxy.stop();
    if (fault !== 'killed') await redis.stop();
  }
  await postgres.stop();
});

for (const { fault, redis, proxy, cache, arming } of started) {
  t.test(`fault: ${fault}`, async (t) => {
    const clients = await Promise.all(Array.from({ length: CLIENTS }, () => open(t, proxy.port)));
    let wrong = 0;
    let longest = 0;
    let most = 0;
    const errors = new Set<string>();
    const askAll = async () => {
      let next = 0;
      const work = clients.map(async (client) => {
        while (next < KEYS * LAPS) {
          const key = (next++ % KEYS) + 1;
          const since = performance.now();
          const messages = await client.ask([send.query(sql(key))]);
          longest = Math.max(longest, performance.now() - since);
          most = Math.max(most, cache().misses.active);
          const [error] = sqlstates(messages);
          const [row] = messages.filter(({ type }) => type === 'D');
          if (error !== undefined) errors.add(error);
          else if (row?.body.includes(`fact ${key}\0`) !== true) wrong++;
        }
      });
      await Promise.all(work);
    };
    await until(
      async () => {
        await askAll();
        return arming.state === 'armed' && cache().counts.fromBackend > KEYS;
      },
      'answers of the backend',
      60_000,
    );
    [wrong, longest, most] = [0, 0, 0];
    errors.clear();
    if (fault === 'killed') await redis.stop();
    else redis.fault = fault;
    await askAll();
    await askAll();
    errors.delete('53000');
    t.same([...errors], [], 'nobody hears of it, but who is too much for the database');
    t.equal(wrong, 0);
    t.ok(longest < PATIENCE_MS, `the longest wait was ${longest.toFixed(0)} ms`);
    t.ok(most <= SERVERS / 2 + 1, `at most ${most} servers for misses`);
    // These two are found out by who writes, and everything may be kept already.
    if (fault !== 'full' && fault !== 'readonly') t.not(arming.state, 'armed');
    t.equal(proxy.bugs(), 0);
  });
}
