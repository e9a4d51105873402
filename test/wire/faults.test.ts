/**
 * What breaks: clients that vanish, servers that die, requests that wait too long, limits of every kind. Nobody but the
 * one concerned may notice, no server connection may leak, and everything must work again afterwards by itself.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { freePort, startEmbeddedPostgres } from '../../src/embedded.ts';
import { Version } from '../../src/protocol/encode.ts';
import {
  describe,
  fatalOf,
  isCancelRequest,
  type Message,
  OCCUPY,
  open,
  RawClient,
  requestCancel,
  send,
  sqlstates,
  types,
} from '../fixtures/raw.ts';
import { type Link, startRelay } from '../fixtures/relay.ts';
import { startProxy, until, withPostgres } from '../fixtures/stack.ts';

type Stack = Awaited<ReturnType<typeof startProxy>>;

const postgres = await withPostgres();
t.after(() => postgres.stop());
const watcher = await RawClient.open(postgres.port, { application_name: 'watcher' });
await watcher.rows('CREATE TABLE rows (text text)');

const proxies: Stack[] = [];

async function startPool(t: Test, pool: object = {}, more: object = {}, port = postgres.port): Promise<Stack> {
  const proxy = await startProxy(port, { pool: { size: 1, waitMax: '8s', ...pool }, ...more });
  t.after(() => proxy.stop());
  proxies.push(proxy);
  return proxy;
}

/** Pids and states of all server connections, as Postgres sees them. */
const backends = async () =>
  (
    await watcher.rows(`SELECT pid, state FROM pg_stat_activity
      WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()`)
  ).map(([pid, state]) => ({ pid: Number(pid), state }));

const pidOf = async (client: RawClient) => Number((await client.rows('SELECT pg_backend_pid()'))[0]![0]);

/** The next client is served soon, on a server that is alone and idle afterwards; gives its pid. */
async function servedAnew(t: Test, proxy: Stack): Promise<number> {
  const client = await open(t, proxy.port);
  const pid = await pidOf(client);
  client.end();
  await until(async () => {
    const all = await backends();
    return all.length === 1 && all[0]!.state === 'idle' && all[0]!.pid === pid;
  }, 'a single idle server');
  return pid;
}

const failed = (messages: Message[]) => messages.filter(({ type }) => type === 'E').map(describe);

// --- Clients that vanish ----------------------------------------------------------------------------------------

const huge = `SELECT repeat('x', 1000) FROM generate_series(1, 300000)`;

for (const [title, isKept, vanish] of [
  ['in a transaction', true, async (client: RawClient) => void (await client.rows('BEGIN; SELECT 1'))],
  ['in a failed transaction', true, async (client: RawClient) => void (await client.ask(send.query('BEGIN; SELEC')))],
  [
    'in the middle of a result',
    true,
    async (client: RawClient) => {
      client.write(send.query(huge));
      await client.until('D', 10);
    },
  ],
  [
    'in the middle of a result that it does not read',
    true,
    async (client: RawClient) => {
      client.socket.pause();
      client.write(send.query(huge));
      await until(() => client.socket.readableFlowing === false, 'the client to stand still');
      await until(async () => (await backends()).some(({ state }) => state === 'active'), 'the query to run');
    },
  ],
  [
    'behind a pipeline without Sync',
    true,
    async (client: RawClient) => {
      client.write(send.parse('', 'SELECT 1'), send.bind('', ''), send.execute(''), send.flush());
      await client.until('C');
    },
  ],
  [
    'behind a pipeline that failed',
    true,
    async (client: RawClient) => {
      client.write(send.parse('', 'SELEC'), send.flush());
      await client.until('E');
    },
  ],
  [
    'behind many slow queries',
    true,
    async (client: RawClient) => {
      client.write(...Array.from({ length: 3 }, () => send.query('SELECT pg_sleep(0.4)')));
      await until(async () => (await backends()).some(({ state }) => state === 'active'), 'the query to run');
    },
  ],
  [
    'in the middle of a message, outside a transaction',
    true,
    async (client: RawClient) => {
      await client.rows('SELECT 1');
      client.write(send.query(`SELECT 'half'`).subarray(0, 10));
    },
  ],
  [
    'in the middle of a large Bind, which has partly been sent on',
    false,
    async (client: RawClient) => {
      const bind = send.bind('', '', ['x'.repeat(500_000)]);
      client.write(send.parse('', 'SELECT $1::text'), bind.subarray(0, 300_000));
      await until(
        async () => (await backends()).some(({ state }) => state !== 'idle'),
        'the server to be at work',
        500,
      ).catch(() => {});
    },
  ],
  [
    'in COPY FROM STDIN',
    true,
    async (client: RawClient) => {
      client.write(send.query('COPY rows FROM STDIN'));
      await client.until('G');
      client.write(send.copyData('one\n'), send.copyData('two\n'));
    },
  ],
  [
    'in COPY FROM STDIN in the middle of a row',
    false,
    async (client: RawClient) => {
      client.write(send.query('COPY rows FROM STDIN'));
      await client.until('G');
      client.write(send.copyData('one\n'), send.copyData('x'.repeat(400_000)).subarray(0, 200_000));
    },
  ],
  [
    'in COPY FROM STDIN of the extended protocol',
    true,
    async (client: RawClient) => {
      client.write(send.parse('', 'COPY rows FROM STDIN'), send.bind('', ''), send.execute(''), send.sync());
      await client.until('G');
      client.write(send.copyData('one\n'));
    },
  ],
  [
    'in COPY TO STDOUT',
    true,
    async (client: RawClient) => {
      client.write(send.query(`COPY (${huge}) TO STDOUT`));
      await client.until('d', 10);
    },
  ],
  [
    'while it waits for a lock',
    true,
    async (client: RawClient) => {
      await watcher.rows('SELECT pg_advisory_lock(99)');
      client.write(send.query('SELECT pg_advisory_xact_lock(99)'));
      await until(async () => (await backends()).some(({ state }) => state === 'active'), 'the query to run');
    },
  ],
] as const) {
  t.test(`a client that vanishes ${title} takes nobody down and leaks nothing`, async (t) => {
    const proxy = await startPool(t);
    const client = await open(t, proxy.port);
    const pid = await pidOf(client);
    await vanish(client);
    client.end();
    const next = await servedAnew(t, proxy);
    if (isKept) t.equal(next, pid, 'the server is kept');
    else t.pass('the server may be replaced');
    t.same(await watcher.rows('SELECT count(*) FROM rows'), [['0']]);
    await watcher.rows('SELECT pg_advisory_unlock_all()');
  });
}

