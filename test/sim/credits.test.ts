/**
 * Simulation: the real ledger, glide path and tokens (credits/host) before a model of a burstable database (a T-class
 * instance: credits are earned and spent, and at zero it falls to its baseline) and of its metric: late, rounded, and at times
 * dead, zero or wrong. Thousands of seeded scenarios; a failing one prints its seed, PGWEIR_SEED runs it again.
 *
 * What must hold: work that is not critical never spends the reserve; the balance is below it only while critical work and
 * what bypasses the proxy need more than is earned, and is never 0 otherwise.
 */
import fc from 'fast-check';
import t from 'tap';
import { HostCredits, type LedgerConfig } from '../../src/credits/host.ts';
import { randomOf } from '../fixtures/random.ts';

const SEED = Number(process.env.PGWEIR_SEED ?? 20_261);
const VCPUS = 2;
/** Credits per second: one is a minute of one vCPU; a fifth of each is earned. */
const SPEND_MAX = VCPUS / 60;
const EARN = 0.4 / 60;
const CAPACITY = 576;
const RESERVE = 0.05 * CAPACITY;
const STEP_MS = 1_000;
/** What the database does of a statement before it is known to be done. */
const STATEMENT_MS = 50;

interface World {
  seed: number;
  /** Share of the capacity that is there at the start. */
  start: number;
  /** Seconds between samples, and by which they are late. */
  period: number;
  lag: number;
  /** vCPU of critical work, and of what bypasses the proxy (from a third of the time on, for a third of it). */
  critical: number;
  bypass: number;
  /** vCPU that a second of work costs at the start; by what it is more from half of the time on. */
  kappa: number;
  drift: number;
  fault: 'none' | 'dies' | 'zero' | 'freezes' | 'load too';
  hours: number;
}

const anyWorld: fc.Arbitrary<World> = fc.record({
  seed: fc.integer(),
  start: fc.constantFrom(0.15, 0.3, 0.6, 1),
  period: fc.constantFrom(60, 300),
  lag: fc.constantFrom(30, 150, 300, 600),
  critical: fc.constantFrom(0, 0.1, 0.25, 0.35),
  bypass: fc.constantFrom(0, 0, 0, 0.05, 0.5),
  kappa: fc.constantFrom(0.5, 0.8, 1, 1.2),
  drift: fc.constantFrom(1, 1, 1, 1.5, 2.5),
  fault: fc.constantFrom('none', 'none', 'none', 'dies', 'zero', 'freezes', 'load too'),
  hours: fc.constantFrom(3, 6),
});
/** With no metric at all nobody can know that statements have come to cost more. */
const world = anyWorld.map((of) => (of.fault === 'dies' ? { ...of, drift: 1 } : of));

interface Outcome {
  least: number;
  /** Credits of work that was not critical. */
  done: number;
  /** Credits of it that could have been done above the reserve by the law of conservation. */
  possible: number;
  /** Seconds at zero, and those of them in which critical and bypass needed no more than is earned. */
  atZero: number;
  unjustAtZero: number;
  /** Credits below the reserve at the worst, while it was not critical work that had spent them. */
  unjust: number;
  /** Share of samples in which the estimate was within 5 % of the capacity, while samples came. */
  close: number;
}

