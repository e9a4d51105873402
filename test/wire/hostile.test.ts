/**
 * Clients that mean harm, or behave as if: garbage, lies about lengths, floods, texts that kill parsers, and sides that
 * do not read. Each gets one clear answer or is closed; meanwhile a heartbeat client is served all the time, memory
 * stays bounded, and nothing counts as a bug.
 */
import { spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { int32, message, sslRequest, startup, Version } from '../../src/protocol/encode.ts';
import { watchMemory } from '../fixtures/memory.ts';
import { RawClient, send, sqlstates, types } from '../fixtures/raw.ts';
import { startProxy, until, withPostgres } from '../fixtures/stack.ts';

type Stack = Awaited<ReturnType<typeof startProxy>>;

const postgres = await withPostgres();
t.after(() => postgres.stop());

const MiB = 1024 * 1024;
/** Longest time that the heartbeat may take for a query, on a machine with other things to do. */
const BEAT_MS = 2_500;

interface Arena {
  proxy: Stack;
  port: number;
  /** Waits until the heartbeat has been served again, `count` times. */
  beats(count?: number): Promise<void>;
  open(parameters?: Record<string, string>): Promise<RawClient>;
  /** A connection that has not said anything. */
  raw(): RawClient;
}

/** A proxy with a heartbeat client, which is asked at the end whether anything disturbed it. */
async function startArena(t: Test, pool: object = {}, top: object = {}): Promise<Arena> {
  const proxy = await startProxy(postgres.port, { pool: { size: 2, waitMax: '8s', ...pool }, top: { ...top } });
  const heart = await RawClient.open(proxy.port, { application_name: 'heart' });
  let isOver = false;
  let count = 0;
  let longest = 0;
  const trouble: string[] = [];
  const beating = (async () => {
    while (!isOver) {
      const from = performance.now();
      const answer = await heart.ask(send.query('SELECT 1')).catch((thrown: Error) => thrown);
      const seen = answer instanceof Error ? answer.message : types(answer);
      if (seen !== 'TDCZ') trouble.push(seen);
      longest = Math.max(longest, performance.now() - from);
      count++;
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  })();
  const clients: RawClient[] = [];
  t.after(async () => {
    for (const client of clients) client.end();
    isOver = true;
    await beating;
    heart.end();
    await proxy.stop();
  });
  const beats = (more = 3) => {
    const goal = count + more;
    return until(() => count >= goal, 'the heartbeat to go on').then(() => {
      t.same(trouble, [], 'the heartbeat was served');
      t.ok(longest < BEAT_MS, `the slowest heartbeat took ${Math.round(longest)} ms`);
      t.equal(proxy.bugs(), 0, 'no bug');
    });
  };
  const keep = (client: RawClient) => {
    clients.push(client);
    return client;
  };
  return {
    proxy,
    port: proxy.port,
    beats,
    open: async (parameters = {}) => keep(await RawClient.open(proxy.port, parameters)),
    raw: () => keep(new RawClient(proxy.port)),
  };
}

/** Runs `attack` and gives by how many bytes what is kept in memory grew at its highest. */
async function growth(attack: () => Promise<unknown>): Promise<number> {
  const memory = watchMemory();
  await attack();
  return memory.growth();
}

const lastError = (messages: Parameters<typeof sqlstates>[0]) => sqlstates(messages).at(-1);

// --- Before the login -------------------------------------------------------------------------------------------

t.test('random bytes at connect are answered with an error or closed', async (t) => {
  const arena = await startArena(t);
  for (let lap = 0; lap < 200; lap++) {
    const client = arena.raw();
    client.write(randomBytes(1 + (lap % 50) * 40));
    client.socket.end();
    const messages = await client.closed();
    t.match(types(messages), /^E?$/);
  }
  t.equal(arena.proxy.app.snapshot().loggingIn, 0);
  await arena.beats();
});

for (const [title, packet] of [
  ['a length of zero', Buffer.concat([int32(0), int32(Version.v3_0)])],
  ['a negative length', Buffer.concat([int32(-1), int32(Version.v3_0)])],
  ['a length of a gigabyte', Buffer.concat([int32(0x40000000), int32(Version.v3_0)])],
  ['protocol version 2', Buffer.concat([int32(8), int32(2 << 16)])],
  ['no terminator', Buffer.concat([int32(14), int32(Version.v3_0), Buffer.from('user\0x')])],
  ['no user', startup(Version.v3_0, [['database', 'postgres']])],
  ['a cancel request that is too short', Buffer.concat([int32(12), int32(80877102), int32(1)])],
  ['a cancel request with a huge key', Buffer.concat([int32(1012), int32(80877102), randomBytes(1004)])],
  ['an SSL request with a body', Buffer.concat([int32(12), int32(80877103), int32(1)])],
] as const) {
  t.test(`a startup packet with ${title} gets one error and is closed`, async (t) => {
    const arena = await startArena(t);
    const client = arena.raw();
    client.write(packet);
    t.match(types(await client.closed()), /^E?$/);
    await arena.beats();
  });
}

t.test('connections that log in too slowly, byte by byte, are closed by loginTimeout', async (t) => {
  const arena = await startArena(t, {}, { listen: { loginTimeout: '700ms' } });
  const packet = startup(Version.v3_0, [['user', 'postgres']]);
  const slow = Array.from({ length: 50 }, () => arena.raw());
  let at = 0;
  const dripping = setInterval(() => {
    for (const client of slow) if (!client.isClosed) client.write(packet.subarray(at, at + 1));
    at++;
  }, 100);
  await until(() => slow.every((client) => client.isClosed), 'all to be closed');
  clearInterval(dripping);
  t.ok(at < packet.length, 'before they were done');
  await until(() => arena.proxy.app.snapshot().open === 1, 'the sockets to be gone');
  await arena.beats();
});

t.test('what is stuffed in behind SSLRequest in clear text is not taken for part of the session', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'pgweir-hostile-'));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  const [cert, key] = [join(folder, 'cert.pem'), join(folder, 'key.pem')];
  const made = spawnSync('openssl', [
    ...['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2'],
    ...['-subj', '/CN=localhost', '-keyout', key, '-out', cert],
  ]);
  if (made.status !== 0) return t.comment('there is no openssl here');
  t.ok(readFileSync(cert).length > 0);
  const arena = await startArena(t, {}, { listen: { tls: { mode: 'allow', cert, key } } });
  const login = startup(Version.v3_0, [['user', 'postgres']]);
  for (const stuffed of [login, Buffer.from([0x16]), randomBytes(100)]) {
    const client = arena.raw();
    client.write(sslRequest, stuffed);
    const messages = await client.closed();
    t.equal(types(messages), 'E');
    t.same(sqlstates(messages), ['08P01']);
  }
  const twice = arena.raw();
  twice.write(login);
  t.equal(types(await twice.until('Z')).at(-1), 'Z', 'without TLS it is welcome');
  await arena.beats();
});

