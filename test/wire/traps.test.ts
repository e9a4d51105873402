/**
 * The traps that poolers before this one fell into, one short test for each, by number. The one idea: whoever asks
 * "what about …?" finds the answer here; other files test most of this at length.
 *
 * What can be said message by message is compared with Postgres itself (fixtures/scenario); the rest needs a hand on
 * the pool, on the network between proxy and server (`startRelay`), or on the clock.
 */
import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import tls from 'node:tls';
import t, { type Test } from 'tap';
import {
  cancelRequest,
  errorFields,
  int32,
  message,
  parameterStatus,
  sslRequest,
  startup,
  Version,
} from '../../src/protocol/encode.ts';
import { readTextRow } from '../../src/protocol/messages.ts';
import {
  describe,
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
import { startRelay } from '../fixtures/relay.ts';
import { type Side, scenarios, show } from '../fixtures/scenario.ts';
import { connect, startProxy, temporaryFile, until, withPostgres } from '../fixtures/stack.ts';

type Stack = Awaited<ReturnType<typeof startProxy>>;

const { query: Q, parse: P, bind: B, describe: D, close: C, execute: E, copyData, copyDone, copyFail } = send;
const S = send.sync();
const H = send.flush();

const postgres = await withPostgres({
  hba: 'host all,replication postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n',
});
const admin = await RawClient.open(postgres.port);
admin.socket.unref(); // Otherwise the test would never be over.
const folder = mkdtempSync(join(tmpdir(), 'pgweir-traps-'));
t.after(async () => {
  admin.end();
  await postgres.stop();
  rmSync(folder, { recursive: true, force: true });
});
await admin.rows(`
  CREATE TABLE items (id int PRIMARY KEY, name text);
  CREATE TABLE sink (id int PRIMARY KEY, name text);
  CREATE TABLE shape (id int, value int);
  CREATE SCHEMA other; CREATE TABLE other.shape (id int, value text);
  CREATE ROLE reader; GRANT USAGE ON SCHEMA public TO reader; GRANT SELECT ON items TO reader;
  ALTER TABLE items ENABLE ROW LEVEL SECURITY;
  CREATE POLICY first_only ON items TO reader USING (id = 1);
  CREATE SEQUENCE numbers`);
await admin.rows('CREATE DATABASE noisy');

async function reset(): Promise<void> {
  await admin.rows(`
    TRUNCATE items, sink, shape, other.shape;
    INSERT INTO items SELECT n, 'name ' || n FROM generate_series(1, 5) n;
    DROP TABLE IF EXISTS made;
    ALTER TABLE shape ALTER COLUMN value TYPE int USING value::int;
    INSERT INTO shape VALUES (1, 10);
    INSERT INTO other.shape VALUES (1, 'other')`);
}
await reset();

const { scenario, exchange, exchanges } = scenarios(postgres.port, reset);

/** The groups given one after the other to one client; each ends with as many ReadyForQuery as `Z` in `expected`. */
async function inTurn(client: RawClient, ...groups: (Buffer | Buffer[])[]): Promise<Message[]> {
  const messages: Message[] = [];
  for (const group of groups) messages.push(...(await client.ask(group)));
  return messages;
}

const run = (name: string, values: string[] = []) => [B('', name, values), E('')];
const once = (sql: string, values: string[] = []) => [P('', sql), ...run('', values)];
const ALL = 'SELECT id FROM items ORDER BY id';

const proxies: Stack[] = [];

/** A proxy with one server, unless `pool` says otherwise. */
async function startPool(t: Test, pool: object = {}, more: object = {}, port = postgres.port): Promise<Stack> {
  const proxy = await startProxy(port, { pool: { size: 1, pinnedMax: '100%', waitMax: '8s', ...pool }, ...more });
  t.after(() => proxy.stop());
  proxies.push(proxy);
  return proxy;
}

const poolOf = (proxy: Stack) => proxy.app.snapshot().pools[0]!;
const waiting = (proxy: Stack, count = 1) =>
  until(() => poolOf(proxy).waiters.size === count, `${count} clients to wait for a server`);
const pidOf = async (client: RawClient) => (await client.rows('SELECT pg_backend_pid()'))[0]![0]!;
/** Waits until the proxy runs a statement for some client. */
const working = (proxy: Stack) =>
  until(() => [...proxy.app.snapshot().sessions].some(({ server }) => (server?.outstanding.size ?? 0) > 0), 'work');
/** Waits until `ms` have passed for the proxy: for limits that must not strike. */
async function pass(proxy: Stack, ms: number): Promise<void> {
  const { now } = proxy.app.snapshot();
  await until(() => proxy.app.snapshot().now - now > ms, 'the time to pass');
}
const rowsOf = (messages: Message[]) =>
  messages.filter(({ type }) => type === 'D').map(({ body }) => readTextRow(body));

// --- Pipelines and batches --------------------------------------------------------------------------------------

scenario(
  'trap 1: an error discards everything up to Sync, replies of the proxy’s own and remembered names included',
  '1Z12DCEZ2DCZEZ1Z2DCZ',
  async (side) => {
    const client = await side.open();
    const messages = await client.ask([P('kept', 'SELECT 1'), S]);
    // The text of `lost` is known and would be answered without the server, as would the Closes.
    client.write(...once('SELECT 2'), B('', 'unknown'), P('lost', 'SELECT 1'), C('S', 'kept'), H);
    messages.push(...(await client.until('E')));
    client.write(P('lost', 'SELECT 1'), C('S', 'nothing'), H, C('S', 'kept'), H);
    messages.push(...(await client.ask(S)));
    await side.disturb();
    messages.push(...(await inTurn(client, [...run('kept'), S], [...run('lost'), S])));
    return messages.concat(await inTurn(client, [P('lost', 'SELECT 3'), S], [...run('lost'), S]));
  },
);

exchange(
  'trap 2: an error of a simple Query needs no Sync, and a simple Query in a failed batch gets no ReadyForQuery',
  'EZTDCZEZTDCZ12DCTDCZEZTDCZ',
  [
    ...[Q('SELECT 1/0; SELECT 1'), Q('SELECT 2')],
    ...[B('', 'unknown'), Q('SELECT 3'), S, Q('SELECT 4')],
    ...[...once('SELECT 5'), Q('SELECT 6'), Q('SELECT 1/0'), Q('SELECT 7')],
  ],
);

t.test('trap 3: ReadyForQuery ‘I’ does not free a server while Syncs are in flight', async (t) => {
  const proxy = await startPool(t);
  const [a, b] = [await open(t, proxy.port), await open(t, proxy.port)];
  await admin.rows('SELECT pg_advisory_lock(3)');
  a.write(...once('SELECT 1'), S, ...once('SELECT 2 FROM pg_advisory_xact_lock(3)'), S, S, ...once('SELECT 3'), S);
  const first = await a.until('Z');
  t.equal(types(first), '12DCZ');
  t.equal(first.at(-1)!.body.toString(), 'I');
  b.write(Q(`SELECT 'b'`));
  await waiting(proxy);
  await admin.rows('SELECT pg_advisory_unlock(3)');
  const rest = await a.until('Z', 3);
  t.equal(types(rest), '12DCZZ12DCZ');
  t.same(rowsOf(rest), [['2'], ['3']]);
  t.same(rowsOf(await b.until('Z')), [['b']]);
});

t.test('trap 4: Flush without Sync keeps the server, whose transaction is still open', async (t) => {
  await reset();
  const proxy = await startPool(t);
  const [a, b] = [await open(t, proxy.port), await open(t, proxy.port)];
  a.write(...once(`INSERT INTO sink VALUES (4, 'x')`), H);
  t.equal(types(await a.until('C')), '12C');
  b.write(Q('SELECT count(*) FROM sink'));
  await waiting(proxy);
  t.same(await admin.rows('SELECT * FROM sink'), [], 'nothing is committed');
  t.equal(types(await a.ask(S)), 'Z');
  t.same(rowsOf(await b.until('Z')), [['1']]);
});

scenario(
  'trap 5: everything up to Sync is one transaction on one server, and a late failure takes all of it back',
  '12C12C1EZTDCZ',
  async (side) => {
    const client = await side.open();
    client.write(...once(`INSERT INTO sink VALUES (1, 'x')`), H);
    const messages = await client.until('C');
    const release = await side.elsewhere();
    client.write(...once(`INSERT INTO sink VALUES (2, 'x')`), H);
    messages.push(...(await client.until('C')));
    await release();
    messages.push(...(await client.ask([P('', 'SELECT 1/0 AS bad'), ...run(''), ...once('COMMIT'), S])));
    return messages.concat(await client.ask(Q('SELECT count(*) FROM sink')));
  },
);

t.test('trap 6: a failed transaction keeps its server, and is idle in transaction for the limits', async (t) => {
  const proxy = await startPool(t);
  const [a, b] = [await open(t, proxy.port), await open(t, proxy.port)];
  t.same(sqlstates(await a.ask(Q('BEGIN; SELECT 1/0'))), ['22012']);
  const answer = b.ask(Q('SELECT 1'));
  await waiting(proxy);
  const refused = await a.ask(Q('SELECT 1'));
  t.same([sqlstates(refused), refused.at(-1)!.body.toString()], [['25P02'], 'E']);
  t.equal(poolOf(proxy).waiters.size, 1);
  t.equal(types(await a.ask(Q('COMMIT'))), 'CZ');
  t.equal(types(await answer), 'TDCZ');
  const strict = await startPool(t, { idleInTransactionMax: '250ms' });
  const c = await open(t, strict.port);
  await c.ask(Q('BEGIN; SELECT 1/0'));
  t.same(sqlstates(await c.closed()), ['25P03']);
});

scenario(
  'trap 7: replies that the proxy makes itself keep their place between real ones',
  '1Z2DC1332DC3312DC1tTZ',
  async (side) => {
    const client = await side.open();
    const messages = await client.ask([P('a', 'SELECT 1'), S]);
    const known = [P('b', 'SELECT 1'), C('S', 'nothing'), C('P', 'nothing')];
    const again = [C('S', 'a'), C('S', 'b'), P('a', 'SELECT 1'), ...run('a'), P('b', 'SELECT 1'), D('S', 'b')];
    return messages.concat(await client.ask([...run('a'), ...known, ...run('b'), ...again, S]));
  },
);

// --- Prepared statements ----------------------------------------------------------------------------------------

exchanges(
  'trap 8: a statement may be evicted while it is in flight, and what an error discards of the eviction is made up for',
  ['111Z', '2DC2DCEZ', '2DC2DC2DC2DCZ', '22DCDCZ', '2EZ', '2DC1EZ', '2DC2DC2DCZ', '333EZ'],
  [
    [P('a', `SELECT 'a'`), P('b', `SELECT 'b'`), P('c', `SELECT 'c'`), S],
    [...run('a'), ...run('b'), B('', 'unknown'), ...run('c'), ...run('a'), S],
    [...run('c'), ...run('a'), ...run('b'), ...run('c'), S],
    [B('p', 'a'), B('q', 'b'), E('p'), E('q'), S],
    [B('p', 'c'), B('p', 'c'), ...run('a'), ...run('b'), S],
    [...run('b'), P('d', `SELECT 'd'`), E('unknown'), ...run('c'), C('S', 'a'), S],
    [...run('a'), ...run('b'), ...run('c'), S],
    [C('S', 'a'), C('S', 'b'), C('S', 'c'), P('d', `SELECT 'd'`), S],
  ],
  { preparedMax: 1 },
);

exchanges(
  'trap 9: a Parse that failed leaves nothing behind: not for Bind, not for Close, not for the next Parse',
  ['EZ', 'EZ', '3Z', 'EZ', 'CZ', '1Z', '2CZ', 'EZ', '2CZ', '3Z', 'EZ'],
  [
    [P('x', 'SELECT * FROM made'), ...run('x'), S],
    [...run('x'), S],
    [C('S', 'x'), S],
    [P('x', 'SELECT * FROM made'), C('S', 'x'), S],
    [Q('CREATE TABLE made (id int)')],
    [P('x', 'SELECT * FROM made'), S],
    [...run('x'), S],
    [P('x', 'SELEKT'), S],
    [...run('x'), S],
    [C('S', 'x'), S],
    [...run('x'), S],
  ],
);

exchanges(
  'trap 10: a portal and a statement of one name are two things',
  ['CZ', '12tTTDDsZ', '3DsZ', 'EZ', 'CZ', '123DC2DCZ', '2DC3EZ'],
  [
    [Q('BEGIN')],
    [P('n', ALL), B('n', 'n'), D('S', 'n'), D('P', 'n'), E('n', 2), S],
    [C('S', 'n'), E('n', 1), S],
    [...run('n'), S],
    [Q('ROLLBACK')],
    [P('n', 'SELECT 1'), B('n', 'n'), C('P', 'other'), E('n'), ...run('n'), S],
    [B('n', 'n'), E('n'), C('P', 'n'), E('n'), S],
  ],
);

scenario(
  'trap 11: DEALLOCATE and DISCARD ALL take effect whichever way they come',
  '11ZCZEZEZ11ZTDCCTDCZEZEZ11Z12CZEZEZ11Z12C1EZEZ2DCZCZEZ11ZCZEZ2DCZ',
  async (side) => {
    const client = await side.open();
    const messages: Message[] = [];
    const step = async (...parts: Buffer[]) => {
      messages.push(...(await client.ask(parts)));
      await side.disturb();
    };
    const pdo = 'pdo_stmt_00000001'; // PHP drops its statements by a simple Query.
    const prepare = [P(pdo, 'SELECT 1'), P('y', 'SELECT 2'), S];
    const routes = [[Q('DISCARD ALL')], [Q('SELECT 1; DEALLOCATE ALL; SELECT 2')], [...once('DEALLOCATE ALL'), S]];
    for (const route of routes) {
      for (const parts of [prepare, route, [...run(pdo), S], [...run('y'), S]]) await step(...parts);
    }
    await step(...prepare);
    await step(...once('DEALLOCATE ALL'), P('y', 'SELECT 3'), ...run(pdo), S);
    await step(P('y', 'SELECT 3'), S); // It was made before the error, so it is there.
    await step(...run('y'), S);
    await step(Q('DEALLOCATE ALL'));
    await step(...run('y'), S);
    await step(...prepare);
    await step(Q(`DEALLOCATE ${pdo}`));
    await step(...run(pdo), S);
    await step(...run('y'), S);
    return messages;
  },
);

// What DO has run shows only on the server that it ran on (a documented difference), so there is one server here.
scenario(
  'trap 11: a DEALLOCATE ALL that hides in DO takes effect',
  '1ZCZEZ1Z2DCZ',
  async (side) => {
    const hidden = Q(`DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$`);
    const again = [P('y', 'SELECT 2'), S];
    return inTurn(await side.open(), again, hidden, [...run('y'), S], again, [...run('y'), S]);
  },
  { size: 1 },
);

scenario(
  'trap 12: DDL makes a plan fail until it is made anew, and DEALLOCATE ALL of others does not touch it',
  '1Z2DCZCZ1ZCZCZCZ2DCZCZEZEZ31Z2DCZ',
  async (side) => {
    const [one, two] = [await side.open(), await side.open()];
    const select = P('x', 'SELECT value FROM shape');
    const messages = await inTurn(one, [select, S], [...run('x'), S]);
    const others = ['DEALLOCATE ALL', `DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$`, 'DISCARD ALL'].map(Q);
    messages.push(...(await inTurn(two, others[0]!, [P('x', 'SELECT value FROM shape'), S], ...others)));
    two.end();
    messages.push(...(await inTurn(one, [...run('x'), S], Q('ALTER TABLE shape ALTER COLUMN value TYPE text'))));
    for (let turn = 0; turn < 2; turn++) messages.push(...(await one.ask([...run('x'), S])));
    return messages.concat(await inTurn(one, [C('S', 'x'), select, S], [...run('x'), S]));
  },
);

scenario(
  'trap 13: a statement is shared only for equal parameter types, search_path and role',
  '1tTZ1tTZ1tTZ1Z1ZtTZ2DCZtTZ2DCZCCSSZ1Z1Z2DCZ2DCZ2DCZ',
  async (side) => {
    const [one, two] = [await side.open(), await side.open({ options: '-c search_path=other' })];
    const messages: Message[] = [];
    for (const [name, oids] of [
      ['number', [23]],
      ['text', [25]],
      ['none', []],
    ] as const) {
      messages.push(...(await one.ask([P(name, 'SELECT $1 AS v', [...oids]), D('S', name), S])));
    }
    const select = [P('s', 'SELECT value FROM shape'), S];
    messages.push(...(await one.ask(select)), ...(await two.ask(select)));
    for (const client of [one, two]) messages.push(...(await inTurn(client, [D('S', 's'), S], [...run('s'), S])));
    messages.push(...(await two.ask(Q('SET ROLE reader; SET search_path = public'))));
    const count = [P('count', 'SELECT count(*), current_user FROM items'), S];
    messages.push(...(await one.ask(count)), ...(await two.ask(count)));
    for (const client of [one, two, one]) messages.push(...(await client.ask([...run('count'), S])));
    return messages;
  },
);

// --- COPY -------------------------------------------------------------------------------------------------------

const COPY_IN = 'COPY sink FROM STDIN';
const COPY_OUT = 'COPY (SELECT 6 / (3 - n) FROM generate_series(1, 5) n) TO STDOUT';
const COUNT = Q('SELECT count(*) FROM sink');

scenario(
  'trap 14: COPY that fails midway swallows late data, Sync and Flush amid data are ignored, also in a batch',
  'GEZTDCZ12GEZTDCZ12GCZTDCZGEZHddEZ12HddEZTDCZ',
  async (side) => {
    const client = await side.open();
    const bad = [copyData('1\ta\n'), copyData('bad\n'), copyData('2\tb\n'), copyDone()];
    const messages = await inTurn(client, [Q(COPY_IN), ...bad, copyFail('late')], COUNT);
    messages.push(...(await inTurn(client, [...once(COPY_IN), ...bad, ...once('SELECT 1'), S], COUNT)));
    client.write(...once(COPY_IN), S);
    messages.push(...(await client.until('G')));
    for (const part of [copyData('1\ta\n'), H, S, copyData('2\tb\n'), H, copyDone(), S]) client.write(part);
    messages.push(...(await client.until('Z')), ...(await client.ask(COUNT)));
    messages.push(...(await client.ask([Q(COPY_IN), copyData('3\tc\n'), copyFail('enough')])));
    messages.push(...(await inTurn(client, Q(COPY_OUT), [...once(COPY_OUT), ...once('SELECT 1'), S])));
    return messages.concat(await client.ask(COUNT));
  },
);

// --- The network between proxy and server -----------------------------------------------------------------------

const isSslRequest = (chunk: Buffer) => chunk.equals(sslRequest);

const [cert, key] = [join(folder, 'cert.pem'), join(folder, 'key.pem')];
execFileSync(
  'openssl',
  [
    ...['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2'],
    ...['-subj', '/CN=localhost', '-keyout', key, '-out', cert],
  ],
  { stdio: 'ignore' },
);
const listenTls = { listen: { tls: { mode: 'allow', cert, key } } };

/** Everything that comes back for `parts`, each written on its own, until the other side closes or `isEnough`. */
async function dial(port: number, parts: Buffer[], isEnough: (bytes: Buffer) => boolean): Promise<Buffer> {
  const socket = net.connect({ host: '127.0.0.1', port, noDelay: true });
  let bytes = Buffer.alloc(0);
  let isEnded = false;
  socket.on('data', (chunk: Buffer) => (bytes = Buffer.concat([bytes, chunk])));
  socket.on('error', () => {}).on('close', () => (isEnded = true));
  for (const part of parts) {
    socket.write(part);
    await new Promise((resolve) => setImmediate(resolve));
  }
  await until(() => isEnded || isEnough(bytes), `an answer; got ${bytes.toString('latin1')}`);
  socket.destroy();
  return bytes;
}

/** The types of messages, behind bytes `N` that answer requests for encryption. */
function typesIn(bytes: Buffer): string {
  let text = '';
  let at = 0;
  for (; bytes[at] === 0x4e && (at + 1 === bytes.length || bytes[at + 1] !== 0); at++) text += 'no ';
  for (; at + 5 <= bytes.length; at += 1 + bytes.readUInt32BE(at + 1)) text += String.fromCharCode(bytes[at]!);
  return text;
}

// --- Cancel -----------------------------------------------------------------------------------------------------

t.test('trap 15: a cancel request that is late hits nobody: the server waits for it', async (t) => {
  let release = () => {};
  let seen = 0;
  const port = await startRelay(t, postgres.port, (chunk) => {
    if (!isCancelRequest(chunk)) return false;
    seen++;
    return new Promise((resolve) => {
      release = resolve;
    });
  });
  const proxy = await startPool(t, {}, {}, port);
  const [a, b] = [await open(t, proxy.port), await open(t, proxy.port)];
  await requestCancel(proxy.port, a.key);
  t.same([await a.rows('SELECT 1'), seen], [[['1']], 0], 'for an idle client it does nothing');
  await admin.rows('SELECT pg_advisory_lock(15)');
  const own = a.ask(Q('SELECT 1 FROM pg_advisory_xact_lock(15)'));
  await working(proxy);
  await requestCancel(proxy.port, a.key);
  await until(() => seen === 1, 'the request to be on its way');
  await admin.rows('SELECT pg_advisory_unlock(15)');
  t.equal(types(await own), 'TDCZ', 'it came too late');
  const answer = b.ask(Q('SELECT pg_sleep(0.3)'));
  await waiting(proxy);
  release();
  t.equal(types(await answer), 'TDCZ', 'and does not hit the next client');
  t.same(await a.rows('SELECT 1'), [['1']]);
});

t.test('trap 16: a cancel key has 8 bytes in protocol 3.0 and more in 3.2, and works, also over TLS', async (t) => {
  const proxy = await startPool(t, {}, { top: listenTls });
  for (const [version, size, isTls] of [
    [Version.v3_0, 8, false],
    [Version.v3_2, 32, false],
    [Version.v3_0, 8, true],
    [Version.v3_2, 32, true],
  ] as const) {
    const client = await open(t, proxy.port, {}, version);
    t.equal(client.key.length, size);
    const answer = client.ask(Q('SELECT pg_sleep(30)'));
    await working(proxy);
    const wrong = Buffer.from(client.key);
    wrong[size - 1]! ^= 1;
    for (const bad of [wrong, Buffer.concat([client.key, Buffer.alloc(4)])]) await requestCancel(proxy.port, bad);
    t.equal(client.messages.length, 0, 'a wrong key does nothing');
    if (isTls) await cancelOverTls(proxy.port, client.key);
    else await requestCancel(proxy.port, client.key);
    t.same(sqlstates(await answer), ['57014']);
    t.same(await client.rows('SELECT 1'), [['1']]);
  }
  t.equal(proxy.app.snapshot().cancels.unknown, 8);
});

async function cancelOverTls(port: number, secret: Buffer): Promise<void> {
  const plain = net.connect(port, '127.0.0.1');
  plain.write(sslRequest);
  await new Promise((resolve) => plain.once('data', resolve));
  const socket = tls.connect({ socket: plain, rejectUnauthorized: false });
  await new Promise((resolve) => socket.once('secureConnect', resolve));
  socket.write(cancelRequest(secret));
  await new Promise((resolve) =>
    socket
      .on('error', () => {})
      .on('close', resolve)
      .resume(),
  );
}

// --- Clients that leave -----------------------------------------------------------------------------------------

t.test('trap 17: a client that vanishes commits nothing, and its server is cleaned, not replaced', async (t) => {
  await reset();
  const proxy = await startPool(t);
  const insert = `INSERT INTO sink VALUES (17, 'x')`;
  for (const [what, leave] of [
    ['in a transaction', async (client: RawClient) => void (await client.rows(`BEGIN; ${insert}`))],
    ['in a failed one', async (client: RawClient) => void (await client.ask(Q(`BEGIN; ${insert}; SELECT 1/0`)))],
    [
      'in a batch without Sync',
      async (client: RawClient) => {
        client.write(...once(insert), H);
        await client.until('C');
      },
    ],
    [
      'in a large result, with more to come',
      async (client: RawClient) => {
        const rows = Q(`SELECT repeat('x', 1000) FROM generate_series(1, 200000)`);
        client.write(Q('BEGIN'), Q(insert), rows, rows, Q('SELECT pg_sleep(30)'));
        await client.until('D', 10);
      },
    ],
    [
      'amid COPY data',
      async (client: RawClient) => {
        client.write(Q(COPY_IN), copyData('17\tx\n'));
        await client.until('G');
      },
    ],
    [
      'in half a message',
      async (client: RawClient) => {
        client.write(...once(insert), H, B('', '', ['x'.repeat(1000)]).subarray(0, 500));
        await client.until('C');
      },
    ],
  ] as const) {
    const client = await open(t, proxy.port);
    const pid = await pidOf(client);
    await leave(client);
    client.end();
    const next = await open(t, proxy.port);
    t.equal(await pidOf(next), pid, what);
    t.same(await admin.rows('SELECT * FROM sink'), [], what);
    next.end();
  }
  t.equal(poolOf(proxy).counts.connects, 1, 'no storm of connections');
});

t.test('trap 18: a session is discarded outside any transaction, whatever its client left open', async (t) => {
  const proxy = await startPool(t, { mode: 'session' });
  let pid = '';
  for (const leave of ['SELECT 1', 'BEGIN', 'BEGIN; SELECT 1/0']) {
    const client = await open(t, proxy.port);
    pid ||= await pidOf(client);
    t.equal(await pidOf(client), pid, 'the server was kept');
    t.same(
      await client.rows(`SELECT current_setting('work_mem'), to_regclass('pg_temp.mine'),
        (SELECT count(*) FROM pg_prepared_statements), (SELECT count(*) FROM pg_listening_channels()),
        (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())`),
      [['4MB', null, '0', '0', '0']],
      `after ${leave}`,
    );
    await client.rows(`SET work_mem = '7MB'; CREATE TEMP TABLE mine (id int); PREPARE p AS SELECT 1;
      LISTEN ch; SELECT pg_advisory_lock(18)`);
    await client.ask(Q(leave));
    client.end();
  }
  const refusedIn = await open(t, proxy.port);
  for (const parts of [Q('SELECT 1; DISCARD ALL'), [...once('SELECT 1'), ...once('DISCARD ALL'), S]]) {
    t.same(sqlstates(await refusedIn.ask(parts)), ['25001'], 'for clients it is as in Postgres');
  }
});

// --- Settings ---------------------------------------------------------------------------------------------------

/** Gives lines in turn to clients a, b, …; of each answer everything counts. */
function conversation(startups: Record<string, string>[], lines: string[]) {
  return async (side: Side): Promise<Message[]> => {
    const clients = new Map<string, RawClient>();
    for (const [index, parameters] of startups.entries()) clients.set('abc'[index]!, await side.open(parameters));
    const messages: Message[] = [];
    for (const line of lines) messages.push(...(await clients.get(line[0]!)!.ask(Q(line.slice(2)))));
    return messages;
  };
}

scenario(
  'trap 19: reported settings: Postgres’s own spelling, undone by ROLLBACK, reset to the startup value, nobody else’s',
  'CSZCSZTDCZTDCZCZCSZCSZTDCZCZCSZCSZTDCZTDCSZTDCZCSZTDCZEZTDCZCSZTDCZ',
  conversation(
    [{ application_name: 'first', options: '-c DateStyle=SQL,DMY' }, { application_name: 'second' }],
    [
      `a SET TimeZone = 'europe/berlin'`,
      `a SET DateStyle = 'german'`,
      'b SELECT current_setting($$TimeZone$$), current_setting($$DateStyle$$)',
      'a SHOW TimeZone',
      'a BEGIN',
      `a SET application_name = 'undone'`,
      'a ROLLBACK',
      'b SHOW application_name',
      'a BEGIN',
      `a SET LOCAL application_name = 'local'`,
      'a COMMIT',
      'b SHOW application_name',
      `a SELECT set_config('search_path', '', false)`,
      'b SHOW search_path',
      'a SET default_transaction_read_only = on',
      'a SHOW search_path',
      'a CREATE TABLE never (id int)',
      `b SELECT current_setting('transaction_read_only')`,
      'a RESET DateStyle',
      'a SHOW DateStyle',
    ],
  ),
);

/** Directories with the programs of installed servers, as Debian lays them out: older ones report fewer settings. */
const installed = existsSync('/usr/lib/postgresql')
  ? readdirSync('/usr/lib/postgresql').map((version) => `/usr/lib/postgresql/${version}/bin`)
  : [];

t.test('trap 20: settings that the server does not report are kept and told apart all the same', async (t) => {
  for (const binDir of [null, ...installed.filter((path) => existsSync(`${path}/initdb`)).slice(0, 1)]) {
    const server = binDir === null ? postgres : await withPostgres({ binDir });
    if (binDir !== null) t.after(() => server.stop());
    const proxy = await startPool(t, {}, {}, server.port);
    const names = [
      'search_path',
      'role',
      'statement_timeout',
      'lock_timeout',
      'row_security',
      'work_mem',
      'app.tenant',
    ];
    const values = {
      a: ['a, public', 'none', '7s', '3s', 'off', '5MB', 'one'],
      b: ['b', 'pg_monitor', '9s', '4s', 'on', '6MB', 'two'],
    };
    const read = `SELECT ${names.map((name) => `coalesce(current_setting('${name}', true), '')`)}`;
    const [a, b, c] = [await open(t, proxy.port), await open(t, proxy.port), await open(t, proxy.port)];
    const untouched = (await c.rows(read))[0]!;
    for (const [index, name] of names.entries()) {
      await a.rows(`SELECT set_config('${name}', '${values.a[index]}', false)`);
      await b.rows(
        `SET ${name} = ${name === 'search_path' || name === 'role' ? values.b[index] : `'${values.b[index]}'`}`,
      );
      await a.ask(Q(`BEGIN; SET LOCAL ${name} = DEFAULT; ROLLBACK`));
    }
    for (let lap = 0; lap < 2; lap++) {
      t.same(await a.rows(read), [values.a], `a in ${binDir}`);
      t.same(await b.rows(read), [values.b], `b in ${binDir}`);
      const seen = (await c.rows(read))[0]!;
      // A name with a dot becomes known, and empty, on a server that had it set.
      t.same([seen.slice(0, -1), seen.at(-1)], [untouched.slice(0, -1), ''], `c in ${binDir}`);
    }
  }
});

t.test('trap 21: startup options are read as Postgres reads them', async (t) => {
  const proxy = await startPool(t);
  const names = [
    'statement_timeout',
    'search_path',
    'work_mem',
    'application_name',
    'app.tenant',
    'extra_float_digits',
  ];
  // A custom setting that some client has had is empty rather than unknown, in Postgres, too.
  const read = Q(`SELECT ${names.map((name) => `coalesce(current_setting('${name}', true), '')`)}`);
  const login = async (port: number, pairs: [string, string][]) => {
    const client = new RawClient(port);
    t.after(() => client.end());
    client.write(startup(Version.v3_0, [['user', 'postgres'], ['database', 'postgres'], ...pairs]), read);
    return show((await client.until('Z', 2)).filter(({ type }) => 'DET'.includes(type)));
  };
  for (const pairs of [
    [['options', '-c statement_timeout=7s --search-path=a,"B\\ c" -cwork_mem=5MB -c application_name=x\\\\y\\ z']],
    [['options', '  --statement-timeout=1s   -c  app.tenant=a=b\t-c work_mem=5MB -c work_mem=6MB ']],
    [
      ['options', '-c application_name=options -c extra_float_digits=2'],
      ['application_name', 'first'],
      ['application_name', 'last'],
      ['extra_float_digits', '3'],
      ['app.tenant', 'it\'s "\\'],
    ],
    [['options', '']],
    [['STATEMENT_TIMEOUT', '8s']],
  ] as [string, string][][]) {
    t.same(await login(proxy.port, pairs), await login(postgres.port, pairs), JSON.stringify(pairs));
  }
  // Postgres refuses the login; a proxy that has not asked a server yet refuses the first request.
  for (const pairs of [[['nonsense', '1']], [['options', '-c nonsense=1']], [['work_mem', 'lots']]] as [
    string,
    string,
  ][][]) {
    const codes = async (port: number) => /\["C","(\w+)"\]/.exec((await login(port, pairs)).join())?.[1];
    t.equal(await codes(proxy.port), await codes(postgres.port), JSON.stringify(pairs));
  }
});

// --- Logins -----------------------------------------------------------------------------------------------------

t.test('trap 22: a login does not tell which users and databases exist, and VALID UNTIL holds', async (t) => {
  await admin.rows(`CREATE ROLE known LOGIN PASSWORD 'secret';
    CREATE ROLE expired LOGIN PASSWORD 'secret' VALID UNTIL '2001-01-01'`);
  const [[, verifier]] = (await admin.rows(`SELECT 1, rolpassword FROM pg_authid WHERE rolname = 'known'`)) as [
    [string, string],
  ];
  const userlist = temporaryFile('userlist.txt', `"known" "${verifier}"\n"expired" "secret"\n`);
  t.after(userlist.remove);
  const proxy = await startPool(
    t,
    {},
    {
      top: {
        auth: { method: 'scram-sha-256', users: userlist.path },
        databases: { postgres: { hosts: [`127.0.0.1:${postgres.port}`], tls: { mode: 'disable' } } },
      },
    },
  );
  /** What is said to a wrong proof; the numbers are those that tell users apart: salt and iterations. */
  const attempt = async (user: string, database: string) => {
    const client = new RawClient(proxy.port);
    t.after(() => client.end());
    client.write(startup(Version.v3_0, Object.entries({ user, database })));
    const said = await client.until('R', 1, ['E']);
    const first = 'n,,n=,r=abcdefghijklmnop';
    client.write(message(0x70, 'SCRAM-SHA-256\0', int32(first.length), first));
    const challenge = await client.until('R', 1, ['E']);
    const [, nonce, salt, count] = /r=([^,]*),s=([^,]*),i=(\d+)/.exec(challenge[0]!.body.toString('utf8', 4)) ?? [];
    client.write(message(0x70, `c=biws,r=${nonce},p=${Buffer.alloc(32).toString('base64')}`));
    const end = await client.closed();
    return { salt, seen: [types([...said, ...challenge, ...end]), salt?.length, count, ...sqlstates(end)] };
  };
  const real = await attempt('known', 'postgres');
  t.equal(real.seen[0], 'RRE');
  for (const [user, database] of [
    ['nobody', 'postgres'],
    ['known', 'nonesuch'],
    ['nobody', 'nonesuch'],
  ] as const) {
    t.same((await attempt(user, database)).seen, real.seen, `${user} in ${database}`);
  }
  t.equal((await attempt('nobody', 'x')).salt, (await attempt('nobody', 'y')).salt, 'no fresh salt at each attempt');
  await t.rejects(connect(proxy.port, { user: 'known', password: 'secret', database: 'nonesuch' }), { code: '3D000' });
  await t.rejects(connect(proxy.port, { user: 'expired', password: 'secret' }), { code: '28P01' });
  const client = await connect(proxy.port, { user: 'known', password: 'secret', options: '-c search_path=evil' });
  t.same((await client.query('SELECT current_user AS me')).rows, [{ me: 'known' }]);
  await client.end();
});

t.test('trap 23: bytes stuffed in around SSLRequest are refused, from clients and from servers', async (t) => {
  const proxy = await startPool(t, {}, { top: listenTls });
  const login = startup(Version.v3_0, [['user', 'postgres']]);
  for (const stuffed of [login, Buffer.from('x')]) {
    const client = new RawClient(proxy.port);
    client.write(sslRequest, stuffed);
    const messages = await client.closed();
    t.same([types(messages), sqlstates(messages)], ['E', ['08P01']]);
  }
  const plain = await startPool(t);
  t.equal(typesIn(await dial(plain.port, [sslRequest, sslRequest], () => false)), 'no E', 'asked twice');
  for (const [extra, isWelcome] of [
    [Buffer.alloc(0), true],
    [parameterStatus('application_name', 'stuffed'), false],
    [Buffer.from('N'), false],
  ] as const) {
    const port = await startRelay(t, postgres.port, (chunk, link) => {
      if (!isSslRequest(chunk)) return false;
      link.answer(Buffer.concat([Buffer.from('N'), extra]));
      return true;
    });
    const more = { database: { tls: { mode: 'prefer' } }, top: { listen: { loginTimeout: '400ms' } } };
    const behind = await startPool(t, {}, more, port);
    if (isWelcome) t.same(await (await open(t, behind.port)).rows('SELECT 1'), [['1']]);
    else await t.rejects(RawClient.open(behind.port), /57P03/);
    t.match(poolOf(behind).lastFailure, isWelcome ? '' : /more than one byte/);
  }
});

t.test(
  'trap 24: packets of the login may be split and glued in any way, and GSS, SSL and TLS may be tried',
  async (t) => {
    const proxy = await startPool(t);
    const login = startup(Version.v3_0, Object.entries({ user: 'postgres', database: 'postgres' }));
    const gss = Buffer.concat([int32(8), int32(80877104)]);
    const bytewise = (...parts: Buffer[]) => [...Buffer.concat(parts)].map((byte) => Buffer.from([byte]));
    for (const [what, parts, count] of [
      ['byte by byte', bytewise(login, Q('SELECT 1')), 2],
      ['in one', [Buffer.concat([login, Q('SELECT 1'), Q('SELECT 2')])], 3],
      ['GSS, then the rest', [gss, ...bytewise(sslRequest), ...bytewise(login, Q('SELECT 1'))], 2],
    ] as const) {
      const isReady = (bytes: Buffer) => [...typesIn(bytes)].filter((type) => type === 'Z').length === count;
      const seen = typesIn(await dial(proxy.port, [...parts], isReady)).replace(/S+K/, 'SK');
      t.equal(seen, `${what.startsWith('GSS') ? 'no no ' : ''}RSKZ${'TDCZ'.repeat(count - 1)}`, what);
    }
    const client = await open(t, proxy.port);
    const answer = client.ask(Q('SELECT pg_sleep(30)'));
    await working(proxy);
    t.equal((await dial(proxy.port, bytewise(cancelRequest(client.key)), () => false)).length, 0);
    t.same(sqlstates(await answer), ['57014']);
    const direct = await dial(proxy.port, [Buffer.from([0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3])], () => false);
    t.match(typesIn(direct), /^E?$/, 'TLS without asking is refused, not waited for');
  },
);

// --- Servers that die or refuse ---------------------------------------------------------------------------------

t.test('trap 25: an idle server that dies, or says something unasked, is noticed before anyone gets it', async (t) => {
  const proxy = await startPool(t);
  const client = await open(t, proxy.port);
  const pid = await pidOf(client);
  // ParameterStatus out of turn: not a reply to anybody, and not this client's setting.
  await admin.rows(`ALTER SYSTEM SET IntervalStyle = 'iso_8601'`);
  await admin.rows('SELECT pg_reload_conf()');
  await until(
    async () => (await admin.rows('SHOW IntervalStyle'))[0]![0] === 'iso_8601',
    'the servers to have read their configuration',
  );
  t.equal(types(await client.ask(Q('SELECT 1'))).replaceAll('S', ''), 'TDCZ');
  t.equal(types(await client.ask([...once('SELECT 1'), S])).replaceAll('S', ''), '12DCZ');
  t.equal(await pidOf(client), pid);
  await admin.rows('ALTER SYSTEM RESET IntervalStyle');
  await admin.rows('SELECT pg_reload_conf()');
  // FATAL out of turn, then the end.
  await admin.rows(`SELECT pg_terminate_backend(${pid}, 5000)`);
  await until(() => poolOf(proxy).serverCount === 0, 'the proxy to notice');
  t.equal(types(await client.ask([...once('SELECT 1'), S])).replaceAll('S', ''), '12DCZ');
});

t.test(
  'trap 26: 57P03 and 53300 at connect are waited out, 28P01 is told at once, and replication is apart',
  async (t) => {
    let refusals: string[] = [];
    const port = await startRelay(t, postgres.port, (_, link) => {
      const code = link.isFirst ? refusals.shift() : undefined;
      if (code === undefined) return false;
      const fields = ['SFATAL', 'VFATAL', `C${code}`, 'Mnot now'];
      link.answerLast(errorFields(new Map(fields.map((field) => [field[0]!, field.slice(1)]))));
      return true;
    });
    const proxy = await startPool(t, { waitMax: '5s' }, {}, port);
    const client = await open(t, proxy.port);
    const lose = async () => {
      if (poolOf(proxy).serverCount === 0) return;
      await admin.rows(`SELECT pg_terminate_backend(${await pidOf(client)}, 5000)`);
      await until(() => poolOf(proxy).serverCount === 0, 'the proxy to notice');
    };
    for (const code of ['57P03', '53300']) {
      await lose();
      refusals = [code, code];
      t.same(await client.rows('SELECT 1'), [['1']], `${code} passes`);
      t.same(refusals, []);
    }
    await lose();
    refusals = ['28P01', '28P01']; // The password is read again, once.
    const { now } = proxy.app.snapshot();
    const messages = await client.ask(Q('SELECT 1'));
    t.equal(types(messages), 'EZ');
    t.match(describe(messages[0]!), /53000.*not now/);
    t.ok(proxy.app.snapshot().now - now < 4_000, 'long before waitMax');
    await until(async () => types(await client.ask(Q('SELECT 1'))) === 'TDCZ', 'the pool to try again');
    refusals = ['28P01'];
    await t.rejects(RawClient.open(proxy.port, { replication: 'true' }), /28P01/);
    t.equal(types(await client.ask(Q('SELECT 1'))), 'TDCZ', 'the pool is as it was');
  },
);

t.test('trap 27: a batch that is refused gets one error, and one ReadyForQuery at its Sync', async (t) => {
  const proxy = await startPool(t, { waitMax: '250ms' });
  const [a, b] = [await open(t, proxy.port), await open(t, proxy.port)];
  await a.rows(OCCUPY);
  b.write(...once('SELECT 1'), H);
  const error = await b.until('E');
  t.same([types(error), sqlstates(error)], ['E', ['53000']]);
  b.write(...once('SELECT 2'), H, D('S', 'unknown'), Q('SELECT 3'), H);
  await a.rows('COMMIT'); // From here on there is a server, which this batch must not reach any more.
  t.equal(types(await b.ask(S)), 'Z');
  t.equal(types(await b.ask([...once('SELECT 4'), S])), '12DCZ');
  await a.rows(OCCUPY);
  t.equal(types(await b.ask([...once('SELECT 5'), S, S, Q('SELECT 6'), ...once('SELECT 7'), S], 4)), 'EZZEZEZ');
});

// --- What belongs to a session ----------------------------------------------------------------------------------

t.test('trap 28: a notification changes no transaction state and reaches only who listens', async (t) => {
  const proxy = await startPool(t, { size: 2 });
  const [listener, other] = [await open(t, proxy.port), await open(t, proxy.port)];
  await listener.rows('LISTEN news');
  t.equal(types(await other.ask(Q(`NOTIFY news, 'idle'`))), 'CZ');
  t.equal(types(await listener.until('A')), 'A', 'without asking');
  await listener.rows(OCCUPY);
  await other.rows(`NOTIFY news, 'in a transaction'`);
  const within = await listener.ask(Q('SELECT 1'));
  t.same([types(within), within.at(-1)!.body.toString()], ['TDCZ', 'T'], 'not before the transaction ends');
  const end = await listener.ask(Q('COMMIT')); // Postgres may send it on either side of ReadyForQuery.
  if (!types(end).includes('A')) end.push(...(await listener.until('A')));
  t.match(types(end), /^(CAZ|CZA)$/);
  t.equal(types(await listener.ask(Q('UNLISTEN news'))), 'CZ');
  await other.rows(`NOTIFY news, 'nobody'`);
  for (const client of [listener, other, listener, other]) t.equal(types(await client.ask(Q('SELECT 1'))), 'TDCZ');
});

t.test('trap 29: what belongs to a session stays with its client, and ends with it', async (t) => {
  for (const [make, probe, own, others] of [
    ['SELECT pg_advisory_lock(29)', 'SELECT pg_try_advisory_lock(29)', 't', 'f'],
    ['CREATE TEMP TABLE mine (id int)', `SELECT to_regclass('mine')`, 'mine', null],
    ['DECLARE kept CURSOR WITH HOLD FOR SELECT 1', 'SELECT count(*) FROM pg_cursors', '1', '0'],
    ['SET ROLE reader', 'SELECT current_user', 'reader', 'postgres'],
    ['PREPARE mine AS SELECT 1', 'EXECUTE mine', '1', '26000'],
    ['SELECT 1; LISTEN mine', 'SELECT count(*) FROM pg_listening_channels()', '1', '0'],
    [`SET app.tenant = 'one'`, `SELECT coalesce(current_setting('app.tenant', true), '')`, 'one', ''],
    [`LOAD 'plpgsql'`, 'SELECT 1', '1', '1'],
  ] as const) {
    const proxy = await startPool(t, { size: 2 });
    const [a, b] = [await open(t, proxy.port), await open(t, proxy.port)];
    const ask = async (client: RawClient) => {
      const messages = await client.ask(Q(probe));
      return sqlstates(messages)[0] ?? rowsOf(messages)[0]![0];
    };
    await a.ask(Q(make));
    for (let lap = 0; lap < 2; lap++) {
      t.equal(await ask(b), others, `${make}, another client`);
      t.equal(await ask(a), own, `${make}, the same client`);
    }
    for (const client of [a, b]) client.end();
    await until(() => proxy.app.snapshot().sessions.size === 0, 'the sessions to end');
    const [c, d] = [await open(t, proxy.port), await open(t, proxy.port)];
    await c.rows(OCCUPY);
    const free = own === 't' && others === 'f' ? 't' : others;
    t.same([await ask(d), (await c.ask(Q('COMMIT'))).length], [free, 2], `${make}, after its end`);
  }
  // Asked for later than in the transaction of nextval, the last value may be an error once, never that of another.
  const proxy = await startPool(t, { size: 2 });
  const [a, b] = [await open(t, proxy.port), await open(t, proxy.port)];
  const [next, current] = [`SELECT nextval('numbers')`, `SELECT currval('numbers')`];
  await a.rows(OCCUPY);
  const drawn = await a.rows(next);
  t.same(await a.rows(current), drawn);
  await a.rows('COMMIT');
  await b.rows(next);
  const later = await a.ask(Q(current));
  t.ok(sqlstates(later)[0] === '55000' || rowsOf(later)[0]![0] === drawn[0]![0], 'its own number or an error');
  const own = await a.rows(next);
  await b.rows(next);
  t.same(await a.rows(current), own);
});

t.test('trap 30: a replication connection has a server of its own, which nobody gets afterwards', async (t) => {
  const proxy = await startPool(t);
  const pooled = await open(t, proxy.port);
  await pooled.rows(OCCUPY);
  for (const replication of ['database', 'true']) {
    const client = await open(t, proxy.port, { replication });
    const [system, timeline, position] = (await client.rows('IDENTIFY_SYSTEM'))[0]!;
    t.match(system, /^\d+$/);
    client.write(Q(`START_REPLICATION PHYSICAL ${position} TIMELINE ${timeline}`));
    t.equal(types(await client.until('W')), 'W');
    client.end();
    const senders = 'SELECT count(*) FROM pg_stat_replication';
    await until(async () => (await admin.rows(senders))[0]![0] === '0', 'its server to be gone');
  }
  await until(() => proxy.app.snapshot().replications === 0, 'the replication connections to end');
  t.equal(poolOf(proxy).counts.connects, 1, 'none of them came from the pool');
  t.equal(types(await pooled.ask(Q('COMMIT'))), 'CZ');
});

// --- Less common messages ---------------------------------------------------------------------------------------

const INT4PL = 177;

exchange('trap 31: FunctionCall has its own ReadyForQuery, which no Sync takes the place of', 'VZEZ12DCVZZEZVZTDCZ', [
  ...[send.functionCall(INT4PL, ['1', '2']), send.functionCall(INT4PL, ['2147483647', '2'])],
  ...[...once('SELECT 1'), send.functionCall(INT4PL, ['3', '4']), S],
  ...[B('', 'unknown'), send.functionCall(INT4PL, ['5', '6']), S],
  ...[send.functionCall(INT4PL, ['7', '8']), Q('SELECT 2')],
]);

exchange(
  'trap 32: empty queries, suspended portals, and NoData where there are no rows',
  'IZIZ12nIZ1tn2nCTDCZ1tT2TDDsDDsDCZ12DsDCZ',
  [
    ...[Q(''), Q(' ; -- nothing'), P('', ''), B('', ''), D('P', ''), E(''), S],
    ...[P('none', 'DELETE FROM sink'), D('S', 'none'), B('', 'none'), D('P', ''), E(''), Q('SELECT 1')],
    ...[P('rows', ALL), D('S', 'rows'), B('p', 'rows'), D('P', 'p'), E('p', 2), E('p', 2), E('p', 2), S],
    ...[P('', `UPDATE items SET name = 'x' WHERE id < 3 RETURNING id`), B('q', ''), E('q', 1), E('q', 5), S],
  ],
);

t.test('trap 33: floods in both directions at once do not lock up, and a huge row is not kept', async (t) => {
  const proxy = await startPool(t, { size: 2 });
  const [client, other] = [await open(t, proxy.port), await open(t, proxy.port)];
  const [session] = proxy.app.snapshot().sessions;
  const count = 1_500;
  const padding = `/* ${'x'.repeat(4_000)} */`;
  client.socket.pause();
  client.write(...Array.from({ length: count }, (_, n) => Q(`SELECT ${n}, repeat('x', 8000) ${padding}`)));
  await until(() => session!.socket.writableLength > 0, 'a jam');
  t.same(await other.rows('SELECT 1'), [['1']], 'others are served');
  client.socket.resume();
  const rows = rowsOf(await client.until('Z', count));
  t.same(
    rows.map(([n]) => Number(n)),
    Array.from({ length: count }, (_, n) => n),
  );
  let most = 0;
  let got = 0;
  client.socket.removeAllListeners('data');
  client.socket.pause();
  client.write(Q(`SELECT repeat('x', 30000000)`));
  await until(() => session!.socket.writableLength > 0, 'another jam');
  client.socket.on('data', (chunk: Buffer) => {
    got += chunk.length;
    most = Math.max(most, session!.socket.writableLength);
  });
  t.same(await other.rows('SELECT 1'), [['1']]);
  client.socket.resume();
  await until(() => got > 30_000_000, 'the whole row');
  t.ok(most < 2_000_000, `at most ${most} bytes of it were kept`);
});

t.test('trap 34: lengths that lie are refused before anything is kept for them', async (t) => {
  const proxy = await startPool(t, {}, { top: { listen: { messageMax: '1MiB' } } });
  const witness = await open(t, proxy.port);
  for (const [what, packet] of [
    ['zero', Buffer.concat([int32(0), int32(Version.v3_0)])],
    ['negative', Buffer.concat([int32(-1), int32(Version.v3_0)])],
    ['of 10 001 bytes', Buffer.concat([int32(10_001), int32(Version.v3_0)])],
    ['of a gigabyte', Buffer.concat([int32(0x40000000), int32(Version.v3_0)])],
  ] as const) {
    t.match(typesIn(await dial(proxy.port, [packet], () => false)), /^E?$/, `a startup packet ${what}`);
  }
  for (const [what, bytes, code] of [
    ['negative', Buffer.concat([Buffer.from('Q'), int32(-5)]), '54000'],
    ['of three', Buffer.concat([Buffer.from('Q'), int32(3)]), '08P01'],
    ['of two gigabytes', Buffer.concat([Buffer.from('P'), int32(0x7fffffff)]), '54000'],
    ['beyond messageMax', Buffer.concat([Buffer.from('d'), int32(0x200000)]), '54000'],
  ] as const) {
    const client = await open(t, proxy.port);
    client.write(bytes);
    const messages = await client.closed();
    t.same([types(messages), sqlstates(messages)], ['E', [code]], `a message ${what}`);
    t.same(await witness.rows('SELECT 1'), [['1']]);
  }
});

t.test('trap 35: NegotiateProtocolVersion comes once, first, and names the options that nobody knows', async (t) => {
  const proxy = await startPool(t);
  const names: [string, string][] = [
    ['user', 'postgres'],
    ['database', 'postgres'],
  ];
  for (const [what, packet] of [
    ['3.9', startup(0x00030009, names)],
    ['options', startup(Version.v3_0, [...names, ['_pq_.one', '1'], ['_pq_.two', '']])],
    ['both', startup(0x00030009, [...names, ['_pq_.one', '1']])],
    ['neither', startup(Version.v3_2, names)],
  ] as const) {
    const isReady = (bytes: Buffer) => typesIn(bytes).endsWith('Z');
    const [actual, wanted] = [await dial(proxy.port, [packet], isReady), await dial(postgres.port, [packet], isReady)];
    t.equal(typesIn(actual), typesIn(wanted), what);
    t.match(typesIn(actual), what === 'neither' ? /^RS+KZ$/ : /^vRS+KZ$/, what);
    if (what === 'neither') continue;
    const size = 1 + wanted.readUInt32BE(1);
    t.same(actual.subarray(0, size), wanted.subarray(0, size), what);
  }
});

exchanges(
  'trap 36: a BEGIN can be described, and what fails behind it fails in order, in its transaction',
  ['1tn2nCZ', '12NCZ', 'CZ', '12C1EZ', 'EZ', '2CZ', '2C12DCEZ', 'CZ'],
  [
    [P('b', 'BEGIN'), D('S', 'b'), B('', 'b'), D('P', ''), E(''), S],
    [...once('BEGIN'), S],
    [Q('ROLLBACK')],
    [...once('BEGIN ISOLATION LEVEL SERIALIZABLE'), P('end', 'ROLLBACK'), ...once('SELEC'), S],
    [Q('SELECT 1')],
    [...run('end'), S],
    [...run('b'), ...once('SELECT 1'), B('', 'unknown'), ...run('end'), S],
    [Q('ROLLBACK')],
  ],
);

scenario(
  'trap 37: notices come in their place and are no replies, nor are those of a server’s login',
  'TDCZ12DCZNCZ12NC12DCZNNCTDCZNEZNCZTDCZ',
  async (side) => {
    const noise = `CREATE OR REPLACE FUNCTION greet() RETURNS event_trigger LANGUAGE plpgsql
      AS $$ BEGIN RAISE NOTICE 'welcome'; END $$`;
    const setUp = await RawClient.open(postgres.port, { database: 'noisy' });
    await setUp.rows(`DROP EVENT TRIGGER IF EXISTS greeting; ${noise};
      CREATE EVENT TRIGGER greeting ON login EXECUTE FUNCTION greet()`);
    setUp.end();
    const say = (text: string) => `DO $$ BEGIN RAISE NOTICE '${text}'; END $$`;
    const client = await side.open({ database: 'noisy' });
    return inTurn(
      client,
      Q('SELECT 1'),
      [...once('SELECT 2'), S],
      Q(say('simple')),
      [...once(say('extended')), ...once('SELECT 3'), S],
      Q(`${say('one').replace('END', `RAISE NOTICE 'two'; END`)}; SELECT 4`),
      Q(`DO $$ BEGIN RAISE NOTICE 'before'; RAISE EXCEPTION 'after'; END $$`),
      Q('COMMIT'),
      Q('SELECT 5'),
    );
  },
);

// --- Time -------------------------------------------------------------------------------------------------------

t.test('trap 38: limits strike only what they are for: a query, a live waiter, one server at a time', async (t) => {
  const limited = await startPool(t, { queryMax: '300ms', size: 8 });
  const idle = await open(t, limited.port);
  await idle.rows(OCCUPY);
  await pass(limited, 900);
  t.equal(types(await idle.ask(Q('SELECT 1'))), 'TDCZ', 'queryMax does not strike between queries');
  t.same(sqlstates(await idle.ask(Q('SELECT pg_sleep(30)'))), ['57014'], 'but it strikes');
  await idle.rows('ROLLBACK');
  const clients = await Promise.all(Array.from({ length: 8 }, () => open(t, limited.port)));
  await Promise.all(clients.map((client) => client.rows(OCCUPY)));
  const lifetimes = new Set(
    poolOf(limited)
      .servers()
      .map(({ server }) => server.lifetimeMs),
  );
  t.ok(lifetimes.size > 1, 'servers opened together do not all end together');

  const proxy = await startPool(t, { waitMax: '300ms' });
  const [a, b, c] = [await open(t, proxy.port), await open(t, proxy.port), await open(t, proxy.port)];
  await a.rows(OCCUPY);
  b.write(Q(`INSERT INTO sink VALUES (38, 'x')`));
  await waiting(proxy);
  b.end();
  await waiting(proxy, 0);
  await a.rows('COMMIT');
  t.same(await admin.rows('SELECT * FROM sink WHERE id = 38'), [], 'what has left the queue is not run');
  const console = await connect(proxy.port, { database: 'pgbouncer' });
  await console.query('PAUSE');
  const answer = c.ask(Q('SELECT 1'));
  await waiting(proxy);
  await pass(proxy, 900);
  t.equal(poolOf(proxy).waiters.size, 1, 'waitMax does not count while paused');
  await console.query('RESUME');
  t.equal(types(await answer), 'TDCZ');
  await console.end();
});

t.test('trap 39: SCRAM keys are good for their own verifier only, and many logins stop nobody', async (t) => {
  const stored = async () =>
    (await admin.rows(`SELECT rolpassword FROM pg_authid WHERE rolname = 'passing'`))[0]![0] as string;
  await admin.rows(`CREATE ROLE passing LOGIN PASSWORD 'old'; CREATE ROLE feminine LOGIN PASSWORD 'ª'`);
  const lines = async () => `"passing" "${await stored()}"\n"feminine" "ª"\n"postgres" "x"\n`;
  const userlist = temporaryFile('userlist.txt', await lines());
  t.after(userlist.remove);
  const auth = { method: 'scram-sha-256', users: userlist.path, admins: ['postgres'] };
  const proxy = await startPool(t, { waitMax: '1s' }, { top: { auth, listen: { loginTimeout: '2s' } } });
  const logIn = async (user: string, password: string) => {
    const client = await connect(proxy.port, { user, password });
    const { rows } = await client.query('SELECT current_user AS me');
    await client.end();
    return rows[0].me;
  };
  t.equal(await logIn('passing', 'old'), 'passing');
  t.equal(await logIn('feminine', 'a'), 'feminine', 'SASLprep on both sides');
  // The same password anew has another salt: the keys that the proxy remembers are void.
  await admin.rows(`ALTER ROLE passing PASSWORD 'old'; SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
    WHERE usename = 'passing'`);
  const pool = proxy.app.snapshot().pools.find(({ user }) => user === 'passing')!;
  await until(() => pool.serverCount === 0, 'the proxy to notice');
  await t.rejects(logIn('passing', 'old'), /another SCRAM verifier/);
  writeFileSync(userlist.path, await lines());
  const console = await connect(proxy.port, { user: 'postgres', password: 'x', database: 'pgbouncer' });
  await console.query('RELOAD');
  await console.end();
  await until(() => logIn('passing', 'old').then(Boolean, () => false), 'the new verifier to be used');
  // Sixty wrong passwords at once, while another client works.
  const witness = await connect(proxy.port, { user: 'feminine', password: 'a' });
  let isOver = false;
  let longest = 0;
  const beating = (async () => {
    while (!isOver) {
      const from = performance.now();
      await witness.query('SELECT 1');
      longest = Math.max(longest, performance.now() - from);
    }
  })();
  const crowd = Array.from({ length: 60 }, (_, n) => logIn(n % 2 === 0 ? 'passing' : `nobody${n}`, 'wrong'));
  const outcomes = await Promise.allSettled(crowd);
  isOver = true;
  await beating;
  await witness.end();
  t.ok(outcomes.every((outcome) => outcome.status === 'rejected' && outcome.reason.code === '28P01'));
  t.ok(longest < 1_500, `the slowest answer took ${Math.round(longest)} ms`);
});

t.test('no bug was counted', async (t) => {
  t.equal(
    proxies.reduce((sum, proxy) => sum + proxy.bugs(), 0),
    0,
  );
});
