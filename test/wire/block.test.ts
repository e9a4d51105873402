/**
 * Transactions that no server knows of (client/block): BEGIN takes no server, and nobody can tell by the answers. The
 * first statement that needs one may be refused, and then the transaction has failed.
 */
import t, { type Test } from 'tap';
import { type Message, OCCUPY, open, type RawClient, requestCancel, send, sqlstates, types } from '../fixtures/raw.ts';
import { scenarios } from '../fixtures/scenario.ts';
import { startProxy, until, withPostgres } from '../fixtures/stack.ts';

const { query: Q, parse: P, bind: B, describe: D, close: C, execute: E, flush } = send;
const S = send.sync();
const H = flush();

const postgres = await withPostgres();
t.after(() => postgres.stop());

const { scenario, exchange, exchanges } = scenarios(postgres.port, async () => {});

/** One group of the extended protocol. */
const group = (sql: string) => [P('', sql), B('', ''), D('P', ''), E(''), S];

// --- As on a server of one's own --------------------------------------------------------------------------------

exchanges(
  'a transaction in which nothing is asked for',
  ['CZ', 'CZ', 'CZ', 'CZ', 'CZ', 'CZ'],
  [[Q('BEGIN')], [Q('COMMIT')], [Q('start transaction read only')], [Q('END')], [Q('BEGIN')], [Q('ROLLBACK')]],
);

exchanges(
  'the same in the extended protocol',
  ['12nCZ', '12nCZ', '1Z', '2CZ', '1Z', '2CZ', '2CZ'],
  [
    group('BEGIN'),
    group('COMMIT'),
    [P('b', 'BEGIN'), S],
    [B('', 'b'), E(''), S],
    [P('c', 'ROLLBACK'), S],
    [B('', 'c'), E(''), S],
    [B('', 'b'), E(''), S],
  ],
);

exchange('BEGIN, a statement and COMMIT at once', 'CZTDCZCZ', [Q('BEGIN'), Q('SELECT 1'), Q('COMMIT')]);
exchange('the same in the extended protocol', '12nCZ12TDCZ12nCZ', [
  ...group('BEGIN'),
  ...group('SELECT 1'),
  ...group('COMMIT'),
]);
exchange('BEGIN and what follows as one batch', '12nC12TDC12nCZ', [
  ...group('BEGIN').slice(0, -1),
  ...group('SELECT 1').slice(0, -1),
  ...group('COMMIT'),
]);

for (const [title, first, expected] of [
  ['a simple query', [Q('SELECT 1 AS one')], 'TDCZ'],
  ['an extended one', group('SELECT 2 AS two'), '12TDCZ'],
  ['a syntax error', [Q('SELEC')], 'EZ'],
  ['a syntax error in the extended protocol', group('SELEC'), 'EZ'],
  ['an error in Execute', group('SELECT 1 / (n - 1) AS bad FROM generate_series(1, 1) n'), '12TEZ'],
  ['an empty query', [Q('')], 'IZ'],
  ['an unknown statement', [B('', 'unknown'), E(''), S], 'EZ'],
  ['the unnamed statement, which BEGIN has dropped', [B('', ''), E(''), S], 'EZ'],
  ['the unnamed portal, which there is none of', [E(''), S], 'EZ'],
  ['a second BEGIN', [Q('BEGIN')], 'NCZ'],
  ['two statements', [Q('SELECT 1; SELECT 2')], 'TDCTDCZ'],
  ['a savepoint', [Q('SAVEPOINT a')], 'CZ'],
  ['SET LOCAL', [Q(`SET LOCAL work_mem = '7MB'`)], 'CZ'],
  ['a cursor', [Q('DECLARE c CURSOR FOR SELECT 1')], 'CZ'],
  ['COMMIT AND CHAIN', [Q('COMMIT AND CHAIN')], 'CZ'],
  ['nothing but Sync', [S], 'Z'],
  ['Flush and Sync', [H, S], 'Z'],
  ['a Close', [C('S', 'x'), S], '3Z'],
  ['a Describe of an unknown portal', [D('P', 'x'), S], 'EZ'],
] as const) {
  exchanges(
    `the first statement is ${title}`,
    ['CZ', expected, expected.includes('E') ? 'EZ' : 'TDCZ', 'CZ', 'TDCZ'],
    [[Q('BEGIN')], [...first], [Q('SHOW work_mem')], [Q('ROLLBACK')], [Q('SHOW work_mem')]],
  );
}

