/**
 * Limits of databases and users: how many clients, how many servers, the reserve, SQL for new servers, settings of one user,
 * and databases that "*" stands for being forgotten. Numbers of servers are those that Postgres counts.
 */
import type pg from 'pg';
import t from 'tap';
import { RawClient } from '../fixtures/raw.ts';
import { startRelay } from '../fixtures/relay.ts';
import { connect, startProxy, until, withPostgres } from '../fixtures/stack.ts';

const postgres = await withPostgres();
t.after(() => postgres.stop());

async function ask(sql: string): Promise<pg.QueryResult> {
  const admin = await connect(postgres.port);
  try {
    return await admin.query(sql);
  } finally {
    await admin.end();
  }
}

for (const name of ['anna', 'bert']) await ask(`CREATE ROLE ${name} LOGIN`);
await ask('CREATE DATABASE second');

const servers = async (where: string) =>
  (await ask(`SELECT count(*)::int n FROM pg_stat_activity WHERE ${where}`)).rows[0].n as number;

t.test('clients of a database and of a user', async (t) => {
  const proxy = await startProxy(postgres.port, {
    database: { clientsMax: 3 },
    top: { users: { anna: { clientsMax: 2 }, '*': { clientsMax: 3 } } },
  });
  t.teardown(() => proxy.stop());
  const anna = await connect(proxy.port, { user: 'anna' });
  const second = await connect(proxy.port, { user: 'anna' });
  const late = { code: '53300', message: 'too many connections for role "anna"' };
  await t.rejects(connect(proxy.port, { user: 'anna' }), late);
  const bert = await connect(proxy.port, { user: 'bert' });
  await t.rejects(connect(proxy.port, { user: 'bert' }), {
    code: '53300',
    message: 'too many connections for database "postgres"',
    hint: /databases\.\*\.clientsMax/,
  });
  const elsewhere = await connect(proxy.port, { user: 'bert', database: 'second' });
  await second.end();
  await until(async () => {
    try {
      await (await connect(proxy.port, { user: 'anna' })).end();
      return true;
    } catch {
      return false;
    }
  }, 'room');
  for (const client of [anna, bert, elsewhere]) await client.end();
  t.equal(proxy.bugs(), 0);
});

t.test('servers of a database and of a user, whose idle ones make room', async (t) => {
  const proxy = await startProxy(postgres.port, {
    pool: { size: 4, sizeTotal: 3, waitMax: '300ms' },
    top: { users: { anna: { serversMax: 2 } } },
  });
  t.teardown(() => proxy.stop());
  const busy = async (user: string, database = 'postgres') => {
    const client = await connect(proxy.port, { user, database });
    await client.query('BEGIN');
    await client.query('SELECT 1');
    return client;
  };
  // Its pools have met their servers.
  await (await busy('anna', 'second')).end();
  const clients = [await busy('anna'), await busy('anna')];
  await t.rejects(busy('anna'), { code: '53000' }, 'no third server of the user');
  await t.rejects(busy('anna', 'second'), { code: '53000' }, 'nor in another database');
  clients.push(await busy('bert'));
  await t.rejects(busy('bert'), { code: '53000' }, 'no fourth server of the database');
  clients.push(await busy('bert', 'second'));
  t.equal(await servers(`usename = 'anna'`), 2);
  t.equal(await servers(`usename = 'bert' AND datname = 'postgres'`), 1);
  await clients[0]!.query('COMMIT');
  clients.push(await busy('bert'));
  t.equal(await servers(`usename IN ('anna', 'bert') AND datname = 'postgres'`), 3, 'an idle one has made room');
  for (const client of clients) await client.end();
  t.equal(proxy.bugs(), 0);
});

t.test('with fewer servers than users, all of whom always want one, they take turns', async (t) => {
  const proxy = await startProxy(postgres.port, { pool: { waitMax: '15s' }, database: { serversMax: 1 } });
  t.teardown(() => proxy.stop());
  const startedAt = performance.now();
  let isOver = false;
  /** Clients of whom some wait at any time; with how many statements they have had. */
  const ask = async (user: string) => {
    const served = { count: 0 };
    const run = async (client: pg.Client) => {
      while (!isOver) {
        await client.query('SELECT pg_sleep(0.005)');
        served.count++;
      }
      await client.end();
    };
    const clients = Array.from({ length: 8 }, () => connect(proxy.port, { user }));
    return { served, end: Promise.all((await Promise.all(clients)).map(run)) };
  };
  const anna = await ask('anna');
  const bert = await ask('bert');
  const before = anna.served.count;
  await until(() => bert.served.count >= 50 && anna.served.count >= before + 50, 'both to be served');
  isOver = true;
  await Promise.all([anna.end, bert.end]);
  const turns = (performance.now() - startedAt) / 100;
  const connects = proxy.app.snapshot().pools.reduce((sum, { counts }) => sum + counts.connects, 0);
  t.ok(connects <= turns + 3, `${connects} connects, in ${Math.ceil(turns)} turns`);
  t.equal(
    proxy.app.snapshot().pools.reduce((sum, { counts }) => sum + counts.refused.wait, 0),
    0,
  );
});

