/** ops/switchboard: what is kept of switches, in a directory. Time is moved by hand. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { parseConfig } from '../../src/config/load.ts';
import { Admission } from '../../src/guard/admission.ts';
import { Shares } from '../../src/ops/shares.ts';
import { StateDir } from '../../src/ops/state.ts';
import { Switchboard } from '../../src/ops/switchboard.ts';
import { FakeClock } from '../fixtures/clock.ts';

const HOUR = 3_600_000;

/** Processes that follow each other on one directory. */
function house(t: Test) {
  const dir = mkdtempSync(join(tmpdir(), 'pgweir-test-'));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  const clock = new FakeClock();
  const problems: string[] = [];
  const start = (where = dir) => {
    const loaded = parseConfig(
      JSON.stringify({
        listen: { port: 0 },
        ops: { port: 0 },
        auth: { method: 'trust' },
        classes: [{ name: 'jobs', match: [{ user: 'jobs' }], priority: 'batch' }],
        databases: { app: { hosts: ['db:5432'] } },
      }),
      'test',
      {},
    );
    if (!loaded.ok) throw new Error(loaded.problems.join());
    const admission = new Admission(loaded.config, clock.now());
    const switches = new Switchboard({
      admission,
      config: () => loaded.config,
      clock,
      state: new StateDir(where),
      shares: new Shares(
        () => admission.gates.values(),
        () => new Map(),
      ),
      onProblem: (problem) => problems.push(problem),
    });
    const pass = (ms: number) => {
      for (let left = ms; left > 0; left -= 1000) {
        clock.advance(Math.min(left, 1000));
        admission.tick(clock.now(), clock.wall(), 0);
        switches.tick();
      }
    };
    const set = (position: 'on' | 'off', forMs: number | null = null) =>
      switches.set({ name: 'jobs', position, forMs, reason: 'an incident', actor: 'somebody' });
    return { switches, pass, set, valve: () => switches.find('jobs')!.valve };
  };
  const saved = () => JSON.parse(readFileSync(join(dir, 'switches.json'), 'utf8'));
  return { clock, dir, problems, start, saved };
}

t.test('a setting that is over is over, and the next start knows nothing of it', async (t) => {
  const { start, saved } = house(t);
  const { set, pass } = start();
  t.same(set('off', HOUR), { warning: '' });
  pass(HOUR - 1000);
  t.equal(saved().settings.length, 1);
  pass(2000);
  t.same(saved(), { settings: [], ramps: [['jobs', 0.01]], isPassthrough: false });
  pass(101_000);
  t.same(saved(), { settings: [], ramps: [], isPassthrough: false });
  t.equal(start().valve(), 1);
});

t.test('what was over while nobody was there comes back little by little, or has come back', async (t) => {
  const { clock, start } = house(t);
  start().set('off', HOUR);
  clock.advance(HOUR + 50_000);
  const soon = start();
  t.equal(soon.valve(), 0);
  soon.pass(1000);
  t.equal(soon.valve(), 0.01);
  soon.set('off', HOUR);
  clock.advance(7 * 24 * HOUR);
  for (let starts = 0; starts < 3; starts++) t.equal(start().valve(), 1, 'a week later it has');
});

t.test('a restart in the middle of a ramp goes on with it', async (t) => {
  const { start } = house(t);
  const { set, pass, valve } = start();
  set('off');
  set('on');
  t.equal(start().valve(), 0.01, 'it is saved with what began it');
  pass(45_000);
  t.equal(valve(), 0.1);
  const next = start();
  t.equal(next.valve(), 0.1);
  next.pass(20_000);
  t.equal(next.valve(), 0.25);
  next.pass(41_000);
  t.equal(start().valve(), 1);
});

t.test('when another process has taken over nothing is written', async (t) => {
  const { start, saved } = house(t);
  const { switches, set, pass } = start();
  set('off', HOUR);
  const before = saved();
  switches.handOver();
  pass(HOUR + 1000);
  t.match(set('off'), { warning: /another has taken over/ });
  t.same(saved(), before);
});

t.test('what cannot be saved is said once', async (t) => {
  const { start, problems } = house(t);
  const { set, pass } = start('/dev/null/state');
  t.match(set('off', HOUR), { warning: /could not be saved/ });
  pass(HOUR + 10_000);
  t.equal(problems.length, 1);
  t.match(problems[0], /switches could not be saved/);
});