t.test('a client that vanishes while it waits for a server leaves the queue', async (t) => {
  const proxy = await startPool(t);
  const [a, b] = [await open(t, proxy.port), await open(t, proxy.port)];
  await a.rows(OCCUPY);
  b.write(send.query('INSERT INTO rows VALUES (1)'));
  const { waiters } = proxy.app.snapshot().pools[0]!;
  await until(() => waiters.size === 1, 'the second client to wait');
  b.end();
  await until(() => waiters.size === 0, 'the queue to be empty');
  await a.rows('COMMIT');
  a.end();
  await servedAnew(t, proxy);
  t.same(await watcher.rows('SELECT count(*) FROM rows'), [['0']]);
});

t.test('a client that does not read holds up nobody once its answer is complete', async (t) => {
  const proxy = await startPool(t);
  const [a, b] = [await open(t, proxy.port), await open(t, proxy.port)];
  const session = [...proxy.app.snapshot().sessions][0]!;
  a.socket.pause();
  // Small answers at last, so that one that is complete crosses the bound at which the server is not read.
  for (let i = 1; session.socket.writableLength <= 256 * 1024 && i < 2000; i++) {
    const size = session.socket.writableLength < 150_000 ? 30_000 : 2_000;
    a.write(send.query(`SELECT repeat('x', ${size})`));
    await until(() => session.pool.counts.leases >= i && session.state === 'idle', 'the answer');
  }
  t.ok(session.socket.writableLength > 256 * 1024);
  t.same(await b.rows('SELECT 1'), [['1']]);
  a.socket.resume();
  t.same(await b.rows('SELECT 1'), [['1']]);
});

// --- Servers that die -------------------------------------------------------------------------------------------

t.test('a server that is terminated while it works tells its client, and nobody else notices', async (t) => {
  const proxy = await startPool(t);
  const [a, b] = [await open(t, proxy.port), await open(t, proxy.port)];
  await b.rows('SELECT 1');
  const pid = await pidOf(a);
  a.write(send.query('SELECT pg_sleep(30)'));
  await until(async () => (await backends()).some(({ state }) => state === 'active'), 'the query to run');
  await watcher.rows(`SELECT pg_terminate_backend(${pid})`);
  t.equal(fatalOf(await a.closed()), '57P01');
  t.not(await pidOf(b), pid);
});

t.test('a server that is terminated in a transaction between queries tells its client', async (t) => {
  const proxy = await startPool(t);
  const a = await open(t, proxy.port);
  await a.rows(OCCUPY);
  await watcher.rows(`SELECT pg_terminate_backend(${await pidOf(a)})`);
  t.equal(fatalOf(await a.closed()), '57P01');
  await servedAnew(t, proxy);
});

t.test('idle servers that are terminated are replaced unnoticed', async (t) => {
  const proxy = await startPool(t);
  const a = await open(t, proxy.port);
  for (let lap = 0; lap < 3; lap++) {
    const pid = await pidOf(a);
    await watcher.rows(`SELECT pg_terminate_backend(${pid})`);
    await until(() => proxy.app.snapshot().pools[0]!.serverCount === 0, 'the proxy to notice');
    t.not(await pidOf(a), pid);
  }
});

