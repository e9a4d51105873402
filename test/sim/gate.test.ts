/**
 * Simulation: the real gate (guard/gate) before a model of a database and of its clients, in events of a fake clock. Two
 * things are shown, for any seed: what the gate promises holds after every event, and work gets done under overload.
 *
 * A failing run prints its seed; PGWEIR_SEED runs it again.
 */
import fc from 'fast-check';
import t from 'tap';
import { unlimited } from '../../src/guard/budget.ts';
import { type Class, priorities } from '../../src/guard/classes.ts';
import { Gate, shedReasons } from '../../src/guard/gate.ts';
import { FixedLimit } from '../../src/guard/limit.ts';
import type { Lane, Permit } from '../../src/guard/permit.ts';
import type { Shed, Ticket } from '../../src/guard/queue.ts';
import { Tarpit } from '../../src/guard/tarpit.ts';
import { randomOf } from '../fixtures/random.ts';

const SEED = Number(process.env.PGWEIR_SEED ?? 4_711);

/** Events in the order of their times. */
class Agenda {
  now = 0;
  #events: { at: number; order: number; run: () => void }[] = [];
  #order = 0;

  after(ms: number, run: () => void): void {
    const event = { at: this.now + ms, order: this.#order++, run };
    let low = 0;
    let high = this.#events.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      const other = this.#events[middle]!;
      if (other.at > event.at || (other.at === event.at && other.order > event.order)) low = middle + 1;
      else high = middle;
    }
    this.#events.splice(low, 0, event);
  }

  /** Runs events until `end`; `check` after each. */
  run(end: number, check: () => void): void {
    for (let event = this.#events.at(-1); event !== undefined && event.at <= end; event = this.#events.at(-1)) {
      this.#events.pop();
      this.now = event.at;
      event.run();
      check();
    }
  }
}

// --- What the gate promises -------------------------------------------------------------------------------------

const someClass = (name: string): fc.Arbitrary<Class> =>
  fc.record({
    name: fc.constant(name),
    switches: fc.constant([name]),
    priority: fc.constantFrom(...priorities),
    weight: fc.constantFrom(1, 1, 4),
    floor: fc.constantFrom(0, 0, 0.1, 0.3),
    floorServers: fc.constantFrom(0, 0, 0, 1),
    ceiling: fc.constantFrom(1, 1, 0.5, 0.2),
    serversMax: fc.constantFrom(Number.POSITIVE_INFINITY, 1, 3),
    queueMax: fc.constantFrom(5, 50, 1000),
    waitMax: fc.constantFrom(100, 1000, 5000),
    deadline: fc.constantFrom(0, 0, 50, 500),
    isFifo: fc.boolean(),
  });

const world = fc.record({
  classes: fc.tuple(someClass('a'), someClass('b'), someClass('c')),
  limit: fc.integer({ min: 1, max: 12 }),
  /** Mean ms between arrivals, and mean ms of service. */
  every: fc.constantFrom(1, 5, 20),
  service: fc.constantFrom(2, 20, 100),
  seed: fc.integer(),
});

