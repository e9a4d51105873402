/** Reads on standbys: where they go, what they see, and what happens when a standby falls behind, dies or is promoted. */
import t, { type Test } from 'tap';
import { Replicas } from '../../src/server/replicas.ts';
import { open, type RawClient, send } from '../fixtures/raw.ts';
import { type Member, startReplicas } from '../fixtures/replicas.ts';
import { connect, type Proxy as Pgweir, startProxy, until } from '../fixtures/stack.ts';

const SQL = 'CREATE TABLE rows (id int PRIMARY KEY); CREATE UNLOGGED TABLE fast (id int)';

async function start(
  t: Test,
  {
    pool = {},
    top = {},
    ...database
  }: { pool?: Record<string, unknown>; top?: Record<string, unknown>; [key: string]: unknown } = {},
) {
  const replicas = await startReplicas(['a', 'b'], { sql: SQL, isSynchronous: false });
  t.after(() => replicas.stop());
  const [a, b] = replicas.members as [Member, Member];
  const proxy = await startProxy(0, {
    pool: { size: 4, ...pool },
    database: {
      hosts: [a, b].map(({ port }) => `127.0.0.1:${port}`),
      control: { user: 'postgres' },
      reads: 'replica',
      ...database,
    },
    top,
  });
  t.after(() => proxy.stop());
  return { replicas, proxy, a, b };
}

/** Where a read runs. */
const WHERE = `SELECT current_setting('port')`;
const portOf = async (client: RawClient) => Number((await client.rows(WHERE))[0]![0]);
const readsFrom = (client: RawClient, { port }: Member) =>
  until(async () => (await portOf(client)) === port, `reads from ${port}`);
const standbyPoolOf = ({ app }: Pgweir) => app.snapshot().standbyPools[0]!;

for (const share of ['auto', 'off']) {
  t.test(`reads go to the standby, everything else to the primary (share ${share})`, async (t) => {
    const { proxy, a, b } = await start(t, { pool: { share } });
    const client = await open(t, proxy.port);
    await readsFrom(client, b);
    for (let n = 0; n < 30; n++) t.equal(await portOf(client), b.port);
    const elsewhere = async (...statements: string[]) => {
      for (const sql of statements.slice(0, -1)) await client.rows(sql);
      return Number((await client.rows(statements.at(-1)!))[0]![0]);
    };
    t.equal(await elsewhere('BEGIN', WHERE), a.port, 'in a transaction');
    await client.rows('COMMIT');
    t.equal(await elsewhere(`SELECT current_setting('port') FROM pg_class LIMIT 1`), a.port, 'about the server');
    t.equal(
      await elsewhere(`SELECT current_setting('port') FROM rows RIGHT JOIN (SELECT 1) s ON true FOR UPDATE OF s`).catch(
        () => a.port,
      ),
      a.port,
      'locks',
    );
    t.equal(await elsewhere(`INSERT INTO rows VALUES (1) RETURNING current_setting('port')`), a.port, 'writes');
    t.equal(standbyPoolOf(proxy).hostAddress, `127.0.0.1:${b.port}`);
    t.ok(proxy.app.snapshot().pools[0]!.replicas!.count > 30);
    t.equal(proxy.bugs(), 0);
  });
}

t.test('a client sees what it has written, always', async (t) => {
  const { proxy, b } = await start(t);
  const clients = await Promise.all(Array.from({ length: 6 }, () => open(t, proxy.port)));
  await readsFrom(clients[0]!, b);
  let wrong = 0;
  await Promise.all(
    clients.map(async (client, index) => {
      for (let n = 0; n < 60; n++) {
        const id = index * 1000 + n;
        await client.rows(`INSERT INTO rows VALUES (${id})`);
        for (let lap = 0; lap < 4; lap++) {
          const [[count]] = (await client.rows(`SELECT count(*) FROM rows WHERE id = ${id}`)) as [[string]];
          if (count !== '1') wrong++;
          if (lap === 2 && n % 10 === 0) await new Promise((done) => setTimeout(done, 300));
        }
      }
    }),
  );
  t.equal(wrong, 0);
  t.ok(proxy.app.snapshot().pools[0]!.replicas!.count > 0, 'some were read from the standby');
});

