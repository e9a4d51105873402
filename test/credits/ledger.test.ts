/** credits/ledger, glide, forecast, zone, host: one thing at a time; test/sim/credits shows what they do together. */
import fc from 'fast-check';
import t from 'tap';
import { Forecaster, feasibility } from '../../src/credits/forecast.ts';
import { HostCredits, type LedgerConfig } from '../../src/credits/host.ts';
import { Ledger } from '../../src/credits/ledger.ts';
import { WorkLog } from '../../src/credits/work.ts';
import { ZoneKeeper } from '../../src/credits/zone.ts';

const MINUTE = 60_000;
const config: LedgerConfig = {
  name: 'cpu',
  capacity: 600,
  earn: 0.4 / 60,
  spendMax: 2 / 60,
  kappa: 1 / 60,
  quantum: 0.5,
  reserve: 30,
  horizon: 3600,
  mode: 'enforce',
  onMissing: 'baseline',
  effect: 'throttle',
  period: 5 * MINUTE,
  backlog: null,
};
const nothing = () => ({ backlogMs: 0, costOf: () => 20 });

/** A ledger under a steady load of `servers` at work, each second of which costs `kappa` credits, beside `bypass` per second. */
function run(minutes: number, { servers = 0.5, kappa = 1 / 60, bypass = 0, start = 300, lag = 2.5 * MINUTE } = {}) {
  const work = new WorkLog();
  const ledger = new Ledger(config, work);
  let balance = start;
  let sum = 0;
  const history: number[] = [];
  for (let second = 0; second <= minutes * 60; second++) {
    work.add(second * 1000, sum);
    history.push(balance);
    const rate = servers * (1 + 0.2 * Math.sin(second / 400));
    sum += rate;
    balance += config.earn! - kappa * rate - bypass;
    const due = second - lag / 1000;
    if (due >= 0 && due % 300 === 0) ledger.observe({ value: history[due]!, observedAt: due * 1000 });
  }
  return { ledger, balance: history.at(-1)!, now: minutes * MINUTE };
}

t.test('between samples the balance is what the work since then has left of it', async (t) => {
  const { ledger, balance, now } = run(60);
  const { balance: estimate, lower } = ledger.estimate(now)!;
  t.ok(Math.abs(estimate - balance) < 1, `${estimate.toFixed(1)} for ${balance.toFixed(1)}`);
  t.ok(lower <= balance && lower > balance - 30, `at least ${lower.toFixed(1)}`);
});

t.test('what work costs, and what goes on beside it, is learned', async (t) => {
  const dear = run(180, { kappa: 1.8 / 60, servers: 0.25 });
  t.ok(Math.abs(dear.ledger.estimate(dear.now)!.balance - dear.balance) < 3);
  t.ok(dear.ledger.kappa > 1.2 / 60, `${(60 * dear.ledger.kappa).toFixed(2)}`);
  const bypassed = run(180, { bypass: 0.3 / 60 });
  t.ok(Math.abs(bypassed.ledger.estimate(bypassed.now)!.balance - bypassed.balance) < 3);
  t.ok(bypassed.ledger.background > 0.1 / 60, `${(60 * bypassed.ledger.background).toFixed(2)}`);
});

t.test('an old sample makes it less sure, and the bound lower', async (t) => {
  const { ledger, now } = run(60);
  const bounds = [0, 10, 30, 60].map((minutes) => ledger.estimate(now + minutes * MINUTE)!.sigma);
  t.ok(
    bounds.every((sigma, at) => at === 0 || sigma > bounds[at - 1]!),
    bounds.map((sigma) => sigma.toFixed(1)).join(' '),
  );
});

t.test('zeros and jumps are not believed at once', async (t) => {
  const { ledger, now } = run(60);
  const before = ledger.estimate(now)!.balance;
  t.equal(ledger.observe({ value: 0, observedAt: now - 2 * MINUTE }), 'quarantined', 'an exporter without data');
  t.equal(ledger.suspects, 1);
  t.ok(Math.abs(ledger.estimate(now)!.balance - before) < 0.1);
  t.equal(ledger.observe({ value: before, observedAt: now - MINUTE }), 'accepted');
  t.equal(ledger.suspects, 0);
  const jumps = [1, 2, 3].map((n) => ledger.observe({ value: 590, observedAt: now + n * 5 * MINUTE }));
  t.same(jumps, ['quarantined', 'quarantined', 'moved'], 'upwards three must agree: another database');
  const drops = [4, 5].map((n) => ledger.observe({ value: 100, observedAt: now + n * 5 * MINUTE }));
  t.same(drops, ['quarantined', 'moved'], 'downwards two');
  t.equal(ledger.observe({ value: 100, observedAt: now }), 'repeated', 'older than what is known');
});

