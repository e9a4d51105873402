/**
 * Simulation: the adaptive limit (guard/limit) before a model of a database that does `knee` statements at once and shares
 * itself among more, under a load that is always there. It must find the knee, and follow it.
 */
import fc from 'fast-check';
import t from 'tap';
import { AdaptiveLimit } from '../../src/guard/limit.ts';
import { randomOf } from '../fixtures/random.ts';

const SEEDS = [1, 2, 3];
const SHAPES = 5;
const STEP_MS = 1;
const TICK_MS = 20;

/** Limits at the times `at` (s); statements vary by `sigma` (lognormal), and shapes differ fivefold. */
function run(seed: number, sigma: number, kneeAt: (second: number) => number, at: number[], isBusy = true): number[] {
  const random = randomOf(seed);
  const normal = () => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
  const limit = new AdaptiveLimit(2, 20);
  const jobs: { left: number; since: number; shape: number }[] = [];
  const found: number[] = [];
  for (let now = 0; now <= at.at(-1)! * 1000; now += STEP_MS) {
    const most = isBusy ? Math.floor(limit.value) : 1;
    while (jobs.length < most) {
      const shape = 1 + Math.floor(random() * SHAPES);
      jobs.push({ left: 5 * shape * Math.exp(sigma * normal()), since: now, shape });
    }
    const rate = Math.min(1, kneeAt(now / 1000) / jobs.length);
    for (const job of [...jobs]) {
      job.left -= STEP_MS * rate;
      if (job.left > 0) continue;
      limit.sample(job.shape, now + STEP_MS - job.since, jobs.length);
      jobs.splice(jobs.indexOf(job), 1);
    }
    if (now % TICK_MS === 0) limit.tick(now, isBusy, 0);
    if (at.includes(now / 1000)) found.push(limit.value);
  }
  return found;
}

/** The knee, and half of it again: what is beyond only queues in the database. */
const isNear = (limit: number, knee: number) => limit >= 0.8 * knee && limit <= 1.55 * knee;

for (const sigma of [0.1, 0.5]) {
  for (const seed of SEEDS) {
    t.test(`the knee is found within 30 s and followed, variance ${sigma}, seed ${seed}`, async (t) => {
      const knees = [4, 8, 4, 10];
      const limits = run(seed, sigma, (second) => knees[Math.min(3, Math.floor(second / 60))]!, [
        ...[30, 45, 59, 90, 105, 119, 150, 165, 179, 215, 225, 239],
      ]);
      limits.forEach((limit, index) => {
        const knee = knees[Math.floor(index / 3)]!;
        t.ok(isNear(limit, knee), `${limit.toFixed(1)} for ${knee}`);
      });
    });
  }
}

/** When the 95th percentile is five times the median, a baseline of a hundred samples can be a fifth off. */
t.test('with statements that vary wildly it stays between a third of the knee and half of it again', async (t) => {
  for (const seed of SEEDS) {
    for (const limit of run(seed, 1, () => 8, [60, 90, 120, 180, 240]))
      t.ok(limit >= 8 / 3 && limit <= 12.5, `${limit.toFixed(1)} for 8, seed ${seed}`);
  }
});

t.test('what is slow from some time on does not become normal', async (t) => {
  // Everything takes five times as long, for two minutes: an EWMA would have got used to it.
  const [before, after] = run(5, 0.5, (second) => (second < 40 ? 10 : 2), [39, 160]);
  t.ok(isNear(before!, 10) && isNear(after!, 2.2), `${before!.toFixed(1)}, then ${after!.toFixed(1)}`);
});

t.test('a limit that nobody reaches does not grow', async (t) => {
  t.same(
    run(6, 0.5, () => 10, [60], false),
    [2],
  );
});

t.test('what a late event loop has measured is not believed', async (t) => {
  const limit = new AdaptiveLimit(2, 20);
  const window = (start: number, ms: number, lagMs: number) => {
    for (let at = 0; at < 1000; at += 20) {
      for (let n = 0; n < 5; n++) limit.sample(1, ms, 2);
      limit.tick(start + at, true, lagMs);
    }
  };
  for (let second = 0; second < 10; second++) window(1000 * second, 5, 0);
  const before = limit.value;
  for (let second = 10; second < 20; second++) window(1000 * second, 50, 200);
  t.ok(limit.value >= before, `${before} to ${limit.value}`);
  for (let second = 20; second < 25; second++) window(1000 * second, 50, 0);
  t.ok(limit.value < before / 2, 'but what is true is');
});

