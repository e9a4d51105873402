/** Who asks the database for what: the tables by service, the most expensive statements, and single requests that were slow or refused. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import fc from 'fast-check';
import t from 'tap';
import { Account, type Period, Usage } from '../../src/client/usage.ts';
import { type Coupling, couplingDot, couplingMarkdown, couplingOf, couplingText } from '../../src/ops/coupling.ts';
import { explanationOf, Journal, type RefusalRecord } from '../../src/ops/journal.ts';
import type { Status } from '../../src/ops/status.ts';
import { error } from '../../src/protocol/sqlstate.ts';
import type { ServerPool } from '../../src/server/pool.ts';
import type { Settings } from '../../src/server/settings.ts';
import { harmless, type Nature } from '../../src/sql/verdict.ts';
import { FakeClock } from '../fixtures/clock.ts';
import { connect, startProxy, until, withPostgres } from '../fixtures/stack.ts';

const HOUR = 3_600_000;
const nature = (name: string, isWritten: boolean): Nature => ({
  text: name,
  kind: isWritten ? 'write' : 'read',
  tables: [{ schema: '', name, isWritten }],
  reading: null,
  isTemporary: false,
  change: 'no',
});
const app = (application: string) => ({ host: 'db:5432', database: 'shop', user: 'app', application });

t.test('usage: whatever is counted is in one hour or another, once, and memory has a bound', async (t) => {
  const step = fc.record({
    service: fc.integer({ min: 0, max: 700 }),
    shape: fc.integer({ min: 0, max: 1_500 }),
    ms: fc.integer({ min: 0, max: 1_000 }),
    wait: fc.constantFrom(0, 0, 0, 0, HOUR / 2, HOUR),
  });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 300 }), (steps) => {
      let now = 1_000_000;
      const usage = new Usage(
        (number) => nature(`t${number}`, number % 2 === 0),
        () => now,
      );
      let ms = 0;
      for (const each of steps) {
        const use = usage.serviceOf(app(`s${each.service}`)).useOf(each.shape);
        use.now.count++;
        use.now.ms += each.ms;
        ms += each.ms;
        now += each.wait;
        usage.tick();
      }
      const services = usage.periods().flatMap((period) => period.services);
      const sum = (key: 'count' | 'ms') => services.reduce((total, each) => total + each[key], 0);
      // Hours beyond the last 48 are forgotten; the steps are too few for so many.
      if (usage.periods().length > 48) return;
      if (sum('count') !== steps.length || sum('ms') !== ms)
        throw new Error(`${sum('count')} statements, ${sum('ms')} ms`);
    }),
  );
  const usage = new Usage(
    (number) => nature(`t${number}`, false),
    () => 0,
  );
  for (let service = 0; service < 2_000; service++) usage.serviceOf(app(`s${service}`)).useOf(1).now.count++;
  t.ok([...usage.services].length <= 501);
  const one = usage.serviceOf(app('s0'));
  for (let shape = 1; shape < 5_000; shape++) one.useOf(shape).now.count++;
  t.ok([...one.uses].length <= 1_001);
  const [period] = usage.periods();
  t.equal(
    period!.services.reduce((rows, { tables }) => rows + tables.length, 0),
    100 + 500,
    'rows of an hour: none takes the place of all others',
  );
  for (let service = 0; service < 20; service++)
    for (let shape = 1; shape < 900; shape++) usage.serviceOf(app(`s${service}`)).useOf(shape).now.count++;
  t.ok([...usage.services].reduce((sum, { uses }) => sum + [...uses].length, 0) <= 10_000 + 501, 'of all together');
});

t.test('an hour that is over is kept for two days, and what was not asked for again is let go', async (t) => {
  let now = 0;
  const usage = new Usage(
    () => null,
    () => now,
  );
  usage.serviceOf(app('once')).useOf(7).now.count++;
  const { generation } = usage;
  now += HOUR;
  usage.tick();
  t.equal(usage.generation, generation + 1);
  t.equal([...usage.services].length, 1, 'it still counts as the hour before');
  now += HOUR;
  usage.tick();
  t.equal([...usage.services].length, 0);
  for (let hour = 0; hour < 100; hour++) {
    now += HOUR;
    usage.tick();
  }
  t.equal(usage.periods().length, 49);
  now -= 10 * HOUR;
  usage.tick();
  t.ok(usage.periods().at(-1)!.from <= now, 'a clock that is set back ends the hour');
});

t.test(
  'what takes longer than an hour is counted where it ends, with its tables; a restart cuts no hour',
  async (t) => {
    let now = 0;
    const known = nature('events', true);
    const make = () =>
      new Usage(
        () => known,
        () => now,
      );
    const usage = make();
    const pool = { cluster: { name: 'db:5432' }, target: { database: 'shop' } } as unknown as ServerPool;
    const settings = { reported: new Map([['application_name', 'night']]) } as unknown as Settings;
    const account = new Account(usage, pool, 'app');
    account.begin({ ...harmless, number: 5, nature: known }, settings);
    for (let hour = 0; hour < 3; hour++) {
      now += HOUR;
      usage.tick();
    }
    now += 60_000;
    account.end(3 * HOUR, 3 * HOUR, 'batch');
    const last = usage.periods().at(-1)!;
    t.match(last.services, [
      { application: 'night', ms: 3 * HOUR, className: 'batch', tables: [{ table: 'events', ms: 3 * HOUR }] },
    ]);
    account.begin({ ...harmless, number: 6, nature: known }, settings);
    account.forget();
    account.end(99, 99, 'batch');
    t.equal(
      usage.periods().at(-1)!.services[0]!.ms,
      3 * HOUR,
      'what was lost with its server is not paid for by the next',
    );

    now += 60_000;
    let again = usage;
    for (let restart = 0; restart < 100; restart++) {
      const saved = again.periods();
      now += 1_000;
      again = make();
      again.restore(saved);
      again.serviceOf(app('night')).useOf(5).now.count++;
    }
    t.equal(again.periods().length, usage.periods().length);
    t.match(again.periods().at(-1)!.services, [
      { count: 101, ms: 3 * HOUR, tables: [{ table: 'events', writes: 102 }] },
    ]);
  },
);

t.test('an audit of very many services is short, and soon made', async (t) => {
  const periods: Period[] = Array.from({ length: 48 }, (_, hour) => ({
    from: hour * HOUR,
    to: (hour + 1) * HOUR,
    services: Array.from({ length: 500 }, (_, at) => ({
      ...app(`pod-${hour}-${at}`),
      count: 1,
      ms: 1,
      costMs: 1,
      className: '',
      tables: ['a', 'b'].map((table) => ({ table, reads: 1, writes: 1, ms: 1 })),
    })),
  }));
  const before = performance.now();
  const coupling = couplingOf(periods, { floorOf: () => 0, bypass: [] });
  t.ok(performance.now() - before < 2_000);
  t.equal(coupling.services.length, 201);
  t.match(coupling.services.at(-1), { service: '(others)@shop', statements: 48 * 500 - 200 });
  t.ok(JSON.stringify(coupling).length < 1_000_000);
});

t.test('the audit: who shares what, and who would be hurt', async (t) => {
  const service = (application: string, ms: number, tables: [string, number, number][]) => ({
    ...app(application),
    count: 10,
    ms,
    costMs: ms,
    className: application === 'shop' ? 'api' : '',
    tables: tables.map(([table, reads, writes]) => ({ table, reads, writes, ms })),
  });
  const periods: Period[] = [
    {
      from: 0,
      to: HOUR,
      services: [service('shop', 300, [['orders', 0, 5]]), service('report', 100, [['orders', 5, 0]])],
    },
    {
      from: HOUR,
      to: 2 * HOUR,
      services: [service('shop', 500, [['carts', 2, 2]]), service('mail | "x"', 100, [['users', 1, 0]])],
    },
  ];
  const coupling = couplingOf(periods, {
    floorOf: (name) => (name === 'api' ? 0.5 : 0),
    bypass: [{ host: 'db:5432', application: 'psql', user: 'dba', backends: 2, busy: 1 }],
  });
  t.match(coupling.services, [
    { service: 'shop', statements: 20, ms: 800, share: 0.8, reads: ['carts'], writes: ['carts', 'orders'] },
    { service: 'report', share: 0.1 },
    { service: 'mail | "x"', share: 0.1 },
  ]);
  t.same(coupling.couplings, [{ table: 'orders', database: 'shop', writer: 'shop', reader: 'report' }]);
  t.match(coupling.shared, [{ table: 'orders', writers: ['shop'], readers: ['report'] }]);
  t.equal(coupling.shared.length, 1);
  t.match(coupling.hurt[1], { service: 'report', hurt: [{ service: 'shop', class: 'api', floor: 0.5 }, {}] });
  const shown = couplingText(coupling);
  t.match(shown, /shop +api +80% +20 +carts +carts, orders/);
  t.match(shown, /report +shop \(50%\), mail \| "x" \(nothing\)/);
  t.match(shown, /psql +dba +db:5432 +2 +1/);
  t.match(couplingMarkdown(coupling), /\| mail \\\| "x" \| - \| 10% \|/);
  const dot = couplingDot(coupling);
  t.match(dot, '"s:shop" -> "t:shop.orders";');
  t.match(dot, '"t:shop.orders" -> "s:report";');
  t.match(dot, 's:mail | \\"x\\"', 'quotes are quoted');
  const twins = couplingOf(
    [
      {
        from: 0,
        to: 1,
        services: [
          { ...service('a', 1, []), user: 'one' },
          { ...service('a', 1, []), user: 'two' },
        ],
      },
    ],
    { floorOf: () => 0, bypass: [] },
  );
  t.same(
    twins.services.map((each) => each.service),
    ['a/one@shop', 'a/two@shop'],
  );
});

t.test(
  'of a thousand refusals in a second one line is written, which says so, and each can be asked about',
  async (t) => {
    const clock = new FakeClock();
    const lines: Record<string, unknown>[] = [];
    const journal = new Journal(
      clock,
      () => null,
      (fields, message) => lines.push({ ...fields, message }),
    );
    const client = {
      id: 7,
      user: 'app',
      database: 'shop',
      socket: { remoteAddress: '10.0.0.1' },
      settings: { reported: new Map([['application_name', 'report']]) },
      inputs: null,
      pool: {
        hostAddress: 'db:5432',
        waiters: { size: 3 },
        active: { size: 1 },
        serverCount: 1,
        pinned: 0,
        config: { size: 1, queueMax: 3, waitMax: 100, pinnedMax: 1 },
      },
    };
    for (let id = 1; id <= 1_000; id++)
      journal.onRefused(client, error('53000', 'request refused: x', { id, reason: 'queue', hint: 'wait' }), null, 0);
    journal.onRefused(client, error('53000', 'y', { id: 1_001, reason: 'wait' }), null, clock.now() - 50);
    t.match(lines, [
      { message: 'refused', reason: 'queue', count: 1, application_name: 'report', sqlstate: '53000' },
      { reason: 'wait', count: 1, wait_ms: 50 },
    ]);
    t.equal(lines.length, 2);
    clock.advance(1_000);
    journal.onRefused(client, error('53000', 'z', { id: 1_002, reason: 'queue' }), null, 0);
    t.match(lines[2], { count: 1_000 });
    t.match(journal.explain(17), { id: 17, reason: 'queue', inputs: { poolWaiting: 3, poolQueueMax: 3 } });
    t.equal(journal.explain(2_017), null);
    t.same(
      journal.recent(3).map(({ id }) => id),
      [1_002, 1_001, 1_000],
    );
    for (let id = 2_001; id <= 4_000; id++)
      journal.onRefused(client, error('53000', 'w', { id, reason: 'queue' }), null, 0);
    t.equal(journal.explain(17), null, 'long ago');
    t.match(explanationOf(journal.explain(2_017)!), /^request 2017 was refused\nwhat +w\n/);
  },
);

const postgres = await withPostgres();
t.after(() => postgres.stop());
const admin = await connect(postgres.port);
await admin.query(
  'CREATE TABLE orders (id int); CREATE TABLE users (id int); CREATE SCHEMA hr; CREATE TABLE hr.pay (id int)',
);
await admin.end();

/** What the command line prints. */
async function cli(args: string[]): Promise<{ code: number; out: string }> {
  const child = spawn(process.execPath, ['--import', 'tsx', 'src/cli.ts', ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const [out, problem] = await Promise.all([text(child.stdout), text(child.stderr), once(child, 'exit')]);
  return { code: child.exitCode!, out: out + problem };
}

t.test('services, their tables and statements are known after a minute of work, and after a restart', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'pgweir-test-'));
  t.teardown(() => rmSync(dir, { recursive: true }));
  const options = { top: { state: { dir } } };
  let proxy = await startProxy(postgres.port, options);
  t.teardown(() => proxy.stop());
  const shop = await connect(proxy.port, { application_name: 'shop' });
  const report = await connect(proxy.port, { application_name: 'report' });
  // The parser is asked beside the data path: the tables of a shape are known when it has answered.
  await shop.query('INSERT INTO orders VALUES (867530900)');
  for (let id = 0; id < 5; id++) await shop.query('INSERT INTO orders VALUES ($1)', [id]);
  await shop.query('BEGIN');
  await shop.query('UPDATE hr.pay SET id = 1');
  await shop.query('COMMIT');
  for (let id = 0; id < 5; id++) await report.query(`SELECT count(*) FROM orders, users WHERE orders.id = ${id}`);
  await report.query({ name: 'p', text: 'SELECT * FROM users WHERE id = $1', values: [1] });
  await report.query('SELECT pg_sleep(0.2)');
  const base = `http://127.0.0.1:${proxy.opsPort}`;
  const ask = async () => (await (await fetch(`${base}/coupling.json`)).json()) as Coupling;
  await until(
    async () => (await ask()).services.every(({ reads, writes }) => reads.length + writes.length === 2),
    'tables',
  );
  const coupling = await ask();
  t.match(coupling.services, [
    { service: 'report', database: 'postgres', statements: 7, reads: ['orders', 'users'], writes: [] },
    { service: 'shop', statements: 7, writes: ['hr.pay', 'orders'] },
  ]);
  t.ok(coupling.services[0]!.ms >= 200 && coupling.services[0]!.ms < 2_000, `${coupling.services[0]!.ms} ms`);
  t.same(coupling.couplings, [{ table: 'orders', database: 'postgres', writer: 'shop', reader: 'report' }]);
  const { shapes } = (await (await fetch(`${base}/status.json`)).json()) as Status;
  t.match(shapes[0], { statement: 'select pg_sleep ( ? )', service: 'report', count: 1, credits: null });
  t.ok(shapes[0]!.share > 0.5);
  t.notMatch(JSON.stringify(shapes), '867530900', 'no values');
  const console = await connect(proxy.port, { database: 'pgweir' });
  t.equal((await console.query('SHOW SHAPES')).rows[0].statement, 'select pg_sleep ( ? )');
  await console.end();

  const url = ['--url', base];
  t.match(
    (await cli(['coupling', ...url])).out,
    /Written by one, read by another\ntable +writer +reader\norders +shop +report/,
  );
  t.match((await cli(['coupling', ...url, '--dot'])).out, '"s:shop" -> "t:postgres.orders";');
  t.match((await cli(['coupling', ...url, '--markdown'])).out, '| orders | shop | report |');
  t.match(JSON.parse((await cli(['coupling', ...url, '--json', '--since', '1h'])).out), {
    couplings: [{ table: 'orders' }],
  });
  t.match(await cli(['coupling', ...url, '--since', 'yesterday']), { code: 1, out: /--since wants a time/ });

  await shop.end();
  await report.end();
  await proxy.stop();
  t.match(readFileSync(join(dir, 'coupling.json'), 'utf8'), 'hr.pay');
  proxy = await startProxy(postgres.port, options);
  const again = (await (await fetch(`http://127.0.0.1:${proxy.opsPort}/coupling.json`)).json()) as Coupling;
  t.same(again.couplings, coupling.couplings);
  t.equal(proxy.bugs(), 0);
});

