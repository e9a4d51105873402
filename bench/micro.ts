/**
 * What the parts of the data path cost, in nanoseconds per operation: `npm run bench:micro`. Medians of several rounds;
 * single calls in a loop, so orders of magnitude rather than truths.
 */

import { message } from '../src/protocol/encode.ts';
import { emptyFrame, FrameReader } from '../src/protocol/frame.ts';
import { ServerMessage, Status } from '../src/protocol/messages.ts';
import { Outstanding } from '../src/protocol/outstanding.ts';
import { SettingsBook, settingsDiff } from '../src/server/settings.ts';
import { findEffects } from '../src/sql/effects.ts';
import { readKey } from '../src/sql/read.ts';
import { cut, shapeOf, Tokens } from '../src/sql/shape.ts';
import { median, spread } from './stats.ts';

const ROUNDS = 9;
const ROUND_MS = 60;

/** Measures `run`, which does `operations` of what is named. */
function measure(name: string, operations: number, run: () => void): void {
  const rounds: number[] = [];
  for (let round = 0; round <= ROUNDS; round++) {
    let laps = 0;
    const before = performance.now();
    while (performance.now() - before < ROUND_MS) {
      for (let i = 0; i < 100; i++) run();
      laps += 100;
    }
    // The first round is for the compiler.
    if (round > 0) rounds.push(((performance.now() - before) * 1e6) / laps / operations);
  }
  console.log(`${name.padEnd(64)} ${median(rounds).toFixed(0).padStart(7)} ns ±${Math.round(100 * spread(rounds))} %`);
}

const row = message(ServerMessage.DataRow, Buffer.alloc(90));
const answer = Buffer.concat([
  ...Array.from({ length: 100 }, () => row),
  message(ServerMessage.CommandComplete, 'SELECT 100\0'),
]);
const reader = new FrameReader(() => 5, 1 << 30);
const frame = emptyFrame();
measure('frame scan, per message of a 10 KB answer', 101, () => {
  reader.push(answer);
  while (reader.next(frame) === 'frame');
});

const texts = {
  'a short SELECT': 'SELECT abalance FROM pgbench_accounts WHERE aid = 4711;',
  'a JOIN with an IN list': `SELECT o.id, c.name, sum(l.price * l.count) FROM orders o JOIN customers c ON c.id = o.customer
    JOIN lines l ON l."order" = o.id WHERE o.id IN (1, 2, 3, 4, 5, 6, 7, 8) AND o.state = 'open' GROUP BY 1, 2 ORDER BY 3 DESC LIMIT 10`,
};
for (const [name, sql] of Object.entries(texts)) {
  const tokens = new Tokens();
  const bytes = Buffer.from(sql);
  measure(`lexer: ${name}`, 1, () => cut(tokens, bytes, 0, bytes.length));
  cut(tokens, bytes, 0, bytes.length);
  measure(`shape as text: ${name}`, 1, () => void shapeOf(tokens));
  measure(`effects: ${name}`, 1, () => void findEffects(tokens));
  measure(`read or not, and its shape as a number: ${name}`, 1, () => void readKey(tokens));
}

const outstanding = new Outstanding<string>(() => {});
measure('outstanding: a simple Query and its three replies', 1, () => {
  outstanding.push('Query', 'client', 'forward', null, null);
  for (const type of [ServerMessage.RowDescription, ServerMessage.CommandComplete, ServerMessage.ReadyForQuery]) {
    outstanding.begin(type, Status.Idle);
    outstanding.end();
  }
});

const book = new SettingsBook();
const login = book.intern(
  new Map([
    ['TimeZone', 'UTC'],
    ['DateStyle', 'ISO, MDY'],
    ['application_name', ''],
  ]),
  new Map(),
);
const other = book.withCustom(book.withReported(login, 'TimeZone', 'Europe/Berlin'), [['work_mem', '5MB']]);
measure('settings: equal', 1, () => void settingsDiff(login, login, login));
measure('settings: two differ', 1, () => void settingsDiff(login, other, login));