t.test('a standby that falls behind is not read from until it has caught up', async (t) => {
  const { proxy, a, b } = await start(t, { lagMax: '1s' });
  const client = await open(t, proxy.port);
  await readsFrom(client, b);
  await b.query('SELECT pg_wal_replay_pause()');
  await a.query('INSERT INTO rows VALUES (1)');
  await readsFrom(client, a);
  t.same(await client.rows('SELECT count(*) FROM rows'), [['1']]);
  await b.query('SELECT pg_wal_replay_resume()');
  await readsFrom(client, b);
  t.same(await client.rows('SELECT count(*) FROM rows'), [['1']]);
});

t.test('prepared statements and settings go with the client', async (t) => {
  const { proxy, b } = await start(t);
  const client = await connect(proxy.port);
  t.after(() => client.end());
  await client.query("SET TIME ZONE 'Asia/Tokyo'");
  const ask = async () =>
    (
      await client.query({
        name: 'where',
        text: `SELECT current_setting('port') || ' ' || current_setting('TimeZone') AS it, $1::int AS n`,
        values: [7],
      })
    ).rows[0];
  await until(async () => (await ask()).it === `${b.port} Asia/Tokyo`, 'the standby, with settings');
  for (let n = 0; n < 30; n++) t.same(await ask(), { it: `${b.port} Asia/Tokyo`, n: 7 });
});

t.test('the standby dies: reads go to the primary; it is there again: back', async (t) => {
  const { proxy, a, b } = await start(t, { pool: { connectMax: '1s' } });
  const client = await open(t, proxy.port);
  await readsFrom(client, b);
  await b.kill();
  // A read that was in flight ends with its server, and its client with it.
  // That its server is dead may show in a read only, and ends the client that asked.
  const askAnew = async () => portOf(await open(t, proxy.port)).catch(() => 0);
  await until(async () => (await askAnew()) === a.port, 'reads from the primary');
  const other = await open(t, proxy.port);
  await readsFrom(other, a);
  await b.restart();
  await readsFrom(other, b);
});

t.test('a reload while a standby reads: it comes to its end, shown as what it is', async (t) => {
  const control = { user: 'postgres' };
  const { proxy, b } = await start(t, { control });
  const [client, other] = [await open(t, proxy.port), await open(t, proxy.port)];
  await client.rows('CREATE ROLE second LOGIN; GRANT pg_monitor TO second');
  await readsFrom(client, b);
  const before = standbyPoolOf(proxy);
  const answer = client.rows('SELECT count(*) FROM generate_series(1, 10000000)');
  await until(() => before.atWork === 1, 'the read');
  control.user = 'second';
  t.same(proxy.app.reload(), []);
  const { pools, standbyPools } = proxy.app.snapshot();
  t.equal(pools.length, 1);
  t.ok(standbyPools.includes(before));
  t.same(await answer, [['10000000']]);
  await readsFrom(other, b);
  await until(() => !proxy.app.snapshot().standbyPools.includes(before), 'it to be gone');
  t.equal(proxy.bugs(), 0);
});

