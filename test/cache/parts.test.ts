/** The parts of the cache that decide by themselves: what is kept of an answer, who may miss, what stays in memory, what an envelope proves. */
import fc from 'fast-check';
import t from 'tap';
import { Arming } from '../../src/cache/arming.ts';
import type { Space } from '../../src/cache/backend.ts';
import type { Cache } from '../../src/cache/cache.ts';
import { Collector } from '../../src/cache/collector.ts';
import { type Entry, isDue } from '../../src/cache/entry.ts';
import { openEnvelope, seal } from '../../src/cache/envelope.ts';
import { Freshness } from '../../src/cache/freshness.ts';
import { hasVolatileParameter, hasVolatileString, type Identity, plainText } from '../../src/cache/key.ts';
import { Misses } from '../../src/cache/misses.ts';
import { Need } from '../../src/cache/need.ts';
import { hintIn } from '../../src/cache/policy.ts';
import { Store } from '../../src/cache/store.ts';
import { type Heard, Wal } from '../../src/cache/wal.ts';
import { Written } from '../../src/client/written.ts';
import * as encode from '../../src/protocol/encode.ts';
import { error, SqlState } from '../../src/protocol/sqlstate.ts';
import { Decoder } from '../../src/server/decoding.ts';
import { type Relations, schemasOf } from '../../src/sql/relations.ts';
import { harmless } from '../../src/sql/verdict.ts';
import { FakeClock } from '../fixtures/clock.ts';

/** `bytes` in pieces. */
function cutAt(bytes: Buffer, cuts: readonly number[]): Buffer[] {
  const ends = [...new Set(cuts.map((cut) => cut % (bytes.length + 1)))].sort((a, b) => a - b);
  return [...ends, bytes.length].map((end, index) => bytes.subarray(index === 0 ? 0 : ends[index - 1]!, end));
}

const answer = fc
  .record({
    isExtended: fc.boolean(),
    isDescribed: fc.boolean(),
    rows: fc.array(fc.string({ maxLength: 300 }), { maxLength: 20 }),
    behind: fc.string({ maxLength: 20 }),
  })
  .map(({ isExtended, isDescribed, rows, behind }) => {
    const before = isExtended ? Buffer.concat([encode.parseComplete, encode.bindComplete]) : Buffer.alloc(0);
    const described = isDescribed || !isExtended;
    const kept = Buffer.concat([
      ...(described ? [encode.rowDescription([{ name: 'x', oid: 25 }])] : []),
      ...rows.map((row) => encode.dataRow([row])),
      encode.commandComplete(`SELECT ${rows.length}`),
      encode.readyForQuery(),
    ]);
    return { bytes: Buffer.concat([before, kept, Buffer.from(behind)]), kept, described };
  });

t.test('an answer is kept as it came, however it was cut', (t) => {
  fc.assert(
    fc.property(answer, fc.array(fc.nat(), { maxLength: 12 }), ({ bytes, kept, described }, cuts) => {
      const collector = new Collector(1e6);
      for (const piece of cutAt(bytes, cuts)) collector.add(piece);
      if (collector.state !== 'whole') throw new Error(`${collector.state}: ${collector.why}`);
      if (collector.descriptionEnd > 0 !== described) throw new Error('description');
      if (!collector.take().equals(kept)) throw new Error('other bytes');
    }),
  );
  t.end();
});

