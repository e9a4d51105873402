/** sql/shape and sql/effects: what tokens alone tell of a statement. */
import fc from 'fast-check';
import t from 'tap';
import { type Effects, findEffects } from '../../src/sql/effects.ts';
import { cut, numberOf, shapeOf, Tokens } from '../../src/sql/shape.ts';

const tokens = new Tokens();

function find(sql: string) {
  const bytes = Buffer.from(sql);
  cut(tokens, bytes, 0, bytes.length);
  return findEffects(tokens);
}

function number(sql: string): number {
  const bytes = Buffer.from(sql);
  cut(tokens, bytes, 0, bytes.length);
  return numberOf(tokens);
}

function shape(sql: string): string {
  const bytes = Buffer.from(sql);
  cut(tokens, bytes, 0, bytes.length);
  return shapeOf(tokens);
}

t.test('plain statements are harmless, proved from tokens alone', async (t) => {
  const plain = [
    'SELECT 1',
    'select a.b, count(*), coalesce(x, $1) from t where id in (1,2,3) and name = any($2)',
    "SELECT 'set_config(''a'',''b'',false)' -- LISTEN x",
    "SELECT $$ ; LISTEN x $$, E'\\'; LISTEN x --'",
    'INSERT INTO s.t (a, b) VALUES ($1, $2) ON CONFLICT (a) DO UPDATE SET b = excluded.b RETURNING id',
    'WITH x AS (SELECT 1 AS a) UPDATE t SET a = x.a FROM x',
    'DELETE FROM t WHERE a < now() - interval $1',
    'MERGE INTO t USING s ON (t.a = s.a) WHEN MATCHED THEN DELETE',
    'BEGIN',
    'COMMIT; BEGIN ISOLATION LEVEL SERIALIZABLE',
    'SAVEPOINT a; ROLLBACK TO a',
    'SET LOCAL statement_timeout = 1; SET TRANSACTION READ ONLY; SET CONSTRAINTS ALL DEFERRED',
    "SELECT set_config('a.b', $1, true)",
    'SELECT pg_advisory_xact_lock(1)',
    'COPY s.t (a, b) TO STDOUT',
    'SHOW ALL',
    "NOTIFY c, 'x'",
    'PREPARE TRANSACTION $1',
    '',
    ';;',
    '/* a /* nested */ LISTEN x */ SELECT 1',
    'SELECT 1::numeric(10,2), CAST(a AS varchar(3)) FROM f AS t (a)',
    'DECLARE c CURSOR FOR SELECT 1',
  ];
  for (const sql of plain) t.same(find(sql), { effects: null, unknown: [], needsParser: false }, sql);
});

