/**
 * Simulation: the adaptive limit (guard/limit) before a model of a database that does `knee` statements at once and shares
 * itself among more, under a load that is always there. It must find the knee, and follow it.
 */
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
