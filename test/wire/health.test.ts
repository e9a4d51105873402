/**
 * A database that is there and not well: it answers that it cannot, its processes hang, its network swallows what is sent. The
 * proxy notices within bounds, refuses in time, and is itself again when the database is.
 */
import t, { type Test } from 'tap';
import { type Clock, systemClock } from '../../src/util/clock.ts';
import { fatalOf, open, send, sqlstates, types } from '../fixtures/raw.ts';
import { startRelay } from '../fixtures/relay.ts';
import { connect, type Proxy as Pgweir, startProxy, temporaryFile, until, withPostgres } from '../fixtures/stack.ts';

const postgres = await withPostgres();
t.after(() => postgres.stop());

async function start(t: Test, options: Parameters<typeof startProxy>[1] = {}, port = postgres.port): Promise<Pgweir> {
  const proxy = await startProxy(port, options);
  t.after(() => proxy.stop());
  return proxy;
}

/** A clock that can be put forward. */
function movable(): Clock & { forward(ms: number): void } {
  let ahead = 0;
  return {
    ...systemClock,
    now: () => systemClock.now() + ahead,
    forward(ms) {
      ahead += ms;
    },
  };
}

const poolOf = ({ app }: Pgweir) => app.snapshot().pools[0]!;
const breakerOf = ({ app }: Pgweir) => [...app.snapshot().breakers.values()][0]!;
const raise = (sqlstate: string) =>
  send.query(`DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '${sqlstate}'; END $$`);
const breaker = { window: '2s', requestsMin: 10, openFor: '2s' };

t.test('errors that speak of the database open the breaker: refusals at once, then a growing share', async (t) => {
  const proxy = await start(t, { top: { breaker } });
  const client = await open(t, proxy.port);
  const failing = await open(t, proxy.port);
  for (let n = 0; n < 20; n++) t.same(sqlstates(await failing.ask(raise('53100'))), ['53100']);
  await until(() => breakerOf(proxy).state === 'open', 'the breaker to open');
  const refused = await client.ask(send.query('SELECT 1'));
  t.same([types(refused), sqlstates(refused)], ['EZ', ['53000']]);
  t.match(refused[0]!.body.toString(), /is not well.*reason=breaker.*retry after/s);
  const console = await open(t, proxy.port, { database: 'pgweir' });
  t.match(
    (await console.rows('SHOW BREAKERS')).map(([, kind, state]) => [kind, state]),
    [
      ['connect', 'closed'],
      ['health', /open/],
    ],
  );
  await until(async () => {
    await client.ask(send.query('SELECT 1'));
    return breakerOf(proxy).isClosed;
  }, 'the breaker to close');
  t.same(await client.rows('SELECT 1'), [['1']]);
  t.equal(breakerOf(proxy).opened, 1);
});

t.test('what clients do wrong does not', async (t) => {
  const proxy = await start(t, { top: { breaker } });
  const client = await open(t, proxy.port);
  for (const sqlstate of ['22012', '23505', '42601', '28000', '40001', 'P0001'])
    for (let n = 0; n < 5; n++) await client.ask(raise(sqlstate));
  const before = breakerOf(proxy).requests;
  await until(() => breakerOf(proxy).requests >= Math.max(20, before), 'the breaker to hear of it');
  t.ok(breakerOf(proxy).isClosed);
  t.equal(poolOf(proxy).counts.failures, 0);
});

t.test(
  'time limits of the database that strike count; those of clients, and their cancel requests, do not',
  async (t) => {
    const direct = await connect(postgres.port);
    await direct.query('CREATE DATABASE limited');
    await direct.query("ALTER DATABASE limited SET statement_timeout = '20ms'");
    await direct.end();
    const limited = await start(t);
    const client = await connect(limited.port, { database: 'limited' });
    t.after(() => client.end());
    await t.rejects(client.query('SELECT pg_sleep(5)'), { code: '57014' });
    t.equal(poolOf(limited).counts.failures, 1);
    await client.query("SET statement_timeout = '10ms'");
    await t.rejects(client.query('SELECT pg_sleep(5)'), { code: '57014' });
    t.equal(poolOf(limited).counts.failures, 1, 'its own affair');
    const proxy = await start(t);
    const other = await open(t, proxy.port);
    const answer = other.ask(send.query('SELECT pg_sleep(30)'));
    await until(() => [...proxy.app.snapshot().sessions].some(({ server }) => server !== null), 'work');
    [...proxy.app.snapshot().sessions].find(({ server }) => server !== null)!.cancel();
    t.same(sqlstates(await answer), ['57014']);
    t.equal(poolOf(proxy).counts.failures, 0);
  },
);

