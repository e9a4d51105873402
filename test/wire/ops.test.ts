/** Switches over HTTP and by match, who may set them, and what is kept over a restart. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { Remote, statusText, switchTable } from '../../src/ops/remote.ts';
import { open, send, sqlstates, types } from '../fixtures/raw.ts';
import { startProxy, temporaryFile, until, withPostgres } from '../fixtures/stack.ts';

const { query: Q } = send;
const postgres = await withPostgres();
t.after(() => postgres.stop());

const classes = [{ name: 'batch', priority: 'batch', match: [{ application: 'batch' }] }];

async function start(t: Test, top: object = {}) {
  const proxy = await startProxy(postgres.port, { top: { classes, ...top } });
  t.after(() => proxy.stop());
  return proxy;
}

/** Sends a request with exactly these headers. */
function post(port: number, name: string, headers: Record<string, string>, body: unknown = { state: 'off' }) {
  return new Promise<{ status: number; body: string }>((resolve, reject) => {
    const request = http.request({
      host: '127.0.0.1',
      port,
      path: `/switches/${name}`,
      method: 'POST',
      headers: { 'content-type': 'application/json', ...headers },
    });
    request.on('error', reject).on('response', (response) => {
      let text = '';
      response
        .on('data', (chunk: Buffer) => (text += chunk))
        .on('end', () => resolve({ status: response.statusCode!, body: text }));
    });
    request.end(JSON.stringify(body));
  });
}

const basic = (user: string, password: string) => ({
  authorization: `Basic ${Buffer.from(`${user}:${password}`).toString('base64')}`,
});

t.test('a switch is set over HTTP by the token or an admin, and by nobody else', async (t) => {
  const users = temporaryFile('users.txt', '"postgres" "right"\n"other" "right"\n');
  const token = temporaryFile('token', 'sesame\n');
  t.after(users.remove);
  t.after(token.remove);
  const proxy = await start(t, {
    auth: { method: 'scram-sha-256', users: users.path },
    ops: { port: 0, tokenFile: token.path },
  });
  const statusOf = async (headers: Record<string, string>) => (await post(proxy.opsPort, 'batch', headers)).status;
  t.equal(await statusOf({}), 401);
  t.equal(await statusOf(basic('postgres', 'wrong')), 401);
  t.equal(await statusOf(basic('other', 'right')), 401, 'no admin');
  t.equal(await statusOf(basic('nobody', '')), 401);
  t.equal(await statusOf({ authorization: 'Bearer sesam' }), 401);
  t.equal(await statusOf(basic('postgres', 'right')), 200);
  t.equal(await statusOf({ authorization: 'Bearer sesame' }), 200);
  t.equal((await fetch(`http://127.0.0.1:${proxy.opsPort}/status.json`)).status, 401);
});

t.test('who guesses passwords over HTTP is refused for a while', async (t) => {
  const users = temporaryFile('users.txt', '"postgres" "right"\n"second" "right"\n');
  t.after(users.remove);
  const failures = { max: 3, window: '1m' };
  const proxy = await start(t, {
    auth: { method: 'scram-sha-256', users: users.path, admins: ['postgres', 'second'], failures },
  });
  const statusOf = async (user: string, password: string) =>
    (await post(proxy.opsPort, 'batch', basic(user, password))).status;
  t.equal(await statusOf('second', 'right'), 200);
  for (let lap = 0; lap < 3; lap++) t.equal(await statusOf('postgres', 'guess'), 401);
  t.equal(await statusOf('postgres', 'right'), 429, 'whatever it is');
  for (let lap = 0; lap < 4; lap++) t.equal(await statusOf('second', 'guess'), 401, 'who was let in from there before');
  t.equal(await statusOf('second', 'right'), 200);
});

t.test('nor can it read, where no token is asked for', async (t) => {
  const proxy = await start(t);
  const statusOf = async (path: string, host: string) => {
    const response = await new Promise<http.IncomingMessage>((resolve, reject) =>
      http.get({ host: '127.0.0.1', port: proxy.opsPort, path, headers: { host } }, resolve).on('error', reject),
    );
    response.destroy();
    return response.statusCode;
  };
  for (const path of ['/status.json', '/metrics', '/live', '/coupling.json', '/refusals/1'])
    t.equal(await statusOf(path, 'evil.example'), 403, path);
  t.equal(await statusOf('/metrics', `localhost:${proxy.opsPort}`), 200);
  t.equal(await statusOf('/livez', 'evil.example'), 200, 'orchestrators ask by any name');
  const open = await start(t, { ops: { host: '0.0.0.0', port: 0 } });
  t.equal((await fetch(`http://127.0.0.1:${open.opsPort}/metrics`, { headers: { host: 'pgweir' } })).status, 200);
});

