/** LISTEN in transaction mode: one connection hears for all clients of a pool, and who listens keeps no server. */
import t, { type Test } from 'tap';
import { type Message, open, type RawClient, send, sqlstates, types } from '../fixtures/raw.ts';
import { startRelay } from '../fixtures/relay.ts';
import { type Member, startReplicas } from '../fixtures/replicas.ts';
import { type Proxy as Pgweir, startProxy, until, withPostgres } from '../fixtures/stack.ts';

const postgres = await withPostgres();
t.after(() => postgres.stop());

async function start(t: Test, pool: Record<string, unknown> = {}, top: Record<string, unknown> = {}): Promise<Pgweir> {
  const proxy = await startProxy(postgres.port, { pool: { size: 2, ...pool }, top });
  t.after(() => proxy.stop());
  return proxy;
}

const poolOf = ({ app }: Pgweir) => app.snapshot().pools[0]!;
const run = (name: string) => [send.bind('', name), send.execute(''), send.sync()];
const bodies = (messages: Message[]) =>
  messages.filter(({ type }) => type === 'A').map(({ body }) => body.toString('latin1', 4).split('\0').slice(0, 2));
const heard = async (client: RawClient) => bodies(await client.until('A'));

t.test('more clients listen than there are servers; each hears its channels and no other', async (t) => {
  const proxy = await start(t);
  const clients = await Promise.all(Array.from({ length: 10 }, () => open(t, proxy.port)));
  for (const [index, client] of clients.entries()) {
    t.equal(types(await client.ask(send.query(`LISTEN ${index < 5 ? 'ch' : '"Other ""one"""'};`))), 'CZ');
  }
  const speaker = await open(t, proxy.port);
  await speaker.rows(`NOTIFY ch, 'one'`);
  await speaker.rows(`NOTIFY "Other ""one""", 'two'`);
  for (const [index, client] of clients.entries())
    t.same(await heard(client), [index < 5 ? ['ch', 'one'] : ['Other "one"', 'two']]);
  t.match(poolOf(proxy), { pinned: 0, serverCount: 1 });
  t.equal(poolOf(proxy).channels.counts.received, 2);
  t.match(poolOf(proxy).counts.pins, { listen: 0 });
  const hosts = proxy.app.snapshot().hosts[0]!;
  t.equal(hosts.count, 2, 'it counts for its host');
});

t.test('in the extended protocol as well, named or not; LISTEN within a transaction takes a server', async (t) => {
  const proxy = await start(t);
  const [a, b, c] = [await open(t, proxy.port), await open(t, proxy.port), await open(t, proxy.port)];
  t.equal(types(await a.ask([send.parse('', 'LISTEN ch'), ...run('')])), '12CZ');
  t.equal(types(await b.ask([send.parse('l', 'listen CH'), send.sync()])), '1Z');
  t.equal(poolOf(proxy).channels.size, 1, 'preparing is not listening');
  t.equal(types(await b.ask([...run('l')])), '2CZ');
  await c.rows('BEGIN');
  await c.rows('LISTEN ch');
  await c.rows('COMMIT');
  t.equal(poolOf(proxy).pinned, 1);
  await b.rows(`NOTIFY ch, 'x'`);
  for (const client of [a, b, c]) t.same(await heard(client), [['ch', 'x']]);
});

t.test('UNLISTEN that is only prepared or described ends nothing', async (t) => {
  const proxy = await start(t);
  const [a, b] = [await open(t, proxy.port), await open(t, proxy.port)];
  await a.rows('LISTEN ch');
  t.equal(types(await a.ask([send.parse('u', 'UNLISTEN ch'), send.describe('S', 'u'), send.sync()])), '1tnZ');
  await b.rows(`NOTIFY ch, 'x'`);
  t.same(await heard(a), [['ch', 'x']]);
  t.equal(types(await a.ask([...run('u')])), '2CZ');
  t.equal(poolOf(proxy).channels.size, 0);
});

