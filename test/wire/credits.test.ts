/** Ledgers end to end: a metric is read, classes are held back by it, and people see why. The metric is a fake on loopback. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { Remote, statusText } from '../../src/ops/remote.ts';
import { fakeMetric } from '../fixtures/metric.ts';
import { open, send, sqlstates, types } from '../fixtures/raw.ts';
import { startProxy, until, withPostgres } from '../fixtures/stack.ts';

const { query: Q } = send;
const postgres = await withPostgres();
t.after(() => postgres.stop());

const cpu = { unit: 'cpu-credits', capacity: 576, earnPerHour: 24, vcpus: 2, mode: 'enforce' };
const classes = [
  { name: 'api', priority: 'critical', match: [{ application: 'api' }] },
  { name: 'batch', priority: 'batch', match: [{ application: 'batch' }], queue: { max: 10, waitMax: '300ms' } },
];

async function start(t: Test, ledger: object, top: object = {}) {
  const proxy = await startProxy(postgres.port, {
    database: { ledgers: ['cpu'] },
    top: { admission: { mode: 'enforce' }, classes, ledgers: { cpu: { ...cpu, ...ledger } }, ...top },
  });
  t.after(() => proxy.stop());
  const credits = [...proxy.app.snapshot().credits.values()][0]!;
  return { proxy, credits };
}

t.test('while there is something to spend all run; when only the reserve is left, critical work does', async (t) => {
  const { state, metric } = await fakeMetric(t);
  const { proxy, credits } = await start(t, { metric });
  const [api, batch] = [
    await open(t, proxy.port, { application_name: 'api' }),
    await open(t, proxy.port, { application_name: 'batch' }),
  ];
  await until(() => credits.ledgers[0]!.estimate !== null && credits.ledgers[0]!.missing === '', 'a sample');
  t.equal(types(await batch.ask(Q('SELECT 7'))), 'TDCZ');
  state.balance = 0;
  await until(() => credits.zone === 'BLACK', 'the drop to be believed');
  // What was granted before is used up; then nothing is left.
  credits.charge(2, 60_000);
  const refused = await batch.ask(Q('SELECT 7'));
  t.same(sqlstates(refused), ['53000']);
  t.match(refused[0]!.body.toString(), 'class=batch reason=credits zone=BLACK');
  for (let n = 0; n < 5; n++) t.equal(types(await api.ask(Q('SELECT 7'))), 'TDCZ', 'critical work goes on');
  const console = await open(t, proxy.port, { database: 'pgweir' });
  const [row] = await console.rows('SHOW LEDGERS');
  t.same(row!.slice(1, 5), ['cpu', 'enforce', 'BLACK', row![4]]);
  t.ok(Number(row![4]) < 1);
  const text = await (await fetch(`http://127.0.0.1:${proxy.opsPort}/metrics`)).text();
  t.match(text, /pgweir_credit_zone\{host="[^"]+",ledger="cpu",zone="BLACK"\} 1/);
  t.match(text, /pgweir_credit_samples_total\{host="[^"]+",ledger="cpu",outcome="quarantined"\} [1-9]/);
  t.match(text, /pgweir_class_shed_total\{host="[^"]+",class="batch",reason="credits"\} 1/);
  const to = new Remote({ url: `http://127.0.0.1:${proxy.opsPort}`, tokenFile: null, user: 'postgres' }, '');
  t.match(statusText(await to.status()), /ledger +host +mode +zone[\s\S]*cpu +\S+ +enforce +BLACK/);
  t.equal(proxy.bugs(), 0);
});

t.test('a metric that is down from the start: baseline, and critical traffic is unharmed', async (t) => {
  const { state, metric } = await fakeMetric(t);
  state.balance = null;
  const { proxy, credits } = await start(t, { metric });
  await until(() => [...proxy.app.snapshot().sources.values()].some(({ failures }) => failures > 2), 'failures');
  t.equal(credits.ledgers[0]!.missing, 'never');
  t.ok(credits.rate > 0 && credits.rate < 0.4, `${credits.rate}`);
  const api = await open(t, proxy.port, { application_name: 'api' });
  for (let n = 0; n < 20; n++) t.equal(types(await api.ask(Q('SELECT 7'))), 'TDCZ');
  const text = await (await fetch(`http://127.0.0.1:${proxy.opsPort}/metrics`)).text();
  t.match(text, /pgweir_credit_missing\{host="[^"]+",ledger="cpu"\} 1/);
  t.match(proxy.log.join(''), /a metric cannot be read/);
});

t.test('warn tells clients, observe does nothing, and SQL is a source', async (t) => {
  const { state, metric } = await fakeMetric(t);
  state.balance = 20;
  for (const [mode, expected] of [
    ['warn', 'NTDCZ'],
    ['observe', 'TDCZ'],
  ] as const) {
    const { proxy, credits } = await start(t, { metric, mode });
    const batch = await open(t, proxy.port, { application_name: 'batch' });
    await until(() => credits.ledgers[0]!.estimate !== null, 'a sample');
    await until(() => credits.ledgers[0]!.zone === 'BLACK', 'the zone');
    credits.charge(2, 60_000);
    t.equal(types(await batch.ask(Q('SELECT 7'))), expected, mode);
  }
  const sql = { source: 'sql', database: 'app', query: 'SELECT 321.5, now()', every: '100ms' };
  const proxy = await startProxy(postgres.port, {
    top: {
      ledgers: { cpu: { ...cpu, metric: sql, mode: 'observe' } },
      databases: {
        app: {
          hosts: [`127.0.0.1:${postgres.port}`],
          dbname: 'postgres',
          tls: { mode: 'disable' },
          control: { user: 'postgres' },
          ledgers: ['cpu'],
        },
      },
    },
  });
  t.after(() => proxy.stop());
  const credits = [...proxy.app.snapshot().credits.values()][0]!;
  await until(() => credits.ledgers[0]!.estimate !== null, 'a row');
  t.ok(Math.abs(credits.ledgers[0]!.estimate!.balance - 321.5) < 2);
});

t.test('what was learned is kept over a restart; a reload with the same ledgers keeps what is known', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'pgweir-test-'));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  const { metric } = await fakeMetric(t);
  const { proxy, credits } = await start(t, { metric }, { state: { dir } });
  await until(() => credits.ledgers[0]!.estimate !== null, 'a sample');
  t.same(proxy.app.reload(), []);
  t.equal([...proxy.app.snapshot().credits.values()][0], credits);
  await proxy.stop();
  const saved = JSON.parse(readFileSync(join(dir, 'ledgers.json'), 'utf8'));
  t.match(saved, { [`127.0.0.1:${postgres.port}`]: { cpu: { kappa: Number, background: Number } } });
  const next = await start(t, { metric }, { state: { dir } });
  t.ok(next.credits.ledgers[0]!.learned.kappa > 0);
});
