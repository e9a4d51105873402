/** The read cache end to end: what is answered without the database, and that it is what the database would have said. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { open, type RawClient, send, sqlstates, types } from '../fixtures/raw.ts';
import { FakeRedis } from '../fixtures/resp.ts';
import { connect, type Proxy as Pgweir, startProxy, until, withPostgres } from '../fixtures/stack.ts';

const postgres = await withPostgres({ settings: { max_prepared_transactions: '5' } });
t.after(() => postgres.stop());

/** Past the proxy. */
async function direct(sql: string): Promise<void> {
  const client = await connect(postgres.port);
  await client.query(sql);
  await client.end();
}

await direct('CREATE TABLE plans (id int PRIMARY KEY, name text); CREATE TABLE other (id int)');
await direct(`INSERT INTO plans SELECT n, 'plan ' || n FROM generate_series(1, 100) n`);

interface Options {
  cache?: Record<string, unknown>;
  rule?: Record<string, unknown>;
  pool?: Record<string, unknown>;
  top?: Record<string, unknown>;
}

async function start(t: Test, { cache = {}, rule = {}, pool = {}, top = {} }: Options = {}): Promise<Pgweir> {
  const proxy = await startProxy(postgres.port, {
    pool,
    database: { cache: 'all', control: { user: 'postgres' } },
    top: {
      cache: {
        mode: 'on',
        verify: '0%',
        sets: { all: [{ tables: ['plans', 'p_*', 'v_*'], ttl: '1h', consistency: 'proxy', ...rule }] },
        ...cache,
      },
      ...top,
    },
  });
  t.after(() => proxy.stop());
  const first = await connect(proxy.port);
  await until(() => proxy.app.snapshot().caches.sensesOf('postgres')?.schema.relations != null, 'the catalogue');
  await first.end();
  return proxy;
}

const cacheOf = ({ app }: Pgweir) => app.snapshot().caches.of('postgres')!;
const hits = (proxy: Pgweir) => cacheOf(proxy).counts.hits;

/** Asks until the answer comes from the cache. */
async function warm(client: RawClient, proxy: Pgweir, sql: string): Promise<void> {
  await until(async () => {
    const before = hits(proxy);
    await client.rows(sql);
    return hits(proxy) > before;
  }, `a hit for ${sql}`);
}

const PLAN = 'SELECT name FROM plans WHERE id = 7';

t.test('a read that a rule names is answered once by the database', async (t) => {
  const proxy = await start(t);
  const client = await open(t, proxy.port);
  await warm(client, proxy, PLAN);
  const { queries } = proxy.app.snapshot().pools[0]!.counts;
  const leases = proxy.app.snapshot().pools[0]!.counts.leases;
  for (let n = 0; n < 10; n++) t.same(await client.rows(PLAN), [['plan 7']]);
  t.equal(proxy.app.snapshot().pools[0]!.counts.leases, leases);
  t.equal(proxy.app.snapshot().pools[0]!.counts.queries, queries + 10);
  t.equal(proxy.bugs(), 0);
});

t.test('a write through the proxy is seen by everybody at once', async (t) => {
  const proxy = await start(t);
  const [a, b] = [await open(t, proxy.port), await open(t, proxy.port)];
  await warm(a, proxy, PLAN);
  await b.rows(`UPDATE plans SET name = 'changed' WHERE id = 7`);
  t.same(await a.rows(PLAN), [['changed']]);
  await b.rows('BEGIN');
  await b.rows(`UPDATE plans SET name = 'plan 7' WHERE id = 7`);
  t.same(await a.rows(PLAN), [['changed']]);
  t.same(await b.rows(PLAN), [['plan 7']]);
  await b.rows('COMMIT');
  t.same(await a.rows(PLAN), [['plan 7']]);
  t.equal(proxy.bugs(), 0);
});