/** A reserve in percent, of which nothing is known but what it says: 59, and then every minute what is read. */
function reserve() {
  const credits = new HostCredits(
    [
      {
        ...config,
        name: 'burst',
        capacity: 100,
        earn: null,
        spendMax: null,
        kappa: 100 / 14_400,
        quantum: 1,
        reserve: 5,
      },
    ],
    nothing,
  );
  let now = 0;
  const read = (value: number) => {
    credits.observe('burst', { value, observedAt: now }, now);
    for (const end = now + MINUTE; now < end; now += 1000) credits.tick(now);
    return credits.ledgers[0]!;
  };
  credits.tick(now);
  read(59);
  return read;
}

t.test(
  'one odd sample is forgotten when the next says what was known, and two that are apart do not agree',
  async (t) => {
    const read = reserve();
    for (let n = 0; n < 5; n++) {
      t.equal(read(0).missing, 'suspect');
      const { missing, estimate, zone, received } = read(59);
      t.same([missing, zone, received.moved], ['', 'AMBER', 0]);
      t.ok(estimate!.balance > 50, `${estimate!.balance}`);
    }
    read(0);
    t.equal(read(0).received.moved, 1, 'two in a row do');
  },
);

t.test('an old sample that comes once more says nothing against a newer one', async (t) => {
  const ledger = new Ledger(config, new WorkLog());
  ledger.observe({ value: 300, observedAt: 0 });
  t.equal(ledger.observe({ value: 0, observedAt: 3 * MINUTE }), 'quarantined');
  t.equal(ledger.observe({ value: 300, observedAt: 0 }), 'repeated');
  t.equal(ledger.observe({ value: 300, observedAt: 2 * MINUTE }), 'repeated');
  t.equal(ledger.suspects, 1);
  t.equal(ledger.observe({ value: 0, observedAt: 4 * MINUTE }), 'moved');
});

t.test('zeros that are never two in a row move nothing, whatever comes between', async () => {
  fc.assert(
    fc.property(fc.array(fc.record({ step: fc.integer({ min: -1, max: 1 }), isOdd: fc.boolean() })), (steps) => {
      const read = reserve();
      let value = 59;
      for (const { step, isOdd } of steps) {
        if (isOdd && read(0).missing !== 'suspect') throw new Error('a zero was believed');
        value += step;
        const { missing, estimate, received } = read(value);
        if (received.moved !== 0 || estimate!.balance < value - 10) throw new Error(`moved to ${estimate!.balance}`);
        if (missing !== '') throw new Error(`${missing} after ${value}`);
      }
    }),
    { numRuns: 100 },
  );
});

t.test('the first sample is believed, but not a first zero', async (t) => {
  const ledger = new Ledger(config, new WorkLog());
  t.equal(ledger.estimate(0), null);
  t.equal(ledger.observe({ value: 0, observedAt: 0 }), 'quarantined');
  t.equal(ledger.observe({ value: 0, observedAt: 5 * MINUTE }), 'accepted', 'two zeros are a zero');
  t.equal(ledger.estimate(5 * MINUTE)!.balance, 0);
});

t.test('work is known for an hour, and missed seconds are filled in', async (t) => {
  const log = new WorkLog();
  log.add(0, 0);
  log.add(10_000, 20);
  t.equal(log.between(0, 10_000), 20);
  t.ok(Math.abs(log.between(2_500, 7_500) - 10) < 0.01);
  for (let second = 10; second < 5_000; second++) log.add(second * 1000, 2 * second);
  t.ok(Math.abs(log.between(3_000_000, 4_000_000) - 2000) < 0.01);
  t.ok(log.since > 0);
});

