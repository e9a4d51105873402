/** server/hold and server/lineage: what is held, for how long, and how it is let go; and who is the primary. */
import fc from 'fast-check';
import t from 'tap';
import { Hold, type HoldState } from '../../src/server/hold.ts';
import { type Finding, LineageBook } from '../../src/server/lineage.ts';

const config = { for: 20_000, requestsMax: 10, bytesMax: 1000 };

t.test('a short outage is held, and let go little by little', async (t) => {
  const hold = new Hold(config);
  t.equal(hold.allowance, Number.POSITIVE_INFINITY);
  t.ok(hold.fail(1000, 'gone'));
  t.notOk(hold.fail(1001, 'gone'), 'that is known');
  t.same([hold.state, hold.allowance, hold.outageMs(3000)], ['holding', 0, 2000]);
  t.notOk(hold.tick(5000, 20, false));
  t.ok(hold.reach(6000));
  t.same([hold.state, hold.allowance], ['releasing', 1]);
  t.notOk(hold.tick(6100, 20, false));
  const steps: number[] = [];
  for (let now = 6200; hold.state === 'releasing'; now += 200) {
    hold.tick(now, 20, false);
    steps.push(hold.allowance);
  }
  t.same(steps, [2, 4, 8, 16, Number.POSITIVE_INFINITY]);
  t.same(hold.counts, { outages: 1, outageMs: 5000, released: 0, refused: 0 });
});

t.test('what goes wrong while it is let go makes it slower; another failure is the same outage', async (t) => {
  const hold = new Hold(config);
  hold.fail(0, 'gone');
  hold.reach(5000);
  for (const now of [5200, 5400]) hold.tick(now, 20, false);
  t.equal(hold.allowance, 4);
  hold.stumble(5450);
  t.equal(hold.allowance, 1);
  hold.fail(6000, 'gone again');
  t.same([hold.state, hold.counts.outages], ['holding', 1]);
  hold.tick(20_000, 20, false);
  t.equal(hold.state, 'refusing', 'counted from the start of it');
  hold.reach(21_000);
  hold.fail(21_100, 'and again');
  t.equal(hold.state, 'refusing');
});

t.test('no second hold within twice its length; none at all with 0', async (t) => {
  const hold = new Hold(config);
  const release = (now: number) => {
    hold.reach(now);
    for (let n = 1; n < 10; n++) hold.tick(now + 200 * n, 20, false);
  };
  hold.fail(0, 'gone');
  release(5000);
  t.equal(hold.state, 'open');
  hold.fail(40_000, 'gone');
  t.equal(hold.state, 'refusing', '35 s after the end of the last');
  release(41_000);
  hold.fail(46_000, 'gone');
  t.equal(hold.state, 'holding', 'a refusal is no hold');
  const none = new Hold({ ...config, for: 0 });
  none.fail(0, 'gone');
  t.equal(none.state, 'refusing');
});

t.test('whatever happens, nobody is held for longer than that, nor twice in a row', async (t) => {
  const event = fc.record({
    after: fc.integer({ min: 0, max: 15_000 }),
    kind: fc.constantFrom('fail', 'reach', 'stumble'),
  });
  const result = fc.check(
    fc.property(fc.array(event, { maxLength: 60 }), (events) => {
      const hold = new Hold(config);
      let now = 0;
      let endedAt = Number.NEGATIVE_INFINITY;
      let outageSince: number | null = null;
      const look = (before: HoldState) => {
        if (before === 'open' && hold.isClosed) outageSince = now;
        if (hold.state === 'open') outageSince = null;
        if (before !== 'holding' && hold.state === 'holding') {
          if (before === 'open' && now - endedAt < 2 * config.for) throw new Error('held again too soon');
        }
        if (before === 'holding' && hold.state !== 'holding') endedAt = now;
        if (hold.state === 'holding' && now - outageSince! > config.for + 200) throw new Error('held for too long');
        if (hold.isClosed !== (hold.allowance === 0)) throw new Error('closed is no server at work');
      };
      for (const { after, kind } of events) {
        for (const end = now + after; now < end; now += 200) {
          const before = hold.state;
          hold.tick(now, 16, false);
          look(before);
        }
        const before = hold.state;
        if (kind === 'fail') hold.fail(now, 'gone');
        else if (kind === 'reach') hold.reach(now);
        else hold.stumble(now);
        look(before);
      }
    }),
    { seed: 6 },
  );
  t.notOk(result.failed, `seed ${result.seed}: ${(result.errorInstance as Error | null)?.message}`);
});