t.test('a token that cannot be read is told at the start, at a reload, and to who asks', async (t) => {
  await t.rejects(
    start(t, { ops: { port: 0, tokenFile: '/nowhere/token' } }),
    /ops.tokenFile cannot be read: .*ENOENT/,
  );
  const token = temporaryFile('token', 'sesame\n');
  const proxy = await start(t, { auth: { method: 'trust' }, ops: { host: '0.0.0.0', port: 0, tokenFile: token.path } });
  const bearer = { authorization: 'Bearer sesame' };
  t.equal((await post(proxy.opsPort, 'batch', bearer)).status, 200, 'whatever the method is');
  token.remove();
  t.match(proxy.app.reload(), [/ops.tokenFile cannot be read/]);
  const response = await fetch(`http://127.0.0.1:${proxy.opsPort}/metrics`, { headers: bearer });
  t.match([response.status, await response.text()], [500, /ops.tokenFile cannot be read/]);
  t.match(proxy.log.join('\n'), /cannot be answered/);
});

t.test('a browser that was led here cannot set one', async (t) => {
  const proxy = await start(t);
  const statusOf = async (headers: Record<string, string>) =>
    (await post(proxy.opsPort, 'batch', { ...basic('postgres', ''), ...headers })).status;
  t.equal(await statusOf({}), 200, 'with trust an admin’s name will do on loopback');
  t.equal(await statusOf({ host: 'localhost:1234' }), 200);
  t.equal(await statusOf({ host: 'evil.example' }), 403);
  t.equal(await statusOf({ origin: 'http://evil.example' }), 403);
  t.equal(await statusOf({ origin: `http://127.0.0.1:${proxy.opsPort}` }), 200);
  t.equal(await statusOf({ origin: 'null' }), 403);
  t.equal(await statusOf({ 'sec-fetch-site': 'cross-site' }), 403);
  t.equal(await statusOf({ 'content-type': 'text/plain' }), 415);
  t.equal((await fetch(`http://127.0.0.1:${proxy.opsPort}/switches/batch`)).status, 405);
  const open = await start(t, { ops: { host: '0.0.0.0', port: 0 } });
  const refused = await post(open.opsPort, 'batch', basic('postgres', ''));
  t.same([refused.status, /trust/.test(refused.body)], [403, true]);
});

t.test('it says what it touches, refuses what makes no sense, and takes effect at once', async (t) => {
  const proxy = await start(t);
  const client = await open(t, proxy.port, { application_name: 'batch' });
  const other = await open(t, proxy.port);
  for (let lap = 0; lap < 3; lap++) await client.rows('SELECT 7');
  await other.rows('SELECT 7');
  const to = new Remote({ url: `http://127.0.0.1:${proxy.opsPort}/`, tokenFile: null, user: 'postgres' }, '');
  t.match(await to.setSwitch('batch', { state: 'off', dryRun: true }), { isDone: false, touched: { requests: 0.75 } });
  t.same(sqlstates(await client.ask(Q('SELECT 7'))), []);
  t.match(await to.setSwitch('batch', { state: 'off', for: '10m', reason: 'drowning' }), {
    isDone: true,
    warning: /state\.dir is not set/,
  });
  t.same(sqlstates(await client.ask(Q('SELECT 7'))), ['53000']);
  t.same(sqlstates(await other.ask(Q('SELECT 7'))), []);
  const status = await to.status();
  t.match(
    status.switches.find(({ name }) => name === 'batch'),
    { position: 'off', passes: 0, actor: 'postgres', reason: 'drowning' },
  );
  t.match(switchTable(status), /batch +batch +off +0% +[\d.]+% +[\d.]+% +20\S+Z +postgres +drowning/);
  t.match(statusText(status), /ready; admission observe[\s\S]*clients 2 of 5000[\s\S]*batch +batch .* switch 1/);
  await t.rejects(to.setSwitch('nothing', { state: 'off' }), /404: there is no switch and no class "nothing"/);
  await t.rejects(to.setSwitch('batch', { state: 'sideways' }), /400: expected/);
  await t.rejects(to.setSwitch('batch', { state: 'off', for: 'ever' }), /400: expected/);
  t.equal(
    (await post(proxy.opsPort, 'batch', basic('postgres', ''), { state: 'off', reason: 'x'.repeat(20_000) })).status,
    400,
  );
  await t.rejects(to.setSwitch('constructor', { state: 'off' }), /404/);
  await t.rejects(to.setSwitch('batch', { state: 'off', for: '99999999999h' }), /400: expected/);
  await t.rejects(to.setSwitch('passthrough', { state: 'on', for: '10m' }), /has no time limit/);
  await to.setSwitch('passthrough', { state: 'on' });
  t.same(sqlstates(await client.ask(Q('SELECT 7'))), []);
  t.match(switchTable(await to.status()), /passthrough is on/);
  const nowhere = new Remote({ url: 'http://127.0.0.1:1', tokenFile: null, user: 'postgres' }, '');
  await t.rejects(nowhere.status(), /does not answer .*: is pgweir running/);
});

