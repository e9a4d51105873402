/**
 * Scenarios of the wire protocol, message by message: each is run straight against Postgres and through the proxy
 * (transaction mode with one and two servers, some in session mode), and must give the same messages, byte for byte.
 *
 * What may differ, and is left out of the comparison: BackendKeyData; where in Postgres' source an error was raised
 * (fields F, L, R: the proxy may make another message raise it); the text of protocol violations (08P01).
 */
import net from 'node:net';
import t from 'tap';
import { int32, sslRequest, startup, Version } from '../../src/protocol/encode.ts';
import { readErrorFields } from '../../src/protocol/messages.ts';
import { type Message, open, RawClient, requestCancel, send, sqlstates, types } from '../fixtures/raw.ts';
import { scenarios } from '../fixtures/scenario.ts';
import { startProxy, until, withPostgres } from '../fixtures/stack.ts';

const { query: Q, parse: P, bind: B, describe: D, close: C, execute: E, copyData, copyDone, copyFail } = send;
const S = send.sync();
const H = send.flush();

const postgres = await withPostgres();
const admin = await RawClient.open(postgres.port);
admin.socket.unref(); // Otherwise the test would never be over.
t.after(() => {
  admin.end();
  return postgres.stop();
});
await admin.rows(`
  CREATE TABLE items (id int PRIMARY KEY, name text);
  CREATE TABLE sink (id int PRIMARY KEY, name text);
  CREATE TABLE late (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED);
  CREATE TABLE shape (id int, value int);
  CREATE SCHEMA other; CREATE TABLE other.shape (id int, value text);
  CREATE TABLE counters (n int)`);

async function reset(): Promise<void> {
  await admin.rows('SET lock_timeout = 5000');
  await admin.rows(`
    TRUNCATE items, sink, late, shape, other.shape;
    INSERT INTO items SELECT n, 'name ' || n FROM generate_series(1, 5) n;
    INSERT INTO shape VALUES (1, 10);
    INSERT INTO other.shape VALUES (1, 'other');
    DROP TABLE IF EXISTS made, counters;
    CREATE TABLE counters (n int);
    INSERT INTO counters VALUES (1)`);
  const [type] = await admin.rows(
    `SELECT format_type(atttypid, -1) FROM pg_attribute WHERE attrelid = 'public.shape'::regclass AND attname = 'value'`,
  );
  if (type![0] !== 'integer') await admin.rows('ALTER TABLE shape ALTER COLUMN value TYPE int USING value::int');
}

const { scenario, exchange, exchanges } = scenarios(postgres.port, reset);

const SELECT = 'SELECT id, name FROM items WHERE id = $1 ORDER BY id';
const ALL = 'SELECT id FROM items ORDER BY id';

// --- Pipelines --------------------------------------------------------------------------------------------------

exchange(
  'a pipeline of many statements is answered in order',
  '12DCZ'.repeat(30),
  Array.from({ length: 30 }, (_, n) => [P('', SELECT), B('', '', [`${1 + (n % 5)}`]), E(''), S]).flat(),
  {},
  true,
);

exchange('a pipeline of named statements is answered in order', '1tT2DCZ2DC3Z12DCZ', [
  ...[P('a', SELECT), D('S', 'a'), B('', 'a', ['1']), E(''), S],
  ...[B('', 'a', ['2']), E(''), C('S', 'a'), S],
  ...[P('a', ALL + ' LIMIT 1'), B('', 'a'), E(''), S],
]);

exchange('an error discards the rest up to Sync', '12DC1EZ12DCZ', [
  ...[P('', 'SELECT 1'), B('', ''), E(''), P('', 'SELECT 1/0 AS bad'), B('', ''), E('')],
  ...[P('x', 'SELECT 3'), B('', 'x'), D('P', ''), E(''), C('S', 'x'), H, S],
  ...[P('', 'SELECT 4'), B('', ''), E(''), S],
]);

exchange('what a discarded pipeline would have prepared does not exist', 'EZEZ1Z', [
  ...[B('', 'unknown'), P('x', 'SELECT 3'), S],
  ...[B('', 'x'), S],
  ...[P('x', 'SELECT 5'), S],
]);

exchange('what a discarded pipeline would have prepared does not exist in the middle of the next', 'EZ12DCEZ12DCEZ', [
  ...[B('', 'unknown'), P('x', 'SELECT 3'), S],
  ...[P('', 'SELECT 1'), B('', ''), E(''), B('', 'x'), S],
  ...[P('', 'SELECT 1'), B('', ''), E(''), D('S', 'x'), S],
]);

exchange('RESET and another Query that are both discarded hold nothing up', 'EZTDCZ', [
  ...[B('', 'unknown'), Q('RESET work_mem'), Q('SELECT 1'), S],
  Q('SELECT 2'),
]);

exchange('RESET behind another Query in a discarded batch holds nothing up', 'EZTDCZ', [
  ...[B('', 'unknown'), Q('SELECT 1'), Q('RESET work_mem'), S],
  Q('SELECT 2'),
]);

exchange('RESET that is discarded holds nothing up', 'EZ12CEZTDCZ', [
  ...[B('', 'unknown'), Q('RESET ALL'), S],
  ...[P('', 'RESET work_mem'), B('', ''), E(''), D('S', 'unknown'), Q('SELECT 1'), S],
  Q('SELECT 2'),
]);

exchange('a Close that is discarded leaves the statement', '1ZEZ2DCZ', [
  ...[P('x', 'SELECT 3'), S],
  ...[B('', 'unknown'), C('S', 'x'), S],
  ...[B('', 'x'), E(''), S],
]);

exchange('several Syncs in flight are answered each', 'ZZZ12DCZZEZZ', [
  ...[S, S, S],
  ...[P('', 'SELECT 1'), B('', ''), E(''), S, S],
  ...[B('', 'unknown'), S, S],
]);

exchange('replies that the proxy makes itself keep their place', '1Z2DC1332DC331Z', [
  ...[P('a', 'SELECT 1'), S],
  ...[B('', 'a'), E(''), P('b', 'SELECT 1'), C('S', 'nothing'), C('P', 'nothing'), B('', 'b'), E('')],
  ...[C('S', 'a'), C('S', 'b'), P('a', 'SELECT 1'), S],
]);

scenario('replies that the proxy makes itself come with Flush, too', '1312DC31', async (side) => {
  const client = await side.open();
  const messages = await client.ask([P('a', 'SELECT 1'), C('S', 'a'), S]);
  messages.pop();
  client.write(P('a', 'SELECT 1'), H);
  messages.push(...(await client.until('1')));
  client.write(B('', 'a'), E(''), H);
  messages.push(...(await client.until('C')));
  client.write(C('S', 'a'), P('b', 'SELECT 1'), H);
  messages.push(...(await client.until('1')));
  await client.ask(S);
  return messages;
});

scenario(
  'an error before Flush is told without Sync, and everything after it is discarded',
  'EZ12DCZ',
  async (side) => {
    const client = await side.open();
    client.write(B('', 'unknown'), H);
    const messages = await client.until('E');
    client.write(P('', 'SELECT 1'), H, Q('SELECT 2'), H);
    messages.push(...(await client.ask(S)));
    messages.push(...(await client.ask([P('', 'SELECT 3'), B('', ''), E(''), S])));
    return messages;
  },
);

scenario('what is only named before Flush is one batch with what comes behind it', '1tT2DCZ1nZ', async (side) => {
  const client = await side.open();
  client.write(P('a', 'SELECT 1'), D('S', 'a'), H);
  const messages = await client.until('T');
  messages.push(...(await client.ask([B('', 'a'), E(''), S])));
  client.write(P('', ''), D('S', ''), H);
  messages.push(...(await client.until('n')).filter(({ type }) => type !== 't'));
  messages.push(...(await client.ask(S)));
  return messages;
});

scenario('what fails before Flush is told, and what follows is skipped up to Sync', '1EZEZEZ', async (side) => {
  const client = await side.open();
  client.write(P('a', 'SELECT 1'), P('b', 'SELECT nothing'), H);
  const messages = await client.until('E');
  client.write(B('', 'a'), E(''), H, Q('INSERT INTO sink VALUES (9)'), P('c', 'SELECT 1'));
  messages.push(...(await client.ask(S)));
  messages.push(...(await client.ask([B('', 'c'), S])));
  client.write(D('S', 'nothing'), H);
  messages.push(...(await client.until('E')), ...(await client.ask(S)));
  t.same(await admin.rows('SELECT count(*) FROM sink'), [['0']]);
  return messages;
});

