/**
 * Real drivers with their own defaults against a real Postgres, through a pool smaller than the number of clients
 * (transaction mode) and with a server for each (session mode). No driver gets an option to please the proxy.
 */
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import pg from 'pg';
// @ts-expect-error: the package has no types.
import Cursor from 'pg-cursor';
import QueryStream from 'pg-query-stream';
import postgresjs from 'postgres';
import t, { type Test } from 'tap';
import { cleanEnvironment, findProgram, skip, succeeds } from '../fixtures/drivers/programs.ts';
import { RawClient, send, sqlstates, types } from '../fixtures/raw.ts';
import { connect, type Proxy as Pgweir, startProxy, until, withPostgres } from '../fixtures/stack.ts';

const CLIENTS = 8;
const SERVERS = 3;
const modes = [
  // Tests of pins come one after the other, but a client that has left may not have been noticed yet.
  { mode: 'transaction', size: SERVERS, pinnedMax: '100%' },
  { mode: 'session', size: 3 * CLIENTS, pinnedMax: '50%' },
] as const;

const postgres = await withPostgres({ settings: { max_prepared_transactions: '10' } });
t.after(() => postgres.stop());

/** Runs `test` once in each mode, each time before a proxy of its own; at the end there must have been no bug. */
function inEachMode(name: string, test: (t: Test, proxy: Pgweir, mode: string) => Promise<void>): void {
  for (const pool of modes) {
    t.test(`${name}, ${pool.mode} mode`, async (t) => {
      const proxy = await startProxy(postgres.port, { pool: { ...pool } });
      t.teardown(() => proxy.stop());
      await test(t, proxy, pool.mode);
      t.equal(proxy.bugs(), 0, 'no bug was counted');
    });
  }
}

const range = (count: number) => Array.from({ length: count }, (_, index) => index);
const together = <T>(count: number, run: (index: number) => Promise<T>) => Promise.all(range(count).map(run));
const sum = (numbers: Iterable<number>) => [...numbers].reduce((total, number) => total + number, 0);

/** The error that `promise` ends with. */
async function failure(promise: PromiseLike<unknown>): Promise<{ code?: string; message: string; routine?: string }> {
  try {
    await promise;
  } catch (thrown) {
    return thrown as { code?: string; message: string };
  }
  throw new Error('no error came');
}

// --- node-postgres ------------------------------------------------------------------------------------------------

/** A client that leaves at the latest when `t` ends. */
async function join(t: Test, port: number, options: pg.ClientConfig = {}): Promise<pg.Client> {
  const client = await connect(port, options);
  t.teardown(() => client.end());
  return client;
}

function pgPool(t: Test, proxy: Pgweir): pg.Pool {
  const pool = new pg.Pool({
    host: '127.0.0.1',
    port: proxy.port,
    user: 'postgres',
    database: 'postgres',
    max: CLIENTS,
  });
  pool.on('error', () => {});
  t.teardown(() => pool.end());
  return pool;
}

inEachMode('node-postgres: named statements of many clients share few servers', async (t, proxy, mode) => {
  const pool = pgPool(t, proxy);
  const pids = new Set<number>();
  const answers = await together(300, async (index) => {
    // Two names for one text, one name for two texts on different clients: names are each client's own.
    const kind = index % 3;
    const client = await pool.connect();
    try {
      const text = `SELECT $1::int + ${kind} AS sum, pg_backend_pid() AS pid`;
      const { rows } = await client.query({ name: `sum${kind}`, text, values: [index] });
      pids.add(rows[0].pid);
      return rows[0].sum;
    } finally {
      client.release();
    }
  });
  t.same(
    answers,
    range(300).map((index) => index + (index % 3)),
  );
  if (mode === 'transaction') t.ok(pids.size <= SERVERS, 'no more servers than the pool may have');
});