t.test('what the gate promises holds after every event', async (t) => {
  let events = 0;
  let admissions = 0;
  const run = ({ classes, limit, every, service, seed }: typeof world extends fc.Arbitrary<infer W> ? W : never) => {
    const random = randomOf(seed);
    const agenda = new Agenda();
    const gate = new Gate({
      classes,
      isEnforced: true,
      limit: new FixedLimit(limit),
      retryRatio: 0.1,
      valveOf: () => 1,
      budget: unlimited,
    });
    const live = new Set<Permit>();
    const waiting = new Set<Ticket>();
    const lastFifo = new Map<string, number>();
    /** Servers that were at work when something was admitted, as they are before it. */
    const claim = (lane: Lane) => {
      admissions++;
      const others = gate.lanes.filter((each) => each !== lane && each.queue.size > 0);
      const atWork = gate.atWork - 1;
      const isReserved = lane.atWork - 1 < lane.reserveOf(limit);
      if (atWork >= limit && !isReserved) throw new Error('admitted beyond the limit');
      if (lane.atWork - 1 >= lane.ceilingOf(limit)) throw new Error('admitted beyond its ceiling');
      // As it was before the permit.
      lane.atWork--;
      const isBelowFloor = lane.isBelowFloor(limit, agenda.now);
      lane.atWork++;
      for (const other of others) {
        if (other.atWork >= other.ceilingOf(limit)) continue;
        if (atWork >= limit && other.atWork >= other.reserveOf(limit)) continue;
        const isOtherBelow = other.isBelowFloor(limit, agenda.now);
        if (isOtherBelow && !isBelowFloor) throw new Error('ahead of a class below its floor');
        if (other.rank < lane.rank && !isBelowFloor) throw new Error('ahead of a higher priority');
      }
    };
    const serve = (permit: Permit) => {
      live.add(permit);
      claim(permit.lane);
      // Some transactions think in between, and go on whatever the limit says.
      const ms = -Math.log(1 - random()) * service;
      const finish = () => {
        live.delete(permit);
        permit.end(agenda.now);
      };
      if (random() < 0.8) agenda.after(ms, finish);
      else {
        agenda.after(ms / 2, () => permit.rest(agenda.now));
        agenda.after(ms, () => permit.work(agenda.now));
        agenda.after(ms * 1.5, finish);
      }
    };
    const arrive = () => {
      const of = classes[Math.floor(random() * classes.length)]!;
      const since = agenda.now;
      const application = random() < 0.5 ? 'x' : 'y';
      const deadline = random() < 0.2 ? 30 : 0;
      let ticket: Ticket | null = null;
      const expiresAt = since + Math.min(of.deadline || Number.POSITIVE_INFINITY, deadline || Number.POSITIVE_INFINITY);
      const decision = gate.decide(
        {
          class: of,
          application,
          deadline,
          bytes: 100,
          shape: 0,
          haste: 0,
          fingerprint: () => events,
          onMoved: () => {},
          onAdmit(permit) {
            waiting.delete(ticket!);
            if (agenda.now >= expiresAt) throw new Error('admitted after its deadline');
            if (of.isFifo) {
              const before = lastFifo.get(`${of.name}${application}`) ?? -1;
              if (since < before) throw new Error('fifo out of order');
              lastFifo.set(`${of.name}${application}`, since);
            }
            serve(permit);
          },
          onShed({ reason }) {
            waiting.delete(ticket!);
            if (of.isFifo && reason === 'overload') throw new Error('fifo work shed as overload');
            if (agenda.now - since > of.waitMax + 20) throw new Error('waited beyond waitMax');
          },
        },
        agenda.now,
      );
      if (decision.kind === 'admit') serve(decision.permit);
      if (decision.kind === 'wait') {
        ticket = decision.ticket;
        waiting.add(ticket);
        if (random() < 0.1)
          agenda.after(random() * 100, () => {
            if (waiting.delete(ticket!)) gate.leave(ticket!);
          });
      }
      agenda.after(-Math.log(1 - random()) * every, arrive);
    };
    const tick = () => {
      gate.tick(agenda.now);
      agenda.after(10, tick);
    };
    agenda.after(0, arrive);
    agenda.after(0, tick);
    agenda.run(3_000, () => {
      events++;
      const permits = gate.lanes.reduce((sum, lane) => sum + lane.permits, 0);
      if (permits !== live.size) throw new Error(`${permits} permits counted, ${live.size} alive`);
      const queued = gate.lanes.reduce((sum, lane) => sum + lane.queue.size, 0);
      if (queued !== waiting.size) throw new Error(`${queued} counted in queues, ${waiting.size} wait`);
      for (const lane of gate.lanes) {
        if (lane.queue.bytes !== lane.queue.size * 100) throw new Error('bytes are not conserved');
        if (lane.queue.size > lane.class.queueMax) throw new Error('too many wait');
        if (lane.atWork < 0 || lane.permits < lane.atWork) throw new Error('more at work than permits');
        const { offered, admitted, shed } = lane.counts;
        const refused = shedReasons.reduce((sum, reason) => sum + shed[reason], 0);
        if (admitted + refused + lane.queue.size > offered) throw new Error('more answers than requests');
        const isIdle = gate.atWork < limit && lane.atWork < lane.ceilingOf(limit);
        if (isIdle && lane.queue.size > 0) throw new Error('somebody waits although there is room');
      }
    });
  };
  const result = fc.check(
    fc.property(world, (given) => run(given)),
    { seed: SEED, numRuns: 60 },
  );
  t.notOk(result.failed, `seed ${result.seed}: ${(result.errorInstance as Error | null)?.message ?? 'all hold'}`);
  if (result.failed) t.comment(JSON.stringify(result.counterexample));
  t.ok(events > 10_000 && admissions > 5_000, `${events} events, ${admissions} admissions`);
});

// --- Work under overload ----------------------------------------------------------------------------------------

const KNEE = 4;
/** How much longer a statement takes when `busy` servers work: beyond the knee they share, and pay for sharing. */
const slowdown = (busy: number) => (busy <= KNEE ? 1 : (busy / KNEE) * (1 + 0.05 * (busy - KNEE)));

