/**
 * Clients that share servers never see each other's session state, and each sees its own: law 5. Most tests are
 * scripts: the same lines are given to clients of a small pool and to clients with a Postgres of their own, and every
 * answer (rows, tags, errors, transaction status, reported parameters) must be the same.
 */
import fc from 'fast-check';
import t, { type Test } from 'tap';
import { readTextRow } from '../../src/protocol/messages.ts';
import { type Message, open, RawClient, send, sqlstates, types } from '../fixtures/raw.ts';
import { startProxy, until, withPostgres } from '../fixtures/stack.ts';

type Stack = Awaited<ReturnType<typeof startProxy>>;

const postgres = await withPostgres();
t.after(() => postgres.stop());

/** Locks, channels and temporary tables belong to a database: the clients that are compared with have their own. */
const ORACLE = 'oracle';
await prepare();

async function prepare(): Promise<void> {
  const admin = await RawClient.open(postgres.port);
  for (const sql of [
    'CREATE ROLE bob',
    'CREATE ROLE carol',
    'GRANT carol TO bob',
    'CREATE SCHEMA s1',
    'CREATE SCHEMA s2',
    'CREATE TABLE s1.t (a int)',
    'CREATE TABLE s2.t (a text)',
    'CREATE TABLE s1.u (a int)',
    'CREATE TABLE s2.u (a int)',
    `INSERT INTO s1.t VALUES (1)`,
    `INSERT INTO s2.t VALUES ('two')`,
    'CREATE SEQUENCE sq',
    `CREATE FUNCTION plus(i int) RETURNS int LANGUAGE sql AS 'SELECT i + 1'`,
    `CREATE FUNCTION plus_too(i int) RETURNS int LANGUAGE plpgsql AS 'BEGIN IF i > 0 THEN RETURN plus(i); END IF; RETURN 0; END'`,
    `CREATE FUNCTION assign(n text, v text) RETURNS text LANGUAGE sql AS 'SELECT set_config(n, v, false)'`,
    `CREATE FUNCTION range(v text) RETURNS text LANGUAGE sql AS $$SELECT set_config('app.tenant', v, false)$$`,
    `CREATE TYPE mood AS ENUM ('good')`,
    `CREATE FUNCTION lower(mood) RETURNS text LANGUAGE sql AS $$SELECT set_config('app.tenant', 'over', false)$$`,
    `CREATE PROCEDURE commits() LANGUAGE plpgsql AS $$ BEGIN
       PERFORM set_config('app.tenant', 'leak', false); COMMIT; RAISE EXCEPTION 'too late'; END $$`,
    `CREATE DATABASE ${ORACLE} TEMPLATE postgres`,
  ]) {
    await admin.rows(sql);
  }
  admin.end();
}

type Startups = Record<string, Record<string, string>>;

/** A pool of `size` servers, of which every one may be pinned. */
async function startPool(t: Test, pool: object = {}, more: object = {}): Promise<Stack> {
  const proxy = await startProxy(postgres.port, { pool: { size: 1, pinnedMax: '100%', ...pool }, ...more });
  t.after(() => proxy.stop());
  proxies.push(proxy);
  return proxy;
}

/** All that were started: the last test asks them for bugs. */
const proxies: Stack[] = [];

/** A client that is gone when the test is over. */
const pinsOf = (proxy: Stack) => proxy.app.snapshot().pools[0]!.counts.pins;

/** Waits until nothing is under way in the background, and `count` clients are pinned. */
async function pinned(proxy: Stack, count: number): Promise<void> {
  const { sessions, pools } = proxy.app.snapshot();
  const isQuiet = () =>
    [...sessions].every(({ state, server }) =>
      state === 'idle' ? true : state === 'active' && server!.outstanding.isFree,
    );
  // The pool counts a statement that will probably pin from its beginning; the session knows when it did.
  const isCounted = () =>
    pools[0]!.pinned === count && [...sessions].filter(({ pins }) => pins.length > 0).length === count;
  await until(() => isQuiet() && isCounted(), `${count} clients pinned`, 3_000).catch(() => {
    const states = [...sessions].map(({ state, pins }) => `${state} ${pins}`);
    throw new Error(`expected ${count} pinned clients; the pool counts ${pools[0]!.pinned}: ${states}`);
  });
}

/** Every reported parameter that a client can change. */
const followed = [
  'application_name',
  'client_encoding',
  'DateStyle',
  'default_transaction_read_only',
  'IntervalStyle',
  'is_superuser',
  'search_path',
  'session_authorization',
  'standard_conforming_strings',
  'TimeZone',
];

/** What came back, in a form that reads well in a diff. */
function summary(messages: readonly Message[]): string {
  return messages
    .flatMap(({ type, body }) => {
      switch (type) {
        case 'D':
          return [readRow(body)];
        case 'C':
          return [`<${body.toString('latin1', 0, body.length - 1)}>`];
        case 'E':
          return [`error ${sqlstates([{ type, body }])}`];
        case 'Z':
          return [body.toString()];
        default:
          return [];
      }
    })
    .join(' ');
}

/** The columns of a DataRow, with a comma between. */
function readRow(body: Buffer): string {
  return readTextRow(body)
    .map((value) => value ?? 'null')
    .join(', ');
}

/** `sql` as one simple query, or as one extended batch: always so when `values` follow ` <- `, separated by `|`. */
async function give(client: RawClient, line: string, isExtended: boolean): Promise<string> {
  if (client.isClosed) return 'closed';
  const [sql, values] = line.split(' <- ') as [string, string?];
  const isBatch = values !== undefined || (isExtended && !sql.includes(';'));
  const messages = await client.ask(
    isBatch
      ? [send.parse('', sql), send.bind('', '', values?.split('|') ?? []), send.execute(''), send.sync()]
      : send.query(sql),
  );
  return summary(messages) + (client.isClosed ? ' closed' : '');
}

/** Lines are `name sql`, given in turn to the clients of these names. */
async function answers(
  { port, database }: { port: number; database: string },
  startups: Startups,
  lines: string[],
  isExtended: boolean,
): Promise<string[]> {
  const clients = new Map<string, RawClient>();
  const given: string[] = [];
  try {
    for (const line of lines) {
      const [, name, sql] = /^(\S+)\s+(.*)$/s.exec(line)!;
      let client = clients.get(name!);
      if (client === undefined) {
        client = await RawClient.open(port, { database, ...startups[name!] });
        clients.set(name!, client);
      }
      given.push(`${line} → ${await give(client, sql!, isExtended)}`);
    }
    // What each was told of its parameters in all. In between a client may be told of a change a little later.
    for (const [name, client] of clients) {
      await give(client, 'SELECT 1', false);
      given.push(`${name}: ${followed.map((parameter) => client.parameters.get(parameter)).join(' | ')}`);
    }
  } finally {
    for (const client of clients.values()) client.end();
  }
  return given;
}

/** The script gives the same answers through the proxy as directly, in both protocols. */
function script(
  title: string,
  text: string,
  { pool = {}, startups = {} }: { pool?: object; startups?: Startups } = {},
): void {
  t.test(title, async (t) => {
    const lines = text
      .split('\n')
      .map((line) => line.trim())
      .filter((line) => line !== '');
    for (const isExtended of [false, true]) {
      const proxy = await startPool(t, { waitMax: '3s', ...pool });
      const direct = { port: postgres.port, database: ORACLE };
      const expected = await answers(direct, startups, lines, isExtended);
      const actual = await answers({ port: proxy.port, database: 'postgres' }, startups, lines, isExtended);
      t.same(actual, expected, isExtended ? 'extended protocol' : 'simple protocol');
    }
  });
}

