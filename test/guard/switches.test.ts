/** guard/switches: what people set by hand, and how it comes back. Time is moved by hand. */
import fc from 'fast-check';
import t from 'tap';
import { type Position, Switches, type Weather } from '../../src/guard/switches.ts';

const setting = (position: Position, until: number | null = null) => ({
  position,
  until,
  reason: '',
  actor: 'somebody',
  at: 0,
});

function house(base: [string, Position][] = [], at = 0) {
  const switches = new Switches();
  let now = at;
  const reload = (to: [string, Position][]) => switches.configure(new Map(to), [], now);
  reload(base);
  const pass = (ms: number, weather: Weather = 'good') => {
    for (const until = now + ms; now < until; now += 100) switches.tick(now, now, weather);
  };
  return { switches, pass, reload, now: () => now };
}

t.test('closing takes effect at once; what nobody has touched is what the configuration says', async (t) => {
  const { switches, now } = house([['a', 0.25]]);
  t.equal(switches.valveOf('a'), 0.25);
  t.equal(switches.valveOf('b'), 1);
  switches.set('b', setting('off'), now());
  t.equal(switches.valveOf('b'), 0);
  switches.set('b', setting('hold'), now());
  t.equal(switches.valveOf('b'), 'hold');
  switches.set('a', setting(0.1), now());
  t.equal(switches.valveOf('a'), 0.1);
});

t.test('going back on is a ramp, whether by hand, by clearing or because its time is over', async (t) => {
  for (const [how, position] of [
    ['set', 'off'],
    ['clear', 'hold'],
    ['time', 'off'],
  ] as const) {
    const { switches, pass, now } = house();
    switches.set('a', setting(position, how === 'time' ? 1000 : null), now());
    pass(1000);
    if (how === 'set') switches.set('a', setting('on'), now());
    if (how === 'clear') switches.clear('a', now());
    pass(200);
    const seen: unknown[] = [];
    for (let step = 0; step < 7; step++, pass(20_000)) seen.push(switches.valveOf('a'));
    t.same(seen, [0.01, 0.05, 0.1, 0.25, 0.5, 1, 1], how);
  }
});

t.test('a ramp begins above what has passed before, and ends where the switch stands', async (t) => {
  const { switches, pass, now } = house([['a', 0.5]]);
  switches.set('a', setting(0.1), now());
  switches.clear('a', now());
  t.equal(switches.valveOf('a'), 0.25);
  pass(21_000);
  t.equal(switches.valveOf('a'), 0.5);
  pass(100_000);
  t.equal(switches.valveOf('a'), 0.5);
});

t.test('steps are taken back while the database does worse, but never to nothing', async (t) => {
  const { switches, pass, now } = house();
  switches.set('a', setting('off'), now());
  switches.set('a', setting('on'), now());
  pass(61_000);
  t.equal(switches.valveOf('a'), 0.25);
  pass(6_000, 'bad');
  t.equal(switches.valveOf('a'), 0.1);
  pass(100_000, 'bad');
  t.equal(switches.valveOf('a'), 0.01);
  pass(21_000);
  t.equal(switches.valveOf('a'), 0.05);
});

t.test(
  'what was set is there after a restart, unless it has been over for as long as it takes to come back',
  async (t) => {
    const { switches, now } = house();
    switches.set('a', setting('off'), now());
    switches.set('b', setting('off', 1_000), now());
    for (const [wall, b] of [
      [500, 0],
      [5_000, 0.01],
      [100_999, 0.01],
      [101_000, 1],
      [7 * 86_400_000, 1],
    ] as const) {
      const { switches: next } = house();
      next.restore(switches, 0, wall);
      next.tick(0, wall, 'good');
      t.same([next.valveOf('a'), next.valveOf('b')], [0, b], `${wall}`);
      t.equal(next.settings.has('b'), wall === 500);
    }
  },
);

t.test('a restart takes nothing back of a ramp, and skips nothing', async (t) => {
  for (const passed of [0, 21_000, 81_000, 101_000]) {
    const { switches, pass, now } = house();
    switches.set('a', setting('off'), now());
    switches.set('a', setting('on'), now());
    pass(passed);
    const { switches: next, pass: passNext } = house();
    next.restore(switches, 0, now());
    t.equal(next.valveOf('a'), switches.valveOf('a'));
    passNext(101_000);
    t.equal(next.valveOf('a'), 1);
  }
});