exchanges(
  'modes of the transaction are in force',
  ['CZ', 'TDCZ', 'CZ', 'CZ', 'EZ', 'CZ'],
  [
    [Q('BEGIN ISOLATION LEVEL REPEATABLE READ')],
    [Q('SHOW transaction_isolation')],
    [Q('COMMIT')],
    [Q('START TRANSACTION READ ONLY')],
    [Q('CREATE TABLE never (a int)')],
    [Q('ROLLBACK')],
  ],
);

exchanges(
  'a Parse in between is answered, and its statement runs in the transaction',
  ['1Z', 'CZ', '1Z', '2TDCZ', 'CZ'],
  [
    [P('s', 'SELECT 3 AS three'), S],
    [Q('BEGIN')],
    [P('t', 'SELECT 3 AS three'), S],
    [B('', 't'), D('P', ''), E(''), S],
    [Q('COMMIT')],
  ],
);

scenario('settings of the client hold in its transaction', 'CZCZTDCZCZ', async (side) => {
  const client = await side.open();
  const messages = [...(await client.ask(Q(`SET work_mem = '9MB'`)))];
  await side.disturb();
  messages.push(...(await client.ask(Q('BEGIN'))));
  await side.disturb();
  return messages.concat(await client.ask(Q('SHOW work_mem')), await client.ask(Q('COMMIT')));
});

scenario('a prepared statement is the first of many transactions', '1Z' + 'CZ2DCZCZ'.repeat(5), async (side) => {
  const client = await side.open();
  const messages = await client.ask([P('s', 'SELECT $1::int'), S]);
  for (let lap = 0; lap < 5; lap++) {
    messages.push(...(await client.ask(Q('BEGIN'))));
    await side.disturb();
    messages.push(...(await client.ask([B('', 's', [`${lap}`]), E(''), S])), ...(await client.ask(Q('COMMIT'))));
  }
  return messages;
});

// --- No server --------------------------------------------------------------------------------------------------

/** A proxy whose only server is taken until `release` is called, and again from `occupy` on. */
async function startBusy(t: Test, pool: object = {}) {
  const proxy = await startProxy(postgres.port, { pool: { size: 1, waitMax: '300ms', ...pool } });
  t.after(() => proxy.stop());
  const busy = await open(t, proxy.port);
  await busy.rows(OCCUPY);
  const client = await open(t, proxy.port);
  return { proxy, client, release: () => busy.rows('COMMIT'), occupy: () => busy.rows(OCCUPY) };
}

const status = (messages: Message[]) => messages.at(-1)!.body.toString();
const leases = (proxy: Awaited<ReturnType<typeof startProxy>>) => proxy.app.snapshot().pools[0]!.counts.leases;

t.test('a transaction in which nothing is asked for takes no server', async (t) => {
  const { proxy, client } = await startBusy(t);
  const before = leases(proxy);
  for (const request of [[Q('BEGIN')], [Q('COMMIT')], group('BEGIN'), group('ROLLBACK')])
    t.match(types(await client.ask(request)), /^(12n)?CZ$/);
  t.equal(leases(proxy), before);
});

const requests: [string, Buffer[]][] = [
  ['simple', [Q('SELECT 1')]],
  ['extended', group('SELECT 1')],
  ['a batch', [...group('SELECT 1').slice(0, -1), ...group('SELECT 2')]],
];

for (const [title, request] of requests) {
  t.test(`a first statement that is refused makes the transaction fail: ${title}`, async (t) => {
    const { proxy, client, release } = await startBusy(t);
    for (const [end, tag] of [
      [[Q('ROLLBACK')], 'ROLLBACK'],
      [[Q('COMMIT')], 'ROLLBACK'],
      [group('ROLLBACK'), 'ROLLBACK'],
      [group('END'), 'ROLLBACK'],
      // As drivers send it: postgres.js, psycopg's pipeline, pgx.
      [[P('named', 'ROLLBACK'), D('S', 'named'), B('', 'named'), E(''), S], 'ROLLBACK'],
      [[B('', 'named'), D('P', ''), E(''), S, flush()], 'ROLLBACK'],
      [[P('', 'COMMIT'), D('S', ''), flush(), B('', ''), E(''), flush(), S], 'ROLLBACK'],
    ] as const) {
      await client.ask(Q('BEGIN'));
      const refused = await client.ask(request);
      t.same([types(refused), sqlstates(refused), status(refused)], ['EZ', ['53000'], 'E']);
      for (const [, again] of requests) {
        const failed = await client.ask(again);
        t.same([types(failed), sqlstates(failed), status(failed)], ['EZ', ['25P02'], 'E']);
      }
      t.equal(status(await client.ask(S)), 'E');
      const ended = await client.ask([...end]);
      t.match(ended.find(({ type }) => type === 'C')!.body.toString(), tag);
      t.equal(status(ended), 'I');
    }
    await release();
    t.same(await client.rows('SELECT 1'), [['1']]);
    t.equal(proxy.bugs(), 0);
  });
}