t.test('answers are byte for byte those of the database, in both protocols', async (t) => {
  const proxy = await start(t);
  const [server, client] = [await open(t, postgres.port), await open(t, proxy.port)];
  const group = (describe: boolean, format: number) => [
    send.parse('', 'SELECT id, name FROM plans WHERE id = $1', [23]),
    send.bind('', '', ['9'], [format]),
    ...(describe ? [send.describe('P', '')] : []),
    send.execute(''),
    send.sync(),
  ];
  for (const ask of [
    [send.query(PLAN)],
    group(true, 0),
    group(true, 1),
    group(false, 0),
    group(false, 1),
    [send.query('SELECT * FROM plans ORDER BY id')],
    [send.query('SELECT name FROM plans WHERE false')],
  ]) {
    const wanted = await server.ask(ask);
    const before = hits(proxy);
    await until(async () => {
      t.same(await client.ask(ask), wanted);
      return hits(proxy) >= before + 2;
    }, 'two hits');
  }
  t.equal(proxy.bugs(), 0);
});

t.test('in observe mode nothing is answered, and what would have been is counted', async (t) => {
  const proxy = await start(t, { cache: { mode: 'observe' } });
  const client = await open(t, proxy.port);
  await until(async () => {
    t.same(await client.rows(PLAN), [['plan 7']]);
    return cacheOf(proxy).counts.would > 3;
  }, 'hits that would have been');
  t.equal(hits(proxy), 0);
  t.equal(cacheOf(proxy).store.size, 1);
  t.ok(cacheOf(proxy).store.bytes < 1000, 'without their bytes');
});

t.test('what is not to be kept, and why', async (t) => {
  await direct(`
    CREATE TABLE p_rls (id int); ALTER TABLE p_rls ENABLE ROW LEVEL SECURITY;
    CREATE FUNCTION mine(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1';
    CREATE VIEW v_now AS SELECT id, now() AS at FROM plans;
    CREATE VIEW v_plain AS SELECT id FROM plans;
    CREATE TYPE mood AS ENUM ('good', 'bad');
    CREATE OPERATOR === (LEFTARG = int, RIGHTARG = int, FUNCTION = int4eq)`);
  const proxy = await start(t);
  const client = await open(t, proxy.port);
  const refused: [string, RegExp][] = [
    ['SELECT now() FROM plans', /now may give another answer/],
    ['SELECT random() FROM plans', /random may give/],
    ['SELECT current_date FROM plans', /SQLValueFunction/],
    ['SELECT age(timestamp $$2020-01-01$$) FROM plans', /age/],
    ['SELECT id === 1 FROM plans', /operator ===/],
    [`SELECT 'good'::mood FROM plans`, /type mood/],
    [`SELECT 'plans'::regclass FROM plans`, /type regclass/],
    ['SELECT ctid FROM plans', /ctid/],
    ['SELECT * FROM p_rls', /row level security/],
    ['SELECT * FROM v_now', /in view v_now: now may give/],
    ['SELECT * FROM other', /no rule names other/],
    ['SELECT 1', /reads no table/],
    ['SELECT relname FROM pg_class, plans', /may be one of the catalogue/],
    ['SELECT * FROM information_schema.tables, plans', /information_schema/],
    ['SELECT plans.mine FROM (SELECT 1 AS mine) plans', /mine may be a function/],
  ];
  for (const [sql, why] of refused) {
    const shapes = () => [...cacheOf(proxy).shapes];
    await until(async () => {
      await client.ask(send.query(sql));
      return shapes().some(({ judgement }) => judgement.kind === 'refused' && why.test(judgement.why));
    }, `${sql}: ${why}`);
  }
  for (let n = 0; n < 5; n++) await client.rows('SELECT mine(id) FROM plans');
  t.equal(hits(proxy), 0);
  await warm(client, proxy, 'SELECT * FROM v_plain WHERE id = 3');
  await client.rows('DELETE FROM plans WHERE id = 3');
  t.same(await client.rows('SELECT * FROM v_plain WHERE id = 3'), []);
  await client.rows(`INSERT INTO plans VALUES (3, 'plan 3')`);
  for (const sql of [`SELECT name FROM plans WHERE name <> 'now'`, `SELECT name FROM plans WHERE name <> E'n\\x6fw'`])
    for (let n = 0; n < 3; n++) await client.rows(sql);
  t.equal(hits(proxy), 1, 'a literal that may be the clock');
  t.equal(proxy.bugs(), 0);
});

