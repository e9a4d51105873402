/**
 * The programs that come with Postgres, through the proxy: psql and pg_dump must print what they print without it,
 * and pgbench must find its sums right after any load.
 */
import { createHash } from 'node:crypto';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { findProgram, run, skip } from '../fixtures/drivers/programs.ts';
import { connect, startProxy, temporaryFile, withPostgres } from '../fixtures/stack.ts';

const postgres = await withPostgres();
t.after(() => postgres.stop());

const where = (port: number, database = 'postgres') => ({
  PGHOST: '127.0.0.1',
  PGPORT: String(port),
  PGUSER: 'postgres',
  PGDATABASE: database,
});

const modes = ['transaction', 'session'] as const;

// --- psql -----------------------------------------------------------------------------------------------------------

const psql = findProgram('psql');

/** Scripts whose output must be the same with and without the proxy. `DIR` stands for a directory of the run. */
const scripts: Record<string, string> = {
  'queries, errors and transactions': String.raw`
    \set VERBOSITY verbose
    SELECT 1 AS one, 'ž€𝄞' AS text, NULL AS nothing;
    SELECT 1; SELECT 2 \; SELECT 3;
    SELEC 1;
    SELECT 1 / 0;
    \errverbose
    BEGIN;
    CREATE TABLE t (id int PRIMARY KEY, label text);
    INSERT INTO t SELECT g, 'label ' || g FROM generate_series(1, 20) g;
    SAVEPOINT a;
    INSERT INTO t VALUES (1, 'again');
    SELECT count(*) FROM t;
    ROLLBACK TO a;
    SELECT count(*) FROM t;
    COMMIT;
    \set ON_ERROR_ROLLBACK on
    BEGIN;
    INSERT INTO t VALUES (1, 'again');
    INSERT INTO t VALUES (21, 'more');
    COMMIT;
    \set AUTOCOMMIT off
    INSERT INTO t VALUES (22, 'lost');
    ROLLBACK;
    \set AUTOCOMMIT on
    SELECT count(*) FROM t;
    INSERT INTO t VALUES (30, 'x') RETURNING *;
    DO $$ BEGIN RAISE NOTICE 'noticed'; RAISE WARNING 'warned'; END $$;
    BEGIN; SELECT txid_current() = txid_current(); COMMIT AND CHAIN; SHOW transaction_isolation; ROLLBACK;
    COMMIT;
    SET TRANSACTION READ ONLY;
    DROP TABLE t;
  `,
  'variables, \\gset, \\gexec, \\gdesc and \\crosstabview': String.raw`
    SELECT 5 AS five, 'x y' AS word \gset my_
    SELECT :my_five + 1, :'my_word';
    SELECT format('SELECT %s AS n', g) FROM generate_series(1, 3) g \gexec
    SELECT 1 AS a, 'b'::varchar(3) AS b \gdesc
    SELECT v, h, v * h AS p FROM generate_series(1, 2) v, generate_series(1, 3) h \crosstabview v h p
    \if :my_five
      SELECT 'yes';
    \endif
    SELECT pg_typeof(:'my_word'::text);
    \echo :ROW_COUNT :SQLSTATE :ERROR
    SELECT 1 FROM nowhere_at_all;
    \echo :LAST_ERROR_SQLSTATE :LAST_ERROR_MESSAGE
    SELECT 42 AS n \gx
    \echo :ENCODING :DBNAME :USER
  `,
  'COPY and \\copy, in and out, good and bad': String.raw`
    CREATE TABLE copied (n int PRIMARY KEY, label text);
    COPY copied FROM STDIN;
1	one
2	two
\.
    \copy (SELECT g, repeat('x', g % 50) FROM generate_series(3, 20000) g) TO 'DIR/rows'
    \copy copied FROM 'DIR/rows'
    SELECT count(*), sum(n), sum(length(label)) FROM copied;
    \copy copied FROM 'DIR/rows'
    \copy copied FROM 'DIR/does not exist'
    COPY copied FROM STDIN WITH (FORMAT csv);
30000,"a ""quoted"" one"
not a number,x
30001,y
\.
    SELECT count(*) FROM copied;
    COPY (SELECT * FROM copied WHERE n < 5 ORDER BY n) TO STDOUT WITH (FORMAT csv, HEADER);
    BEGIN;
    COPY copied FROM STDIN;
40000	in a transaction
\.
    COPY copied TO STDOUT \g /dev/null
    ROLLBACK;
    SELECT max(n) FROM copied;
    TRUNCATE copied \; COPY copied FROM STDIN \; SELECT count(*) FROM copied \; COPY copied TO STDOUT \; SELECT 'end';
7	seven
\.
    DROP TABLE copied;
  `,
  'cursors, FETCH_COUNT and large results': String.raw`
    BEGIN;
    DECLARE c SCROLL CURSOR FOR SELECT generate_series(1, 100) AS n;
    FETCH 3 FROM c;
    MOVE ABSOLUTE 50 IN c;
    FETCH BACKWARD 2 FROM c;
    SELECT name, is_holdable FROM pg_cursors WHERE name = 'c';
    CLOSE c;
    COMMIT;
    DECLARE h CURSOR WITH HOLD FOR SELECT generate_series(1, 10) AS n;
    FETCH 2 FROM h;
    SELECT 'in between';
    FETCH 2 FROM h;
    CLOSE h;
    FETCH 1 FROM h;
    \set FETCH_COUNT 100
    SELECT g, repeat('y', g % 7) FROM generate_series(1, 1234) g;
    SELECT 1 / (500 - g) FROM generate_series(1, 1000) g;
    \set FETCH_COUNT 0
    SELECT repeat('z', 3000000);
  `,
  'LISTEN and NOTIFY': `
    SELECT 0 \\; LISTEN news;
    NOTIFY news, 'first';
    BEGIN;
    SELECT pg_notify('news', 'second');
    NOTIFY other, 'unheard';
    COMMIT;
    SELECT 1;
    UNLISTEN news;
    NOTIFY news, 'late';
    SELECT 2;
  `,
  'PREPARE, temporary tables and session settings': String.raw`
    PREPARE p (int) AS SELECT $1 + 1 AS n;
    EXECUTE p (1);
    SELECT 'in between';
    EXECUTE p (2);
    DEALLOCATE p;
    EXECUTE p (3);
    CREATE TEMP TABLE mine AS SELECT 1 AS a;
    SELECT * FROM mine;
    \d mine
    DROP TABLE mine;
    SET datestyle = 'German';
    SET TIME ZONE 'Asia/Tokyo';
    SELECT timestamptz '2024-02-29 12:00:00+00', date '2024-02-29';
    SET search_path = pg_catalog;
    SHOW search_path;
    BEGIN; SET LOCAL work_mem = '9MB'; SHOW work_mem; COMMIT;
    SHOW work_mem;
    BEGIN; SET work_mem = '8MB'; ROLLBACK;
    SHOW work_mem;
    SET statement_timeout = 30;
    SELECT pg_sleep(10);
    RESET statement_timeout;
    SELECT 'alive';
    \encoding LATIN1
    \encoding
    SHOW client_encoding;
    \encoding UTF8
    SET ROLE pg_monitor;
    SELECT current_user, session_user;
    RESET ROLE;
    SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE;
    SHOW transaction_isolation;
    RESET ALL;
    SHOW transaction_isolation;
    SHOW datestyle;
    SHOW application_name;
    SELECT pg_advisory_lock(7);
    SELECT pg_try_advisory_lock(7), pg_advisory_unlock(7), pg_advisory_unlock(7), pg_advisory_unlock(7);
    DISCARD ALL;
    SELECT 'end';
  `,
  'descriptions of the catalogue': String.raw`
    CREATE SCHEMA app;
    CREATE TYPE app.mood AS ENUM ('good', 'bad');
    CREATE TABLE app.parent (id serial PRIMARY KEY, mood app.mood NOT NULL DEFAULT 'good', CHECK (id > 0));
    CREATE TABLE app.child (id int REFERENCES app.parent, note text COLLATE "C");
    CREATE INDEX ON app.child (note) WHERE note IS NOT NULL;
    CREATE VIEW app.both AS SELECT * FROM app.parent JOIN app.child USING (id);
    CREATE FUNCTION app.twice(a int) RETURNS int LANGUAGE sql AS 'SELECT a * 2';
    COMMENT ON TABLE app.child IS 'a child';
    SET search_path = app, public;
    \d
    \dt
    \dt+ app.*
    \d parent
    \d+ child
    \dv
    \ds
    \di
    \df app.*
    \dT app.*
    \dn
    \l template0
    \du postgres
    \dx
    \dp
    \sf app.twice
    \sv app.both
    \ef nonexistent
    \dconfig search_path
    \d nothing_at_all
    \conninfo
    DROP SCHEMA app CASCADE;
  `,
  'large objects and reconnecting': String.raw`
    \copy (SELECT repeat('large', 40000)) TO 'DIR/large'
    \lo_import 'DIR/large' 'a comment'
    \set oid :LASTOID
    SELECT length(lo_get(:oid));
    \lo_export :oid 'DIR/again'
    \lo_unlink :oid
    \c
    SELECT current_database();
    \c template1
    SELECT current_database();
    \c - - - -
    SELECT 'still here';
  `,
};