inEachMode('node-postgres: one name means another text for each client', async (t, proxy) => {
  const clients = await together(CLIENTS, () => join(t, proxy.port));
  for (let turn = 0; turn < 5; turn++) {
    const rows = await together(CLIENTS, async (index) => {
      const result = await clients[index]!.query({
        name: 'mine',
        text: `SELECT ${index} AS n, $1::text AS t`,
        values: [`${turn}`],
      });
      return result.rows[0];
    });
    t.same(
      rows,
      range(CLIENTS).map((n) => ({ n, t: `${turn}` })),
    );
  }
  await Promise.all(clients.map((client) => client.end()));
});

inEachMode('node-postgres: transactions and savepoints keep the sum of all accounts', async (t, proxy) => {
  const pool = pgPool(t, proxy);
  await pool.query('DROP TABLE IF EXISTS account');
  await pool.query('CREATE TABLE account (id int PRIMARY KEY, amount int CHECK (amount >= 0))');
  await pool.query('INSERT INTO account SELECT g, 100 FROM generate_series(0, 7) g');
  let refusals = 0;
  await together(CLIENTS, async (index) => {
    const client = await pool.connect();
    for (let turn = 0; turn < 10; turn++) {
      await client.query('BEGIN');
      const ids = [index, (index + turn + 1) % CLIENTS];
      await client.query('SELECT 1 FROM account WHERE id = ANY($1) ORDER BY id FOR UPDATE', [ids]);
      await client.query('SAVEPOINT move');
      try {
        // Every other move is of more than there is.
        const move = turn % 2 ? 1000 : 5;
        await client.query('UPDATE account SET amount = amount - $2 WHERE id = $1', [ids[0], move]);
        await client.query('UPDATE account SET amount = amount + $2 WHERE id = $1', [ids[1], move]);
      } catch (thrown) {
        t.equal((thrown as { code: string }).code, '23514');
        refusals++;
        t.equal((await failure(client.query('SELECT 1'))).code, '25P02');
        await client.query('ROLLBACK TO move');
      }
      await client.query(turn % 3 === 2 ? 'ROLLBACK' : 'COMMIT');
    }
    client.release();
  });
  const { rows } = await pool.query('SELECT sum(amount)::int, count(*)::int, min(amount) >= 0 AS ok FROM account');
  t.same(rows, [{ sum: 800, count: 8, ok: true }]);
  t.equal(refusals, CLIENTS * 5, 'every other move broke the rule');
});

inEachMode('node-postgres: errors are those of Postgres, and the client works on', async (t, proxy) => {
  const direct = await join(t, postgres.port);
  const client = await join(t, proxy.port);
  const bad: pg.QueryConfig[] = [
    { text: 'SELEC 1' },
    { text: 'SELECT $1::int', values: ['x'] },
    { name: 'bad', text: 'SELECT * FROM nowhere_at_all WHERE a = $1', values: [1] },
    { name: 'zero', text: 'SELECT 1 / $1::int', values: [0] },
    { text: 'SELECT 1; SELECT 1 / 0; SELECT 2' },
    { name: 'few', text: 'SELECT $1::int + $2::int', values: [1] },
  ];
  for (let turn = 0; turn < 3; turn++) {
    for (const query of bad) {
      const pick = ({ code, message, routine }: { code?: string; message: string; routine?: string }) => ({
        code,
        message,
        routine,
      });
      const [ours, theirs] = [await failure(client.query(query)), await failure(direct.query(query))];
      t.same(pick(ours), pick(theirs), query.text);
      t.same((await client.query('SELECT $1::int AS n', [turn])).rows, [{ n: turn }]);
    }
  }
  await client.end();
  await direct.end();
});

inEachMode('node-postgres: a changed table fails its prepared statement with what Postgres says', async (t, proxy) => {
  const story = async (port: number) => {
    const [client, other] = [await join(t, port), await join(t, port)];
    await other.query('DROP TABLE IF EXISTS changing');
    await other.query('CREATE TABLE changing AS SELECT 1 AS a');
    const query = { name: 'all', text: 'SELECT * FROM changing' };
    t.same((await client.query(query)).rows, [{ a: 1 }]);
    await other.query('ALTER TABLE changing ADD b int DEFAULT 2');
    const { code, message, routine } = await failure(client.query(query));
    const { rows } = await client.query({ ...query, name: 'anew' });
    await client.end();
    await other.end();
    return { code, message, routine, rows };
  };
  t.same(await story(proxy.port), await story(postgres.port));
});