// --- Settings ---------------------------------------------------------------------------------------------------

script(
  'SET and RESET concern only the client that gives them',
  `a SET statement_timeout = '3s'
   b SHOW statement_timeout
   b SET statement_timeout = '4s'
   a SHOW statement_timeout
   a RESET statement_timeout
   a SHOW statement_timeout
   b SHOW statement_timeout
   b SET SESSION work_mem TO '5MB'
   a SHOW work_mem
   b RESET ALL
   b SHOW work_mem
   b SHOW statement_timeout`,
);

script(
  'several settings at once, and a client without any between two that have some',
  `a SET statement_timeout = '3s'; SET lock_timeout = '4s'; SET app.tenant = 'it''s \\ "a"'
   b SET enable_seqscan = off
   c SELECT current_setting('statement_timeout'), current_setting('lock_timeout')
   c SELECT coalesce(current_setting('app.tenant', true), ''), current_setting('enable_seqscan')
   a SELECT current_setting('app.tenant'), current_setting('lock_timeout')
   b SELECT current_setting('enable_seqscan')`,
);

script(
  'SET LOCAL ends with its transaction',
  `a BEGIN
   a SET LOCAL statement_timeout = '3s'
   a SELECT set_config('app.tenant', 'local', true)
   a SHOW statement_timeout
   a COMMIT
   a SHOW statement_timeout
   b SHOW statement_timeout
   b SELECT coalesce(current_setting('app.tenant', true), '')
   a SET LOCAL statement_timeout = '3s'; SHOW statement_timeout
   b SHOW statement_timeout`,
);

script(
  'set_config with a literal or a parameter for its name, local or not',
  `a SELECT set_config('app.tenant', 'one', false)
   b SELECT coalesce(current_setting('app.tenant', true), '')
   a SELECT set_config($1, $2, false) <- app.other|two
   b SELECT coalesce(current_setting('app.other', true), '')
   a SELECT current_setting('app.tenant'), current_setting('app.other')
   a SELECT set_config($1, $2, $3) <- app.third|three|true
   a SELECT coalesce(current_setting('app.third', true), '')
   b SELECT set_config('search_path', '', false)
   a SHOW search_path
   b SHOW search_path`,
  { pool: { size: 2 } },
);

script(
  'ROLLBACK and ROLLBACK TO undo SET',
  `a SET statement_timeout = '3s'
   a BEGIN
   a SET statement_timeout = '4s'
   a ROLLBACK
   a SHOW statement_timeout
   b SHOW statement_timeout
   a BEGIN
   a SET app.tenant = 'one'
   a SAVEPOINT x
   a SET app.tenant = 'two'
   a SET TimeZone = 'Asia/Tokyo'
   a ROLLBACK TO x
   a SHOW app.tenant
   a COMMIT
   b SHOW TimeZone
   a SHOW app.tenant
   a SHOW TimeZone
   b SELECT coalesce(current_setting('app.tenant', true), '')`,
);

script(
  'a query of several statements that fails undoes its SET, a COMMIT before the failure keeps it',
  `a SET statement_timeout = '3s'; SELECT 1/0
   a SHOW statement_timeout
   a BEGIN; SET statement_timeout = '4s'; COMMIT; SELECT 1/0
   b SHOW statement_timeout
   a SHOW statement_timeout
   a SET TimeZone = 'UTC'; SELECT 1/0
   a SHOW TimeZone
   b SHOW TimeZone`,
);

script(
  'RESET and RESET ALL lead back to what the client asked for at startup',
  `a SHOW statement_timeout
   a SET statement_timeout = '3s'
   a SET search_path = 'c', "D e"
   b SHOW search_path
   a SHOW search_path
   a RESET search_path
   a SHOW search_path
   b SHOW statement_timeout
   a RESET statement_timeout
   a SHOW statement_timeout
   a SET application_name = 'changed'
   a SET DateStyle = 'German'
   a RESET ALL
   a SHOW application_name
   a SHOW DateStyle
   a SHOW statement_timeout
   b SHOW application_name
   a SET statement_timeout = '1s'
   a DISCARD ALL
   a SHOW statement_timeout
   a SHOW search_path`,
  { startups: { a: { options: '-c statement_timeout=7s --search-path=a,"B\\ c"', application_name: 'mine' } } },
);

const startup7 = { startups: { a: { options: '-c statement_timeout=7s', application_name: 'mine', TimeZone: 'UTC' } } };

script(
  'SET … TO DEFAULT leads back to what the client asked for at startup',
  `a SET statement_timeout = '3s'
   a SET statement_timeout TO DEFAULT
   a SHOW statement_timeout
   a SET application_name = 'changed'
   a SET application_name = DEFAULT
   a SHOW application_name
   a SET TIME ZONE 'Asia/Tokyo'
   a SET TIME ZONE DEFAULT
   a SHOW TimeZone`,
  startup7,
);

script(
  'RESET that is rolled back has no effect',
  `a SET statement_timeout = '3s'
   a BEGIN
   a RESET statement_timeout; SELECT 1/0
   a ROLLBACK
   a SHOW statement_timeout
   a RESET statement_timeout; SELECT 1/0
   a SHOW statement_timeout
   a BEGIN
   a RESET statement_timeout
   a ROLLBACK
   a SHOW statement_timeout`,
  startup7,
);

script(
  'RESET holds behind a SET LOCAL in the same transaction',
  `a BEGIN
   a RESET statement_timeout
   a SET LOCAL statement_timeout = '3s'
   a COMMIT
   a SHOW statement_timeout`,
  startup7,
);

script(
  'RESET in a transaction leads back to the startup search_path for the rest of it',
  `a BEGIN
   a RESET search_path
   a SELECT a FROM t
   a COMMIT
   a SELECT a FROM t`,
  { startups: { a: { options: '-c search_path=s2' } } },
);

script(
  'SET after RESET in one query wins',
  `a RESET statement_timeout; SET statement_timeout = '5s'
   a SHOW statement_timeout`,
  startup7,
);

t.test('a query that was sent right behind RESET sees what RESET leads back to', async (t) => {
  const proxy = await startPool(t);
  const a = await open(t, proxy.port, { options: '-c statement_timeout=7s' });
  await a.rows(`SET statement_timeout = '3s'`);
  const messages = await a.ask([send.query('RESET statement_timeout'), send.query('SHOW statement_timeout')], 2);
  t.equal(summary(messages), '<RESET> I 7s <SHOW> I');
});

t.test('a query that was sent right behind DISCARD ALL sees what the client asked for at startup', async (t) => {
  const proxy = await startPool(t);
  const a = await open(t, proxy.port, { options: '-c statement_timeout=7s', application_name: 'mine' });
  const queries = ['DISCARD ALL', 'SHOW statement_timeout', 'SHOW application_name'].map(send.query);
  t.equal(summary(await a.ask(queries, 3)), '<DISCARD ALL> I 7s <SHOW> I mine <SHOW> I');
});

script(
  'role and session authorization are each client’s own, and survive RESET ALL',
  `a SET ROLE bob
   b SELECT current_user, session_user
   a SELECT current_user, session_user
   b SET SESSION AUTHORIZATION bob
   a SELECT current_user, session_user
   c SELECT current_user, session_user
   b SELECT current_user, session_user
   b SET ROLE carol
   a SELECT current_user, session_user
   b SELECT current_user, session_user
   a RESET ALL
   a SELECT current_user, session_user
   a RESET ROLE
   a SELECT current_user, session_user
   b RESET ROLE
   b SELECT current_user, session_user
   b RESET ALL
   b SELECT current_user, session_user
   b SET SESSION AUTHORIZATION DEFAULT
   b SELECT current_user, session_user`,
);