t.test('a switch may be for requests of any class: off, held, and let go', async (t) => {
  const proxy = await start(t, {
    switches: {
      reports: { match: { tag: { feature: 'reports' } } },
      night: { match: { application: 'batch' }, state: 'off' },
    },
  });
  const console = await open(t, proxy.port, { database: 'pgweir' });
  const client = await open(t, proxy.port);
  const report = Q(`SELECT 7 /*feature='reports'*/`);
  t.equal(types(await client.ask(report)), 'TDCZ');
  const row = async (name: string) => (await console.rows('SHOW SWITCHES')).find(([each]) => each === name)!;
  t.same((await row('reports')).slice(0, 4), ['reports', null, 'on', '100%']);
  t.equal((await row('reports'))[7], '100%', 'all requests so far were reports');
  await console.ask(Q('SET SWITCH reports = off'));
  const refused = await client.ask(report);
  t.match(refused[0]!.body.toString(), 'class=normal/reports reason=switch');
  t.equal(types(await client.ask(Q('SELECT 7'))), 'TDCZ', 'others of its class are not touched');
  const batch = await open(t, proxy.port, { application_name: 'batch' });
  t.match((await batch.ask(Q('SELECT 7')))[0]!.body.toString(), 'class=batch/night reason=switch', 'as configured');
  await console.ask(Q('SET SWITCH reports = hold'));
  client.write(report);
  const gate = [...proxy.app.snapshot().gates.values()][0]!;
  await until(() => gate.lanes.some(({ queue }) => queue.size > 0), 'it to be held');
  await console.ask(Q('SET SWITCH reports = on'));
  t.equal(types(await client.until('Z')), 'TDCZ', 'who was held is let in');
});

t.test('what is normal for statements is known after a restart', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'pgweir-test-'));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  const top = { state: { dir }, limit: { mode: 'adaptive', min: 2, max: 8 } };
  const proxy = await start(t, top);
  const client = await open(t, proxy.port);
  for (let lap = 0; lap < 150; lap++) await client.rows(`SELECT ${lap}, pg_sleep(0.001)`);
  await proxy.stop();
  const file = join(dir, 'baselines.json');
  const saved = JSON.parse(readFileSync(file, 'utf8'))[`127.0.0.1:${postgres.port}`];
  t.equal(saved.length, 1);
  t.ok(Math.exp(saved[0][1]) >= 1 && Math.exp(saved[0][1]) < 50, `${Math.exp(saved[0][1])} ms`);
  const next = await start(t, top);
  const again = await open(t, next.port);
  await again.rows('SELECT 1000, pg_sleep(0.001)');
  await next.stop();
  t.ok(JSON.parse(readFileSync(file, 'utf8'))[`127.0.0.1:${postgres.port}`][0][2] >= 100);
  writeFileSync(file, '{"x": [[1, "two", 3]]}');
  const third = await start(t, top);
  t.match(third.log.join(''), /baselines\.json could not be read/);
});