t.test('everything that may write is taken to have written', async (t) => {
  await direct(`
    CREATE TABLE p_parent (id int PRIMARY KEY); CREATE TABLE p_child (id int REFERENCES p_parent ON DELETE CASCADE, n int);
    CREATE TABLE p_log (id int); CREATE TABLE p_source (id int);
    CREATE FUNCTION log_it() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO p_log VALUES (1); RETURN NULL; END';
    CREATE TRIGGER it AFTER INSERT ON p_source FOR EACH ROW EXECUTE FUNCTION log_it();
    CREATE FUNCTION add_child() RETURNS int LANGUAGE sql AS 'INSERT INTO p_child VALUES (NULL, 9) RETURNING n';
    CREATE TABLE p_parts (id int, k int) PARTITION BY LIST (k);
    CREATE TABLE p_part_1 PARTITION OF p_parts FOR VALUES IN (1); CREATE TABLE p_part_2 PARTITION OF p_parts FOR VALUES IN (2);
    INSERT INTO p_parent VALUES (1), (2); INSERT INTO p_child VALUES (1, 1), (2, 2)`);
  const proxy = await start(t);
  const [reader, writer] = [await open(t, proxy.port), await open(t, proxy.port)];
  const server = await open(t, postgres.port);
  const cases: [string, string, string?][] = [
    ['SELECT count(*) FROM p_child', 'DELETE FROM p_parent WHERE id = 1', 'ON DELETE CASCADE'],
    ['SELECT count(*) FROM p_log', 'INSERT INTO p_source VALUES (1)', 'a trigger'],
    ['SELECT count(*) FROM p_child', 'SELECT add_child()', 'a function'],
    ['SELECT count(*) FROM p_child', 'DO $$ BEGIN INSERT INTO p_child VALUES (NULL, 1); END $$', 'DO'],
    [
      'SELECT count(*) FROM p_child',
      'WITH x AS (INSERT INTO p_child VALUES (NULL, 3) RETURNING *) SELECT * FROM x',
      'WITH',
    ],
    [
      'SELECT count(*) FROM p_child',
      'MERGE INTO p_child c USING (VALUES (77)) v(n) ON c.n = v.n WHEN NOT MATCHED THEN INSERT VALUES (NULL, v.n)',
      'MERGE',
    ],
    ['SELECT count(*) FROM p_child', 'EXPLAIN (ANALYZE) INSERT INTO p_child VALUES (NULL, 5)', 'EXPLAIN ANALYZE'],
    [
      'SELECT count(*) FROM p_child',
      'PREPARE ins AS INSERT INTO p_child VALUES (NULL, 6); EXECUTE ins; DEALLOCATE ins',
      'EXECUTE',
    ],
    ['SELECT count(*) FROM p_parts', 'INSERT INTO p_part_1 VALUES (1, 1)', 'a partition'],
    ['SELECT count(*) FROM p_part_2', 'INSERT INTO p_parts VALUES (2, 2)', 'its parent'],
    ['SELECT count(*) FROM p_child', 'BEGIN; INSERT INTO p_child VALUES (NULL, 7); COMMIT', 'several in one text'],
    ['SELECT count(*) FROM p_child', 'TRUNCATE p_child', 'TRUNCATE'],
    ['SELECT count(*) FROM p_parts', 'ALTER TABLE p_parts DETACH PARTITION p_part_2', 'DDL'],
  ];
  for (const [read, write, what] of cases) {
    await warm(reader, proxy, read);
    await writer.ask(send.query(write));
    t.same(await reader.rows(read), await server.rows(read), what ?? write);
  }
  await warm(reader, proxy, 'SELECT count(*) FROM p_child');
  await writer.ask([
    send.parse('ins', 'INSERT INTO p_child VALUES (NULL, $1)', [23]),
    send.bind('', 'ins', ['5']),
    send.execute(''),
    send.sync(),
  ]);
  t.same(await reader.rows('SELECT count(*) FROM p_child'), await server.rows('SELECT count(*) FROM p_child'));
  await warm(reader, proxy, 'SELECT count(*) FROM p_child');
  await writer.ask([send.bind('', 'ins', ['6']), send.execute(''), send.sync()]);
  t.same(await reader.rows('SELECT count(*) FROM p_child'), await server.rows('SELECT count(*) FROM p_child'));
  t.equal(proxy.bugs(), 0);
});