script(
  'a client with little rights leaves nothing that hinders the next one',
  `b SET log_min_duration_statement = 100
   a SET SESSION AUTHORIZATION bob
   b SHOW log_min_duration_statement
   a SELECT session_user
   c SET log_min_duration_statement = 200
   c SET SESSION AUTHORIZATION bob
   d SELECT session_user
   c SHOW log_min_duration_statement`,
);

script(
  'settings that cannot be RESET do not hinder the next client',
  `a SET transaction_isolation = 'read committed'
   b SELECT 1
   a SET transaction_read_only = off
   b SELECT 1
   a SELECT 1`,
);

script(
  'transaction characteristics of a session',
  `a SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY
   b SHOW transaction_isolation
   b SHOW transaction_read_only
   a SHOW transaction_isolation
   a SHOW transaction_read_only
   a SET TRANSACTION ISOLATION LEVEL REPEATABLE READ
   a SHOW transaction_isolation
   b SHOW transaction_isolation
   a RESET default_transaction_isolation
   a SHOW transaction_isolation`,
);

script(
  'settings with an odd spelling: SET TIME ZONE, SCHEMA, NAMES, XML OPTION, quoted and upper-case names',
  `a SET TIME ZONE INTERVAL '+03:00' HOUR TO MINUTE
   a SET SCHEMA 's1'
   a SET NAMES 'LATIN1'
   a SET XML OPTION DOCUMENT
   a SET "statement_timeout" = '3s'
   a SET LOCK_TIMEOUT = '4s'
   a SET App.Tenant = 'Upper'
   b SELECT current_setting('TimeZone'), current_setting('search_path'), current_setting('xmloption')
   b SELECT current_setting('statement_timeout'), current_setting('lock_timeout'), current_setting('client_encoding')
   a SELECT current_setting('TimeZone'), current_setting('search_path'), current_setting('xmloption')
   a SELECT current_setting('statement_timeout'), current_setting('lock_timeout'), current_setting('client_encoding')
   a SELECT current_setting('app.tenant')
   b SELECT coalesce(current_setting('app.tenant', true), '')`,
);

script(
  'custom settings whose first part is a key word',
  `a SET local.tenant = 'one'
   a SET session.tenant = 'two'
   a SET time.tenant = 'three'
   b SELECT coalesce(current_setting('local.tenant', true), '')
   b SELECT coalesce(current_setting('session.tenant', true), '')
   b SELECT coalesce(current_setting('time.tenant', true), '')
   a SELECT current_setting('local.tenant'), current_setting('session.tenant'), current_setting('time.tenant')
   a RESET session.tenant
   a SELECT current_setting('session.tenant')`,
);

script(
  'TimeZone and DateStyle come in Postgres’s own spelling, in the answers and as told to the client',
  `a SELECT 1
   b SELECT 1
   a SET TIME ZONE 'europe/berlin'
   b SHOW TimeZone
   b SHOW DateStyle
   a SET DateStyle = 'sql'
   b SET DateStyle = 'european'
   a SHOW DateStyle
   b SHOW DateStyle
   a RESET DateStyle
   a SHOW DateStyle`,
  { startups: { a: { DateStyle: 'German', TimeZone: 'utc' }, b: { DateStyle: 'MDY', client_encoding: 'latin1' } } },
);

script(
  'SET through PREPARE and EXECUTE is seen by its client only',
  `a PREPARE p AS SELECT set_config('app.tenant', 'late', false)
   a EXECUTE p
   a DEALLOCATE p
   b SELECT coalesce(current_setting('app.tenant', true), '')
   a SELECT current_setting('app.tenant', true)`,
);

script(
  'effects of DO, CALL and functions that are committed before an error stay with their client',
  `a BEGIN; DO $$ BEGIN PERFORM set_config('app.tenant', 'leak', false); END $$; COMMIT; SELECT 1/0
   b SELECT coalesce(current_setting('app.tenant', true), '')
   a SELECT current_setting('app.tenant', true)
   c CALL commits()
   b SELECT coalesce(current_setting('app.tenant', true), '')
   c SELECT current_setting('app.tenant', true)`,
  { pool: { size: 3 } },
);

for (const [title, sql] of [
  ['a name in Unicode escapes', String.raw`SELECT U&"\0073et_config"('statement_timeout', '77s', false)`],
  ['a quoted name', `SELECT "set_config"('statement_timeout', '77s', false)`],
  ['a name with its schema', `SELECT pg_catalog . set_config('statement_timeout', '77s', false)`],
  ['a comment', `SELECT set_config /* ( */ (/* ' */ 'statement_timeout', '77s', false)`],
  ['an escaped name', String.raw`SELECT set_config(E'statement\x5ftimeout', '77s', false)`],
  ['a dollar-quoted name', `SELECT set_config($$statement_timeout$$, '77s', false)`],
  ['a computed name', `SELECT set_config('statement' || '_timeout', '77s', false)`],
  [
    'a string that goes on in the next line',
    `SELECT E'a'\n'\\'', set_config('statement_timeout', '77s', false), E'b'\n'\\''`,
  ],
  ['pg_settings', `UPDATE pg_settings SET setting = '77s' WHERE name = 'statement_timeout'`],
  ['pg_settings in quotes', `UPDATE "pg_settings" SET setting = '77s' WHERE name = 'statement_timeout'`],
  [
    'pg_settings behind WITH',
    `WITH x AS (SELECT 1) UPDATE pg_settings SET setting = '77s' WHERE name = 'statement_timeout'`,
  ],
  [
    'pg_settings behind EXPLAIN',
    `EXPLAIN ANALYZE UPDATE pg_settings SET setting = '77s' WHERE name = 'statement_timeout'`,
  ],
  ['a common table expression', `WITH x AS (SELECT set_config('statement_timeout', '77s', false)) SELECT * FROM x`],
  ['COPY', `COPY (SELECT set_config('statement_timeout', '77s', false)) TO STDOUT`],
  ['a cursor', `BEGIN; DECLARE c CURSOR FOR SELECT set_config('statement_timeout', '77s', false); FETCH c; COMMIT`],
  ['a user function', `SELECT assign('statement_timeout', '77s')`],
  ['DO', `DO $$ BEGIN PERFORM set_config('statement_timeout', '77s', false); END $$`],
] as const) {
  t.test(`a setting that is changed by way of ${title} does not reach the next client`, async (t) => {
    const proxy = await startPool(t, { size: 2 });
    const [a, b] = [await open(t, proxy.port), await open(t, proxy.port)];
    const messages = await a.ask(send.query(sql));
    t.same(sqlstates(messages), []);
    t.same(await b.rows('SHOW statement_timeout'), [['0']]);
    t.same(await a.rows('SHOW statement_timeout'), [['77s']]);
  });
}

t.test('a user function named like a word of the grammar does not reach the next client', async (t) => {
  const proxy = await startPool(t, { size: 2 });
  const [a, b] = [await open(t, proxy.port), await open(t, proxy.port)];
  t.same(await a.rows(`SELECT range('over')`), [['over']]);
  t.same(await b.rows(`SELECT coalesce(current_setting('app.tenant', true), '')`), [['']]);
});

t.test('a session that turns standard_conforming_strings off cannot hide a setting from the proxy', async (t) => {
  const proxy = await startPool(t, { size: 2 });
  const [a, b] = [await open(t, proxy.port), await open(t, proxy.port)];
  await a.rows('BEGIN');
  await a.rows('SET standard_conforming_strings = off');
  await a.rows(String.raw`SELECT '\'', set_config('statement_timeout', '77s', false), '\''`);
  await a.rows('COMMIT');
  t.same(await b.rows('SHOW statement_timeout'), [['0']]);
  t.same(await a.rows('SHOW statement_timeout'), [['77s']]);
});