inEachMode('node-postgres: cursors read in portions, in a transaction and without one', async (t, proxy) => {
  const sums = await together(CLIENTS, async (index) => {
    const client = await join(t, proxy.port);
    const read = async () => {
      const cursor = client.query(new Cursor('SELECT g + $1::int AS n FROM generate_series(1, 1000) g', [index]));
      let total = 0;
      for (let rows = await cursor.read(130); rows.length > 0; rows = await cursor.read(130)) {
        total += sum(rows.map(({ n }: { n: number }) => n));
      }
      await cursor.close();
      return total;
    };
    const alone = await read();
    await client.query('BEGIN');
    const first = await read();
    const early = client.query(new Cursor('SELECT generate_series(1, 100000)'));
    t.equal((await early.read(7)).length, 7);
    await early.close();
    t.same((await client.query('SELECT $1::int AS n', [index])).rows, [{ n: index }]);
    await client.query('COMMIT');
    await client.end();
    return [alone, first];
  });
  t.same(
    sums,
    range(CLIENTS).map((index) => [500_500 + 1000 * index, 500_500 + 1000 * index]),
  );
});

inEachMode('node-postgres: query streams give every row, and can be given up', async (t, proxy) => {
  const counts = await together(CLIENTS, async (index) => {
    const client = await join(t, proxy.port);
    const stream = client.query(
      new QueryStream(`SELECT g, repeat('x', 200) AS x FROM generate_series(1, $1::int) g`, [3000 + index]),
    );
    let total = 0;
    for await (const row of stream) total += row.x.length;
    const given = client.query(new QueryStream('SELECT generate_series(1, 1000000) AS n'));
    for await (const { n } of given) if (n === 10) break;
    t.same((await client.query('SELECT $1::int AS n', [index])).rows, [{ n: index }]);
    await client.end();
    return total / 200;
  });
  t.same(
    counts,
    range(CLIENTS).map((index) => 3000 + index),
  );
});

inEachMode('node-postgres: a large value goes there and back', async (t, proxy) => {
  const value = Buffer.alloc(5_000_000, 'abcdefg');
  const pool = pgPool(t, proxy);
  const same = await together(4, async () => {
    const { rows } = await pool.query('SELECT $1::bytea AS value', [value]);
    return value.equals(rows[0].value);
  });
  t.same(same, [true, true, true, true]);
});

inEachMode('node-postgres: each client keeps its settings', async (t, proxy) => {
  await together(CLIENTS, async (index) => {
    const client = await join(t, proxy.port, {
      application_name: `app ${index}`,
      statement_timeout: 60_001 + index,
      options: `-c work_mem=${64 + index}MB -c geqo=off`,
    });
    await client.query(`SET search_path = s${index}, public`);
    await client.query(`SELECT set_config('my.name', $1, false)`, [`client ${index}`]);
    for (let turn = 0; turn < 10; turn++) {
      const { rows } = await client.query({
        name: 'settings',
        text: `SELECT current_setting('application_name') AS name, current_setting('statement_timeout') AS timeout,
          current_setting('work_mem') AS memory, current_setting('search_path') AS path, current_setting('geqo') AS geqo,
          current_setting('my.name') AS own`,
      });
      t.same(rows, [
        {
          name: `app ${index}`,
          timeout: `${60_001 + index}ms`,
          memory: `${64 + index}MB`,
          path: `s${index}, public`,
          geqo: 'off',
          own: `client ${index}`,
        },
      ]);
    }
    await client.end();
  });
});

inEachMode('node-postgres: a statement timeout ends the statement, not the client', async (t, proxy) => {
  await together(4, async () => {
    const client = await join(t, proxy.port, { statement_timeout: 50 });
    t.equal((await failure(client.query('SELECT pg_sleep(20)'))).code, '57014');
    t.same((await client.query('SELECT 1 AS n')).rows, [{ n: 1 }]);
    await client.end();
  });
});