scenario('what fails before Flush in a transaction fails that', 'CZEZEZCZ', async (side) => {
  const client = await side.open();
  const messages = await client.ask(Q('BEGIN'));
  client.write(P('b', 'SELECT nothing'), H);
  messages.push(...(await client.until('E')), ...(await client.ask(S)));
  messages.push(...(await client.ask(Q('SELECT 1'))), ...(await client.ask(Q('ROLLBACK'))));
  return messages;
});

exchange('an unnamed DEALLOCATE that runs twice fails by the name that it has', '1Z12CZ2EZEZ', [
  ...[P('a', 'SELECT 1'), S],
  ...[P('', 'DEALLOCATE a'), B('', ''), E(''), S],
  ...[B('', ''), E(''), S],
  ...[B('', 'a'), S],
]);

exchange('a name whose DEALLOCATE fails is not free for what is sent right behind', '1ZEZEZ2DCZ', [
  ...[P('s', 'SELECT 1'), S],
  ...[Q('SELECT 1/0; DEALLOCATE s'), P('s', 'SELECT 2'), S],
  ...[B('', 's'), E(''), S],
]);

for (const [text, expected] of [
  ['ROLLBACK; EXECUTE s', 'CTDCZ'],
  ['COMMIT WORK; EXECUTE s', 'CTDCZ'],
  ['ABORT; DEALLOCATE s', 'CCZ'],
  ['ROLLBACK; EXECUTE s; EXECUTE t', 'CTDCTDCZ'],
] as const) {
  for (const begin of ['BEGIN; SELECT 1/0', 'BEGIN'] as const)
    scenario(
      `${text} in a transaction that has failed, in one packet with it or behind it (${begin})`,
      `1Z1Z${begin === 'BEGIN' ? 'CZEZ' : 'CEZ'}${expected}`.repeat(2),
      async (side) => {
        const messages: Message[] = [];
        for (const isAtOnce of [false, true]) {
          const client = await side.open();
          messages.push(...(await client.ask([P('s', 'SELECT 1'), S, P('t', 'SELECT 2'), S], 2)));
          const release = await side.elsewhere();
          const failing = begin === 'BEGIN' ? [Q('BEGIN'), Q('SELECT 1/0')] : [Q(begin)];
          if (isAtOnce) messages.push(...(await client.ask([...failing, Q(text)], failing.length + 1)));
          else for (const part of [...failing, Q(text)]) messages.push(...(await client.ask(part)));
          await release();
        }
        return messages;
      },
    );
}

t.test('a server is not kept by a batch that only names and describes', async (t) => {
  await reset();
  const proxy = await startProxy(postgres.port, { pool: { size: 1 } });
  t.after(() => proxy.stop());
  const [a, b] = [await RawClient.open(proxy.port), await RawClient.open(proxy.port)];
  for (const [name, sql] of [
    ['a', 'SELECT id FROM items WHERE id = $1'],
    ['', 'SELECT name FROM items WHERE id = $1'],
  ] as const) {
    a.write(P(name, sql), D('S', name), H);
    await a.until('T');
    t.same(await b.rows('SELECT 1'), [['1']]);
    t.equal((await a.ask([B('', name, ['2']), E(''), S])).map(({ type }) => type).join(''), '2DCZ', 'and goes on');
  }
  a.write(P('b', 'SELECT nothing'), H);
  await a.until('E');
  t.same(await b.rows('SELECT 1'), [['1']], 'nor by one that has failed');
  t.equal((await a.ask([B('', 'a', ['2']), E(''), S])).map(({ type }) => type).join(''), 'Z');
  a.end();
  b.end();
});

t.test('a server is kept from Flush until Sync', async (t) => {
  await reset();
  const proxy = await startProxy(postgres.port, { pool: { size: 1 } });
  t.after(() => proxy.stop());
  const [a, b] = [await RawClient.open(proxy.port), await RawClient.open(proxy.port)];
  a.write(P('', `INSERT INTO sink VALUES (1, 'x')`), B('', ''), E(''), H);
  t.equal(types(await a.until('C')), '12C');
  b.write(Q('SELECT count(*) FROM sink'));
  await until(() => proxy.app.snapshot().pools[0]!.waiters.size === 1, 'the other client to wait');
  t.equal(types(b.messages), '');
  t.equal(types(await a.ask(S)), 'Z');
  t.equal((await b.until('Z'))[1]!.body.toString('latin1').at(-1), '1');
  a.end();
  b.end();
});

for (const leave of ['end', 'terminate'] as const) {
  t.test(`a client that leaves an unfinished batch behind has committed nothing: ${leave}`, async (t) => {
    await reset();
    const proxy = await startProxy(postgres.port, { pool: { size: 1 } });
    t.after(() => proxy.stop());
    const client = await RawClient.open(proxy.port);
    client.write(P('', `INSERT INTO sink VALUES (1, 'x')`), B('', ''), E(''), H);
    t.equal(types(await client.until('C')), '12C');
    if (leave === 'end') client.end();
    else client.write(send.terminate());
    const other = await RawClient.open(proxy.port);
    t.same(await other.rows('SELECT count(*) FROM sink'), [['0']], leave);
    other.end();
  });
}

exchanges(
  'a portal whose Close is skipped still runs what it did',
  ['CZ12ZCZ', 'EZCZ', 'DCZCZ', 'TDCZ'],
  [
    [Q('BEGIN'), P('s', `SELECT set_config('work_mem', '1234kB', false)`), B('p', 's'), S, Q('SAVEPOINT a')],
    [P('', 'SELECT nothing'), C('P', 'p'), S, Q('ROLLBACK TO a')],
    [E('p'), S, Q('COMMIT')],
    [Q('SHOW work_mem')],
  ],
);

exchanges(
  'a portal whose name is given again runs what it stands for now',
  ['CZ12Z312ZDCZCZ', 'TDCZ'],
  [
    [
      ...[Q('BEGIN'), P('s', `SELECT set_config('work_mem', '1234kB', false)`), B('p', 's'), S],
      ...[C('P', 'p'), P('', `SELECT set_config('work_mem', '2345kB', false)`), B('p', ''), S, E('p'), S, Q('COMMIT')],
    ],
    [Q('SHOW work_mem')],
  ],
);

t.test('a server is not kept by what is left of a message of a COPY that has failed', async (t) => {
  const proxy = await startProxy(postgres.port, { pool: { size: 1 } });
  t.after(() => proxy.stop());
  const [a, b] = [await open(t, proxy.port), await open(t, proxy.port)];
  a.write(Q('COPY items FROM STDIN'));
  await a.until('G');
  const late = copyData('1\n'.repeat(100));
  a.write(copyData('x\n'), late.subarray(0, 20));
  t.same(types(await a.until('Z')), 'EZ');
  a.write(late.subarray(20), copyDone());
  t.same(await b.rows('SELECT 1'), [['1']]);
  t.same(await a.rows('SELECT 2'), [['2']]);
  t.equal(proxy.bugs(), 0);
});

t.test('what was sent before Terminate is run to its end', async (t) => {
  await reset();
  const proxy = await startProxy(postgres.port, { pool: { size: 1 } });
  t.after(() => proxy.stop());
  for (const [port, id] of [
    [postgres.port, 1],
    [proxy.port, 2],
  ] as const) {
    const client = await RawClient.open(port);
    client.write(Q(`INSERT INTO sink VALUES (${id}, 'x')`), send.terminate());
    t.equal(types(await client.closed()), 'CZ', port === proxy.port ? 'proxy' : 'direct');
  }
  t.same(await admin.rows('SELECT id FROM sink ORDER BY id'), [['1'], ['2']]);
});

exchange('a simple Query in a failed batch is discarded', 'EZTDCZ', [
  ...[B('', 'unknown'), Q('SELECT 1'), S],
  Q('SELECT 2'),
]);

exchange('a simple Query in a good batch is part of it', '12CTDCZTDCZZ', [
  ...[P('', `INSERT INTO sink VALUES (1, 'x')`), B('', ''), E(''), Q('SELECT 1')],
  ...[Q('SELECT id FROM sink'), S],
]);

exchange('a simple Query that fails in a good batch takes back what the batch did', '12CEZTCZ', [
  ...[P('', `INSERT INTO sink VALUES (1, 'x')`), B('', ''), E(''), Q('SELECT 1/0')],
  Q('SELECT * FROM sink'),
]);

exchange('an implicit transaction spans everything up to Sync', '12C12C1EZTDCZ', [
  ...[P('', `INSERT INTO sink VALUES (1, 'x')`), B('', ''), E('')],
  ...[P('', `INSERT INTO sink VALUES (2, 'x')`), B('', ''), E('')],
  ...[P('', 'SELECT 1/0 AS bad'), B('', ''), E(''), S],
  Q('SELECT count(*) FROM sink'),
]);