for (const more of [-1, 0, 1, 5, 6]) {
  t.test(`what a text of 1 MiB and ${more} bytes does at its end does not reach the next client`, async (t) => {
    const proxy = await startPool(t);
    const [a, b] = [await open(t, proxy.port), await open(t, proxy.port)];
    const [head, tail] = ['SELECT 1', '; SET statement_timeout = 7777'];
    const size = 1024 * 1024 + more - 6; // Without header and zero.
    const whole = send.query(head + ' '.repeat(size - head.length - tail.length) + tail);
    t.equal(whole.length, 1024 * 1024 + more);
    t.equal(types(await a.ask(whole)), 'TDCCZ');
    t.same(await a.rows('SHOW statement_timeout'), [['7777ms']]);
    a.end();
    t.same(await b.rows('SHOW statement_timeout'), [['0']]);
  });
}

for (const sql of [
  "SELECT 0x1e--'\n; SET statement_timeout = 7777 --'",
  "SELECT 1 WHERE 2 > 1e--'\n0; SET statement_timeout = 7777 --'",
  'SELECT 1a$$; SET statement_timeout = 7777; SELECT 2 a$$',
  'SELECT 1_0$$; SET statement_timeout = 7777; SELECT 2 _0$$',
]) {
  t.test(`a number hides nothing from the proxy: ${sql}`, async (t) => {
    const proxy = await startPool(t);
    const [a, b] = [await open(t, proxy.port), await open(t, proxy.port)];
    // Versions differ on which of these they take.
    await a.ask(send.query(sql));
    a.end();
    t.same(await b.rows('SHOW statement_timeout'), [['0']]);
  });
}

t.test('names beyond ASCII are those that Postgres takes them for', async (t) => {
  const proxy = await startPool(t);
  const [a, b] = [await open(t, proxy.port), await open(t, proxy.port)];
  await a.ask([send.parse('été', 'SELECT 42'), send.sync()]);
  t.same(await a.rows('EXECUTE été'), [['42']]);
  t.same(await a.rows('EXECUTE éTé'), [['42']]);
  await a.rows("SET app.été = 'mine'");
  t.same(await b.rows("SELECT coalesce(current_setting('app.été', true), '')"), [['']]);
  t.same(await a.rows('SHOW app.été'), [['mine']]);
  await pinned(proxy, 0);
});

t.test('a startup option that Postgres does not take is answered with Postgres’s own error', async (t) => {
  const proxy = await startPool(t);
  const a = await open(t, proxy.port, { options: '-c statement_timeout=abc' });
  const messages = await a.ask(send.query('SELECT 1'));
  t.same(sqlstates(messages), ['22023']);
  const b = await open(t, proxy.port);
  t.same(await b.rows('SELECT 1'), [['1']]);
});

t.test('a client with a tiny statement_timeout does not disturb the one after it', async (t) => {
  const proxy = await startPool(t);
  const [a, b] = [await open(t, proxy.port), await open(t, proxy.port, { options: '-c work_mem=5MB' })];
  for (let lap = 0; lap < 100; lap++) {
    await a.ask(send.query('SET statement_timeout = 1'));
    t.same(await b.rows('SHOW work_mem'), [['5MB']]);
  }
});

t.test('a statement_timeout does not strike the settings of the next client', async (t) => {
  const proxy = await startPool(t);
  const a = await open(t, proxy.port, { options: '-c statement_timeout=1ms' });
  const b = await open(t, proxy.port, { options: '-c statement_timeout=1min' });
  // So many settings, and so long, that to set them takes longer than the time limit of the other one.
  const names = Array.from({ length: 150 }, (_, index) => `set_config('app.s${index}', repeat('x', 1000), false)`);
  await b.rows(`SELECT ${names.join(', ')}`);
  for (let lap = 0; lap < 5; lap++) {
    await a.ask(send.query('SELECT 1'));
    t.same(await b.rows('SHOW statement_timeout'), [['1min']]);
  }
});

/** Strikes every other connection of the server: which of them the pool uses for whom is its own affair. */
const CANCEL_ALL = `SELECT pg_cancel_backend(pid) FROM pg_stat_activity, generate_series(1, 3)
   WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()`;

t.test('a question that is cancelled is asked again, and pins nobody', async (t) => {
  const proxy = await startPool(t);
  const [a, b] = [await open(t, proxy.port), await open(t, proxy.port)];
  const killer = await open(t, postgres.port);
  let isOver = false;
  let refused = 0;
  const killing = (async () => {
    while (!isOver) await killer.rows(CANCEL_ALL);
  })();
  for (let lap = 0; lap < 400 || (refused === 0 && lap < 20_000); lap++) {
    const [state] = sqlstates(await a.ask(send.query(`SET work_mem = ${1024 + lap}`)));
    if (state !== undefined) refused++;
    await b.ask(send.query('SELECT 1'));
  }
  isOver = true;
  await killing;
  const { counts, pinned } = proxy.app.snapshot().pools[0]!;
  t.ok(refused > 0, `${refused} statements were struck`);
  t.same([counts.pins.setting, pinned], [0, 0]);
});

// --- Prepared statements ----------------------------------------------------------------------------------------

const run = (name: string) => [send.bind('', name), send.execute(''), send.sync()];

t.test('the same text means each client’s own tables (search_path)', async (t) => {
  const proxy = await startPool(t);
  const a = await open(t, proxy.port, { options: '-c search_path=s1' });
  const b = await open(t, proxy.port, { options: '-c search_path=s2' });
  for (const client of [a, b, a, b]) {
    await client.ask([send.parse('s', 'SELECT * FROM t'), send.sync()]);
    const messages = await client.ask(run('s'));
    t.equal(types(messages), '2DCZ');
    t.match(messages[1]?.body.toString('latin1', 6), client === a ? '1' : 'two');
    await client.ask([send.close('S', 's'), send.sync()]);
  }
});

t.test('a text whose tables are alike in every schema follows its client to another server', async (t) => {
  const proxy = await startPool(t, { size: 2 });
  const a = await open(t, proxy.port, { options: '-c search_path=s1' });
  const b = await open(t, proxy.port, { options: '-c search_path=s2' });
  await a.ask([send.parse('s', 'SELECT * FROM u'), send.describe('S', 's'), send.sync()]);
  await b.ask([send.parse('s', 'SELECT * FROM u'), send.sync()]);
  t.equal(types(await b.ask(run('s'))), '2CZ');
  await a.rows('BEGIN');
  t.equal(types(await b.ask(run('s'))), '2CZ');
  await a.rows('COMMIT');
});

for (const [name, first, second, sql] of [
  ['TimeZone', 'UTC', 'Asia/Tokyo', `SELECT extract(epoch FROM '2024-01-01 00:00'::timestamptz)::int::text`],
  ['DateStyle', 'ISO, MDY', 'ISO, DMY', `SELECT extract(month FROM '01/02/2024'::date)::text`],
] as const) {
  t.test(`a literal in a prepared statement is read with its client’s ${name}`, async (t) => {
    const proxy = await startPool(t);
    for (const value of [first, second]) {
      const client = await open(t, proxy.port, { [name]: value });
      const expected = await client.rows(sql);
      await client.ask([send.parse('s', sql), send.sync()]);
      const row = (await client.ask(run('s'))).find(({ type }) => type === 'D');
      t.equal(row?.body.toString('latin1', 6), expected[0]![0], value);
    }
  });
}

