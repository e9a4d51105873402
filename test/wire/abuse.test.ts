/**
 * Hostile input: whatever one client sends, or does not send or read, it gets what Postgres would say or one FATAL; the
 * heartbeat of another client on the same two servers goes on, no server is lost, memory is bounded, nothing is a bug.
 */
import net from 'node:net';
import t from 'tap';
import { message, sslRequest, startup, Version } from '../../src/protocol/encode.ts';
import { readErrorFields } from '../../src/protocol/messages.ts';
import { watchMemory } from '../fixtures/memory.ts';
import { type Message, OCCUPY, RawClient, send, sqlstates, types } from '../fixtures/raw.ts';
import { startProxy, until, withPostgres } from '../fixtures/stack.ts';

const MB = 1024 * 1024;
/** How much the process may grow; the test's own client is in it, too. */
const GROWTH_MAX = 16 * MB;

const postgres = await withPostgres();
t.after(() => postgres.stop());
const proxy = await startProxy(postgres.port, { pool: { size: 2 }, top: { listen: { loginTimeout: '1s' } } });

// --- The client that must not notice ------------------------------------------------------------------------------

const heart = await RawClient.open(proxy.port, { application_name: 'heart' });
let beats = 0;
let isBeating = true;
const heartbeat = (async () => {
  while (isBeating) {
    const answer = await heart.ask(send.query('SELECT 1'));
    if (types(answer) !== 'TDCZ') throw new Error(`after ${beats} beats: ${types(answer)} ${sqlstates(answer)}`);
    beats++;
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
})();
heartbeat.catch(() => {}); // Looked at in the end.

/** A client refused at its login that goes on sending; looked at in the end. */
const dripping = drip(connectSocket(proxy.port), Buffer.alloc(8));
/** A client refused after its login that goes on sending. */
const drippingLater = drip((await RawClient.open(proxy.port)).socket, Buffer.from([0x51, 0, 0, 0, 0]));

// --- Tools --------------------------------------------------------------------------------------------------------

function connectSocket(port: number): net.Socket {
  return net.connect({ host: '127.0.0.1', port, noDelay: true }).on('error', () => {});
}

/** Breaks the protocol with `first`, then sends a byte every 200 ms for 9 s; says whether it was closed before that. */
function drip(socket: net.Socket, first: Buffer): Promise<boolean> {
  socket.resume().write(first);
  // Half-open: the other side's end alone does not end this one.
  socket.allowHalfOpen = true;
  return new Promise((resolve) => {
    let left = 45;
    const timer = setInterval(() => {
      if (left-- > 0 && !socket.destroyed) return void socket.write('x');
      clearInterval(timer);
      resolve(socket.destroyed);
      socket.destroy();
    }, 200);
  });
}

function seeded(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

function bytesOf(random: (below: number) => number, size: number): Buffer {
  return Buffer.from(Array.from({ length: size }, () => random(256)));
}

function uint32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value >>> 0);
  return bytes;
}

function poolOf(user = 'postgres') {
  return proxy.app.snapshot().pools.find((pool) => pool.user === user)!;
}

/** Nobody but the heartbeat uses a server, and both can be used. */
async function isRecovered(): Promise<void> {
  const mine = () => proxy.app.snapshot().sessions.size === 1;
  await until(mine, 'the sessions to end');
  await until(() => poolOf().active.size === 0 && poolOf().cleaning.size === 0, 'the servers to be given back');
  const client = await RawClient.open(proxy.port);
  await client.rows(OCCUPY);
  const before = beats;
  await until(() => beats > before + 1, 'the heartbeat on the other server');
  await client.rows('COMMIT');
  client.end();
  await until(mine, 'the last session to end');
}

/** As Postgres says it, without where in its sources an error was raised. */
function told(messages: readonly Message[]): string[] {
  return messages.map(({ type, body }) => {
    if (type !== 'E' && type !== 'N') return `${type} ${body.length > 200 ? body.length : body.toString('latin1')}`;
    const fields = [...readErrorFields(body)].filter(([code]) => !'FLR'.includes(code));
    return `${type} ${fields.map(([code, value]) => `${code}=${value.slice(0, 300)}`).join(' ')}`;
  });
}

/** Fatal SQLSTATEs, of which there may be one, as the last message. */
function endOf(messages: readonly Message[]): string {
  const fatals = messages.flatMap(({ type, body }, at) =>
    type === 'E' && readErrorFields(body).get('S') === 'FATAL' ? [at] : [],
  );
  if (fatals.length === 0) return 'closed';
  if (fatals.length > 1 || fatals[0] !== messages.length - 1) return `wrong: ${types(messages)}`;
  return sqlstates(messages.slice(-1))[0]!;
}

