/** The shared cache and what may be wrong with it: a FAKE Redis shows the faults, a real one the normal case. */
import { spawn, spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { Redis } from 'ioredis';
import t, { type Test } from 'tap';
import { Backend, type Found, type Space } from '../../src/cache/backend.ts';
import { bareOptions, placeOf } from '../../src/cache/backend-url.ts';
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
  const space = backend.space('db');
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