t.test('a pinned client is told when its server is gone, idle or not', async (t) => {
  const proxy = await startPool(t);
  const a = await open(t, proxy.port);
  await a.rows('SELECT pg_advisory_lock(1)');
  await watcher.rows(`SELECT pg_terminate_backend(${await pidOf(a)})`);
  t.equal(fatalOf(await a.closed()), '57P01');
  await until(() => proxy.app.snapshot().pools[0]!.pinned === 0, 'the pin to be gone');
  await servedAnew(t, proxy);
});

t.test('a backend that is killed -9, and the crash restart after it, are survived', async (t) => {
  const own = await withPostgres({ settings: { restart_after_crash: 'on' } });
  t.after(() => own.stop());
  const proxy = await startPool(t, { size: 2 }, {}, own.port);
  const [a, b, c] = [await open(t, proxy.port), await open(t, proxy.port), await open(t, proxy.port)];
  await c.rows('SELECT 1');
  await b.rows(OCCUPY);
  const pid = await pidOf(a);
  a.write(send.query('SELECT pg_sleep(30)'));
  await until(() => [...proxy.app.snapshot().sessions].some(({ state }) => state === 'active'), 'the query to run');
  process.kill(pid, 'SIGKILL');
  t.match(fatalOf(await a.closed()), /^57P0[12]$/, 'the one whose backend it was');
  t.match(fatalOf(await b.closed()), /^57P0[12]$/, 'another in a transaction');
  t.same(await c.rows('SELECT 1'), [['1']], 'an idle one');
});

t.test('Postgres may be stopped and started again: clients wait, and nobody restarts the proxy', async (t) => {
  const dataDir = mkdtempSync(join(tmpdir(), 'pgweir-restart-'));
  const port = await freePort();
  const options = { dataDir, port, settings: { fsync: 'off' } };
  let own = await startEmbeddedPostgres(options);
  t.after(async () => {
    await own.stop();
    rmSync(dataDir, { recursive: true, force: true });
  });
  const proxy = await startPool(t, { size: 2, waitMax: '10s' }, {}, port);
  const [a, b] = [await open(t, proxy.port), await open(t, proxy.port, { application_name: 'b' })];
  await a.rows('SELECT 1');
  await own.stop();
  await until(() => proxy.app.snapshot().pools[0]!.serverCount === 0, 'the servers to be gone');
  const first = a.rows('SELECT 1');
  await until(() => proxy.app.snapshot().pools[0]!.lastFailure !== '', 'a failed attempt');
  const second = b.rows('SHOW application_name');
  const c = await open(t, proxy.port);
  const third = c.rows('SELECT 3');
  own = await startEmbeddedPostgres(options);
  t.same(await Promise.all([first, second, third]), [[['1']], [['b']], [['3']]]);
});

t.test(
  'without any server a login says 57P03, and a request of a client who is in is refused when it has been held',
  async (t) => {
    const port = await freePort();
    const never = await startPool(t, {}, { top: { listen: { loginTimeout: '400ms' } } }, port);
    await t.rejects(RawClient.open(never.port), /57P03/);
    const own = await withPostgres();
    const proxy = await startPool(t, {}, { database: { hold: { for: '600ms' } } }, own.port);
    const a = await open(t, proxy.port);
    await a.rows('SELECT 1');
    await own.stop();
    const b = await open(t, proxy.port);
    for (const client of [a, b]) {
      const messages = await client.ask(send.query('SELECT 1'));
      t.equal(types(messages), 'EZ');
      t.match(failed(messages)[0], /^53000/);
      t.match(messages[0]!.body.toString(), 'reason=hold');
    }
  },
);

/** A relay that loses a connection when it sees `text`. */
const losing = (t: Test, text: string) =>
  startRelay(t, postgres.port, (chunk, link) => {
    if (chunk.includes(text)) link.lose();
    return chunk.includes(text);
  });

t.test('a server that is lost during COMMIT means 08007, during anything else 57P01', async (t) => {
  const proxy = await startPool(t, { size: 2 }, {}, await losing(t, 'COMMIT'));
  const other = await startPool(t, { size: 2 }, {}, await losing(t, 'ROLLBACK'));
  for (const commit of [
    [send.query('COMMIT')],
    [send.parse('', 'COMMIT'), send.bind('', ''), send.execute(''), send.sync()],
  ]) {
    const a = await open(t, proxy.port);
    await a.rows(OCCUPY);
    a.write(...commit);
    t.equal(fatalOf(await a.closed()), '08007');
  }
  const b = await open(t, other.port);
  await b.rows(OCCUPY);
  b.write(send.query('ROLLBACK'));
  t.equal(fatalOf(await b.closed()), '57P01');
});

// --- Cancel -----------------------------------------------------------------------------------------------------

const isWorking = (proxy: Stack) =>
  until(() => [...proxy.app.snapshot().sessions].some(({ server }) => (server?.outstanding.size ?? 0) > 0), 'work');

