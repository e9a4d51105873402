/** guard/gate, guard/queue: who is admitted, who waits, who is shed. Time is moved by hand. */
import t from 'tap';
import type { Admission } from '../../src/guard/admission.ts';
import { unlimited } from '../../src/guard/budget.ts';
import type { Class } from '../../src/guard/classes.ts';
import { Door } from '../../src/guard/door.ts';
import { Gate, type GateRules } from '../../src/guard/gate.ts';
import { FixedLimit } from '../../src/guard/limit.ts';
import type { Permit } from '../../src/guard/permit.ts';
import type { Valve } from '../../src/guard/switches.ts';
import { Tarpit } from '../../src/guard/tarpit.ts';

const base: Class = {
  name: 'normal',
  switches: ['normal'],
  priority: 'normal',
  weight: 1,
  floor: 0,
  floorServers: 0,
  ceiling: 1,
  serversMax: Number.POSITIVE_INFINITY,
  queueMax: 1000,
  waitMax: 5000,
  deadline: 0,
  isFifo: false,
};
const named = (name: string, more: Partial<Class> = {}): Class => ({ ...base, name, ...more });

let unique = 0;
const rules = (classes: Class[], limit: number, isEnforced = true): GateRules => ({
  classes,
  isEnforced,
  limit: new FixedLimit(limit),
  retryRatio: 0.1,
  valveOf: () => valve,
  budget: unlimited,
});
/** What the switch of all classes lets pass. */
let valve: Valve = 1;

function house(classes: Class[], limit: number, isEnforced = true) {
  const gate = new Gate(rules(classes, limit, isEnforced), new Tarpit(() => 0.5));
  const events: string[] = [];
  const permits = new Map<string, Permit>();
  let now = 0;
  const ask = (
    id: string,
    of: Class,
    more: { application?: string; deadline?: number; bytes?: number; shape?: number; print?: number } = {},
  ) => {
    const decision = gate.decide(
      {
        class: of,
        application: '',
        deadline: 0,
        bytes: 0,
        shape: 0,
        haste: 0,
        fingerprint: () => more.print ?? ++unique,
        onMoved: () => {},
        ...more,
        onAdmit: (permit) => {
          permits.set(id, permit);
          events.push(`+${id}`);
        },
        onShed: ({ reason }) => events.push(`-${id} ${reason}`),
      },
      now,
    );
    if (decision.kind === 'admit') permits.set(id, decision.permit);
    return decision.kind === 'shed' ? decision.reason : decision.kind;
  };
  const end = (id: string, afterMs = 0) => {
    now += afterMs;
    permits.get(id)!.end(now);
  };
  const pass = (ms: number) => {
    for (const until = now + ms; now < until; now += 10) gate.tick(now);
  };
  const take = () => events.splice(0);
  return { gate, ask, end, pass, take, permits, now: () => now };
}

t.test('as many are at work as the limit says; the next is who has waited longest', async (t) => {
  const { gate, ask, end, take } = house([base], 2);
  t.same([ask('a', base), ask('b', base), ask('c', base), ask('d', base)], ['admit', 'admit', 'wait', 'wait']);
  end('a');
  t.same(take(), ['+c']);
  end('b');
  end('c');
  end('c'); // Ending twice counts once.
  t.same(take(), ['+d']);
  t.equal(gate.atWork, 1);
  end('d');
  t.equal(gate.atWork, 0);
});

t.test('higher priorities go first, whoever came first', async (t) => {
  const [low, middle, high] = [
    named('low', { priority: 'deferrable' }),
    named('middle', { priority: 'batch' }),
    named('high', { priority: 'critical' }),
  ];
  const { ask, end, take } = house([low, middle, high], 1);
  ask('run', low);
  t.same([ask('l', low), ask('m', middle), ask('h', high)], ['wait', 'wait', 'wait']);
  end('run');
  end('h');
  end('m');
  t.same(take(), ['+h', '+m', '+l']);
});

