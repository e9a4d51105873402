/** guard/admission: what is in force for all hosts together. Time is moved by hand. */
import t from 'tap';
import { parseConfig } from '../../src/config/load.ts';
import { Admission } from '../../src/guard/admission.ts';
import { type Budget, unlimited } from '../../src/guard/budget.ts';
import type { Gate } from '../../src/guard/gate.ts';

const TICK_MS = 20;

/** Two hosts, of which `old` was the primary before; what it has of credits is in `zone`. */
function house() {
  const loaded = parseConfig(
    JSON.stringify({
      listen: { port: 0 },
      ops: { port: 0 },
      auth: { method: 'trust' },
      admission: { mode: 'enforce' },
      limit: { mode: 'adaptive', min: 2, max: 20 },
      classes: [{ name: 'api', match: [{ user: 'api' }], priority: 'normal' }],
      databases: { app: { hosts: ['old:5432', 'new:5432'], control: { user: 'x' } } },
    }),
    'test',
    {},
  );
  if (!loaded.ok) throw new Error(loaded.problems.join());
  const reserve = { zone: '' };
  const budget: Budget = {
    ...unlimited,
    get zone() {
      return reserve.zone;
    },
  };
  const admission = new Admission(loaded.config, 0);
  admission.setBudgets(new Map([['old:5432', budget]]));
  admission.configure(loaded.config, 0);
  let now = 0;
  /** For so many seconds a statement of `ms` every 20 ms at `gate`; null: nobody asks anything. */
  const run = (seconds: number, gate: Gate | null, ms = 5) => {
    for (const end = now + 1000 * seconds; now < end; ) {
      const permit = gate?.admit(admission.classes.all[0]!, now);
      permit?.sample(1, ms);
      permit?.end(now);
      now += TICK_MS;
      admission.tick(now, now, 0);
    }
  };
  const turn = (position: 'off' | 'on') => {
    admission.switches.set('api', { position, until: null, reason: '', actor: '', at: 0 }, now);
    admission.applySwitches();
  };
  const old = admission.gateOf('old:5432');
  const fresh = admission.gateOf('new:5432');
  return { admission, reserve, run, turn, old, fresh, valve: () => admission.switches.valveOf('api') };
}

t.test('a host that was slow when it was left keeps no switch from opening', async (t) => {
  const { run, turn, old, fresh, valve } = house();
  run(60, old);
  run(10, old, 15);
  t.ok(old.ratio > 2, `${old.ratio}`);
  turn('off');
  run(10, fresh);
  turn('on');
  run(180, fresh);
  t.equal(valve(), 1);
  t.equal(old.ratio, 1, 'nothing is known of it any more');
});

t.test('one that is slow and in use does', async (t) => {
  const { run, turn, old, valve } = house();
  run(60, old);
  run(10, old, 15);
  turn('off');
  turn('on');
  run(180, old, 15);
  t.equal(valve(), 0.01);
});

t.test('a host that has used up its credits and that nobody asks any more keeps no switch from opening', async (t) => {
  const { reserve, run, turn, old, fresh, valve } = house();
  reserve.zone = 'BLACK';
  run(10, old);
  turn('off');
  turn('on');
  run(60, old);
  t.equal(valve(), 0.01, 'it does while it is in use,');
  run(90, null);
  t.equal(valve(), 0.01, 'and when nobody asks anybody,');
  run(240, fresh);
  t.equal(valve(), 1, 'but not when everybody asks another');
});