/** A statement has begun in Postgres, which ignores a cancel request that comes before. */
const isSleeping = () =>
  until(async () => {
    const client = await RawClient.open(postgres.port);
    const rows = await client.rows(`SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'`);
    client.end();
    return rows.length > 0;
  }, 'pg_sleep to begin');

for (const [title, version, size] of [
  ['3.0', Version.v3_0, 8],
  ['3.2', Version.v3_2, 32],
] as const) {
  t.test(`a client cancels its own query (protocol ${title})`, async (t) => {
    const proxy = await startPool(t);
    const a = await open(t, proxy.port, {}, version);
    t.equal(a.key.length, size);
    const answer = a.ask(send.query('SELECT pg_sleep(30)'));
    await isWorking(proxy);
    await requestCancel(proxy.port, a.key);
    const messages = await answer;
    t.equal(types(messages).replace(/^T/, ''), 'EZ');
    t.same(sqlstates(messages), ['57014']);
    t.same(await a.rows('SELECT 1'), [['1']]);
  });
}

t.test('a cancel request is not lost while the connection of the one before is still open', async (t) => {
  const links: Link[] = [];
  const port = await startRelay(t, postgres.port, (chunk, link) => {
    if (!isCancelRequest(chunk)) return false;
    links.push(link);
    // Postgres gets it all the same, and nobody closes this connection.
    void requestCancel(postgres.port, chunk.subarray(8));
    return true;
  });
  const proxy = await startPool(t, {}, {}, port);
  const a = await open(t, proxy.port);
  for (const turn of [1, 2]) {
    const answer = a.ask(send.query('SELECT pg_sleep(3)'));
    await isWorking(proxy);
    await requestCancel(proxy.port, a.key);
    t.same(sqlstates(await answer), ['57014'], `statement ${turn}`);
  }
  for (const link of links) link.lose();
  t.same(await a.rows('SELECT 1'), [['1']]);
});

t.test('a client that waits for a server is cancelled in the queue', async (t) => {
  const proxy = await startPool(t);
  const [a, b] = [await open(t, proxy.port), await open(t, proxy.port)];
  await a.rows(OCCUPY);
  for (const request of [
    [send.query('SELECT 1')],
    [send.parse('', 'SELECT 1'), send.bind('', ''), send.execute(''), send.sync()],
  ]) {
    const answer = b.ask(request);
    await until(() => proxy.app.snapshot().pools[0]!.waiters.size === 1, 'the second client to wait');
    await requestCancel(proxy.port, b.key);
    const messages = await answer;
    t.equal(types(messages), 'EZ');
    t.same(sqlstates(messages), ['57014']);
  }
  await a.rows('COMMIT');
  t.same(await b.rows('SELECT 1'), [['1']]);
});

t.test('a cancel request with a wrong key, or for an idle client, does nothing', async (t) => {
  const proxy = await startPool(t);
  const [a, b] = [await open(t, proxy.port), await open(t, proxy.port)];
  await requestCancel(proxy.port, b.key);
  const answer = a.ask(send.query('SELECT pg_sleep(0.5)'));
  await isWorking(proxy);
  const wrong = Buffer.from(a.key);
  wrong[wrong.length - 1]! ^= 1;
  const long = Buffer.concat([a.key, Buffer.alloc(24)]);
  for (const key of [wrong, long, b.key, Buffer.alloc(8)]) await requestCancel(proxy.port, key);
  t.same(sqlstates(await answer), []);
  t.same(await b.rows('SELECT 1'), [['1']]);
  t.equal(proxy.app.snapshot().cancels.unknown, 3);
});

/** Ways to call pg_cancel_backend of a number, and the answer. */
const callings: Record<string, (client: RawClient, pid: number) => Promise<string>> = {
  'in a Query': async (client, pid) => String(await client.rows(`SELECT pg_cancel_backend(${pid})`)),
  'in a Query, in other words': async (client, pid) =>
    String(await client.rows(` select pg_catalog.pg_cancel_backend( ${pid}::int ) AS "done";`)),
  'behind BEGIN': async (client, pid) => {
    await client.rows('BEGIN');
    const answer = String(await client.rows(`SELECT pg_cancel_backend(${pid})`));
    t.equal((await client.ask(send.query('COMMIT'))).at(-1)!.body.toString(), 'I');
    return answer;
  },
  'with a parameter': async (client, pid) =>
    lastRow([send.parse('', 'SELECT pg_cancel_backend($1);'), send.bind('', '', [String(pid)])], client),
  'of a prepared statement': async (client, pid) => {
    await client.ask([send.parse('c', 'SELECT pg_cancel_backend($1)'), send.describe('S', 'c'), send.sync()]);
    return lastRow([send.bind('', 'c', [String(pid)])], client);
  },
  'in binary': async (client, pid) => {
    const body = Buffer.concat([
      ...[Buffer.from('\0\0'), int16(1), int16(1), int16(1), int32(4), int32(pid)], // One parameter, binary.
      ...[int16(1), int16(1)], // Results in binary.
    ]);
    const bind = Buffer.concat([Buffer.from('B'), int32(body.length + 4), body]);
    const row = await lastRow([send.parse('', 'SELECT pg_cancel_backend($1)'), bind], client);
    return row === '\x01' ? 't' : row;
  },
};