exchange('BEGIN and COMMIT in one pipeline', '12CZ12CZ12CZ12C12C12CZTDCZ', [
  ...[P('', 'BEGIN'), B('', ''), E(''), S],
  ...[P('', `INSERT INTO sink VALUES (1, 'x')`), B('', ''), E(''), S],
  ...[P('', 'COMMIT'), B('', ''), E(''), S],
  ...[P('', 'BEGIN'), B('', ''), E(''), P('', 'DELETE FROM sink'), B('', ''), E('')],
  ...[P('', 'ROLLBACK'), B('', ''), E(''), S],
  Q('SELECT count(*) FROM sink'),
]);

// --- Portals ----------------------------------------------------------------------------------------------------

exchange('portals are suspended after the rows asked for', '122DDsDDsTDsDCEZ', [
  ...[P('', ALL), B('p', ''), B('q', ''), E('p', 2), E('p', 2), D('P', 'q'), E('q', 1), E('p', 0), E('unknown'), S],
]);

exchanges(
  'named portals live as long as their transaction',
  ['CZ', '12DDsZ', 'DsTZ', '3EZ', 'CZ', 'EZ'],
  [
    [Q('BEGIN')],
    [P('a', ALL), B('p', 'a'), E('p', 2), S],
    [E('p', 1), D('P', 'p'), S],
    [C('P', 'p'), E('p'), S],
    [Q('ROLLBACK')],
    [E('p'), S],
  ],
);

exchange('the unnamed portal survives Sync in a transaction, and a simple Query drops it', 'CZ12DsZDsZTDCZEZCZ', [
  Q('BEGIN'),
  ...[P('', ALL), B('', ''), E('', 1), S],
  ...[E('', 1), S],
  Q('SELECT 1'),
  ...[E('', 1), S],
  Q('ROLLBACK'),
]);

exchange('a portal name that is in use is refused', 'CZ12EZCZ', [
  Q('BEGIN'),
  ...[P('', ALL), B('p', ''), B('p', ''), S],
  Q('ROLLBACK'),
]);

exchanges(
  'an unknown portal is an error, outside and inside a transaction',
  ['EZ', 'EZ', '3Z', 'CZ', 'EZ', 'EZ', 'CZ'],
  [[E('x'), S], [D('P', 'x'), S], [C('P', 'x'), S], [Q('BEGIN')], [E('x'), S], [Q('SELECT 1')], [Q('ROLLBACK')]],
);

scenario(
  'closing a statement leaves its portal, closing a portal leaves its statement',
  '123DC12DC32DCZ',
  async (side) =>
    (await side.open()).ask([
      ...[P('x', 'SELECT 1'), B('x', 'x'), C('S', 'x'), E('x')],
      ...[P('y', 'SELECT 2'), B('y', 'y'), E('y'), C('P', 'y'), B('y', 'y'), E('y'), S],
    ]),
);

// --- Describe, Close, names -------------------------------------------------------------------------------------

exchanges(
  'Describe of statements and portals, with rows and without',
  ['11Z', 'tTZ', 'tnZ', '2T2nZ', 'EZ'],
  [
    [P('rows', SELECT), P('none', 'DELETE FROM sink WHERE id = $1'), S],
    [D('S', 'rows'), S],
    [D('S', 'none'), S],
    [B('p', 'rows', ['1']), D('P', 'p'), B('q', 'none', ['1']), D('P', 'q'), S],
    [D('S', 'unknown'), D('S', 'rows'), S],
  ],
  {},
  true,
);

exchanges(
  'Close of what does not exist succeeds',
  ['33Z', 'CZ', '33Z', 'EZ', '33Z', 'CZ'],
  [
    [C('S', 'x'), C('P', 'x'), S],
    [Q('BEGIN')],
    [C('S', 'x'), C('P', 'x'), S],
    [Q('SELECT 1/0')],
    [C('S', 'x'), C('P', 'x'), S],
    [Q('COMMIT')],
  ],
);

exchanges(
  'a statement name that is in use is refused, and fails its transaction',
  ['1Z', 'EZ', '2DCZ', 'CZ', 'EZ', 'EZ', 'CZ', '2DCZ', '31Z', '2DCZ'],
  [
    [P('x', 'SELECT 1'), S],
    [P('x', 'SELECT 2'), S],
    [B('', 'x'), E(''), S],
    [Q('BEGIN')],
    [P('x', 'SELECT 1'), S],
    [B('', 'x'), E(''), S],
    [Q('ROLLBACK')],
    [B('', 'x'), E(''), S],
    [C('S', 'x'), P('x', 'SELECT 2'), S],
    [B('', 'x'), E(''), S],
  ],
  {},
  true,
);

exchanges(
  'an unknown statement is refused, and fails its transaction',
  ['EZ', 'EZ', 'CZ', 'EZ', 'EZ', 'CZ', 'EZ'],
  [
    [B('', 'x'), E(''), S],
    [D('S', 'x'), S],
    [Q('BEGIN')],
    [B('', 'x'), S],
    [Q('SELECT 1')],
    [Q('COMMIT')],
    [B('', ''), S],
  ],
  {},
  true,
);

exchanges(
  'a Parse that failed leaves no statement',
  ['EZ', 'EZ', '3Z', '1Z', '2DCZ', 'EZ', '3Z', 'EZ'],
  [
    [P('x', 'SELEKT 1'), S],
    [B('', 'x'), S],
    [C('S', 'x'), S],
    [P('x', 'SELECT 1'), S],
    [B('', 'x'), E(''), S],
    [P('y', 'SELECT * FROM nowhere'), S],
    [C('S', 'y'), S],
    [P('y', 'SELECT * FROM nowhere'), S],
  ],
);

exchanges(
  'a Parse that failed once succeeds when its table exists',
  ['EZ', 'CZ', '1Z', '2CZ'],
  [
    [P('x', 'SELECT * FROM made'), S],
    [Q('CREATE TABLE made (id int)')],
    [P('x', 'SELECT * FROM made'), S],
    [B('', 'x'), E(''), S],
  ],
);

exchanges(
  'statements that differ only in their parameter types are two',
  ['1tTZ', '1tTZ', '2DCZ', '2DCZ', '1tTZ'],
  [
    [P('number', 'SELECT $1 AS v', [23]), D('S', 'number'), S],
    [P('text', 'SELECT $1 AS v', [25]), D('S', 'text'), S],
    [B('', 'number', ['7']), E(''), S],
    [B('', 'text', ['7']), E(''), S],
    [P('none', 'SELECT $1 AS v'), D('S', 'none'), S],
  ],
);

scenario(
  'a statement of the same text in another search_path is another statement',
  '1Z1ZtTZ2DCZtTZ2DCZ',
  async (side) => {
    const one = await side.open();
    const two = await side.open({ options: '-c search_path=other' });
    const messages: Message[] = [];
    for (const client of [one, two]) messages.push(...(await client.ask([P('s', 'SELECT value FROM shape'), S])));
    for (const client of [one, two]) {
      messages.push(...(await client.ask([D('S', 's'), S])));
      messages.push(...(await client.ask([B('', 's'), E(''), S])));
    }
    return messages;
  },
);

// --- The unnamed statement --------------------------------------------------------------------------------------

exchanges(
  'the unnamed statement is there in later Sync groups',
  ['1tTZ', '2DCZ', 'tTZ', '2DCZ', '3Z', 'EZ'],
  [
    [P('', SELECT), D('S', ''), S],
    [B('', '', ['1']), E(''), S],
    [D('S', ''), S],
    [B('', '', ['2']), E(''), S],
    [C('S', ''), S],
    [B('', '', ['3']), E(''), S],
  ],
  {},
  true,
);

exchanges(
  'a simple Query drops the unnamed statement',
  ['1Z', 'TDCZ', 'EZ'],
  [[P('', 'SELECT 1'), S], [Q('SELECT 2')], [B('', ''), E(''), S]],
);

exchanges(
  'an empty simple Query drops the unnamed statement',
  ['1Z', 'IZ', 'EZ'],
  [[P('', 'SELECT 1'), S], [Q('')], [B('', ''), E(''), S]],
);

exchanges(
  'what is discarded does not touch the unnamed statement',
  ['1Z', 'EZ', '2DCZ', 'EZ', '2DCZ', 'EZ', '2DCZ'],
  [
    [P('', 'SELECT 1'), S],
    [B('', 'unknown'), P('', 'SELECT 2'), S],
    [B('', ''), E(''), S],
    [B('', 'unknown'), C('S', ''), S],
    [B('', ''), E(''), S],
    [B('', 'unknown'), Q('SELECT 3'), S],
    [B('', ''), E(''), S],
  ],
);