inEachMode('node-postgres: a listener hears what others notify, and survives their traffic', async (t, proxy) => {
  const [listener, ...speakers] = await together(5, () => join(t, proxy.port));
  const heard: string[] = [];
  listener!.on('notification', ({ channel, payload }) => heard.push(`${channel} ${payload}`));
  await listener!.query('LISTEN news');
  // Only with one server left over can the others speak at all.
  await Promise.all(speakers.map((client, index) => client.query(`SELECT pg_notify('news', $1)`, [`${index}`])));
  await until(() => heard.length === 4, 'four notifications');
  t.same(heard.sort(), ['news 0', 'news 1', 'news 2', 'news 3']);
  await Promise.all([listener!, ...speakers].map((client) => client.end()));
});

t.test('node-postgres: clients that listen, more than there are servers, do not pin any', async (t) => {
  const proxy = await startProxy(postgres.port, { pool: { size: 2 } });
  t.teardown(() => proxy.stop());
  const clients = await together(20, () => join(t, proxy.port));
  const heard: string[] = [];
  for (const client of clients) client.on('notification', ({ payload }) => heard.push(payload!));
  await together(20, (index) => clients[index]!.query('LISTEN news'));
  await clients[0]!.query(`NOTIFY news, 'all'`);
  await until(() => heard.length === 20, 'everybody to hear');
  t.equal(proxy.app.snapshot().pools[0]!.pinned, 0);
});

// --- postgres.js --------------------------------------------------------------------------------------------------

function postgresJs(t: Test, port: number, max = CLIENTS, options: postgresjs.Options<Record<string, never>> = {}) {
  const sql = postgresjs({
    host: '127.0.0.1',
    port,
    user: 'postgres',
    database: 'postgres',
    max,
    onnotice: () => {},
    ...options,
  });
  t.teardown(() => sql.end({ timeout: 5 }));
  return sql;
}

inEachMode('postgres.js: pipelined, prepared queries answer in order', async (t, proxy, mode) => {
  const sql = postgresJs(t, proxy.port);
  const rows = await together(400, async (index) => {
    const [row] =
      index % 2
        ? await sql`SELECT ${index}::int AS n, pg_backend_pid() AS pid`
        : await sql`SELECT ${index}::int AS n, pg_backend_pid() AS pid, ${'even'}::text AS kind`;
    return row!;
  });
  t.same(
    rows.map(({ n, kind }) => [n, kind]),
    range(400).map((index) => [index, index % 2 ? undefined : 'even']),
  );
  if (mode === 'transaction') t.ok(new Set(rows.map(({ pid }) => pid)).size <= SERVERS);
});

inEachMode('postgres.js: an error in a pipeline is that of its query alone', async (t, proxy) => {
  const sql = postgresJs(t, proxy.port, 2);
  const outcomes = await together(60, async (index) => {
    try {
      const [row] = await sql`SELECT 100 / ${index % 10}::int AS n`;
      return row!.n;
    } catch (thrown) {
      return (thrown as { code: string }).code;
    }
  });
  t.same(
    outcomes,
    range(60).map((index) => (index % 10 === 0 ? '22012' : Math.floor(100 / (index % 10)))),
  );
});

inEachMode('postgres.js: transactions, savepoints and pipelines in them', async (t, proxy) => {
  const sql = postgresJs(t, proxy.port);
  await sql`DROP TABLE IF EXISTS entry`;
  await sql`CREATE TABLE entry (who int, n int, PRIMARY KEY (who, n))`;
  await together(CLIENTS, async (who) => {
    for (let turn = 0; turn < 6; turn++) {
      const attempt = sql.begin(async (sql) => {
        await sql`INSERT INTO entry ${sql([
          { who, n: turn * 10 },
          { who, n: turn * 10 + 1 },
        ])}`;
        const error = await failure(
          sql.savepoint(async (sql) => {
            await sql`INSERT INTO entry VALUES (${who}, ${turn * 10 + 2})`;
            await sql`INSERT INTO entry VALUES (${who}, ${turn * 10})`;
          }),
        );
        t.equal(error.code, '23505');
        const counts = await Promise.all(
          range(5).map(() => sql`SELECT count(*)::int AS n FROM entry WHERE who = ${who}`),
        );
        t.equal(new Set(counts.map(([row]) => row!.n)).size, 1);
        if (turn % 2) throw new Error('taken back');
      });
      if (turn % 2) t.equal((await failure(attempt)).message, 'taken back');
      else await attempt;
    }
  });
  t.same(
    await sql`SELECT who, count(*)::int AS n FROM entry GROUP BY who ORDER BY who`,
    range(CLIENTS).map((who) => ({ who, n: 6 })),
  );
  const both = await sql.begin((sql) => [sql`SELECT 1 AS n`, sql`SELECT txid_current() = txid_current() AS same`]);
  t.same(both, [[{ n: 1 }], [{ same: true }]]);
});