t.test('a floor comes before priorities', async (t) => {
  const low = named('low', { priority: 'deferrable', floor: 0.1 });
  const high = named('high', { priority: 'critical' });
  const { ask, end, take } = house([low, high], 4);
  for (const id of ['a', 'b', 'c', 'd']) ask(id, high);
  for (const id of ['l1', 'l2']) ask(id, low);
  for (const id of ['h1', 'h2']) ask(id, high);
  end('a');
  end('b');
  end('c');
  t.same(take(), ['+l1', '+h1', '+h2']);
});

t.test(
  'a floor of a part of a server is that part of the time, not the first turn whenever none is at work',
  async (t) => {
    const low = named('low', { priority: 'deferrable', floor: 0.1 });
    const high = named('high', { priority: 'critical' });
    const { gate, ask, end, permits, take } = house([low, high], 1);
    let id = 0;
    const queue = () => {
      for (const each of [low, high])
        while (gate.lanes.find((lane) => lane.class === each)!.queue.size < 2) ask(`${each.name}-${id++}`, each);
    };
    ask('first', high);
    queue();
    end('first', 1);
    for (let lap = 0; lap < 3000; lap++) {
      const name = take()[0]!.slice(1);
      queue();
      end(name, permits.get(name)!.lane.class === low ? 40 : 10);
    }
    const [mine, theirs] = gate.lanes.map((lane) => lane.counts.workMs);
    const share = mine! / (mine! + theirs!);
    t.ok(share > 0.08 && share < 0.13, `${(100 * share).toFixed(1)} % of the time`);
  },
);

t.test('whole servers of a floor are given although the limit is reached', async (t) => {
  const low = named('low', { priority: 'batch', floor: 0.1 });
  const high = named('high', { priority: 'critical', floor: 0.5 });
  const { ask, end, take } = house([low, high], 2);
  t.same([ask('a', low), ask('b', low)], ['admit', 'admit']);
  t.same([ask('c', high), ask('d', high)], ['admit', 'wait'], 'one, while others hold theirs for long');
  t.equal(ask('e', low), 'wait');
  end('c');
  t.same(take(), ['+d']);
  end('d');
  end('a');
  t.same(take(), ['+e']);
});

t.test('a class at its ceiling leaves the rest to others, lower ones too', async (t) => {
  const high = named('high', { priority: 'critical', ceiling: 0.5 });
  const low = named('low', { priority: 'deferrable', serversMax: 1 });
  const { ask, end, take } = house([high, low], 4);
  t.same([ask('a', high), ask('b', high), ask('c', high)], ['admit', 'admit', 'wait']);
  t.same([ask('l', low), ask('l2', low)], ['admit', 'wait']);
  end('l');
  t.same(take(), ['+l2']);
  end('a');
  t.same(take(), ['+c']);
});

t.test('equals share the servers’ time by weight, not by number of requests', async (t) => {
  const heavy = named('heavy', { weight: 3 });
  const light = named('light');
  const { gate, ask, end, permits, take } = house([heavy, light], 1);
  let id = 0;
  const queue = () => {
    for (const each of [heavy, light])
      while (gate.lanes.find((lane) => lane.class === each)!.queue.size < 3) ask(`${each.name}-${id++}`, each);
  };
  ask('first', light);
  queue();
  end('first', 1);
  for (let lap = 0; lap < 400; lap++) {
    const [next] = take();
    const name = next!.slice(1);
    queue();
    permits.get(name)!.lane.class.name === 'heavy' ? end(name, 10) : end(name, 30);
  }
  const [a, b] = gate.lanes.map((lane) => lane.counts.workMs);
  t.ok(Math.abs(a! / b! - 3) < 0.3, `${a} to ${b} ms`);
});

