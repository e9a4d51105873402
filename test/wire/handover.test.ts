/**
 * Servers that change hands at awkward moments: while they are given settings, behind a BEGIN that no server knew of, when
 * a request is cancelled or its client vanishes. Found by hostile testing; each test has failed once.
 */
import t, { type Test } from 'tap';
import { OCCUPY, open, RawClient, requestCancel, send, sqlstates, types } from '../fixtures/raw.ts';
import { startRelay } from '../fixtures/relay.ts';
import { startProxy, until, withPostgres } from '../fixtures/stack.ts';

const { query: Q, parse: P, bind: B, flush } = send;
const S = send.sync();
const H = flush();

const postgres = await withPostgres();
t.after(() => postgres.stop());
const admin = await RawClient.open(postgres.port);
admin.socket.unref();
t.after(() => admin.end());
await admin.rows('CREATE SEQUENCE sq; CREATE TABLE made (a int)');

type Stack = Awaited<ReturnType<typeof startProxy>>;
const proxies: Stack[] = [];

async function start(t: Test, port: number, pool: object): Promise<Stack> {
  const proxy = await startProxy(port, { pool: { waitMax: '20s', ...pool } });
  t.after(() => proxy.stop());
  proxies.push(proxy);
  return proxy;
}

const poolOf = (proxy: Stack) => proxy.app.snapshot().pools[0]!;
const states = (proxy: Stack) => [...proxy.app.snapshot().sessions].map(({ state }) => state);

/** A relay that keeps what matches back, once, until it is told to let go. */
async function startHolding(t: Test) {
  const relay = { port: 0, text: '', isHolding: false, letGo: () => {} };
  relay.port = await startRelay(t, postgres.port, (chunk) => {
    if (relay.text === '' || !chunk.includes(relay.text)) return false;
    relay.text = '';
    relay.isHolding = true;
    return new Promise((resolve) => {
      relay.letGo = () => {
        relay.isHolding = false;
        resolve();
      };
    });
  });
  return relay;
}

t.test(
  'a read that boards a server whose last holder was cancelled gets its own answer, before the next',
  async (t) => {
    const relay = await startHolding(t);
    const proxy = await start(t, relay.port, { size: 2 });
    const [a, b] = [await open(t, proxy.port, { work_mem: '9MB' }), await open(t, proxy.port, { work_mem: '9MB' })];
    const [first, second] = [await open(t, proxy.port), await open(t, proxy.port)];
    // What is short rides; on a busy machine that takes a while to show.
    await until(() => b.rows('SELECT 4242 AS x').then(() => poolOf(proxy).counts.shared > 5), 'it to be short');
    for (const client of [first, second]) await client.rows(OCCUPY);
    a.write(Q('INSERT INTO made VALUES (1)'));
    await until(() => poolOf(proxy).waiters.size === 1, 'the writer to wait');
    b.write(Q('SELECT 4242 AS x'));
    await until(() => poolOf(proxy).waiters.size === 2, 'the reader to wait');
    relay.text = 'work_mem';
    await first.rows('COMMIT');
    await until(() => relay.isHolding, 'the settings to be on their way');
    await requestCancel(proxy.port, a.key);
    const letSettingsGo = relay.letGo;
    relay.text = '4242';
    letSettingsGo();
    t.same(sqlstates(await a.until('Z')), ['57014']);
    await until(() => relay.isHolding, 'the read to be on its way');
    await second.rows('COMMIT');
    t.ok(states(proxy).includes('sharing'), 'the read is not over before it is answered');
    b.write(Q('SELECT 4343 AS y'));
    relay.letGo();
    const messages = await b.until('Z', 2);
    t.same(
      messages.filter(({ type }) => type === 'D').map(({ body }) => body.subarray(6).toString()),
      ['4242', '4343'],
    );
  },
);

t.test('what is behind a request that is cancelled while its server is given settings is answered', async (t) => {
  const relay = await startHolding(t);
  const proxy = await start(t, relay.port, { size: 1 });
  await (await open(t, proxy.port)).rows('SELECT 1');
  const a = await open(t, proxy.port, { work_mem: '9MB' });
  relay.text = 'work_mem';
  a.write(Q('INSERT INTO made VALUES (1)'), Q('SELECT 2'));
  await until(() => relay.isHolding, 'the settings to be on their way');
  await requestCancel(proxy.port, a.key);
  relay.letGo();
  const messages = await a.until('Z', 2);
  t.match(types(messages), /^EZ(S*)TDCZ$/);
  t.same(sqlstates(messages), ['57014']);
});

t.test('a server that cannot give up another’s settings is replaced by one that fits at once', async (t) => {
  await admin.rows('CREATE ROLE passing');
  const relay = await startHolding(t);
  const proxy = await start(t, relay.port, { size: 2 });
  const [a, b, c] = [await open(t, proxy.port), await open(t, proxy.port), await open(t, proxy.port)];
  await a.rows('SET role passing');
  await b.rows('SET role passing');
  await c.rows(`SET my.x = '1'`);
  await b.rows(OCCUPY);
  await c.rows(OCCUPY);
  await c.rows('COMMIT');
  await admin.rows('DROP ROLE passing');
  relay.text = 'RESET';
  a.write(Q('SELECT 5'));
  await until(() => relay.isHolding, 'the settings to be on their way');
  await b.rows('COMMIT');
  relay.letGo();
  t.equal(types(await a.until('Z')), 'TDCZ');
});