const EPOCH = `SELECT extract(epoch FROM '2026-01-02'::timestamptz)::int8`;
const NULLS = 'SELECT count(*) FROM (VALUES (1), (NULL)) v (i) WHERE i = NULL';
const TOKYO = send.query(`SET TimeZone = 'Asia/Tokyo'`);

/** What the statement `s` gives, which is prepared first if there is a text. */
async function answerOf(client: RawClient, sql?: string): Promise<string> {
  const messages = await client.ask([...(sql === undefined ? [] : [send.parse('s', sql)]), ...run('s')]);
  return readRow(messages.find(({ type }) => type === 'D')!.body);
}

const named = (sql: string) => [send.parse('s', sql), send.sync()];
const LOCAL = (name: string) => `SET LOCAL ${name} = on`;
for (const [title, sql, parts] of [
  ['in one packet with SET', EPOCH, [TOKYO, ...named(EPOCH)]],
  [
    'in one batch with SET',
    EPOCH,
    [send.parse('', `SET TimeZone = 'Asia/Tokyo'`), send.bind('', ''), send.execute(''), ...named(EPOCH)],
  ],
  [
    'behind COMMIT of what SET LOCAL has set',
    EPOCH,
    [send.query(`BEGIN; SET LOCAL TimeZone = 'Asia/Tokyo'; SELECT 1`), ...named(EPOCH), send.query('COMMIT')],
  ],
  [
    'behind SET LOCAL of what is not reported',
    NULLS,
    [send.query('BEGIN'), send.query(LOCAL('transform_null_equals')), ...named(NULLS), send.query('COMMIT')],
  ],
  [
    'behind BEGIN and SET LOCAL in one text',
    NULLS,
    [send.query(`BEGIN; SELECT 1; ${LOCAL('transform_null_equals')}`), ...named(NULLS), send.query('COMMIT')],
  ],
  [
    'behind SET of what is not reported',
    NULLS,
    [send.query('BEGIN'), send.query('SET transform_null_equals = on'), ...named(NULLS), send.query('COMMIT')],
  ],
  [
    'behind set_config',
    NULLS,
    [
      send.query('BEGIN'),
      send.query(`SELECT set_config('work_mem', '5MB', true)`),
      send.query(`SELECT set_config('transform_null_equals', 'on', true)`),
      ...named(NULLS),
      send.query('COMMIT'),
    ],
  ],
  [
    'behind set_config with the name as a parameter',
    NULLS,
    [
      send.query('BEGIN'),
      send.parse('', 'SELECT set_config($1, $2, true)'),
      send.bind('', '', ['transform_null_equals', 'on']),
      send.execute(''),
      send.sync(),
      ...named(NULLS),
      send.query('COMMIT'),
    ],
  ],
] as const) {
  for (const isAlone of [false, true])
    t.test(`a statement is not shared that was prepared ${title}${isAlone ? ', step by step' : ''}`, async (t) => {
      const proxy = await startPool(t);
      const [a, b] = [await open(t, proxy.port), await open(t, proxy.port)];
      if (isAlone)
        for (const part of parts) {
          a.write(part);
          if (![0x50, 0x42, 0x45].includes(part[0]!)) await a.until('Z');
        }
      else await a.ask([...parts], parts.filter((part) => [0x51, 0x53].includes(part[0]!)).length);
      const [[truth]] = (await b.rows(sql)) as [[string]];
      t.equal(await answerOf(b, sql), truth);
    });
}

for (const [title, before, after] of [
  ['has changed a setting', `SET TimeZone = 'Asia/Tokyo'`, ''],
  ['has changed it for a transaction', `BEGIN; SET LOCAL TimeZone = 'Asia/Tokyo'`, 'COMMIT'],
] as const) {
  t.test(
    `a statement that its client takes to another server after it ${title} is not what others find there`,
    async (t) => {
      const proxy = await startPool(t, { size: 2 });
      const [a, b, c] = [await open(t, proxy.port), await open(t, proxy.port), await open(t, proxy.port)];
      t.equal(await answerOf(a, EPOCH), (await b.rows(EPOCH))[0]![0]);
      await c.rows('BEGIN; SELECT 1'); // Takes the server that has the statement.
      await a.rows(before);
      await answerOf(a);
      if (after !== '') await a.rows(after);
      t.equal(await answerOf(b, EPOCH), (await b.rows(EPOCH))[0]![0]);
      await c.rows('COMMIT');
    },
  );
}

t.test('settings that say nothing of what a text means keep nobody from sharing it', async (t) => {
  const proxy = await startPool(t);
  const clients = [await open(t, proxy.port), await open(t, proxy.port)];
  for (const client of clients) {
    await client.rows('BEGIN');
    for (const sql of [
      `SET LOCAL app.tenant = '1'`,
      `SET LOCAL statement_timeout = '1min'`,
      `SELECT set_config('app.user', '2', true)`,
    ])
      await client.rows(sql);
    t.equal(types(await client.ask(named('SELECT 42'))), '1Z');
    await client.rows('COMMIT');
  }
  t.equal(proxy.app.snapshot().pools[0]!.counts.serverParses, 1);
});

t.test('now in a prepared statement is the time of its own client’s Parse', async (t) => {
  const proxy = await startPool(t);
  const sql = `SELECT extract(epoch FROM 'now'::timestamptz)`;
  const parsed: number[] = [];
  for (let lap = 0; lap < 2; lap++) {
    const client = await open(t, proxy.port);
    const [[now]] = (await client.rows('SELECT extract(epoch FROM now())')) as [[string]];
    await client.ask([send.parse('s', sql), send.sync()]);
    const row = (await client.ask(run('s'))).find(({ type }) => type === 'D');
    parsed.push(Number(readRow(row!.body)));
    t.ok(parsed.at(-1)! >= Number(now), 'not before it was asked for');
    client.end();
  }
  t.ok(parsed[1]! > parsed[0]!);
});

t.test('an unnamed statement outlives what the proxy does on the server for others and for settings', async (t) => {
  const proxy = await startPool(t);
  const [a, b] = [await open(t, proxy.port), await open(t, proxy.port, { application_name: 'b' })];
  await a.ask([send.parse('', 'SELECT 1'), send.sync()]);
  await b.ask([send.parse('s', 'SELECT 2'), ...run('s')]);
  t.equal(types(await a.ask(run(''))), '2DCZ', 'after another client with other settings');
  await a.ask([send.parse('s', `SET statement_timeout = '5s'`), ...run('s')]);
  t.equal(types(await a.ask(run(''))), '2DCZ', 'after SET in a named statement');
});

t.test('no client can run or drop the prepared statements of another', async (t) => {
  const proxy = await startPool(t);
  const [a, b] = [await open(t, proxy.port), await open(t, proxy.port)];
  await a.ask([send.parse('s', 'SELECT 42'), send.sync()]);
  const [[name]] = (await b.rows('SELECT name FROM pg_prepared_statements')) as [[string]];
  t.same(sqlstates(await b.ask(send.query(`EXECUTE "${name}"`))), ['26000']);
  t.same(sqlstates(await b.ask(send.query(`DEALLOCATE "${name}"`))), ['26000']);
  t.same(sqlstates(await b.ask(send.query('EXECUTE s'))), ['26000']);
  t.equal(types(await a.ask(run('s'))), '2DCZ');
});

for (const [sql, expected] of [
  ['EXECUTE s', 'TDCZ'],
  ['EXPLAIN EXECUTE s', 'TDCZ'],
  ['CREATE TABLE made AS EXECUTE s', 'CZ'],
  ['DEALLOCATE s', 'CZ'],
] as const) {
  t.test(`a statement of the protocol can be named in SQL: ${sql}`, async (t) => {
    const proxy = await startPool(t);
    const a = await open(t, proxy.port);
    await a.ask([send.parse('s', 'SELECT 42 AS answer'), send.sync()]);
    t.match(types(await a.ask(send.query(sql))), new RegExp(`^${expected.replace('D', 'D+')}$`));
    await a.rows('DROP TABLE IF EXISTS made');
  });
}