/** Counts bytes instead of keeping them. */
function discard(client: RawClient, onChunk: (size: number, chunk: Buffer) => void): void {
  client.socket.removeAllListeners('data');
  client.socket.on('data', (chunk: Buffer) => onChunk(chunk.length, chunk));
}

// --- Before and after login: bytes that mean nothing --------------------------------------------------------------

t.test('random bytes at connect get one FATAL or a close', async (t) => {
  const random = seeded(20260101);
  const ends = new Map<string, number>();
  const one = async (round: number) => {
    const client = new RawClient(proxy.port);
    const noise = bytesOf(random, 1 + random(600));
    if (round % 3 === 1) client.write(uint32(4 + noise.length), noise);
    else if (round % 3 === 2) client.write(uint32(8 + noise.length), uint32(Version.v3_0 + random(4)), noise);
    else client.write(noise);
    client.socket.end();
    const end = endOf(await client.closed());
    ends.set(end, (ends.get(end) ?? 0) + 1);
  };
  for (let round = 0; round < 60; round += 10)
    await Promise.all(Array.from({ length: 10 }, (_, at) => one(round + at)));
  t.notOk(
    [...ends.keys()].find((end) => end.startsWith('wrong')),
    JSON.stringify([...ends]),
  );
  t.ok(ends.get('08P01')! > 30, 'most are told why');
  t.equal(proxy.bugs(), 0);
});

t.test('random bytes after login get errors, and one FATAL or a close', async (t) => {
  const random = seeded(42);
  const ends: string[] = [];
  const letters = 'QPBDECSHFdcfpX';
  for (let round = 0; round < 60; round++) {
    const client = await RawClient.open(proxy.port);
    const noise = bytesOf(random, 1 + random(600));
    if (round % 2 === 0) client.write(noise);
    else client.write(message(letters.charCodeAt(round % letters.length), noise));
    client.socket.end();
    ends.push(endOf(await client.closed()));
  }
  t.notOk(
    ends.find((end) => end.startsWith('wrong')),
    ends.join(' '),
  );
  t.ok(ends.filter((end) => end !== 'closed').length > 20, ends.join(' '));
  await isRecovered();
  t.equal(proxy.bugs(), 0);
});

t.test('impossible lengths before login are refused with 08P01', async (t) => {
  for (const length of [0, 1, 4, 7, 10_001, 0x7fffffff, -1, -4, -2147483648]) {
    const client = new RawClient(proxy.port);
    client.write(uint32(length), uint32(Version.v3_0));
    t.equal(endOf(await client.closed()), '08P01', `${length}`);
  }
});

t.test('impossible lengths after login: 08P01 below 4, 54000 above listen.messageMax', async (t) => {
  for (const inTransaction of [false, true]) {
    for (const type of 'QPBDECSHFdX') {
      for (const [length, expected] of [
        [0, '08P01'],
        [3, '08P01'],
        [64 * MB, '54000'],
        [0x7fffffff, '54000'],
        [-1, '54000'],
        [-2147483648, '54000'],
      ] as const) {
        const client = await RawClient.open(proxy.port);
        if (inTransaction) await client.rows(OCCUPY);
        client.write(Buffer.from(type), uint32(length));
        const end = endOf(await client.closed());
        if (end !== expected) t.equal(end, expected, `${type} ${length} ${inTransaction}`);
      }
    }
  }
  await isRecovered();
  t.equal(proxy.bugs(), 0);
});

t.test('messages without a body are answered as Postgres answers them', async (t) => {
  for (const letter of 'QPBDECF') {
    const answers = await Promise.all(
      [postgres.port, proxy.port].map(async (port) => {
        const client = await RawClient.open(port);
        client.write(message(letter.charCodeAt(0)), send.sync(), send.query('SELECT 1'), send.terminate());
        const got = await client.closed();
        return `${types(got)} ${sqlstates(got)}`;
      }),
    );
    t.equal(answers[1], answers[0], letter);
  }
  t.equal(proxy.bugs(), 0);
});

t.test('a startup that trickles in is ended by listen.loginTimeout', async (t) => {
  const packet = startup(Version.v3_0, [
    ['user', 'postgres'],
    ['options', ' '.repeat(500)],
  ]);
  const started = Date.now();
  const socket = connectSocket(proxy.port);
  let at = 0;
  const timer = setInterval(() => at < 100 && socket.write(packet.subarray(at, ++at)), 50);
  await new Promise((resolve) => socket.resume().on('close', resolve));
  clearInterval(timer);
  const took = Date.now() - started;
  t.ok(took > 900 && took < 3_000, `${took} ms`);
  t.equal(proxy.bugs(), 0);
});