t.test('who asks the same at the same time is answered together', async (t) => {
  const proxy = await start(t);
  const SLOW = 'SELECT count(*) FROM plans p, generate_series(1, 200000) g';
  const clients = await Promise.all(Array.from({ length: 12 }, () => open(t, proxy.port)));
  await warm(clients[0]!, proxy, SLOW);
  await clients[0]!.rows('UPDATE plans SET name = name WHERE id = 1');
  const { leases, shared } = { ...proxy.app.snapshot().pools[0]!.counts };
  const answers = await Promise.all(clients.map((client) => client.rows(SLOW)));
  for (const answer of answers) t.same(answer, answers[0]);
  const now = proxy.app.snapshot().pools[0]!.counts;
  t.equal(now.leases + now.shared, leases + shared + 1, 'the database was asked once');
  t.ok(cacheOf(proxy).counts.followed >= 11);
  // The one who asks gives up: somebody else asks.
  await clients[0]!.rows('UPDATE plans SET name = name WHERE id = 1');
  clients[0]!.write(send.query(SLOW));
  await until(() => cacheOf(proxy).filling === 1, 'the question');
  const rest = clients.slice(1).map((client) => client.rows(SLOW));
  await until(() => cacheOf(proxy).counts.followed >= 22, 'followers');
  clients[0]!.socket.destroy();
  for (const answer of await Promise.all(rest)) t.same(answer, answers[0]);
  t.equal(cacheOf(proxy).filling, 0);
  t.equal(proxy.bugs(), 0);
});

t.test('stale while revalidate: the old answer at once, and the new one soon', async (t) => {
  const proxy = await start(t, { rule: { ttl: '100ms', staleWhileRevalidate: '1h', consistency: 'ttl' } });
  const client = await open(t, proxy.port);
  await warm(client, proxy, PLAN);
  await direct(`UPDATE plans SET name = 'new' WHERE id = 7`);
  await new Promise((done) => setTimeout(done, 150));
  t.same(await client.rows(PLAN), [['plan 7']], 'the old one');
  t.ok(cacheOf(proxy).counts.stale > 0);
  await until(async () => (await client.rows(PLAN))[0]![0] === 'new', 'the new one');
  await direct(`UPDATE plans SET name = 'plan 7' WHERE id = 7`);
  t.equal(proxy.bugs(), 0);
});

t.test(
  'stale if error: what has expired is given when the database cannot answer, what is invalid is not',
  async (t) => {
    const postgres = await withPostgres();
    t.after(() => postgres.stop('immediate'));
    const sql = await connect(postgres.port);
    await sql.query(
      `CREATE TABLE plans (id int, name text); INSERT INTO plans SELECT n, 'plan ' || n FROM generate_series(1, 9) n`,
    );
    await sql.end();
    const proxy = await startProxy(postgres.port, {
      pool: { waitMax: '300ms', connectMax: '300ms', size: 4 },
      database: { cache: 'all', control: { user: 'postgres' }, hold: { for: '100ms' } },
      top: {
        cache: {
          mode: 'on',
          sets: { all: [{ tables: ['plans'], ttl: '100ms', staleIfError: '1h', consistency: 'proxy' }] },
        },
      },
    });
    t.after(() => proxy.stop());
    const [a, b] = [await open(t, proxy.port), await open(t, proxy.port)];
    await warm(a, proxy, PLAN);
    const group = [
      send.parse('', 'SELECT name FROM plans WHERE id = $1', [23]),
      send.bind('', '', ['8']),
      send.describe('P', ''),
      send.execute(''),
      send.sync(),
    ];
    const wanted = await a.ask(group);
    await until(async () => {
      const before = hits(proxy);
      await a.ask(group);
      return hits(proxy) > before;
    }, 'a hit');
    await b.rows(`UPDATE plans SET name = 'changed' WHERE id = 3`);
    await a.rows(PLAN);
    await a.ask(group);
    await a.rows('SELECT name FROM plans WHERE id = 2');
    await new Promise((done) => setTimeout(done, 200));
    await postgres.stop('immediate');
    for (let n = 0; n < 3; n++) {
      t.same(await a.rows(PLAN), [['plan 7']]);
      t.same(await b.rows(PLAN), [['plan 7']]);
      t.same(await a.ask(group), wanted);
    }
    t.ok(cacheOf(proxy).counts.staleOnError >= 9);
    await t.rejects(a.rows('SELECT name FROM plans WHERE id = 5'), 'never asked before');
    cacheOf(proxy).freshness.bump('all');
    await t.rejects(a.rows(PLAN), 'known to be older than a write');
    t.equal(proxy.bugs(), 0);
  },
);