const primary = (timeline: number, systemId = 's'): Finding => ({
  isInRecovery: false,
  systemId,
  timeline,
  lagMs: null,
  lsn: 0,
  askedAt: 0,
});
const standby = (systemId = 's'): Finding => ({
  isInRecovery: true,
  systemId,
  timeline: 0,
  lagMs: 5,
  lsn: 0,
  askedAt: 0,
});
const rolesOf = (book: LineageBook) => [...book.roles.values()].map(({ role }) => role);

t.test('the primary is who is not in recovery; a promotion moves it', async (t) => {
  const book = new LineageBook(['a', 'b', 'c'], null);
  t.equal(book.primary, null);
  book.found('b', standby());
  book.found('a', primary(1));
  t.same(rolesOf(book), ['primary', 'standby', 'unknown']);
  book.lost('a', 'refused');
  t.equal(book.primary, null);
  book.found('b', primary(2));
  t.same(rolesOf(book), ['unreachable', 'primary', 'unknown']);
  t.same(book.lineage, { systemId: 's', timeline: 2, address: 'b' });
  book.found('a', primary(1));
  t.same(rolesOf(book), ['refused', 'primary', 'unknown'], 'it does not know that it was replaced');
  t.match(book.roles.get('a')!.why, /its timeline 1 has ended/);
  book.found('a', standby());
  t.same(rolesOf(book), ['standby', 'primary', 'unknown']);
});

t.test('two that were promoted, another cluster, and what was known before a restart', async (t) => {
  const book = new LineageBook(['a', 'b', 'c'], null);
  book.found('b', primary(2));
  book.found('c', primary(2));
  t.same(rolesOf(book), ['unknown', 'primary', 'refused']);
  t.match(book.roles.get('c')!.why, /two were promoted/);
  book.lost('b', 'gone');
  t.equal(book.primary, null, 'the other one has gone another way');
  t.match(book.roles.get('c')!.why, /take that out of hosts/);
  book.found('a', primary(5, 'other'));
  t.equal(book.roles.get('a')!.role, 'refused');
  const again = new LineageBook(['a', 'b'], book.lineage);
  again.found('a', primary(1));
  t.equal(again.primary, null, 'a higher one was seen before');
  const moved = new LineageBook(['c', 'd'], book.lineage);
  moved.found('c', primary(2));
  t.equal(moved.primary, 'c', 'the one that was it is no host any more');
});

t.test('timelines never fall, and nobody of another cluster is ever written to', async (t) => {
  const addresses = ['a', 'b', 'c'];
  const event = fc.record({
    address: fc.constantFrom(...addresses),
    finding: fc.option(
      fc.record({
        isInRecovery: fc.boolean(),
        systemId: fc.constantFrom('s', 's', 's', 'other'),
        timeline: fc.integer({ min: 1, max: 4 }),
        lagMs: fc.constant(null),
        lsn: fc.constant(0),
        askedAt: fc.constant(0),
      }),
    ),
  });
  const result = fc.check(
    fc.property(fc.array(event, { maxLength: 40 }), (events) => {
      const book = new LineageBook(addresses, null);
      const led = new Map<number, string>();
      let [highest, systemId] = [0, ''];
      for (const { address, finding } of events) {
        if (finding === null) book.lost(address, 'gone');
        else book.found(address, finding);
        const roles = [...book.roles.values()].filter(({ role }) => role === 'primary');
        if (roles.length > 1) throw new Error('two primaries');
        if (book.primary === null) continue;
        const { finding: of } = book.roles.get(book.primary)!;
        if (of!.timeline < highest) throw new Error('its timeline fell');
        if (systemId !== '' && of!.systemId !== systemId) throw new Error('another cluster');
        if ((led.get(of!.timeline) ?? book.primary) !== book.primary) throw new Error('two on one timeline');
        led.set(of!.timeline, book.primary);
        [highest, systemId] = [of!.timeline, of!.systemId];
      }
    }),
    { seed: 6 },
  );
  t.notOk(result.failed, `seed ${result.seed}: ${(result.errorInstance as Error | null)?.message}`);
});