t.test('what follows an SSLRequest in one segment is the startup, when TLS is off', async (t) => {
  const gss = Buffer.concat([uint32(8), uint32(80877104)]);
  const hello = startup(Version.v3_0, [
    ['user', 'postgres'],
    ['database', 'postgres'],
  ]);
  for (const [prefix, answer] of [
    [[sslRequest], 'N'],
    [[sslRequest, gss], 'NN'],
    [[gss, sslRequest], 'NN'],
  ] as const) {
    const socket = connectSocket(proxy.port);
    const chunks: Buffer[] = [];
    socket.on('data', (chunk) => chunks.push(chunk));
    socket.write(Buffer.concat([...prefix, hello, send.query(`SELECT 'hi' AS there`), send.terminate()]));
    await new Promise((resolve) => socket.on('close', resolve));
    const bytes = Buffer.concat(chunks).toString('latin1');
    t.equal(bytes.slice(0, answer.length + 1), `${answer}R`);
    t.match(bytes, /there[\s\S]*hi[\s\S]*SELECT 1\0Z\0\0\0\x05I$/);
  }
  const twice = new RawClient(proxy.port);
  twice.socket.removeAllListeners('data');
  let text = '';
  twice.socket.on('data', (chunk) => {
    text += chunk.toString('latin1');
  });
  twice.write(sslRequest, sslRequest);
  await twice.closed();
  t.match(text, /^NE[\s\S]*C08P01\0/);
});

t.test('clients that close in the middle of a message do not cost servers', async (t) => {
  const whole = [
    send.query(`SELECT '${'x'.repeat(5_000)}'`),
    send.query(`SELECT '${'x'.repeat(2_500_000)}'`),
    send.parse('s', `SELECT '${'x'.repeat(2_500_000)}'`),
    send.bind('', 's', ['x'.repeat(100_000)]),
    Buffer.concat([send.query('BEGIN'), send.parse('', 'SELECT $1::text'), send.bind('', '', ['x'.repeat(100_000)])]),
  ];
  for (let round = 0; round < 50; round++) {
    const client = await RawClient.open(proxy.port);
    const bytes = whole[round % whole.length]!;
    client.socket.write(bytes.subarray(0, Math.min(300_000, bytes.length - 1 - round)));
    if (round % 2 === 0) client.socket.end();
    else client.end();
    if (round % 2 === 0) await client.closed();
  }
  await isRecovered();
  t.ok(poolOf().serverCount <= 2);
  t.equal(proxy.bugs(), 0);
});

// --- SQL that hurts parsers ---------------------------------------------------------------------------------------

async function bothAnswer(sql: string | Buffer[], port: RawClient, direct: RawClient): Promise<[string[], string[]]> {
  const parts = typeof sql === 'string' ? [send.query(sql)] : sql;
  const [mine, theirs] = [await port.ask(parts), await direct.ask(parts)];
  return [told(mine), told(theirs)];
}

t.test('40 KB of additions get what Postgres says, every time', async (t) => {
  const [client, direct] = [await RawClient.open(proxy.port), await RawClient.open(postgres.port)];
  const sql = `SELECT 1${'+1'.repeat(20_000)}`;
  const expected = told(await direct.ask(send.query(sql)));
  for (let round = 0; round < 50; round++) {
    const got = told(await client.ask(send.query(round % 2 === 0 ? sql : `${sql} -- ${round}`)));
    if (JSON.stringify(got) !== JSON.stringify(expected)) t.same(got, expected, `round ${round}`);
  }
  t.ok(expected.length > 1, expected.join(' | ').slice(0, 200));
  client.end();
  direct.end();
});