t.test('a client whose database or entry is gone reads on, and leaves nothing behind', async (t) => {
  const users: Record<string, unknown> = {};
  const databases: Record<string, unknown> = { unused: { hosts: ['127.0.0.1:1'] } };
  const { proxy, a, b } = await start(t, { top: { users, databases } });
  const named = (dbname: string) => ({
    hosts: [a, b].map(({ port }) => `127.0.0.1:${port}`),
    tls: { mode: 'disable' },
    control: { user: 'postgres' },
    reads: 'replica',
    dbname,
  });
  Object.assign(databases, { postgres: named('postgres'), other: named('postgres') });
  t.same(proxy.app.reload(), []);
  const stays = await open(t, proxy.port);
  const { cluster } = proxy.app.snapshot().pools[0]!;
  await until(() => cluster.freshAsOf(cluster.hosts[1]!) > 0, 'the standby to be fresh');
  t.equal(proxy.app.snapshot().standbyPools.length, 0, 'nobody has read there yet');
  delete databases.postgres;
  t.same(proxy.app.reload(), []);
  await readsFrom(stays, b);
  for (const hasEntry of [true, false, true]) {
    const client = await open(t, proxy.port, { database: 'other' });
    await readsFrom(client, b);
    if (hasEntry) users.postgres = { pool: { size: 3 } };
    else delete users.postgres;
    t.same(proxy.app.reload(), []);
    await readsFrom(client, b);
    client.end();
    await until(() => proxy.app.snapshot().pools.length === 1, 'the pool of who has left to be gone');
    t.equal(proxy.app.snapshot().standbyPools.length, 1, 'and that on the standby with it');
  }
  stays.end();
  await until(() => proxy.app.snapshot().pools.length === 0, 'no pool');
  t.equal(proxy.app.snapshot().standbyPools.length, 0);
  await until(() => proxy.app.snapshot().hosts.every(({ count }) => count === 0), 'no server');
  t.equal(proxy.bugs(), 0);
});

t.test('the standby is promoted: everything goes there', async (t) => {
  const { replicas, proxy, a, b } = await start(t);
  const client = await open(t, proxy.port);
  await readsFrom(client, b);
  await a.kill();
  await replicas.promote(b);
  await until(() => proxy.app.snapshot().clusters[0]!.primary.port === b.port, 'the new primary');
  await client.rows('INSERT INTO rows VALUES (1)');
  t.same(await client.rows('SELECT count(*) FROM rows'), [['1']]);
  t.equal(await portOf(client), b.port);
});

t.test('what a client sends behind a read, before that is answered, goes where it belongs', async (t) => {
  const { proxy, a, b } = await start(t, { pool: { share: 'off' } });
  const client = await open(t, proxy.port);
  await readsFrom(client, b);
  const errors: string[] = [];
  for (let id = 0; id < 20; id++) {
    client.write(send.query(`SELECT current_setting('port') FROM (SELECT count(*) FROM generate_series(1, 100000)) s`));
    await new Promise((done) => setTimeout(done, 1)); // Another packet, and no answer yet.
    client.write(send.query(`INSERT INTO rows VALUES (${id})`));
    const messages = [...(await client.until('Z')), ...(await client.until('Z'))];
    errors.push(...messages.filter(({ type }) => type === 'E').map(({ body }) => body.toString()));
  }
  t.same(errors, []);
  t.same((await a.query('SELECT count(*) FROM rows')).rows, [{ count: '20' }]);
});

t.test('spill: only while it is wanted; standbys that are fresh enough take turns', (t) => {
  const hosts = [1, 2, 3].map((port) => ({ host: 'h', port, serversMax: undefined, ledgers: undefined }));
  const fresh = new Map([
    [1, Number.NEGATIVE_INFINITY],
    [2, 900],
    [3, 950],
  ]);
  let isWanted = false;
  const replicas = new Replicas({
    cluster: { hosts, freshAsOf: ({ port }: { port: number }) => fresh.get(port)! } as never,
    poolAt: (({ port }: { port: number }) => port) as never,
    lagMax: 200,
    isWanted: () => isWanted,
  });
  t.equal(replicas.choose(0, 1000), null);
  isWanted = true;
  t.same(new Set([1, 2, 3, 4, 5, 6].map(() => replicas.choose(0, 1000) as unknown)), new Set([2, 3]));
  t.equal(replicas.choose(920, 1000) as unknown, 3, 'the other lacks what the client has written');
  t.equal(replicas.choose(960, 1000), null);
  t.equal(replicas.choose(0, 1200), null, 'too old');
  t.end();
});