t.test('what is not to be kept', (t) => {
  const row = encode.dataRow(['x']);
  const done = encode.commandComplete('SELECT 1');
  const ready = encode.readyForQuery();
  const refusal = encode.errorResponse(error(SqlState.InsufficientResources, 'no'));
  const cases: [string, Buffer[], RegExp][] = [
    ['an error', [refusal, ready], /an error/],
    ['an error amid rows', [row, refusal, ready], /an error/],
    ['a notice', [row, encode.notice('x'), done, ready], /more than rows/],
    ['a setting', [row, done, encode.parameterStatus('a', 'b'), ready], /more than rows/],
    ['two results', [row, done, row, done, ready], /several/],
    ['in a transaction', [row, done, encode.readyForQuery(0x54)], /transaction/],
    ['nothing', [ready], /no result/],
  ];
  for (const [what, parts, why] of cases) {
    const collector = new Collector(1e6);
    for (const byte of Buffer.concat(parts)) collector.add(Buffer.from([byte]));
    t.equal(collector.state, 'spoiled', what);
    t.match(collector.why, why, what);
  }
  const large = new Collector(100);
  large.add(Buffer.concat([encode.dataRow(['x'.repeat(200)]), done, ready]));
  t.match(large.why, /too large/);
  const failed = new Collector(100);
  failed.add(Buffer.concat([refusal, ready]));
  t.equal(failed.sqlstate, '53000');
  t.ok(failed.isOver);
  t.end();
});

t.test('misses: never more than the limit, and everybody hears once', (t) => {
  const step = fc.record({
    kind: fc.constantFrom('ask', 'ask', 'end', 'leave', 'time'),
    a: fc.nat(100),
    slow: fc.boolean(),
  });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 300 }), (steps) => {
      const misses = new Misses(10);
      const inside: number[] = [];
      const waiting = new Map<object, { heard: number; until: number; weight: number }>();
      let now = 0;
      for (const { kind, a, slow } of steps) {
        const weight = a % 2 === 0 ? 1 : 1 / 8;
        if (kind === 'ask') {
          if (misses.enter(weight)) inside.push(weight);
          else {
            const state = { heard: 0, until: now + 1_000, weight };
            const waiter = {
              rank: a % 4,
              onTurn: () => {
                state.heard++;
                waiting.delete(waiter);
                inside.push(weight);
              },
              onRefused: () => {
                state.heard++;
                waiting.delete(waiter);
              },
            };
            waiting.set(waiter, state);
            misses.wait(waiter, weight, now);
          }
        } else if (kind === 'end' && inside.length > 0) misses.end(inside.shift()!, slow ? 100 : 10, 10);
        else if (kind === 'leave') {
          const [first] = waiting.keys();
          if (first === undefined) continue;
          waiting.delete(first);
          misses.leave(first as never);
        } else if (kind === 'time') {
          now += 10 * a;
          misses.tick(now);
          for (const { until } of waiting.values()) if (until <= now) throw new Error('waits too long');
        }
        const active = inside.reduce((sum, each) => sum + each, 0);
        if (Math.abs(active - misses.active) > 1e-6) throw new Error(`${active} are at work, and not ${misses.active}`);
        if (misses.limit > 10) throw new Error('a limit beyond the greatest');
        for (const { heard } of waiting.values()) if (heard > 0) throw new Error('heard, and still waits');
        if (misses.waiting !== waiting.size) throw new Error('somebody is forgotten');
      }
    }),
  );
  const steady = new Misses(10);
  for (let n = 0; n < 200; n++) if (steady.enter(1)) steady.end(1, 10, 10);
  t.equal(steady.limit, 10, 'grows while all is well');
  for (let n = 0; n < 200; n++) if (steady.enter(1)) steady.end(1, 100, 10);
  t.ok(steady.limit <= 2, `shrinks while fills take ten times as long: ${steady.limit}`);
  t.end();
});

const entryOf = (key: string, size: number, until = 1e9) =>
  ({ key, body: Buffer.alloc(size), staleUntil: until, errorUntil: until }) as unknown as Entry;

t.test('memory is bounded, a scan does not drive out what is wanted, and what is too old goes', (t) => {
  const store = new Store(200_000);
  for (let lap = 0; lap < 20; lap++)
    for (let n = 0; n < 20; n++) if (store.get(`hot ${n}`) === undefined) store.set(entryOf(`hot ${n}`, 1000));
  for (let n = 0; n < 1_000_000; n++) {
    const key = `scan ${n}`;
    if (n % 500 === 0) for (let hot = 0; hot < 20; hot++) store.get(`hot ${hot}`);
    if (store.get(key) === undefined) store.set(entryOf(key, 100));
    if (store.bytes > store.memoryMax) t.fail('too much memory');
  }
  let left = 0;
  for (let n = 0; n < 20; n++) if (store.peek(`hot ${n}`) !== undefined) left++;
  t.ok(left >= 18, `${left} of 20 are left after a million others`);
  t.ok(store.counts.rejected > 900_000);
  const old = new Store(200_000);
  for (let n = 0; n < 100; n++) old.set(entryOf(`old ${n}`, 100, 10));
  for (let n = 0; n < 3; n++) old.sweep(20);
  t.equal(old.size, 0);
  t.end();
});

