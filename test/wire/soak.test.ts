/** A minute of TPC-B while the database is ill-treated at random; ten seconds of it where nobody has the time (bench: ten minutes). */
import { readdirSync } from 'node:fs';
import t from 'tap';
import { type Member, startReplicas } from '../fixtures/replicas.ts';
import { Soak } from '../fixtures/soak.ts';
import { startProxy, until } from '../fixtures/stack.ts';

const isLong = process.env.CI === 'true';
const SECONDS = isLong ? 60 : 10;
if (!isLong) console.error(`*** SHORTENED: ${SECONDS} s of random faults instead of the minute that CI takes ***`);

t.test('the books balance, and nothing is left behind', async (t) => {
  const seed = Number(process.env.SEED ?? Math.floor(Math.random() * 1e9));
  t.comment(`SEED=${seed}`);
  const replicas = await startReplicas(['a'], { isSynchronous: false, sql: Soak.sql });
  t.after(() => replicas.stop());
  const [member] = replicas.members as [Member];
  const proxy = await startProxy(member.port, {
    pool: { size: 8 },
    database: { control: { user: 'postgres' } },
    top: { admission: { mode: 'enforce' }, limit: { mode: 'fixed', max: 6 } },
  });
  t.after(() => proxy.stop());
  const work = new Soak(proxy.port, member, { clients: 16, seed, pauseMs: 50 });
  await until(() => proxy.app.snapshot().sessions.size === 16, 'all clients');
  const files = readdirSync('/proc/self/fd').length;
  await work.run(1_000 * SECONDS);
  const verdict = await work.verdict();
  t.comment(JSON.stringify(verdict));
  t.match(verdict, { differing: 0, missing: 0, undead: 0, twice: 0 }, `seed ${seed}`);
  t.ok(verdict.committed > 0);
  const pool = proxy.app.snapshot().pools[0]!;
  await until(() => pool.active.size + pool.cleaning.size + pool.waiters.size === 0, 'the last to be done');
  const [gate] = proxy.app.snapshot().gates.values();
  t.same([gate!.atWork, gate!.waiting, ...gate!.lanes.map(({ permits }) => permits)].filter(Boolean), [], 'permits');
  t.ok(pool.serverCount <= 8);
  t.equal(proxy.app.snapshot().hosts[0]!.count, pool.serverCount, 'connections counted are those that there are');
  t.ok(readdirSync('/proc/self/fd').length <= files + 8, 'file descriptors');
  t.equal(proxy.bugs(), 0);
});