t.test('effects are found, in any statement of a text and however it is written', async (t) => {
  const expected: [string, Partial<Effects>][] = [
    ['SET a = 1', { settings: ['a'] }],
    ['set session "App.Tenant" to x; select 1', { settings: ['app.tenant'] }],
    ['SET app.tenant = 7', { settings: ['app.tenant'] }],
    ["SET TIME ZONE 'UTC'", { settings: ['timezone'] }],
    ['SET ROLE x', { settings: ['role'] }],
    ['SET SESSION AUTHORIZATION x', { settings: ['session_authorization', 'role'] }],
    ['RESET search_path', { resets: ['search_path'] }],
    ['RESET ALL', { isResetAll: true }],
    ["SELECT set_config('search_path', '', false)", { settings: ['search_path'] }],
    ["SELECT pg_catalog.set_config('A', x, y) FROM t", { settings: ['a'] }],
    ['SELECT "set_config"($1, $2, false)', { pins: ['setting'] }],
    ["SELECT set_config(name, 'view', false) FROM pg_settings WHERE name = 'A'", { settings: ['a'], pins: [] }],
    ["SELECT set_config(name, '1', false) FROM s UNION SELECT name FROM t WHERE name = 'a'", { pins: ['setting'] }],
    ['LISTEN x', { isProbed: true }],
    ['SELECT 1; listen x', { isProbed: true }],
    ['UNLISTEN *', { isUndoing: true }],
    ['SELECT pg_try_advisory_lock(1, 2)', { isProbed: true }],
    ['SELECT pg_advisory_unlock_all()', { isUndoing: true }],
    ['PREPARE p AS SELECT 1', { isProbed: false, isChecked: true }],
    ['PREPARE p AS SELECT 1; DEALLOCATE p; PREPARE p AS SELECT 2', { isProbed: true }],
    ['SELECT pg_cancel_backend(1), 2', { isSignal: true }],
    ['SELECT pg_catalog.pg_terminate_backend($1)', { isSignal: true }],
    ['DECLARE c CURSOR WITH HOLD FOR SELECT 1', { isProbed: true }],
    ["LOAD 'auto_explain'", { pins: ['load'] }],
    ['DO $$ begin end $$', { pins: ['function'] }],
    ["SELECT currval('s')", { pins: ['sequence'] }],
    ['SELECT setseed(0.5)', { pins: ['seed'] }],
    ['EXPLAIN ANALYZE SELECT pg_advisory_lock(1)', { isProbed: true }],
    ["COPY (SELECT set_config('a','b',false)) TO STDOUT", { settings: ['a'] }],
    ['(SELECT pg_advisory_lock(1))', { isProbed: true }],
    ["UPDATE pg_settings SET setting = 'x' WHERE name = 'y'", { pins: ['setting'] }],
    ['DISCARD ALL', { isProbed: true }],
    ["SET session.tenant = 'x'", { settings: ['session.tenant'] }],
    ['SET local.x TO 1; SET time.x = 1; SET seed.x = 1', { settings: ['local.x', 'time.x', 'seed.x'], pins: [] }],
    ["SELECT set_config('seed', '0.5', false)", { pins: ['seed'] }],
    ["SELECT E'a'\n'\\'', pg_advisory_lock(1), 'z'", { isProbed: true }],
    ["SELECT E'a'\n  -- comment\n '\\'', pg_advisory_lock(1), 'z', pg_advisory_lock(2)", { isProbed: true }],
    ['EXPLAIN ANALYZE UPDATE ONLY pg_catalog."pg_settings" SET setting = 1', { pins: ['setting'] }],
    ['COPY s.t (a, b) FROM STDIN', { isCopyIn: true }],
    ['CREATE FUNCTION f() RETURNS int LANGUAGE sql RETURN 1', { isChecked: true }],
  ];
  for (const [sql, part] of expected) t.match(find(sql).effects, part, sql);
});

t.test('SET … TO DEFAULT resets what it names, and nothing that stands before it in the text', async (t) => {
  t.match(find('SET a = 1; SET b = DEFAULT; SET SESSION c TO DEFAULT').effects, {
    settings: ['a', 'b', 'c'],
    resets: ['b', 'c'],
  });
  t.match(find('SET a = DEFAULT;'.repeat(60_000)).effects, { settings: ['a'], resets: ['a'], pins: [] });
  t.match(find("LOAD 'a'; SET b = 1;".repeat(20_000)).effects, { settings: ['b'], pins: ['load'] });
});

t.test('names of prepared statements are found with their place', async (t) => {
  t.match(find('DEALLOCATE PREPARE "a""b"').effects?.references[0], {
    command: 'deallocate',
    name: 'a"b',
    start: 19,
    end: 25,
  });
  t.match(find('execute P1(2)').effects?.references[0], { command: 'execute', name: 'p1', start: 8, end: 10 });
  t.same(find('DEALLOCATE ALL').effects?.references, []);
});

t.test('names are folded as Postgres does it: A to Z', async (t) => {
  const latin = (text: string) => Buffer.from(text).toString('latin1');
  t.equal(find('EXECUTE ÉTé').effects?.references[0]?.name, latin('Été'));
  t.same(find("SET App.Été = 1; SELECT set_config('App.ÉTÉ', '1', false)").effects?.settings, [
    latin('app.Été'),
    latin('app.ÉtÉ'),
  ]);
  // A bit apart in UTF-8, and other tables.
  for (const [one, other] of ['éÉ', 'аА', '你佀'].map((pair) => [...pair])) {
    t.not(number(`SELECT 1 FROM ${one}`), number(`SELECT 1 FROM ${other}`), `${one} ${other}`);
  }
  t.equal(number('SELECT 1 FROM a_B'), number('select 2 from A_b'));
});