t.test('deep and long texts get what Postgres says', async (t) => {
  const [client, direct] = [await RawClient.open(proxy.port), await RawClient.open(postgres.port)];
  const nest = (open: string, core: string, close: string, depth: number) =>
    `SELECT ${open.repeat(depth)}${core}${close.repeat(depth)}`;
  const texts: Record<string, string> = {
    'parentheses 10k': nest('(', '1', ')', 10_000),
    'parentheses 7k around a call': nest('(', 'nosuch()', ')', 7_000),
    'parentheses 1k': nest('(', '1', ')', 1_000),
    'known functions': nest('abs(', '1', ')', 3_000),
    'unknown functions': nest('nosuch(', '1', ')', 1_500),
    'functions beyond the parser': nest('abs(', '1', ')', 10_000),
    subqueries: nest('(SELECT ', 'nosuch()', ')', 1_500),
    arrays: nest('ARRAY[', '1', ']', 2_000),
    cases: nest('CASE WHEN ', 'true', ' THEN true END', 600),
    signs: nest('- ', '1', '', 8_000),
    nots: nest('NOT ', 'nosuch()', '', 3_500),
    comments: `SELECT ${'/*'.repeat(1_000)}${'*/'.repeat(1_000)} 1`,
    'open comments': `SELECT 1 ${'/*'.repeat(1_000)}`,
    'open quote': `SELECT '${`''`.repeat(20_000)}`,
    'open dollar quote': `SELECT $a$${'$b$'.repeat(20_000)}`,
    semicolons: ';'.repeat(100_000),
    statements: 'SELECT 1;'.repeat(500),
    'identifier of 64 KiB': `SELECT 1 AS ${'i'.repeat(65_536)}`,
    'quoted identifier of 64 KiB': `SELECT 1 AS "${'é'.repeat(32_768)}"`,
    'function name of 64 KiB': `SELECT ${'f'.repeat(65_536)}()`,
    'setting name of 64 KiB': `SET ${'s'.repeat(65_536)} = 1`,
    'custom setting name of 64 KiB': `SET a.${'s'.repeat(65_536)} = 1`,
    'number of 64 KiB': `SELECT length((${'9'.repeat(65_536)})::text)`,
  };
  for (const [name, sql] of Object.entries(texts)) {
    const [mine, theirs] = await bothAnswer(sql, client, direct);
    t.same(mine, theirs, name);
    const extended = [send.parse('', sql), send.bind('', ''), send.execute(''), send.sync()];
    const [mineToo, theirsToo] = await bothAnswer(extended, client, direct);
    t.same(mineToo, theirsToo, `${name}, extended`);
  }
  const bad = message(0x51, Buffer.from([0x53, 0x45, 0x4c, 0x45, 0x43, 0x54, 0x20, 0x27, 0xff, 0xfe, 0x27, 0]));
  t.same(told(await client.ask(bad)), told(await direct.ask(bad)));
  t.same(await client.rows('SELECT 1'), [['1']]);
  client.end();
  direct.end();
  await isRecovered();
  t.equal(proxy.bugs(), 0);
});

t.test('texts of megabytes work', async (t) => {
  const client = await RawClient.open(proxy.port);
  t.same(await client.rows(`SELECT length('${'q'.repeat(2 * MB)}')`), [[`${2 * MB}`]]);
  const parse = send.parse('big', `SELECT length('${'p'.repeat(3 * MB)}') + $1::int`);
  t.equal(types(await client.ask([parse, send.sync()])), '1Z');
  for (let round = 0; round < 2; round++) {
    const answer = await client.ask([send.bind('', 'big', ['1']), send.execute(''), send.sync()]);
    t.equal(types(answer), '2DCZ');
    t.match(answer[1]!.body.toString('latin1'), `${3 * MB + 1}`);
  }
  client.end();
  await isRecovered();
  t.equal(proxy.bugs(), 0);
});

// --- Clients that do not read -------------------------------------------------------------------------------------

t.test('one row of 64 MB streams to a slow reader in bounded memory', async (t) => {
  const client = await RawClient.open(proxy.port);
  const { socket } = client;
  let size = 0;
  let sincePause = 0;
  let tail = '';
  const memory = watchMemory();
  const done = new Promise<void>((resolve, reject) => {
    socket.on('close', () => reject(new Error(`closed after ${size} bytes`)));
    discard(client, (length, chunk) => {
      size += length;
      sincePause += length;
      tail = (tail + chunk.toString('latin1', Math.max(0, length - 6))).slice(-6);
      if (tail === 'Z\0\0\0\x05I') resolve();
      if (sincePause < MB) return;
      sincePause = 0;
      socket.pause();
      setTimeout(() => socket.resume(), 4);
    });
  });
  const before = beats;
  socket.write(send.query(`SELECT repeat('x', ${64 * MB})`));
  await done;
  t.ok(size > 64 * MB && size < 64 * MB + 200, `${size} bytes`);
  const grown = memory.growth();
  t.ok(grown < GROWTH_MAX, `grew by ${Math.round(grown / MB)} MB`);
  t.ok(beats > before, 'the heartbeat went on');
  socket.destroy();
  await isRecovered();
  t.equal(proxy.bugs(), 0);
});