t.test('reads that share a server are counted once, and nobody else pays for them', async (t) => {
  const proxy = await startProxy(postgres.port, { pool: { share: 'auto', size: 1 } });
  t.teardown(() => proxy.stop());
  const clients = await Promise.all(
    Array.from({ length: 8 }, () => connect(proxy.port, { application_name: 'readers' })),
  );
  t.teardown(() => Promise.all(clients.map((client) => client.end())));
  for (let round = 0; round < 40; round++)
    await Promise.all(clients.map((client) => client.query(`SELECT id FROM users WHERE id = ${round}`)));
  await clients[0]!.query('INSERT INTO orders SELECT 1 FROM pg_sleep(0.3)');
  const { shapes } = (await (await fetch(`http://127.0.0.1:${proxy.opsPort}/status.json`)).json()) as Status;
  const write = shapes.find(({ statement }) => statement.startsWith('insert'));
  const read = shapes.find(({ statement }) => statement === 'select id from users where id = ?');
  t.ok(write!.ms >= 300, `${write!.ms} ms`);
  t.equal(read!.count, 320);
  t.equal(proxy.bugs(), 0);
});

t.test('values are not told, however they are written', async (t) => {
  const proxy = await startProxy(postgres.port, { top: { log: { slow: '50ms' } } });
  t.teardown(() => proxy.stop());
  const client = await connect(proxy.port);
  for (const sql of [
    `SELECT pg_sleep(0.06), E'O\\'secret', $$secret$$, U&'secret', 'secret' AS "x\n12:00 forged \x1b[2J"`,
    'SET app.token = "secret"',
    'SET app.token TO secret',
    "COPY (SELECT 'secret') TO STDOUT",
    'SET standard_conforming_strings = off',
    "SELECT 'O\\'Brien', 'secret', pg_sleep(0.06)",
  ])
    await client.query(sql).catch(() => {});
  await client.end();
  const told = JSON.stringify(await (await fetch(`http://127.0.0.1:${proxy.opsPort}/status.json`)).json());
  t.match(told, 'set app . token = ?');
  t.notMatch(told + proxy.log.join(), /secret|Brien|brien/);
  t.notMatch(told, /\\n|\\u001b/, 'no line of its own');
});

