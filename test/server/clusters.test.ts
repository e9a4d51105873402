/** server/clusters, in a whole proxy: what a reload leaves of the clusters before it. */
import type pg from 'pg';
import t from 'tap';
import { connect, startProxy, until, withPostgres } from '../fixtures/stack.ts';

const postgres = await withPostgres();
t.after(() => postgres.stop());
const hosts = [`127.0.0.1:${postgres.port}`];
const control = { user: 'postgres' };

/** Databases that the control user is logged in to. */
async function asked(admin: pg.Client): Promise<string[]> {
  const { rows } = await admin.query(`SELECT datname FROM pg_stat_activity WHERE application_name = 'pgweir control'`);
  return rows.map(({ datname }) => datname);
}

t.test('a database that is not configured any more is not asked what its host is', async (t) => {
  const admin = await connect(postgres.port);
  t.after(() => admin.end());
  await admin.query('CREATE DATABASE old');
  await admin.query('CREATE DATABASE kept');
  const databases: Record<string, unknown> = { old: { hosts, control }, kept: { hosts, control } };
  const proxy = await startProxy(postgres.port, { top: { databases } });
  t.after(() => proxy.stop());
  await until(async () => (await asked(admin)).join() === 'old', 'the first to be asked');
  t.same(proxy.app.reload(), []);
  t.ok((await asked(admin)).includes('old'), 'who is still there is still asked');
  delete databases.old;
  t.same(proxy.app.reload(), []);
  await until(async () => (await asked(admin)).join() === 'kept', 'the other one to be asked');
  await admin.query('DROP DATABASE old');
  const [cluster, ...more] = proxy.app.snapshot().clusters;
  t.same(more, []);
  t.equal(cluster!.hold.state, 'open');
  t.same(
    [...cluster!.roles.values()].map(({ role, why }) => [role, why]),
    [['primary', '']],
  );
});

t.test('a cache that connects anew does not bring back the cluster of an earlier configuration', async (t) => {
  const admin = await connect(postgres.port);
  t.after(() => admin.end());
  const database: Record<string, unknown> = { hosts, control, cache: 'all', lagMax: '1s' };
  const proxy = await startProxy(postgres.port, {
    top: {
      databases: { postgres: database },
      cache: { mode: 'on', sets: { all: [{ tables: ['*'], ttl: '1h' }] } },
    },
  });
  t.after(() => proxy.stop());
  const clusters = () => proxy.app.snapshot().clusters;
  await until(() => proxy.app.snapshot().caches.sensesOf('postgres')!.schema.relations !== null, 'the catalogue');
  await until(() => [...clusters()[0]!.roles.values()].every(({ role }) => role === 'primary'), 'the primary');
  database.lagMax = '2s';
  t.same(proxy.app.reload(), []);
  t.equal(clusters().length, 1);
  await until(async () => (await asked(admin)).length >= 2, 'the connections of the cache and of the probe');
  const lost = await admin.query(
    `SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pgweir control'`,
  );
  const before = lost.rows.map(({ pid }) => pid);
  const renewed = `SELECT count(*)::int AS n FROM pg_stat_activity WHERE application_name = 'pgweir control' AND pid <> ALL ($1)`;
  await until(async () => (await admin.query(renewed, [before])).rows[0].n >= 2, 'both of them again');
  t.equal(clusters().length, 1);
});
