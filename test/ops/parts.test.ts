/** What people see, as pure functions: the verdict, what has happened, the last hour, one screen of a terminal. */
import t from 'tap';
import { changedKeys, Events, hashOf } from '../../src/ops/events.ts';
import { History } from '../../src/ops/history.ts';
import type { Snapshot } from '../../src/ops/snapshot.ts';
import type { Status } from '../../src/ops/status.ts';
import { screenOf } from '../../src/ops/top.ts';
import { type Judged, spanOf, verdictOf } from '../../src/ops/verdict.ts';

const host = {
  host: 'db:5432',
  role: 'primary',
  problem: '',
  hold: 'open',
  breakers: [] as string[],
  connections: 3,
  connectionsMax: 100,
  atWork: 2,
  limit: 8,
  slowdown: 1,
};
const ledger = {
  host: 'db:5432',
  ledger: 'cpu',
  mode: 'enforce',
  zone: 'GREEN',
  balance: 500,
  lower: 490,
  capacity: 576,
  reserve: 29,
  work_limit: 3.2,
  exhaustion_s: null as number | null,
  recovery_s: 0,
  fits: 'yes',
  scale_up_s: null as number | null,
  missing: '',
};
const of = {
  host: 'db:5432',
  name: 'api',
  priority: 'critical',
  atWork: 1,
  waiting: 0,
  isOverloaded: false,
  offered: 100,
  admitted: 100,
  shed: {},
  retries: 0,
  meanMs: 2,
  rates: { offered: 10, admitted: 10, shed: 0 },
};
const calm: Judged = {
  version: '1',
  uptime: 60,
  isReady: true,
  isReloadOk: true,
  isPaused: false,
  isPassthrough: false,
  admission: 'enforce',
  bugs: 0,
  queries: 1000,
  lagMs: 1,
  clients: { now: 5, max: 100, held: 0 },
  pools: [],
  hosts: [host],
  ledgers: [ledger],
  caches: [],
  cacheShapes: [],
  bypass: [],
  classes: [of],
  shapes: [],
  switches: [],
};
const says = (change: Partial<Judged>) => verdictOf({ ...calm, ...change });

t.test('the verdict: the worst comes first, and it says what is done and what can be', async (t) => {
  t.equal(says({}).line, 'GREEN: cpu at 87 %, 2 at work on db:5432 of 8');
  t.equal(
    says({ ledgers: [{ ...ledger, zone: 'AMBER', exhaustion_s: 6720 }] }).line,
    'AMBER: 1 h 52 min of cpu of db:5432 left at this rate; what is not critical gets 3.2 servers',
  );
  t.match(
    says({ ledgers: [{ ...ledger, mode: 'observe', exhaustion_s: 6720 }] }).line,
    'nothing is held back: its mode is observe',
  );
  t.equal(says({ ledgers: [{ ...ledger, exhaustion_s: 7201 }] }).level, 'GREEN');
  t.equal(says({ ledgers: [{ ...ledger, exhaustion_s: 1799 }] }).level, 'RED');
  t.match(
    says({ ledgers: [{ ...ledger, zone: 'BLACK', balance: 12 }] }).line,
    /^BLACK: cpu of db:5432 is in its BLACK zone, at 2 %/,
  );
  t.match(says({ ledgers: [{ ...ledger, fits: 'no', scale_up_s: 3600 }] }).findings, [
    { level: 'AMBER', todo: 'scale up within 1 h 0 min: no throttle helps' },
  ]);
  t.match(
    says({ ledgers: [{ ...ledger, missing: 'never', exhaustion_s: 0 }] }).line,
    'nothing is known of cpu of db:5432 (never); onMissing holds',
  );
  t.match(
    says({ hosts: [{ ...host, hold: 'holding' }] }).line,
    /^RED: no primary behind db:5432 can be reached; requests are held/,
  );
  t.equal(says({ hosts: [{ ...host, hold: 'refusing' }] }).level, 'BLACK');
  t.equal(says({ hosts: [{ ...host, breakers: ['connect open'], problem: 'refused' }] }).level, 'RED');
  t.equal(says({ classes: [{ ...of, rates: { offered: 10, admitted: 9, shed: 1 } }] }).level, 'RED', 'critical work');
  t.equal(
    says({ classes: [{ ...of, priority: 'batch', rates: { offered: 10, admitted: 9, shed: 1 } }] }).line,
    'AMBER: 10 % of api is refused; more is asked for than the database can do',
  );
  t.equal(says({ caches: [{ database: 'a', mode: 'on', backend: 'open: lost', problem: '' }] }).level, 'AMBER');
  t.equal(says({ caches: [{ database: 'a', mode: 'observe', backend: 'open: lost', problem: '' }] }).level, 'GREEN');
  const both = says({ isPaused: true, hosts: [{ ...host, hold: 'holding' }] });
  t.match(
    both.findings.map(({ level }) => level),
    ['RED', 'AMBER'],
  );
});