// --- Messages that lie ------------------------------------------------------------------------------------------

t.test('random bytes after the login end that session only', async (t) => {
  const arena = await startArena(t);
  for (let lap = 0; lap < 100; lap++) {
    const client = await arena.open();
    client.write(randomBytes(5 + lap * 7));
    client.socket.end();
    const messages = await client.closed();
    t.match(types(messages), /^[EZ123TDCnNSI]*$/);
  }
  await arena.beats();
});

for (const [title, bytes] of [
  ['a negative length', Buffer.concat([Buffer.from('Q'), int32(-5)])],
  ['a length of three', Buffer.concat([Buffer.from('Q'), int32(3)])],
  ['a length of two gigabytes', Buffer.concat([Buffer.from('P'), int32(0x7fffffff)])],
  ['an unknown type', message(0x21, 'x')],
  ['a message of the login', message(0x70, 'secret\0')],
] as const) {
  t.test(`${title} after the login is answered with one FATAL`, async (t) => {
    const arena = await startArena(t);
    for (const isInTransaction of [false, true]) {
      const client = await arena.open();
      if (isInTransaction) await client.rows('BEGIN');
      client.write(bytes);
      const messages = await client.closed();
      t.equal(types(messages), 'E');
      t.match(lastError(messages), /^(08P01|54000)$/);
    }
    await arena.beats();
  });
}