t.test('the reserve opens for who has waited for long', async (t) => {
  const proxy = await startProxy(postgres.port, {
    pool: { size: 1, sizeReserve: 1, reserveAfter: '300ms', waitMax: '2s' },
  });
  t.teardown(() => proxy.stop());
  const clients = [];
  for (const least of [0, 300]) {
    const startedAt = performance.now();
    const client = await connect(proxy.port, { user: 'anna' });
    await client.query('BEGIN');
    await client.query('SELECT 1');
    t.ok(performance.now() - startedAt >= least, `the server came after ${least} ms`);
    clients.push(client);
  }
  const third = await connect(proxy.port, { user: 'anna' });
  await t.rejects(third.query('SELECT 1'), { code: '53000' });
  t.equal(await servers(`usename = 'anna'`), 2);
  for (const client of [...clients, third]) await client.end();
});

t.test('settings of one user', async (t) => {
  const proxy = await startProxy(postgres.port, {
    pool: { size: 3, waitMax: '300ms' },
    top: { users: { anna: { pool: { size: 1, mode: 'session', queryMax: '200ms' } } } },
  });
  t.teardown(() => proxy.stop());
  const anna = await connect(proxy.port, { user: 'anna' });
  await anna.query('CREATE TEMP TABLE mine ()');
  await t.rejects(anna.query('SELECT pg_sleep(5)'), { code: '57014' });
  await anna.query('SELECT * FROM mine');
  const second = await connect(proxy.port, { user: 'anna' });
  await t.rejects(second.query('SELECT 1'), { code: '53000' }, 'one server, in session mode');
  const bert = await connect(proxy.port, { user: 'bert' });
  await bert.query('SELECT pg_sleep(0.4)');
  const pgbouncer = await connect(proxy.port, { database: 'pgbouncer' });
  const { rows } = await pgbouncer.query('SHOW USERS');
  t.match(
    rows.find(({ name }) => name === 'anna'),
    { pool_size: '1', pool_mode: 'session', current_connections: 1, current_client_connections: 2 },
  );
  for (const client of [anna, second, bert, pgbouncer]) await client.end();
});

t.test('SQL for new servers', async (t) => {
  const proxy = await startProxy(postgres.port, {
    pool: { size: 1 },
    database: { connectQuery: `SET work_mem = '5MB'; SET DateStyle = 'German'` },
  });
  t.teardown(() => proxy.stop());
  const look = async () => {
    const client = await connect(proxy.port);
    const { rows } = await client.query(
      `SELECT current_setting('work_mem') AS mem, current_setting('DateStyle') AS style`,
    );
    const { rows: pids } = await client.query('SELECT pg_backend_pid() AS pid');
    return { client, ...rows[0], ...pids[0] };
  };
  const first = await look();
  t.match(first, { mem: '5MB', style: 'German, DMY' });
  await first.client.query('CREATE TEMP TABLE mine ()');
  await first.client.end();
  const second = await look();
  t.match(second, { mem: '5MB', style: 'German, DMY' }, 'after DISCARD ALL, too');
  t.not(second.pid, first.pid);
  await second.client.end();
  t.equal(proxy.bugs(), 0);
});

t.test('SQL for new servers that fails is told', async (t) => {
  t.plan(1);
  const proxy = await startProxy(postgres.port, { pool: { waitMax: '1s' }, database: { connectQuery: 'SELEKT' } });
  const attempt = RawClient.open(proxy.port).catch(() => null);
  await until(() => proxy.log.some((line) => line.includes('connectQuery failed: syntax error')), 'why, in the log');
  await proxy.stop();
  await attempt;
  t.equal(proxy.bugs(), 0);
});

t.test('application_name with the address', async (t) => {
  const proxy = await startProxy(postgres.port, { top: { listen: { applicationNameAddHost: 'on' } } });
  t.teardown(() => proxy.stop());
  const client = await connect(proxy.port, { application_name: 'shop' });
  const { rows } = await client.query('SHOW application_name');
  t.match(rows[0].application_name, /^shop - 127\.0\.0\.1:\d+$/);
  const nameless = await connect(proxy.port);
  t.match((await nameless.query('SHOW application_name')).rows[0].application_name, /^app - 127\.0\.0\.1:\d+$/);
  await client.end();
  await nameless.end();
});