t.test('times as people say them', async (t) => {
  t.same([40, 90, 6720, 200_000, 59.7 * 60].map(spanOf), ['40 s', '2 min', '1 h 52 min', '2 d', '1 h 0 min']);
});

const empty = {
  clusters: [],
  credits: new Map(),
  caches: { backend: null, all: [] },
  hosts: [],
  breakers: new Map(),
  gates: new Map(),
  pools: [],
  sessions: new Set(),
  isPassthrough: false,
  isPaused: false,
} as unknown as Snapshot;

t.test('what has happened: changes of states, once each, and no more than are kept', async (t) => {
  const events = new Events(() => 0);
  events.look(empty, []);
  t.same(events.since(), [], 'what is seen first has not happened');
  events.look({ ...empty, isPaused: true }, []);
  events.look({ ...empty, isPaused: true }, []);
  t.match(events.since(), [{ id: 1, kind: 'switch', subject: 'pause', what: 'off → on' }]);
  for (let n = 0; n < 600; n++) events.add('note', 'x'.repeat(1_000));
  t.equal(events.since().length, 500);
  t.equal(events.since(600).length, 1);
  t.equal(events.since().at(-1)!.what.length, 500);
});

t.test('a reload tells the keys, and never their values', async (t) => {
  const before = { a: { b: 1, c: [1, 2] }, d: 'secret' };
  t.same(changedKeys(before, { a: { b: 2, c: [1, 3] }, e: 1 }), ['a.b', 'a.c', 'd', 'e']);
  t.same(changedKeys(before, structuredClone(before)), []);
  t.equal(hashOf(before as never), hashOf(structuredClone(before) as never));
});

t.test('the last hour: bounded, with holes where there was nothing, and rates', async (t) => {
  const history = new History();
  const pool = { counts: { queries: 0 }, waiters: { size: 0 } };
  const snapshot = { ...empty, pools: [pool], caches: { all: [] } } as unknown as Snapshot;
  for (let n = 0; n < 1_000; n++) {
    pool.counts.queries += 50;
    history.sample(n === 900 ? empty : snapshot, 5_000 * n);
  }
  const { at, series } = history.view(0);
  t.equal(at.length, 720);
  for (const values of Object.values(series)) t.equal(values.length, 720);
  t.equal(history.view(5_000 * 989).at.length, 10);
  t.equal(history.rate('queries_total/'), 10);
  t.equal(history.rate('nothing/'), 0);
});

t.test('one screen: nothing is wider than the terminal, and nothing is coloured unless wanted', async (t) => {
  const status: Status = { ...calm, verdict: verdictOf(calm), events: new Events(() => 0).since() };
  const lines = screenOf(status, { ...status, uptime: 50, queries: 900 }, { width: 60 });
  for (const line of lines) t.ok(line.length <= 60, line);
  t.match(lines.join('\n'), /10 queries\/s/);
  t.match(lines.join('\n'), /#{17}\.{3} 87 %/);
  t.notMatch(lines.join(''), '\u001b');
  t.match(screenOf(status, null, { isColored: true })[0], '\u001b[42;97mGREEN');
});