t.test('malformed messages of known types get what Postgres answers', async (t) => {
  const arena = await startArena(t);
  const [client, direct] = [await arena.open(), await RawClient.open(postgres.port)];
  t.after(() => direct.end());
  for (const [what, bytes] of [
    ['an empty Query', message(0x51)],
    ['a Query without a zero', message(0x51, 'SELECT 1')],
    ['a Query with a zero inside', message(0x51, 'SELECT 1\0garbage\0')],
    ['a Sync with a body', message(0x53, 'x')],
    ['an empty Parse', Buffer.concat([message(0x50), send.sync()])],
    [
      'a Parse that lies about its types',
      Buffer.concat([message(0x50, '\0SELECT 1\0', Buffer.from([0, 9])), send.sync()]),
    ],
    [
      'a Bind that lies about its values',
      Buffer.concat([send.parse('', 'SELECT 1'), message(0x42, '\0\0', Buffer.from([0, 0, 0, 5])), send.sync()]),
    ],
    ['a Describe of nothing', Buffer.concat([message(0x44, 'X\0'), send.sync()])],
    ['a Close of nothing', Buffer.concat([message(0x43, 'X\0'), send.sync()])],
    ['an empty Execute', Buffer.concat([message(0x45), send.sync()])],
    ['an empty FunctionCall', message(0x46)],
    [
      'COPY messages out of place',
      Buffer.concat([send.copyData('x'), send.copyDone(), send.copyFail('x'), send.sync()]),
    ],
  ] as const) {
    const [actual, expected] = [await client.ask(bytes), await direct.ask(bytes)];
    t.same([types(actual), sqlstates(actual)], [types(expected), sqlstates(expected)], what);
    t.same(await client.rows('SELECT 1'), [['1']]);
  }
  await arena.beats();
});

t.test('half a message, then the end, over and over', async (t) => {
  const arena = await startArena(t);
  const whole = Buffer.concat([
    send.parse('', 'SELECT $1::text'),
    send.bind('', '', ['x'.repeat(200)]),
    send.execute(''),
  ]);
  for (let lap = 0; lap < 100; lap++) {
    const client = await arena.open();
    client.write(whole.subarray(0, 1 + ((lap * 7) % whole.length)));
    client.socket.end();
    await client.closed();
  }
  await until(() => arena.proxy.app.snapshot().sessions.size === 1, 'the sessions to be gone');
  await arena.beats();
});

// --- Texts that kill parsers ------------------------------------------------------------------------------------

const deep = (open: string, inside: string, close: string, depth: number) =>
  open.repeat(depth) + inside + close.repeat(depth);

for (const [title, sql] of [
  ['a long sum', `SELECT 1${'+1'.repeat(20_000)}`],
  ['a long sum with a function', `SELECT unknown_function(1${'+1'.repeat(7_000)})`],
  ['deep parentheses', `SELECT ${deep('(', '1', ')', 10_000)}`],
  ['deep parentheses with a function', `SELECT unknown_function(${deep('(', '1', ')', 7_000)})`],
  ['deep calls', `SELECT ${deep('f(', '1', ')', 5_000)}`],
  ['deep casts', `SELECT unknown_function(1${'::int'.repeat(3_000)})`],
  ['deep NOT', `SELECT unknown_function(${'NOT '.repeat(4_000)}true)`],
  ['deep subqueries', `SELECT ${deep('(SELECT f(', '1', '))', 1_000)}`],
  ['deep arrays', `SELECT unknown_function(${deep('ARRAY[', '1', ']', 2_000)})`],
  ['deep CASE', `SELECT ${deep('CASE WHEN f() THEN ', '1', ' END', 600)}`],
  ['deep common table expressions', deep('WITH x AS (', 'SELECT f()', ') SELECT 1', 500)],
  ['a long UNION', `SELECT f()${' UNION ALL SELECT 1'.repeat(800)}`],
  ['nested comments', `SELECT ${deep('/*', '', '*/', 10_000)} 1`],
  ['an identifier of 64 KiB', `SELECT 1 AS ${'x'.repeat(65_536)}`],
  ['a function name of 64 KiB', `SELECT ${'x'.repeat(65_536)}(1)`],
  ['a quoted identifier of 64 KiB', `SELECT 1 AS "${'""'.repeat(32_768)}"`],
  ['a query of 2 MiB', `SELECT length('${'x'.repeat(2 * MiB)}')`],
  ['a list of 100 000 numbers', `SELECT 1 WHERE 1 IN (${Array.from({ length: 100_000 }, (_, i) => i).join(',')})`],
  ['50 000 statements', 'SELECT 1;'.repeat(50_000)],
  ['an open string', `SELECT f('${'x'.repeat(10_000)}`],
  ['an open comment', `SELECT f() /*${'/*'.repeat(10_000)}`],
  ['an open dollar quote', `SELECT f($x$${'$'.repeat(10_000)}`],
  ['a million dollars', `SELECT ${'$'.repeat(1_000_000)}`],
  ['many dollar quotes that never close', `SELECT ${Array.from({ length: 50_000 }, (_, i) => `$a${i}$`).join(' ')}`],
  ['80 000 nested calls of set_config', `SELECT ${'set_config('.repeat(80_000)}`],
  [
    '80 000 calls of set_config',
    `SELECT set_config('a.b', '', false)${`, set_config('a.b', '', false)`.repeat(25_000)}`,
  ],
  ['100 000 dots', `INSERT INTO a${'.a'.repeat(100_000)}(`],
  ['words of the grammar', `SELECT ${'temp into pg_temp '.repeat(5_000)}`],
] as const) {
  t.test(`${title} gets Postgres’s own answer, and stops nobody`, async (t) => {
    const arena = await startArena(t, { size: 4, pinnedMax: '100%' });
    const [client, direct] = [await arena.open(), await RawClient.open(postgres.port)];
    t.after(() => direct.end());
    const expected = await direct.ask(send.query(sql));
    const actual = await client.ask(send.query(sql));
    t.equal(actual.length, expected.length);
    t.same(sqlstates(actual), sqlstates(expected));
    t.same(actual.at(0), expected.at(0));
    t.same(await client.rows('SELECT 1'), [['1']], 'the session lives');
    await arena.beats();
  });
}