exchange('a discarded Parse of the unnamed statement does not undo a later one', '1ZEZ1Z2DCZ', [
  ...[P('', 'SELECT 1'), S],
  ...[B('', 'unknown'), P('', 'SELECT 2'), S],
  ...[P('', 'SELECT 3'), S],
  ...[B('', ''), E(''), S],
]);

exchanges(
  'a discarded Parse of the unnamed statement does not undo a later one, seen later',
  ['1Z', 'EZ1Z', '2DCZ'],
  [
    [P('', 'SELECT 1'), S],
    [B('', 'unknown'), P('', 'SELECT 2'), S, P('', 'SELECT 3'), S],
    [B('', ''), E(''), S],
  ],
);

exchanges(
  'two discarded Parses of the unnamed statement in one pipeline leave the one before them',
  ['1Z', 'EZEZ', '2DCZ'],
  [
    [P('', 'SELECT 1'), S],
    [B('', 'unknown'), P('', 'SELECT 2'), S, B('', 'unknown'), P('', 'SELECT 3'), S],
    [B('', ''), E(''), S],
  ],
);

exchanges(
  'a failed Parse of the unnamed statement drops the old one',
  ['1Z', 'EZ', 'EZ'],
  [
    [P('', 'SELECT 1'), S],
    [P('', 'SELEKT 1'), S],
    [B('', ''), E(''), S],
  ],
);

exchanges(
  'an unnamed SET can be run again',
  ['1Z', '2CZ', '2CZ', 'TDCZ'],
  [[P('', `SET work_mem = '5MB'`), S], [B('', ''), E(''), S], [B('', ''), E(''), S], [Q('SHOW work_mem')]],
);

scenario('the unnamed statement outlives the settings of another client', '1Z2DCZ2DCZ', async (side) => {
  const client = await side.open();
  const other = await side.open({ options: '-c work_mem=9MB' });
  await other.ask([P('named', 'SELECT 9'), S]);
  const messages = await client.ask([P('', 'SELECT 1'), S]);
  for (let turn = 0; turn < 2; turn++) {
    await other.ask([B('', 'named'), E(''), S]);
    messages.push(...(await client.ask([B('', ''), E(''), S])));
  }
  return messages;
});

scenario(
  'the unnamed statement follows its client into a transaction on another server',
  '11Z2C2DCZtTZCZ',
  async (side) => {
    const client = await side.open();
    const messages = await client.ask([P('begin', 'BEGIN'), P('', SELECT), S]);
    const release = await side.elsewhere();
    messages.push(...(await client.ask([B('', 'begin'), E(''), B('', '', ['1']), E(''), S])));
    messages.push(...(await client.ask([D('S', ''), S])));
    messages.push(...(await client.ask(Q('ROLLBACK'))));
    await release();
    return messages;
  },
);

// --- DEALLOCATE, DISCARD, EXECUTE -------------------------------------------------------------------------------

for (const [how, all] of [
  ['by a simple Query', [Q('DEALLOCATE ALL')]],
  ['by an extended query', [P('', 'DEALLOCATE ALL'), B('', ''), E(''), S]],
  ['between other statements', [Q('SELECT 1; DEALLOCATE ALL; SELECT 2')]],
  ['by DISCARD ALL', [Q('DISCARD ALL')]],
] as const) {
  const expected = { 'by an extended query': '12CZ', 'between other statements': 'TDCCTDCZ' }[how as string] ?? 'CZ';
  exchanges(
    `DEALLOCATE ALL ${how} leaves no statement, and names can be used again`,
    ['1Z1Z', expected, 'EZ', '1Z', '2DCZ', 'EZ'],
    [
      [P('x', 'SELECT 1'), S, P('y', 'SELECT 2'), S],
      [...all],
      [B('', 'x'), E(''), S],
      [P('x', 'SELECT 1'), S],
      [B('', 'x'), E(''), S],
      [B('', 'y'), E(''), S],
    ],
    {},
    true,
  );
}

exchanges(
  'statements prepared right behind DEALLOCATE ALL in a pipeline stay',
  ['1Z', 'CZ12DC1Z', '2DC2DCEZ', '33Z'],
  [
    [P('x', 'SELECT 1'), S],
    [Q('DEALLOCATE ALL'), P('x', 'SELECT 1'), B('', 'x'), E(''), P('y', 'SELECT 2'), S],
    [B('', 'x'), E(''), B('', 'y'), E(''), P('y', 'SELECT 3'), S],
    [C('S', 'x'), C('S', 'y'), S],
  ],
);

exchanges(
  'statements prepared behind DEALLOCATE ALL in the same batch stay',
  ['1Z', '12C12DC1Z', '2DC2DCEZ', '33Z'],
  [
    [P('x', 'SELECT 1'), S],
    [P('', 'DEALLOCATE ALL'), B('', ''), E(''), P('x', 'SELECT 1'), B('', 'x'), E(''), P('y', 'SELECT 2'), S],
    [B('', 'x'), E(''), B('', 'y'), E(''), P('y', 'SELECT 3'), S],
    [C('S', 'x'), C('S', 'y'), S],
  ],
);

exchanges(
  'a name of the pipeline that DEALLOCATE ALL has freed can be used again',
  ['11Z', 'CZ12DCEZ', '1Z', '2DCZ'],
  [
    [P('x', 'SELECT 1'), P('y', 'SELECT 2'), S],
    [Q('DEALLOCATE ALL'), P('z', 'SELECT 1'), B('', 'z'), E(''), B('', 'y'), S],
    [P('x', 'SELECT 1'), S],
    [B('', 'x'), E(''), S],
  ],
);

exchanges(
  'DEALLOCATE of one statement by SQL',
  ['11Z', 'CZ', 'EZ', '2DCZ', '12CZ', 'EZ', 'EZ', '1Z', '2DCZ'],
  [
    [P('x', 'SELECT 1'), P('y', 'SELECT 2'), S],
    [Q('DEALLOCATE x')],
    [B('', 'x'), E(''), S],
    [B('', 'y'), E(''), S],
    [P('', 'DEALLOCATE PREPARE y'), B('', ''), E(''), S],
    [B('', 'y'), E(''), S],
    [Q('DEALLOCATE y')],
    [P('y', 'SELECT 2'), S],
    [B('', 'y'), E(''), S],
  ],
  {},
  true,
);

scenario(
  'EXECUTE by SQL in a failed transaction is an error that ends with ReadyForQuery',
  '1ZCZEZEZEZCZ',
  async (side) => {
    const client = await side.open();
    const messages = await client.ask([P('x', 'SELECT 1'), S]);
    const release = await side.elsewhere();
    messages.push(...(await client.ask(Q('BEGIN'))));
    messages.push(...(await client.ask(Q('SELECT 1/0'))));
    messages.push(...(await client.ask(Q('EXECUTE x'))));
    messages.push(...(await client.ask([B('', 'x'), E(''), S])));
    messages.push(...(await client.ask(Q('ROLLBACK'))));
    await release();
    return messages;
  },
);

// --- Changed plans ----------------------------------------------------------------------------------------------

for (const place of ['on the same server', 'on another server'] as const) {
  scenario(
    `a plan whose result has changed is 0A000 ${place}, and the statement can be made anew`,
    '1Z2DCZCZEZEZ31Z2DCZ',
    async (side) => {
      const client = await side.open();
      const messages = await client.ask([P('x', 'SELECT value FROM shape'), S]);
      messages.push(...(await client.ask([B('', 'x'), E(''), S])));
      messages.push(...(await client.ask(Q('ALTER TABLE shape ALTER COLUMN value TYPE text'))));
      const release = place === 'on another server' ? await side.elsewhere() : async () => {};
      for (let turn = 0; turn < 2; turn++) messages.push(...(await client.ask([B('', 'x'), E(''), S])));
      messages.push(...(await client.ask([C('S', 'x'), P('x', 'SELECT value FROM shape'), S])));
      messages.push(...(await client.ask([B('', 'x'), E(''), S])));
      await release();
      return messages;
    },
  );
}