async function lastRow(parts: Buffer[], client: RawClient): Promise<string> {
  const messages = await client.ask([...parts, send.describe('P', ''), send.execute(''), send.sync()]);
  t.match(types(messages), /^1?2TDCZ$/);
  return messages.find(({ type }) => type === 'D')!.body.toString('latin1', 6);
}

const int16 = (value: number) => Buffer.from([value >> 8, value & 255]);
const int32 = (value: number) => Buffer.from([value >>> 24, (value >> 16) & 255, (value >> 8) & 255, value & 255]);

for (const mode of ['transaction', 'session'] as const) {
  for (const [how, call] of Object.entries(callings)) {
    if (mode === 'session' && how === 'behind BEGIN') continue; // There it is the server's: see docs/limits.md.
    t.test(`pg_cancel_backend ${how} reaches the client with this number (mode ${mode})`, async (t) => {
      const proxy = await startPool(t, { mode, size: 2 });
      const [a, b] = [await open(t, proxy.port), await open(t, proxy.port)];
      if (mode === 'session') await b.rows('SELECT 1'); // It has a server.
      const answer = a.ask(send.query('SELECT pg_sleep(30)'));
      await isSleeping();
      t.equal(await call(b, a.key.readInt32BE(0)), 't');
      t.same(sqlstates(await answer), ['57014']);
      t.same(await a.rows('SELECT 1'), [['1']]);
      t.same(await b.rows('SELECT 2'), [['2']]);
    });
  }
}

t.test('pg_terminate_backend of a number that a client was told', async (t) => {
  const proxy = await startPool(t, { size: 2 });
  const [a, b] = [await open(t, proxy.port), await open(t, proxy.port)];
  t.same(await b.rows(`SELECT pg_terminate_backend(${a.key.readInt32BE(0)}, 5000)`), [['t']]);
  t.same(sqlstates(await a.closed()), ['57P01']);
  t.same(await b.rows(`SELECT pg_terminate_backend(${a.key.readInt32BE(0)})`), [['f']], 'it is nobody now');
});

t.test('numbers are those of a host, and nobody has rights by the user that servers know', async (t) => {
  const other = await withPostgres();
  t.after(() => other.stop());
  const direct = await RawClient.open(other.port);
  await direct.rows('CREATE ROLE victim LOGIN');
  direct.end();
  const at = (port: number) => ({ hosts: [`127.0.0.1:${port}`], dbname: 'postgres', tls: { mode: 'disable' } });
  const databases = { here: at(postgres.port), there: at(other.port), shared: { ...at(other.port), user: 'postgres' } };
  const proxy = await startProxy(postgres.port, { top: { databases } });
  t.after(() => proxy.stop());
  const victim = await open(t, proxy.port, { database: 'there', user: 'victim' });
  const call = `SELECT pg_terminate_backend(${victim.key.readInt32BE(0)})`;
  const stranger = await open(t, proxy.port, { database: 'here' });
  t.same(await stranger.rows(call), [['f']], 'of another host');
  const anybody = await open(t, proxy.port, { database: 'shared', user: 'victim' });
  const [theirs, own] = [
    await open(t, proxy.port, { database: 'shared' }),
    await open(t, proxy.port, { database: 'shared', user: 'victim' }),
  ];
  t.same(sqlstates(await anybody.ask(send.query(`SELECT pg_terminate_backend(${theirs.key.readInt32BE(0)})`))), [
    '42501',
  ]);
  t.same(await anybody.rows(`SELECT pg_terminate_backend(${own.key.readInt32BE(0)})`), [['t']], 'its own user’s');
  t.same(await victim.rows('SELECT 1'), [['1']]);
  const superuser = await open(t, proxy.port, { database: 'there' });
  t.same(await superuser.rows(call), [['t']]);
  t.same(sqlstates(await victim.closed()), ['57P01']);
});