t.test('UNLISTEN, DISCARD ALL and the end of a client end it; the last one ends the LISTEN', async (t) => {
  const proxy = await start(t);
  const [a, b, c] = [await open(t, proxy.port), await open(t, proxy.port), await open(t, proxy.port)];
  for (const client of [a, b, c]) for (const channel of ['ch', 'dh']) await client.rows(`LISTEN ${channel}`);
  t.equal(types(await a.ask(send.query('UNLISTEN ch'))), 'CZ');
  t.equal(types(await a.ask(send.query('UNLISTEN nothing'))), 'CZ');
  await b.rows('DISCARD ALL');
  c.end();
  await until(() => poolOf(proxy).channels.size === 1, 'one subscription');
  const speaker = await open(t, proxy.port);
  await speaker.rows(`NOTIFY ch, 'no'`);
  await speaker.rows(`NOTIFY dh, 'yes'`);
  t.same(await heard(a), [['dh', 'yes']]);
  t.equal(types(await a.ask(send.query('UNLISTEN *'))), 'CZ');
  await speaker.rows(`NOTIFY dh, 'no'`);
  t.same([bodies(await a.ask(send.query('SELECT 1'))), bodies(await b.ask(send.query('SELECT 1')))], [[], []]);
  const direct = await open(t, postgres.port);
  const asked = "SELECT query FROM pg_stat_activity WHERE query LIKE '%LISTEN \"%' AND pid <> pg_backend_pid()";
  t.same(await direct.rows(asked), [['UNLISTEN "dh"']]);
});

t.test('a client in a transaction, or in the middle of a reply, is told afterwards', async (t) => {
  const proxy = await start(t);
  const [a, speaker] = [await open(t, proxy.port), await open(t, proxy.port)];
  await a.rows('LISTEN ch');
  await a.rows('BEGIN');
  await a.rows('SELECT 1');
  await speaker.rows(`NOTIFY ch, 'one'`);
  await until(() => poolOf(proxy).channels.counts.delivered === 1, 'it to be heard');
  t.equal(types(await a.ask(send.query('SELECT 1'))), 'TDCZ', 'not within a transaction');
  const rest = await a.ask(send.query('COMMIT'));
  t.same(bodies([...rest, ...(types(rest).includes('A') ? [] : await a.until('A'))]), [['ch', 'one']]);
  const answer = a.ask(send.query("SELECT repeat('x', 100000) FROM generate_series(1, 200)"));
  for (let n = 0; n < 20; n++) await speaker.rows(`NOTIFY ch, '${n}'`);
  const during = types(await answer);
  t.match(during, /^(A*)TD{200}CZ?/, 'nothing within a reply');
  const all = bodies(await answer);
  while (all.length < 20) all.push(...(await heard(a)));
  t.same(
    all.map(([, payload]) => payload),
    Array.from({ length: 20 }, (_, n) => `${n}`),
    'each once, and in order',
  );
});

t.test('a client that does not end its transaction cannot fill the memory', async (t) => {
  const proxy = await start(t);
  const [a, speaker] = [await open(t, proxy.port), await open(t, proxy.port)];
  await a.rows('LISTEN ch');
  await a.rows('BEGIN');
  await a.rows('SELECT 1');
  const ended = a.closed();
  for (let n = 0; n < 200; n++) await speaker.rows(`SELECT pg_notify('ch', repeat('x', 7000) || ${n})`);
  t.same(sqlstates(await ended), ['53400']);
});

t.test(
  'the connection that listens is lost, and there again: listeners are told that they may have missed something',
  async (t) => {
    const proxy = await start(t);
    const [a, b] = [await open(t, proxy.port), await open(t, proxy.port)];
    await a.rows('LISTEN ch');
    await b.rows('LISTEN dh');
    const direct = await open(t, postgres.port);
    await direct.rows(`SELECT pg_terminate_backend(${poolOf(proxy).channels.server!.pid})`);
    for (const client of [a, b]) t.match((await client.until('N'))[0]!.body.toString(), /may have been missed/);
    await direct.rows(`NOTIFY ch, 'again'`);
    t.same(await heard(a), [['ch', 'again']]);
    t.equal(poolOf(proxy).channels.counts.lost, 1);
  },
);

t.test('a cancelled LISTEN, and one that waits too long', async (t) => {
  const proxy = await start(t, { waitMax: '300ms' });
  const [a, admin] = [await open(t, proxy.port), await open(t, proxy.port, { database: 'pgweir' })];
  await a.rows('SELECT 1');
  await admin.ask(send.query('PAUSE'));
  const answer = a.ask(send.query('LISTEN ch'));
  await until(() => [...proxy.app.snapshot().sessions].some(({ state }) => state === 'subscribing'), 'it to wait');
  [...proxy.app.snapshot().sessions].find(({ state }) => state === 'subscribing')!.cancel();
  t.same(sqlstates(await answer), ['57014']);
  t.equal(poolOf(proxy).channels.size, 0);
  await admin.ask(send.query('RESUME'));
  t.equal(types(await a.ask(send.query('LISTEN ch'))), 'CZ');
});