t.test('an envelope proves what it holds', (t) => {
  const body = Buffer.concat([
    encode.dataRow(['x']),
    encode.dataRow([null]),
    encode.commandComplete('SELECT 2'),
    encode.readyForQuery(),
  ]);
  const content = {
    key: Buffer.alloc(32, 7),
    epoch: 5n,
    createdAt: 1234.5,
    ttlMs: 99,
    costMs: 2.5,
    versions: [{ oid: 16_400, version: 7n }],
    descriptionEnd: 0,
    body,
  };
  const sealed = seal(content, 'secret');
  t.same(openEnvelope(sealed, content.key, 'secret'), { kind: 'ok', content });
  t.match(openEnvelope(sealed, Buffer.alloc(32, 8), 'secret'), { kind: 'bad', why: 'key' });
  t.match(openEnvelope(sealed, content.key, 'other'), { kind: 'bad', why: 'mac' });
  fc.assert(
    fc.property(fc.nat(), fc.integer({ min: 1, max: 255 }), (at, flip) => {
      const damaged = Buffer.from(sealed);
      damaged[at % damaged.length]! ^= flip;
      if (openEnvelope(damaged, content.key, 'secret').kind === 'ok') throw new Error(`byte ${at} may be anything`);
    }),
  );
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 300 }), (bytes) => {
      if (openEnvelope(Buffer.from(bytes), content.key, 'secret').kind === 'ok') throw new Error('anything opens');
    }),
  );
  const lying = {
    ...content,
    body: Buffer.concat([encode.dataRow(['x']), encode.commandComplete('SELECT 2'), encode.readyForQuery()]),
  };
  t.match(openEnvelope(seal(lying, 'secret'), content.key, 'secret'), { kind: 'bad', why: 'messages' });
  t.end();
});

t.test('arming: earned by and by, lost at once', (t) => {
  const arming = new Arming(15, { random: () => 0.5 });
  let now = 0;
  const pass = (ms: number, each = () => {}) => {
    for (const end = now + ms; now < end; now += 50) {
      each();
      if (arming.wantsProbe(now)) arming.onCanary('', 1, now);
      arming.tick(now);
    }
  };
  arming.begin(now);
  t.equal(arming.state, 'probing');
  pass(1_000);
  t.equal(arming.state, 'ramping');
  t.same([arming.mayRead(0.009), arming.mayRead(0.02)], [true, false]);
  const good = () => {
    for (let n = 0; n < 3; n++) arming.onResult('good', 1, now);
  };
  pass(3_200, good);
  t.same([arming.mayRead(0.04), arming.mayRead(0.06)], [true, false]);
  t.same([arming.mayWrite(0.2), arming.mayWrite(0.3)], [true, false], 'a step ahead');
  pass(10_000, good);
  t.equal(arming.state, 'armed');
  pass(2_000, () => arming.onResult('good', 40, now));
  t.equal(arming.state, 'degraded', 'too slow');
  t.same([arming.mayRead(0.04), arming.mayWrite(0), arming.isTold], [true, false, true]);
  pass(10_500, good);
  t.equal(arming.state, 'ramping');
  pass(13_000, good);
  t.equal(arming.state, 'armed');
  pass(30_000, () => {
    good();
    arming.onResult('unclear', 21, now);
  });
  t.equal(arming.state, 'armed', 'this process is late itself');
  for (let n = 0; n < 60; n++) arming.onResult('bad', 21, now);
  t.equal(arming.state, 'armed', 'one pause for all that was under way');
  for (let n = 0; n < 5; n++) {
    arming.onResult('unclear', 21, now);
    now += 22;
  }
  t.equal(arming.state, 'degraded', 'whoever is late: nothing comes back');
  pass(15_000, () => arming.onResult('good', 10, now));
  pass(30_000, () => arming.onResult('good', 10, now));
  t.equal(arming.state, 'ramping');
  t.match(arming.why, 'its share does not grow');
  pass(16_000, good);
  t.equal(arming.state, 'armed');
  arming.onLost('the connection is lost', now);
  t.equal(arming.state, 'open');
  t.notOk(arming.isTold);
  const fails = new Arming(15, { random: () => 1 });
  fails.begin(0);
  const probes: number[] = [];
  for (let at = 0; at < 120_000; at += 50)
    if (fails.wantsProbe(at)) {
      probes.push(at);
      fails.onCanary('refused', 0, at);
    }
  t.ok(probes.length < 30, `${probes.length} probes in two minutes`);
  t.end();
});