t.test('a database that "*" stands for is forgotten when it is not used', async (t) => {
  const proxy = await startProxy(postgres.port, { pool: { idleMax: '200ms' }, database: { unusedMax: '500ms' } });
  t.teardown(() => proxy.stop());
  const client = await connect(proxy.port, { database: 'second' });
  await client.query('SELECT 1');
  t.equal(proxy.app.snapshot().pools.length, 1);
  await client.end();
  await until(() => proxy.app.snapshot().pools.length === 0, 'no pool');
  const again = await connect(proxy.port, { database: 'second' });
  await again.query('SELECT 1');
  await again.end();
  t.equal(proxy.bugs(), 0);
});

t.test('a least number of servers keeps no pool of a database that there is not, or no longer', async (t) => {
  const proxy = await startProxy(postgres.port, { pool: { sizeMin: 1 }, database: { unusedMax: '500ms' } });
  t.teardown(() => proxy.stop());
  const { pools } = proxy.app.snapshot();
  t.equal(pools.length, 0);
  for (let n = 0; n < 5; n++) await t.rejects(connect(proxy.port, { database: `none${n}` }), { code: '3D000' });
  await until(() => proxy.app.snapshot().pools.length === 0, 'names that mean nothing to be forgotten');
  await ask('CREATE DATABASE third');
  const client = await connect(proxy.port, { database: 'third' });
  await client.query('SELECT 1');
  await client.end();
  const [third] = proxy.app.snapshot().pools;
  await until(() => third!.idleCount === 1, 'its server to be kept');
  await ask('DROP DATABASE third WITH (FORCE)');
  await until(() => proxy.app.snapshot().pools.length === 0, 'it to be forgotten');
  t.equal(proxy.bugs(), 0);
});

t.test(
  'while a host is away one pool finds out when it is back, and names that mean nothing are forgotten',
  async (t) => {
    let isAway = true;
    const front = await startRelay(t, postgres.port, (_, link) => {
      if (isAway) link.lose();
      return isAway;
    });
    const proxy = await startProxy(front, { database: { hold: { for: '0s' } } });
    t.teardown(() => proxy.stop());
    for (let n = 0; n < 5; n++) await t.rejects(connect(proxy.port, { database: `none${n}` }), { code: '57P03' });
    t.ok(proxy.app.snapshot().clusters[0]!.hold.isClosed);
    await until(() => proxy.app.snapshot().pools.length === 1, 'all others to be forgotten');
    isAway = false;
    await until(() => !proxy.app.snapshot().clusters[0]!.hold.isClosed, 'it to be found');
    const client = await connect(proxy.port);
    await client.query('SELECT 1');
    await client.end();
    t.equal(proxy.bugs(), 0);
  },
);

t.test('a pool of a database with a name is kept, or forgotten after pool.unusedMax', async (t) => {
  const named = (unusedMax: string) => ({
    hosts: [`127.0.0.1:${postgres.port}`],
    tls: { mode: 'disable' },
    dbname: 'postgres',
    pool: { idleMax: '200ms', unusedMax },
  });
  const proxy = await startProxy(postgres.port, { top: { databases: { kept: named('0s'), dropped: named('500ms') } } });
  t.teardown(() => proxy.stop());
  for (const database of ['kept', 'dropped']) {
    const client = await connect(proxy.port, { database });
    await client.query('SELECT 1');
    await client.end();
  }
  const databases = () => proxy.app.snapshot().pools.map(({ database }) => database);
  t.same(databases(), ['kept', 'dropped']);
  await until(() => databases().length === 1, 'a pool to be forgotten');
  t.same(databases(), ['kept']);
  const again = await connect(proxy.port, { database: 'dropped' });
  await again.query('SELECT 1');
  await again.end();
  t.equal(proxy.bugs(), 0);
});

t.test('pools that want a least number of servers do not take them from each other', async (t) => {
  const databases = Object.fromEntries(
    ['one', 'two', 'three', 'four', 'five'].map((name) => [
      name,
      {
        hosts: [`127.0.0.1:${postgres.port}`],
        tls: { mode: 'disable' },
        dbname: 'postgres',
        user: 'anna',
        serversMax: 3,
        pool: { sizeMin: 1 },
      },
    ]),
  );
  const proxy = await startProxy(postgres.port, { top: { databases } });
  t.teardown(() => proxy.stop());
  const { pools } = proxy.app.snapshot();
  t.equal(pools.length, 5, 'they are there before anybody asks');
  const connects = () => pools.reduce((sum, { counts }) => sum + counts.connects, 0);
  await until(() => connects() >= 3, 'the first servers');
  // Nothing announces that nothing happens: ten ticks of the pools.
  await new Promise((done) => setTimeout(done, 2_000));
  t.ok(connects() <= 10, `${connects()} connects`);
  for (const name of Object.keys(databases)) {
    const client = await connect(proxy.port, { database: name });
    await client.query('SELECT 1');
    await client.end();
  }
});