for (const mode of ['transaction', 'session'] as const)
  t.test(`numbers of other users are for superusers only (mode ${mode})`, async (t) => {
    const admin = await RawClient.open(postgres.port);
    await admin.rows('CREATE ROLE mallory LOGIN');
    t.after(async () => {
      await admin.rows('DROP ROLE mallory');
      admin.end();
    });
    const proxy = await startPool(t, { mode, size: 2 });
    const a = await open(t, proxy.port);
    const mallory = await open(t, proxy.port, { user: 'mallory' });
    if (mode === 'session') await mallory.rows('SELECT 1');
    const answer = a.ask(send.query('SELECT pg_sleep(0.5)'));
    await isSleeping();
    for (const command of ['cancel', 'terminate']) {
      const call = `SELECT pg_${command}_backend(${a.key.readInt32BE(0)})`;
      t.same(sqlstates(await mallory.ask(send.query(call))), ['42501']);
      const extended = [send.parse('', call), send.bind('', ''), send.execute(''), send.sync()];
      t.same(sqlstates(await mallory.ask(extended)), ['42501']);
      t.same(await mallory.rows('SELECT 3'), [['3']]);
    }
    t.same(sqlstates(await answer), []);
    t.same(await a.rows(`SELECT pg_terminate_backend(${mallory.key.readInt32BE(0)})`), [['t']]);
    t.same(sqlstates(await mallory.closed()), ['57P01']);
  });

t.test('the cancel requests of one client never hit another on the same server', async (t) => {
  const proxy = await startPool(t);
  const [a, b] = [await open(t, proxy.port), await open(t, proxy.port)];
  let hits = 0;
  let isOver = false;
  const quick = (async () => {
    while (!isOver) hits += sqlstates(await b.ask(send.query('SELECT pg_sleep(0.0005)'))).length;
  })();
  let canceled = 0;
  for (let lap = 0; lap < 250; lap++) {
    const answer = a.ask(send.query(lap % 2 === 0 ? 'SELECT 1' : 'SELECT pg_sleep(0.002)'));
    const requests = [requestCancel(proxy.port, a.key), requestCancel(proxy.port, a.key)];
    const states = sqlstates(await answer);
    canceled += states.length;
    t.match(states, states.length === 0 ? [] : ['57014']);
    await Promise.all(requests);
  }
  isOver = true;
  await quick;
  t.equal(hits, 0, 'nothing of the other client was cancelled');
  t.ok(canceled > 0, `${canceled} of its own were`);
});

// --- Limits: each a clear answer on a session that lives, or a FATAL with its own code ------------------------------

t.test('beyond waitMax a request is refused, whatever its protocol, and the session lives', async (t) => {
  const proxy = await startPool(t, { waitMax: '300ms' });
  const [a, b] = [await open(t, proxy.port), await open(t, proxy.port)];
  await a.rows(OCCUPY);
  const batch = [send.parse('', 'SELECT 1'), send.bind('', ''), send.describe('P', ''), send.execute('')];
  for (const [what, request, expected] of [
    ['simple', [send.query('SELECT 1; SELECT 2')], 'EZ'],
    ['extended', [...batch, send.sync()], 'EZ'],
    ['a pipeline of two batches', [...batch, send.sync(), ...batch, send.sync()], 'EZEZ'],
    ['a simple query inside a batch', [...batch, send.query('SELECT 1'), send.sync()], 'EZ'],
    ['batch, then simple', [...batch, send.sync(), send.query('SELECT 1')], 'EZEZ'],
    ['a prepared statement', [send.parse('s', 'SELECT 1'), send.sync()], 'EZ'],
    ['a function call', [send.functionCall(1598, [])], 'EZ'],
  ] as const) {
    const messages = await b.ask([...request], expected.length / 2);
    t.equal(types(messages), expected, what);
    t.ok(sqlstates(messages).every((state) => state === '53000'));
    t.match(messages[0]!.body.toString(), /reason=wait.*retry after \d+ ms/s);
  }
  await a.rows('COMMIT');
  t.equal(types(await b.ask([...batch, send.sync()])), '12TDCZ');
  t.equal(proxy.app.snapshot().pools[0]!.counts.refused.wait, 9);
});

t.test('beyond queueMax a request is refused at once', async (t) => {
  const proxy = await startPool(t, { queueMax: 1 });
  const [a, b, c] = [await open(t, proxy.port), await open(t, proxy.port), await open(t, proxy.port)];
  await a.rows(OCCUPY);
  const waiting = b.rows('SELECT 1');
  await until(() => proxy.app.snapshot().pools[0]!.waiters.size === 1, 'the second client to wait');
  const messages = await c.ask([send.query('SELECT 1'), send.query('SELECT 2')], 2);
  t.equal(types(messages), 'EZEZ');
  t.match(messages[0]!.body.toString(), 'reason=queue');
  await a.rows('COMMIT');
  t.same(await waiting, [['1']]);
});

t.test('beyond clientsMax a login is answered with 53300, and room is given back', async (t) => {
  const proxy = await startPool(t, {}, { top: { listen: { clientsMax: 3 } } });
  const clients = [await open(t, proxy.port), await open(t, proxy.port), await open(t, proxy.port)];
  await t.rejects(RawClient.open(proxy.port), /53300/);
  for (const client of clients) t.same(await client.rows('SELECT 1'), [['1']]);
  clients[0]!.end();
  await until(() => proxy.app.snapshot().sessions.size === 2, 'the room');
  t.same(await (await open(t, proxy.port)).rows('SELECT 1'), [['1']]);
});