t.test('a listener that changes settings all the time misses no notification', async (t) => {
  const proxy = await start(t);
  const a = await open(t, proxy.port);
  const direct = await open(t, postgres.port);
  await a.rows('LISTEN ch');
  const sent = 300;
  let isDone = false;
  const notifying = (async () => {
    for (let i = 0; i < sent; i++) await direct.rows(`NOTIFY ch, '${i}'`);
    isDone = true;
  })();
  let got = 0;
  const count = (messages: Message[]) => messages.filter(({ type }) => type === 'A').length;
  for (let lap = 1; !isDone; lap++)
    got += count(await a.ask(send.query(`SET statement_timeout = '${(lap % 50) + 10}s'`)));
  await notifying;
  const isLast = ({ type, body }: Message) => type === 'A' && body.includes('last\0');
  await direct.rows(`NOTIFY ch, 'last'`);
  await until(() => a.messages.some(isLast), 'the last notification');
  t.equal(got + count(a.messages), sent + 1);
});

t.test('after a failover it listens to the new primary', async (t) => {
  const replicas = await startReplicas(['a', 'b'], { isSynchronous: false });
  t.after(() => replicas.stop());
  const [a, b] = replicas.members as [Member, Member];
  const proxy = await startProxy(0, {
    database: { hosts: [a, b].map(({ port }) => `127.0.0.1:${port}`), control: { user: 'postgres' } },
  });
  t.after(() => proxy.stop());
  const client = await open(t, proxy.port);
  await client.rows('LISTEN ch');
  await a.kill();
  await replicas.promote(b);
  t.match((await client.until('N'))[0]!.body.toString(), /may have been missed/);
  await b.query(`NOTIFY ch, 'from the new one'`);
  t.same(await heard(client), [['ch', 'from the new one']]);
});

t.test('what is rolled back has changed nothing; what is committed has', async (t) => {
  const proxy = await start(t);
  const [a, speaker] = [await open(t, proxy.port), await open(t, proxy.port)];
  await a.rows('LISTEN ch');
  for (const sql of ['LISTEN ch', 'UNLISTEN ch']) {
    for (const each of ['BEGIN', sql, 'ROLLBACK']) await a.rows(each);
    await speaker.rows(`NOTIFY ch, '${sql}'`);
    t.same(await heard(a), [['ch', sql]]);
  }
  for (const each of ['BEGIN', 'UNLISTEN ch', 'COMMIT']) await a.rows(each);
  await speaker.rows(`NOTIFY ch, 'no'`);
  t.same(bodies(await a.ask(send.query('SELECT 1'))), []);
  t.equal(poolOf(proxy).channels.size, 0);
  await a.rows('LISTEN ch');
  await a.rows('LISTEN ch; LISTEN dh'); // On a server of its own from here on.
  await speaker.rows(`NOTIFY ch, 'once'`);
  await speaker.rows(`NOTIFY dh, 'end'`);
  const all: string[][] = [];
  while (all.at(-1)?.[1] !== 'end') all.push(...(await heard(a)));
  t.same(all, [
    ['ch', 'once'],
    ['dh', 'end'],
  ]);
});

t.test('names that mean something else, or nothing, are for a server to judge', async (t) => {
  const proxy = await start(t);
  const a = await open(t, proxy.port);
  for (const [sql, wanted] of [
    ['LISTEN select', ['42601']],
    ['LISTEN "abc', ['42601']],
    ['LISTEN ""', ['42601']],
    ['LISTEN a.b', ['42601']],
    ['LISTEN U&"ch"', []],
  ] as const) {
    const answer = await a.ask(send.query(sql));
    t.same(sqlstates(answer), wanted, sql);
    t.equal(poolOf(proxy).channels.size, 0, sql);
  }
  const speaker = await open(t, proxy.port);
  await speaker.rows(`NOTIFY ch, 'x'`);
  t.same(await heard(a), [['ch', 'x']]);
  const b = await open(t, proxy.port);
  await b.ask([send.parse('taken', 'SELECT 1'), send.sync()]);
  t.same(sqlstates(await b.ask([send.parse('taken', 'LISTEN dh'), ...run('taken')])), ['42P05']);
  t.equal(poolOf(proxy).channels.size, 0, 'it was refused');
});