t.test('a refused request can be explained, a slow one is written down; both with their trace', async (t) => {
  const trace = '4bf92f3577b34da6a3ce929d0e0e4736';
  const comment = `/*route='%2Fpay',traceparent='00-${trace}-00f067aa0ba902b7-01'*/`;
  const proxy = await startProxy(postgres.port, {
    pool: { size: 4 },
    top: {
      log: { slow: '100ms' },
      admission: { mode: 'enforce' },
      limit: { mode: 'fixed', min: 1, max: 1 },
      classes: [
        { name: 'batch', match: [{ user: 'nobody' }, { application: 'jobs' }], queue: { max: 1, waitMax: '150ms' } },
      ],
    },
  });
  t.teardown(() => proxy.stop());
  const clients = await Promise.all(Array.from({ length: 3 }, () => connect(proxy.port, { application_name: 'jobs' })));
  t.teardown(() => Promise.all(clients.map((client) => client.end())));
  const [busy, first, second] = clients as [(typeof clients)[0], (typeof clients)[0], (typeof clients)[0]];
  const work = busy.query(`SELECT pg_sleep(0.4), 'secret' ${comment}`);
  await until(() => proxy.app.snapshot().gates.values().next().value!.atWork === 1, 'work');
  const refused = await Promise.allSettled([first, second].map((client) => client.query(`SELECT 'secret' ${comment}`)));
  await work;
  const errors = refused.map((each) => (each as PromiseRejectedResult).reason as { code: string; detail: string });
  const records: RefusalRecord[] = [];
  for (const { code, detail } of errors) {
    t.equal(code, '53000');
    const [, id] = /id=(\d+)/.exec(detail)!;
    const printed = await cli(['explain', id!, '--url', `http://127.0.0.1:${proxy.opsPort}`]);
    t.match(printed, { code: 0, out: /classBy +classes\.batch\.match\[1\]/ });
    t.match(printed.out, `trace            ${trace}`);
    records.push((await (await fetch(`http://127.0.0.1:${proxy.opsPort}/refusals/${id}`)).json()) as RefusalRecord);
  }
  records.sort((a, b) => a.reason.localeCompare(b.reason));
  t.match(records, [
    {
      reason: 'queue',
      waitedMs: 0,
      inputs: { class: 'batch', limit: 1, atWork: 1, queueMax: 1 },
      statement: 'select ?',
    },
    { reason: 'wait', application: 'jobs', inputs: { waitMax: 150 } },
  ]);
  t.ok(records[1]!.waitedMs >= 150 && records[1]!.waitedMs < 1_000, `${records[1]!.waitedMs} ms`);
  const lines = proxy.log.map((line) => JSON.parse(line) as Record<string, unknown>);
  t.match(
    lines.find(({ msg }) => msg === 'slow'),
    { statement: 'select pg_sleep ( ? ) , ?', trace_id: trace, span_id: '00f067aa0ba902b7', route: '/pay', count: 1 },
  );
  t.match(
    lines.find(({ msg, reason }) => msg === 'refused' && reason === 'wait'),
    { class: 'batch', trace_id: trace, user: 'postgres' },
  );
  t.notMatch(proxy.log.join(), 'secret');
  const console = await connect(proxy.port, { database: 'pgweir' });
  t.equal((await console.query('SHOW REFUSALS')).rows.length, 2);
  await console.end();
  t.match(await cli(['explain', '999999', '--url', `http://127.0.0.1:${proxy.opsPort}`]), {
    code: 1,
    out: /no refusal/,
  });
  t.equal(proxy.bugs(), 0);
});
