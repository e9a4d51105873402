/** client/group: which messages are one request about one statement, and what is in them; and client/question on top of it. */
import fc from 'fast-check';
import t from 'tap';
import { findGroup } from '../../src/client/group.ts';
import { type ClientNames, findQuestion, requestOf } from '../../src/client/question.ts';
import { int32, message } from '../../src/protocol/encode.ts';
import { emptyFrame, FrameReader } from '../../src/protocol/frame.ts';
import { ClientMessage } from '../../src/protocol/messages.ts';
import { send } from '../fixtures/raw.ts';

/** A reader whose first message is in the frame. */
function read(...messages: Buffer[]): { first: ReturnType<typeof emptyFrame>; reader: FrameReader } {
  const reader = new FrameReader((_, size) => size, 1 << 20);
  reader.push(Buffer.concat(messages));
  const first = emptyFrame();
  reader.next(first);
  return { first, reader };
}

const find = (...messages: Buffer[]) => {
  const { first, reader } = read(...messages);
  const group = findGroup(first, reader);
  return group === null ? null : structuredClone(group);
};

const parse = (name: string, types: number[] = []) =>
  message(
    ClientMessage.Parse,
    `${name}\0SELECT $1\0`,
    Buffer.from([0, types.length]),
    ...types.map((oid) => int32(oid)),
  );
const bind = (name: string, values: string[] = [], portal = '') => send.bind(portal, name, values);
const run = send.execute('');
const few = message(ClientMessage.Execute, '\0', int32(5));
const sync = send.sync();

const whole: [string, Buffer[], object][] = [
  ['Query', [send.query('SELECT 1')], { rest: 0, isExtended: false, isBare: true, isLast: true, name: '' }],
  ['two Queries', [send.query('SELECT 1'), send.query('SELECT 2')], { rest: 0, isLast: false }],
  [
    'Parse, Bind, Execute',
    [parse(''), bind(''), run, sync],
    { rest: 3, hasParse: true, isBound: true, isExecuted: true, isBare: true, isLast: true, hasDescription: false },
  ],
  ['with its name', [parse('a'), bind('a'), run, sync], { name: 'a', isBare: true }],
  ['and something behind it', [parse(''), bind(''), run, sync, sync], { rest: 3, isLast: false }],
  ['with types', [parse('', [23]), bind(''), run, sync], { isBare: false }],
  ['with a value', [bind('a', ['1']), run, sync], { name: 'a', hasParse: false, isBare: false }],
  ['described', [bind('a'), send.describe('P', ''), run, sync], { hasDescription: true, isDescribedElse: false }],
  ['late', [bind('a'), run, send.describe('P', ''), sync], { hasDescription: false, isDescribedElse: true }],
  ['twice', [bind('a'), send.describe('P', ''), send.describe('P', ''), run, sync], { isDescribedElse: true }],
  ['the statement', [send.describe('S', 'a'), bind('a'), run, sync], { name: 'a', isDescribedElse: true }],
  ['prepared', [parse('a'), send.describe('S', 'a'), sync], { name: 'a', isExecuted: false, isBound: false }],
  ['a few rows', [bind('a'), few, sync], { rowsMax: 5 }],
  ['flushed', [bind('a'), run, message(ClientMessage.Flush), sync], { hasFlush: true, rest: 3 }],
];