t.test('in a transaction that has only begun, if that is wanted', async (t) => {
  for (const inTransactions of ['off', 'on']) {
    const proxy = await start(t, { cache: { inTransactions } });
    const client = await open(t, proxy.port);
    await warm(client, proxy, PLAN);
    const before = hits(proxy);
    for (const begin of ['BEGIN', 'BEGIN ISOLATION LEVEL REPEATABLE READ', 'BEGIN READ ONLY']) {
      await client.rows(begin);
      t.same(await client.rows(PLAN), [['plan 7']]);
      const messages = await client.ask(send.query(PLAN));
      t.equal(messages.at(-1)!.body.toString(), 'T');
      await client.rows(`UPDATE plans SET name = name WHERE id = 8`).catch(() => {});
      await client.rows('ROLLBACK');
      await warm(client, proxy, PLAN);
    }
    t.equal(hits(proxy) - before > 6, inTransactions === 'on', `${hits(proxy) - before} hits with ${inTransactions}`);
    t.equal(proxy.bugs(), 0);
  }
});

t.test('settings and roles tell questions apart', async (t) => {
  await direct(`CREATE TABLE p_times (at timestamptz, data bytea); INSERT INTO p_times VALUES ('2024-02-03 04:05:06+00', '\\x00ff');
    CREATE SCHEMA elsewhere; CREATE TABLE elsewhere.p_times (at text, data text); INSERT INTO elsewhere.p_times VALUES ('there', '');
    CREATE ROLE nobody`);
  const proxy = await start(t);
  const [client, server] = [await open(t, proxy.port), await open(t, postgres.port)];
  const sql = 'SELECT at, data FROM p_times';
  await warm(client, proxy, sql);
  for (const setting of [
    `SET TimeZone = 'Asia/Tokyo'`,
    `SET DateStyle = 'German'`,
    `SET bytea_output = 'escape'`,
    'SET search_path = elsewhere',
    'RESET ALL',
  ]) {
    for (const each of [client, server]) await each.rows(setting);
    for (let n = 0; n < 4; n++) t.same(await client.rows(sql), await server.rows(sql), setting);
  }
  await client.rows('SET ROLE nobody');
  await t.rejects(client.rows(sql), /permission denied/);
  await client.rows('RESET ROLE');
  t.equal(proxy.bugs(), 0);
});

t.test('hints: by the statement itself', async (t) => {
  const proxy = await start(t, { cache: { sets: { all: [{ hint: true, consistency: 'proxy' }] } } });
  const client = await open(t, proxy.port);
  await warm(client, proxy, `/*+ pgweir cache ttl=1h */ ${PLAN}`);
  const before = hits(proxy);
  for (let n = 0; n < 3; n++) {
    await client.rows(PLAN);
    await client.rows(`/*+ pgweir nocache */ ${PLAN}`);
    await client.rows(`/*+ pgweir cache ttl=often */ ${PLAN}`);
  }
  t.equal(hits(proxy), before);
  await client.rows(`/*+ pgweir cache ttl=1h */ ${PLAN} -- traceparent='${Math.random()}'`);
  t.equal(hits(proxy), before + 1, 'other comments make no difference');
});