scenario('who prepares after the change never sees 0A000', '1Z2DCZCZ1Z2DCZ31Z2DCZ', async (side) => {
  const [one, two] = [await side.open(), await side.open()];
  const messages = await one.ask([P('x', 'SELECT value FROM shape'), S]);
  messages.push(...(await one.ask([B('', 'x'), E(''), S])));
  messages.push(...(await one.ask(Q('ALTER TABLE shape ALTER COLUMN value TYPE text'))));
  messages.push(...(await two.ask([P('x', 'SELECT value FROM shape'), S])));
  messages.push(...(await two.ask([B('', 'x'), E(''), S])));
  messages.push(...(await one.ask([C('S', 'x'), P('x', 'SELECT value FROM shape'), S])));
  messages.push(...(await one.ask([B('', 'x'), E(''), S])));
  return messages;
});

scenario('a table made anew with the same columns changes no plan', '1Z2DCZCCCZ2DCZ2DCZ', async (side) => {
  const client = await side.open();
  const messages = await client.ask([P('x', 'SELECT n FROM counters'), S]);
  await client.ask([D('S', 'x'), S]); // The oid of the table differs from run to run.
  messages.push(...(await client.ask([B('', 'x'), E(''), S])));
  messages.push(
    ...(await client.ask(Q('DROP TABLE counters; CREATE TABLE counters (n int); INSERT INTO counters VALUES (2)'))),
  );
  const release = await side.elsewhere();
  messages.push(...(await client.ask([B('', 'x'), E(''), S])));
  await release();
  messages.push(...(await client.ask([B('', 'x'), E(''), S])));
  return messages;
});

scenario(
  'temporary tables of one name serve a statement of one text',
  'CZ1Z2CZCZ1Z2CZ',
  async (side) => {
    const messages: Message[] = [];
    for (const client of [await side.open(), await side.open()]) {
      messages.push(...(await client.ask(Q('CREATE TEMP TABLE mine (id int)'))));
      messages.push(...(await client.ask([P('x', 'SELECT id FROM mine'), S])));
      await client.ask([D('S', 'x'), S]); // The oid of the table differs from run to run.
      messages.push(...(await client.ask([B('', 'x'), E(''), S])));
    }
    return messages;
  },
  { size: 2 },
);

// --- Eviction ---------------------------------------------------------------------------------------------------

for (const preparedMax of [1, 2, 3]) {
  const names = ['a', 'b', 'c', 'd', 'e'];
  exchange(
    `five statements in a pipeline, with room for ${preparedMax} on a server`,
    '1'.repeat(5) + 'Z' + '2DC'.repeat(10) + 'Z' + '2DC2DCE' + 'Z' + '2DC2DC2DCZ' + '3'.repeat(5) + 'EZ',
    [
      ...[...names.map((name) => P(name, `SELECT '${name}'`)), S],
      ...[...names, ...names].flatMap((name) => [B('', name), E('')]),
      S,
      ...[B('', 'a'), E(''), B('', 'b'), E(''), B('', 'unknown'), ...names.flatMap((name) => [B('', name), E('')]), S],
      ...[B('', 'c'), E(''), B('', 'd'), E(''), B('', 'a'), E(''), S],
      ...[...names.map((name) => C('S', name)), B('', 'a'), S],
    ],
    { preparedMax },
  );

  exchanges(
    `statements made in a pipeline that fails, with room for ${preparedMax} on a server`,
    ['111Z', '11EZ', '2DC2DC2DC2DC2DCEZ', '1EZ', '2DCZ', 'EZ', '1Z', '2DCZ2DCZ2DCZ'],
    [
      [P('a', `SELECT 'a'`), P('b', `SELECT 'b'`), P('c', `SELECT 'c'`), S],
      [P('d', `SELECT 'd'`), P('e', `SELECT 'e'`), P('f', 'SELEKT'), P('g', `SELECT 'g'`), C('S', 'a'), S],
      [...['a', 'b', 'c', 'd', 'e'].flatMap((name) => [B('', name), E('')]), B('', 'f'), S],
      [P('f', `SELECT 'f'`), P('a', `SELECT 'again'`), P('h', 'SELECT 8'), S],
      [B('', 'f'), E(''), S],
      [B('', 'h'), E(''), S],
      [P('h', 'SELECT 8'), S],
      ['h', 'a', 'f'].flatMap((name) => [B('', name), E(''), S]),
    ],
    { preparedMax },
  );

  exchange(
    `a portal outlives the eviction of its statement, with room for ${preparedMax} on a server`,
    '1112222DCDCDCZ',
    [
      ...[P('a', `SELECT 'a'`), P('b', `SELECT 'b'`), P('c', `SELECT 'c'`)],
      ...[B('p', 'a'), B('q', 'b'), B('r', 'c'), B('s', 'a'), E('q'), E('p'), E('s'), S],
    ],
    { preparedMax },
  );

  exchanges(
    `a text that names five statements, with room for ${preparedMax} on a server`,
    ['11111Z', 'TDCTDCTDCTDCTDCZ', '2DCZ', 'TDCTDCTDCTDCTDCZ'],
    [
      [...names.map((name) => P(name, `SELECT '${name}'`)), S],
      [Q(names.map((name) => `EXECUTE ${name}`).join(';'))],
      [B('', 'b'), E(''), S],
      [Q(names.map((name) => `EXECUTE ${name}`).join(';'))],
    ],
    { preparedMax },
  );
}

// --- COPY -------------------------------------------------------------------------------------------------------

const COPY_IN = 'COPY sink FROM STDIN';
const COPY_OUT = 'COPY (SELECT id, name FROM items ORDER BY id) TO STDOUT';
const COUNT = Q('SELECT count(*) FROM sink');

exchange('COPY out, simple and extended', 'HdddddcCZ12HdddddcCZ12HdddddcC12DCZ', [
  Q(COPY_OUT),
  ...[P('', COPY_OUT), B('', ''), E(''), S],
  ...[P('', COPY_OUT), B('', ''), E(''), P('', 'SELECT 1'), B('', ''), E(''), S],
]);

exchange('COPY out that fails midway', 'HddEZTDCZ12HddEZTDCZ', [
  Q('COPY (SELECT 6 / (3 - n) FROM generate_series(1, 5) n) TO STDOUT'),
  Q('SELECT 1'),
  ...[P('', 'COPY (SELECT 6 / (3 - n) FROM generate_series(1, 5) n) TO STDOUT'), B('', ''), E('')],
  ...[P('', 'SELECT 1'), S],
  Q('SELECT 1'),
]);

exchange(
  'COPY in by a simple Query, followed by others in the same pipeline',
  'GCZTDCZ1Z2DCZ',
  [
    ...[Q(COPY_IN), copyData('1\ta\n2\t'), copyData('b\n'), copyDone()],
    COUNT,
    ...[P('x', 'SELECT 1'), S, B('', 'x'), E(''), S],
  ],
  {},
  true,
);

exchange(
  'COPY in by an extended query, followed by others in the same pipeline',
  '12GCZTDCZ',
  [...[P('', COPY_IN), B('', ''), E(''), copyData('1\ta\n'), copyDone(), S], COUNT],
  {},
  true,
);

exchange('Sync and Flush during COPY in are ignored', '12GCZTDCZGCZTDCZ', [
  ...[P('', COPY_IN), B('', ''), E(''), S, copyData('1\ta\n'), H, copyData('2\tb\n'), S, copyDone(), S],
  COUNT,
  ...[Q(COPY_IN), S, H, copyData('3\tc\n'), S, copyDone()],
  COUNT,
]);

scenario('Sync and Flush during COPY in are ignored, one by one', '12GCZTDCZ', async (side) => {
  const client = await side.open();
  client.write(P('', COPY_IN), B('', ''), E(''), S);
  const messages = await client.until('G');
  for (const part of [S, copyData('1\ta\n'), H, copyData('2\tb\n'), S, copyDone(), S]) client.write(part);
  messages.push(...(await client.until('Z')));
  messages.push(...(await client.ask(COUNT)));
  return messages;
});

exchange('COPY in by a simple Query that fails midway: late data are ignored', 'GEZTDCZGEZTDCZ', [
  ...[Q(COPY_IN), copyData('1\ta\n'), copyData('bad\n'), copyData('2\tb\n'), copyData('3\tc\n'), copyDone()],
  COUNT,
  ...[Q(COPY_IN), copyData('bad\n'), copyData('2\tb\n'), copyFail('enough')],
  COUNT,
]);

exchange('COPY in by an extended query that fails midway: all is discarded up to Sync', '12GEZTDCZ12GEZTDCZ', [
  ...[P('', COPY_IN), B('', ''), E(''), copyData('1\ta\n'), copyData('bad\n'), copyData('2\tb\n'), copyDone()],
  ...[P('', 'SELECT 1'), B('', ''), E(''), S],
  COUNT,
  ...[P('', COPY_IN), B('', ''), E(''), copyData('bad\n'), copyData('2\tb\n'), copyFail('enough'), S],
  COUNT,
]);

