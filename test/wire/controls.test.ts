/** What an administrator does to traffic as a whole, by the console; PAUSE, RESUME and RELOAD are in console.test.ts. */
import t, { type Test } from 'tap';
import { fatalOf, open, send, sqlstates } from '../fixtures/raw.ts';
import { connect, type Proxy as Pgweir, startProxy, until, withPostgres } from '../fixtures/stack.ts';

const postgres = await withPostgres();
t.after(() => postgres.stop());

async function start(t: Test, options: Parameters<typeof startProxy>[1] = {}) {
  const proxy = await startProxy(postgres.port, options);
  t.after(() => proxy.stop());
  const admin = await connect(proxy.port, { database: 'pgweir' });
  t.after(() => admin.end());
  return { proxy, admin };
}

const pidOf = async (client: { rows(sql: string): Promise<(string | null)[][]> }) =>
  (await client.rows('SELECT pg_backend_pid()'))[0]![0];
const poolOf = ({ app }: Pgweir) => app.snapshot().pools[0]!;
const OCCUPY = 'BEGIN; SELECT 1';

t.test('RECONNECT replaces servers as they become free, WAIT_CLOSE waits for that', async (t) => {
  const { proxy, admin } = await start(t, { pool: { size: 2 } });
  const [a, b] = [await open(t, proxy.port), await open(t, proxy.port)];
  const before = await pidOf(a);
  await b.rows(OCCUPY);
  t.equal((await admin.query('RECONNECT')).command, 'RECONNECT');
  let isClosed = false;
  const closing = admin.query('WAIT_CLOSE').then(() => {
    isClosed = true;
  });
  t.not(await pidOf(a), before, 'an idle one is replaced at once');
  t.same(await b.rows('SELECT 1'), [['1']], 'one in a transaction is kept');
  t.notOk(isClosed);
  await b.rows('COMMIT');
  await closing;
});

t.test('DISABLE refuses new clients, and lets those be that are there; ENABLE', async (t) => {
  const { proxy, admin } = await start(t);
  const there = await open(t, proxy.port);
  await there.rows('SELECT 1');
  await admin.query('DISABLE postgres');
  await t.rejects(connect(proxy.port), { code: '55000', message: /is disabled/ });
  t.same(await there.rows('SELECT 1'), [['1']]);
  t.rejects(admin.query('DISABLE'), { code: '42601' });
  await admin.query('ENABLE postgres');
  await (await connect(proxy.port)).end();
});

t.test('KILL ends clients and servers of a database; what comes then waits for RESUME', async (t) => {
  const { proxy, admin } = await start(t);
  const [busy, idle] = [await open(t, proxy.port), await open(t, proxy.port)];
  await busy.rows(OCCUPY);
  await idle.rows('SELECT 1');
  const [ends, quiet] = [busy.closed(), idle.closed()];
  t.equal((await admin.query('KILL postgres')).command, 'KILL');
  t.same([fatalOf(await ends), fatalOf(await quiet)], ['57P01', '57P01']);
  t.equal(poolOf(proxy).serverCount, 0);
  const next = await open(t, proxy.port);
  const answer = next.rows('SELECT 7');
  await until(() => poolOf(proxy).waiters.size === 1, 'the next to wait');
  await admin.query('RESUME postgres');
  t.same(await answer, [['7']]);
});

t.test('a pool that is made while its database is paused is paused, too', async (t) => {
  const { proxy, admin } = await start(t, { pool: { size: 2 } });
  const client = await connect(proxy.port);
  await client.query('CREATE ROLE other LOGIN');
  await client.end();
  await admin.query('PAUSE postgres');
  const other = await open(t, proxy.port, { user: 'other' });
  const answer = other.rows('SELECT 7');
  await until(
    () => proxy.app.snapshot().pools.some((pool) => pool.user === 'other' && pool.waiters.size === 1),
    'it to wait',
  );
  await admin.query('RESUME postgres');
  t.same(await answer, [['7']]);
});

t.test('KILL_CLIENT ends one client, by its id in SHOW CLIENTS', async (t) => {
  const { proxy, admin } = await start(t);
  const [one, other] = [await open(t, proxy.port), await open(t, proxy.port)];
  const [first] = (await admin.query('SHOW CLIENTS')).rows as { id: string }[];
  const ended = one.closed();
  await admin.query(`KILL_CLIENT ${first!.id}`);
  t.equal(fatalOf(await ended), '57P01');
  t.same(await other.rows('SELECT 1'), [['1']]);
  await t.rejects(admin.query('KILL_CLIENT 4711'), { code: '08P01', message: /client not found/ });
});