function run(of: World): Outcome {
  const random = randomOf(of.seed);
  const config: LedgerConfig = {
    name: 'cpu',
    capacity: CAPACITY,
    earn: EARN,
    spendMax: SPEND_MAX,
    kappa: 1 / 60,
    quantum: 0.5,
    reserve: RESERVE,
    horizon: 3600,
    mode: 'enforce',
    onMissing: 'baseline',
    effect: 'throttle',
    period: of.period * 1000,
    backlog: null,
  };
  const credits = new HostCredits([config], () => ({ backlogMs: 1e6, costOf: () => 0 }));
  let balance = of.start * CAPACITY;
  const end = of.hours * 3600;
  const history: { at: number; balance: number; used: number }[] = [];
  const outcome: Outcome = { least: balance, done: 0, possible: 0, atZero: 0, unjustAtZero: 0, unjust: 0, close: 0 };
  let close = 0;
  let looked = 0;
  let debt = 0;
  let criticalSpent = 0;
  let used = 0;
  for (let second = 0; second < end; second++) {
    const now = second * STEP_MS;
    const kappa = of.kappa * (second > end / 2 ? of.drift : 1);
    const bypass = second > end / 3 && second < (2 * end) / 3 ? of.bypass : 0;
    // Twenty ticks a second; the backlog takes whatever it is given.
    const most = balance > 0 ? VCPUS : 0.4;
    let left = Math.max(0, most - bypass);
    const critical = Math.min(left, of.critical * (0.8 + 0.4 * random()));
    left -= critical;
    credits.charge(0, (1000 * critical) / kappa);
    let other = 0;
    for (let tick = 0; tick < 50; tick++) {
      credits.tick(now + 20 * tick);
      const room = left / 50;
      let took = 0;
      while (credits.isOpenFor(2) && took < room) {
        credits.charge(2, STATEMENT_MS);
        took += (STATEMENT_MS / 1000) * kappa;
      }
      other += took;
    }
    const spend = (critical + other + bypass) / 60;
    balance = Math.min(CAPACITY, Math.max(0, balance + EARN - spend));
    used += critical + other + bypass;
    outcome.done += other / 60;
    criticalSpent += (critical + bypass) / 60;
    history.push({ at: second, balance, used });
    outcome.least = Math.min(outcome.least, balance);
    const excess = Math.max(0, (critical + bypass) / 60 - EARN);
    // Of what bypasses the proxy nothing is known once the metric is dead: while that is too much, all bets are off.
    const isBlind = of.fault === 'dies' && excess > 0;
    debt = balance >= RESERVE ? 0 : debt + (isBlind ? CAPACITY : excess);
    outcome.unjust = Math.max(outcome.unjust, balance < RESERVE ? RESERVE - balance - debt : 0);
    if (balance === 0) {
      outcome.atZero++;
      if (excess === 0 && debt === 0) outcome.unjustAtZero++;
    }
    // A sample of `period` ago becomes visible `lag` later.
    const due = second - of.lag;
    const isDead = of.fault === 'dies' && second > end / 4;
    if (due > 0 && due % of.period === 0 && !isDead) {
      const isBad = second > end / 4 && second < end / 4 + 1200;
      const { balance: value } = history[of.fault === 'freezes' && isBad ? Math.floor(end / 4) : due]!;
      const told = of.fault === 'zero' && isBad ? 0 : Math.round(2 * value) / 2;
      credits.observe('cpu', { value: told, observedAt: due * STEP_MS }, now);
      if (of.fault === 'load too' && due > of.period) {
        const rate = (used - used + history[due]!.used - history[due - of.period]!.used) / of.period / 60;
        credits.observeSpend('cpu', (due - of.period) * STEP_MS, due * STEP_MS, rate);
      }
      const view = credits.ledgers[0]!;
      if (view.estimate !== null && view.missing === '') {
        looked++;
        if (Math.abs(view.estimate.balance - balance) <= 0.05 * CAPACITY) close++;
      }
    }
  }
  outcome.close = looked === 0 ? 1 : close / looked;
  outcome.possible = Math.max(0, of.start * CAPACITY - RESERVE + EARN * end - criticalSpent);
  return outcome;
}

const describe = (of: World) => JSON.stringify(of);

t.test('work that is not critical never spends the reserve, whatever the metric does', async (t) => {
  let hours = 0;
  const started = performance.now();
  const result = fc.check(
    fc.property(world, (of) => {
      const outcome = run(of);
      hours += of.hours;
      if (outcome.unjust > 0.5) throw new Error(`${outcome.unjust.toFixed(1)} below the reserve: ${describe(of)}`);
      if (outcome.unjustAtZero > 0) throw new Error(`${outcome.unjustAtZero} s at zero: ${describe(of)}`);
    }),
    { seed: SEED, numRuns: Number(process.env.PGWEIR_RUNS ?? 300) },
  );
  t.notOk(result.failed, `seed ${result.seed}: ${(result.errorInstance as Error | null)?.message ?? 'all hold'}`);
  t.comment(`${hours} hours in ${((performance.now() - started) / 1000).toFixed(1)} s`);
});

t.test('what the law of conservation allows is done, nearly all of it', async (t) => {
  const calm: World = {
    seed: 1,
    start: 120 / CAPACITY,
    period: 300,
    lag: 150,
    critical: 0.1,
    bypass: 0,
    kappa: 0.8,
    drift: 1,
    fault: 'none',
    hours: 6,
  };
  for (const [more, share] of [
    [{}, 0.9],
    [{ lag: 600 }, 0.9],
    [{ drift: 2 }, 0.9],
    [{ fault: 'dies' }, 0.6],
    [{ bypass: 0.25 }, 0.6],
  ] as [Partial<World>, number][]) {
    const { done, possible, least, close } = run({ ...calm, ...more });
    const text = `${JSON.stringify(more)}: ${done.toFixed(0)} of ${possible.toFixed(0)} credits, least ${least.toFixed(1)}, close ${(100 * close).toFixed(0)} %`;
    t.ok(done >= share * possible, text);
    t.ok(least >= RESERVE - 0.5, text);
    t.comment(text);
  }
});
