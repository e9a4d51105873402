/**
 * A primary and two standbys, with real replication: the primary dies, freezes, is replaced, comes back. Nothing that was
 * acknowledged may be missing, nothing may be there twice, and only what was in flight may notice.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { OCCUPY, open, send, sqlstates, types } from '../fixtures/raw.ts';
import { startRelay } from '../fixtures/relay.ts';
import { type Member, type Replicas, startReplicas } from '../fixtures/replicas.ts';
import { type Proxy as Pgweir, startProxy, until } from '../fixtures/stack.ts';
import { LOG_ROWS, LOG_TABLE, Writers } from '../fixtures/writers.ts';

type Json = { [key: string]: unknown };

async function startAll(t: Test, database: Json = {}, top: Json = {}) {
  const replicas = await startReplicas(['a', 'b', 'c'], { sql: LOG_TABLE });
  t.after(() => replicas.stop());
  const proxy = await startBefore(t, replicas, database, top);
  return { replicas, proxy, members: replicas.members as [Member, Member, Member] };
}

async function startBefore(t: Test, { members }: Replicas, database: Json = {}, top: Json = {}): Promise<Pgweir> {
  const proxy = await startProxy(0, {
    pool: { size: 8 },
    database: { hosts: members.map(({ port }) => `127.0.0.1:${port}`), control: { user: 'postgres' }, ...database },
    top,
  });
  t.after(() => proxy.stop());
  return proxy;
}

const clusterOf = ({ app }: Pgweir) => app.snapshot().clusters[0]!;
const rolesOf = (proxy: Pgweir) => [...clusterOf(proxy).roles.values()].map(({ role }) => role);
const whyOf = (proxy: Pgweir, { port }: Member) => clusterOf(proxy).roles.get(`127.0.0.1:${port}`)!.why;
const primaryIs = (proxy: Pgweir, { port }: Member) =>
  until(
    () => clusterOf(proxy).primary.port === port && clusterOf(proxy).hold.state === 'open',
    `${port} to be the primary`,
  );

/** Everything that was acknowledged is there, and nothing twice. */
async function checkRows(t: Test, member: Member, writers: Writers): Promise<void> {
  const { missing, twice } = writers.check((await member.query(LOG_ROWS)).rows);
  t.same(
    [missing, twice],
    [[], []],
    `none of ${writers.acknowledged.length} acknowledged rows is missing, none is there twice`,
  );
}

t.test('the primary is killed and a standby promoted: only what was in flight notices', async (t) => {
  const { replicas, proxy, members } = await startAll(t);
  const [a, b, c] = members;
  const CLIENTS = 20;
  await primaryIs(proxy, a);
  const writers = new Writers(proxy.port, CLIENTS);
  await until(() => writers.acknowledged.length > 500, 'rows');
  await a.kill();
  await until(() => clusterOf(proxy).hold.state === 'holding', 'the hold');
  const before = writers.errors.length;
  t.ok(before <= CLIENTS, `${before} errors: those in flight`);
  await replicas.promote(b);
  const promotedAt = performance.now();
  await replicas.follow(c, b);
  await primaryIs(proxy, b);
  const count = writers.acknowledged.length;
  await until(() => writers.acknowledged.length > count + 500, 'rows');
  t.comment(`again after ${(performance.now() - promotedAt).toFixed(0)} ms`);
  await writers.stop();
  t.equal(writers.errors.length, before, 'whatever else there was waited');
  t.same(
    writers.errors.filter(({ code }) => code !== '57P01').map(({ code, message }) => [code, message]),
    [],
  );
  await checkRows(t, b, writers);
  await until(() => rolesOf(proxy).join() === 'unreachable,primary,standby', 'all roles');
  t.equal(proxy.bugs(), 0);
});

t.test('a primary that comes back and does not know is refused, even after a restart of the proxy', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'pgweir-state-'));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  const { replicas, proxy, members } = await startAll(t, {}, { state: { dir } });
  const [a, b] = members;
  await primaryIs(proxy, a);
  await a.kill();
  await replicas.promote(b);
  await primaryIs(proxy, b);
  await a.restart();
  await a.query('SET synchronous_commit = local; INSERT INTO log VALUES (-1, 0)');
  await until(() => /its timeline 1 has ended/.test(whyOf(proxy, a)), 'the old primary to be refused');
  const client = await open(t, proxy.port);
  t.same(await client.rows('SELECT count(*) FROM log'), [['0']], 'that of the new one');
  t.match(proxy.log.join(''), /role changed.*refused|refused.*role changed/);
  const again = await startBefore(t, replicas, { hold: { for: '300ms' } }, { state: { dir } });
  await primaryIs(again, b);
  await b.kill();
  await until(() => clusterOf(again).hold.state === 'refusing', 'that nobody is left');
  t.equal(clusterOf(again).primary.port, b.port, 'the old one is not good enough');
});