/** What differs from run to run, taken out: process ids, ports, object ids, numbers of temporary schemas. */
function steady(text: string, port: number, folder: string): string[] {
  const lines = text.replaceAll(folder, 'DIR').replaceAll(`"${port}"`, 'PORT').split('\n');
  return lines.map((line) => {
    // A title is centred, so that a longer name moves it. Nothing clever here: some lines are megabytes of blanks.
    if (line.includes('Table "pg_temp_')) return line.trim().replace(/pg_temp_\d+/, 'pg_temp_…');
    if (line.includes('server process with PID')) return line.replace(/PID \d+/, 'PID …');
    return line.startsWith('lo_') ? line.replace(/\d+/, '…') : line;
  });
}

/** What psql prints for `text`, by lines: a difference is then shown as one. */
async function runScript(port: number, text: string): Promise<string[]> {
  const folder = mkdtempSync(join(tmpdir(), 'pgweir-psql-'));
  try {
    const input = text.replaceAll('DIR', folder);
    const { code, stdout, stderr } = await run(psql!, ['-X', '-a', '-f', '-'], {
      input,
      env: where(port),
      cwd: folder,
    });
    const files = readdirSync(folder).map((name) => {
      const digest = createHash('sha256').update(readFileSync(join(folder, name)));
      return `${name} ${digest.digest('hex')}`;
    });
    return steady([stdout, stderr, ...files.sort(), `exit code ${code}`].join('\n'), port, folder);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

async function comparePsql(t: Test): Promise<void> {
  const proxies = await Promise.all(
    modes.map((mode) => startProxy(postgres.port, { pool: { mode, size: mode === 'session' ? 8 : 2 } })),
  );
  t.teardown(() => Promise.all(proxies.map((proxy) => proxy.stop())));
  for (const [name, text] of Object.entries(scripts)) {
    const wanted = await runScript(postgres.port, text);
    t.equal(wanted.at(-1), 'exit code 0', `${name}: directly`);
    for (const [index, mode] of modes.entries()) {
      t.same(await runScript(proxies[index]!.port, text), wanted, `${name}: in ${mode} mode`);
    }
  }
  for (const proxy of proxies) t.equal(proxy.bugs(), 0);
}

if (psql === null) skip(t, 'psql', 'postgresql-client');
else {
  t.test('psql prints through the proxy what it prints without it', comparePsql);

  t.test('psql: eight scripts at a time over two servers print what each prints alone', async (t) => {
    const proxy = await startProxy(postgres.port, { pool: { size: 2 } });
    t.teardown(() => proxy.stop());
    const script = (index: number) => String.raw`
      SET my.own = '${index}';
      CREATE TABLE own${index} (n int);
      \copy own${index} FROM PROGRAM 'seq 1 ${1000 + index}'
      SELECT count(*), current_setting('my.own') FROM own${index};
      BEGIN; DECLARE c CURSOR FOR SELECT n FROM own${index} ORDER BY n; MOVE 900 IN c; FETCH 2 FROM c; COMMIT;
      SELECT 1 / 0;
      SHOW my.own;
      DROP TABLE own${index};
    `;
    const indexes = [0, 1, 2, 3, 4, 5, 6, 7];
    const found = await Promise.all(indexes.map((index) => runScript(proxy.port, script(index))));
    const wanted = await Promise.all(indexes.map((index) => runScript(postgres.port, script(index))));
    t.same(found, wanted);
    t.match(wanted[3]!.join('\n'), /\b1003 \| 3\b/);
    t.equal(proxy.bugs(), 0);
  });

  t.test('psql: \\bind uses the extended protocol', async (t) => {
    const { stdout } = await run(psql, ['--version']);
    const version = Number(/ (\d+)/.exec(stdout)?.[1]);
    if (version < 16) return t.comment(`psql ${version} has no \\bind`);
    const proxy = await startProxy(postgres.port, { pool: { size: 2 } });
    t.teardown(() => proxy.stop());
    const script = String.raw`
      SELECT $1::int + $2::int AS sum \bind 40 2 \g
      SELECT $1::int \bind x \g
      BEGIN;
      SELECT $1::text AS word \bind 'two words' \g
      COMMIT;
    `;
    const wanted = await runScript(postgres.port, script);
    t.match(wanted.join('\n'), /\b42\b/);
    t.same(await runScript(proxy.port, script), wanted);
  });
}

// --- pg_dump --------------------------------------------------------------------------------------------------------

/** pg_dump does not read servers that are newer than itself: a directory with a pg_dump and its own server. */
function findDump(): { pgDump: string; binDir: string | null } | null {
  const root = '/usr/lib/postgresql';
  const versions = existsSync(root)
    ? readdirSync(root)
        .map(Number)
        .sort((a, b) => b - a)
    : [];
  for (const version of versions) {
    const binDir = join(root, String(version), 'bin');
    const has = (name: string) => existsSync(join(binDir, name));
    if (has('pg_dump') && has('postgres') && has('initdb')) return { pgDump: join(binDir, 'pg_dump'), binDir };
    if (has('pg_dump') && version >= 18) return { pgDump: join(binDir, 'pg_dump'), binDir: null };
  }
  return null;
}

const schema = `
  CREATE SCHEMA app;
  CREATE TYPE app.mood AS ENUM ('good', 'bad');
  CREATE TABLE app.parent (id serial PRIMARY KEY, mood app.mood NOT NULL DEFAULT 'good', at timestamptz, f float8);
  INSERT INTO app.parent (mood, at, f) SELECT 'bad', timestamptz '2024-01-01 00:00+00' + g * interval '1 h', g / 3.0
    FROM generate_series(1, 5000) g;
  CREATE TABLE app.child (id int REFERENCES app.parent, note text);
  INSERT INTO app.child SELECT id, E'tab\\t, back\\\\slash, ž€ ' || id FROM app.parent;
  CREATE INDEX ON app.child (note);
  CREATE VIEW app.both AS SELECT * FROM app.parent JOIN app.child USING (id);
  CREATE FUNCTION app.twice(a int) RETURNS int LANGUAGE sql AS 'SELECT a * 2';
  CREATE TABLE public.parted (n int) PARTITION BY RANGE (n);
  CREATE TABLE public.part1 PARTITION OF public.parted FOR VALUES FROM (0) TO (100);
  INSERT INTO public.parted SELECT generate_series(0, 99);
  COMMENT ON TABLE app.child IS 'a child';
  SELECT lo_from_bytea(0, 'large');
  GRANT SELECT ON app.child TO PUBLIC;
`;

const dump = findDump();
if (dump === null) skip(t, 'pg_dump with a server of its version', 'postgresql');
else {
  t.test('pg_dump through the proxy gives the dump that it gives without it', async (t) => {
    const server = dump.binDir === null ? postgres : await withPostgres({ binDir: dump.binDir });
    if (server !== postgres) t.teardown(() => server.stop());
    const proxy = await startProxy(server.port, { pool: { size: 8 } });
    t.teardown(() => proxy.stop());
    const setup = await connect(server.port);
    t.teardown(() => setup.end());
    await setup.query('CREATE DATABASE dumped');
    await setup.query('CREATE DATABASE restored');
    const owner = await connect(server.port, { database: 'dumped' });
    t.teardown(() => owner.end());
    await owner.query(schema);
    const take = async (port: number, args: string[], database = 'dumped') => {
      const { code, stdout, stderr } = await run(dump.pgDump, args, { env: where(port, database) });
      t.same([code, stderr], [0, ''], `pg_dump ${args.join(' ')}`);
      // A random key keeps psql from being led astray by what is in a dump.
      return stdout.replaceAll(/^\\(un)?restrict .*$/gm, '\\$1restrict');
    };
    for (const args of [
      [],
      ['--inserts', '--rows-per-insert=50'],
      ['--schema-only'],
      ['--serializable-deferrable', '-t', 'app.*'],
    ]) {
      const [ours, theirs] = [await take(proxy.port, args), await take(server.port, args)];
      t.ok(ours === theirs && theirs.includes('app.child'), `the same dump with ${args.join(' ') || 'no options'}`);
    }
    await t.test('and so does a parallel one, whose workers share a snapshot', async (t) => {
      const folder = mkdtempSync(join(tmpdir(), 'pgweir-dump-'));
      t.teardown(() => rmSync(folder, { recursive: true }));
      for (const [name, port] of [
        ['ours', proxy.port],
        ['theirs', server.port],
      ] as const) {
        await take(port, ['-Fd', '-j', '3', '-Z0', '-f', join(folder, name)]);
      }
      const files = readdirSync(join(folder, 'theirs')).filter((name) => name !== 'toc.dat');
      t.ok(files.length >= 4);
      for (const name of files) {
        const read = (whose: string) => readFileSync(join(folder, whose, name), 'utf8');
        t.equal(read('ours'), read('theirs'), name);
      }
    });
    if (psql === null) return;
    const { stdout: text } = await run(dump.pgDump, [], { env: where(server.port, 'dumped') });
    const restore = await run(psql, ['-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', '-'], {
      input: text,
      env: where(proxy.port, 'restored'),
    });
    t.same([restore.code, restore.stderr], [0, ''], 'the dump is restored through the proxy');
    t.ok((await take(server.port, [], 'restored')) === (await take(server.port, [])), 'and is the same again');
    t.equal(proxy.bugs(), 0);
  });
}

// --- pgbench --------------------------------------------------------------------------------------------------------

const pgbench = findProgram('pgbench');
const CLIENTS = '64';

async function benchmark(t: Test, port: number, args: string[]): Promise<number> {
  const { code, stdout, stderr } = await run(pgbench!, ['-n', '-j', '2', ...args], { env: where(port, 'bench') });
  const count = Number(/number of transactions actually processed: (\d+)/.exec(stdout)?.[1] ?? 0);
  t.equal(code, 0, `pgbench ${args.join(' ')}: ${count} transactions`);
  // Its stderr also says what is no error: how many clients and threads there are.
  t.notMatch(stderr, /error|abort|fatal/i);
  t.ok(count > 0);
  t.match(stdout, /number of failed transactions: 0 /);
  return count;
}

/** The sums that TPC-B keeps equal, and the number of its transactions. */
async function sums(): Promise<{ sums: string[]; history: number }> {
  const client = await connect(postgres.port, { database: 'bench' });
  const { rows } = await client.query(
    `SELECT (SELECT sum(abalance) FROM pgbench_accounts) AS a, (SELECT sum(tbalance) FROM pgbench_tellers) AS t,
      (SELECT sum(bbalance) FROM pgbench_branches) AS b, (SELECT coalesce(sum(delta), 0) FROM pgbench_history) AS h,
      (SELECT count(*)::int FROM pgbench_history) AS history`,
  );
  await client.end();
  const { history, ...all } = rows[0];
  return { sums: [...new Set(Object.values(all).map(String))], history };
}

if (pgbench === null) skip(t, 'pgbench', 'postgresql-contrib');
else {
  t.test('pgbench', async (t) => {
    const proxy = await startProxy(postgres.port, { pool: { size: 8 } });
    t.teardown(() => proxy.stop());
    const sessions = await startProxy(postgres.port, { pool: { mode: 'session', size: 64 } });
    t.teardown(() => sessions.stop());
    const setup = await connect(postgres.port);
    await setup.query('CREATE DATABASE bench');
    await setup.end();
    let processed = 0;

    await t.test('makes its tables through the proxy', async (t) => {
      const { code, stderr } = await run(pgbench, ['-i', '-s', '2', '-q'], { env: where(proxy.port, 'bench') });
      t.equal(code, 0, stderr);
    });

    for (const protocol of ['simple', 'extended', 'prepared']) {
      await t.test(`${protocol}: 64 clients share 8 servers without an error`, async (t) => {
        await benchmark(t, proxy.port, ['-M', protocol, '-c', CLIENTS, '-T', '2', '-S']);
        processed += await benchmark(t, proxy.port, ['-M', protocol, '-c', CLIENTS, '-T', '2']);
        const { sums: found, history } = await sums();
        t.equal(found.length, 1, `all sums are ${found[0]}`);
        t.equal(history, processed, 'each transaction that was reported is there, and no other');
      });
    }

    await t.test('in session mode each of 64 clients has a server', async (t) => {
      processed += await benchmark(t, sessions.port, ['-M', 'prepared', '-c', CLIENTS, '-T', '1']);
      const { sums: found, history } = await sums();
      t.equal(found.length, 1);
      t.equal(history, processed);
    });

    await t.test('a new connection for each transaction', async (t) => {
      processed += await benchmark(t, proxy.port, ['-C', '-c', '8', '-T', '1', '-M', 'prepared']);
      t.equal((await sums()).history, processed);
    });

    await t.test('pipelines', async (t) => {
      const script = temporaryFile(
        'pipeline.sql',
        String.raw`
          \set aid random(1, 200000)
          \set delta random(-5000, 5000)
          \startpipeline
          BEGIN;
          UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;
          UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = 1;
          UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = 1;
          INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (1, 1, :aid, :delta, CURRENT_TIMESTAMP);
          COMMIT;
          \endpipeline
          \startpipeline
          SELECT abalance FROM pgbench_accounts WHERE aid = :aid;
          SELECT count(*) FROM pgbench_branches;
          \endpipeline
        `,
      );
      t.teardown(script.remove);
      for (const protocol of ['extended', 'prepared']) {
        processed += await benchmark(t, proxy.port, ['-M', protocol, '-c', CLIENTS, '-T', '1', '-f', script.path]);
      }
      const { sums: found, history } = await sums();
      t.equal(found.length, 1);
      t.equal(history, processed);
    });

    t.equal(proxy.bugs() + sessions.bugs(), 0);
  });
}