t.test('what tokens cannot prove is left to the parser', async (t) => {
  t.same(find('SELECT my_function(1), s.f(2)').unknown, ['my_function', 's.f']);
  t.same(find('SELECT "Lower"(x)').unknown, ['Lower']);
  for (const sql of ['SELECT 1 INTO TEMP x', 'CREATE TEMP TABLE x (a int)', 'ALTER TABLE x ADD y int']) {
    t.ok(find(sql).needsParser, sql);
  }
});

t.test('statements that differ in values only have one shape', async (t) => {
  t.equal(
    shape("select a from t where b in (1, 2,3) and c='x'"),
    shape("SELECT a FROM t WHERE b IN ($1) AND c = E'y' /* traceparent */"),
  );
  t.not(shape('select a from s.t'), shape('select a from r.t'));
});

/** The tokens of a text, from the one that begins at `from` on. */
function tokensOf(sql: string, from: number): [kind: number, start: number, end: number][] {
  const bytes = Buffer.from(sql);
  cut(tokens, bytes, 0, bytes.length);
  return Array.from(tokens.kinds.subarray(0, tokens.count), (kind, at): [number, number, number] => [
    kind,
    tokens.starts[at]!,
    tokens.ends[at]!,
  ]).filter(([, start]) => start >= from);
}

t.test('comments and strings begin and end in the same place, whatever number stands before them', async (t) => {
  const numbers = `0 42 1. .5 1.5 1e5 1E-5 1.e+5 .5e-3 1e 1.5e 0x1e 0X1E_F 0o17 0b1 1_000 1_0e5 1_0e 0x 1a 1e5a`.split(
    ' ',
  );
  const comment = fc.constantFrom("--'\n", '--$$\n', "/*'*/", "/* /* ' */ */", "-- /*'\n", '--');
  const piece = fc.oneof(
    comment,
    fc.constantFrom("'a'", "e'\\''", '$$a$$', '"a"', 'a', ';', ' ', '1', '-', '+', '/', '*'),
  );
  const rest = fc.tuple(comment, fc.array(piece, { maxLength: 8 })).map(([first, more]) => first + more.join(''));
  fc.assert(
    fc.property(fc.constantFrom(...numbers), rest, (number, text) => {
      const { length } = number;
      t.same(tokensOf(number + text, length), tokensOf(' '.repeat(length) + text, length), number + text);
    }),
    { numRuns: 2_000 },
  );
});

t.test('a number ends where every version of Postgres ends it, or an error of the name behind it', async (t) => {
  const cuts = (sql: string) => tokensOf(sql, 0).map(([, start, end]) => sql.slice(start, end));
  for (const number of ['1_000', '0x1E_F', '0o17', '0b01', '1.e+5', '.5e-3', '1.5E5', '1e-5', '1.5', '1_0e5'])
    t.same(cuts(`${number} 'a'`), [number, "'a'"]);
  t.same(cuts('1e-5-1e+'), ['1e-5', '-', '1', 'e', '+']);
  t.same(cuts('1into t'), ['1', 'into', 't']);
  t.same(cuts('1a$$ 1_0$$ 0x1$$ $$b$$'), ['1', 'a$$', '1_0$$', '0x1$$', '$$b$$']);
  t.same(cuts('1e5$$b$$'), ['1e5', '$$b$$']);
  t.same(cuts(String.raw`1e'\'b'`), ['1', String.raw`e'\'b'`]);
  t.ok(find('SELECT a FROM t WHERE b = 1into c').needsParser);
});

t.test('unfinished strings, comments and names end with the text', async (t) => {
  for (const sql of ["SELECT 'x", 'SELECT "x', 'SELECT $a$ x', '/* x', "E'\\", '$', '1e', '"'])
    t.doesNotThrow(() => find(sql), sql);
});