t.test('while the breaker is open nobody waits in vain', async (t) => {
  const proxy = await start(t, { pool: { size: 1 }, top: { breaker: { ...breaker, openFor: '5s' } } });
  const busy = await open(t, proxy.port);
  await busy.rows('BEGIN');
  for (let n = 0; n < 12; n++) {
    await busy.ask(raise('53200'));
    await busy.ask(send.query('ROLLBACK'));
    await busy.ask(send.query('BEGIN'));
  }
  await busy.rows('SELECT 1');
  const waiting = await open(t, proxy.port);
  const answer = waiting.ask(send.query('SELECT 1'));
  t.match((await answer)[0]!.body.toString(), /reason=breaker/);
  t.same(await busy.rows('SELECT 7'), [['7']], 'a transaction that has begun goes on');
});

t.test('a server process that hangs: a statement_timeout that it does not keep is kept for it', async (t) => {
  const proxy = await start(t);
  const client = await open(t, proxy.port);
  await client.ask(send.query("SET statement_timeout = '300ms'"));
  await client.ask(send.query('BEGIN'));
  const [[pid]] = (await client.rows('SELECT pg_backend_pid()')) as [[string]];
  process.kill(Number(pid), 'SIGSTOP');
  t.after(() => {
    process.kill(Number(pid), 'SIGCONT');
  });
  const since = performance.now();
  client.write(send.query('SELECT 1'));
  t.equal(fatalOf(await client.closed()), '57P01');
  t.ok(performance.now() - since < 5_000, `${performance.now() - since} ms`);
  t.match(poolOf(proxy).counts.timeouts, { deadline: 1, cancel: 1 });
  const other = await open(t, proxy.port);
  t.same(await other.rows('SELECT 1'), [['1']]);
});

/** A network that swallows everything, if it is told to. */
async function swallowing(t: Test) {
  const relay = { isHole: false, port: 0 };
  relay.port = await startRelay(t, postgres.port, () => relay.isHole);
  return relay;
}

t.test('a network that swallows what is sent: silent servers are closed when nobody can log in either', async (t) => {
  const relay = await swallowing(t);
  const clock = movable();
  const proxy = await start(t, { pool: { connectMax: '300ms' }, clock }, relay.port);
  const client = await open(t, proxy.port);
  await client.rows('SELECT 1');
  relay.isHole = true;
  client.write(send.query('SELECT 2'));
  await until(() => poolOf(proxy).active.size > 0, 'work');
  const gone = client.closed();
  await until(() => {
    clock.forward(500);
    return poolOf(proxy).active.size === 0;
  }, 'the end of the silent server');
  t.equal(fatalOf(await gone), '57P01');
  const [host] = proxy.app.snapshot().hosts;
  t.equal(host!.silence.closed, 1);
  relay.isHole = false;
  const other = await open(t, proxy.port);
  t.same(await other.rows('SELECT 1'), [['1']]);
});

t.test('a long statement is silent too, and goes on', async (t) => {
  const clock = movable();
  const proxy = await start(t, { clock });
  const client = await open(t, proxy.port);
  const answer = client.rows("SELECT 'done' FROM pg_sleep(2)");
  for (let n = 0; n < 60; n++) {
    clock.forward(500);
    await new Promise((done) => setTimeout(done, 20));
  }
  t.same(await answer, [['done']]);
  t.equal(proxy.app.snapshot().hosts[0]!.silence.closed, 0);
});

t.test('a server that was idle for long is asked for a sign of life', async (t) => {
  const relay = await swallowing(t);
  const clock = movable();
  const proxy = await start(t, { pool: { size: 2 }, clock }, relay.port);
  const client = await open(t, proxy.port);
  const pidOf = async () => (await client.rows('SELECT pg_backend_pid()'))[0]![0];
  const pid = await pidOf();
  clock.forward(31_000);
  t.equal(await pidOf(), pid, 'it has given one');
  clock.forward(31_000);
  relay.isHole = true;
  const later = pidOf();
  await until(() => poolOf(proxy).cleaning.size === 1, 'the question');
  relay.isHole = false; // New connections get through, and the question is lost.
  clock.forward(3_000);
  t.not(await later, pid, 'it has not: another one');
});

t.test(
  'one wrong password, one missing database: nobody else is affected, and the error says what to do',
  async (t) => {
    const own = await withPostgres({
      hba: 'host all other 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n',
    });
    t.after(() => own.stop());
    const direct = await connect(own.port);
    await direct.query("CREATE ROLE other LOGIN PASSWORD 'right'");
    await direct.end();
    const wrong = temporaryFile('password', 'wrong');
    t.after(wrong.remove);
    const hosts = [`127.0.0.1:${own.port}`];
    const tls = { mode: 'disable' };
    const proxy = await startProxy(own.port, {
      top: {
        databases: {
          good: { hosts, tls, dbname: 'postgres' },
          locked: { hosts, tls, dbname: 'postgres', user: 'other', passwordFile: wrong.path },
          missing: { hosts, tls, dbname: 'nowhere' },
        },
      },
    });
    t.after(() => proxy.stop());
    const good = await open(t, proxy.port, { database: 'good' });
    const bad = async (database: string) => {
      const failures: { code: string; hint: string }[] = [];
      for (let n = 0; n < 10; n++) await connect(proxy.port, { database }).catch((thrown) => failures.push(thrown));
      return failures;
    };
    const [locked, missing] = await Promise.all([bad('locked'), bad('missing')]);
    t.same(new Set(locked.map(({ code }) => code)), new Set(['28P01']));
    t.match(locked[0], { hint: /passwordFile/ });
    t.same(new Set(missing.map(({ code }) => code)), new Set(['3D000']));
    t.match(missing[0], { hint: /create the database/ });
    t.same(await good.rows('SELECT 1'), [['1']]);
    const host = proxy.app.snapshot().hosts[0]!;
    t.same([host.connector.state, host.connector.opened], ['closed', 0], 'the host is well');
    t.ok([...proxy.app.snapshot().breakers.values()].every(({ isClosed }) => isClosed));
  },
);