t.test('forty kilobytes of 1+1+…, fifty times, get Postgres’s own answer each time', async (t) => {
  const arena = await startArena(t, { size: 3 });
  const [client, direct] = [await arena.open(), await RawClient.open(postgres.port)];
  t.after(() => direct.end());
  for (const length of [1_500, 20_000]) {
    const text = (lap: number) => `SELECT ${lap}${'+1'.repeat(length)} AS "x${lap}"`;
    const expected = await direct.ask(send.query(text(0)));
    for (let lap = 0; lap < 50; lap++) {
      const messages = await client.ask(send.query(text(lap)));
      t.same([types(messages), sqlstates(messages)], [types(expected), sqlstates(expected)]);
    }
  }
  await arena.beats();
});

t.test('many texts that the parser must see, each harder than the last, do not hold up those of others', async (t) => {
  const arena = await startArena(t, { size: 8, pinnedMax: '100%' });
  const other = await arena.open();
  await other.ask(send.query('SELECT some_function(0)'));
  const attackers = await Promise.all([1, 2, 3].map(() => arena.open()));
  const attack = Promise.all(
    attackers.map(async (client, index) => {
      for (let lap = 0; lap < 10; lap++) {
        await client.ask(send.query(`SELECT f${index}_${lap}(${deep('(', '1', ')', 7_000)})`));
      }
    }),
  );
  for (let lap = 0; lap < 5; lap++) {
    t.same(sqlstates(await other.ask(send.query(`SELECT other_${lap}(0)`))), ['42883']);
    t.same(await other.rows('SELECT 1'), [['1']]);
  }
  await attack;
  await arena.beats();
});

t.test('an error message longer than all buffers is passed on whole, again and again', async (t) => {
  const arena = await startArena(t);
  const client = await arena.open();
  const quotes = Array.from({ length: 50_000 }, (_, i) => `$a${i}$`).join(' ');
  // Whether the system takes it at once or in parts differs from time to time; either way the server is read on.
  for (let time = 0; time < 60; time++) t.equal(types(await client.ask(send.query(`SELECT ${quotes}`))), 'EZ');
});

t.test('a Parse of 3 MiB is prepared, bound and run', async (t) => {
  const arena = await startArena(t, { pinnedMax: '100%' });
  const client = await arena.open();
  const sql = `SELECT length('${'x'.repeat(3 * MiB)}')`;
  for (const name of ['', 's']) {
    const messages = await client.ask([
      ...[send.parse(name, sql), send.describe('S', name), send.bind('', name), send.execute(''), send.sync()],
    ]);
    t.equal(types(messages), '1tT2DCZ');
    t.equal(types(await client.ask([send.bind('', name), send.execute(''), send.sync()])), '2DCZ');
  }
  await arena.beats();
});