t.test(
  'a write whose shared cache was replaced meanwhile ends in the new one as a write, not as the end of one',
  (t) => {
    const said: string[] = [];
    const space = (name: string) =>
      ({
        announce: () => said.push(`${name} announce`),
        settle: () => said.push(`${name} settle`),
        invalidate: () => said.push(`${name} invalidate`),
      }) as unknown as Space;
    const cache = {
      space: space('old'),
      freshness: { bumpHere() {} },
      relations: { resolve: () => ({ kind: 'table', oid: 7 }), writeSet: () => [7] },
    } as unknown as Cache;
    const tables = [{ schema: '', name: 'plans', isWritten: true }];
    const write = {
      ...harmless,
      nature: { text: '', kind: 'write' as const, tables, reading: null, isTemporary: false, change: 'no' as const },
    };
    const written = new Written(cache);
    written.add(write, { searchPath: 'public', role: 'me' } as Identity);
    cache.space = space('new');
    written.end();
    written.add(write, { searchPath: 'public', role: 'me' } as Identity);
    written.end();
    t.same(said, ['old announce', 'new invalidate', 'new announce', 'new settle']);
    t.end();
  },
);

t.test('what is asked for often is asked for anew before it expires, by one in a while', (t) => {
  const entry = { freshUntil: 10_000, costMs: 50 } as Entry;
  const early = (now: number) => {
    let n = 0;
    for (let at = 0.0005; at < 1; at += 0.001) n += Number(isDue(entry, now, () => at));
    return n / 1_000;
  };
  t.equal(early(9_000), 0, 'long before its end');
  t.ok(Math.abs(early(9_950) - Math.exp(-1)) < 0.01, 'as long before as the database takes: one in e');
  t.ok(Math.abs(early(9_900) - Math.exp(-2)) < 0.01);
  t.equal(early(10_000), 1);
  t.end();
});

t.test('what the database would have to find without the cache', (t) => {
  const need = new Need();
  for (let now = 0; now <= 600_000; now += 100) {
    need.spare(400);
    need.miss(250);
    need.tick(now);
  }
  t.same([need.spared.toFixed(1), need.missed.toFixed(1)], ['4.0', '2.5'], 'ms in each 100 ms: servers');
  t.equal(need.verdict(3, 10), '');
  t.match(need.verdict(2, 10), 'misses need 2.5 servers and may have 2.0');
  t.match(need.verdict(3, 6), 'without the cache 6.5 servers would be needed, and there are 6.0');
  t.end();
});

