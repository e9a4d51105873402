/** sql/read: which statements are reads that may share a server, and which of them are alike. */
import t from 'tap';
import { readKey } from '../../src/sql/read.ts';
import { cut, Tokens } from '../../src/sql/shape.ts';

const tokens = new Tokens();

function keyOf(sql: string): number {
  const bytes = Buffer.from(sql);
  cut(tokens, bytes, 0, bytes.length);
  return readKey(tokens);
}

t.test('reads have a number, the same for texts that differ in values, case, space and comments only', async (t) => {
  for (const alike of [
    ['SELECT a FROM t WHERE id = 1', 'select a from T where ID = -- comment\n 4711;', 'SELECT a FROM t WHERE id = $1'],
    ['SELECT a FROM t WHERE id IN (1)', 'SELECT a FROM t WHERE id IN (1, 2, 3)'],
    [`SELECT 'x'`, `SELECT $x$it's$x$`, 'SELECT 1.5e3'],
  ]) {
    const keys = alike.map(keyOf);
    t.ok(keys[0]! > 0);
    t.same(new Set(keys).size, 1, alike[0]!);
  }
});

t.test('different reads have different numbers', async (t) => {
  const texts = [
    ...[
      'SELECT a FROM t',
      'SELECT b FROM t',
      'SELECT a, b FROM t',
      'SELECT ab FROM t',
      'SELECT a FROM "T"',
      'SELECT 1',
    ],
    ...[
      'SELECT 1, a',
      'SELECT a, 1',
      'VALUES (1)',
      'TABLE t',
      'SELECT count(*) FROM t',
      'SELECT a + 1',
      'SELECT a - 1',
    ],
    ...['SELECT a FROM t WHERE b = 1', 'SELECT a FROM t WHERE b < 1', 'WITH x AS (SELECT 1) SELECT * FROM x'],
  ];
  const keys = texts.map(keyOf);
  t.notOk(keys.includes(0));
  t.equal(new Set(keys).size, texts.length);
});

t.test('what is more than a read, or more than one statement, is not shared', async (t) => {
  for (const sql of [
    ...[
      'SELECT a FROM t FOR UPDATE',
      'select a from t for no key update',
      'SELECT 1; SELECT 2',
      'BEGIN',
      'SHOW all',
      '',
    ],
    ...['WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x', 'SELECT * INTO x FROM t', 'UPDATE t SET a = 1'],
    ...[
      `SELECT nextval('s')`,
      'SELECT pg_catalog.pg_advisory_xact_lock(1)',
      'SELECT pg_sleep(1)',
      'SELECT lo_creat(1)',
    ],
    ...['EXPLAIN ANALYZE SELECT 1', 'SELECT "nextval"(1)', 'SELECT pg_notify($1, $2)'],
  ])
    t.equal(keyOf(sql), 0, sql);
});