t.test('applications of a class take turns', async (t) => {
  const { ask, end, take } = house([base], 1);
  ask('run', base);
  for (const id of ['a1', 'a2', 'a3']) ask(id, base, { application: 'a' });
  ask('b1', base, { application: 'b' });
  end('run');
  end('a1');
  end('b1');
  end('a2');
  t.same(take(), ['+a1', '+b1', '+a2', '+a3']);
});

t.test('queues are bounded in number and in bytes', async (t) => {
  const small = named('small', { queueMax: 2 });
  const { ask } = house([small, base], 1);
  ask('run', base);
  t.same([ask('a', small), ask('b', small), ask('c', small)], ['wait', 'wait', 'queue']);
  t.equal(ask('big', base, { bytes: 10 * 1024 * 1024 }), 'wait');
  t.equal(ask('bigger', base, { bytes: 10 * 1024 * 1024 }), 'queue');
});

t.test('nobody waits beyond waitMax, nor is admitted after a deadline', async (t) => {
  const brief = named('brief', { waitMax: 200, isFifo: true });
  const dated = named('dated', { deadline: 100, isFifo: true });
  const { ask, end, pass, take } = house([brief, dated], 1);
  ask('run', brief);
  ask('a', brief);
  ask('b', dated);
  ask('c', brief, { deadline: 50 });
  pass(60);
  t.same(take(), ['-c deadline']);
  pass(60);
  t.same(take(), ['-b deadline']);
  pass(100);
  t.same(take(), ['-a wait']);
  ask('d', dated);
  end('run', 150); // No tick has come between.
  t.same(take(), ['-d deadline']);
});

t.test('an overloaded class lets the youngest go first, and sheds who has waited for too long', async (t) => {
  const auto = named('auto', { waitMax: 5000 }); // Target: 500 ms.
  const fifo = named('fifo', { waitMax: 5000, isFifo: true });
  for (const [of, expected] of [
    [auto, ['-old overload']],
    [fifo, []],
  ] as const) {
    const { gate, ask, end, pass, take } = house([of], 1);
    for (let n = 0; n < 40; n++) {
      ask(`${n}`, of);
      end(`${n}`, 1); // Its work is short.
    }
    ask('run', of);
    ask('old', of);
    pass(600);
    t.equal(gate.lanes[0]!.queue.isOverloaded, false, 'alone it stands in nobody’s way');
    ask('also', of);
    pass(10);
    t.equal(gate.lanes[0]!.queue.isOverloaded, true);
    ask('young', of);
    end('run');
    pass(900);
    t.same(take().length, 1, 'a burst may pass');
    pass(150);
    t.same(take(), expected, of.name);
  }
});

t.test('a transaction whose client thinks is not at work, and is never asked again', async (t) => {
  const { gate, ask, end, take, permits, now } = house([base], 1);
  ask('a', base);
  ask('b', base);
  permits.get('a')!.rest(now());
  t.same(take(), ['+b']);
  permits.get('a')!.work(now());
  t.equal(gate.atWork, 2, 'over the limit rather than stuck with its locks');
  t.equal(ask('c', base), 'wait');
  end('b');
  t.same(take(), []);
  end('a');
  t.same(take(), ['+c']);
});

t.test('who leaves the queue is not admitted', async (t) => {
  const { gate, ask, end, take, now } = house([base], 1);
  ask('a', base);
  const decision = gate.decide(
    {
      class: base,
      application: '',
      deadline: 0,
      bytes: 0,
      shape: 0,
      haste: 0,
      fingerprint: () => 0,
      onMoved: () => {},
      onAdmit: () => t.fail(),
      onShed: () => t.fail(),
    },
    now(),
  );
  if (decision.kind === 'wait') gate.leave(decision.ticket);
  ask('c', base);
  end('a');
  t.same(take(), ['+c']);
});

t.test('a gate that observes admits everybody, and counts what it would do', async (t) => {
  const { gate, ask } = house([base], 1, false);
  t.same([ask('a', base), ask('b', base), ask('c', base)], ['admit', 'admit', 'admit']);
  t.match(gate.lanes[0]!.counts, { offered: 3, admitted: 3, observed: 2 });
});