for (const inTransaction of [false, true]) {
  t.test(`50,000 Syncs are answered after the fact${inTransaction ? ', in a transaction' : ''}`, async (t) => {
    const client = await RawClient.open(proxy.port);
    if (inTransaction) await client.rows(OCCUPY);
    let size = 0;
    let isAllReady = true;
    const one = `Z\0\0\0\x05${inTransaction ? 'T' : 'I'}`;
    client.socket.pause();
    discard(client, (length, chunk) => {
      const offset = size % 6;
      size += length;
      const expected = one.repeat(Math.ceil(length / 6) + 1).slice(offset, offset + length);
      isAllReady &&= chunk.toString('latin1') === expected;
    });
    const memory = watchMemory();
    const count = 50_000;
    client.socket.write(Buffer.concat(Array.from({ length: count }, () => send.sync())));
    const before = beats;
    await until(() => beats > before + 10, 'the heartbeat, while nobody reads');
    client.socket.resume();
    await until(() => size >= count * 6, 'all ReadyForQuery');
    t.equal(size, count * 6);
    t.ok(isAllReady);
    const grown = memory.growth();
    t.ok(grown < GROWTH_MAX, `grew by ${Math.round(grown / MB)} MB`);
    client.end();
    await isRecovered();
    t.equal(proxy.bugs(), 0);
  });
}

t.test('a flood of large results that nobody reads stops the server, and its server is recovered', async (t) => {
  const client = await RawClient.open(proxy.port);
  const session = [...proxy.app.snapshot().sessions].at(-1)!;
  const pool = poolOf();
  client.socket.pause();
  const memory = watchMemory();
  const received = pool.counts.received;
  const flood = send.query(`SELECT repeat('x', 1000000) FROM generate_series(1, 5)`);
  for (let at = 0; at < 30; at++) client.socket.write(flood);
  await until(() => session.socket.writableLength > 256 * 1024, 'the proxy to be ahead of its client');
  const before = beats;
  await until(() => beats > before + 60, 'the heartbeat beside a stopped server');
  memory.look();
  // What the kernel takes between proxy and client counts, too.
  const taken = pool.counts.received - received;
  t.ok(taken < 32 * MB, `took ${Math.round(taken / MB)} MB of 150 MB from the server`);
  t.ok(session.socket.writableLength < 2 * MB, `${session.socket.writableLength} bytes kept`);
  const grown = memory.growth();
  t.ok(grown < GROWTH_MAX, `grew by ${Math.round(grown / MB)} MB`);
  const started = Date.now();
  client.end();
  await isRecovered();
  t.ok(Date.now() - started < 5_000, `recovered after ${Date.now() - started} ms`);
  t.ok(pool.serverCount <= 2);
  t.equal(proxy.bugs(), 0);
});

t.test('a flood of requests with small results, never read, is not taken in', async (t) => {
  const client = await RawClient.open(proxy.port);
  client.socket.pause();
  const memory = watchMemory();
  const batch = Buffer.concat(
    Array.from({ length: 2_000 }, () =>
      Buffer.concat([send.parse('', `SELECT repeat('y', 300)`), send.bind('', ''), send.execute(''), send.sync()]),
    ),
  );
  const before = beats;
  for (let at = 0; at < 200; at++) client.socket.write(batch);
  await until(() => beats > before + 60, 'the heartbeat beside the flood');
  // The client's own buffer is one batch shared by all writes.
  t.ok(client.socket.writableLength > 0, 'the proxy stopped reading');
  const grown = memory.growth();
  t.ok(grown < GROWTH_MAX, `grew by ${Math.round(grown / MB)} MB`);
  client.end();
  await isRecovered();
  t.equal(proxy.bugs(), 0);
});

// --- In the end ---------------------------------------------------------------------------------------------------

t.test('a refused client that goes on sending is closed all the same', async (t) => {
  t.ok(await dripping, 'refused at its login');
  t.ok(await drippingLater, 'refused after its login');
  await until(() => proxy.app.snapshot().open === 1, 'all sockets but the heartbeat to be closed');
});

t.test('the heartbeat has had all its answers', async (t) => {
  t.after(() => proxy.stop()); // The file would not end while it listens.
  isBeating = false;
  await heartbeat;
  t.ok(beats > 200, `${beats} beats`);
  heart.end();
  t.equal(proxy.bugs(), 0);
  t.same(
    proxy.log.filter((line) => line.includes('"bug"')),
    [],
  );
});