t.test(
  'max_connections is reached: who has servers goes on, others are told; there is room again: all is well',
  async (t) => {
    const own = await withPostgres({ settings: { max_connections: '10', superuser_reserved_connections: '0' } });
    t.after(() => own.stop());
    const proxy = await startProxy(own.port, { pool: { size: 4, waitMax: '500ms' } });
    t.after(() => proxy.stop());
    const first = await open(t, proxy.port);
    await first.rows('SELECT 1');
    const others: { end(): Promise<void> }[] = [];
    for (;;) {
      const other = await connect(own.port).catch(() => null);
      if (other === null) break;
      others.push(other);
    }
    await first.rows('BEGIN');
    await first.rows('SELECT 1');
    const second = await open(t, proxy.port);
    const refused = await second.ask(send.query('SELECT 1'));
    t.same(sqlstates(refused), ['53000']);
    t.match(refused[0]!.body.toString(), /too many clients.*lower pool.size or serversMax, or raise max_connections/s);
    t.same(await first.rows('SELECT 7'), [['7']], 'who has one goes on');
    await first.rows('COMMIT');
    t.same(await second.rows('SELECT 7'), [['7']], 'and lends it to others');
    t.equal(proxy.app.snapshot().hosts[0]!.connector.state, 'closed', 'it can be reached');
    t.equal(proxy.app.snapshot().clusters[0]!.hold.state, 'open');
    await Promise.all(others.map((other) => other.end()));
  },
);

t.test('a long statement during a smart shutdown: whoever is refused a login has been answered', async (t) => {
  const own = await withPostgres();
  t.after(() => own.stop('immediate'));
  const clock = movable();
  const proxy = await start(t, { clock }, own.port);
  const client = await open(t, proxy.port);
  const answer = client.rows("SELECT 'done' FROM pg_sleep(2)");
  await until(() => poolOf(proxy).active.size > 0, 'work');
  process.kill(own.pid, 'SIGTERM'); // Sessions may come to their end, newcomers get 57P03.
  for (let n = 0; n < 40; n++) {
    clock.forward(500);
    await new Promise((done) => setTimeout(done, 20));
  }
  t.same(await answer, [['done']]);
});

t.test('a database that takes nobody is its own affair, not that of its host', async (t) => {
  const proxy = await start(t, { pool: { size: 2 }, top: { listen: { loginTimeout: '1s' } } });
  const good = await open(t, proxy.port);
  await good.rows('SELECT 1');
  const others = Array.from({ length: 12 }, () => connect(proxy.port, { database: 'template0' }).catch(() => {}));
  await Promise.all(others);
  t.same(await good.rows('SELECT 7'), [['7']]);
  t.equal(proxy.app.snapshot().hosts[0]!.connector.opened, 0);
  t.equal(proxy.app.snapshot().clusters[0]!.hold.state, 'open');
});

t.test('a control user that may not log in blinds the probes, and nothing else', async (t) => {
  const proxy = await start(t, { database: { control: { user: 'nosuch' }, hold: { for: '300ms' } } });
  const client = await open(t, proxy.port);
  t.same(await client.rows('SELECT 1'), [['1']]);
  const [cluster] = proxy.app.snapshot().clusters;
  await until(() => /nosuch/.test([...cluster!.roles.values()][0]!.why), 'it to be said');
  await new Promise((done) => setTimeout(done, 1_000));
  t.equal(cluster!.hold.state, 'open');
  t.same(await client.rows('SELECT 7'), [['7']]);
});

t.test(
  'a server that was idle has not been silent: the statement_timeout of the next client begins with its statement',
  async (t) => {
    const clock = movable();
    const proxy = await start(t, { clock, pool: { size: 1 } });
    const client = await open(t, proxy.port);
    await client.ask(send.query("SET statement_timeout = '2s'"));
    for (let lap = 0; lap < 5; lap++) {
      await client.rows('SELECT 1');
      await new Promise((done) => setTimeout(done, 300)); // A tick of everybody, so that nothing is new.
      clock.forward(20_000);
      t.same(await client.rows("SELECT 'done' FROM pg_sleep(0.5)"), [['done']]);
    }
    t.match(poolOf(proxy).counts.timeouts, { deadline: 0, cancel: 0 });
  },
);