t.test(
  'a commit is settled although the connection that was asked about it is lost, and the stream is not',
  async (t) => {
    const clock = new FakeClock();
    const freshness = new Freshness();
    let hear: (heard: Heard) => void = () => t.fail();
    let isDown = false;
    let isVisible = false;
    const query = async (sql: string) => {
      if (isDown) throw new Error('lost');
      if (sql.includes('flush_lsn')) return [['0/1']];
      return sql.includes('pg_visible') && isVisible ? [['5']] : [];
    };
    const wal = new Wal(500, {
      open: async () => {
        if (isDown) throw new Error('down');
        return { query, close() {} };
      },
      openChanges: async (tell) => {
        hear = tell;
        return { ping: () => tell({ kind: 'position', lsn: 1n }), close() {} };
      },
      freshness,
      relations: () => ({ named: () => ({ oid: 7 }), withAncestors: () => [7] }) as unknown as Relations,
      clock,
      onEvent() {},
    });
    t.after(() => wal.close());
    const pass = async (ms: number) => {
      for (const end = clock.now() + ms; clock.now() < end; clock.advance(10))
        await new Promise<void>((done) => setImmediate(done));
    };
    await pass(100);
    hear({ kind: 'started' });
    await pass(500);
    const table = freshness.table(7);
    hear({ kind: 'commit', xid: 5, tables: [['public', 'a']] });
    await pass(50);
    isDown = true;
    await pass(500);
    t.equal(table.unsettled, 1);
    isDown = false;
    isVisible = true;
    await pass(2_000);
    t.equal(wal.tier, 'wal');
    t.equal(table.unsettled, 0);
    t.ok(freshness.mayKeep(freshness.stamp([table])));
  },
);

t.test('names in the stream of changes', (t) => {
  const heard: unknown[] = [];
  const decoder = new Decoder((xid, tables) => heard.push([xid, tables]));
  for (const line of [
    'BEGIN 7',
    `table public.plans: UPDATE: id[integer]:7 name[text]:'a: b, c'`,
    'table public."Odd: ""Name""": INSERT: id[integer]:1',
    'table a.b, a."C, d": TRUNCATE: (no-flags)',
    'COMMIT 7',
    'BEGIN 8',
    'message: transactional: 1 prefix: x, sz: 1 content:x',
    'COMMIT 8',
    'BEGIN 9',
    'something else',
    'COMMIT 9',
  ])
    decoder.add(line);
  t.same(heard, [
    [
      7,
      [
        ['public', 'plans'],
        ['public', 'Odd: "Name"'],
        ['a', 'b'],
        ['a', 'C, d'],
      ],
    ],
    [9, 'all'],
  ]);
  fc.assert(fc.property(fc.string(), (line) => decoder.add(line)));
  t.end();
});

t.test('texts', (t) => {
  t.equal(plainText('SELECT 1'), 'SELECT 1');
  t.equal(plainText(`SELECT/* a */1 -- b\n, 'a -- b' /* c */`), `SELECT 1 , 'a -- b'`);
  t.equal(plainText(`/*+ pgweir cache ttl=1s */ SELECT 1`), `/*+ pgweir cache ttl=1s */SELECT 1`);
  t.match(hintIn('/*+ pgweir cache ttl=30s swr=10s sie=5m consistency=wal */ SELECT 1'), {
    kind: 'cache',
    policy: { ttl: 30_000, staleWhileRevalidate: 10_000, staleIfError: 300_000, consistency: 'wal' },
  });
  t.match(hintIn('/*+ pgweir nocache */ SELECT 1'), { kind: 'nocache' });
  t.match(hintIn('/*+ pgweir cache ttl=soon */ SELECT 1'), { kind: 'malformed' });
  t.equal(hintIn('/*+ SeqScan(x) */ SELECT 1'), null);
  for (const text of [
    `SELECT 'now'::timestamptz`,
    `SELECT timestamp 'Today'`,
    `SELECT E'n\\x6fw'`,
    `SELECT $$tomorrow$$`,
  ])
    t.ok(hasVolatileString(text), text);
  for (const text of [`SELECT now FROM t`, `SELECT 'nowhere', 'snow'`, 'SELECT "today"'])
    t.notOk(hasVolatileString(text), text);
  const bind = (value: string) =>
    Buffer.concat([Buffer.from([0, 0, 0, 1]), encode.int32(value.length), Buffer.from(value), Buffer.from([0, 0])]);
  t.ok(hasVolatileParameter(bind(' now ')));
  t.notOk(hasVolatileParameter(bind('snow')));
  t.same(schemasOf('"$user", public', 'me'), ['me', 'public']);
  t.same(schemasOf('A, "B""c" ,public', 'me'), ['a', 'B"c', 'public']);
  t.end();
});