script(
  'PREPARE, EXECUTE and DEALLOCATE are each client’s own',
  `a PREPARE p AS SELECT 'a'
   b PREPARE p AS SELECT 'b'
   a EXECUTE p
   b EXECUTE p
   a DEALLOCATE p
   a EXECUTE p
   b EXECUTE p
   b DEALLOCATE ALL
   b EXECUTE p
   c EXECUTE p`,
  { pool: { size: 3 } },
);

// --- What pins --------------------------------------------------------------------------------------------------

const pins = [
  ['LISTEN', 'listen', ['SELECT 1; LISTEN ch'], 'UNLISTEN ch'],
  ['LISTEN, with UNLISTEN *', 'listen', ['SELECT 1; LISTEN ch', 'LISTEN dh'], 'UNLISTEN *'],
  ['a session advisory lock', 'lock', ['SELECT pg_advisory_lock(1)'], 'SELECT pg_advisory_unlock(1)'],
  ['a shared advisory lock', 'lock', ['SELECT pg_try_advisory_lock_shared(1, 2)'], 'SELECT pg_advisory_unlock_all()'],
  ['a temporary table', 'temp', ['CREATE TEMP TABLE tt (i int)'], 'DROP TABLE tt'],
  ['a temporary table of a query', 'temp', ['CREATE TEMPORARY TABLE tt AS SELECT 1'], 'DROP TABLE tt'],
  ['SELECT INTO TEMP', 'temp', ['SELECT 1 AS i INTO TEMP tt'], 'DROP TABLE tt'],
  ['a temporary view', 'temp', ['CREATE TEMP VIEW tv AS SELECT 1'], 'DROP VIEW tv'],
  ['a temporary sequence', 'temp', ['CREATE TEMP SEQUENCE ts'], 'DROP SEQUENCE ts'],
  ['a table in pg_temp', 'temp', ['CREATE TABLE pg_temp.tt (i int)'], 'DROP TABLE tt'],
  [
    'a table in a search_path of pg_temp',
    'temp',
    ['SET search_path = pg_temp', 'CREATE TABLE tt (i int)'],
    'DROP TABLE tt',
  ],
  [
    'a function in pg_temp',
    'temp',
    [`CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'`],
    'DROP FUNCTION pg_temp.f()',
  ],
  [
    'a table in a search_path of pg_temp for one transaction',
    'temp',
    ['BEGIN; SET LOCAL search_path = pg_temp; CREATE TABLE tt (i int); COMMIT'],
    'DROP TABLE tt',
  ],
  ['a type in pg_temp', 'temp', [`CREATE TYPE pg_temp.e AS ENUM ('x')`], 'DROP TYPE pg_temp.e'],
  [
    'PREPARE twice in one message',
    'prepare',
    ['PREPARE p AS SELECT 1; DEALLOCATE p; PREPARE p AS SELECT 2'],
    'DEALLOCATE p',
  ],
  [
    'PREPARE of more text than is kept',
    'prepare',
    ['BEGIN', ...['p', 'q'].map((name) => `PREPARE ${name} AS SELECT '${'x'.repeat(600_000)}'`), 'COMMIT'],
    'DEALLOCATE ALL',
  ],
  [
    'a thousand PREPAREs in one message',
    'prepare',
    [Array.from({ length: 1_000 }, (_, n) => `PREPARE p${n} AS SELECT ${n}`).join('; ')],
    'DEALLOCATE ALL',
  ],
  [
    'PREPARE of a name like ours',
    'prepare',
    ['PREPARE pgweir_1 AS SELECT 1', 'EXECUTE pgweir_1'],
    'DEALLOCATE pgweir_1',
  ],
  [
    'PREPARE beside a temporary table',
    'prepare',
    ['CREATE TEMP TABLE tt (i int); PREPARE p AS TABLE tt'],
    'DISCARD ALL',
  ],
  ['a cursor WITH HOLD', 'hold', ['DECLARE c CURSOR WITH HOLD FOR SELECT 1'], 'CLOSE c'],
  ['set_config with a computed name', 'setting', [`SELECT set_config('app.' || 'x', '1', false)`], 'DISCARD ALL'],
  ['setseed', 'seed', ['SELECT setseed(0.5)'], 'DISCARD ALL'],
  ['DO', 'function', ['DO $$ BEGIN NULL; END $$'], 'DISCARD ALL'],
  ['a user function', 'function', ['SELECT plus(1)'], 'DISCARD ALL'],
  ['DISCARD ALL after LISTEN', 'listen', ['SELECT 1; LISTEN ch'], 'DISCARD ALL'],
  ['DISCARD TEMP', 'temp', ['CREATE TEMP TABLE tt (i int)'], 'DISCARD TEMP'],
] as const;

for (const [title, reason, made, undone] of pins) {
  t.test(`${title} pins its client until undone`, async (t) => {
    const proxy = await startPool(t);
    const a = await open(t, proxy.port);
    for (const sql of made) await a.rows(sql);
    await until(() => pinsOf(proxy)[reason] === 1, `a pin counted by its reason, ${reason}`);
    await pinned(proxy, 1);
    await a.rows(undone);
    await pinned(proxy, 0);
    const b = await open(t, proxy.port);
    t.same(await b.rows('SELECT 1'), [['1']], 'the server serves others');
  });
}

t.test('CALL pins, LOAD pins for good', async (t) => {
  const proxy = await startPool(t, { size: 2 });
  const [a, b] = [await open(t, proxy.port), await open(t, proxy.port)];
  await a.ask(send.query(`LOAD 'auto_explain'; SELECT 1/0`));
  await pinned(proxy, 1);
  t.equal(pinsOf(proxy).load, 1, 'an error does not undo LOAD');
  await a.rows('DISCARD ALL');
  await b.ask(send.query('CALL commits()'));
  await pinned(proxy, 2);
  t.equal(pinsOf(proxy).function, 1);
});

for (const [title, statements] of [
  ['a temporary table that is dropped on commit', ['BEGIN', 'CREATE TEMP TABLE tt (i int) ON COMMIT DROP', 'COMMIT']],
  ['a temporary table that is rolled back', ['BEGIN', 'CREATE TEMP TABLE tt (i int)', 'ROLLBACK']],
  ['LISTEN that is rolled back', ['BEGIN', 'LISTEN ch', 'ROLLBACK']],
  [
    'a lock of a transaction',
    ['SELECT pg_advisory_xact_lock(1)', 'BEGIN', 'SELECT pg_try_advisory_xact_lock(2)', 'COMMIT'],
  ],
  ['a cursor of a transaction', ['BEGIN', 'DECLARE c CURSOR FOR SELECT 1', 'FETCH c', 'COMMIT']],
  [
    'PREPARE of a name beyond ASCII',
    ['PREPARE Été AS SELECT 1', 'EXECUTE Été', 'DEALLOCATE Été', 'PREPARE "É" AS SELECT 1', 'EXECUTE É'],
  ],
  [
    'PREPARE',
    ['PREPARE p AS SELECT 1', 'EXECUTE p', 'BEGIN', 'PREPARE q (int) AS SELECT $1', 'EXECUTE q(1)', 'COMMIT'],
  ],
  ['NOTIFY', [`NOTIFY ch, 'x'`, `SELECT pg_notify('ch', 'y')`]],
  ['a statement that fails', ['SELECT 1/0', 'LISTEN', 'CREATE TEMP TABLE', 'PREPARE x AS SELECT nothing']],
] as const) {
  t.test(`${title} does not pin`, async (t) => {
    const proxy = await startPool(t);
    const a = await open(t, proxy.port);
    for (const sql of statements) await a.ask(send.query(sql));
    await pinned(proxy, 0);
    t.same(
      Object.entries(pinsOf(proxy)).filter(([, count]) => count > 0),
      [],
    );
  });
}