exchange('CopyFail ends COPY in with an error', 'GEZTDCZ12GEZTDCZ', [
  ...[Q(COPY_IN), copyData('1\ta\n'), copyFail('enough')],
  COUNT,
  ...[P('', COPY_IN), B('', ''), E(''), copyData('1\ta\n'), copyFail('enough'), P('', 'SELECT 1'), S],
  COUNT,
]);

exchange('COPY messages outside of COPY are ignored', 'ZTDCZ12DCZ', [
  ...[copyData('1\ta\n'), copyDone(), copyFail('no'), S],
  Q('SELECT 1'),
  ...[P('', 'SELECT 1'), copyData('x'), B('', ''), copyDone(), E(''), copyFail('no'), S],
]);

exchange('COPY in within a transaction, then an error', 'CZGCZGEZEZCZTDCZ', [
  Q('BEGIN'),
  ...[Q(COPY_IN), copyData('1\ta\n'), copyDone()],
  ...[Q(COPY_IN), copyData('bad\n'), copyDone()],
  Q('SELECT 1'),
  Q('ROLLBACK'),
  COUNT,
]);

exchange('COPY in between other statements of one Query', 'TDCGCTDCZ', [
  ...[Q(`SELECT 1; ${COPY_IN}; SELECT count(*) FROM sink`), copyData('1\ta\n'), copyDone()],
]);

exchange('two COPY in of one Query, of which the second fails', 'GCGEZTDCZ', [
  ...[Q(`${COPY_IN}; ${COPY_IN}; SELECT 1`), copyData('1\ta\n'), copyDone(), copyData('bad\n'), copyDone()],
  COUNT,
]);

exchange('a Sync in the middle of data, then an error: the session lives on', '12GEZTDCZ1Z2DC3Z1Z', [
  ...[P('', COPY_IN), B('', ''), E(''), copyData('1\ta\n'), S, copyData('bad\n'), copyDone(), S],
  COUNT,
  ...[P('x', 'SELECT 1'), S],
  ...[B('', 'x'), E(''), C('S', 'x'), S],
  ...[P('x', 'SELECT 1'), S],
]);

/** What comes until the connection is closed. */
function ending(name: string, expected: string, parts: Buffer[]): void {
  scenario(name, expected, async (side) => {
    const client = await side.open();
    client.write(...parts);
    return client.closed();
  });
}

for (const [what, violation] of [
  ['a Query', Q('SELECT 1')],
  ['a Bind', B('', 'x')],
] as const) {
  ending(`${what} in the middle of COPY in is a violation that ends the connection`, '11Z12GEE', [
    ...[P('x', 'SELECT 1'), P('x1', 'SELECT 1'), S],
    ...[P('', COPY_IN), B('', ''), E(''), copyData('1\ta\n'), violation, S],
  ]);
}

exchange('COPY in that fails before its data: they are ignored', 'EZTDCZ12EZTDCZ', [
  ...[Q('COPY nowhere FROM STDIN'), copyData('1\n'), copyDone()],
  COUNT,
  ...[P('', 'COPY nowhere FROM STDIN'), B('', ''), E(''), copyData('1\n'), copyDone(), S],
  COUNT,
]);

// --- Other messages ---------------------------------------------------------------------------------------------

const INT4PL = 177;

exchange(
  'Function Call, its error, and its place in a pipeline',
  'VZEZVZ12DCVZEZTDCZ',
  [
    ...[send.functionCall(INT4PL, ['1', '2'])],
    ...[send.functionCall(INT4PL, ['2147483647', '2'])],
    ...[send.functionCall(INT4PL, ['3', '4'])],
    ...[P('', 'SELECT 1'), B('', ''), E(''), send.functionCall(INT4PL, ['5', '6'])],
    ...[B('', 'unknown'), send.functionCall(INT4PL, ['7', '8']), S],
    Q('SELECT 1'),
  ],
  {},
  true,
);

exchange('Function Call in a failed transaction', 'CZEZEZCZVZ', [
  ...[Q('BEGIN'), Q('SELECT 1/0'), send.functionCall(INT4PL, ['1', '2']), Q('ROLLBACK')],
  send.functionCall(INT4PL, ['1', '2']),
]);

exchange('empty queries, simple and extended', 'IZIZIZ12nIZ1Z2IZ', [
  ...[Q(''), Q(' '), Q(' ; -- nothing')],
  ...[P('', ''), B('', ''), D('P', ''), E(''), S],
  ...[P('empty', ';'), S, B('', 'empty'), E(''), S],
]);

exchange('several statements in one Query, with an error in the middle', 'CTDCEZTDCZCCEZEZCTDCCZTDCZ', [
  Q(`INSERT INTO sink VALUES (1, 'x'); SELECT 1; SELECT 1/0; SELECT 2`),
  COUNT,
  Q(`BEGIN; INSERT INTO sink VALUES (1, 'x'); SELECT 1/0; SELECT 2`),
  Q('SELECT 3'),
  Q(`ROLLBACK; SELECT 4; INSERT INTO sink VALUES (2, 'y')`),
  COUNT,
]);

exchange('notices reach the client in their place', 'NCZ12NCZNCZCZCZ12CZ', [
  Q(`DO $$ BEGIN RAISE NOTICE 'hello'; END $$`),
  ...[P('', `DO $$ BEGIN RAISE WARNING 'extended'; END $$`), B('', ''), E(''), S],
  Q('COMMIT'),
  Q('SET client_min_messages = error'),
  Q('COMMIT'),
  ...[P('', `DO $$ BEGIN RAISE WARNING 'unheard'; END $$`), B('', ''), E(''), S],
]);

exchanges(
  'changed parameters are reported in their place, and taken back by ROLLBACK',
  ['CSZ', 'CZ', 'CSZ', 'CSZ', '12CSZ', 'CSZ', 'TDCZ'],
  [
    [Q(`SET application_name = 'one'`)],
    [Q('BEGIN')],
    [Q(`SET application_name = 'two'`)],
    [Q('ROLLBACK')],
    [P('', `SET DateStyle = 'German'`), B('', ''), E(''), S],
    [Q('RESET DateStyle')],
    [Q('SHOW application_name')],
  ],
);

exchanges(
  'in a failed transaction everything but its end is refused',
  ['11Z', 'CZ', 'EZ', 'EZ', 'EZ', 'EZ', 'EZ', 'EZ', '2CZ', '2DCZ', 'EZ'],
  [
    [P('x', 'SELECT 1'), P('rollback', 'ROLLBACK'), S],
    [Q('BEGIN')],
    [Q('SELECT 1/0')],
    [Q('SELECT 1')],
    [B('', 'x'), E(''), S],
    [P('y', 'SELECT 1'), S],
    [D('S', 'x'), S],
    [P('x', 'SELECT 1'), S],
    [B('', 'rollback'), E(''), S],
    [B('', 'x'), E(''), S],
    [B('', 'y'), E(''), S],
  ],
  {},
  true,
);

scenario(
  'a known statement on a server that lacks it, in a failed transaction',
  '11ZCZEZEZEZ12CZ2DCZ',
  async (side) => {
    const client = await side.open();
    const messages = await client.ask([P('x', 'SELECT 1'), P('unused', 'SELECT 2'), S]);
    const release = await side.elsewhere();
    messages.push(...(await client.ask(Q('BEGIN'))));
    messages.push(...(await client.ask(Q('SELECT 1/0'))));
    messages.push(...(await client.ask([B('', 'x'), E(''), S])));
    messages.push(...(await client.ask([D('S', 'unused'), E(''), S])));
    messages.push(...(await client.ask([P('', 'ROLLBACK'), B('', ''), E(''), S])));
    messages.push(...(await client.ask([B('', 'x'), E(''), S])));
    await release();
    return messages;
  },
);

scenario('a prepared ROLLBACK ends a failed transaction on a server that lacks it', '1ZCZEZ2CZ', async (side) => {
  const client = await side.open();
  const messages = await client.ask([P('rollback', 'ROLLBACK'), S]);
  const release = await side.elsewhere();
  messages.push(...(await client.ask(Q('BEGIN'))));
  messages.push(...(await client.ask(Q('SELECT 1/0'))));
  messages.push(...(await client.ask([B('', 'rollback'), E(''), S])));
  await release();
  return messages;
});