t.test('the console tells what the cache does', async (t) => {
  const proxy = await start(t);
  const client = await open(t, proxy.port);
  await warm(client, proxy, PLAN);
  const console = await connect(proxy.port, { database: 'pgweir' });
  const [row] = (await console.query('SHOW CACHE')).rows;
  t.match(row, { database: 'postgres', mode: 'on', hits: /[1-9]/ });
  const shapes = (await console.query('SHOW CACHE_SHAPES')).rows;
  t.match(
    shapes.find(({ statement }) => statement.includes('from plans')),
    { verdict: /kept for 3600 s, consistency proxy/ },
  );
  await console.end();
  const text = await (await fetch(`http://127.0.0.1:${proxy.opsPort}/metrics`)).text();
  t.match(text, /pgweir_cache_reads_total\{database="postgres",outcome="hit"\} [1-9]/);
  t.match(text, /pgweir_cache_table_reads_total\{database="postgres",table="plans",outcome="hit"\} [1-9]/);
  t.notMatch(text, /SELECT/i);
});

t.test('what is given is compared with the database, and what says something else each time is not kept', async (t) => {
  const proxy = await start(t, { cache: { verify: '100%' }, rule: { consistency: 'session' } });
  const client = await open(t, proxy.port);
  await warm(client, proxy, PLAN);
  await until(async () => {
    await client.rows(PLAN);
    return cacheOf(proxy).counts.verified > 2;
  }, 'comparisons');
  // A write that nobody has heard of: the answer is dropped.
  await direct(`UPDATE plans SET name = 'behind' WHERE id = 7`);
  await until(async () => (await client.rows(PLAN))[0]![0] === 'behind', 'the new one');
  await direct(`UPDATE plans SET name = 'plan 7' WHERE id = 7`);
  t.ok(cacheOf(proxy).counts.differed > 0);
  t.equal(proxy.bugs(), 0);
});

t.test('answers that are compared or asked for again leave the client’s own statements alone', async (t) => {
  const proxy = await start(t, {
    cache: { verify: '100%' },
    rule: { ttl: '100ms', staleWhileRevalidate: '1h', consistency: 'ttl' },
  });
  const client = await open(t, proxy.port);
  const sql = 'SELECT name FROM plans WHERE id = $1';
  const rest = (name: string) => [send.bind('', name, ['7']), send.describe('P', ''), send.execute(''), send.sync()];
  const seen = () => cacheOf(proxy).counts.verified + cacheOf(proxy).counts.stale;
  for (let n = 0; n < 4 || (seen() <= 20 && n < 5_000); n++) {
    const first = await client.ask([send.parse(`s${n}`, sql, [23]), ...rest(`s${n}`)]);
    t.equal(types(first), '12TDCZ');
    t.equal(types(await client.ask(rest(`s${n}`))), '2TDCZ', `s${n}`);
  }
  t.ok(seen() > 20);
  t.equal(cacheOf(proxy).counts.differed, 0);
  await direct(`UPDATE plans SET name = 'again' WHERE id = 7`);
  await until(async () => (await client.ask(rest('s3'))).some(({ body }) => body.includes('again')), 'the new row');
  await direct(`UPDATE plans SET name = 'plan 7' WHERE id = 7`);
  t.equal(proxy.bugs(), 0);
});

t.test(
  'no more names than without a cache, and a Bind that is not well formed gets Postgres’s own error',
  async (t) => {
    const proxy = await start(t);
    const client = await open(t, proxy.port);
    const ask = (name: string) => [send.parse(name, PLAN), send.bind('', name), send.execute(''), send.sync()];
    await warm(client, proxy, PLAN); // Now it is known that it may be kept.
    let refused = 0;
    for (let n = 0; n < 10_010; n++) {
      const messages = await client.ask(ask(`n${n}`));
      if (sqlstates(messages).length > 0) refused++;
    }
    t.ok(hits(proxy) > 9_000);
    t.equal(refused, 10);
    const other = await open(t, proxy.port);
    await warm(other, proxy, PLAN);
    for (const bytes of [
      [0, 9, 0, 0, 0, 0],
      [0, 0, 0, 9, 0, 0],
      [0, 0, 0, 1, 0, 0, 0, 99, 1, 0, 0],
    ]) {
      const bind = Buffer.concat([Buffer.from([0x42, 0, 0, 0, 6 + bytes.length, 0, 0]), Buffer.from(bytes)]);
      const messages = await other.ask([
        send.parse('', 'SELECT name FROM plans WHERE id = $1', [23]),
        bind,
        send.execute(''),
        send.sync(),
      ]);
      t.match(sqlstates(messages)[0], /^08P01/);
    }
    t.equal(proxy.bugs(), 0);
  },
);