inEachMode('postgres.js: listen and notify', async (t, proxy) => {
  const sql = postgresJs(t, proxy.port);
  const heard: string[] = [];
  const { unlisten } = await sql.listen('news', (payload) => heard.push(payload));
  await together(20, (index) => sql.notify('news', `${index}`));
  await until(() => heard.length === 20, 'twenty notifications');
  t.same(
    heard.map(Number).sort((a, b) => a - b),
    range(20),
  );
  await unlisten();
});

inEachMode('postgres.js: cursors, forEach and simple queries of several statements', async (t, proxy) => {
  const sql = postgresJs(t, proxy.port);
  await together(CLIENTS, async (index) => {
    let total = 0;
    for await (const rows of sql`SELECT g + ${index}::int AS n FROM generate_series(1, 1000) g`.cursor(90)) {
      total += sum(rows.map(({ n }) => n));
    }
    t.equal(total, 500_500 + 1000 * index);
    for await (const [row] of sql`SELECT generate_series(1, 100000) AS n`.cursor()) if (row!.n === 5) break;
    let count = 0;
    const counted = sql`SELECT generate_series(1, ${100 + index}::int)`;
    // biome-ignore lint/complexity/noForEach: it is that of the driver, which reads row by row.
    await counted.forEach(() => {
      count++;
    });
    t.equal(count, 100 + index);
    const several = await sql`SELECT 1 AS a; SELECT 2 AS b`.simple();
    t.same(several, [[{ a: 1 }], [{ b: 2 }]]);
  });
});

inEachMode('postgres.js: COPY in and out', async (t, proxy) => {
  const setup = postgresJs(t, postgres.port, 1);
  await setup`DROP TABLE IF EXISTS copied`;
  await setup`CREATE TABLE copied (who int, n int, label text)`;
  await together(CLIENTS, async (who) => {
    // A pool of one each: in a larger one this driver may lose a COPY, with Postgres alone as well.
    const sql = postgresJs(t, proxy.port, 1);
    const target = await sql`COPY copied FROM STDIN`.writable();
    await new Promise<void>((resolve, reject) => {
      target.once('error', reject).once('finish', resolve);
      for (let n = 0; n < 5000; n++) target.write(`${who}\t${n}\tlabel ${n}\n`);
      target.end();
    });
    const source = await sql`
      COPY (SELECT n, label FROM copied WHERE who = ${sql.unsafe(`${who}`)} ORDER BY n) TO STDOUT`.readable();
    let text = '';
    for await (const chunk of source) text += chunk;
    const wanted = range(5000).map((n) => `${n}\tlabel ${n}\n`);
    t.equal(text, wanted.join(''));
  });
  t.same(await setup`SELECT count(*)::int AS n FROM copied`, [{ n: CLIENTS * 5000 }]);
});

inEachMode('postgres.js: cancel stops the query', async (t, proxy) => {
  const sql = postgresJs(t, proxy.port, 1);
  const direct = await join(t, postgres.port);
  for (let turn = 0; turn < 3; turn++) {
    const query = sql`SELECT pg_sleep(31), ${turn}::int`;
    const ending = failure(query);
    // Not merely active: that it is from Parse on, and between messages Postgres ignores a cancel request.
    await until(async () => {
      const { rows } = await direct.query(
        `SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE 'SELECT pg_sleep(31)%'`,
      );
      return rows.length === 1;
    }, 'the query to run');
    query.cancel();
    t.equal((await ending).code, '57014');
    t.same(await sql`SELECT ${turn}::int AS n`, [{ n: turn }]);
  }
  await direct.end();
});

