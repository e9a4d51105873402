/** The breaker for what a host answers: what opens it, what does not, and how it comes back. */
import fc from 'fast-check';
import t from 'tap';
import { Health } from '../../src/guard/health.ts';
import { isUnhealthy } from '../../src/protocol/sqlstate.ts';

const config = { window: 10_000, failures: 0.5, requestsMin: 20, openFor: 5_000 };

/** Lets `ms` pass, with so many requests and failures each 200 ms. */
function run(health: Health, from: number, ms: number, requests: number, failures: number): number {
  let now = from;
  for (const end = from + ms; now < end; now += 200) {
    health.count(requests, failures, now);
    health.tick(now);
  }
  return now;
}

t.test('it opens when half of the answers are failures, and not before there are enough', (t) => {
  const health = new Health(config);
  let now = run(health, 0, 10_000, 10, 4);
  t.equal(health.state, 'closed', 'less than half');
  now = run(health, now, 3_000, 10, 9);
  t.equal(health.state, 'open');
  t.equal(health.opened, 1);
  t.notOk(health.passes());
  const quiet = new Health(config);
  run(quiet, 0, 3_000, 1, 1);
  t.equal(quiet.state, 'closed', '15 requests are too few');
  run(quiet, 3_000, 2_000, 1, 1);
  t.equal(quiet.state, 'open');
  t.end();
});

t.test('what is older than the window is forgotten', (t) => {
  const health = new Health(config);
  let now = run(health, 0, 200, 15, 15);
  now = run(health, now, 12_000, 0, 0);
  t.same([health.requests, health.failures], [0, 0]);
  run(health, now, 200, 15, 15);
  t.equal(health.state, 'closed');
  t.end();
});

t.test('it does not open because successes are forgotten sooner than failures', (t) => {
  const health = new Health(config);
  let now = run(health, 0, 2_000, 100, 0);
  // A host freezes: nothing is answered, and after seven seconds those who waited are lost.
  now = run(health, now, 7_000, 0, 0);
  now = run(health, now, 200, 20, 20);
  run(health, now, 9_000, 0, 0);
  t.equal(health.state, 'closed');
  t.end();
});

t.test('half-open: one passes, then 5 %, 10 %, …, all', (t) => {
  const health = new Health(config);
  let now = run(health, 0, 400, 20, 20);
  t.equal(health.state, 'open');
  now = run(health, now, 5_000, 0, 0);
  t.equal(health.state, 'half-open');
  t.ok(health.passes(), 'the first finds out');
  t.notOk(health.passes());
  now = run(health, now, 3_000, 0, 0);
  t.equal(health.share, 0.05, 'nobody has found out anything');
  const shares: number[] = [];
  for (let second = 0; second < 6; second++) {
    now = run(health, now, 1_000, 5, 0);
    shares.push(health.share);
  }
  t.same(shares, [0.1, 0.2, 0.4, 0.8, 1, 1]);
  t.equal(health.state, 'closed');
  const passed = new Health(config);
  now = run(passed, 0, 400, 20, 20);
  now = run(passed, now, 5_000, 0, 0);
  t.equal(Array.from({ length: 1000 }, () => passed.passes()).filter(Boolean).length, 51, '5 % and the first');
  run(passed, now, 200, 4, 2);
  t.equal(passed.state, 'open', 'it fails again');
  t.end();
});

t.test('whatever happens the window holds what was counted in it, and only failures open it', (t) => {
  const step = fc.record({
    requests: fc.nat(50),
    share: fc.double({ min: 0, max: 1, noNaN: true }),
    ms: fc.nat(3_000),
  });
  const result = fc.check(
    fc.property(fc.array(step, { maxLength: 80 }), (steps) => {
      const health = new Health(config);
      let now = 0;
      for (const { requests, share, ms } of steps) {
        const failures = Math.floor(requests * share);
        const before = health.state;
        health.count(requests, failures, now);
        const isOpening = health.tick(now) && health.state === 'open' && before === 'closed';
        if (isOpening && failures === 0 && health.opened === 0) throw new Error('opened without a failure');
        if (health.requests < 0 || health.failures < 0 || health.failures > health.requests)
          throw new Error(`${health.failures} of ${health.requests}`);
        if (health.isClosed !== (health.share === 1)) throw new Error('closed is all');
        now += ms;
      }
      // A window later nothing is left.
      for (let n = 0; n < 60; n++) {
        now += 200;
        health.tick(now);
      }
      if (health.isClosed && health.requests !== 0) throw new Error('not forgotten');
    }),
    { seed: 11 },
  );
  t.notOk(result.failed, `seed ${result.seed}: ${(result.errorInstance as Error | null)?.message}`);
  t.end();
});

t.test('what speaks of the health of a server', (t) => {
  for (const sqlstate of ['08006', '53100', '53200', '53300', '57P01', '57P02', '57P03', '57014'])
    t.ok(isUnhealthy(sqlstate, false), sqlstate);
  for (const sqlstate of ['08P01', '22012', '23505', '28P01', '40001', '40P01', '42601', '57P04', '57P05', 'P0001'])
    t.notOk(isUnhealthy(sqlstate, false), sqlstate);
  t.notOk(isUnhealthy('57014', true), 'somebody has cancelled it');
  t.end();
});