t.test('a new configuration keeps what is known of classes, and ends what is gone', async (t) => {
  const old = named('old');
  const { gate, ask, end, take } = house([base, old], 2);
  ask('a', base);
  ask('b', old);
  ask('c', base);
  const changed = named('normal', { weight: 2 });
  gate.configure(rules([changed], 1));
  t.same(
    gate.lanes.map(({ class: { name } }) => name),
    ['normal', 'old'],
  );
  t.equal(gate.lanes[0]!.class.weight, 2);
  end('b');
  t.same(take(), [], 'one is at work, which is the limit now');
  end('a');
  t.same(take(), ['+c']);
  gate.configure(rules([changed], 1));
  t.equal(gate.lanes.length, 1);
});

t.test('a switch refuses, lets a share pass, or keeps all waiting, also where the gate only observes', async (t) => {
  for (const isEnforced of [true, false]) {
    const { gate, ask, pass, take } = house([base], 100, isEnforced);
    const turn = (to: Valve) => {
      valve = to;
      gate.turnValves();
    };
    turn(0);
    t.equal(ask('a', base), 'switch');
    turn(0.25);
    const answers = Array.from({ length: 8 }, (_, index) => ask(`s${index}`, base));
    t.equal(answers.filter((answer) => answer === 'admit').length, 2);
    t.notOk(gate.mayShare(base));
    turn('hold');
    t.equal(ask('h1', base), 'wait');
    t.equal(ask('h2', base), 'wait');
    pass(50);
    t.same(take(), []);
    turn(1);
    pass(20);
    t.same(take(), ['+h1', '+h2']);
    turn('hold');
    ask('h3', base);
    turn(0);
    pass(20);
    t.same(take(), ['-h3 switch']);
    valve = 1;
  }
});

t.test('who waits in a class whose priority changes, twice, is served or leaves all the same', async (t) => {
  const { gate, ask, end, take, now } = house([base], 1);
  ask('a', base);
  const waits = (of: Class) =>
    gate.decide(
      {
        class: of,
        application: '',
        deadline: 0,
        bytes: 0,
        shape: 0,
        haste: 0,
        fingerprint: () => 0,
        onMoved: () => {},
        onAdmit: () => t.fail(),
        onShed: () => t.fail(),
      },
      now(),
    );
  const gone = waits(base);
  ask('b', base);
  const lower = named('normal', { priority: 'batch' });
  gate.configure(rules([lower], 1));
  ask('c', lower);
  gate.configure(rules([lower], 1));
  if (gone.kind === 'wait') gate.leave(gone.ticket);
  end('a');
  t.same(take(), ['+b']);
  end('b');
  t.same(take(), ['+c']);
  end('c');
  t.equal(gate.atWork, 0);
  t.ok(gate.lanes.every((lane) => lane.isIdle));
});

t.test('who waits when the gate goes over to observing is let in, limit and ceiling or not', async (t) => {
  const narrow = named('narrow', { serversMax: 1 });
  const { gate, ask, pass, take } = house([narrow], 1);
  for (const id of ['a', 'b', 'c']) ask(id, narrow);
  gate.configure(rules([narrow], 1, false));
  pass(20);
  t.same(take(), ['+b', '+c']);
  ask('d', narrow);
  t.equal(gate.lanes[0]!.counts.observed, 1);
});

t.test('sharing is not ahead of those who wait', async (t) => {
  const [high, low] = [named('high', { priority: 'critical' }), named('low', { priority: 'batch' })];
  const { gate, ask } = house([high, low], 1);
  t.ok(gate.hasRoom(low, 0));
  ask('a', low);
  t.notOk(gate.hasRoom(low, 0));
  t.ok(gate.mayShare(low));
  ask('b', high);
  t.notOk(gate.mayShare(low));
  t.notOk(gate.mayShare(high));
});