t.test('serversMax holds over twenty users, who take turns by evicting idle servers', async (t) => {
  const users = Array.from({ length: 20 }, (_, index) => `many${index}`);
  for (const user of users) await watcher.rows(`CREATE ROLE ${user} LOGIN`);
  const proxy = await startPool(t, { size: 3, waitMax: '20s' }, { database: { serversMax: 5 } });
  const clients = await Promise.all(
    users.flatMap((user) => [open(t, proxy.port, { user }), open(t, proxy.port, { user })]),
  );
  let most = 0;
  let isOver = false;
  const watching = (async () => {
    while (!isOver) most = Math.max(most, (await backends()).length);
  })();
  await Promise.all(
    clients.map(async (client) => {
      for (let lap = 0; lap < 4; lap++) t.same(failed(await client.ask(send.query('SELECT pg_sleep(0.01)'))), []);
    }),
  );
  isOver = true;
  await watching;
  // A connection that was closed a moment ago may still be seen beside its successor.
  t.ok(most > 1 && most <= 7, `at most ${most} servers`);
  const [host] = proxy.app.snapshot().hosts;
  t.ok(host!.count <= 5 && host!.evictions > 0, `${host!.count} servers, ${host!.evictions} evictions`);
});

t.test('idleInTransactionMax ends the client with 25P03 and frees the server', async (t) => {
  const proxy = await startPool(t, { idleInTransactionMax: '300ms' });
  const a = await open(t, proxy.port);
  await a.rows(OCCUPY);
  const pid = await pidOf(a);
  t.equal(fatalOf(await a.closed()), '25P03');
  t.equal(await servedAnew(t, proxy), pid);
});

t.test('queryMax cancels a statement with 57014, and the session lives', async (t) => {
  const proxy = await startPool(t, { queryMax: '300ms' });
  const a = await open(t, proxy.port);
  t.same(sqlstates(await a.ask(send.query('SELECT pg_sleep(30)'))), ['57014']);
  t.same(await a.rows('SELECT 1'), [['1']]);
});

t.test('transactionMax ends the client with 25P04', async (t) => {
  const proxy = await startPool(t, { transactionMax: '500ms' });
  const a = await open(t, proxy.port);
  await a.rows(OCCUPY);
  for (let lap = 0; lap < 100 && !a.isClosed; lap++) {
    const messages = await a.ask(send.query('SELECT pg_sleep(0.05)'));
    if (messages.some(({ type }) => type === 'E')) {
      t.equal(fatalOf(messages), '25P04');
      break;
    }
  }
  t.ok((await a.closed()).length <= 1);
  await servedAnew(t, proxy);
});

for (const [title, pool, first] of [
  ['a pinned client', {}, 'SELECT pg_advisory_lock(1)'],
  ['a client in mode session', { mode: 'session' }, 'SELECT 1'],
] as const) {
  t.test(`transactionMax counts from the beginning of the transaction for ${title}`, async (t) => {
    const proxy = await startPool(t, { transactionMax: '1s', ...pool });
    const a = await open(t, proxy.port);
    await a.rows(first);
    const [session] = proxy.app.snapshot().sessions;
    const { now } = proxy.app.snapshot();
    await until(() => proxy.app.snapshot().now - now > 1_300, 'the time to pass');
    t.ok(session!.server !== null, 'it keeps its server');
    t.same(failed(await a.ask(send.query('SELECT pg_sleep(0.6)'))), []);
  });
}

t.test('clientIdleMax ends an idle client with 57P05', async (t) => {
  const proxy = await startPool(t, { clientIdleMax: '400ms' });
  const a = await open(t, proxy.port);
  await a.rows('SELECT 1');
  t.equal(fatalOf(await a.closed()), '57P05');
});

t.test('loginTimeout closes a connection that does not log in', async (t) => {
  const proxy = await startPool(t, {}, { top: { listen: { loginTimeout: '300ms' } } });
  const silent = new RawClient(proxy.port);
  t.after(() => silent.end());
  await silent.closed();
  t.ok(silent.isClosed);
});

t.test('a message beyond messageMax is answered with FATAL 54000, and nothing of it is kept', async (t) => {
  const proxy = await startPool(t, {}, { top: { listen: { messageMax: '1MiB' } } });
  const a = await open(t, proxy.port);
  a.write(send.query(`SELECT '${'x'.repeat(1_200_000)}'`));
  t.equal(fatalOf(await a.closed()), '54000');
  await servedAnew(t, proxy);
});

t.test('idleMax closes idle servers down to sizeMin, which is kept open', async (t) => {
  const proxy = await startPool(t, { size: 4, sizeMin: 1, idleMax: '300ms' });
  const clients = await Promise.all([1, 2, 3].map(() => open(t, proxy.port)));
  await Promise.all(clients.map((client) => client.rows('SELECT pg_sleep(0.2)')));
  const [pool] = proxy.app.snapshot().pools;
  t.ok(pool!.serverCount > 1);
  await until(() => pool!.serverCount === 1, 'the others to be closed');
  const [server] = pool!.servers();
  await watcher.rows(`SELECT pg_terminate_backend(${server!.server.pid})`);
  await until(() => pool!.idle.size === 1 && pool!.servers()[0]!.server.pid !== server!.server.pid, 'another one');
});

