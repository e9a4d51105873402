/** sql/verdict, sql/parser, sql/catalog: what the parser adds, and what happens when it cannot. */
import t from 'tap';
import { judgeFunctions } from '../../src/sql/catalog.ts';
import { Parser } from '../../src/sql/parser.ts';
import { effectsOf, Judge, type Verdict } from '../../src/sql/verdict.ts';
import { systemClock } from '../../src/util/clock.ts';

const parser = new Parser(systemClock);
t.teardown(() => parser.close());
const judge = new Judge(parser);

async function settled(sql: string): Promise<Verdict> {
  const bytes = Buffer.from(sql);
  const verdict = judge.judge(bytes, 0, bytes.length);
  const { shape } = verdict;
  if (shape?.state === 'pending') await new Promise<void>((resolve) => shape.waiting.push(resolve));
  return verdict;
}

t.test('the parser tells functions from what only looks like one', async (t) => {
  for (const sql of ['CREATE TABLE weir_a (b int PRIMARY KEY)', 'CREATE INDEX i ON weir_a (b)']) {
    t.match(effectsOf(await settled(sql), null), { pins: [], isProbed: false, isChecked: true }, sql);
  }
  t.equal(effectsOf(await settled('ALTER TABLE weir_a ADD c varchar(10) DEFAULT lower(now()::text)'), null), null);
  t.match(effectsOf(await settled(String.raw`SELECT U&"set\005fconfig"('a', 'b', false)`), null), {
    pins: ['function'],
  });
  t.match(effectsOf(await settled('SELECT my_function(1)'), null), { pins: ['function'] });
  t.match(effectsOf(await settled('CALL p(1)'), null), { pins: ['function'] });
  t.match(effectsOf(await settled('SELECT 1 AS a INTO TEMP x'), null), { isProbed: true });
  t.match(effectsOf(await settled('CREATE TABLE pg_temp.x (a int)'), null), { isProbed: true });
});

t.test('a text that no Postgres takes pins whoever gets it accepted', async (t) => {
  t.match(effectsOf(await settled('FROBNICATE my_thing(1)'), null), { pins: ['opaque'] });
});

t.test('one shape is parsed once', async (t) => {
  await settled('SELECT other_function(1)');
  const { parsed } = parser.counts;
  t.equal(judge.judge(Buffer.from('SELECT other_function(2)'), 0, 24).shape?.state, 'known');
  t.equal(parser.counts.parsed, parsed);
});

t.test(
  'a text on which the parser takes too long costs its shape the judgement, and nobody anything else',
  async (t) => {
    // A fake clock whose watchdog barks at once, because no text within the size limit is known to hang this parser.
    let isImpatient = true;
    const impatient = new Parser({ ...systemClock, after: (ms, run) => systemClock.after(isImpatient ? 0 : ms, run) });
    t.teardown(() => impatient.close());
    const parse = (sql: string) => new Promise((resolve) => impatient.parse(sql, resolve));
    t.equal(await parse('SELECT slow()'), null);
    t.equal(impatient.counts.killed, 1);
    isImpatient = false;
    t.match(
      await parse('SELECT quick()'),
      { isParsed: true, functions: ['quick'] },
      'a new worker takes the next text',
    );
  },
);

t.test('deep and long texts within the limit get an answer', async (t) => {
  const depth = (open: string, close: string, times: number) =>
    `SELECT my_function(${open.repeat(times)}1${close.repeat(times)})`;
  for (const sql of [
    depth('(', ')', 7000),
    depth('1+', '', 7000),
    depth('ARRAY[', ']', 2000),
    depth('(SELECT ', ')', 1500),
  ]) {
    t.ok(effectsOf(await settled(sql), null)?.pins.length);
  }
  t.equal(effectsOf(await settled('ALTER TABLE weir_b ADD b int'), null), null);
});

t.test('a text beyond the parser’s limit is opaque, unless tokens prove it harmless', async (t) => {
  t.match((await settled(`SELECT my_function('${'x'.repeat(20_000)}')`)).effects, { pins: ['opaque'] });
  t.equal((await settled(`SELECT lower('${'x'.repeat(200_000)}')`)).effects, null);
});

t.test('user functions are judged by their bodies', async (t) => {
  const verdicts = judgeFunctions([
    ['public', 'plain', 'sql', 'SELECT lower($1) FROM t WHERE id IN (1, 2)'],
    [
      'public',
      'loops',
      'plpgsql',
      'BEGIN FOR i IN 1..3 LOOP PERFORM plain(i); UPDATE t SET a = 1; END LOOP; RETURN NEW; END',
    ],
    ['public', 'sets', 'plpgsql', "BEGIN PERFORM set_config('a', 'b', false); END"],
    ['public', 'sets2', 'plpgsql', 'BEGIN SET a = 1; END'],
    ['public', 'dynamic', 'plpgsql', "BEGIN EXECUTE 'SELECT 1'; END"],
    ['public', 'calls_sets', 'sql', 'SELECT sets()'],
    ['public', 'loop_a', 'sql', 'SELECT loop_b()'],
    ['public', 'loop_b', 'sql', 'SELECT loop_a()'],
    ['public', 'loop_c', 'sql', 'SELECT loop_d()'],
    ['public', 'loop_d', 'sql', 'SELECT loop_c(), sets()'],
    ['public', 'in_c', 'c', 'symbol'],
    ['a', 'twice', 'sql', 'SELECT 1'],
    ['b', 'twice', 'c', 'symbol'],
  ]);
  const harmless = [...verdicts]
    .filter(([name, isHarmless]) => isHarmless && !name.includes('.'))
    .map(([name]) => name);
  t.same(harmless, ['plain', 'loops', 'loop_a', 'loop_b']);
  t.equal(verdicts.get('a.twice'), true);
  t.equal(verdicts.get('twice'), false);
});