t.test('when it will be used up, when it is back, and whether what waits fits', async (t) => {
  const forecaster = new Forecaster();
  const at = (balance: number) => ({ balance, lower: balance, sigma: 0 });
  let found = forecaster.tick(0, 0.1, at(330), 30, 300);
  t.equal(Math.round(found.exhaustion), 3000);
  for (let second = 1; second < 600; second++) found = forecaster.tick(second * 1000, -0.05, at(200), 30, 300);
  t.equal(Math.round(found.recovery), 2000);
  const law = { spendable: 300, earn: 0.01, live: 0.004 };
  t.same(feasibility({ ...law, backlog: 200, backlogRate: 0.03 }), { fits: true });
  const not = feasibility({ ...law, backlog: 3000, backlogRate: 0.03 });
  t.ok(!not.fits && Math.abs(not.scaleUpIn - 300 / 0.024) < 1, JSON.stringify(not));
  t.same(feasibility({ ...law, backlog: 3000, backlogRate: 0.005 }), { fits: true }, 'slowly enough it does');
  t.match(feasibility({ ...law, live: 0.02, backlog: 0, backlogRate: 0 }), { fits: false, scaleUpIn: 30_000 });
});

t.test('zones get worse at once, and better after a while with something to spare', async (t) => {
  const keeper = new ZoneKeeper();
  const tick = (minute: number, lower: number, exhaustion = 1e9) =>
    keeper.tick(minute * MINUTE, { lower, reserve: 0.05, exhaustion });
  t.same([tick(0, 0.9), tick(1, 0.45), tick(2, 0.15), tick(3, 0.04)], ['GREEN', 'AMBER', 'RED', 'BLACK']);
  t.equal(tick(5, 0.9), 'BLACK', 'not yet');
  t.equal(tick(14, 0.25), 'RED');
  t.equal(tick(30, 0.25), 'RED', 'just above the threshold is not enough');
  t.equal(tick(31, 0.9), 'GREEN');
  t.equal(tick(32, 0.9, 1000), 'RED', 'however much there is, if it will not last');
});

function host(more: Partial<LedgerConfig>, sample: number | null) {
  const credits = new HostCredits([{ ...config, ...more }], nothing);
  let now = 0;
  const pass = (ms: number) => {
    for (const end = now + ms; now < end; now += 20) credits.tick(now);
  };
  pass(1000);
  if (sample !== null) credits.observe('cpu', { value: sample, observedAt: now }, now);
  pass(2000);
  return { credits, pass };
}

t.test(
  'with something to spend all classes may; with nothing only critical work; and what is owed is paid first',
  async (t) => {
    const { credits, pass } = host({}, 500);
    t.same(
      [0, 1, 2, 3].map((rank) => credits.isOpenFor(rank)),
      [true, true, true, true],
    );
    credits.charge(2, 10_000);
    t.same(
      [0, 1, 2, 3].map((rank) => credits.isOpenFor(rank)),
      [true, false, false, false],
    );
    credits.charge(2, -10_000);
    pass(100);
    t.ok(credits.isOpenFor(2), 'it was less than was thought');
    const poor = host({}, 20).credits;
    t.ok(poor.rate < 0.4, `${poor.rate} servers`);
    t.equal(poor.zone, 'BLACK');
  },
);

t.test('without a sample it is as configured', async (t) => {
  const baseline = host({}, null).credits;
  t.ok(baseline.rate > 0 && baseline.rate < 0.4, `${baseline.rate}`);
  t.same(
    [0, 2, 3].map((rank) => baseline.isOpenFor(rank)),
    [true, true, false],
    'nothing that is deferrable',
  );
  t.same(
    [0, 1].map((rank) => host({ onMissing: 'closed' }, null).credits.isOpenFor(rank)),
    [true, false],
  );
  t.ok(host({ onMissing: 'open' }, null).credits.isOpenFor(3));
  const { credits, pass } = host({}, 500);
  const before = credits.rate;
  pass(31 * MINUTE);
  t.equal(credits.ledgers[0]!.missing, 'stale', 'six periods old');
  t.ok(credits.rate < before);
});

t.test('a metric that is read often and new seldom is stale by the latter', async (t) => {
  const { credits, pass } = host({ period: MINUTE / 2 }, 500);
  for (let n = 1; n <= 3; n++) {
    for (let half = 0; half < 10; half++) {
      pass(MINUTE / 2);
      // What is read is new every five minutes.
      const sample = half === 9 ? n : n - 1;
      const observedAt = 5 * MINUTE * sample + 1000;
      credits.observe(
        'cpu',
        { value: 500 + sample, observedAt },
        5 * MINUTE * (n - 1) + (half + 1) * (MINUTE / 2) + 1000,
      );
    }
  }
  pass(28 * MINUTE);
  t.equal(credits.ledgers[0]!.missing, '');
  pass(3 * MINUTE);
  t.equal(credits.ledgers[0]!.missing, 'stale');
});

