/**
 * Sharing (server/line): short reads of several clients in flight on one server. Each client must get exactly its own
 * answers, in order, whatever its neighbours send, cancel, break or leave undone.
 *
 * The one idea: nothing here may pass because nobody shared. `warm` runs a shape until it is shared, `lineUp` sees to it
 * that its requests are on one server at the same time, and `watch` tells how long the longest line was.
 */
import { setTimeout as sleep, setImmediate as turn } from 'node:timers/promises';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import {
  describe,
  isCancelRequest,
  type Message,
  open,
  RawClient,
  requestCancel,
  send,
  sqlstates,
  types,
} from '../fixtures/raw.ts';
import { startRelay } from '../fixtures/relay.ts';
import { show } from '../fixtures/scenario.ts';
import { startProxy, until, withPostgres } from '../fixtures/stack.ts';

type Stack = Awaited<ReturnType<typeof startProxy>>;

const postgres = await withPostgres();
t.after(() => postgres.stop());
const watcher = await RawClient.open(postgres.port, { application_name: 'watcher' });
watcher.socket.unref();
t.after(() => watcher.end());

/** A copy of the database, with the same numbers of tables: what clients are compared with has it to itself. */
const ORACLE = 'oracle';
for (const sql of [
  'CREATE TABLE marks (client text, n int)',
  'CREATE TABLE wide (a int)',
  'INSERT INTO wide VALUES (1)',
  'CREATE SCHEMA s1',
  'CREATE SCHEMA s2',
  'CREATE TABLE s1.t (a text)',
  'CREATE TABLE s2.t (a int)',
  `INSERT INTO s1.t VALUES ('one')`,
  'INSERT INTO s2.t VALUES (2)',
  'CREATE SEQUENCE sq',
  `CREATE FUNCTION plus(i int) RETURNS int LANGUAGE sql AS 'SELECT i + 1'`,
  `CREATE DATABASE ${ORACLE} TEMPLATE postgres`,
])
  await watcher.rows(sql);

/** As server/line has them. */
const RIDERS_MAX = 16;
const SLOW_MS = 20;
const MIB = 1024 * 1024;
/** Rows (squared) of a read that takes about a tenth of a second, and of one that never ends. */
const LONG = 1000;
const ENDLESS = 1_000_000;

const proxies: Stack[] = [];