t.test('retries beyond their budget go behind first attempts, and have half of the queue', async (t) => {
  const small = named('small', { queueMax: 4 });
  const { ask, end, take, pass } = house([small], 1);
  ask('run', small);
  for (const print of [1, 2, 3, 4]) ask(`first${print}`, small, { print });
  t.equal(ask('five', small, { print: 5 }), 'queue');
  t.equal(ask('six', small, { print: 6 }), 'queue');
  for (const id of ['run', 'first1', 'first2', 'first3', 'first4']) end(id);
  take();
  ask('run', small);
  t.equal(ask('five again', small, { print: 5 }), 'wait', 'this one is in the budget');
  t.equal(ask('six again', small, { print: 6 }), 'wait', 'this one is not');
  t.equal(ask('new', small), 'wait');
  t.equal(ask('six once more', small, { print: 6 }), 'queue', 'half is for others');
  for (const id of ['run', 'five again', 'new']) end(id);
  t.same(take(), ['+five again', '+new', '+six again']);
  pass(10);
});

t.test('who asks again at once, again and again, waits for the next refusal', async (t) => {
  const none = named('none', { queueMax: 0 });
  const tarpit = new Tarpit(() => 0);
  tarpit.configure({ least: 250, most: 2000 });
  const gate = new Gate(rules([none], 1), tarpit);
  const ask = (haste: number) => {
    const decision = gate.decide(
      {
        class: none,
        application: '',
        deadline: 0,
        bytes: 0,
        shape: 0,
        haste,
        fingerprint: () => 7,
        onMoved: () => {},
        onAdmit: () => t.fail(),
        onShed: () => t.fail(),
      },
      haste,
    );
    return decision.kind === 'shed' ? decision.delayMs : decision.kind;
  };
  gate.admit(none, 0);
  t.same([0, 1, 2, 3, 4, 5].map(ask), [0, 0, 0, 0, 250, 250]);
  t.equal(gate.lanes[0]!.counts.retries, 5);
});

t.test('what a statement costs is known by its shape: queues are as long as that, and time goes by it', async (t) => {
  const limit = new FixedLimit(1);
  for (let n = 0; n < 100; n++)
    for (const [shape, ms] of [
      [1, 1],
      [2, 400],
    ] as const)
      limit.sample(shape, ms);
  const brief = named('brief', { waitMax: 1000 });
  const { gate, ask, end, take, now } = house([brief], 1);
  gate.configure({ ...rules([brief], 1), limit });
  ask('run', brief, { shape: 2 });
  t.same(
    [ask('a', brief, { shape: 2 }), ask('b', brief, { shape: 2 }), ask('c', brief, { shape: 2 })],
    ['wait', 'wait', 'wait'],
  );
  t.ok(Math.abs(gate.lanes[0]!.queue.cost - 1200) < 1, `${gate.lanes[0]!.queue.cost}`);
  t.equal(ask('d', brief, { shape: 1 }), 'overload', 'it would wait for longer than its class allows');
  t.equal(gate.lanes[0]!.counts.shed.overload, 1);
  end('run');
  t.same(take(), ['+a']);
  t.ok(Math.abs(gate.lanes[0]!.queue.cost - 800) < 1);
  t.equal(ask('e', brief, { shape: 1, deadline: 100 }), 'wait');
  t.ok(now() < 1);
});

t.test('without an adaptive limit costs are those of few at work, not of a crowd', async (t) => {
  const limit = new FixedLimit(Number.POSITIVE_INFINITY);
  for (let n = 0; n < 100; n++) limit.sample(1, 300, 10); // All that is known at first.
  for (let n = 0; n < 200; n++) limit.sample(1, 100, 1);
  const calm = limit.baselines.costOf(1);
  t.ok(calm < 250, `${calm}`);
  for (let n = 0; n < 1000; n++) limit.sample(1, 300, 10);
  t.equal(limit.baselines.costOf(1), calm, 'a crowd is no news');
  for (let n = 0; n < 200; n++) limit.sample(1, 100, 10);
  t.ok(limit.baselines.costOf(1) < 105, 'unless it is quicker');
});