t.test('lifetimeMax replaces servers between transactions', async (t) => {
  const proxy = await startPool(t, { lifetimeMax: '500ms' });
  const a = await open(t, proxy.port);
  await a.rows(OCCUPY);
  const pid = await pidOf(a);
  await a.rows('SELECT pg_sleep(0.8)');
  t.equal(await pidOf(a), pid, 'not in a transaction');
  await a.rows('COMMIT');
  t.not(await pidOf(a), pid);
});

// --- Modes and other kinds of connection --------------------------------------------------------------------------

t.test('mode statement refuses transactions', async (t) => {
  const proxy = await startPool(t, { mode: 'statement' });
  const [a, b] = [await open(t, proxy.port), await open(t, proxy.port)];
  t.same(await a.rows('SELECT 1'), [['1']]);
  a.write(send.query('BEGIN'));
  t.equal(fatalOf(await a.closed()), '0A000');
  t.same(await b.rows('SELECT 1'), [['1']]);
});

t.test('mode session keeps one server for a client until it leaves', async (t) => {
  const proxy = await startPool(t, { mode: 'session' });
  const a = await open(t, proxy.port);
  const pid = await pidOf(a);
  await a.rows('CREATE TEMP TABLE mine (i int)');
  await a.rows(OCCUPY);
  const b = await open(t, proxy.port);
  const answer = b.rows(`SELECT pg_backend_pid(), to_regclass('mine')`);
  await until(() => proxy.app.snapshot().pools[0]!.waiters.size === 1, 'the second client to wait');
  a.end();
  t.same(await answer, [[String(pid), null]]);
});

t.test('replication connections have servers of their own', async (t) => {
  const proxy = await startPool(t);
  const pooled = await open(t, proxy.port);
  await pooled.rows(OCCUPY);
  for (const replication of ['database', 'true']) {
    const a = await open(t, proxy.port, { replication });
    const [system, timeline, position] = (await a.rows('IDENTIFY_SYSTEM'))[0]!;
    t.match([system, timeline], [/^\d+$/, '1']);
    a.write(send.query(`START_REPLICATION PHYSICAL ${position} TIMELINE ${timeline}`));
    t.equal(types(await a.until('W')), 'W');
    await watcher.rows(`COMMENT ON TABLE rows IS '${replication}'`);
    t.equal(types(await a.until('d')), 'd', 'the log of what happens');
    t.ok(proxy.app.snapshot().replications > 0);
    a.end();
    await until(() => proxy.app.snapshot().replications === 0, 'its end');
  }
  await until(
    async () => (await watcher.rows('SELECT count(*) FROM pg_stat_replication'))[0]![0] === '0',
    'the senders to be gone',
  );
});

t.test('drain: idle clients are told to go, transactions are finished, new clients are refused', async (t) => {
  const proxy = await startPool(t, { size: 2 });
  const [idle, busy, slow] = [await open(t, proxy.port), await open(t, proxy.port), await open(t, proxy.port)];
  await idle.rows('SELECT 1');
  await busy.rows(OCCUPY);
  const answer = slow.ask(send.query('SELECT pg_sleep(0.5)'));
  await until(() => [...proxy.app.snapshot().sessions].filter(({ server }) => server !== null).length === 2, 'work');
  const drained = proxy.app.drain();
  t.equal(fatalOf(await idle.closed()), '57P01');
  t.equal(types(await answer), 'TDCZ');
  t.equal(fatalOf(await slow.closed()), '57P01');
  await t.rejects(RawClient.open(proxy.port));
  t.same(await busy.rows('SELECT 1'), [['1']]);
  t.notOk(proxy.app.snapshot().isReady);
  t.equal(types(await busy.ask(send.query('COMMIT'))), 'CZ');
  t.equal(fatalOf(await busy.closed()), '57P01');
  await drained;
  await until(async () => (await backends()).length === 0, 'the servers to be closed');
});

t.test('who comes to a pool that has been closed is refused', async (t) => {
  const proxy = await startPool(t);
  const client = await open(t, proxy.port);
  const [pool] = proxy.app.snapshot().pools;
  pool!.close('unused');
  client.write(send.query('SELECT 1'));
  t.same(sqlstates(await client.closed()), ['57P01']);
  t.equal(pool!.waiting, 0);
  const learned = new Promise((done) => pool!.learn(done));
  t.match(await learned, { sqlstate: '57P01' });
});

t.test('no bug was counted', async (t) => {
  watcher.end(); // Only when no socket is left does the file come to its end.
  t.equal(
    proxies.reduce((sum, proxy) => sum + proxy.bugs(), 0),
    0,
  );
});
