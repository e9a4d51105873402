/** sql/control: which texts do nothing but begin or end a transaction. */
import t from 'tap';
import { controlOf } from '../../src/sql/control.ts';
import { cut, Tokens } from '../../src/sql/shape.ts';

function control(sql: string) {
  const tokens = new Tokens();
  const bytes = Buffer.from(sql);
  cut(tokens, bytes, 0, bytes.length);
  return controlOf(tokens);
}

t.test('BEGIN and START TRANSACTION, with modes that no server refuses', async (t) => {
  for (const [sql, sent] of [
    ['BEGIN', 'BEGIN'],
    [' begin work ;; ', 'BEGIN'],
    ['/* a */ Begin Transaction -- b', 'BEGIN'],
    ['begin read only', 'BEGIN read only'],
    [
      'BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY NOT DEFERRABLE;',
      'BEGIN isolation level repeatable read, read only, not deferrable',
    ],
  ] as const)
    t.match(control(sql), { kind: 'begin', tag: 'BEGIN', sql: sent }, sql);
  t.match(control('start transaction'), { kind: 'begin', tag: 'START TRANSACTION', sql: 'START TRANSACTION' });
});

t.test('what a server might refuse, or may not be what it seems, is for the server', async (t) => {
  for (const sql of ['START', '"begin"', 'SAVEPOINT a', 'SELECT 1']) t.equal(control(sql), null, sql);
  for (const sql of [
    'BEGIN ISOLATION LEVEL SERIALIZABLE',
    'BEGIN READ WRITE',
    'BEGIN; SELECT 1',
    'BEGIN READ',
    'BEGIN ,READ ONLY',
    'BEGIN READ ONLY,',
    'START TRANSACTION; SELECT 1',
  ])
    t.equal(control(sql)?.kind, 'beginning', sql);
});

t.test('the ends of a transaction, and what may be more than that', async (t) => {
  for (const sql of ['COMMIT', 'end;', 'commit work', 'END TRANSACTION ;']) t.equal(control(sql)?.kind, 'commit', sql);
  for (const sql of ['ROLLBACK', 'abort', 'rollback transaction;']) t.equal(control(sql)?.kind, 'rollback', sql);
  for (const sql of [
    'COMMIT AND CHAIN',
    'ROLLBACK TO a',
    'ROLLBACK; SELECT 1',
    'PREPARE TRANSACTION $$a$$',
    'end work 1',
  ])
    t.equal(control(sql)?.kind, 'mixed', sql);
});