async function startPool(t: Test, pool: object = {}, more: object = {}, port = postgres.port): Promise<Stack> {
  const proxy = await startProxy(port, { pool: { size: 1, waitMax: '20s', ...pool }, ...more });
  t.after(async () => {
    await proxy.stop();
    // What a test has left running would take its time from the next one.
    await watcher.rows(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity
      WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()`);
  });
  proxies.push(proxy);
  return proxy;
}

const openAll = (t: Test, port: number, count: number, parameters: Record<string, string> = {}) =>
  Promise.all(Array.from({ length: count }, () => open(t, port, parameters)));

const poolOf = (proxy: Stack) => proxy.app.snapshot().pools[0]!;
const sharedBy = (proxy: Stack) => poolOf(proxy).counts.shared;
const lineSize = (proxy: Stack) => Math.max(0, ...[...poolOf(proxy).lines].map(({ size }) => size));

/** One group of the extended protocol. */
const run = (name: string, values: (string | null)[] = []) => [
  send.bind('', name, values),
  send.describe('P', ''),
  send.execute(''),
  send.sync(),
];
const extended = (sql: string, values: (string | null)[] = []) => [send.parse('', sql), ...run('', values)];

/** Runs a request until it is shared. */
async function warm(proxy: Stack, client: RawClient, request: Buffer[]): Promise<void> {
  // On a busy machine it takes a while until it is seen to be short.
  for (const end = Date.now() + 30_000; Date.now() < end; ) {
    const before = sharedBy(proxy);
    await client.ask(request);
    if (sharedBy(proxy) > before) return;
  }
  throw new Error('it is never shared');
}

/** Looks at the lines in every turn; the returned function ends that, and gives the size of the longest. */
function watch(proxy: Stack): () => number {
  let longest = 0;
  let isOver = false;
  const look = () => {
    for (const pool of proxy.app.snapshot().pools) for (const { size } of pool.lines) longest = Math.max(longest, size);
    if (!isOver) setImmediate(look);
  };
  look();
  return () => {
    isOver = true;
    return longest;
  };
}

interface Heavy {
  /** Counts the square of `n`; fails if that is `less`. */
  simple(mark: string, n: number, less?: number): Buffer[];
  extended(mark: string, n: number, less?: number): Buffer[];
}

let heavies = 0;

/** A read of a shape of its own, which has been quick so far. */
async function heavy(proxy: Stack, client: RawClient): Promise<Heavy> {
  const name = `heavy_${++heavies}`;
  const made: Heavy = {
    simple: (mark, n, less = 0) => [
      send.query(
        `SELECT '${mark}', 1 / (count(*) - ${less}) AS ${name} FROM generate_series(1, ${n}) x, generate_series(1, ${n}) y`,
      ),
    ],
    extended: (mark, n, less = 0) =>
      extended(
        `SELECT $1::text, 1 / (count(*) - $2::bigint) AS ${name}_x
           FROM generate_series(1, $3::int) x, generate_series(1, $3::int) y`,
        [mark, String(less), String(n)],
      ),
  };
  await warm(proxy, client, made.simple('warm', 2));
  await warm(proxy, client, made.extended('warm', 2));
  return made;
}

/** A short read of the mark; its shape is warm after `warmShort`. */
const short = (mark: string, by = 1) => [send.query(`SELECT '${mark}' AS short, 1 / ${by} AS by`)];
const shortExtended = (mark: string, by = 1) =>
  extended('SELECT $1::text AS short, 1 / $2::int AS by', [mark, String(by)]);

async function warmShort(proxy: Stack, client: RawClient): Promise<void> {
  await warm(proxy, client, short('warm'));
  await warm(proxy, client, shortExtended('warm'));
}

type Request = [client: RawClient, request: Buffer[]];

/** Waits for what happens within a few turns of the loop; false: it does not. */
async function soon(condition: () => boolean, ms = 200): Promise<boolean> {
  const end = performance.now() + ms;
  while (!condition()) {
    if (performance.now() > end) return false;
    await turn();
  }
  return true;
}

/**
 * Sends requests, the first of which takes long, so that all are on one server at the same time in this order. On a
 * machine that is too slow for that, it is tried again with requests that `make` makes anew.
 */
async function lineUp(proxy: Stack, make: () => Promise<Request[]>): Promise<RawClient[]> {
  for (let lap = 0; lap < 10; lap++) {
    const requests = await make();
    let isInLine = true;
    for (const [index, [client, request]] of requests.entries()) {
      client.write(...request);
      isInLine &&= await soon(() => lineSize(proxy) === index + 1);
    }
    if (isInLine) return requests.map(([client]) => client);
    for (const [client] of requests) {
      await requestCancel(proxy.port, client.key);
      await client.until('Z');
    }
  }
  const all = [...poolOf(proxy).lines].map(({ size, backlogMs }) => `${size} with ${backlogMs} ms`);
  throw new Error(`the requests never were in one line: ${all}`);
}

const answers = (clients: RawClient[]) => Promise.all(clients.map((client) => client.until('Z')));
const holds = (messages: Message[], text: string) =>
  messages.some(({ type, body }) => type === 'D' && body.includes(text));

/** Pids and states of all server connections, as Postgres sees them. */
const backends = () =>
  watcher.rows(`SELECT pid, state FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND datname = 'postgres'`);

// --- Errors -----------------------------------------------------------------------------------------------------

for (const [title, isExtended] of [
  ['simple', false],
  ['extended', true],
] as const) {
  for (const [where, failing] of [
    ['first', 0],
    ['in the middle', 2],
    ['last', 4],
  ] as const) {
    t.test(`an error stays with its client: ${title}, ${where} in line`, async (t) => {
      const proxy = await startPool(t);
      const clients = await openAll(t, proxy.port, 5);
      await warmShort(proxy, clients[0]!);
      await lineUp(proxy, async () => {
        const head = await heavy(proxy, clients[0]!);
        const less = failing === 0 ? LONG * LONG : 0;
        return clients.map((client, index) => {
          const by = index === failing ? 0 : 1;
          if (index === 0) return [client, head[isExtended ? 'extended' : 'simple']('mark0', LONG, less)];
          return [client, (isExtended ? shortExtended : short)(`mark${index}`, by)];
        });
      });
      for (const [index, messages] of (await answers(clients)).entries()) {
        if (index === failing) {
          t.same(sqlstates(messages), ['22012']);
          t.match(types(messages), isExtended ? /^2?1?2?T?EZ$/ : /^T?EZ$/);
        } else {
          t.equal(types(messages), isExtended ? '12TDCZ' : 'TDCZ');
          t.ok(holds(messages, `mark${index}`));
        }
      }
      for (const client of clients) t.same(await client.rows(`SELECT 'after' AS short, 1 / 1 AS by`), [['after', '1']]);
    });
  }
}

t.test('every mixture of protocols and errors in one line gives each its own', async (t) => {
  const proxy = await startPool(t);
  const clients = await openAll(t, proxy.port, 9);
  await warmShort(proxy, clients[0]!);
  const requests = clients.map((_, index) => {
    const by = index % 3 === 0 ? 0 : 1;
    return index % 2 === 0 ? short(`mark${index}`, by) : shortExtended(`mark${index}`, by);
  });
  await lineUp(proxy, async () => {
    const head = await heavy(proxy, clients[0]!);
    return clients.map((client, index) => [client, index === 0 ? head.simple('mark0', LONG) : requests[index]!]);
  });
  for (const [index, messages] of (await answers(clients)).entries()) {
    if (index === 0 || index % 3 > 0) t.ok(holds(messages, `mark${index}`));
    else t.same(sqlstates(messages), ['22012']);
  }
});

// --- Cancel -----------------------------------------------------------------------------------------------------

t.test('a lone rider cancels its own read', async (t) => {
  const proxy = await startPool(t);
  const a = await open(t, proxy.port);
  for (const kind of ['simple', 'extended'] as const) {
    const head = await heavy(proxy, a);
    a.write(...head[kind]('a', ENDLESS));
    t.ok(await soon(() => lineSize(proxy) === 1));
    await requestCancel(proxy.port, a.key);
    t.same(sqlstates(await a.until('Z')), ['57014'], kind);
    t.same(await a.rows('SELECT 1'), [['1']]);
  }
});

for (const [title, canceling] of [
  ['behind the one that runs', [1]],
  ['that runs, with others behind it', [0]],
  ['and all of its neighbours but one', [0, 1, 3]],
] as const) {
  t.test(`the cancel request of a rider ${title} reaches no neighbour`, async (t) => {
    const proxy = await startPool(t);
    const clients = await openAll(t, proxy.port, 4);
    await warmShort(proxy, clients[0]!);
    await lineUp(proxy, async () => {
      const head = await heavy(proxy, clients[0]!);
      return clients.map((client, index) => [client, index === 0 ? head.simple('mark0', LONG) : short(`mark${index}`)]);
    });
    await Promise.all(canceling.map((index) => requestCancel(proxy.port, clients[index]!.key)));
    for (const [index, messages] of (await answers(clients)).entries()) {
      if ((canceling as readonly number[]).includes(index) && sqlstates(messages).length > 0)
        t.same(sqlstates(messages), ['57014']);
      else t.ok(holds(messages, `mark${index}`) && sqlstates(messages).length === 0, `its own answer: ${index}`);
    }
    for (const client of clients) t.same(await client.rows('SELECT 1'), [['1']]);
  });
}

t.test('a rider that waits for its turn and then runs for ever is cancelled when it is alone', async (t) => {
  const proxy = await startPool(t);
  const [a, b] = (await openAll(t, proxy.port, 2)) as [RawClient, RawClient];
  await lineUp(proxy, async () => {
    const [first, second] = [await heavy(proxy, a), await heavy(proxy, b)];
    return [
      [a, first.simple('a', LONG)],
      [b, second.extended('b', ENDLESS)],
    ];
  });
  await requestCancel(proxy.port, b.key);
  t.ok(holds(await a.until('Z'), 'a'));
  t.same(sqlstates(await b.until('Z')), ['57014']);
});

/** Postgres ignores a cancel request that finds it between two statements: the relay keeps it there. */
t.test('a cancel request that came before the server had read its statement is repeated', async (t) => {
  let tellCanceled = () => {};
  let isCanceled = Promise.resolve();
  const port = await startRelay(t, postgres.port, (chunk, link) => {
    if (link.isFirst && isCancelRequest(chunk)) void link.closed.then(tellCanceled);
    return chunk.includes(`${ENDLESS}`) ? isCanceled : false;
  });
  const proxy = await startPool(t, {}, {}, port);
  for (const isGone of [false, true]) {
    const [a, b] = (await openAll(t, proxy.port, 2)) as [RawClient, RawClient];
    const head = await heavy(proxy, a);
    isCanceled = new Promise((resolve) => {
      tellCanceled = resolve;
    });
    a.write(...head.simple('late', ENDLESS));
    t.ok(await soon(() => lineSize(proxy) === 1));
    if (isGone) a.end();
    else {
      await requestCancel(proxy.port, a.key);
      t.same(sqlstates(await a.until('Z')), ['57014']);
    }
    t.same(await b.rows('SELECT 1'), [['1']]);
  }
});

t.test('a storm of cancel requests hits nobody but the one who sends them', async (t) => {
  const proxy = await startPool(t);
  const [a, ...others] = (await openAll(t, proxy.port, 4)) as [RawClient, ...RawClient[]];
  await warmShort(proxy, a);
  const longest = watch(proxy);
  let hits = 0;
  let isOver = false;
  const loops = others.map(async (client, index) => {
    while (!isOver && !client.isClosed) {
      const messages = await client.ask(short(`other${index}`));
      if (!holds(messages, `other${index}`)) hits++;
    }
  });
  for (let lap = 0; lap < 150; lap++) {
    const answer = a.ask(short('mine'));
    const requests = [requestCancel(proxy.port, a.key), requestCancel(proxy.port, a.key)];
    const messages = await answer;
    const states = sqlstates(messages);
    if (states.length > 0 ? states.join() !== '57014' : !holds(messages, 'mine')) t.fail(show(messages).join());
    await Promise.all(requests);
  }
  isOver = true;
  await Promise.all(loops);
  t.equal(hits, 0);
  t.ok(longest() > 1);
});

t.test('pool.queryMax ends a lone rider that runs for ever', async (t) => {
  const proxy = await startPool(t, { queryMax: '300ms' });
  const a = await open(t, proxy.port);
  const head = await heavy(proxy, a);
  const before = sharedBy(proxy);
  t.same(sqlstates(await a.ask(head.simple('a', ENDLESS))), ['57014']);
  t.equal(sharedBy(proxy), before + 1);
});

// --- Clients that vanish, servers that die ------------------------------------------------------------------------

t.test('riders that vanish take nobody down, wherever they are in line', async (t) => {
  const proxy = await startPool(t);
  const [first, ...rest] = (await openAll(t, proxy.port, 4)) as [RawClient, ...RawClient[]];
  await warmShort(proxy, first);
  const head = await open(t, proxy.port);
  await lineUp(proxy, async () => {
    const made = await heavy(proxy, head);
    return [
      [head, made.simple('head', LONG)],
      ...[first, ...rest].map((each, i): Request => [each, short(`mark${i}`)]),
    ];
  });
  head.end();
  rest[0]!.end();
  for (const [client, mark] of [
    [first, 'mark0'],
    [rest[1]!, 'mark2'],
    [rest[2]!, 'mark3'],
  ] as const) {
    const messages = await client.until('Z');
    t.equal(types(messages), 'TDCZ');
    t.ok(holds(messages, mark));
  }
  t.same(await first.rows('SELECT 1'), [['1']]);
});

t.test('a lone rider that vanishes from a read without end gives the server back', async (t) => {
  const proxy = await startPool(t);
  const [a, b] = (await openAll(t, proxy.port, 2)) as [RawClient, RawClient];
  const head = await heavy(proxy, a);
  a.write(...head.simple('a', ENDLESS));
  t.ok(await soon(() => lineSize(proxy) === 1));
  a.end();
  t.same(await b.rows('SELECT 1'), [['1']]);
});

t.test('a server that is terminated tells each rider once, and nothing leaks', async (t) => {
  const proxy = await startPool(t);
  const clients = await openAll(t, proxy.port, 6);
  await warmShort(proxy, clients[0]!);
  await lineUp(proxy, async () => {
    const head = await heavy(proxy, clients[0]!);
    return clients.map((client, index) => {
      if (index === 0) return [client, head.simple('head', ENDLESS)];
      return [client, (index % 2 === 0 ? short : shortExtended)(`mark${index}`)];
    });
  });
  await watcher.rows(`SELECT pg_terminate_backend(${[...poolOf(proxy).lines][0]!.server.pid})`);
  for (const [index, client] of clients.entries()) {
    const messages = await client.closed();
    t.same(sqlstates(messages), ['57P01'], `one error: ${index}`);
    t.ok(messages.at(-1)!.body.includes('SFATAL\0'), describe(messages.at(-1)!));
    t.ok(client.isClosed);
  }
  const next = await open(t, proxy.port);
  t.same(await next.rows('SELECT 1'), [['1']]);
  await until(async () => (await backends()).every(([, state]) => state === 'idle'), 'idle servers');
  t.equal((await backends()).length, 1);
  t.equal(poolOf(proxy).lines.size, 0);
});

t.test('app.stop ends riders in the middle of their reads', async (t) => {
  const proxy = await startPool(t);
  const clients = await openAll(t, proxy.port, 4);
  await warmShort(proxy, clients[0]!);
  await lineUp(proxy, async () => {
    const head = await heavy(proxy, clients[0]!);
    return clients.map((client, index) => [
      client,
      index === 0 ? head.simple('head', 3 * LONG) : short(`mark${index}`),
    ]);
  });
  await proxy.app.stop();
  for (const client of clients) t.same(sqlstates(await client.closed()), ['57P01']);
  await until(async () => (await backends()).length === 0, 'the servers to be gone', 15_000);
});

t.test('drain finishes under a load of shared reads', async (t) => {
  const proxy = await startPool(t, {}, { top: { drain: { delay: '0s', timeout: '8s' } } });
  const clients = await openAll(t, proxy.port, 6);
  await warmShort(proxy, clients[0]!);
  const longest = watch(proxy);
  let wrong = 0;
  const loops = clients.map(async (client, index) => {
    for (let lap = 0; lap < 100_000; lap++) {
      client.write(...short(`mark${index}`));
      const messages = await client.until('Z');
      if (messages.at(-1)?.type !== 'Z') return sqlstates(messages).join();
      if (!holds(messages, `mark${index}`)) wrong++;
    }
    return 'never told';
  });
  await until(() => sharedBy(proxy) > 200, 'sharing');
  const started = performance.now();
  await proxy.app.drain();
  t.ok(performance.now() - started < 7000, 'before its limit');
  for (const end of await Promise.all(loops)) t.match(end, /^(57P01)?$/);
  t.equal(wrong, 0);
  t.ok(longest() > 1);
});

// --- Slow readers, slow reads -------------------------------------------------------------------------------------

t.test(
  'a head that does not read a large answer is closed; its neighbours get theirs; memory is bounded',
  async (t) => {
    const proxy = await startPool(t);
    const [slow, ...others] = (await openAll(t, proxy.port, 4)) as [RawClient, ...RawClient[]];
    await warmShort(proxy, slow);
    const large = (name: string, rows: number) => [
      send.query(`SELECT repeat('x', 1000) AS ${name} FROM generate_series(1, ${rows})`),
    ];
    await warm(proxy, slow, large('large', 1));
    let most = 0;
    let isOver = false;
    const look = () => {
      for (const { socket } of proxy.app.snapshot().sessions) most = Math.max(most, socket.writableLength);
      if (!isOver) setImmediate(look);
    };
    look();
    slow.socket.pause();
    slow.write(...large('large', 40_000));
    t.ok(await soon(() => lineSize(proxy) > 0), 'it rides');
    for (const [index, client] of others.entries()) client.write(...short(`mark${index}`));
    for (const [index, messages] of (await answers(others)).entries()) t.ok(holds(messages, `mark${index}`));
    await until(() => proxy.app.snapshot().sessions.size === 3, 'the slow one to be ended');
    isOver = true;
    t.ok(most < 1.5 * MIB, `${most} bytes were kept at most`);
    t.equal(poolOf(proxy).serverCount, 1, 'its server is kept');
    slow.socket.resume();
    const messages = await slow.closed();
    t.ok(slow.isClosed);
    t.notOk(types(messages).includes('Z'));
    if (messages.at(-1)!.type === 'E') t.same(sqlstates(messages), ['54000']);
  },
);

t.test('a rider that reads gets an answer of any size', async (t) => {
  const proxy = await startPool(t);
  const a = await open(t, proxy.port);
  const large = (rows: number) => [send.query(`SELECT repeat('x', 100) AS some FROM generate_series(1, ${rows})`)];
  await warm(proxy, a, large(1));
  const before = sharedBy(proxy);
  const messages = await a.ask(large(20_000));
  t.equal(sharedBy(proxy), before + 1);
  t.equal(messages.filter(({ type }) => type === 'D').length, 20_000);
  t.equal(types(messages.slice(-2)), 'CZ');
});

t.test('nobody boards behind a read that turns out slow: others wait, or go to another server', async (t) => {
  for (const size of [1, 2]) {
    const proxy = await startPool(t, { size });
    const [slow, ...others] = (await openAll(t, proxy.port, 9)) as [RawClient, ...RawClient[]];
    await warmShort(proxy, slow);
    const head = await heavy(proxy, slow);
    slow.write(...head.simple('slow', ENDLESS));
    t.ok(await soon(() => lineSize(proxy) === 1));
    const [line] = [...poolOf(proxy).lines];
    await sleep(2 * SLOW_MS); // Only time can tell that it is slow.
    for (const [index, client] of others.entries()) client.write(...short(`mark${index}`));
    if (size === 1) await until(() => poolOf(proxy).waiters.size === others.length, 'all others to wait');
    else for (const [index, messages] of (await answers(others)).entries()) t.ok(holds(messages, `mark${index}`));
    t.equal(line!.size, 1, 'nobody boarded');
    await requestCancel(proxy.port, slow.key);
    t.same(sqlstates(await slow.until('Z')), ['57014']);
    if (size === 1)
      for (const [index, messages] of (await answers(others)).entries()) t.ok(holds(messages, `mark${index}`));
  }
});

t.test('a line has its limit; whoever is beyond it waits, and is served', async (t) => {
  const proxy = await startPool(t);
  const clients = await openAll(t, proxy.port, 41);
  const [slow, ...others] = clients as [RawClient, ...RawClient[]];
  await warmShort(proxy, slow);
  const head = await heavy(proxy, slow);
  const longest = watch(proxy);
  slow.write(...head.simple('slow', LONG));
  t.ok(await soon(() => lineSize(proxy) === 1));
  for (const [index, client] of others.entries()) client.write(...short(`mark${index}`));
  for (const [index, messages] of (await answers(others)).entries()) t.ok(holds(messages, `mark${index}`));
  t.ok(holds(await slow.until('Z'), 'slow'));
  const size = longest();
  t.ok(size > 1 && size <= RIDERS_MAX, `${size} in line`);
});

t.test('a server that hangs is given up beyond queryMax, for all who ride on it', async (t) => {
  const proxy = await startPool(t, { queryMax: '300ms' });
  const clients = await openAll(t, proxy.port, 4);
  await warmShort(proxy, clients[0]!);
  const { pid } = poolOf(proxy).idle.last!;
  process.kill(pid, 'SIGSTOP');
  try {
    // The first of them is cancelled in vain; behind it nobody could be.
    for (const [index, client] of clients.entries()) client.write(...short(`mark${index}`));
    await until(() => lineSize(proxy) > 1, 'riders');
    for (const client of clients) t.same(sqlstates(await client.closed()), ['57P01']);
  } finally {
    process.kill(pid, 'SIGCONT');
  }
  const after = await open(t, proxy.port);
  t.ok(holds(await after.ask(short('after')), 'after'));
});

t.test('a shape whose answers are large, or slow, is not shared any more', async (t) => {
  const proxy = await startPool(t);
  const a = await open(t, proxy.port);
  const sized = (name: string, bytes: number) => [send.query(`SELECT repeat('x', ${bytes}) AS ${name}`)];
  await warm(proxy, a, sized('sized', 10));
  for (let lap = 0; lap < 8; lap++) await a.ask(sized('sized', 70_000));
  const before = sharedBy(proxy);
  await a.ask(sized('sized', 10));
  t.equal(sharedBy(proxy), before, 'large');
  const head = await heavy(proxy, a);
  for (let lap = 0; lap < 8; lap++) await a.ask(head.simple('a', 1500));
  const then = sharedBy(proxy);
  await a.ask(head.simple('a', 2));
  t.equal(sharedBy(proxy), then, 'slow');
});

// --- What a client had before ---------------------------------------------------------------------------------------

t.test('what a client did before its ride does not matter to it: COPY that failed, large parameters', async (t) => {
  const proxy = await startPool(t);
  const [head, a, b] = (await openAll(t, proxy.port, 3)) as [RawClient, RawClient, RawClient];
  await warmShort(proxy, head);
  for (const [title, request] of [
    ['a COPY that failed at once', send.query('COPY nowhere FROM STDIN')],
    ['a COPY that failed in the end', Buffer.concat([send.query('COPY marks FROM STDIN'), send.copyFail('no')])],
    [
      'a COPY that was fed',
      Buffer.concat([send.query('COPY marks FROM STDIN'), send.copyData('x\t7\n'), send.copyDone()]),
    ],
    [
      'a COPY that read nonsense',
      Buffer.concat([send.query('COPY marks FROM STDIN'), send.copyData('x\n'), send.copyDone()]),
    ],
    ['an extended COPY that failed', Buffer.concat(extended('COPY nowhere FROM STDIN'))],
    ['a skipped batch', Buffer.concat([send.parse('', 'SELEC'), send.bind('', ''), send.execute(''), send.sync()])],
    ['a transaction', send.query('BEGIN; SELECT 1; COMMIT')],
  ] as const) {
    for (const kind of [short, shortExtended]) {
      t.match(types(await a.ask(request)), /Z$/);
      await lineUp(proxy, async () => {
        const made = await heavy(proxy, head);
        return [
          [head, made.simple('head', LONG)],
          [a, kind('mine')],
          [b, kind('theirs')],
        ];
      });
      const [first, second, third] = (await answers([head, a, b])) as [Message[], Message[], Message[]];
      t.ok(holds(first, 'head'), title);
      t.ok(holds(second, 'mine') && sqlstates(second).length === 0, `${title}: ${show(second).join(' ')}`);
      t.ok(holds(third, 'theirs') && sqlstates(third).length === 0, title);
      if (a.isClosed || b.isClosed) return;
    }
  }
  const before = sharedBy(proxy);
  for (const size of [5000, 40_000]) {
    const big = 'y'.repeat(size);
    const messages = await b.ask(shortExtended(big));
    t.ok(holds(messages, big) && types(messages) === '12TDCZ', `a parameter of ${size} bytes`);
  }
  t.ok(sharedBy(proxy) > before);
});

// --- Settings, prepared statements, DDL -----------------------------------------------------------------------------

t.test('clients with different settings never share: the same text, and each sees its own', async (t) => {
  const proxy = await startPool(t, { size: 2 });
  const groups = await Promise.all(
    [
      { search_path: 's1', TimeZone: 'Asia/Tokyo' },
      { search_path: 's2', TimeZone: 'UTC' },
      { search_path: 's2', TimeZone: 'Asia/Tokyo' },
    ].map((parameters) => openAll(t, proxy.port, 4, parameters)),
  );
  const sql = `SELECT a, timestamptz '2024-01-01 00:00:00+00' AS at FROM t`;
  const own = [
    ['one', '2024-01-01 09:00:00+09'],
    ['2', '2024-01-01 00:00:00+00'],
    ['2', '2024-01-01 09:00:00+09'],
  ];
  await warm(proxy, groups[0]![0]!, [send.query(sql)]);
  for (const group of groups) for (const client of group) await client.ask([send.parse('s', sql), ...run('s')]);
  const longest = watch(proxy);
  for (let lap = 0; lap < 60; lap++) {
    const chosen = lap % 6 === 0 ? groups.flat() : groups[lap % 3]!;
    for (const client of chosen) client.write(...(lap % 2 === 0 ? [send.query(sql)] : run('s')));
    for (const [index, messages] of (await answers(chosen)).entries()) {
      const wanted = own[groups.findIndex((group) => group.includes(chosen[index]!))]!;
      if (!wanted.every((value) => holds(messages, value))) t.fail(show(messages).join());
    }
  }
  t.ok(longest() > 1);
});

t.test('the unnamed statement of one client is never that of another', async (t) => {
  const proxy = await startPool(t);
  const clients = await openAll(t, proxy.port, 5);
  await warmShort(proxy, clients[0]!);
  const longest = watch(proxy);
  for (let lap = 0; lap < 30; lap++) {
    for (const [mark, request] of [
      ['first', (own: string) => shortExtended(own)],
      ['again', (own: string) => run('', [own, '1'])],
    ] as const) {
      for (const [index, client] of clients.entries()) client.write(...request(`${mark}${index}`));
      for (const [index, client] of clients.entries()) {
        const messages = await client.until('Z');
        if (!holds(messages, `${mark}${index}`)) t.fail(show(messages).join());
      }
    }
  }
  t.ok(longest() > 1);
});

t.test('a table that changes its columns is the same error, once, as without sharing', async (t) => {
  const proxy = await startPool(t);
  const clients = await openAll(t, proxy.port, 4);
  const direct = await open(t, postgres.port, { database: ORACLE });
  const both = [direct, ...clients];
  const prepare = [send.parse('w', 'SELECT * FROM wide'), ...run('w')];
  for (const client of both) await client.ask(prepare);
  await warm(proxy, clients[0]!, run('w'));
  const longest = watch(proxy);
  for (const ddl of ['ADD COLUMN b int', 'DROP COLUMN b']) {
    for (const client of [direct, clients[0]!]) await client.rows(`ALTER TABLE wide ${ddl}`);
    for (const request of [run('w'), [send.close('S', 'w'), send.sync()], prepare, run('w')]) {
      for (const client of both) client.write(...request);
      const [wanted, ...got] = (await answers(both)).map(show);
      for (const each of got) t.same(each, wanted, ddl);
    }
  }
  t.ok(longest() > 1);
});

// --- What is never shared ---------------------------------------------------------------------------------------------

t.test('what is more than a read, or all that is read with share: off, is never shared', async (t) => {
  const proxy = await startPool(t);
  const [a, b] = (await openAll(t, proxy.port, 2)) as [RawClient, RawClient];
  await warmShort(proxy, b);
  for (const sql of [
    'SELECT n FROM marks FOR UPDATE',
    'SELECT n FROM marks FOR SHARE',
    '(SELECT n FROM marks FOR UPDATE)',
    `SELECT nextval('sq')`,
    `SELECT pg_catalog."nextval"('sq')`,
    `WITH x AS (INSERT INTO marks VALUES ('never', 1) RETURNING n) SELECT * FROM x`,
    `WITH x AS (DELETE FROM marks WHERE client = 'never' RETURNING n) SELECT * FROM x`,
    'SELECT pg_advisory_xact_lock(7)',
    'SELECT pg_sleep(0)',
    'SELECT plus(1)',
    'SELECT 1; SELECT 2',
    `SELECT set_config('app.x', 'y', true)`,
    'BEGIN; SELECT 1; COMMIT',
    `UPDATE marks SET n = 1 WHERE client = 'never'`,
    'SHOW TimeZone',
    'CREATE TEMP TABLE IF NOT EXISTS tt (i int)',
    'SELECT * FROM tt',
    'LISTEN ch',
  ]) {
    const before = sharedBy(proxy);
    const count = sql.includes('tt') || sql.includes('LISTEN') ? 3 : 26;
    for (let lap = 0; lap < count; lap++) await a.ask(send.query(sql));
    t.equal(sharedBy(proxy), before, sql);
  }
  const off = await startPool(t, { share: 'off' });
  const clients = await openAll(t, off.port, 4);
  for (let lap = 0; lap < 40; lap++) {
    for (const [index, client] of clients.entries()) client.write(...short(`mark${index}`));
    for (const [index, messages] of (await answers(clients)).entries())
      if (!holds(messages, `mark${index}`)) t.fail(show(messages).join());
  }
  t.equal(sharedBy(off), 0);
});

t.test('a NOTICE in a shared read is its own client’s', async (t) => {
  const proxy = await startPool(t);
  const clients = await openAll(t, proxy.port, 4);
  const name = 'n'.repeat(70);
  const asks = (mark: string) => [send.query(`SELECT '${mark}' AS ${name}`)];
  await warm(proxy, clients[0]!, asks('warm'));
  await warmShort(proxy, clients[0]!);
  const longest = watch(proxy);
  for (let lap = 0; lap < 20; lap++) {
    for (const [index, client] of clients.entries()) client.write(...(index % 2 === 0 ? asks : short)(`mark${index}`));
    for (const [index, messages] of (await answers(clients)).entries())
      if (types(messages) !== (index % 2 === 0 ? 'NTDCZ' : 'TDCZ')) t.fail(show(messages).join());
  }
  t.ok(longest() > 1);
});

t.test('a stream of reads starves no writer, and PAUSE and RESUME work under it', async (t) => {
  const proxy = await startPool(t);
  const [writer, ...readers] = (await openAll(t, proxy.port, 31)) as [RawClient, ...RawClient[]];
  await warmShort(proxy, writer);
  const longest = watch(proxy);
  let isOver = false;
  let wrong = 0;
  const loops = readers.map(async (client, index) => {
    while (!isOver && !client.isClosed) if (!holds(await client.ask(short(`mark${index}`)), `mark${index}`)) wrong++;
  });
  for (let lap = 0; lap < 10; lap++) {
    const started = performance.now();
    await writer.rows(`INSERT INTO marks VALUES ('writer', ${lap})`);
    const elapsed = performance.now() - started;
    if (elapsed > 2000) t.fail(`a write took ${elapsed} ms`);
  }
  await new Promise<void>((done) => poolOf(proxy).pause(done));
  const before = sharedBy(proxy);
  t.equal(poolOf(proxy).lines.size, 0);
  for (let lap = 0; lap < 20; lap++) await turn();
  t.equal(sharedBy(proxy), before, 'nobody boards');
  poolOf(proxy).resume();
  const goesOn = await until(() => sharedBy(proxy) > before, 'sharing', 3000).then(
    () => true,
    () => false,
  );
  t.ok(goesOn, 'sharing goes on');
  isOver = true;
  await Promise.all(loops);
  t.equal(wrong, 0);
  t.ok(longest() > 1);
});

// --- Anything in any order --------------------------------------------------------------------------------------------

/** What a client may do; MARK is its own. Each makes the same of any client that is alone. */
const acts: Record<string, (mark: string, k: number) => Buffer[][]> = {
  simple: (m) => [short(m)],
  extended: (m) => [shortExtended(m)],
  named: (m) => [
    [send.close('S', 's'), send.parse('s', 'SELECT $1::text AS short, 1 / $2::int AS by'), ...run('s', [m, '1'])],
  ],
  // Never by zero: others have run the statement, too, and a generic plan fails at Execute where a custom one fails at Bind.
  again: (m, k) => [run('s', [m, String(1 + (k % 3))])],
  bindUnnamed: (m) => [run('', [m, '1'])],
  byZero: (m) => [short(m, 0)],
  byZeroExtended: (m) => [shortExtended(m, 0)],
  badParameter: (m) => [extended('SELECT $1::text AS short, 1 / $2::int AS by', [m, m])],
  missing: (m) => [[send.query(`SELECT * FROM nowhere_${m}`)], extended(`SELECT * FROM nowhere_${m}`)],
  empty: (m) => [[send.query(`SELECT '${m}' AS none WHERE false`)]],
  large: (m) => [extended('SELECT repeat($1::text, 8000) AS large', [m])],
  notice: (m) => [[send.query(`SELECT '${m}' AS ${'n'.repeat(70)}`)]],
  mine: (m) => [[send.query(`SELECT client, n FROM marks WHERE client = '${m}' ORDER BY n`)]],
  insert: (m, k) => [[send.query(`INSERT INTO marks VALUES ('${m}', ${k})`)]],
  update: (m, k) => [extended('UPDATE marks SET n = n + $2::int WHERE client = $1', [m, String(k)])],
  commit: (m, k) => [
    [send.query('BEGIN')],
    [send.query(`INSERT INTO marks VALUES ('${m}', ${k})`)],
    shortExtended(m),
    [send.query('COMMIT')],
  ],
  rollback: (m) => [
    [send.query('BEGIN')],
    [send.query(`DELETE FROM marks WHERE client = '${m}'`)],
    short(m, 0),
    [send.query('ROLLBACK')],
  ],
  set: (_, k) => [[send.query(`SET TimeZone = '${k % 2 === 0 ? 'Asia/Tokyo' : 'UTC'}'`)]],
  reset: () => [[send.query('RESET TimeZone')]],
  time: () => [[send.query(`SELECT timestamptz '2024-01-01 00:00:00+00' AS at`)]],
  discard: () => [[send.query('DISCARD ALL')]],
};
const reads = ['simple', 'extended', 'again', 'large', 'mine', 'time', 'empty', 'byZero', 'byZeroExtended', 'notice'];

interface Life {
  steps: [act: string, k: number][];
  packets: number[];
  /** Everything is sent at once, answers are read afterwards. */
  isPipelined: boolean;
  /** Breaks off after so many bytes of its last request. */
  vanishes: boolean;
}

const lives: fc.Arbitrary<Life[]> = fc.array(
  fc.record({
    steps: fc.array(
      fc.tuple(
        fc.oneof({ weight: 3, arbitrary: fc.constantFrom(...reads) }, fc.constantFrom(...Object.keys(acts))),
        fc.nat(9),
      ),
      { minLength: 4, maxLength: 14 },
    ),
    packets: fc.array(fc.integer({ min: 1, max: 80 }), { maxLength: 10 }),
    isPipelined: fc.boolean(),
    vanishes: fc.integer({ min: 0, max: 4 }).map((n) => n === 0),
  }),
  { minLength: 6, maxLength: 9 },
);

/** Lets clients begin their next requests together: those who find their server free share it. */
class Rounds {
  #count: number;
  #waiting: (() => void)[] = [];

  constructor(count: number) {
    this.#count = count;
  }

  next(): Promise<void> {
    return new Promise((resolve) => {
      this.#waiting.push(resolve);
      this.#check();
    });
  }

  leave(): void {
    this.#count--;
    this.#check();
  }

  #check(): void {
    if (this.#waiting.length >= this.#count) for (const go of this.#waiting.splice(0)) go();
  }
}

async function live(port: number, database: string, mark: string, life: Life, rounds: Rounds): Promise<Message[]> {
  const client = await RawClient.open(port, { database });
  const got: Message[] = [];
  try {
    const groups = life.steps.flatMap(([act, k]) => acts[act]!(mark, k));
    let begin = 0;
    const begins = new Set(life.steps.map(([act, k]) => (begin += acts[act]!(mark, k).length)).concat(0));
    const sizes = [...life.packets];
    let owed = 0;
    for (const [index, group] of groups.entries()) {
      // Not within a transaction: its server is what others wait for.
      if (!life.isPipelined && begins.has(index)) await rounds.next();
      let bytes = Buffer.concat(group);
      for (let size = sizes.shift(); size !== undefined && bytes.length > size; size = sizes.shift()) {
        client.write(bytes.subarray(0, size));
        bytes = bytes.subarray(size);
        await turn();
      }
      client.write(bytes);
      owed++;
      if (index === groups.length - 1 && life.vanishes) return got;
      if (life.isPipelined && index < groups.length - 1) continue;
      got.push(...(await client.until('Z', owed)));
      owed = 0;
    }
    return got;
  } finally {
    if (!life.isPipelined) rounds.leave();
    client.end();
  }
}

for (const size of [1, 2]) {
  t.test(`whatever clients send, each gets its own answers, in order, through ${size} servers`, async (t) => {
    const proxy = await startPool(t, { size, pinnedMax: '100%' });
    const first = await open(t, proxy.port);
    await warmShort(proxy, first);
    for (const act of ['large', 'mine', 'time', 'empty', 'notice']) await warm(proxy, first, acts[act]!('warm', 1)[0]!);
    first.end();
    const oracle = await open(t, postgres.port, { database: ORACLE });
    const longest = watch(proxy);
    const isRight = fc.asyncProperty(lives, async (all) => {
      for (const side of [watcher, oracle]) await side.rows('TRUNCATE marks');
      const marks = all.map((_, index) => `mark_${String.fromCharCode(97 + index)}`);
      const polite = all.filter(({ isPipelined }) => !isPipelined).length;
      const [here, there] = [new Rounds(polite), new Rounds(polite)];
      const [got, wanted] = await Promise.all([
        Promise.all(all.map((life, index) => live(proxy.port, 'postgres', marks[index]!, life, here))),
        Promise.all(all.map((life, index) => live(postgres.port, ORACLE, marks[index]!, life, there))),
      ]);
      await until(() => proxy.app.snapshot().sessions.size === 0, 'the clients to be gone');
      for (const [index, life] of all.entries()) {
        const [mine, its] = [show(got[index]!), show(wanted[index]!)];
        const at = its.findIndex((line, i) => line !== mine[i]);
        if (at >= 0 || mine.length !== its.length)
          throw new Error(
            `${marks[index]} ${at}: ${JSON.stringify(life.steps)}\nproxy:  ${mine[at]}\ndirect: ${its[at]}`,
          );
        const others = marks.filter((mark) => mark !== marks[index]);
        if (got[index]!.some(({ body }) => others.some((mark) => body.includes(mark)))) throw new Error('theirs');
      }
      const kept = marks.filter((_, index) => !all[index]!.vanishes).map((mark) => `'${mark}'`);
      const sql = `SELECT client, n FROM marks WHERE client IN ('', ${kept.join(', ') || `''`}) ORDER BY 1, 2`;
      const [has, should] = [await watcher.rows(sql), await oracle.rows(sql)];
      if (JSON.stringify(has) !== JSON.stringify(should)) throw new Error(`tables: ${has}, not ${should}`);
      await until(async () => (await backends()).every(([, state]) => state === 'idle'), 'no transaction to be open');
      if (proxy.bugs() > 0) throw new Error('bugs');
    });
    const seed = Number(process.env.PGWEIR_SEED ?? 20_261_124);
    const before = sharedBy(proxy);
    await fc.assert(isRight, { numRuns: 30, seed, interruptAfterTimeLimit: 8_000, endOnFailure: true });
    t.ok(sharedBy(proxy) > before + 50, `${sharedBy(proxy) - before} requests were shared`);
    t.ok(longest() > 1, `${longest()} in line; seed ${seed}`);
  });
}

// --- The end ----------------------------------------------------------------------------------------------------

t.test('no bug was counted', async (t) => {
  t.equal(
    proxies.reduce((sum, proxy) => sum + proxy.bugs(), 0),
    0,
  );
});