inEachMode('postgres.js: a prepared statement whose table has changed heals by itself', async (t, proxy) => {
  const story = async (port: number) => {
    const sql = postgresJs(t, port, 1);
    const other = await join(t, port);
    await other.query('DROP TABLE IF EXISTS changing');
    await other.query('CREATE TABLE changing AS SELECT 1 AS a');
    const read = () => sql`SELECT * FROM changing`.then((rows) => [...rows]);
    const answers = [await read(), await read()];
    await other.query('ALTER TABLE changing ADD b int DEFAULT 2');
    answers.push(await read(), await read());
    await other.end();
    return answers;
  };
  t.same(await story(proxy.port), await story(postgres.port));
});

t.test('JDBC: a statement of which only portals were described is refused when its table has changed', async (t) => {
  const proxy = await startProxy(postgres.port, { pool: { size: 2 } });
  t.teardown(() => proxy.stop());
  const direct = await join(t, postgres.port);
  /** As pgjdbc does it: described once, through the portal; the columns are remembered from then on. */
  const story = async (port: number, blockers: pg.Client[]) => {
    await direct.query('DROP TABLE IF EXISTS changing');
    await direct.query('CREATE TABLE changing AS SELECT 1 AS a');
    const client = await RawClient.open(port);
    t.teardown(() => client.end());
    const text = 'SELECT changing.*, pg_backend_pid() FROM changing';
    const first = await client.ask([
      send.parse('S_1', text),
      send.bind('', 'S_1'),
      send.describe('P', ''),
      send.execute(''),
      send.sync(),
    ]);
    t.equal(types(first), '12TDCZ');
    const pids: number[] = [];
    for (const blocker of blockers) {
      await blocker.query('BEGIN');
      pids.push((await blocker.query('SELECT pg_backend_pid() AS pid')).rows[0].pid);
    }
    const row = first.find(({ type }) => type === 'D')!.body.toString('latin1');
    await blockers[pids.findIndex((pid) => !row.includes(`${pid}`))]?.query('COMMIT');
    await direct.query('ALTER TABLE changing ADD b int DEFAULT 2');
    const second = await client.ask([send.bind('', 'S_1'), send.execute(''), send.sync()]);
    return { types: types(second), sqlstates: sqlstates(second) };
  };
  const blockers = await together(2, () => join(t, proxy.port));
  const theirs = await story(postgres.port, []);
  t.same(theirs.sqlstates, ['0A000']);
  t.same(await story(proxy.port, blockers), theirs, 'no row of another shape than was described');
});

t.test('postgres.js: it heals, too, when another server than before meets the changed table', async (t) => {
  const proxy = await startProxy(postgres.port, { pool: { size: 2 } });
  t.teardown(() => proxy.stop());
  const sql = postgresJs(t, proxy.port, 1);
  const direct = await join(t, postgres.port);
  const blockers = await together(2, () => join(t, proxy.port));
  await direct.query('DROP TABLE IF EXISTS changing');
  await direct.query('CREATE TABLE changing AS SELECT 1 AS a');
  const read = () => sql`SELECT changing.*, pg_backend_pid() AS pid FROM changing`.then((rows) => rows[0]!);
  const before = await read();
  // Both servers are taken; the one that has not seen the statement is then given up.
  const pids = [];
  for (const client of blockers) {
    await client.query('BEGIN');
    pids.push((await client.query('SELECT pg_backend_pid() AS pid')).rows[0].pid);
  }
  t.ok(pids.includes(before.pid));
  await blockers[pids.findIndex((pid) => pid !== before.pid)]!.query('COMMIT');
  await direct.query('ALTER TABLE changing ADD b int DEFAULT 2');
  const after = await read();
  t.not(after.pid, before.pid);
  t.same([after.a, after.b], [1, 2]);
  await Promise.all([direct, ...blockers].map((client) => client.end()));
});