t.test('another configuration opens as a hand does', async (t) => {
  const { switches, pass, reload, now } = house([
    ['a', 'off'],
    ['b', 'hold'],
    ['c', 0.05],
    ['d', 'off'],
  ]);
  const valves = () => ['a', 'b', 'c', 'd'].map((name) => switches.valveOf(name));
  reload([
    ['a', 'on'],
    ['b', 'on'],
    ['c', 0.25],
  ]);
  t.same(valves(), [0.01, 0.01, 0.1, 0.01], 'what is not named any more as well');
  pass(21_000);
  t.same(valves(), [0.05, 0.05, 0.25, 0.05]);
  reload([
    ['a', 0.5],
    ['c', 'off'],
    ['d', 'hold'],
  ]);
  t.same(valves(), [0.05, 0.05, 0, 'hold'], 'a ramp goes on as it was; closing takes effect at once');
  pass(101_000);
  t.same(valves(), [0.5, 1, 0, 'hold']);
  switches.set('a', setting('off'), now());
  reload([]);
  t.equal(switches.valveOf('a'), 0, 'what somebody has set stays');
});

t.test('nothing opens by more than a step in a dwell, whatever is done', async () => {
  const steps = [0, 0.01, 0.05, 0.1, 0.25, 0.5, 1];
  const action = fc.oneof(
    fc.record({ set: fc.constantFrom<Position>('on', 'off', 'hold', 0.01, 0.25), until: fc.constantFrom(null, 500) }),
    fc.constant('clear' as const),
    fc.constant('restart' as const),
    fc.record({ reload: fc.constantFrom<Position>('on', 'off', 'hold', 0.1) }),
    fc.record({ pass: fc.constantFrom(100, 5_000, 20_000), isHealthy: fc.boolean() }),
  );
  fc.assert(
    fc.property(fc.array(action, { maxLength: 30 }), (actions) => {
      let { switches, pass, reload, now } = house();
      let base: Position = 'on';
      let before = 1;
      let roseAt = Number.NEGATIVE_INFINITY;
      const look = () => {
        const valve = switches.valveOf('a');
        const share = valve === 'hold' ? 0 : valve;
        if (share > before) {
          const next = steps.find((step) => step > before)!;
          if (share > next) throw new Error(`from ${before} to ${share} at once`);
          roseAt = now();
        }
        before = share;
      };
      for (const each of actions) {
        if (each === 'clear') switches.clear('a', now());
        else if (each === 'restart') {
          const saved = { settings: [...switches.settings], ramps: [...switches.ramps] };
          const at = now();
          ({ switches, pass, reload, now } = house([['a', base]], at));
          switches.restore(saved, at, at);
        } else if ('reload' in each) {
          base = each.reload;
          reload([['a', base]]);
        } else if ('set' in each)
          switches.set('a', setting(each.set, each.until === null ? null : now() + each.until), now());
        else
          for (let left = each.pass; left > 0; left -= 100) {
            pass(100, each.isHealthy ? 'good' : 'bad');
            look();
          }
        look();
      }
      return roseAt <= now();
    }),
    { numRuns: 300 },
  );
});

t.test('of several switches the tightest rules', async (t) => {
  const switches = new Switches();
  const set = (name: string, position: Position) => switches.set(name, setting(position), 0);
  switches.configure(new Map(), ['any', 'other'], 0);
  t.equal(switches.tightest(['class', 'any']), 1);
  t.same([...switches.turned], []);
  set('any', 0.5);
  set('class', 0.2);
  t.equal(switches.tightest(['class', 'any']), 0.2);
  t.same([...switches.turned], ['any']);
  set('any', 'hold');
  t.equal(switches.tightest(['class', 'any']), 'hold');
  set('class', 'off');
  t.equal(switches.tightest(['class', 'any']), 0);
});

t.test('while the database is short of credits a ramp stands still', async (t) => {
  const { switches, pass } = house();
  switches.set('batch', setting('off'), 0);
  switches.set('batch', setting('on'), 0);
  pass(25_000);
  const before = switches.valveOf('batch');
  pass(60_000, 'wait');
  t.equal(switches.valveOf('batch'), before);
});
