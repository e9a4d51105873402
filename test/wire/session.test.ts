/** The main road: a client in transaction mode, through login, queries, prepared statements and settings. */
import { chmodSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { OCCUPY, RawClient, send, sqlstates, types } from '../fixtures/raw.ts';
import { connect, startProxy, withPostgres } from '../fixtures/stack.ts';

const postgres = await withPostgres();
t.after(() => postgres.stop());

t.test('a query gives its rows, and the server serves others afterwards', async (t) => {
  const proxy = await startProxy(postgres.port, { pool: { size: 1 } });
  t.after(() => proxy.stop());
  const clients = await Promise.all([1, 2, 3].map(() => connect(proxy.port)));
  for (const client of clients) {
    const { rows } = await client.query('SELECT $1::int + 1 AS sum', [41]);
    t.same(rows, [{ sum: 42 }]);
  }
  await Promise.all(clients.map((client) => client.end()));
  t.equal(proxy.bugs(), 0);
});

t.test('settings of one client are not those of another', async (t) => {
  const proxy = await startProxy(postgres.port, { pool: { size: 1 } });
  t.after(() => proxy.stop());
  const a = await RawClient.open(proxy.port, { application_name: 'a' });
  const b = await RawClient.open(proxy.port, { options: '-c statement_timeout=7s -c search_path=b' });
  await a.rows(`SET statement_timeout = '3s'`);
  t.same(await a.rows('SHOW statement_timeout'), [['3s']]);
  t.same(await b.rows('SHOW statement_timeout'), [['7s']]);
  t.same(await b.rows('SHOW search_path'), [['b']]);
  t.same(await a.rows('SHOW statement_timeout'), [['3s']]);
  t.same(await a.rows('SHOW search_path'), [['"$user", public']]);
  t.same(await a.rows('SHOW application_name'), [['a']]);
  await a.rows('RESET ALL');
  t.same(await a.rows('SHOW application_name'), [['a']]);
  t.same(await a.rows('SHOW statement_timeout'), [['0']]);
  t.same(await b.rows('RESET statement_timeout; SELECT 1'), [['1']]);
  t.same(await b.rows('SHOW statement_timeout'), [['7s']]);
  a.end();
  b.end();
  t.equal(proxy.bugs(), 0);
});

t.test('statements of SQL-level PREPARE keep no server', async (t) => {
  const proxy = await startProxy(postgres.port, { pool: { size: 2 } });
  t.after(() => proxy.stop());
  const clients = await Promise.all(Array.from({ length: 6 }, () => RawClient.open(proxy.port)));
  await Promise.all(
    clients.map(async (client, index) => {
      await client.rows(`PREPARE p(int) AS SELECT $1 + ${index}`);
      for (let turn = 0; turn < 5; turn++) t.same(await client.rows(`EXECUTE p(${turn})`), [[String(turn + index)]]);
      t.same(sqlstates(await client.ask(send.query('PREPARE p AS SELECT 1'))), ['42P05']);
      await client.rows(index % 2 === 0 ? 'DEALLOCATE p' : 'DEALLOCATE ALL');
      t.same(sqlstates(await client.ask(send.query('EXECUTE p(1)'))), ['26000']);
    }),
  );
  for (const client of clients) client.end();
  t.equal(proxy.bugs(), 0);
});

t.test('prepared statements follow their client from server to server', async (t) => {
  const proxy = await startProxy(postgres.port, { pool: { size: 2 } });
  t.after(() => proxy.stop());
  const [a, b] = [await RawClient.open(proxy.port), await RawClient.open(proxy.port)];
  for (const client of [a, b])
    t.equal(types(await client.ask([send.parse('s', 'SELECT $1::text'), send.sync()])), '1Z');
  await a.rows(OCCUPY);
  const run = [send.bind('', 's', ['x']), send.execute(''), send.sync()];
  t.equal(types(await b.ask(run)), '2DCZ');
  t.equal(types(await a.ask(run)), '2DCZ');
  await a.rows('COMMIT');
  t.same(sqlstates(await a.ask([send.parse('s', 'SELECT 2'), send.sync()])), ['42P05']);
  t.same(sqlstates(await a.ask([send.bind('', 'unknown'), send.sync()])), ['26000']);
  t.equal(types(await a.ask([send.close('S', 's'), send.sync()])), '3Z');
  t.same(sqlstates(await a.ask(run)), ['26000']);
  t.equal(types(await b.ask(run)), '2DCZ');
  a.end();
  b.end();
  t.equal(proxy.bugs(), 0);
});

t.test('Unix sockets on both sides', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'pgweir-test-'));
  chmodSync(folder, 0o777); // Postgres may run as another user.
  const local = await withPostgres({ settings: { unix_socket_directories: folder } });
  const proxy = await startProxy(local.port, {
    database: { hosts: [`${folder}:${local.port}`] },
    top: { listen: { socketDir: folder } },
  });
  t.teardown(async () => {
    await proxy.stop();
    await local.stop();
    rmSync(folder, { recursive: true, force: true });
  });
  const client = await connect(proxy.port, { host: folder });
  const { rows } = await client.query('SELECT inet_client_addr() AS address, repeat($1, 300000) AS long', ['x']);
  t.equal(rows[0].address, null, 'the server is reached by a Unix socket');
  t.equal(rows[0].long.length, 300_000);
  await client.end();
  t.equal(proxy.bugs(), 0);
});
