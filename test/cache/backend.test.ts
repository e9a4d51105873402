/** The shared cache and what may be wrong with it: a FAKE Redis shows the faults, a real one the normal case. */
import { spawn, spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { Redis } from 'ioredis';
import t, { type Test } from 'tap';
import { Backend, type Found, type Space } from '../../src/cache/backend.ts';
import { bareOptions, placeOf } from '../../src/cache/backend-url.ts';
import { Caches } from '../../src/cache/caches.ts';
import { parseConfig } from '../../src/config/load.ts';
import { freePort } from '../../src/embedded.ts';
import * as encode from '../../src/protocol/encode.ts';
import { systemClock } from '../../src/util/clock.ts';
import { FakeRedis, faults } from '../fixtures/resp.ts';
import { until } from '../fixtures/stack.ts';

const BUDGET = 50;
const body = Buffer.concat([encode.dataRow(['x']), encode.commandComplete('SELECT 1'), encode.readyForQuery()]);

function start(t: Test, port: number, pace = 50): { backend: Backend; space: Space; states: string[] } {
  const states: string[] = [];
  const backend = new Backend({
    url: `redis://127.0.0.1:${port}`,
    budget: BUDGET,
    password: undefined,
    secret: 'secret',
    clock: systemClock,
    onEvent: (_, { state, why }) => states.push(`${state}: ${why}`),
    pace,
  });
  const space = backend.space('db', 0);
  const timer = setInterval(() => backend.tick(systemClock.now()), 5);
  t.after(() => {
    clearInterval(timer);
    backend.close();
  });
  return { backend, space, states };
}

const armed = ({ arming }: Backend) =>
  until(() => arming.state === 'armed', `armed, and not ${arming.state}: ${arming.why}`);
/** Before a FAKE that behaves itself so far. */
async function startArmed(t: Test) {
  const redis = await FakeRedis.start();
  t.after(() => redis.stop());
  const started = start(t, redis.port);
  await armed(started.backend);
  return { redis, ...started };
}

const ask = (space: Space, key: Buffer, oids = [1, 2]) =>
  new Promise<Found>((done) => space.read(key, oids, BUDGET, done));

/** Stores it, again if need be: on a busy machine the backend is degraded for a moment. */
const put = (space: Space, key: Buffer, oids = [1, 2]): Promise<void> =>
  until(async () => {
    const { content, versions } = await ask(space, key, oids);
    if (content === null && versions !== null)
      space.store({ key, createdAt: 1, ttlMs: 60_000, costMs: 2, descriptionEnd: 0, body }, versions);
    return content !== null;
  }, 'what was stored');

t.test('what is stored comes back, until one of its tables is written to', async (t) => {
  const { space } = await startArmed(t);
  const key = randomBytes(32);
  await put(space, key);
  t.same((await ask(space, key)).content?.body, body);
  space.invalidate([2]);
  t.equal((await ask(space, key)).content, null);
  await put(space, key);
  space.announce([1]);
  t.equal((await ask(space, key)).content, null, 'while a write is under way');
  const { versions } = await ask(space, key);
  space.store({ key, createdAt: 1, ttlMs: 60_000, costMs: 2, descriptionEnd: 0, body }, versions!);
  await sleep(20);
  t.equal((await ask(space, key)).content, null, 'nor is anything stored');
  space.settle([1]);
  await put(space, key);
  space.invalidate('all');
  await sleep(20);
  t.equal((await ask(space, key)).content, null, 'another epoch');
});

t.test('a version that was evicted does not come back as it was', async (t) => {
  const { redis, space } = await startArmed(t);
  const key = randomBytes(32);
  await put(space, key);
  for (const name of redis.values.keys()) if (name.includes(':v:')) redis.values.delete(name);
  t.equal((await ask(space, key)).content, null);
  await sleep(20);
  t.equal((await ask(space, key)).content, null);
});

t.test('nobody there: it says so, and asks again', async (t) => {
  const port = await freePort();
  const { backend, space } = start(t, port);
  await until(() => backend.arming.state === 'open', 'open');
  t.notOk(space.mayRead(randomBytes(32)));
  const redis = await FakeRedis.start(port);
  t.after(() => redis.stop());
  await armed(backend);
});

for (const fault of faults) {
  t.test(`fault: ${fault}`, async (t) => {
    const { redis, backend, space } = await startArmed(t);
    const keys = Array.from({ length: 40 }, () => randomBytes(32));
    for (const key of keys) await put(space, key);
    redis.fault = fault;
    let longest = 0;
    let wrong = 0;
    for (let lap = 0; lap < 4; lap++)
      await Promise.all(
        keys.map(async (key) => {
          if (!space.mayRead(key) || !backend.hasRoom(0)) return;
          const since = performance.now();
          const { content, versions } = await ask(space, key);
          longest = Math.max(longest, performance.now() - since);
          if (content !== null && !content.key.equals(key)) wrong++;
          if (versions !== null)
            space.store({ key, createdAt: 1, ttlMs: 60_000, costMs: 2, descriptionEnd: 0, body }, versions);
        }),
      );
    t.equal(wrong, 0);
    t.ok(longest < 3 * BUDGET, `the longest wait was ${longest.toFixed(0)} ms`);
    await until(() => backend.arming.state !== 'armed' || fault === 'full', `not armed: ${backend.arming.state}`);
    t.ok(backend.inFlight <= 64);
    redis.fault = 'none';
    await armed(backend);
    for (const key of keys.slice(0, 3)) await put(space, key);
    // A write that could not be told rotates the epoch before anything is read again.
    t.ok(backend.inFlight <= 64);
  });
}

t.test('a write that could not be told makes all of before worthless', async (t) => {
  const { redis, backend, space } = await startArmed(t);
  const key = randomBytes(32);
  await put(space, key);
  redis.fault = 'loading';
  await ask(space, key);
  await until(() => !backend.arming.isTold, 'not told any more');
  space.invalidate([1]);
  redis.fault = 'none';
  await armed(backend);
  await until(() => space.mayRead(key), 'the new epoch');
  t.equal((await ask(space, key)).content, null);
});

/** Is read in each step of the ramp. */
const FIRST = Buffer.alloc(32);

/** The caches of a whole process, before the backend on `port`; `configure` is a reload. */
function startCaches(t: Test, port: number, told: Readonly<Record<string, number>> = {}) {
  const caches = new Caches(
    () => {},
    systemClock,
    () => {},
    told,
  );
  const rules = [{ tables: ['a'], ttl: '1h' }];
  const configure = ({ memoryMax = '64MiB', budget = BUDGET, mode = 'on', at = port } = {}) => {
    const databases = { app: { hosts: ['127.0.0.1:1'], control: { user: 'c' }, cache: 'set' } };
    const text = JSON.stringify({
      auth: { method: 'trust' },
      databases,
      cache: { mode, memoryMax, sets: { set: rules } },
    });
    const loaded = parseConfig(text, 'test', {});
    if (!loaded.ok) throw new Error(loaded.problems.join());
    const { cache } = loaded.config;
    const nowhere = () => Promise.reject(new Error('nowhere'));
    const of = { name: 'app', servers: 5, place: 'place', openControl: nowhere, openChanges: nowhere };
    const backend = { url: `redis://127.0.0.1:${at}`, budget, password: undefined, secret: '', problem: '' };
    caches.configure(cache, [{ ...of, rules: cache.sets.set! }], backend);
  };
  configure();
  const timer = setInterval(() => caches.tick(systemClock.now()), 5);
  const close = () => {
    clearInterval(timer);
    caches.close();
  };
  t.after(close);
  const space = () => caches.of('app')!.space!;
  const readable = () => until(() => caches.of('app')?.space?.mayRead(FIRST) === true, 'that it may be read');
  /** The first question of a space learns the epoch. */
  const find = async () => {
    await ask(space(), FIRST);
    return (await ask(space(), FIRST)).content;
  };
  const keep = () =>
    until(async () => {
      const { content, versions } = await ask(space(), FIRST);
      const createdAt = systemClock.wall();
      if (content === null && versions !== null)
        space().store({ key: FIRST, createdAt, ttlMs: 60_000, costMs: 2, descriptionEnd: 0, body }, versions);
      return content !== null;
    }, 'what was stored');
  const write = () => caches.of('app')!.freshness.bump([1]);
  return { caches, configure, readable, find, keep, write, close };
}

for (const [what, change] of Object.entries({
  'the budget': { budget: 2 * BUDGET },
  'the memory': { memoryMax: '65MiB' },
  'both, and then the one before': { memoryMax: '65MiB', budget: 2 * BUDGET },
})) {
  t.test(`a write that could not be told is not forgotten when a reload changes ${what}`, async (t) => {
    const redis = await FakeRedis.start();
    t.after(() => redis.stop());
    const { caches, configure, readable, find, keep, write } = startCaches(t, redis.port);
    await readable();
    await keep();
    redis.fault = 'loading';
    await until(async () => {
      await find();
      return !caches.backend!.arming.isTold;
    }, 'not told any more');
    write();
    configure(change);
    if (what.endsWith('before')) configure();
    redis.fault = 'none';
    await readable();
    t.equal(await find(), null);
    await keep();
    await until(() => Object.keys(caches.told).length === 1, 'that all is told');
  });
}

t.test('a write that is being told when a reload takes the connection away is told anew', async (t) => {
  const redis = await FakeRedis.start();
  t.after(() => redis.stop());
  const { configure, readable, find, keep, write } = startCaches(t, redis.port);
  await readable();
  await keep();
  redis.isDeaf = true;
  const { commands } = redis;
  write();
  configure({ budget: 2 * BUDGET });
  await until(() => redis.commands > commands, 'a command that comes to nothing');
  redis.isDeaf = false;
  await readable();
  t.equal(await find(), null);
});

t.test('nothing of before is believed where writes were not told for a while', async (t) => {
  const redis = await FakeRedis.start();
  const other = await FakeRedis.start();
  t.after(() => Promise.all([redis.stop(), other.stop()]));
  const { configure, readable, find, keep } = startCaches(t, redis.port);
  for (const away of [{ mode: 'off' }, { at: other.port }]) {
    await readable();
    await keep();
    configure(away);
    configure();
    await readable();
    t.equal(await find(), null, JSON.stringify(away));
  }
});

t.test('over a restart what was told is believed, if the process before has said so at its end', async (t) => {
  const redis = await FakeRedis.start();
  t.after(() => redis.stop());
  const first = startCaches(t, redis.port);
  await first.readable();
  await first.keep();
  const { told } = first.caches;
  first.write();
  t.same(first.caches.told, {}, 'not while a write is being told');
  await until(() => Object.keys(first.caches.told).length > 0, 'that it is told');
  await first.keep();
  const killed = startCaches(t, redis.port);
  await killed.readable();
  t.equal(await killed.find(), null, 'nobody knows what could not be told');
  await until(async () => (await first.find()) !== null, 'that others go on');
  first.close();
  const next = startCaches(t, redis.port, told);
  await next.readable();
  await until(async () => (await next.find()) !== null, 'that nothing is lost');
  t.same(next.caches.told, told, 'what was before the first is not believed by the last either');
});

t.test('the client keeps nothing, sends nothing again, and fails at once', async (t) => {
  const client = new Redis({ ...bareOptions(50), host: '127.0.0.1', port: await freePort() });
  client.on('error', () => {});
  t.after(() => client.disconnect());
  const since = performance.now();
  await t.rejects(client.get('x'));
  t.ok(performance.now() - since < 200, 'refused');
  const redis = await FakeRedis.start();
  t.after(() => redis.stop());
  const other = new Redis({ ...bareOptions(50), host: '127.0.0.1', port: redis.port });
  other.on('error', () => {});
  t.after(() => other.disconnect());
  await other.connect();
  redis.fault = 'stalled';
  const asked = performance.now();
  await t.rejects(other.get('x'));
  t.ok(performance.now() - asked < 200, 'frozen');
  const { commands } = redis;
  redis.fault = 'reset';
  await t.rejects(other.set('x', '1'));
  await sleep(100);
  t.ok(redis.commands <= commands + 1, 'not sent again');
});

t.test('URLs', (t) => {
  t.match(placeOf('redis://h'), { kind: 'one', isTls: false, hosts: [{ host: 'h', port: 6379 }] });
  t.match(placeOf('rediss://me:pa%40ss@h:1/3'), { kind: 'one', isTls: true, user: 'me', password: 'pa@ss', name: '3' });
  t.match(placeOf('redis+cluster://a,b:2'), {
    kind: 'cluster',
    hosts: [
      { host: 'a', port: 6379 },
      { host: 'b', port: 2 },
    ],
  });
  t.match(placeOf('redis+sentinel://a,b:2/main'), {
    kind: 'sentinel',
    name: 'main',
    hosts: [{ port: 26_379 }, { port: 2 }],
  });
  t.throws(() => placeOf('http://h'));
  t.throws(() => placeOf('redis+sentinel://a'));
  t.end();
});

const hasRedis = spawnSync('redis-server', ['--version']).status === 0;
if (!hasRedis && process.env.CI !== 'true') console.error('*** SKIPPED: there is no redis-server on PATH ***');
t.test('a real Redis', { skip: !hasRedis && process.env.CI !== 'true' }, async (t) => {
  const port = await freePort();
  const run = () =>
    spawn('redis-server', ['--port', `${port}`, '--bind', '127.0.0.1', '--save', '', '--appendonly', 'no'], {
      stdio: 'ignore',
    });
  let child = run();
  t.after(() => child.kill('SIGKILL'));
  const { backend, space } = start(t, port);
  await armed(backend);
  const key = randomBytes(32);
  await put(space, key);
  const admin = new Redis({ host: '127.0.0.1', port });
  admin.on('error', () => {});
  t.after(() => admin.disconnect());
  await admin.flushall();
  t.equal((await ask(space, key)).content, null, 'flushed');
  await put(space, key);
  await admin.config('SET', 'maxmemory', '1mb');
  await admin.config('SET', 'maxmemory-policy', 'noeviction');
  for (let n = 0; n < 50; n++) {
    const { versions } = await ask(space, randomBytes(32));
    if (versions !== null && backend.hasRoom(0))
      space.store(
        {
          key: randomBytes(32),
          createdAt: 1,
          ttlMs: 60_000,
          costMs: 2,
          descriptionEnd: 0,
          body: Buffer.alloc(100_000),
        },
        versions,
      );
  }
  await admin.config('SET', 'maxmemory', '0');
  await armed(backend);
  child.kill('SIGSTOP');
  const since = performance.now();
  t.equal((await ask(space, key)).content, null, 'frozen');
  t.ok(performance.now() - since < 3 * BUDGET);
  for (let n = 0; n < 20 && space.mayRead(key); n++) await ask(space, key);
  await until(() => backend.arming.state === 'open', `open: ${backend.arming.state}`);
  child.kill('SIGCONT');
  await armed(backend);
  child.kill('SIGKILL');
  await until(() => backend.arming.state === 'open', 'open');
  child = run();
  await armed(backend);
  await put(space, key);
});
