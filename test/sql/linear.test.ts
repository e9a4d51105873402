/**
 * One text stalls nobody: whatever it repeats, judging it, and putting it in a server's words, takes time in proportion to its length. Texts are
 * those of a client that means harm.
 */
import t from 'tap';
import type { Names } from '../../src/client/names.ts';
import { translate } from '../../src/client/translate.ts';
import type { Statement } from '../../src/server/statements.ts';
import { Parser } from '../../src/sql/parser.ts';
import { preparedIn } from '../../src/sql/prepared.ts';
import { Judge } from '../../src/sql/verdict.ts';
import { systemClock } from '../../src/util/clock.ts';

const BYTES = 100_000;
/** A text of four times the length takes so many times as long at most; what is quadratic takes sixteen times. */
const TIMES_MAX = 10;
/** What takes less is not looked at: it says nothing. */
const MS_MIN = 10;
/** On a machine with other things to do a try may take any time; what is quadratic takes too long in each. */
const TRIES_MIN = 2;
const TRIES_MAX = 12;
/** After so much work, where tens are enough, there is no more to try. */
const MS_MAX = 3_000;

const parser = new Parser(systemClock);
t.teardown(() => parser.close());
const judge = new Judge(parser);
judge.want({ reads: true, places: true });
const names = { get: () => ({ name: 'pgweir_1' }) as Statement } as unknown as Names;

/** Does all that is done with the text of a Query. */
function read(text: string): void {
  const bytes = Buffer.from(text);
  translate(bytes, judge.judge(bytes, 0, bytes.length), names);
  preparedIn(bytes, 'a');
}

/** How much work it is, in ms of the processor. */
function cost(run: () => void): number {
  const from = process.cpuUsage();
  run();
  const { user, system } = process.cpuUsage(from);
  return (user + system) / 1_000;
}

/** Does `long` take four times as long as `short`, about? Gives what they take at their best. */
function compare(short: () => void, long: () => void): { isLinear: boolean; what: string } {
  let [few, many] = [Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY];
  let isLinear = false;
  for (let lap = 0; lap < TRIES_MIN || (lap < TRIES_MAX && !isLinear); lap++) {
    few = Math.min(few, cost(short));
    many = Math.min(many, cost(long));
    isLinear = many < TIMES_MAX * Math.max(few, MS_MIN);
    if (many > MS_MAX) break;
  }
  return { isLinear, what: `${few.toFixed(1)} ms, and ${many.toFixed(1)} ms for four times as much` };
}

/** `unit`, after `head`, until there are so many bytes. */
function repeated(head: string, unit: string, bytes: number): string {
  return head + unit.repeat(bytes / unit.length);
}

const units: readonly (readonly [head: string, unit: string])[] = [
  ...[
    'SET a=DEFAULT;',
    'SET a=1;',
    'SET SESSION AUTHORIZATION DEFAULT;',
    'SET TIME ZONE LOCAL;',
    'RESET a;',
    'RESET SESSION AUTHORIZATION;',
    'DISCARD ALL;',
    'LISTEN a;',
    'UNLISTEN *;',
    'LOAD a;',
    'DO a;',
    'CALL a();',
    'BEGIN;',
    'COMMIT;',
    'PREPARE a AS SELECT 1;',
    'PREPARE a(int) AS SELECT set_config($1,$1,false);',
    'EXECUTE a;',
    'EXECUTE a(1);',
    'EXPLAIN EXECUTE a;',
    'CREATE TABLE a AS EXECUTE a;',
    'DEALLOCATE a;',
    'DEALLOCATE PREPARE ALL;',
    'DECLARE c CURSOR WITH HOLD FOR SELECT 1;',
    'COPY a.b (c) FROM STDIN;',
    'UPDATE pg_settings SET a=1;',
    'SELECT 1 INTO TEMP a;',
    'SELECT 1;',
    ';',
  ].map((unit) => ['', unit] as const),
  ...[
    'set_config(name,1),',
    "set_config(name,'1',false) FROM pg_settings WHERE name = 1,",
    "set_config('a',",
    'set_config($1,',
    'pg_advisory_lock(1),',
    'pg_cancel_backend(1),',
    "currval('a'),",
    'setseed(1),',
    'f(',
    's.f(',
    'a.',
    'a.b.c(1),',
    '.a(',
    'over(',
    'order by (',
    'into a.b(',
    'pg_settings ',
    '"pg_settings" ',
    'as execute ',
    'where name = ',
    '(',
    ')',
    '()',
    ',',
    '1,',
    '$1,',
    'a ',
    'é ',
    '"a" ',
    '"',
    '""',
    "'a',",
    "'a'\n",
    "'a'\n--\n",
    "'",
    "e'\\'' ",
    "e'\\",
    'u&"a" ',
    '$$',
    '$a$',
    '$a',
    '$a$ ',
    '1e',
    '1e-',
    '1..',
    '0x1 ',
    '1_0 ',
    '-- \n',
    '--',
    '-',
    '/*',
    '/**/',
    '*/',
    "/*a='b'*/",
    "/*a='b',",
    '/*+ pgweir ',
    ' ',
    '\0',
  ].map((unit) => ['SELECT ', unit] as const),
  ['BEGIN ', 'READ ONLY,'],
  ['START TRANSACTION ', 'ISOLATION LEVEL READ COMMITTED, '],
  ['PREPARE a AS SELECT ', 'as '],
  ['EXPLAIN ', 'execute '],
  ['COPY ', 'a.'],
  ['SET ', 'a.'],
  ["/*a='", 'b'],
  // Two halves that need each other.
  ['EXECUTE a;'.repeat(BYTES / 10), 'PREPARE;'],
  ['f('.repeat(BYTES / 2), ')'],
  [`SELECT ${'set_config('.repeat(BYTES / 11)}`, "'a',1,true)"],
];

for (const [head, unit] of units) {
  const title = JSON.stringify(`${head.slice(0, 24)}${unit}…`);
  t.test(`${title} takes no more than its length`, async (t) => {
    const [short, long] = [1, 4].map((times) =>
      repeated(head.length > 100 ? head.repeat(times) : head, unit, times * BYTES),
    ) as [string, string];
    const { isLinear, what } = compare(
      () => read(short),
      () => read(long),
    );
    t.ok(isLinear, what);
  });
}

t.test('a dollar that opens nothing is looked for in its own text only', async (t) => {
  // As many short texts stand in what has arrived at once.
  const all = (count: number) => Buffer.from('SELECT $a$b;'.repeat(count));
  const readAll = (source: Buffer) => {
    for (let at = 0; at < source.length; at += 12) judge.judge(source, at, at + 12);
  };
  const [short, long] = [all(5_000), all(20_000)];
  const { isLinear, what } = compare(
    () => readAll(short),
    () => readAll(long),
  );
  t.ok(isLinear, what);
});
