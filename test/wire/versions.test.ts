/** Against the catalogue of the embedded Postgres, and against the system's Postgres, which may be older. */
import { existsSync, readdirSync } from 'node:fs';
import t from 'tap';
import { harmlessFunctions } from '../../src/sql/builtins.ts';
import { findEffects } from '../../src/sql/effects.ts';
import { isActing } from '../../src/sql/read.ts';
import { cut, Tokens } from '../../src/sql/shape.ts';
import { RawClient } from '../fixtures/raw.ts';
import { connect, startProxy, withPostgres } from '../fixtures/stack.ts';

t.test('every built-in function is harmless, has a known effect, or goes to the parser', async (t) => {
  const postgres = await withPostgres();
  t.teardown(() => postgres.stop());
  const client = await connect(postgres.port);
  const { rows } = await client.query<{ name: string; isVolatile: boolean }>(
    `SELECT proname AS name, bool_or(provolatile = 'v') AS "isVolatile" FROM pg_proc
      WHERE pronamespace = 'pg_catalog'::regnamespace AND oid < 16384 GROUP BY 1`,
  );
  await client.end();
  // What is volatile acts on the server, unless it only asks for the time or for chance.
  const pure =
    /^(clock_timestamp|timeofday|current_query|random(_normal)?|gen_random_uuid|uuidv[47]|array_(sample|shuffle))$/;
  for (const { name, isVolatile } of rows) {
    if (isVolatile && harmlessFunctions.has(name) && !pure.test(name) && !isActing(name))
      t.fail(`${name} may be shared`);
  }
  const known = new Set(rows.map(({ name }) => name));
  t.ok(known.size > 2500);
  const effects =
    /advisory_(un)?lock|^set_config$|^setseed$|currval|lastval|replication_(slot|origin_(session|xact))|^pg_backup_st|^binary_upgrade|query_to_xml|cursor_to_xml|^ts_(stat|rewrite)$|extension_config_dump|logical_slot_(get|peek)/;
  const tokens = new Tokens();
  for (const name of known) {
    if (!effects.test(name) || name.includes('xact_lock') || harmlessFunctions.has(name)) continue;
    const text = Buffer.from(`SELECT ${name}()`);
    cut(tokens, text, 0, text.length);
    const found = findEffects(tokens);
    if (found.effects === null && found.unknown.length === 0) t.fail(name);
  }
  const wrong = [...harmlessFunctions].filter((name) => effects.test(name) && !name.includes('xact_lock'));
  t.same(
    wrong.filter(
      (name) =>
        !/^pg_(drop_replication_slot|stat_\w+|get_replication_slots|replication_slot_advance|replication_origin_session_(is_setup|progress)|sync_replication_slots|logical_slot_\w+)$/.test(
          name,
        ),
    ),
    [],
  );
});

/** Directories with the programs of installed servers, as Debian lays them out. */
const installed = existsSync('/usr/lib/postgresql')
  ? readdirSync('/usr/lib/postgresql')
      .map((version) => `/usr/lib/postgresql/${version}/bin`)
      .filter((binDir) => existsSync(`${binDir}/initdb`))
  : [];

if (installed.length === 0) {
  const line = 'SKIPPED: no installed Postgres besides the embedded one (apt-get install postgresql); CI installs it';
  if (process.env.CI === 'true') t.fail(line);
  else console.error(line);
}

for (const binDir of installed) {
  t.test(`search_path and settings are right on the server in ${binDir}`, async (t) => {
    const postgres = await withPostgres({ binDir });
    t.teardown(() => postgres.stop());
    const proxy = await startProxy(postgres.port, { pool: { size: 1 } });
    t.teardown(() => proxy.stop());
    const [a, b, c] = [
      await RawClient.open(proxy.port),
      await RawClient.open(proxy.port, { options: '-c search_path=b' }),
      await RawClient.open(proxy.port),
    ];
    for (const schema of ['a', 'b', 'public']) {
      await a.rows(`CREATE SCHEMA IF NOT EXISTS ${schema}; CREATE TABLE ${schema}.place AS SELECT '${schema}' AS name`);
    }
    await a.rows('SET search_path = a');
    for (let round = 0; round < 2; round++) {
      for (const [client, expected] of [
        [a, 'a'],
        [b, 'b'],
        [c, 'public'],
      ] as const) {
        t.same(await client.rows('SELECT name FROM place'), [[expected]]);
      }
    }
    await a.rows('BEGIN; SET search_path = b; ROLLBACK');
    t.same(await a.rows('SHOW search_path'), [['a']]);
    await a.rows('BEGIN; SET LOCAL search_path = b; COMMIT');
    t.same(await a.rows('SHOW search_path'), [['a']]);
    await a.rows(`SELECT set_config('search_path', '', false)`);
    t.same(await c.rows('SHOW search_path'), [['"$user", public']]);
    t.same(await a.rows('SHOW search_path'), [['']]);
    for (const client of [a, b, c]) client.end();
    t.equal(proxy.bugs(), 0);
  });
}