t.test('a transaction that another session commits is seen', async (t) => {
  const proxy = await start(t);
  const [reader, writer] = [await open(t, proxy.port), await open(t, proxy.port)];
  await writer.rows('BEGIN');
  await writer.rows(`UPDATE plans SET name = 'prepared' WHERE id = 7`);
  await writer.rows(`PREPARE TRANSACTION 'one'`);
  await warm(reader, proxy, PLAN);
  t.same(await reader.rows(PLAN), [['plan 7']]);
  await writer.rows(`COMMIT PREPARED 'one'`);
  t.same(await reader.rows(PLAN), [['prepared']]);
  await writer.rows(`UPDATE plans SET name = 'plan 7' WHERE id = 7`);
});

t.test('a pipeline is never answered in part and then left alone', async (t) => {
  const proxy = await start(t, { rule: { ttl: '50ms', staleIfError: '1h' } });
  const client = await open(t, proxy.port);
  await warm(client, proxy, PLAN);
  await new Promise((done) => setTimeout(done, 100));
  const lock = await connect(postgres.port);
  await lock.query('BEGIN; LOCK plans');
  client.write(Buffer.concat([send.query(PLAN), send.query('SELECT 1 AS second')]));
  await until(() => cacheOf(proxy).filling === 1, 'the question');
  const killer = await connect(postgres.port);
  const KILL = `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query = '${PLAN.replaceAll("'", "''")}'`;
  await until(async () => (await killer.query(KILL)).rowCount! > 0, 'its server');
  const messages = await client.closed();
  t.match(sqlstates(messages)[0], /57P01/);
  await Promise.all([lock.end(), killer.end()]);
  t.equal(proxy.bugs(), 0);
});

t.test('at its end it is written down what of the shared cache was told of every write, once', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'pgweir-state-'));
  const redis = await FakeRedis.start();
  t.after(() => {
    rmSync(dir, { recursive: true, force: true });
    return redis.stop();
  });
  const told = () => JSON.parse(readFileSync(join(dir, 'told.json'), 'utf8'));
  const startOnce = async () => {
    const proxy = await startProxy(postgres.port, {
      top: {
        databases: { postgres: { hosts: [`127.0.0.1:${postgres.port}`], control: { user: 'postgres' }, cache: 'all' } },
        cache: {
          mode: 'on',
          backend: { url: `redis://127.0.0.1:${redis.port}` },
          sets: { all: [{ tables: ['plans'], ttl: '1h', consistency: 'proxy' }] },
        },
        state: { dir },
      },
    });
    t.after(() => proxy.stop());
    await until(() => proxy.app.snapshot().caches.sensesOf('postgres')?.schema.relations != null, 'the catalogue');
    // Only now is it known who the primary is, and nobody else has to hear of the first.
    await until(() => proxy.app.snapshot().clusters[0]!.roles.values().next().value?.role === 'primary', 'the primary');
    return proxy;
  };
  await (await startOnce()).stop();
  const first = told();
  t.equal(Object.keys(first).length, 1);
  const second = await startOnce();
  t.same(told(), {}, 'whoever is killed leaves nothing');
  await second.stop();
  t.same(told(), first);
  redis.fault = 'loading';
  const third = await startOnce();
  await (await open(t, third.port)).rows('UPDATE plans SET name = name WHERE id = 1');
  await third.stop();
  t.same(told(), {}, 'a write could not be told');
});