t.test('a text that names one prepared statement thousands of times runs, and its effects are seen', async (t) => {
  const arena = await startArena(t, { size: 3 });
  const [client, next] = [await arena.open(), await arena.open()];
  await client.ask([send.parse('s', "SELECT set_config('app.tenant', 'mine', false)"), send.sync()]);
  const count = 15_000;
  const messages = await client.ask(send.query('EXECUTE s;'.repeat(count)));
  t.equal(messages.filter(({ type }) => type === 'D').length, count);
  t.same(await client.rows('SHOW app.tenant'), [['mine']]);
  t.same(await next.rows("SELECT coalesce(current_setting('app.tenant', true), '')"), [['']]);
  await arena.beats();
});

// --- Floods, and sides that do not read -------------------------------------------------------------------------

t.test('one row of 100 MB streams to a slow reader in bounded memory', async (t) => {
  const arena = await startArena(t, { size: 3 });
  const client = await arena.open();
  const size = 100 * MiB;
  let got = 0;
  client.socket.removeAllListeners('data');
  const grown = await growth(async () => {
    client.socket.pause();
    client.write(send.query(`SELECT repeat('x', ${size})`));
    await until(
      () => [...arena.proxy.app.snapshot().sessions].some(({ socket }) => socket.writableLength > 200_000),
      'a jam',
    );
    await arena.beats();
    client.socket.on('data', (chunk: Buffer) => {
      got += chunk.length;
      client.socket.pause();
      setImmediate(() => client.socket.resume());
    });
    client.socket.resume();
    await until(() => got > size + 30, 'the whole row', 30_000);
  });
  t.ok(grown < 16 * MiB, `memory grew by ${Math.round(grown / MiB)} MiB`);
  await arena.beats();
});

for (const [title, unit, count] of [
  ['100 000 Syncs', send.sync(), 100_000],
  ['100 000 Closes', send.close('S', 'x'), 100_000],
  ['100 000 Parses of new names', null, 100_000],
  ['20 000 queries', send.query('SELECT 1'), 20_000],
  ['2 000 queries with large results', send.query(`SELECT repeat('x', 50000)`), 2_000],
] as const) {
  t.test(`${title} in a pipeline from a client that does not read are held back, not kept`, async (t) => {
    const arena = await startArena(t, { size: 3 });
    const client = await arena.open();
    client.socket.removeAllListeners('data');
    client.socket.pause();
    const bytes = Buffer.concat(
      Array.from(
        { length: count },
        (_, index) => unit ?? Buffer.concat([send.parse(`n${index}`, 'SELECT 1'), send.sync()]),
      ),
    );
    const grown = await growth(async () => {
      client.socket.write(bytes);
      await arena.beats(20);
    });
    t.ok(grown < 16 * MiB + bytes.length, `memory grew by ${Math.round(grown / MiB)} MiB`);
    let got = 0;
    client.socket.on('data', (chunk: Buffer) => (got += chunk.length));
    client.socket.resume();
    await arena.beats(5);
    t.ok(got > 0);
    client.end();
    await until(() => arena.proxy.app.snapshot().sessions.size === 1, 'the session to be gone');
    await until(() => arena.proxy.app.snapshot().pools[0]!.cleaning.size === 0, 'its server to be clean');
    await arena.beats();
  });
}

t.test('a pipeline that is read late comes out whole and in order', async (t) => {
  const arena = await startArena(t, { size: 3 });
  const client = await arena.open();
  client.socket.pause();
  const count = 5_000;
  client.write(...Array.from({ length: count }, (_, i) => send.query(`SELECT ${i}, repeat('x', 1000)`)));
  await arena.beats(20);
  client.socket.resume();
  const messages = await client.until('Z', count);
  const numbers = messages
    .filter(({ type }) => type === 'D')
    .map(({ body }) => Number(body.toString('latin1', 6, 6 + body.readInt32BE(2))));
  t.same(
    numbers,
    Array.from({ length: count }, (_, i) => i),
  );
  await arena.beats();
});