exchange('a deferred constraint fails at COMMIT, or at Sync', 'CZCZCZEZ12C12CEZTDCZCEZ', [
  ...[Q('BEGIN'), Q('INSERT INTO late VALUES (1)'), Q('INSERT INTO late VALUES (1)'), Q('COMMIT')],
  ...[
    P('', 'INSERT INTO late VALUES (1)'),
    B('', ''),
    E(''),
    P('', 'INSERT INTO late VALUES (1)'),
    B('', ''),
    E(''),
    S,
  ],
  Q('SELECT count(*) FROM late'),
  Q('INSERT INTO late VALUES (1); INSERT INTO late VALUES (1)'),
]);

exchange('a savepoint brings a failed transaction back', 'CZCZEZCZTDCZCZ', [
  ...[Q('BEGIN'), Q('SAVEPOINT s'), Q('SELECT 1/0'), Q('ROLLBACK TO s'), Q('SELECT 1'), Q('COMMIT')],
]);

exchange('commands that cannot run in a transaction, in a pipeline and in a Query of several', 'EZ12DC1Z12DC12EZ', [
  Q('VACUUM sink; SELECT 1'),
  ...[P('', 'SELECT 1'), B('', ''), E(''), P('x', 'SELECT 1'), S],
  ...[P('', 'SELECT 1'), B('', ''), E(''), P('', 'VACUUM sink'), B('', ''), E(''), S],
]);

// --- Large messages ---------------------------------------------------------------------------------------------

const HUGE = 'x'.repeat(1_100_000);

exchange('texts too large to keep: Query, Parse, Close and Parse again', 'TDCZ12DCZ3Z12DCZ', [
  Q(`SELECT length('${HUGE}')`),
  ...[P('huge', `SELECT length('${HUGE}')`), B('', 'huge'), E(''), S],
  ...[C('S', 'huge'), S],
  ...[P('huge', `SELECT length('${HUGE}') + 1`), B('', 'huge'), E(''), S],
]);

exchange('large parameters and rows', '12DCZ', [...[P('', 'SELECT $1::text'), B('', '', [HUGE]), E(''), S]]);

// --- Protocol violations ----------------------------------------------------------------------------------------

exchange('malformed extended messages are errors that Sync ends', '1ZEZEZEZ2DCZ', [
  ...[P('x', 'SELECT 1'), S],
  ...[Buffer.from([0x44, 0, 0, 0, 6, 0x58, 0]), S],
  ...[Buffer.from([0x43, 0, 0, 0, 6, 0x58, 0]), S],
  ...[Buffer.from([0x42, 0, 0, 0, 8, 0, 0x78, 0, 0]), S],
  ...[B('', 'x'), E(''), S],
]);

ending('an unknown message type ends the connection, behind what was sent before it', 'TDCZE', [
  Q('SELECT 1'),
  Buffer.from([0x79, 0, 0, 0, 4]),
]);

// --- Names in SQL and on the protocol level ---------------------------------------------------------------------

exchanges(
  'one query may run and drop several statements',
  ['11Z', 'TDCTDCZ', 'CCZ', 'EZEZ', '11Z', 'TDCCEZ', 'EZ2DCZ', 'CCEZ'],
  [
    [P('a', 'SELECT 1'), P('b', 'SELECT 2'), S],
    [Q('EXECUTE a; EXECUTE b')],
    [Q('DEALLOCATE a; DEALLOCATE b')],
    [B('', 'a'), S, B('', 'b'), S],
    [P('a', 'SELECT 1'), P('b', 'SELECT 2'), S],
    [Q('EXECUTE a; DEALLOCATE a; EXECUTE a')],
    [B('', 'a'), S, B('', 'b'), E(''), S],
    [Q('DEALLOCATE b; SET work_mem = 6000; DEALLOCATE b')],
  ],
);

exchanges(
  'a named statement may run or drop another',
  ['1Z', '11Z', 'tTZ', '2DCZ2DCZ', '2CZ', '2EZ', '2EZ', '1Z2DCZ', '2CZ', 'EZ'],
  [
    [P('a', 'SELECT 1'), S],
    [P('run', 'EXECUTE a'), P('drop', 'DEALLOCATE a'), S],
    [D('S', 'run'), S],
    [B('', 'run'), E(''), S, B('p', 'run'), E('p'), S],
    [B('', 'drop'), E(''), S],
    [B('', 'run'), E(''), S],
    [B('', 'drop'), E(''), S],
    [P('a', 'SELECT 11'), S, B('', 'run'), E(''), S],
    [B('', 'drop'), E(''), S],
    [B('', 'a'), S],
  ],
);

exchanges(
  'PREPARE of SQL and Parse share one namespace',
  ['1Z', 'EZ', '2DCZ', 'CZ', 'EZ', '2DCZTDCZ', '3Z', 'EZ', '1Z', '2DCZ', '3ZEZ'],
  [
    [P('a', 'SELECT 1'), S],
    [Q('PREPARE a AS SELECT 7')],
    [B('', 'a'), E(''), S],
    [Q('PREPARE b AS SELECT 8')],
    [P('b', 'SELECT 2'), S],
    [B('', 'b'), E(''), S, Q('EXECUTE b')],
    [C('S', 'b'), S],
    [B('', 'b'), E(''), S],
    [P('b', 'SELECT 9'), S],
    [B('', 'b'), E(''), S],
    [C('S', 'b'), S, B('', 'b'), S],
  ],
  {},
  true, // A pinned client leaves no server to disturb.
);

exchanges(
  'a Query that is skipped drops no unnamed statement, and nobody sees that of another',
  ['TDCZ', 'EZEZ'],
  [[Q('SELECT 1')], [B('', 'unknown'), Q('SELECT 1'), S, B('', ''), E(''), S]],
);

exchange('a name that an unanswered batch has changed may be used in the middle of the next', '1EZ1Z122DCZ2Z', [
  ...[P('b', 'SELECT 1'), B('', 'unknown'), S],
  ...[P('a', 'SELECT 2'), S],
  ...[P('c', 'SELECT 3'), B('', 'a'), B('', 'b'), E(''), S],
  ...[B('', 'c'), S],
]);

for (const [title, part] of [
  ['a Parse of a known text', P('known too', 'SELECT 1')],
  ['a Close of a known name', C('S', 'known')],
  ['a Bind of a known name', B('', 'known')],
] as const) {
  scenario(`${title} amid COPY data ends the connection`, '1ZGEE', async (side) => {
    const client = await side.open();
    const messages = await client.ask([P('known', 'SELECT 1'), S]);
    client.write(Q('COPY sink FROM STDIN'), part, S);
    messages.push(...(await client.closed()));
    return messages;
  });
}

for (const [title, data, count] of [
  ['the Sync counts when the data before it has failed', ['bad\n', S, '1\ta\n'], 2],
  ['the Sync is ignored when the data behind it fails', ['1\ta\n', S, 'bad\n'], 1],
  ['of two Syncs the second counts', ['1\ta\n', S, 'bad\n', S, '2\tb\n'], 2],
  ['the Sync is ignored when all goes well', ['1\ta\n', S, '2\tb\n'], 1],
] as const) {
  const isFine = !(data as readonly unknown[]).includes('bad\n');
  const parts = [...data.map((each) => (typeof each === 'string' ? copyData(each) : each)), copyDone(), S];
  exchange(`a Sync amid COPY data: ${title}`, `12G${isFine ? 'C' : 'E'}${'Z'.repeat(count)}TDCZ1Z2DC3Z`, [
    P('', COPY_IN),
    B('', ''),
    E(''),
    ...parts,
    Q('SELECT count(*) FROM sink'),
    P('x', 'SELECT 1'),
    S,
    B('', 'x'),
    E(''),
    C('S', 'x'),
    S,
  ]);
}

scenario('RESET in a transaction leaves the unnamed portal alone', 'CZ12DsZ12CZDsZCZ', async (side) => {
  const client = await side.open({ options: '-c work_mem=7MB' });
  const messages = await client.ask(Q('BEGIN'));
  messages.push(...(await client.ask([P('', ALL), B('', ''), E('', 1), S])));
  messages.push(...(await client.ask([P('r', 'RESET work_mem'), B('p', 'r'), E('p'), S])));
  messages.push(...(await client.ask([E('', 1), S])));
  messages.push(...(await client.ask(Q('ROLLBACK'))));
  return messages;
});

// --- Floods -----------------------------------------------------------------------------------------------------