t.test('two primaries at a time: all that is written goes to the newer timeline', async (t) => {
  const { replicas, proxy, members } = await startAll(t);
  const [a, b] = members;
  await primaryIs(proxy, a);
  const writers = new Writers(proxy.port, 8);
  await until(() => writers.acknowledged.length > 100, 'rows');
  await replicas.promote(b); // The old one lives on.
  await primaryIs(proxy, b);
  const lastOnA = (await a.query('SELECT max(id) FROM log')).rows[0].max;
  const count = writers.acknowledged.length;
  await until(() => writers.acknowledged.length > count + 200, 'rows');
  await writers.stop();
  t.equal((await a.query('SELECT max(id) FROM log')).rows[0].max, lastOnA, 'nothing more is written there');
  await until(() => rolesOf(proxy)[0] === 'refused', 'the older one to be refused');
});

t.test('a planned switchover with PAUSE: no error at all', async (t) => {
  const { replicas, proxy, members } = await startAll(t);
  const [a, b, c] = members;
  await primaryIs(proxy, a);
  const writers = new Writers(proxy.port, 20);
  await until(() => writers.acknowledged.length > 300, 'rows');
  const console = await open(t, proxy.port, { database: 'pgweir' });
  await console.ask(send.query('PAUSE'));
  const { rows } = await a.query('SELECT pg_current_wal_lsn() AS lsn');
  await until(
    async () => (await b.query(`SELECT pg_last_wal_replay_lsn() >= '${rows[0].lsn}' AS is`)).rows[0].is,
    'the standby to have all',
  );
  await a.postgres.stop();
  await replicas.promote(b);
  await replicas.follow(c, b);
  await until(() => clusterOf(proxy).primary.port === b.port, 'the new primary');
  await console.ask(send.query('RESUME'));
  const count = writers.acknowledged.length;
  await until(() => writers.acknowledged.length > count + 300, 'rows');
  await writers.stop();
  t.same(writers.errors, []);
  await checkRows(t, b, writers);
});

t.test('beyond the hold requests are refused, slowly; when the primary is back all is well', async (t) => {
  const { proxy, members } = await startAll(t, { hold: { for: '500ms' } });
  const [a] = members;
  await primaryIs(proxy, a);
  const client = await open(t, proxy.port);
  await client.rows('SELECT 1');
  client.end();
  await a.kill();
  await until(() => clusterOf(proxy).hold.state === 'refusing', 'the end of the hold');
  const other = await open(t, proxy.port);
  const since = performance.now();
  const refused = await other.ask(send.query('SELECT 1'));
  t.ok(performance.now() - since > 500, 'it is kept for a while');
  t.same([types(refused), sqlstates(refused)], ['EZ', ['53000']]);
  t.match(refused[0]!.body.toString(), /no primary can be reached.*reason=hold/s);
  await a.restart();
  await primaryIs(proxy, a);
  t.same(await other.rows('SELECT 7'), [['7']]);
});

t.test('of several hosts none is used before it is known which is the primary', async (t) => {
  const replicas = await startReplicas(['a', 'b'], { sql: LOG_TABLE, isSynchronous: false });
  t.after(() => replicas.stop());
  const [a, b] = replicas.members as [Member, Member];
  const proxy = await startProxy(0, {
    database: { hosts: [b, a].map(({ port }) => `127.0.0.1:${port}`), control: { user: 'postgres' } },
  });
  t.after(() => proxy.stop());
  const client = await open(t, proxy.port);
  t.same(await client.rows('SELECT pg_is_in_recovery()'), [['f']]);
  t.same(rolesOf(proxy), ['standby', 'primary']);
});