interface Load {
  class: Class;
  /** Ms of work of one statement, its share of all requests, and within how many ms its answer is of use. */
  cost: number;
  share: number;
  slo: number;
}

const kind = (name: string, priority: Class['priority'], more: Partial<Class> = {}): Class => ({
  name,
  switches: [name],
  priority,
  weight: 1,
  floor: 0,
  floorServers: 0,
  ceiling: 1,
  serversMax: Number.POSITIVE_INFINITY,
  queueMax: 1000,
  waitMax: 2000,
  deadline: 0,
  isFifo: false,
  ...more,
});

/** The mix of research: critical is a few percent of the cost. */
const loads: Load[] = [
  { class: kind('critical', 'critical', { deadline: 100 }), cost: 4, share: 0.1, slo: 100 },
  { class: kind('normal', 'normal', { deadline: 300 }), cost: 8, share: 0.2, slo: 300 },
  { class: kind('batch', 'batch', { deadline: 2000 }), cost: 20, share: 0.4, slo: 2000 },
  { class: kind('deferrable', 'deferrable', { floor: 0.02 }), cost: 50, share: 0.3, slo: 10_000 },
];
const CAPACITY = KNEE / loads.reduce((sum, { cost, share }) => sum + cost * share, 0);

/** The kind of a request that `dice` (0 to 1) stands for. */
function pick(dice: number): Load {
  let left = dice;
  for (const load of loads) {
    left -= load.share;
    if (left <= 0) return load;
  }
  return loads[0]!;
}

/** Runs the mix at `times` the capacity for `seconds`; gives useful work (ms of work per ms) and the critical share. */
function overload(times: number, seed: number, limit: number, isEnforced: boolean, seconds = 20) {
  const random = randomOf(seed);
  const agenda = new Agenda();
  const tarpit = new Tarpit(random);
  tarpit.configure({ least: 250, most: 2000 });
  const classes = loads.map((load) => load.class);
  const gate = new Gate(
    { classes, isEnforced, limit: new FixedLimit(limit), retryRatio: 0.1, valveOf: () => 1, budget: unlimited },
    tarpit,
  );
  let good = 0;
  let prints = 0;
  const critical = { asked: 0, inTime: 0 };
  let busy = 0;
  const attempt = (load: Load, intended: number, retries: number, print: number): void => {
    const start = (permit: Permit) => {
      busy++;
      agenda.after(load.cost * slowdown(busy), () => {
        busy--;
        permit.end(agenda.now);
        if (agenda.now - intended > load.slo) return;
        good += load.cost;
        if (load === loads[0]) critical.inTime++;
      });
    };
    const rude = ({ delayMs }: Shed) => {
      if (retries > 0) agenda.after(delayMs, () => attempt(load, intended, retries - 1, print));
    };
    const decision = gate.decide(
      {
        class: load.class,
        application: '',
        deadline: 0,
        bytes: 1,
        shape: 0,
        haste: 3 - retries,
        fingerprint: () => print,
        onMoved: () => {},
        onAdmit: start,
        onShed: rude,
      },
      agenda.now,
    );
    if (decision.kind === 'admit') start(decision.permit);
    else if (decision.kind === 'shed') rude(decision);
  };
  const arrive = () => {
    const load = pick(random());
    if (load === loads[0]) critical.asked++;
    attempt(load, agenda.now, 3, ++prints);
    agenda.after(-Math.log(1 - random()) / (CAPACITY * times), arrive);
  };
  const tick = () => {
    gate.tick(agenda.now);
    agenda.after(20, tick);
  };
  agenda.after(0, arrive);
  agenda.after(0, tick);
  agenda.run(seconds * 1000, () => {});
  return { goodput: good / (seconds * 1000), critical: critical.inTime / critical.asked };
}

t.test('useful work does not collapse under overload, and critical work hardly notices', async (t) => {
  const unguarded = overload(4, SEED, KNEE, false);
  const calm = overload(1, SEED, KNEE, true);
  for (const times of [2, 4, 10]) {
    const { goodput, critical } = overload(times, SEED, KNEE, true);
    t.ok(goodput >= 0.9 * calm.goodput, `${times}×: ${goodput.toFixed(2)}, at 1× ${calm.goodput.toFixed(2)}`);
    t.ok(critical >= 0.995, `${times}×: ${(100 * critical).toFixed(2)} % of the critical in time`);
  }
  t.ok(unguarded.goodput < 0.5 * calm.goodput, `without the gate: ${unguarded.goodput.toFixed(2)}`);
});
