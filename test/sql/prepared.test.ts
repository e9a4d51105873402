import t from 'tap';
import { preparedIn } from '../../src/sql/prepared.ts';

const found = (text: string, name: string) => preparedIn(Buffer.from(text), name)?.toString() ?? null;

t.test('the statement inside a PREPARE', async (t) => {
  for (const [text, name, inner] of [
    ['PREPARE p AS SELECT 1', 'p', 'SELECT 1'],
    ['prepare P(int, text) as\n select $1, $2 ;', 'p', 'select $1, $2 '],
    ['PREPARE "P ""x""" (numeric(4, 2)) AS SELECT $1', 'P "x"', 'SELECT $1'],
    [`PREPARE a AS SELECT ';'; PREPARE b AS SELECT 2 AS "as" -- b; PREPARE c`, 'a', `SELECT ';'`],
    [`PREPARE a AS SELECT ';'; PREPARE b AS SELECT 2 AS "as" /* last */`, 'b', 'SELECT 2 AS "as" /* last */'],
    ['/* a */ PREPARE /* b */ p AS /* c */ VALUES (1)', 'p', 'VALUES (1)'],
  ] as const)
    t.equal(found(text, name), inner, text);
});

t.test('what cannot be told', async (t) => {
  for (const [text, name] of [
    ['PREPARE p AS SELECT 1', 'q'],
    ['PREPARE p AS SELECT 1; DEALLOCATE p; PREPARE p AS SELECT 2', 'p'],
    ['PREPARE p', 'p'],
    ['PREPARE p AS', 'p'],
    ['EXECUTE p', 'p'],
    ['', 'p'],
  ] as const)
    t.equal(found(text, name), null, text);
});