t.test('a statement that ends a transaction can be prepared and described in one that has failed', async (t) => {
  const { client } = await startBusy(t);
  await client.ask(Q('BEGIN'));
  t.same(sqlstates(await client.ask(Q('SELECT 7'))), ['53000']);
  const prepared = await client.ask([P('r', 'ROLLBACK'), D('S', 'r'), S]);
  t.same([types(prepared), status(prepared)], ['1tnZ', 'E']);
  const described = await client.ask([D('S', 'r'), S]);
  t.same([types(described), status(described)], ['tnZ', 'E']);
  t.same(sqlstates(await client.ask(group('SELECT 7'))), ['25P02']);
  const ended = await client.ask([B('', 'r'), E(''), S]);
  t.same([types(ended), status(ended)], ['2CZ', 'I']);
});

for (const mode of ['transaction', 'session']) {
  t.test(`who has sent BEGIN in what is refused is in a transaction that has failed: ${mode}`, async (t) => {
    const { client, release } = await startBusy(t, { mode });
    for (const request of [
      [...group('BEGIN').slice(0, -1), ...group('SELECT 7')],
      [Q('BEGIN; SELECT 7')],
      [Q('BEGIN ISOLATION LEVEL SERIALIZABLE')],
    ]) {
      const refused = await client.ask(request);
      t.same([sqlstates(refused), status(refused)], [['53000'], 'E']);
      t.same(sqlstates(await client.ask(Q('SELECT 7'))), ['25P02']);
      t.equal(status(await client.ask(Q('COMMIT'))), 'I');
    }
    if (mode === 'session') return; // Whoever has the server keeps it.
    await release();
    t.same(await client.rows('SELECT 7'), [['7']]);
  });
}

t.test('a failed transaction that ends with more than ROLLBACK is ended by a server', async (t) => {
  const { client, release, occupy } = await startBusy(t);
  for (const [end, expected] of [
    [[Q('ROLLBACK; SELECT 7')], 'CTDCZ'],
    [[Q('COMMIT AND CHAIN')], 'CZ'],
    [[P('end', 'ROLLBACK'), B('', 'end'), E(''), S], '12CZ'],
  ] as const) {
    await client.ask(Q('BEGIN'));
    t.same(sqlstates(await client.ask(Q('SELECT 1'))), ['53000']);
    await release();
    t.equal(types(await client.ask([...end])), expected);
    await client.ask(Q('ROLLBACK'));
    t.same(await client.rows('SELECT 1'), [['1']]);
    await occupy();
  }
});

t.test('a client that is cancelled while its first statement waits is in a failed transaction', async (t) => {
  const { proxy, client } = await startBusy(t, { waitMax: '20s' });
  await client.ask(Q('BEGIN'));
  client.write(Q('SELECT 1'));
  await until(() => proxy.app.snapshot().pools[0]!.waiters.size === 1, 'the client to wait');
  await requestCancel(proxy.port, client.key);
  const messages = await client.until('Z');
  t.same([sqlstates(messages), status(messages)], [['57014'], 'E']);
  t.equal(status(await client.ask(Q('ROLLBACK'))), 'I');
});

t.test('idleInTransactionMax holds for it as well', async (t) => {
  const { client } = await startBusy(t, { idleInTransactionMax: '200ms' });
  await client.ask(Q('BEGIN'));
  t.same(sqlstates(await client.closed()), ['25P03']);
});

for (const mode of ['session', 'statement'] as const) {
  t.test(`in mode ${mode} BEGIN goes to a server`, async (t) => {
    const proxy = await startProxy(postgres.port, { pool: { mode } });
    t.after(() => proxy.stop());
    const client: RawClient = await open(t, proxy.port);
    client.write(Q('BEGIN'));
    const messages = await client.until('Z');
    t.equal(leases(proxy), 1);
    t.equal(status(messages).length, 1);
  });
}