/** A limit that has found its way, and then has met with trouble: everything took `factor` times as long. Shape 1 takes 5 ms. */
function troubled(factor: number, seed = 1) {
  const random = randomOf(seed);
  const limit = new AdaptiveLimit(2, 40);
  let now = 0;
  const pass = (seconds: number, perSecond: number, ms: number, { shape = 1, isBound = false, lagMs = 0 } = {}) => {
    for (const end = now + 1000 * seconds; now < end; ) {
      now += TICK_MS;
      const due = (perSecond * TICK_MS) / 1000;
      const count = Math.floor(due) + (random() < due % 1 ? 1 : 0);
      for (let n = 0; n < count; n++) limit.sample(shape, ms, Math.max(1, limit.value));
      limit.tick(now, isBound, lagMs);
    }
  };
  pass(60, 200, 5, { isBound: true });
  pass(20, 50, 5 * factor, { isBound: true });
  return { limit, pass };
}

t.test('how slow it was is forgotten when little is asked, or nothing', async (t) => {
  for (const perSecond of [0, 0.2, 1, 3]) {
    const { limit, pass } = troubled(5);
    t.ok(limit.ratio > 4 && limit.value < 2.5, `${limit.ratio}, ${limit.value}`);
    pass(70, perSecond, 5);
    t.ok(limit.ratio < 1.01, `${limit.ratio} at ${perSecond} a second`);
    t.ok(limit.value < 2.5, 'which lets in no more by itself');
  }
});

t.test('a late event loop knows when nothing is asked, but not how long something takes', async (t) => {
  const { limit, pass } = troubled(5);
  pass(70, 2, 5, { lagMs: 200 });
  t.ok(limit.ratio > 4, `${limit.ratio}`);
  pass(70, 0, 5, { lagMs: 200 });
  t.equal(limit.ratio, 1);
});

t.test('while it is slow that is known of few statements as well, and not learned as normal', async (t) => {
  for (const perSecond of [0.5, 1, 3]) {
    const { limit, pass } = troubled(5);
    pass(3600, perSecond, 25);
    t.ok(limit.ratio > 2, `${limit.ratio} at ${perSecond} a second`);
    t.ok(Math.abs(limit.baselines.costOf(1) - 5) < 0.1, `${limit.baselines.costOf(1)} ms`);
  }
});

t.test('a host of which somebody waits for an answer, and gets none, is not taken for well', async (t) => {
  const { limit, pass } = troubled(5);
  pass(600, 0, 5, { isBound: true });
  t.ok(limit.ratio > 4, `${limit.ratio}`);
});

t.test('a limit grows for long statements, too, of which it sees three a second', async (t) => {
  const { limit, pass } = troubled(1);
  pass(200, 1, 600, { shape: 2 });
  pass(20, 50, 25, { isBound: true });
  t.ok(limit.value < 2.5, `${limit.value}`);
  pass(300, 3, 600, { shape: 2, isBound: true });
  t.ok(limit.value > 10, `${limit.value}`);
});

t.test('few statements that are slow by chance take nothing from a limit that is enough', async (t) => {
  const { limit, pass } = troubled(1);
  const before = limit.value;
  pass(600, 1, 6);
  t.equal(limit.value, before);
});

t.test('what is new after trouble is learned as it is, so that the limit comes back', async () => {
  const input = fc.record({
    factor: fc.double({ min: 1.5, max: 10, noNaN: true }),
    // Beyond the window in which the trouble ended.
    quiet: fc.integer({ min: 6, max: 120 }),
    trickle: fc.double({ min: 0, max: 3, noNaN: true }),
    perSecond: fc.integer({ min: 30, max: 300 }),
    seed: fc.nat(),
  });
  fc.assert(
    fc.property(input, ({ factor, quiet, trickle, perSecond, seed }) => {
      const { limit, pass } = troubled(factor, seed);
      pass(quiet, trickle, 5);
      pass(120, perSecond, 5, { shape: 2, isBound: true });
      const learned = limit.baselines.costOf(2);
      if (learned < 4.7 || learned > 5.3) throw new Error(`${learned} ms`);
      if (limit.value < 20) throw new Error(`a limit of ${limit.value}`);
    }),
    { numRuns: 60 },
  );
});