t.test('pins end with their clients, whether these vanish or their servers are killed', async (t) => {
  const proxy = await start(t, postgres.port, { size: 4, pinnedMax: '50%' });
  for (const kill of ['client', 'terminate', 'server'] as const) {
    for (let lap = 0; lap < 3; lap++) {
      const client = await open(t, proxy.port);
      client.write(Q('DO $$ BEGIN PERFORM pg_sleep(30); END $$'));
      const running = `FROM pg_stat_activity WHERE query LIKE 'DO %' AND state = 'active'`;
      await until(async () => (await admin.rows(`SELECT 1 ${running}`)).length === 1, 'it to run');
      if (kill === 'server') await admin.rows(`SELECT pg_terminate_backend(pid) ${running}`);
      else if (kill === 'client') client.end();
      else {
        client.write(send.terminate());
        await admin.rows(`SELECT pg_cancel_backend(pid) ${running}`);
      }
      await until(async () => (await admin.rows(`SELECT 1 ${running}`)).length === 0, 'it to end');
    }
    await until(() => poolOf(proxy).active.size + poolOf(proxy).cleaning.size === 0, 'servers to be free');
    t.equal(poolOf(proxy).pinned, 0, kill);
  }
  const client = await open(t, proxy.port);
  t.equal(types(await client.ask(Q('LISTEN x'))), 'CZ');
});

for (const [title, begin] of [
  ['', []],
  [' behind a BEGIN', [Q('BEGIN')]],
] as const) {
  t.test(`a protocol violation ends the session at once${title}`, async (t) => {
    const proxy = await start(t, postgres.port, { size: 1 });
    const client = await open(t, proxy.port);
    for (const request of begin) await client.ask(request);
    client.write(B('p'.repeat(60_000), 'nope', []).subarray(0, 20_000));
    t.same(sqlstates(await client.closed()), ['08P01']);
    const other = await open(t, proxy.port);
    for (const request of begin) await other.ask(request);
    other.write(P('', 'SELECT 1'), Buffer.from([0x7e, 0, 0, 0, 4]));
    t.same(sqlstates(await other.closed()), ['08P01']);
    t.same(await (await open(t, proxy.port)).rows('SELECT 1'), [['1']]);
  });
}

t.test(
  'a server lost behind a BEGIN is no COMMIT of doubt, although the last transaction ended with one',
  async (t) => {
    const port = await startRelay(t, postgres.port, (chunk, link) => {
      if (chunk.includes('FROM made')) link.lose();
      return chunk.includes('FROM made');
    });
    const proxy = await start(t, port, { size: 1 });
    const client = await open(t, proxy.port);
    for (const sql of ['BEGIN', 'SELECT 1', 'COMMIT', 'BEGIN']) await client.ask(Q(sql));
    client.write(P('', 'SELECT * FROM made'), H);
    t.same(sqlstates(await client.closed()), ['57P01']);
  },
);

t.test('lastval behind a BEGIN shows nobody else’s sequence', async (t) => {
  const proxy = await start(t, postgres.port, { size: 1, pinnedMax: '100%' });
  const a = await open(t, proxy.port);
  await a.rows(`SELECT nextval('sq')`);
  const b = await open(t, proxy.port);
  await b.ask(Q('BEGIN'));
  t.same(sqlstates(await b.ask(Q('SELECT lastval()'))), ['55000']);
  b.end();
  const c = await open(t, proxy.port);
  await c.ask(Q('BEGIN'));
  await c.rows(`SELECT nextval('sq')`);
  t.match(await c.rows('SELECT lastval()'), [[/\d+/]], 'its own it sees');
});

t.test('a BEGIN with more in it than a BEGIN has is for the server to judge', async (t) => {
  const proxy = await start(t, postgres.port, { size: 1 });
  const body = (type: string, bytes: number[]) =>
    Buffer.concat([Buffer.from(type), Buffer.from([0, 0, 0, bytes.length + 4]), Buffer.from(bytes)]);
  const text = [...Buffer.from('\0BEGIN\0')];
  for (const requests of [
    [P('', 'BEGIN'), B('', '', ['1']), send.execute(''), S],
    [body('P', [...text, 0, 1, 0, 0, 0, 23]), B('', ''), send.execute(''), S],
    [body('P', [...text, 0]), B('', ''), send.execute(''), S],
    [body('Q', [...Buffer.from('BEGIN;')])],
  ]) {
    const direct = await RawClient.open(postgres.port);
    const proxied = await open(t, proxy.port);
    const [wanted, found] = [await direct.ask(requests), await proxied.ask(requests)];
    t.same([types(found), sqlstates(found)], [types(wanted), sqlstates(wanted)]);
    direct.end();
    proxied.end();
  }
});

t.test('no bug was counted', async (t) => {
  for (const proxy of proxies) t.equal(proxy.bugs(), 0);
});