t.test('observing holds nothing back, warning says so, and what is billed holds nothing back either', async (t) => {
  for (const more of [{ mode: 'observe' }, { effect: 'bill' }] as const) {
    const { credits } = host(more, 1);
    t.ok(credits.isOpenFor(3));
    t.notOk(credits.warns(3));
    t.same([credits.zone, credits.ledgers[0]!.zone], ['', 'BLACK']);
  }
  const { credits } = host({ mode: 'warn' }, 1);
  credits.charge(2, 10_000);
  t.ok(credits.isOpenFor(2) && credits.warns(2) && !credits.warns(0));
});

t.test('of several ledgers the tightest rules', async (t) => {
  const two = new HostCredits([config, { ...config, name: 'ebs' }], nothing);
  two.tick(0);
  two.observe('cpu', { value: 500, observedAt: 0 }, 0);
  two.observe('ebs', { value: 31, observedAt: 0 }, 0);
  two.tick(2000);
  const [cpu, ebs] = two.ledgers;
  t.ok(cpu!.work > ebs!.work);
  t.equal(two.rate, ebs!.work);
});

t.test('samples that are old when they come are samples; a reserve that is only watched turns no switch', async (t) => {
  const { credits, pass } = host({ period: 30_000 }, null);
  let now = 2_000;
  for (let n = 0; n < 40; n++) {
    credits.observe('cpu', { value: 500 - n, observedAt: now - 10 * MINUTE }, now);
    for (const end = now + 30_000; now < end; now += 1000) credits.tick(now);
  }
  t.equal(credits.ledgers[0]!.missing, '', 'ten minutes late, every half');
  pass(0);
});

t.test('a metric of five minutes that is read every half is learned from when it changes', async (t) => {
  const ledger = new Ledger(config, new WorkLog());
  const received: Record<string, number> = {};
  for (let second = 0; second <= 3600; second += 30) {
    const value = 500 - Math.floor(second / 300) * 2.5;
    const found = ledger.observe({ value, observedAt: second * 1000 });
    received[found] = (received[found] ?? 0) + 1;
  }
  t.same(received, { accepted: 13, repeated: 108 });
});

t.test('jobs that wait outside count in the verdict, as long as somebody says how many', async (t) => {
  const credits = new HostCredits([{ ...config, backlog: { class: 'jobs', period: MINUTE } }], nothing);
  let now = 0;
  const pass = (minutes: number) => {
    for (const end = now + minutes * MINUTE; now < end; now += 1000) {
      credits.charge(2, 500);
      credits.tick(now);
      if (now % MINUTE === 0) credits.observe('cpu', { value: 330, observedAt: now }, now);
    }
  };
  pass(2);
  t.same(credits.ledgers[0]!.verdict, { fits: true });
  credits.observeBacklog('cpu', 600_000, now); // 12,000 s of work: 200 credits.
  pass(1);
  const view = credits.ledgers[0]!;
  t.ok(Math.abs(view.backlog - 200) < 60, `${view.backlog}`);
  t.same(view.verdict, { fits: true });
  credits.observeBacklog('cpu', 6_000_000, now);
  pass(1);
  t.notOk(credits.ledgers[0]!.verdict.fits);
  pass(7);
  t.equal(credits.ledgers[0]!.backlog, 0, 'nobody has said anything for long');
});

t.test('a rehearsal: what takes hours takes minutes, and is told in hours', async (t) => {
  const life = new HostCredits([config], nothing);
  const fast = new HostCredits([config], nothing, { pace: 20 });
  for (let step = 0; step < 4 * 3600; step++) {
    for (const [credits, now] of [
      [life, step * 1000],
      [fast, step * 50],
    ] as const) {
      credits.charge(0, credits === life ? 300 : 15);
      credits.charge(2, credits === life ? 900 : 45);
      credits.tick(now);
      const value = 500 - Math.floor(step / 300) * 4;
      if (step % 300 === 0) credits.observe('cpu', { value, observedAt: now }, now);
    }
  }
  const [of, like] = [life.ledgers[0]!, fast.ledgers[0]!];
  for (const [a, b] of [
    [like.estimate!.lower, of.estimate!.lower],
    [like.forecast.exhaustion, of.forecast.exhaustion],
    [like.learned.kappa, of.learned.kappa],
    [fast.rate, life.rate],
  ] as const)
    t.ok(Math.abs(a - b) < 0.01 * b, `${a} and ${b}`);
});
