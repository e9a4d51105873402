/** What people and their tools see of a running proxy: events, the live feed, the terminal, and Prometheus with the dashboard for Grafana. */
import { spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { freePort } from '../../src/embedded.ts';
import { Bypass } from '../../src/ops/bypass.ts';
import type { Happening } from '../../src/ops/events.ts';
import { histograms, metrics } from '../../src/ops/metrics.ts';
import type { Status } from '../../src/ops/status.ts';
import { cleanEnvironment, findProgram, skip } from '../fixtures/drivers/programs.ts';
import { open, send } from '../fixtures/raw.ts';
import { connect, startProxy, temporaryFile, until, withPostgres } from '../fixtures/stack.ts';

const root = join(import.meta.dirname, '../..');
const postgres = await withPostgres();
t.after(() => postgres.stop());

t.test('what is told by POST /events is at /events.json and in SHOW EVENTS; who may not is not heard', async (t) => {
  const proxy = await startProxy(postgres.port);
  t.after(() => proxy.stop());
  const at = `http://127.0.0.1:${proxy.opsPort}`;
  const post = (body: unknown, headers: Record<string, string> = {}) =>
    fetch(`${at}/events`, {
      method: 'POST',
      headers: { 'content-type': 'application/json', ...headers },
      body: JSON.stringify(body),
    });
  const login = { authorization: `Basic ${btoa('postgres:')}` };
  t.equal((await post({ what: 'x' })).status, 401);
  t.equal((await post({ what: '' }, login)).status, 400);
  t.equal((await post({ what: 'x' }, { ...login, origin: 'http://elsewhere.example' })).status, 403);
  t.equal((await post({ what: 'x' }, { ...login, 'content-type': 'text/plain' })).status, 415);
  t.equal((await post({ what: 'deployed 1.2', subject: 'billing' }, login)).status, 200);
  const events = (await (await fetch(`${at}/events.json`)).json()) as Happening[];
  t.match(events, [
    { id: 1, kind: 'start', what: /^pgweir .* with the configuration [0-9a-f]{12}$/ },
    { id: 2, kind: 'note', subject: 'billing', what: 'deployed 1.2', actor: 'postgres' },
  ]);
  t.same(await (await fetch(`${at}/events.json?since=2`)).json(), []);
  t.same(proxy.app.reload(), []);
  const console = await open(t, proxy.port, { database: 'pgweir' });
  const rows = await console.rows('SHOW EVENTS');
  t.match(rows.at(-1)!.slice(2, 5), ['reload', '', /^[0-9a-f]{12}: nothing has changed$/]);
  await console.rows('PAUSE');
  await until(async () => (await console.rows('SHOW EVENTS')).some((row) => row.includes('off → on')), 'the pause');
  await console.rows('RESUME');
});

t.test('/live tells the status again and again, to so many at most, and to who has the token', async (t) => {
  const token = temporaryFile('token', 'sesame\n');
  t.after(token.remove);
  const proxy = await startProxy(postgres.port, { top: { ops: { port: 0, tokenFile: token.path } } });
  t.after(() => proxy.stop());
  const at = `http://127.0.0.1:${proxy.opsPort}`;
  t.equal((await fetch(`${at}/live`)).status, 401);
  t.equal((await fetch(`${at}/history.json`)).status, 401);
  t.equal((await fetch(`${at}/`)).status, 200, 'the page says nothing by itself');
  const headers = { authorization: 'Bearer sesame' };
  const stops = new AbortController();
  const feeds = await Promise.all(
    Array.from({ length: 20 }, () => fetch(`${at}/live`, { headers, signal: stops.signal })),
  );
  for (const { status } of feeds) t.equal(status, 200);
  t.equal((await fetch(`${at}/live`, { headers })).status, 503);
  const reader = feeds[0]!.body!.pipeThrough(new TextDecoderStream()).getReader();
  let text = '';
  while (text.split('\n\n').length < 3) text += (await reader.read()).value;
  const [first, second] = text.split('\n\n').map((each) => each.slice('data: '.length));
  t.match(JSON.parse(first!) as Status, { isReady: true, verdict: { level: /^(GREEN|AMBER)$/ } });
  t.ok((JSON.parse(second!) as Status).uptime >= 1);
  stops.abort();
  await until(async () => {
    const again = await fetch(`${at}/live`, { headers });
    await again.body!.cancel();
    return again.status === 200;
  }, 'room for another one');
  t.equal(proxy.bugs(), 0);
});

t.test('pgweir top in a terminal, and without one', async (t) => {
  const proxy = await startProxy(postgres.port);
  t.after(() => proxy.stop());
  const client = await open(t, proxy.port);
  await client.ask(send.query('SELECT 1'));
  const words = ['dist/cli.js', 'top', '--url', `http://127.0.0.1:${proxy.opsPort}`];
  const once = await new Promise<string>((done) => {
    let text = '';
    const child = spawn(process.execPath, words, { cwd: root, stdio: ['ignore', 'pipe', 'inherit'] });
    child.stdout.setEncoding('utf8').on('data', (chunk: string) => (text += chunk));
    child.on('close', () => done(text));
  });
  t.match(once, /^GREEN: [\s\S]*HOST[\s\S]*POOL[\s\S]*postgres\/postgres/);
  t.notMatch(once, '\u001b', 'no colours where there is no terminal');
  const tmux = findProgram('tmux');
  if (tmux === null) return skip(t, 'tmux', 'tmux');
  const run = (...args: string[]) =>
    spawnSync(tmux, ['-L', `pgweir-${process.pid}`, ...args], {
      cwd: root,
      encoding: 'utf8',
      env: cleanEnvironment({ TERM: 'xterm-256color' }),
    });
  const command = [process.execPath, ...words].join(' ');
  run('-f', '/dev/null', 'new-session', '-d', '-x', '100', '-y', '24', command);
  t.after(() => {
    run('kill-server');
  });
  const screen = () => run('capture-pane', '-p').stdout;
  // Each look stops this process, in which the proxy is.
  const shows = (condition: () => boolean) => sleep(100).then(condition);
  await until(() => shows(() => /^GREEN/.test(screen())), 'the screen');
  t.match(screen(), /HOST +role +at work/);
  t.ok(screen().trimEnd().split('\n').length <= 24);
  t.match(run('capture-pane', '-p', '-e').stdout, '\u001b[', 'colours');
  const before = screen();
  await until(() => shows(() => screen() !== before), 'another second');
});

t.test('who works past the proxy is told by name, and our own servers are not', async (t) => {
  const proxy = await startProxy(postgres.port, { database: { control: { user: 'postgres' } } });
  t.after(() => proxy.stop());
  const ours = await open(t, proxy.port, { application_name: 'ours' });
  await ours.ask(send.query('SELECT 1'));
  const strangers = [
    await connect(postgres.port, { application_name: 'nightly' }),
    await connect(postgres.port, { application_name: 'nightly' }),
    await connect(postgres.port),
  ];
  await strangers[0]!.query('BEGIN');
  const admin = await connect(postgres.port, { application_name: 'pgweir control' });
  t.after(async () => {
    for (const each of [...strangers, admin]) await each.end();
  });
  const host = proxy.app.snapshot().hosts[0]!.address;
  const pids = proxy.app.snapshot().pools.flatMap((pool) => pool.servers().map(({ server }) => server.pid));
  const query = async (sql: string) => (await admin.query<(string | null)[]>({ text: sql, rowMode: 'array' })).rows;
  const bypass = new Bypass();
  await bypass.look([{ host, query, pids }]);
  t.same(bypass.strangers, [
    { host, application: 'nightly', user: 'postgres', backends: 2, busy: 1 },
    { host, application: '(no name)', user: 'postgres', backends: 1, busy: 0 },
  ]);
  await bypass.look([{ host, query: () => Promise.reject(new Error('gone')), pids }]);
  t.equal(bypass.problem, `${host}: gone`);
  const console = await open(t, proxy.port, { database: 'pgweir' });
  // The proxy's own look is every quarter of a minute.
  await until(async () => (await console.rows('SHOW BYPASS')).length === 2, 'SHOW BYPASS', 30_000);
  t.match((await console.rows('SHOW BYPASS'))[0], [host, 'nightly', 'postgres', '2', '1']);
  const text = await (await fetch(`http://127.0.0.1:${proxy.opsPort}/metrics`)).text();
  t.match(text, `pgweir_bypass_backends{host="${host}",what="all"} 3`);
});

interface Panel {
  title: string;
  type: string;
  datasource?: { uid: string };
  targets?: { expr: string }[];
  panels?: Panel[];
}
interface Board {
  schemaVersion: number;
  panels: Panel[];
  templating: { list: { name: string; type: string; query: unknown }[] };
}

t.test('the dashboard for Grafana speaks of metrics that there are, by a variable datasource', async (t) => {
  const board = JSON.parse(readFileSync(join(root, 'deploy/grafana.json'), 'utf8')) as Board;
  const names = new Set([...metrics, ...histograms].map(({ name }) => name));
  t.ok(board.schemaVersion >= 36);
  t.ok(board.templating.list.some(({ name, type }) => name === 'datasource' && type === 'datasource'));
  const panels = board.panels.filter(({ type }) => type !== 'row');
  t.ok(panels.length >= 15);
  for (const { title, datasource, targets = [] } of panels) {
    t.equal(datasource?.uid, '$datasource', title);
    t.ok(targets.length > 0, title);
    for (const { expr } of targets)
      for (const name of expr.match(/pgweir_\w+/g) ?? [])
        t.ok(names.has(name.replace(/_(bucket|sum|count)$/, '')), `${title}: ${name}`);
  }
});

t.test('however many users there are, series are less than 2,000, and nothing is left out of sums', async (t) => {
  const admin = await connect(postgres.port);
  for (let n = 0; n < 60; n++) await admin.query(`CREATE ROLE user_${n} LOGIN`);
  await admin.end();
  const proxy = await startProxy(postgres.port, { top: { admission: { mode: 'enforce' } } });
  t.after(() => proxy.stop());
  for (let n = 0; n < 60; n++) {
    const client = await connect(proxy.port, { user: `user_${n}` });
    await client.query('SELECT 1');
    await client.end();
  }
  const lines = (await (await fetch(`http://127.0.0.1:${proxy.opsPort}/metrics`)).text())
    .split('\n')
    .filter((line) => line !== '' && !line.startsWith('#'));
  t.ok(lines.length < 2_000, `${lines.length} series`);
  t.equal(new Set(lines.map((line) => line.split(' ')[0])).size, lines.length, 'no series twice');
  const sumOf = (start: string) =>
    lines.filter((line) => line.startsWith(start)).reduce((sum, line) => sum + Number(line.split(' ').at(-1)), 0);
  t.equal(sumOf('pgweir_queries_total{'), 60);
  t.equal(sumOf('pgweir_wait_seconds_count{'), 60);
  t.match(lines.join('\n'), 'pgweir_queries_total{database="(others)",user="(others)"} 48');
});

t.test('a real Prometheus scrapes it, finds nothing wrong, and answers every panel and every rule', async (t) => {
  const [prometheus, promtool] = [findProgram('prometheus'), findProgram('promtool')];
  if (prometheus === null || promtool === null) return skip(t, 'Prometheus', 'prometheus');
  const proxy = await startProxy(postgres.port);
  const client = await open(t, proxy.port);
  const text = await (await fetch(`http://127.0.0.1:${proxy.opsPort}/metrics`)).text();
  const checked = spawnSync(promtool, ['check', 'metrics'], { input: text, encoding: 'utf8' });
  t.equal(checked.status, 0, `${checked.stdout}${checked.stderr}`);
  t.ok(text.split('\n').filter((line) => line !== '' && !line.startsWith('#')).length < 2_000);
  const folder = mkdtempSync(join(tmpdir(), 'pgweir-prometheus-'));
  const config = join(folder, 'prometheus.yml');
  writeFileSync(
    config,
    `scrape_configs: [{ job_name: pgweir, scrape_interval: 1s, static_configs: [{ targets: ['127.0.0.1:${proxy.opsPort}'] }] }]\nrule_files: ['${join(root, 'deploy/alerts.yml')}']\n`,
  );
  const port = await freePort();
  const child = spawn(
    prometheus,
    [
      `--config.file=${config}`,
      `--storage.tsdb.path=${join(folder, 'data')}`,
      `--web.listen-address=127.0.0.1:${port}`,
    ],
    { stdio: 'ignore' },
  );
  t.after(async () => {
    child.kill('SIGTERM');
    await new Promise((done) => child.on('close', done));
    await proxy.stop();
    rmSync(folder, { recursive: true, force: true });
  });
  const ask = async (expr: string) => {
    const url = `http://127.0.0.1:${port}/api/v1/query?query=${encodeURIComponent(expr)}`;
    return (await (await fetch(url)).json()) as { status: string; error?: string; data: { result: unknown[] } };
  };
  await until(
    async () => (await ask('count_over_time(pgweir_ready[1m]) > 2').catch(() => null))?.data.result.length === 1,
    'scrapes',
    30_000,
  );
  for (let n = 0; n < 5; n++) {
    await client.ask(send.query('SELECT 1'));
    await sleep(200);
  }
  const board = JSON.parse(readFileSync(join(root, 'deploy/grafana.json'), 'utf8')) as Board;
  let answered = 0;
  for (const { title, targets = [] } of board.panels)
    for (const { expr } of targets) {
      const plain = expr.replaceAll('$__rate_interval', '30s').replaceAll('$instance', '.*');
      const { status, error, data } = await ask(plain);
      t.equal(status, 'success', `${title}: ${plain}: ${error ?? ''}`);
      if (data.result.length > 0) answered++;
    }
  t.ok(answered >= 10, `${answered} panels have something to show, of a proxy without ledgers and caches`);
  const rules = (await (await fetch(`http://127.0.0.1:${port}/api/v1/rules`)).json()) as {
    data: { groups: { rules: { name: string; health: string; lastError?: string }[] }[] };
  };
  const all = rules.data.groups.flatMap((group) => group.rules);
  t.ok(all.length > 20);
  for (const { name, health, lastError } of all) t.not(health, 'err', `${name}: ${lastError ?? ''}`);
});