inEachMode('postgres.js: a reserved connection keeps its settings', async (t, proxy) => {
  const sql = postgresJs(t, proxy.port);
  await together(CLIENTS, async (index) => {
    const own = await sql.reserve();
    await own`SELECT set_config('statement_timeout', ${`${1000 + index}`}, false)`;
    for (let turn = 0; turn < 5; turn++)
      t.same(await own`SHOW statement_timeout`, [{ statement_timeout: index ? `${1000 + index}ms` : '1s' }]);
    await own`RESET statement_timeout`;
    t.same(await own`SHOW statement_timeout`, [{ statement_timeout: '0' }]);
    own.release();
  });
});

// --- Startup parameters ---------------------------------------------------------------------------------------------

t.test('the startup parameters of known drivers are accepted and take effect', async (t) => {
  const proxy = await startProxy(postgres.port, { pool: { size: 2 } });
  t.teardown(() => proxy.stop());
  const startups: Record<string, Record<string, string>> = {
    pgjdbc: { client_encoding: 'UTF8', DateStyle: 'ISO', TimeZone: 'Europe/Prague', extra_float_digits: '2' },
    npgsql: { client_encoding: 'UTF8', application_name: 'npgsql', search_path: 'app', TimeZone: 'UTC' },
    'lib/pq': { client_encoding: 'UTF8', datestyle: 'ISO, MDY', extra_float_digits: '2' },
    asyncpg: { client_encoding: "'utf-8'", jit: 'off', search_path: 'app' },
    supavisor: { application_name: 'Supavisor', extra_float_digits: '3' },
    rails: { client_encoding: 'unicode', options: '-c standard_conforming_strings=on -c intervalstyle=iso_8601' },
    prisma: { options: '-capplication_name=two\\ words --statement-timeout=7s -c my.own=x' },
    psql: { application_name: 'psql', client_encoding: 'SQL_ASCII', options: '-c datestyle=german -c timezone=UTC+3' },
  };
  const asked = `SELECT name, setting FROM pg_settings WHERE name IN ('client_encoding', 'DateStyle', 'TimeZone', 'jit',
    'extra_float_digits', 'application_name', 'search_path', 'standard_conforming_strings', 'IntervalStyle',
    'statement_timeout') ORDER BY name`;
  for (const [name, parameters] of Object.entries(startups)) {
    const [ours, theirs] = await Promise.all(
      [proxy.port, postgres.port].map(async (port) => {
        const client = await RawClient.open(port, parameters);
        const greeting = [...client.parameters].sort(([a], [b]) => (a < b ? -1 : 1));
        // A name that another client of the same server has used stays known there, as ''.
        const own = await client.rows("SELECT nullif(current_setting('my.own', true), '')");
        const rows = [await client.rows(asked), await client.rows(asked)];
        client.end();
        return { greeting, own, rows };
      }),
    );
    t.same(ours, theirs, name);
  }
  t.equal(proxy.bugs(), 0);
});

// --- Drivers that are not of npm ------------------------------------------------------------------------------------

const script = (name: string) => fileURLToPath(new URL(`../fixtures/drivers/${name}`, import.meta.url));

/** Runs a program that prints TAP about the driver, in each mode. */
function withScript(name: string, program: string, args: string[]): void {
  inEachMode(name, async (t, proxy, mode) => {
    await t.spawn(
      program,
      [...args, String(proxy.port), String(postgres.port), mode],
      { env: cleanEnvironment(), timeout: 90_000 },
      name,
    );
  });
}

const python = findProgram('python3');
for (const [module, file, name] of [
  ['psycopg2', 'with_psycopg2.py', 'python3-psycopg2'],
  ['psycopg', 'with_psycopg3.py', 'python3-psycopg'],
] as const) {
  if (python === null || !succeeds(python, ['-c', `import ${module}`])) skip(t, module, name);
  else withScript(module, python, [script(file)]);
}

const jar = '/usr/share/java/postgresql.jar';
const java = findProgram('java');
if (java === null || !existsSync(jar) || !succeeds(java, ['--list-modules']))
  skip(t, 'JDBC', 'libpostgresql-jdbc-java default-jdk-headless');
else withScript('JDBC', java, ['-cp', jar, script('Jdbc.java')]);