t.test('work is paid for in advance and settled, whoever does it and however it ends', async (t) => {
  const charged: number[] = [0, 0, 0, 0];
  const budget = {
    ...unlimited,
    charge(rank: number, ms: number) {
      charged[rank] = charged[rank]! + ms;
    },
  };
  const limit = new FixedLimit(10);
  for (let n = 0; n < 100; n++) limit.sample(1, 100);
  const batch = named('batch', { priority: 'batch' });
  const { gate, ask, permits } = house([batch], 10);
  gate.configure({ ...rules([batch], 10), limit, budget });
  ask('a', batch, { shape: 1 });
  t.ok(Math.abs(charged[2]! - 100) < 1, 'in advance');
  permits.get('a')!.sample(1, 250);
  permits.get('a')!.rest(250);
  permits.get('a')!.end(300);
  t.ok(Math.abs(charged[2]! - 100) < 1, 'at what it takes in calm');
  ask('lost', batch, { shape: 1 });
  permits.get('lost')!.end(30_000);
  t.ok(charged[2]! > 30_000, `its client has gone, its work was done: ${charged[2]}`);
  const before = charged[2]!;
  ask('line', batch, { shape: 1 });
  permits.get('line')!.sample(1, 100, 0);
  permits.get('line')!.sample(1, 100);
  permits.get('line')!.rest(200);
  permits.get('line')!.end(200);
  t.ok(Math.abs(charged[0]! - 100) < 1 && Math.abs(charged[2]! - before - 100) < 1, 'each rider pays for itself');
});

t.test(
  'while there is no primary everybody waits, up to its deadline; then the highest class is first, as if it had just come',
  (t) => {
    const high = named('high', { priority: 'critical' });
    const low = named('low', { priority: 'batch', waitMax: 1_000 });
    const { gate, ask, pass, take, end, now } = house([high, low], 1);
    let room = 3;
    gate.setOutage({ mayHold: () => room-- > 0 }, now());
    t.same([ask('l', low), ask('d', low, { deadline: 500 }), ask('h', high)], ['wait', 'wait', 'wait']);
    t.equal(ask('more', high), 'hold', 'as many wait as may');
    pass(5_000);
    t.same(take(), ['-d deadline'], 'waitMax does not count');
    gate.setOutage(null, now());
    t.same(take(), ['+h']);
    t.notOk(gate.lanes[1]!.queue.isOverloaded);
    pass(500);
    end('h');
    t.same(take(), ['+l']);
    const moved: number[] = [];
    gate.setOutage({ mayHold: () => true }, now());
    gate.decide(
      {
        class: low,
        application: '',
        deadline: 0,
        bytes: 7,
        shape: 0,
        haste: 0,
        fingerprint: () => 1,
        onMoved: (at) => moved.push(at),
        onAdmit: () => t.fail('it is not this host'),
        onShed: () => t.fail(''),
      },
      now(),
    );
    t.same([gate.waiting, gate.waitingBytes], [1, 7]);
    gate.moveAll(now());
    gate.setOutage(null, now());
    t.same([moved.length, gate.waiting], [1, 0], 'it waits elsewhere');
    t.end();
  },
);

t.test('a door that closes takes its own outage away, and not that of another', (t) => {
  const { gate } = house([named('normal')], 1);
  const admission = { gates: new Map([['a', gate]]), gateOf: () => gate } as unknown as Admission;
  const [old, next] = [new Door(admission, ['a']), new Door(admission, ['a'])];
  const outage = { mayHold: () => true };
  old.setOutage('a', { mayHold: () => true }, 0);
  next.setOutage('a', outage, 1);
  old.close(2);
  t.equal(gate.outage, outage);
  next.close(3);
  t.equal(gate.outage, null);
  t.end();
});