t.test('user functions are judged by their bodies when there is a control connection', async (t) => {
  const proxy = await startPool(t, { size: 2 }, { database: { control: { user: 'postgres' } } });
  const a = await open(t, proxy.port);
  await until(async () => {
    const before = pinsOf(proxy).function;
    await a.rows('DISCARD ALL');
    await a.rows('SELECT plus_too(1), plus(1)');
    await until(
      () => [...proxy.app.snapshot().sessions].every(({ state, pins }) => state === 'idle' || pins.length > 0),
      'a verdict',
    );
    return pinsOf(proxy).function === before;
  }, 'harmless functions to be known as such');
  t.equal(proxy.app.snapshot().pools[0]!.pinned, 0);
  const before = pinsOf(proxy).function;
  await a.rows(`SELECT assign('app.tenant', 'mine')`);
  await pinned(proxy, 1);
  t.equal(pinsOf(proxy).function, before + 1);
  const b = await open(t, proxy.port);
  t.same(await b.rows(`SELECT coalesce(current_setting('app.tenant', true), '')`), [['']]);
});

/** Not alone in its message: that is not for the connection that listens for all. */
const LISTEN = 'SELECT 1; LISTEN ch';

t.test('beyond pinnedMax a client is refused and stays usable', async (t) => {
  const proxy = await startPool(t, { size: 2, pinnedMax: '50%' });
  const [a, b] = [await open(t, proxy.port), await open(t, proxy.port)];
  await a.rows(LISTEN);
  await pinned(proxy, 1);
  const simple = await b.ask(send.query(LISTEN));
  t.equal(types(simple), 'EZ');
  t.same(sqlstates(simple), ['53000']);
  t.match(simple[0]!.body.toString(), 'reason=pinned');
  t.same(await b.rows('SELECT 1'), [['1']]);
  const extended = await b.ask([send.parse('s', 'SELECT pg_advisory_lock(1)'), ...run('s')]);
  t.equal(types(extended), 'EZ');
  t.same(sqlstates(extended), ['53000']);
  t.equal(types(await b.ask([send.parse('s', 'SELECT 1'), ...run('s')])), '12DCZ');
  t.equal(proxy.app.snapshot().pools[0]!.counts.refused.pinned, 2);
  await a.rows('UNLISTEN *');
  await pinned(proxy, 0);
  await b.rows(LISTEN);
  await pinned(proxy, 1);
});

for (const [title, sql] of [
  ['temporary tables', 'CREATE TEMP TABLE tt (i int)'],
  ['user functions', 'SELECT plus(1)'],
] as const) {
  t.test(`pinnedMax also holds for ${title}, which only the parser sees`, async (t) => {
    const proxy = await startPool(t, { size: 2, pinnedMax: '50%', waitMax: '1s' });
    const clients = await Promise.all([1, 2].map(() => open(t, proxy.port)));
    const [a, b] = clients as [RawClient, RawClient];
    await a.rows(sql);
    await pinned(proxy, 1);
    t.same(sqlstates(await b.ask(send.query(sql))), ['53000']);
    t.equal(proxy.app.snapshot().pools[0]!.pinned, 1);
  });
}

t.test('currval and lastval never tell what another client has drawn', async (t) => {
  const proxy = await startPool(t, { size: 2 });
  const [a, b] = [await open(t, proxy.port), await open(t, proxy.port)];
  const [[drawn]] = (await a.rows(`SELECT nextval('sq')`)) as [[string]];
  await b.rows(`SELECT nextval('sq')`);
  const messages = await a.ask(send.query(`SELECT currval('sq')`));
  t.ok(
    sqlstates(messages)[0] === '55000' || summary(messages).includes(drawn),
    `its own ${drawn}, or an error; got ${JSON.stringify(summary(messages))}`,
  );
});

// --- The end of a client ----------------------------------------------------------------------------------------

const everything = `SET statement_timeout = '77s'; SET app.tenant = 'gone'; SET TimeZone = 'Asia/Tokyo'; LISTEN ch;
  CREATE TEMP TABLE tt (i int); PREPARE p AS SELECT 1; SELECT pg_advisory_lock(5); SET ROLE bob;
  DECLARE c CURSOR WITH HOLD FOR SELECT 1; SELECT setseed(0.1)`;

const traces = `SELECT current_setting('statement_timeout'), coalesce(current_setting('app.tenant', true), ''),
  current_setting('TimeZone') = 'Asia/Tokyo', (SELECT count(*) FROM pg_listening_channels()), to_regclass('tt'),
  (SELECT count(*) FROM pg_prepared_statements WHERE from_sql), (SELECT count(*) FROM pg_cursors WHERE is_holdable),
  (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()), current_user`;
const none = [['0', '', 'f', '0', null, '0', '0', '0', 'postgres']];

for (const [title, leave] of [
  ['says goodbye', (client: RawClient) => client.write(send.terminate())],
  ['vanishes', (client: RawClient) => client.end()],
  [
    'vanishes in a transaction',
    async (client: RawClient) => {
      await client.rows('BEGIN');
      await client.rows(`SET lock_timeout = '5s'`);
      client.end();
    },
  ],
  [
    'vanishes in a failed transaction',
    async (client: RawClient) => {
      await client.ask(send.query('BEGIN; SELECT 1/0'));
      client.end();
    },
  ],
  [
    'vanishes while a statement runs',
    async (client: RawClient) => {
      client.write(send.query('SELECT pg_sleep(30)'));
      const direct = await RawClient.open(postgres.port);
      const isRunning = `SELECT 1 FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(30)' AND state = 'active'`;
      await until(async () => (await direct.rows(isRunning)).length > 0, 'the statement to run');
      direct.end();
      client.end();
    },
  ],
] as const) {
  t.test(`a client that ${title} leaves nothing to the next one on its server`, async (t) => {
    const proxy = await startPool(t);
    const a = await open(t, proxy.port);
    await a.rows(everything);
    const pid = await a.rows('SELECT pg_backend_pid()');
    await leave(a);
    const b = await open(t, proxy.port);
    t.same(await b.rows('SELECT pg_backend_pid()'), pid, 'the server was kept');
    t.same(await b.rows(traces), none);
    await pinned(proxy, 0);
  });
}

t.test('a client that leaves before it has its answer leaves nothing either', async (t) => {
  const proxy = await startPool(t);
  for (const sql of [everything, `SET statement_timeout = '77s'`, 'LISTEN ch', 'CREATE TEMP TABLE tt (i int)']) {
    const a = await open(t, proxy.port);
    a.write(send.query(sql), send.terminate());
    await a.closed();
    const b = await open(t, proxy.port);
    t.same(await b.rows(traces), none, sql);
    b.end();
    await until(() => proxy.app.snapshot().sessions.size === 0, 'the clients to be gone');
  }
});

t.test('mode session keeps the server and cleans it afterwards', async (t) => {
  const proxy = await startPool(t, { mode: 'session', waitMax: '5s' });
  const a = await open(t, proxy.port);
  await a.rows(everything);
  const [[pid]] = (await a.rows('SELECT pg_backend_pid()')) as [[string]];
  t.equal(proxy.app.snapshot().pools[0]!.pinned, 0, 'asked for, not suffered');
  const b = await open(t, proxy.port);
  const answer = b.rows('SELECT pg_backend_pid()');
  await until(() => proxy.app.snapshot().pools[0]!.waiters.size === 1, 'the second client to wait');
  t.same(await a.rows('SELECT pg_backend_pid()'), [[pid]]);
  a.write(send.terminate());
  t.same(await answer, [[pid]]);
  t.same(await b.rows(traces), none);
});