const other: [string, Buffer[]][] = [
  ['a Query with something behind its text', [message(ClientMessage.Query, 'SELECT 1\0x')]],
  ['a Query without an end', [message(ClientMessage.Query, 'SELECT 1')]],
  ['another statement is bound', [parse(''), bind('a'), run, sync]],
  ['a name that begins alike', [parse('a'), bind('ab'), run, sync]],
  ['and one that ends alike', [parse('ab'), bind('a'), run, sync]],
  ['another statement is described', [parse('a'), send.describe('S', 'b'), sync]],
  ['a portal with a name', [bind('a', [], 'p'), run, sync]],
  ['run by a name', [bind('a'), send.execute('p'), sync]],
  ['two statements', [parse(''), bind(''), run, parse(''), bind(''), run, sync]],
  ['bound twice', [bind('a'), bind('a'), run, sync]],
  ['run twice', [bind('a'), run, run, sync]],
  ['run before it is bound', [parse(''), run, sync]],
  ['a portal that is described before it is bound', [parse(''), send.describe('P', ''), bind(''), run, sync]],
  ['closed', [bind('a'), run, send.close('S', 'a'), sync]],
  ['a Query amid it', [bind('a'), send.query('SELECT 1'), sync]],
  ['a Sync with a body', [bind('a'), run, message(ClientMessage.Sync, 'x')]],
  ['a portal at first', [send.describe('P', ''), sync]],
  ['Sync alone', [sync]],
];

t.test('one statement is found, with what is in its messages', async (t) => {
  for (const [title, messages, facts] of whole) t.match(find(...messages), facts, title);
});

t.test('anything else is not', async (t) => {
  for (const [title, messages] of other) t.equal(find(...messages), null, title);
});

t.test('nor is what has not arrived whole, or was cut to pieces', async () => {
  const groups = fc.constantFrom(...whole.filter(([, [first]]) => first![0] !== ClientMessage.Query));
  fc.assert(
    fc.property(groups, fc.double({ min: 0, max: 0.999, noNaN: true }), ([, messages], part) => {
      const bytes = Buffer.concat(messages.slice(0, messages.findIndex((one) => one[0] === ClientMessage.Sync) + 1));
      const size = messages[0]!.length + Math.floor(part * (bytes.length - messages[0]!.length));
      return find(bytes.subarray(0, size)) === null;
    }),
  );
});

t.test('bytes of any kind are looked at within their message', async () => {
  const parts = fc.array(fc.tuple(fc.constantFrom(...'QPBDECHS'), fc.uint8Array({ maxLength: 12 })), { minLength: 1 });
  fc.assert(
    fc.property(parts, (all) => {
      // Nothing is thrown, whatever is in them.
      find(...all.map(([type, body]) => message(type.charCodeAt(0), Buffer.from(body))), sync);
    }),
    { numRuns: 2_000 },
  );
});

t.test('a question is the same for whoever has prepared it under whatever name', async (t) => {
  const known = { text: 'SELECT $1', types: '\0\0', planSettings: 'here' };
  const names = (here: string): ClientNames => ({
    planSettings: here,
    statementNamed: (name) => (name === 'a' ? (known as never) : undefined),
    mayName: (name) => name !== 'a',
  });
  const ask = (messages: Buffer[], here = 'here') => {
    const { first, reader } = read(...messages);
    const question = findQuestion(first, reader, names(here));
    return question === null ? null : requestOf(question, first).toString('latin1');
  };
  const wanted = Buffer.concat([parse(''), bind('', ['7']), run, sync]).toString('latin1');
  t.equal(ask([parse(''), bind('', ['7']), run, sync]), wanted);
  t.equal(ask([parse('new'), bind('new', ['7']), run, sync]), wanted);
  t.equal(ask([bind('a', ['7']), run, message(ClientMessage.Flush), sync]), wanted);
  t.equal(ask([parse('a'), bind('a', ['7']), run, sync]), null, 'the name is taken');
  t.equal(ask([bind('a', ['7']), run, sync], 'elsewhere'), null, 'its names were looked up elsewhere');
  t.equal(ask([bind('', ['7']), run, sync]), null, 'the unnamed statement of before');
  t.equal(ask([bind('b', ['7']), run, sync]), null, 'nobody knows it');
  t.equal(ask([bind('a', ['7']), few, sync]), null, 'not all rows');
  t.equal(ask([parse(''), send.describe('S', ''), bind('', ['7']), run, sync]), null, 'described otherwise');
});