t.test('SUSPEND answers what is under way and reads no more, until RESUME', async (t) => {
  const { proxy, admin } = await start(t);
  const [busy, idle] = [await open(t, proxy.port), await open(t, proxy.port)];
  const answer = busy.rows("SELECT 'done' FROM pg_sleep(0.5)");
  await until(() => poolOf(proxy).active.size > 0, 'work');
  t.equal((await admin.query('SUSPEND')).command, 'SUSPEND');
  t.same(await answer, [['done']]);
  t.same((await admin.query('SHOW STATE')).rows, [
    { key: 'active', value: 'no' },
    { key: 'paused', value: 'no' },
    { key: 'suspended', value: 'yes' },
  ]);
  const { leases } = poolOf(proxy).counts;
  const later = idle.rows('SELECT 7');
  const newcomer = await open(t, proxy.port);
  const newcomers = newcomer.rows('SELECT 8');
  await admin.query('SHOW POOLS');
  await new Promise((done) => setTimeout(done, 100));
  t.equal(poolOf(proxy).counts.leases, leases, 'nobody is read');
  await t.rejects(admin.query('SUSPEND'), { message: /already suspended/ });
  await admin.query('RESUME');
  t.same([await later, await newcomers], [[['7']], [['8']]]);
});

t.test('SHUTDOWN WAIT_FOR_SERVERS lets transactions end, WAIT_FOR_CLIENTS lets clients leave', async (t) => {
  for (const mode of ['WAIT_FOR_SERVERS', 'WAIT_FOR_CLIENTS'] as const) {
    const { proxy, admin } = await start(t);
    const [busy, idle] = [await open(t, proxy.port), await open(t, proxy.port)];
    await busy.rows(OCCUPY);
    const idleEnds = idle.closed();
    t.equal((await admin.query(`SHUTDOWN ${mode}`)).command, 'SHUTDOWN');
    await t.rejects(connect(proxy.port), { code: 'ECONNREFUSED' }, 'no new clients');
    t.equal((await fetch(`http://127.0.0.1:${proxy.opsPort}/readyz`)).status, 503, 'and nobody is to be sent here');
    t.same(await busy.rows('SELECT 7'), [['7']]);
    await busy.rows('COMMIT');
    if (mode === 'WAIT_FOR_CLIENTS') {
      t.same(await idle.rows('SELECT 8'), [['8']], 'clients go on');
      busy.end();
      idle.end();
    } else t.equal(fatalOf(await idleEnds), '57P01');
    await until(() => !proxy.app.snapshot().isReady, 'the end');
  }
});

t.test('only administrators', async (t) => {
  const { proxy } = await start(t, { top: { auth: { method: 'trust', admins: ['postgres'], readers: ['eye'] } } });
  const eye = await open(t, proxy.port, { user: 'eye', database: 'pgweir' });
  for (const command of [
    'RECONNECT',
    'WAIT_CLOSE',
    'DISABLE x',
    'ENABLE x',
    'KILL',
    'KILL_CLIENT 1',
    'SUSPEND',
    'SHUTDOWN',
  ])
    t.same(sqlstates(await eye.ask(send.query(command))), ['42501'], command);
});

t.test('SUSPEND lets long statements run, and RESUME ends it while it waits', async (t) => {
  const { proxy, admin } = await start(t);
  const [busy, other] = [await open(t, proxy.port), await open(t, proxy.port)];
  const answer = busy.rows("SELECT 'done' FROM pg_sleep(1)");
  await until(() => poolOf(proxy).active.size > 0, 'work');
  const since = performance.now();
  await admin.query('SUSPEND');
  t.ok(performance.now() - since < 900, 'it is not waited for');
  t.same(await answer, [['done']]);
  await admin.query('RESUME');
  t.same(await other.rows('SELECT 7'), [['7']]);
  await t.rejects(admin.query('SUSPEND postgres'), { code: '42601' });
});

t.test('PAUSE and KILL leave no server behind, and end who replicates', async (t) => {
  const { proxy, admin } = await start(t, { pool: { size: 4, sizeMin: 2 } });
  const client = await open(t, proxy.port);
  await client.rows('LISTEN ch');
  await until(() => poolOf(proxy).serverCount === 2, 'the least that there are');
  await admin.query('PAUSE');
  await until(() => poolOf(proxy).serverCount === 0 && !poolOf(proxy).channels.isOpen, 'all to be closed');
  t.equal(proxy.app.snapshot().hosts[0]!.count, 0);
  await admin.query('RESUME');
  t.same(await client.rows('SELECT 7'), [['7']]);
  const replica = await open(t, proxy.port, { replication: 'database' });
  const ended = replica.closed().catch(() => []);
  await admin.query('KILL');
  await ended;
  await until(() => proxy.app.snapshot().replications === 0, 'the replication to end');
  await new Promise((done) => setTimeout(done, 500));
  t.equal(proxy.app.snapshot().hosts[0]!.count, 0, 'nothing is opened anew');
});

t.test("'*' means all databases that no key is for", async (t) => {
  const { proxy, admin } = await start(t);
  const client = await open(t, proxy.port);
  await client.rows('SELECT 1');
  await admin.query('DISABLE *');
  await t.rejects(connect(proxy.port), { code: '55000' });
  await admin.query('ENABLE *');
  await admin.query('PAUSE *');
  const answer = client.rows('SELECT 7');
  await until(() => poolOf(proxy).waiters.size === 1, 'it to wait');
  await admin.query('RESUME *');
  t.same(await answer, [['7']]);
});