t.test('without room for one more connection a server of its own is taken', async (t) => {
  const proxy = await start(t, { size: 2, waitMax: '300ms' }, {});
  const capped = await startProxy(postgres.port, { pool: { size: 2, waitMax: '300ms' }, database: { serversMax: 2 } });
  t.after(() => capped.stop());
  const clients = await Promise.all([1, 2, 3].map(() => open(t, capped.port)));
  for (const client of clients.slice(0, 2)) await client.rows('BEGIN; SELECT 1');
  for (const client of clients.slice(0, 2)) await client.rows('COMMIT');
  t.equal(types(await clients[2]!.ask(send.query('LISTEN ch'))), 'CZ', 'an idle server made room');
  t.ok(capped.app.snapshot().hosts[0]!.count <= 2);
  t.equal(proxy.bugs() + capped.bugs(), 0);
});

t.test('a connection that is lost in the middle of a notification does not spoil the next', async (t) => {
  let cut = false;
  const port = await startRelay(t, postgres.port, (chunk, link) => {
    if (chunk.includes('LISTEN "ch"') && cut) {
      cut = false;
      const half = Buffer.alloc(30);
      half.write('A', 0);
      half.writeUInt32BE(4000, 1);
      setTimeout(() => link.answerLast(half), 100);
    }
    return false;
  });
  const proxy = await startProxy(port);
  t.after(() => proxy.stop());
  const a = await open(t, proxy.port);
  cut = true;
  await a.rows('LISTEN ch');
  t.match((await a.until('N'))[0]!.body.toString(), /may have been missed/);
  const direct = await open(t, postgres.port);
  await direct.rows(`NOTIFY ch, 'heard'`);
  t.same(await heard(a), [['ch', 'heard']]);
});

t.test('the host is a standby for a while: who was told that he listens does so in the end', async (t) => {
  const replicas = await startReplicas(['a', 'b'], { isSynchronous: false });
  t.after(() => replicas.stop());
  const [a, b] = replicas.members as [Member, Member];
  const address = { port: a.port };
  const links = new Set<{ lose(): void }>();
  const front = await startRelay(
    t,
    () => address.port,
    (_, link) => {
      links.add(link);
      return false;
    },
  );
  const proxy = await startProxy(front);
  t.after(() => proxy.stop());
  const client = await open(t, proxy.port);
  await client.rows('LISTEN ch');
  address.port = b.port;
  for (const link of links) link.lose();
  await until(() => poolOf(proxy).channels.counts.lost > 1, 'it to fail on the standby');
  await replicas.promote(b);
  t.match((await client.until('N'))[0]!.body.toString(), /may have been missed/);
  await b.query(`NOTIFY ch, 'again'`);
  t.same(await heard(client), [['ch', 'again']]);
});

t.test('a connection that is lost at once, again and again, is not opened again at once', async (t) => {
  let isAway = false;
  const lost: number[] = [];
  const front = await startRelay(t, postgres.port, (chunk, link) => {
    if (!isAway || !chunk.includes('LISTEN "ch"')) return false;
    lost.push(performance.now());
    link.lose();
    return true;
  });
  const proxy = await startProxy(front);
  t.after(() => proxy.stop());
  const client = await open(t, proxy.port);
  await client.rows('LISTEN ch');
  isAway = true;
  poolOf(proxy).channels.reconnect('lost');
  await until(() => lost.length === 6, 'it to be lost six times');
  const ms = lost.at(-1)! - lost[0]!;
  t.ok(ms > 5 * 400, `five times in ${Math.round(ms)} ms`);
  isAway = false;
  t.match((await client.until('N'))[0]!.body.toString(), /may have been missed/);
});

t.test('more channels than are shared are for a server of its own', async (t) => {
  const proxy = await start(t);
  const [a, speaker] = [await open(t, proxy.port), await open(t, proxy.port)];
  for (let n = 0; n < 1_000; n++) await a.rows(`LISTEN c${n}`);
  t.match(poolOf(proxy), { pinned: 0 });
  await a.rows('LISTEN last');
  t.match(poolOf(proxy), { pinned: 1 });
  t.equal(poolOf(proxy).channels.size, 1_000);
  for (const channel of ['c0', 'last']) await speaker.rows(`NOTIFY ${channel}, 'x'`);
  const all = [...(await heard(a))];
  while (all.length < 2) all.push(...(await heard(a)));
  t.same(all.map(([channel]) => channel).sort(), ['c0', 'last']);
});