// --- Anything in any order --------------------------------------------------------------------------------------

interface Step {
  client: number;
  /** Runs in one transaction that ends like this; null: each statement on its own. */
  end: 'COMMIT' | 'ROLLBACK' | null;
  statements: string[];
}

const settingValues: Record<string, string[]> = {
  statement_timeout: [`'3s'`, `'4s'`, 'DEFAULT'],
  work_mem: [`'5MB'`, 'DEFAULT'],
  'app.tenant': [`'one'`, `'two'`],
  TimeZone: [`'Asia/Tokyo'`, `'UTC'`, 'DEFAULT'],
  DateStyle: [`'German'`, `'ISO, DMY'`, 'DEFAULT'],
  search_path: ['s1, s2', `'$user', public`, 'DEFAULT'],
  application_name: [`'x'`, 'DEFAULT'],
  role: ['bob', 'none'],
  default_transaction_isolation: [`'serializable'`, 'DEFAULT'],
};

/** Of names that no startup asks for: RESET and SET LOCAL of one name in one transaction have a test of their own. */
const locals = ['lock_timeout = 5000', `IntervalStyle = 'iso_8601'`, `app.local = 'x'`].map(
  (set) => `SET LOCAL ${set}`,
);

const setting = fc.constantFrom(...Object.keys(settingValues)).chain((name) =>
  fc.oneof(
    {
      weight: 5,
      arbitrary: fc.constantFrom(...settingValues[name]!.map((value) => `SET ${name} = ${value}`)),
    },
    { weight: 2, arbitrary: fc.constantFrom(...locals) },
    { weight: 2, arbitrary: fc.constant(`RESET ${name}`) },
    {
      weight: 1,
      arbitrary: fc
        .constantFrom('true', 'false')
        .map((isLocal) => `SELECT set_config('app.tenant', 'set', ${isLocal})`),
    },
  ),
);
const wholesale = fc.constantFrom(
  'RESET ALL',
  'DISCARD ALL',
  'RESET ROLE; SET work_mem = 100',
  'SET TIME ZONE DEFAULT',
);
const failure = fc.constantFrom('SELECT 1/0', 'SET nonsense = 1', `SET app.tenant = 'undone'; SELECT 1/0`);
const savepoint = fc.constantFrom('SAVEPOINT x', 'ROLLBACK TO x', 'RELEASE x');
const pin = fc.constantFrom(
  // Alone in its message it would not be on the client's own server (pg_listening_channels is a documented difference).
  'SELECT 1; LISTEN ch',
  'SELECT 1; LISTEN dh',
  'UNLISTEN ch',
  'UNLISTEN *',
  'CREATE TEMP TABLE tt (i int)',
  'CREATE TEMP TABLE td (i int) ON COMMIT DROP',
  'DROP TABLE IF EXISTS pg_temp.tt',
  'SELECT pg_try_advisory_lock(CLIENT)',
  'SELECT pg_try_advisory_xact_lock(10 + CLIENT)',
  'SELECT pg_advisory_unlock(CLIENT)',
  'SELECT pg_advisory_unlock_all()',
  `PREPARE p AS SELECT 'p'`,
  `PREPARE q AS SELECT set_config('app.tenant', 'q', false)`,
  'EXECUTE p',
  'EXECUTE q',
  'DEALLOCATE p',
  'DEALLOCATE ALL',
  'DECLARE h CURSOR WITH HOLD FOR SELECT 1',
  'CLOSE h',
  `DO $$ BEGIN PERFORM set_config('app.tenant', 'do', false); END $$`,
  `SELECT public.assign('work_mem', '6MB')`,
);

const seen = `SELECT ${[...Object.keys(settingValues), 'lock_timeout', 'IntervalStyle', 'app.local']
  .map((name) => `coalesce(current_setting('${name}', true), '')`)
  .join(', ')}, current_user, to_regclass('pg_temp.tt'), to_regclass('pg_temp.td'),
  (SELECT string_agg(c, ' ' ORDER BY c) FROM pg_listening_channels() c),
  (SELECT string_agg(objid::text, ' ' ORDER BY objid) FROM pg_locks
    WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
  (SELECT string_agg(name, ' ' ORDER BY name) FROM pg_cursors WHERE is_holdable)`;

const startupChoices: Record<string, string>[] = [
  {},
  { application_name: 'mine', TimeZone: 'Europe/Berlin' },
  { options: '-c statement_timeout=7s -c work_mem=8MB -c search_path=s2 -c app.tenant=start' },
];

/** What three clients answer and see, step by step. */
async function live(port: number, database: string, startups: number[], steps: Step[]): Promise<string[]> {
  const clients: RawClient[] = [];
  const log: string[] = [];
  try {
    for (const choice of startups) clients.push(await RawClient.open(port, { database, ...startupChoices[choice] }));
    for (const { client, end, statements } of steps) {
      const at = client % clients.length;
      for (const sql of end === null ? statements : ['BEGIN', ...statements, end]) {
        log.push(`${at} ${sql} → ${await give(clients[at]!, sql.replace('CLIENT', String(at)), false)}`);
      }
      for (const [index, each] of clients.entries()) log.push(`${index} sees ${await give(each, seen, false)}`);
    }
  } finally {
    for (const client of clients) client.end();
  }
  return log;
}

const stepOf = (statement: fc.Arbitrary<string>): fc.Arbitrary<Step> =>
  fc.record({
    client: fc.nat(2),
    end: fc.constantFrom(null, 'COMMIT' as const, 'ROLLBACK' as const),
    statements: fc.array(statement, { minLength: 1, maxLength: 4 }),
  });

for (const [title, size, statement] of [
  ['settings through a single server', 1, fc.oneof({ weight: 8, arbitrary: setting }, wholesale, failure, savepoint)],
  [
    'settings and what pins, a server for each',
    3,
    fc.oneof({ weight: 3, arbitrary: setting }, { weight: 4, arbitrary: pin }, wholesale, failure, savepoint),
  ],
] as const) {
  t.test(`whatever clients do, each sees what it would see alone: ${title}`, async (t) => {
    const proxy = await startPool(t, { size, waitMax: '10s' });
    const isSame = fc.asyncProperty(
      fc.array(fc.nat(startupChoices.length - 1), { minLength: 2, maxLength: 3 }),
      fc.array(stepOf(statement), { minLength: 1, maxLength: 6 }),
      async (startups, steps) => {
        const [actual, expected] = await Promise.all([
          live(proxy.port, 'postgres', startups, steps),
          live(postgres.port, ORACLE, startups, steps),
        ]);
        const at = actual.findIndex((line, index) => line !== expected[index]);
        if (at >= 0)
          throw new Error(`${actual.slice(0, at).join('\n')}\nproxy:  ${actual[at]}\ndirect: ${expected[at]}`);
        await until(() => proxy.app.snapshot().sessions.size === 0, 'the clients to be gone');
      },
    );
    const seed = Number(process.env.PGWEIR_SEED ?? 20_261_123);
    await fc.assert(isSame, { numRuns: 60, seed, interruptAfterTimeLimit: 20_000, endOnFailure: true });
    t.pass(`seed ${seed}`);
  });
}

t.test('no bug was counted', async (t) => {
  t.equal(
    proxies.reduce((sum, proxy) => sum + proxy.bugs(), 0),
    0,
  );
});