t.test('a client that sends an endless Query without its end keeps little memory', async (t) => {
  const arena = await startArena(t, { size: 3 });
  const client = await arena.open();
  const grown = await growth(async () => {
    client.write(Buffer.concat([Buffer.from('Q'), int32(60 * MiB)]));
    for (let i = 0; i < 50; i++) {
      await new Promise<void>((resolve) => client.socket.write(Buffer.alloc(MiB, 'x'), () => resolve()));
    }
    await arena.beats();
  });
  // Postgres keeps it, not the proxy; this process also holds the sender.
  t.ok(grown < 16 * MiB, `memory grew by ${Math.round(grown / MiB)} MiB`);
  client.end();
  await arena.beats();
});

t.test('a text that names more statements than a server is to keep is answered, in few exchanges', async (t) => {
  const arena = await startArena(t, { size: 3 });
  const client = await arena.open();
  const names = Array.from({ length: 2_000 }, (_, index) => `n${index}`);
  await client.ask([...names.map((name) => send.parse(name, `SELECT '${name}'`)), send.sync()]);
  const messages = await client.ask(send.query(names.map((name) => `EXECUTE ${name}`).join(';')));
  t.equal(types(messages), `${'TDC'.repeat(names.length)}Z`);
  await arena.beats();
});

t.test('large values of settings are not kept for ever', async (t) => {
  const arena = await startArena(t, { size: 3, pinnedMax: '100%' });
  const client = await arena.open();
  const grown = await growth(async () => {
    for (let lap = 0; lap < 150; lap++) {
      await client.rows(`SET app.blob = '${String(lap).repeat(1_000_000 / String(lap).length)}'`);
      if (lap % 10 === 0) await arena.beats(1);
    }
  });
  t.ok(grown < 192 * MiB, `memory grew by ${Math.round(grown / MiB)} MiB`);
  await arena.beats();
});

t.test('large prepared statements of one client are not kept without bound', async (t) => {
  const arena = await startArena(t, { size: 3, pinnedMax: '100%' });
  const client = await arena.open();
  const run = (name: string) => client.ask([send.bind('', name), send.execute(''), send.sync()]);
  const answers: string[] = [];
  const grown = await growth(async () => {
    for (let lap = 0; lap < 150; lap++) {
      const text = `SELECT 1 /* ${String(lap).repeat(1_000_000 / String(lap).length)} */`;
      const messages = await client.ask([send.parse(`s${lap}`, text), send.sync()]);
      answers.push(sqlstates(messages)[0] ?? '');
    }
  });
  t.ok(grown < 128 * MiB, `memory grew by ${Math.round(grown / MiB)} MiB`);
  const first = answers.indexOf('53400');
  t.ok(first > 60 && first < 75, `${first} statements of 1 MB are taken`);
  t.ok(
    answers.slice(first).every((state) => state === '53400'),
    'and no more',
  );
  t.equal(types(await run(`s${first - 1}`)), '2DCZ');
  await client.ask([send.close('S', 's0'), send.close('S', 's1'), send.sync()]);
  t.same(sqlstates(await client.ask([send.parse('more', 'SELECT 1'), send.sync()])), [], 'until one is closed');
  client.end();
  await arena.beats();
});

t.test('names of portals are not kept beyond their transaction', async (t) => {
  const arena = await startArena(t, { size: 1 });
  const client = await arena.open();
  await client.ask([send.parse('s', 'SET work_mem = 1000'), send.sync()]);
  const grown = await growth(async () => {
    for (let lap = 0; lap < 300; lap++) {
      const binds = Array.from({ length: 20 }, (_, index) => [
        send.bind(`${lap} ${index}`.padEnd(4000, 'x'), 's'),
        send.sync(),
      ]);
      await client.ask(binds.flat(), 20);
    }
  });
  t.ok(grown < 16 * MiB, `memory grew by ${Math.round(grown / MiB)} MiB`);
  client.end();
  await arena.beats();
});

t.test('hundreds of connections that come and go at once leave nothing', async (t) => {
  const arena = await startArena(t);
  for (let lap = 0; lap < 3; lap++) {
    const clients = Array.from({ length: 150 }, () => arena.raw());
    for (const client of clients) {
      client.write(startup(Version.v3_0, [['user', 'postgres']]), send.query('SELECT 1'));
      client.end();
    }
    await until(() => arena.proxy.app.snapshot().sessions.size <= 1, 'the sessions to be gone');
  }
  await until(() => arena.proxy.app.snapshot().open === 1, 'the sockets to be gone');
  await arena.beats();
});