t.test('who was replaced while the proxy was down is not believed before the others were asked', async (t) => {
  const replicas = await startReplicas(['a', 'b'], { sql: LOG_TABLE, isSynchronous: false });
  t.after(() => replicas.stop());
  const [a, b] = replicas.members as [Member, Member];
  await a.kill();
  await replicas.promote(b);
  await until(async () => !(await b.query('SELECT pg_is_in_recovery() AS is')).rows[0].is, 'the promotion');
  await a.restart(); // Both say that they are it.
  b.freeze();
  const proxy = await startProxy(0, {
    database: { hosts: [a, b].map(({ port }) => `127.0.0.1:${port}`), control: { user: 'postgres' } },
  });
  t.after(() => proxy.stop());
  await until(() => rolesOf(proxy)[0] === 'primary', 'the old one to say so');
  t.equal(clusterOf(proxy).hold.state, 'holding');
  b.thaw();
  const client = await open(t, proxy.port);
  t.equal(types(await client.ask(send.query('INSERT INTO log VALUES (1, 1)'))), 'CZ');
  t.same((await a.query('SELECT count(*) FROM log')).rows, [{ count: '0' }]);
  t.same((await b.query('SELECT count(*) FROM log')).rows, [{ count: '1' }]);
});

t.test('what is known of a host outlives a change of the list of hosts', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'pgweir-state-'));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  const replicas = await startReplicas(['a', 'b'], { sql: LOG_TABLE, isSynchronous: false });
  t.after(() => replicas.stop());
  const [a, b] = replicas.members as [Member, Member];
  const start = async (...members: Member[]) => {
    const proxy = await startProxy(0, {
      database: {
        hosts: members.map(({ port }) => `127.0.0.1:${port}`),
        control: { user: 'postgres' },
        hold: { for: '300ms' },
      },
      top: { state: { dir } },
    });
    t.after(() => proxy.stop());
    return proxy;
  };
  const first = await start(a, b);
  await primaryIs(first, a);
  await a.kill();
  await replicas.promote(b);
  await primaryIs(first, b);
  await a.restart();
  await first.stop();
  const second = await start(a);
  await until(() => rolesOf(second)[0] === 'refused', 'the old one to be refused');
  t.equal(clusterOf(second).hold.isClosed, true);
});

t.test('a reload in the middle of an outage leaves nobody held by what is gone', async (t) => {
  const replicas = await startReplicas(['a'], { sql: `${LOG_TABLE}; CREATE ROLE second LOGIN`, isSynchronous: false });
  t.after(() => replicas.stop());
  const [a] = replicas.members as [Member];
  const control = { user: 'postgres' };
  const proxy = await startProxy(a.port, {
    database: { control },
    top: { admission: { mode: 'enforce' }, limit: { mode: 'fixed', max: 4 } },
  });
  t.after(() => proxy.stop());
  const client = await open(t, proxy.port);
  await client.rows('SELECT 1');
  await a.kill();
  await until(() => clusterOf(proxy).hold.state === 'holding', 'the hold');
  const answer = client.rows('SELECT 7');
  await until(() => [...proxy.app.snapshot().gates.values()].some(({ waiting }) => waiting === 1), 'it to be held');
  control.user = 'second';
  t.same(proxy.app.reload(), []);
  await a.restart();
  t.same(await answer, [['7']]);
  t.same(await client.rows('SELECT 8'), [['8']]);
});

t.test('attempts at a host that is silent end when servers are wanted elsewhere', async (t) => {
  const replicas = await startReplicas(['a'], { isSynchronous: false });
  t.after(() => replicas.stop());
  const [{ port }] = replicas.members as [Member];
  let isSilent = false;
  const front = await startRelay(t, port, () => isSilent);
  const hosts = [`127.0.0.1:${front}`];
  const proxy = await startProxy(0, {
    pool: { size: 3, sizeTotal: 3, connectMax: '60s', waitMax: '60s' },
    database: { hosts },
  });
  t.after(() => proxy.stop());
  const [busy, ...others] = await Promise.all([1, 2, 3].map(() => open(t, proxy.port)));
  await busy!.rows(OCCUPY);
  isSilent = true;
  const answers = others.map((client) => client.rows('SELECT 7'));
  const [pool] = proxy.app.snapshot().pools;
  await until(() => pool!.connecting === 2, 'two attempts');
  hosts[0] = `127.0.0.1:${port}`;
  t.same(proxy.app.reload(), []);
  t.same(await Promise.all(answers), [[['7']], [['7']]], 'they are served long before connectMax');
  await until(() => proxy.app.snapshot().hosts[0]!.count === 1, 'the attempts to be over');
  t.equal(proxy.bugs(), 0);
});