t.test('a flood of pipelined requests is answered, however many', async (t) => {
  await reset();
  const proxy = await startProxy(postgres.port, { pool: { size: 1 } });
  t.after(() => proxy.stop());
  const client = await RawClient.open(proxy.port);
  const batch = [P('', 'SELECT $1::int'), B('', '', ['1']), E(''), S];
  const messages = await client.ask(Array.from({ length: 3000 }, () => batch).flat(), 3000);
  t.equal(types(messages), '12DCZ'.repeat(3000));
  const large = Q(`SELECT repeat('x', 200000)`);
  t.equal(
    types(
      await client.ask(
        Array.from({ length: 50 }, () => large),
        50,
      ),
    ),
    'TDCZ'.repeat(50),
  );
  client.end();
  t.equal(proxy.bugs(), 0);
});

t.test('more replies of the proxy’s own than may be outstanding wait for one of the server', async (t) => {
  const proxy = await startProxy(postgres.port, { pool: { size: 1 } });
  t.after(() => proxy.stop());
  const a = await open(t, proxy.port);
  const names = Array.from({ length: 4200 }, (_, index) => `n${index}`);
  await a.ask([P('s', 'SELECT 1'), ...names.map((name) => P(name, 'SELECT 2')), S]);
  const closed = await a.ask([B('', 's'), E(''), ...names.map((name) => C('S', name)), S]);
  t.equal(types(closed), `2DC${'3'.repeat(4200)}Z`);
  t.equal(types(await a.ask([B('', 's'), E(''), S])), '2DCZ');
});

t.test('no notification is lost between the requests of the proxy itself', async (t) => {
  const proxy = await startProxy(postgres.port, { pool: { size: 2, pinnedMax: '100%' } });
  t.after(() => proxy.stop());
  const listener = await RawClient.open(proxy.port);
  await listener.rows('LISTEN news');
  const COUNT_SENT = 200;
  const sender = await RawClient.open(postgres.port);
  const all: Message[] = [];
  const sending = sender.ask(
    Array.from({ length: COUNT_SENT }, (_, n) => Q(`NOTIFY news, '${n}'`)),
    COUNT_SENT,
  );
  for (let n = 0; n < COUNT_SENT; n++) all.push(...(await listener.ask(Q(`SET work_mem = '${1 + (n % 9)}MB'`))));
  await sending;
  all.push(...(await listener.ask(Q('SELECT 1'))));
  t.equal(all.filter(({ type }) => type === 'A').length, COUNT_SENT);
  listener.end();
  sender.end();
});

// --- The first packet -------------------------------------------------------------------------------------------

const NAMES: [string, string][] = [
  ['user', 'postgres'],
  ['database', 'postgres'],
];

/** Writes `steps` on a new connection, each after `answers[step]` bytes have come; gives all bytes that come. */
async function dial(port: number, steps: Buffer[][], answers: number[]): Promise<Buffer> {
  const socket = net.connect({ host: '127.0.0.1', port, noDelay: true });
  let bytes = Buffer.alloc(0);
  let isEnded = false;
  socket.on('data', (chunk: Buffer) => {
    bytes = Buffer.concat([bytes, chunk]);
  });
  socket
    .on('error', () => {})
    .on('close', () => {
      isEnded = true;
    });
  const isReady = () => bytes.length > 5 && bytes.subarray(-6).equals(Buffer.from([0x5a, 0, 0, 0, 5, 0x49]));
  for (const [index, parts] of steps.entries()) {
    await until(() => isEnded || bytes.length >= answers[index]!, `${answers[index]} bytes`);
    for (const part of parts) {
      socket.write(part);
      await new Promise((resolve) => setImmediate(resolve));
    }
  }
  await until(() => isEnded || isReady(), 'ReadyForQuery or the end');
  socket.destroy();
  return bytes;
}

/** What a greeting says, apart from its key and the order of the parameters. */
function greeting(bytes: Buffer): string[] {
  const lines: string[] = [];
  let at = 0;
  for (; bytes[at] === 0x4e && bytes.readUInt32BE(at + 1) > 0xffff; at++) lines.push('no');
  for (; at < bytes.length; ) {
    const type = String.fromCharCode(bytes[at]!);
    const size = 1 + bytes.readUInt32BE(at + 1);
    const body = bytes.subarray(at + 5, at + size);
    if (type === 'E') lines.push(`E ${readErrorFields(body).get('V')}`);
    else if (type === 'K') lines.push(body.length === 8 ? 'K short' : 'K long');
    else lines.push(`${type} ${body.toString('latin1')}`);
    at += size;
  }
  return lines.sort();
}

const bytewise = (bytes: Buffer) => [...bytes].map((byte) => Buffer.from([byte]));
const gssRequest = Buffer.concat([int32(8), int32(80877104)]);

for (const [name, steps, answers] of [
  ['protocol 3.0', [[startup(Version.v3_0, NAMES)]], [0]],
  ['protocol 3.2 with its long key', [[startup(Version.v3_2, NAMES)]], [0]],
  ['protocol 3.9, negotiated', [[startup(0x00030009, NAMES)]], [0]],
  [
    'an unknown option, negotiated',
    [[startup(Version.v3_0, [...NAMES, ['_pq_.unknown', '1'], ['_pq_.two', '']])]],
    [0],
  ],
  ['an unknown option in 3.2', [[startup(Version.v3_2, [...NAMES, ['_pq_.unknown', '1']])]], [0]],
  ['protocol 4', [[startup(0x00040000, NAMES)]], [0]],
  ['SSLRequest, then startup', [[sslRequest], [startup(Version.v3_0, NAMES)]], [0, 1]],
  ['GSSENCRequest, SSLRequest, then startup', [[gssRequest], [sslRequest], [startup(Version.v3_0, NAMES)]], [0, 1, 2]],
  ['SSLRequest, GSSENCRequest, then startup', [[sslRequest], [gssRequest], [startup(Version.v3_0, NAMES)]], [0, 1, 2]],
  ['SSLRequest twice', [[sslRequest], [sslRequest], [startup(Version.v3_0, NAMES)]], [0, 1, 2]],
  ['a startup byte by byte', [bytewise(startup(Version.v3_0, NAMES))], [0]],
  ['SSLRequest and startup byte by byte', [bytewise(sslRequest), bytewise(startup(Version.v3_2, NAMES))], [0, 1]],
  ['a packet without its last zero', [[Buffer.concat([int32(13), int32(Version.v3_0), Buffer.from('user\0')])]], [0]],
] as [string, Buffer[][], number[]][]) {
  t.test(`the greeting after ${name}`, async (t) => {
    const proxy = await startProxy(postgres.port, { pool: { size: 1 } });
    t.after(() => proxy.stop());
    const wanted = greeting(await dial(postgres.port, steps, answers));
    t.same(greeting(await dial(proxy.port, steps, answers)), wanted);
    t.equal(proxy.bugs(), 0);
  });
}

for (const [name, version] of [
  ['3.0', Version.v3_0],
  ['3.2', Version.v3_2],
] as const) {
  t.test(`a cancel request is understood byte by byte, in protocol ${name}`, async (t) => {
    const proxy = await startProxy(postgres.port, { pool: { size: 1 } });
    t.after(() => proxy.stop());
    const client = await RawClient.open(proxy.port, {}, version);
    client.write(Q('SELECT pg_sleep(60)'));
    const isRunning = `SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND state = 'active'`;
    await until(async () => (await admin.rows(isRunning))[0]![0] === '1', 'the statement to run');
    await dial(proxy.port, [bytewise(Buffer.concat([int32(8 + client.key.length), int32(80877102), client.key]))], [0]);
    t.same(sqlstates(await client.until('Z')), ['57014']);
    await requestCancel(proxy.port, client.key);
    t.same(await client.rows('SELECT 1'), [['1']], 'a cancel request when nothing runs changes nothing');
    client.end();
  });
}

scenario('the portal of a BEGIN that was answered here cannot be run again', '12CZEZtnZCZ', async (side) => {
  const client = await side.open();
  const run = (sql: string) => [P('', sql), B('', ''), E('')];
  const first = await client.ask([...run('BEGIN'), S]);
  // What is skipped behind the error does not replace the unnamed statement: it still is the BEGIN.
  const second = await client.ask([E(''), ...run('SELECT 1'), S]);
  const third = await client.ask([D('S', ''), S]);
  return [...first, ...second, ...third, ...(await client.ask(Q('ROLLBACK')))];
});

scenario(
  'a Close that is skipped, with a Parse behind it, leaves the unnamed statement',
  '312DCZEZEZ2DCZ',
  async (side) => {
    const client = await side.open();
    const first = await client.ask([C('S', ''), P('', 'SELECT 1'), B('', ''), E(''), S]);
    const rest = await client.ask(
      [D('S', 'c'), C('S', ''), S, E(''), P('', 'SELECT 1'), B('', ''), E(''), S, B('', ''), E(''), S],
      3,
    );
    return [...first, ...rest];
  },
);
