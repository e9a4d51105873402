/**
 * What of Postgres works through a pool in transaction mode with four servers and more clients than that: one row for each feature, run
 * through pgweir, where each must work, and, with PGWEIR_TABLES=<directory>, through PgBouncer as it is installed, whose answers are
 * written down beside ours in <directory>/features.md.
 */
import { mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type pg from 'pg';
import t from 'tap';
import { findPgbouncer, pgbouncer, pgbouncerVersion } from '../../bench/contenders.ts';
import { Version } from '../../src/protocol/encode.ts';
import { cleanEnvironment, findProgram, run, skip } from '../fixtures/drivers/programs.ts';
import { RawClient, send, sqlstates, types } from '../fixtures/raw.ts';
import { connect, startProxy, withPostgres } from '../fixtures/stack.ts';

const { query: Q, parse: P, bind: B, describe: D, execute: E } = send;
const S = send.sync();
const SERVERS = 4;
/** Others at a time: a client that is pinned keeps its server. */
const OTHERS = SERVERS - 1;
const PIPELINE = 100_000;
const PARAMETERS = 32_767;
const tables = process.env.PGWEIR_TABLES;
/** A gigabyte takes the server some seconds; a tenth of it shows the same. */
const ROW_BYTES = tables === undefined ? 100_000_000 : 1_000_000_000;
const FEATURE_MS = 60_000;

/** Throws with what went wrong. */
type Feature = (port: number) => Promise<void>;

function expect(is: unknown, wanted: unknown, what = ''): void {
  const [a, b] = [JSON.stringify(is), JSON.stringify(wanted)];
  if (a !== b) throw new Error(`${what}${what === '' ? '' : ': '}${a} instead of ${b}`.slice(0, 300));
}

const opened: { end(): unknown }[] = [];
async function open(port: number, options: pg.ClientConfig = {}): Promise<pg.Client> {
  const client = await connect(port, options);
  opened.push(client);
  return client;
}

async function raw(port: number, parameters = {}, version: number = Version.v3_0): Promise<RawClient> {
  const client = await RawClient.open(port, parameters, version);
  opened.push(client);
  return client;
}

/** Other clients use servers, so that who asks next may find itself on another one. */
async function disturb(port: number): Promise<void> {
  const others = await Promise.all(Array.from({ length: OTHERS }, () => connect(port)));
  for (const other of others) await other.query('BEGIN');
  await Promise.all(others.map((other) => other.query(`SELECT 'theirs'`)));
  for (const other of others) await other.query('COMMIT');
  for (const other of others) await other.end();
}

const value = async (client: pg.Client, sql: string) => Object.values((await client.query(sql)).rows[0])[0];

const features: Record<string, Feature> = {
  'named statements, on whichever server': async (port) => {
    const clients = await Promise.all([1, 2, 3, 4].map(() => open(port)));
    for (let turn = 0; turn < 5; turn++)
      await Promise.all(
        clients.map(async (client, index) => {
          const { rows } = await client.query({ name: 's', text: `SELECT $1::int + ${index} AS n`, values: [turn] });
          expect(rows[0].n, turn + index);
        }),
      );
  },
  'an unknown statement is an error, and the session goes on': async (port) => {
    const client = await raw(port);
    expect(sqlstates(await client.ask([B('', 'nope'), E(''), S])), ['26000']);
    expect(await client.rows('SELECT 1'), [['1']]);
  },
  'a name that is used twice is an error, and the session goes on': async (port) => {
    const client = await raw(port);
    await client.ask([P('s', 'SELECT 1'), S]);
    expect(sqlstates(await client.ask([P('s', 'SELECT 2'), S])), ['42P05']);
    expect(await client.rows('SELECT 1'), [['1']]);
  },
  'Flush without Sync': async (port) => {
    const client = await raw(port);
    client.write(P('', 'SELECT 1'), B('', ''), D('P', ''), E(''), send.flush());
    expect(types(await client.until('C')), '12TDC');
    expect(types(await client.ask(S)), 'Z');
  },
  'a pipeline of 100,000 messages': async (port) => {
    const client = await raw(port);
    await client.ask([P('s', 'SELECT $1::text'), S]);
    const count = PIPELINE / 2;
    const chunk = Array.from({ length: count }, (_, index) => [B('', 's', [String(index)]), E('')]).flat();
    client.write(...chunk, S);
    const answers = await client.until('Z');
    expect(answers.filter(({ type }) => type === 'C').length, count);
  },
  'an error amid a pipeline skips to Sync': async (port) => {
    const client = await raw(port);
    const batch = (sql: string) => [P('', sql), B('', ''), E('')];
    const answers = await client.ask([...batch('SELECT 1/0'), ...batch('SELECT 1'), S, ...batch('SELECT 2'), S], 2);
    expect(types(answers).replace('N', ''), '1EZ12DCZ');
  },
  '32,767 parameters': async (port) => {
    const client = await open(port);
    const list = Array.from({ length: PARAMETERS }, (_, index) => `$${index + 1}::int`).join();
    const values = Array.from({ length: PARAMETERS }, (_, index) => index);
    const { rows } = await client.query(`SELECT sum(v)::int AS sum FROM unnest(ARRAY[${list}]) v`, values);
    expect(rows[0].sum, (PARAMETERS * (PARAMETERS - 1)) / 2);
  },
  'one row of a gigabyte': (port) => readRow(port, ROW_BYTES),
  'SET is kept for its client, and for no other': async (port) => {
    const client = await open(port);
    await client.query(`SET work_mem = '9MB'; SET search_path = pg_catalog`);
    await disturb(port);
    expect(await value(client, 'SHOW work_mem'), '9MB');
    expect(await value(client, 'SHOW search_path'), 'pg_catalog');
    const others = await Promise.all([1, 2, 3].map(() => open(port)));
    for (const other of others) expect(await value(other, 'SHOW work_mem'), '4MB', 'another client');
  },
  'settings by options at the login': async (port) => {
    const client = await open(port, { options: '-c search_path=pg_catalog -c work_mem=7MB' });
    await disturb(port);
    expect(await value(client, 'SHOW work_mem'), '7MB');
  },
  'LISTEN and NOTIFY': async (port) => {
    const client = await open(port);
    const heard: string[] = [];
    client.on('notification', ({ payload }) => heard.push(payload ?? ''));
    await client.query('LISTEN news');
    await disturb(port);
    await (await open(port)).query(`NOTIFY news, 'hello'`);
    for (let waited = 0; heard.length === 0 && waited < 3_000; waited += 20) await sleep(20);
    expect(heard, ['hello']);
  },
  'a session lock stays the client’s': async (port) => {
    const client = await open(port);
    await client.query('SELECT pg_advisory_lock(42)');
    await disturb(port);
    const other = await open(port);
    expect(await value(other, 'SELECT pg_try_advisory_lock(42)'), false, 'another client');
    expect(await value(client, 'SELECT pg_advisory_unlock(42)'), true);
  },
  'a temporary table': async (port) => {
    const client = await open(port);
    await client.query('CREATE TEMP TABLE mine AS SELECT 7 AS n');
    await disturb(port);
    expect(await value(client, 'SELECT n FROM mine'), 7);
  },
  'a cursor WITH HOLD': async (port) => {
    const client = await open(port);
    await client.query('BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT generate_series(1, 3); COMMIT');
    await disturb(port);
    expect((await client.query('FETCH ALL c')).rows.length, 3);
    await client.query('CLOSE c');
  },
  'PREPARE and EXECUTE in SQL': async (port) => {
    const client = await open(port);
    await client.query('PREPARE mine(int) AS SELECT $1 + 1 AS n');
    await disturb(port);
    expect(await value(client, 'EXECUTE mine(6)'), 7);
    await client.query('DEALLOCATE mine');
  },
  'COPY in and out, and one that fails': async (port) => {
    const client = await raw(port);
    await client.rows('DROP TABLE IF EXISTS copied; CREATE TABLE copied (n int PRIMARY KEY)');
    const answers = await client.ask([Q('COPY copied FROM STDIN'), send.copyData('1\n2\n'), send.copyDone()]);
    expect(types(answers), 'GCZ');
    expect(types(await client.ask(Q('COPY copied TO STDOUT'))), 'HddcCZ');
    const failed = await client.ask([Q('COPY copied FROM STDIN'), send.copyData('1\n'), send.copyDone()]);
    expect(sqlstates(failed), ['23505']);
    expect(await client.rows('SELECT count(*) FROM copied'), [['2']]);
  },
  'a cancel request': async (port) => {
    const client = await open(port);
    const running = client.query('SELECT pg_sleep(20)').then(
      () => 'ran to its end',
      (thrown: { code: string }) => thrown.code,
    );
    await sleep(300);
    const { processID, secretKey } = client as unknown as { processID: number; secretKey: number };
    cancel(port, [processID, secretKey]);
    expect(await running, '57014');
    expect(await value(client, 'SELECT 1'), 1);
  },
  'protocol 3.2 with its long cancel keys': async (port) => {
    const client = await raw(port, {}, Version.v3_2);
    if (client.key.length <= 8) throw new Error(`the key has ${client.key.length} bytes`);
    client.write(Q('SELECT pg_sleep(20)'));
    await sleep(300);
    const socket = net.connect(port, '127.0.0.1').on('error', () => {});
    const head = Buffer.alloc(8);
    head.writeInt32BE(8 + client.key.length, 0);
    head.writeInt32BE(80877102, 4);
    socket.resume().write(Buffer.concat([head, client.key]));
    expect(sqlstates(await client.until('Z')), ['57014']);
  },
  'two-phase commit': async (port) => {
    const client = await open(port);
    await client.query(`BEGIN; CREATE TABLE IF NOT EXISTS halves (n int); PREPARE TRANSACTION 'half'`);
    await disturb(port);
    await client.query(`COMMIT PREPARED 'half'`);
    expect(Number(await value(client, 'SELECT count(*) FROM halves')), 0);
  },
  'large objects': async (port) => {
    const client = await open(port);
    await client.query('BEGIN');
    const oid = await value(client, `SELECT lo_from_bytea(0, '\\x010203')`);
    await client.query(`SELECT lo_put(${oid}, 3, '\\x04')`);
    await client.query('COMMIT');
    await disturb(port);
    expect(String(await value(client, `SELECT encode(lo_get(${oid}), 'hex')`)), '01020304');
    await client.query(`SELECT lo_unlink(${oid})`);
  },
  'calls of functions (fast path)': async (port) => {
    const client = await raw(port);
    expect(types(await client.ask(send.functionCall(177, ['2', '3']))), 'VZ');
  },
  'DISCARD and DEALLOCATE in all their kinds': async (port) => {
    const client = await open(port);
    for (const what of ['PLANS', 'SEQUENCES', 'TEMP', 'ALL']) {
      await client.query({ name: `before ${what}`, text: 'SELECT 1' });
      await client.query(`DISCARD ${what}`);
      await disturb(port);
      expect((await client.query(`SELECT '${what}' AS w`)).rows[0].w, what);
    }
    await client.query('DEALLOCATE ALL');
  },
  'a plan that DDL has made another one': async (port) => {
    const client = await open(port);
    await client.query('DROP TABLE IF EXISTS changing; CREATE TABLE changing (a int); INSERT INTO changing VALUES (1)');
    const ask = () => client.query({ name: 'c', text: 'SELECT * FROM changing' });
    await ask();
    await (await open(port)).query('ALTER TABLE changing ADD b int DEFAULT 2');
    const code = await ask().then(
      () => 'no error',
      (thrown: { code: string }) => thrown.code,
    );
    expect(code, '0A000', 'as Postgres says it');
    const fresh = await open(port);
    expect((await fresh.query({ name: 'c', text: 'SELECT * FROM changing' })).rows[0], { a: 1, b: 2 });
  },
};

/** What needs the programs of the server's own version, and a Postgres that sends its log. */
const replication: Record<string, (port: number, bin: string, folder: string) => Promise<void>> = {
  pg_basebackup: async (port, bin, folder) => {
    await program(
      join(bin, 'pg_basebackup'),
      ['-D', join(folder, 'base'), '-X', 'stream', '-c', 'fast', '--no-sync'],
      port,
    );
    if (!readdirSync(join(folder, 'base')).includes('PG_VERSION')) throw new Error('there is no copy');
  },
  pg_receivewal: async (port, bin, folder) => {
    const client = await connect(port);
    const end = await value(client, 'SELECT pg_switch_wal()');
    await client.query('CREATE TABLE IF NOT EXISTS some_wal AS SELECT generate_series(1, 1000)');
    const until = await value(client, 'SELECT pg_current_wal_flush_lsn()');
    await client.end();
    await program(join(bin, 'pg_receivewal'), ['-D', folder, '--no-loop', '--no-sync', '-E', String(until)], port);
    const files = readdirSync(folder).filter((name) => /^[0-9A-F]{24}/.test(name));
    if (files.length === 0 || statSync(join(folder, files[0]!)).size === 0)
      throw new Error(`nothing came after ${end}`);
  },
  pg_recvlogical: async (port, bin, folder) => {
    const client = await connect(port);
    await client.query(`SELECT pg_create_logical_replication_slot('features', 'test_decoding')`);
    await client.query(`CREATE TABLE IF NOT EXISTS followed (n int); INSERT INTO followed VALUES (4711)`);
    const until = await value(client, 'SELECT pg_current_wal_lsn()');
    const out = join(folder, 'changes');
    try {
      const more = ['-S', 'features', '--start', '-f', out, '-E', String(until), '--no-loop'];
      await program(join(bin, 'pg_recvlogical'), ['-d', 'postgres', ...more], port);
      const { stdout } = await run('/bin/cat', [out]);
      if (!stdout.includes('4711')) throw new Error('the change did not come');
    } finally {
      await client.query(`SELECT pg_drop_replication_slot('features')`).catch(() => {});
      await client.end();
    }
  },
};

async function program(path: string, args: string[], port: number): Promise<void> {
  const target = ['-h', '127.0.0.1', '-p', String(port), '-U', 'postgres', '-w'];
  const { code, stderr } = await run(path, [...target, ...args], { env: cleanEnvironment() });
  if (code !== 0) throw new Error(stderr.trim().split('\n').at(-1));
}

function cancel(port: number, key: readonly number[]): void {
  const request = Buffer.alloc(16);
  for (const [at, each] of [16, 80877102, ...key].entries()) request.writeInt32BE(each, 4 * at);
  // As libpq: it waits until the other side has closed.
  net
    .connect(port, '127.0.0.1')
    .on('error', () => {})
    .resume()
    .write(request);
}

/** Counts the bytes of one long row, and keeps none of them. */
async function readRow(port: number, bytes: number): Promise<void> {
  const client = await RawClient.open(port);
  opened.push(client);
  client.socket.removeAllListeners('data');
  let received = 0;
  let last = '';
  const ended = new Promise<void>((done) => {
    client.socket.on('data', (chunk: Buffer) => {
      received += chunk.length;
      last = chunk.toString('latin1', chunk.length - 6);
      if (last.startsWith('Z')) done();
    });
    client.socket.on('close', done);
  });
  client.write(Q(`SELECT repeat('x', ${bytes})`));
  await ended;
  if (received < bytes) throw new Error(`only ${received} bytes came`);
}

type Answer = 'works' | string;

/** Runs one feature, within a time; gives 'works', or why it does not. */
async function answer(feature: () => Promise<void>): Promise<Answer> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no answer in ${FEATURE_MS / 1000} s`)), FEATURE_MS);
  });
  try {
    const done = feature();
    done.catch(() => {});
    await Promise.race([done, late]);
    return 'works';
  } catch (thrown) {
    return (thrown as Error).message
      .replaceAll(/\s+/g, ' ')
      .replaceAll(/port \d+/g, 'port PORT')
      .slice(0, 120);
  } finally {
    clearTimeout(timer);
    await Promise.allSettled(opened.splice(0).map(async (each) => each.end()));
  }
}

/** Rows of the table: the feature, and what came through each pool. */
const rows = new Map<string, Answer[]>();
const note = (name: string, came: Answer) => rows.set(name, [...(rows.get(name) ?? []), came]);

t.setTimeout(900_000);
const postgres = await withPostgres({ settings: { max_prepared_transactions: '5' } });
t.after(() => postgres.stop());
const other = tables === undefined ? null : findPgbouncer(null);

t.test('features of SQL and the protocol', { timeout: 600_000 }, async (t) => {
  const proxy = await startProxy(postgres.port, { pool: { size: SERVERS, pinnedMax: '100%', waitMax: '10s' } });
  t.teardown(() => proxy.stop());
  for (const [name, feature] of Object.entries(features)) {
    const came = await answer(() => feature(proxy.port));
    t.equal(came, 'works', name);
    note(name, came);
  }
  t.equal(proxy.bugs(), 0);
  if (other === null) return;
  for (const [name, feature] of Object.entries(features)) {
    // Anew for each: what one leaves behind would spoil the next.
    const beside = await pgbouncer(other, postgres, SERVERS, { waitSeconds: 10 });
    note(name, await answer(() => feature(beside.port)));
    await beside.stop();
  }
});

t.test('replication by the programs of Postgres', { timeout: 300_000 }, async (t) => {
  const found = findProgram('pg_ctlcluster') === null ? [] : readdirSync('/usr/lib/postgresql').sort((a, b) => +b - +a);
  const bin = found.map((version) => `/usr/lib/postgresql/${version}/bin`)[0];
  if (bin === undefined) return skip(t, 'Postgres of Debian', 'postgresql');
  const server = await withPostgres({
    binDir: bin,
    hba: 'local all all trust\nhost all all 127.0.0.1/32 trust\nhost replication all 127.0.0.1/32 trust\n',
    settings: { wal_level: 'logical', max_wal_senders: '5', max_replication_slots: '5' },
  });
  t.teardown(() => server.stop());
  const runAll = async (port: number, isOurs: boolean) => {
    for (const [name, feature] of Object.entries(replication)) {
      const folder = mkdtempSync(join(tmpdir(), 'pgweir-features-'));
      const came = await answer(() => feature(port, bin, folder));
      rmSync(folder, { recursive: true, force: true });
      if (isOurs) t.equal(came, 'works', name);
      note(name, came);
    }
  };
  const proxy = await startProxy(server.port);
  t.teardown(() => proxy.stop());
  await runAll(proxy.port, true);
  t.equal(proxy.bugs(), 0);
  if (other === null) return;
  const beside = await pgbouncer(other, server, SERVERS, { waitSeconds: 10 });
  t.teardown(() => beside.stop());
  await runAll(beside.port, false);
});

t.test('the table', async (t) => {
  if (tables === undefined || other === null) return;
  const version = pgbouncerVersion(other).join('.');
  const cell = (came: Answer) => (came === 'works' ? came : `**no**: ${came.replaceAll('|', '\\|')}`);
  const lines = [...rows].map(([name, all]) => `| ${name} | ${all.map(cell).join(' | ')} |`);
  const head = `| feature, in transaction mode with four servers | pgweir | PgBouncer ${version} |\n|---|---|---|\n`;
  writeFileSync(join(tables, 'features.md'), `${head}${lines.join('\n')}\n`);
  t.ok(dirname(tables) !== '', 'written');
});
