/**
 * Texts of clients that are read by regular expressions: white space without end makes none of them slow. Each is so long that a walk
 * through it for each of its characters would take many seconds.
 */
import t from 'tap';
import { hintIn } from '../../src/cache/policy.ts';
import { signalIn } from '../../src/client/signal.ts';
import { statementTimeoutOf } from '../../src/client/turn.ts';
import { SettingsBook } from '../../src/server/settings.ts';
import { spell } from '../../src/server/spelling.ts';
import { globOf } from '../../src/util/glob.ts';

/** On a machine with other things to do; each takes a millisecond or two. */
const MS_MAX = 2_000;
const blank = ' '.repeat(100_000);

const signal = (text: string) => signalIn({ text, isExtended: false } as Parameters<typeof signalIn>[0]);
const book = new SettingsBook();
const timeout = (value: string) => statementTimeoutOf(book.intern(new Map(), new Map([['statement_timeout', value]])));

t.test('signals are known in the spellings of drivers', async (t) => {
  t.match(signal('select pg_cancel_backend(17)'), { command: 'cancel', pid: 17, column: 'pg_cancel_backend' });
  t.match(signal('\n SELECT pg_catalog.pg_terminate_backend ( 17::int4 , 500 ) as "gone" ; \n'), {
    command: 'terminate',
    column: 'gone',
  });
  t.equal(signal('select pg_cancel_backend(17), 2'), null);
  t.equal(signal('select pg_cancel_backend(17) from t'), null);
});

t.test('durations and styles are read with white space around them', async (t) => {
  t.equal(timeout(' 2 min '), 120_000);
  t.equal(timeout('1.5s'), 1_500);
  t.equal(timeout('7'), 7);
  t.equal(timeout('1 week'), 0);
  t.equal(spell('DateStyle', ' german , MDY ', 'ISO, MDY'), 'German, MDY');
  t.same(hintIn('/*+  pgweir  cache  ttl=2s  */ SELECT 1'), { kind: 'cache', policy: { ttl: 2_000 } });
  t.same(hintIn('/*+ pgweir nocache*/ SELECT 1'), { kind: 'nocache' });
});

for (const [title, read] of [
  ['a signal', () => signal(`select pg_cancel_backend(1)${blank}x`)],
  ['a signal amid blanks', () => signal(`${blank}select${blank}pg_cancel_backend(1${blank},${blank}x`)],
  ['a duration', () => timeout(`1${blank}x`)],
  ['a duration in digits', () => timeout(`${'1'.repeat(100_000)}x`)],
  ['a date style', () => spell('DateStyle', `iso${blank}x`, 'ISO, MDY')],
  ['a hint', () => hintIn(`/*+pgweir${' '.repeat(3_000)}x`)],
  ['many hints', () => hintIn('/*+ pgweir '.repeat(20_000))],
  ['an application name', () => globOf('*a*b*c')('ab'.repeat(100_000))],
] as const) {
  t.test(`${title} of any length is read at once`, async (t) => {
    const from = performance.now();
    read();
    const ms = performance.now() - from;
    t.ok(ms < MS_MAX, `${Math.round(ms)} ms`);
  });
}
