/** cli: the built program, as a user or an orchestrator runs it. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import { dirname, join } from 'node:path';
import t from 'tap';
import { freePort } from '../src/embedded.ts';
import { OCCUPY } from './fixtures/raw.ts';
import { connect, temporaryFile, until, withPostgres } from './fixtures/stack.ts';

const program = 'dist/cli.js';
const run = (...args: string[]) =>
  spawnSync(process.execPath, [program, ...args], { encoding: 'utf8', timeout: 20_000 });

/** Starts the program and waits for a line with `text`; gives what it printed so far on demand. */
async function start(args: string[], text: string): Promise<{ child: ChildProcess; output: () => string }> {
  const child = spawn(process.execPath, [program, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
  let output = '';
  for (const stream of [child.stdout!, child.stderr!]) stream.on('data', (chunk: Buffer) => (output += chunk));
  await until(() => output.includes(text) || child.exitCode !== null, `"${text}" in the output`, 60_000);
  if (!output.includes(text)) throw new Error(`it ended: ${output}`);
  return { child, output: () => output };
}

async function ended(child: ChildProcess): Promise<number | null> {
  if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
  return child.exitCode;
}

/** Processes of the whole machine whose parent is, or whose command line names, `text`. */
function commandLines(): string[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .flatMap((pid) => {
      try {
        return [readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ')];
      } catch {
        return [];
      }
    });
}

t.test('serve without a configuration exits with 2 and says what to do', async (t) => {
  for (const args of [[], ['serve']]) {
    const { status, stderr } = run(...args);
    t.equal(status, 2);
    t.match(stderr, /no configuration[\s\S]*--config[\s\S]*--embedded/);
  }
  t.equal(run('serve', '--nonsense').status, 2);
});

t.test('check tells mistakes, and exits with 0 or 1', async (t) => {
  t.match(run('check', 'config.example.yaml'), { status: 0, stdout: /config\.example\.yaml: ok/ });
  const bad = temporaryFile('bad.yaml', 'listen: { port: x }\n');
  t.teardown(bad.remove);
  const { status, stdout } = run('check', bad.path);
  t.equal(status, 1);
  t.match(stdout, /bad\.yaml:1:11: listen\.port: /);
  t.match(JSON.parse(run('check', '--json', bad.path).stdout), {
    ok: false,
    problems: [/listen\.port/, /auth/, /databases/],
  });
  const doubtful = temporaryFile(
    'doubtful.yaml',
    "auth: { method: scram-sha-256, users: users.txt }\nadmission: { mode: enforce }\ndatabases: { app: { hosts: ['127.0.0.1:1'] } }\n",
  );
  t.teardown(doubtful.remove);
  t.match(
    run('check', doubtful.path).stdout,
    /: ok\n {2}note: admission\.mode is enforce, but [\s\S]*note: auth\.users: there is no /,
  );
  writeFileSync(join(dirname(doubtful.path), 'users.txt'), '"app" "secret"\n');
  t.match(run('check', doubtful.path).stdout, /note: nobody of auth\.admins \(postgres\) is in auth\.users/);
  t.match(run('check', '/nonexistent.yaml'), { status: 1, stdout: /cannot be read/ });
});

t.test('schema prints the JSON Schema', async (t) => {
  t.match(JSON.parse(run('schema').stdout), { type: 'object', properties: { listen: {}, databases: {} } });
});

t.test('serve --embedded serves, and Ctrl-C leaves no process behind', async (t) => {
  const port = await freePort();
  const { child, output } = await start(['serve', '--embedded', '--port', String(port), '--ops-port', '0'], 'Ready');
  t.match(output(), new RegExp(`psql "host=127.0.0.1 port=${port} user=postgres dbname=postgres"`));
  const client = await connect(port);
  t.same((await client.query('SELECT 1 AS one')).rows, [{ one: 1 }]);
  const { rows } = await client.query<{ directory: string }>(`SELECT current_setting('data_directory') AS directory`);
  child.kill('SIGINT');
  t.equal(await ended(child), 0);
  t.same(
    commandLines().filter((line) => line.includes(rows[0]!.directory)),
    [],
  );
});

t.test('a taken port is named', async (t) => {
  const blocker = net.createServer().listen(0, '127.0.0.1');
  await once(blocker, 'listening');
  t.teardown(() => blocker.close());
  const { port } = blocker.address() as net.AddressInfo;
  const file = temporaryFile(
    'c.yaml',
    JSON.stringify({
      listen: { port },
      ops: { port: 0 },
      auth: { method: 'trust' },
      databases: { '*': { hosts: ['127.0.0.1:1'] } },
    }),
  );
  t.teardown(file.remove);
  const { status, stderr } = run('serve', '--config', file.path);
  t.equal(status, 1);
  t.match(stderr, new RegExp(`port ${port} .* is taken`));
});

t.test('TERM lets a transaction finish, HUP reloads or keeps the old configuration', async (t) => {
  const postgres = await withPostgres();
  t.teardown(() => postgres.stop());
  const port = await freePort();
  const config = (clientsMax: unknown) =>
    JSON.stringify({
      listen: { port, clientsMax },
      ops: { port: 0 },
      auth: { method: 'trust' },
      databases: { '*': { hosts: [`127.0.0.1:${postgres.port}`], tls: { mode: 'disable' } } },
    });
  const file = temporaryFile('c.yaml', config(10));
  t.teardown(file.remove);
  const { child, output } = await start(['serve', '--config', file.path], 'listening');
  writeFileSync(file.path, config('nonsense'));
  child.kill('SIGHUP');
  await until(() => output().includes('not reloaded'), 'the refusal in the log');
  writeFileSync(file.path, config(1));
  child.kill('SIGHUP');
  await until(() => output().includes('configuration reloaded'), 'the reload in the log');
  const client = await connect(port);
  await t.rejects(connect(port), { code: '53300' }, 'the new limit is in force');
  await client.query(OCCUPY);
  child.kill('SIGTERM');
  await until(() => output().includes('draining'), 'draining in the log');
  t.same((await client.query('SELECT 2 AS two')).rows, [{ two: 2 }]);
  await client.query('COMMIT');
  t.equal(await ended(child), 0);
});

t.test('status and switch ask a running pgweir, and say so when there is none', async (t) => {
  const postgres = await withPostgres();
  t.teardown(() => postgres.stop());
  const [port, opsPort] = [await freePort(), await freePort()];
  const file = temporaryFile(
    'c.yaml',
    JSON.stringify({
      listen: { port },
      ops: { port: opsPort },
      auth: { method: 'trust' },
      classes: [{ name: 'batch', match: [{ application: 'batch' }] }],
      databases: { '*': { hosts: [`127.0.0.1:${postgres.port}`], tls: { mode: 'disable' } } },
    }),
  );
  t.teardown(file.remove);
  const to = ['--config', file.path];
  t.match(run('status', ...to), { status: 1, stderr: /does not answer .*: is pgweir running/ });
  const { child } = await start(['serve', ...to], 'listening');
  const client = await connect(port, { application_name: 'batch' });
  await client.query('SELECT 7');
  t.match(run('status', ...to), { status: 0, stdout: /ready; admission observe[\s\S]*batch +normal/ });
  t.match(JSON.parse(run('status', '--json', ...to).stdout), { isReady: true, clients: { now: 1 } });
  t.match(run('switch', 'set', 'batch', 'off', '--dry-run', ...to), {
    status: 0,
    stdout: /batch: 100% of the requests and 100% of the servers’ time in the last minute\nnot set/,
  });
  t.match(run('switch', 'set', 'batch', 'off', '--for', '10m', '--because', 'a test', ...to), {
    status: 0,
    stdout: /set to off for 10m; it will be forgotten/,
  });
  await t.rejects(client.query('SELECT 7'), { code: '53000' });
  t.match(run('switch', 'list', ...to), { status: 0, stdout: /batch +batch +off +0% .* postgres +a test/ });
  t.match(run('switch', 'set', 'nothing', 'off', ...to), { status: 1, stderr: /there is no switch and no class/ });
  t.match(run('switch', 'set', 'nothing', 'off', '--dry-run', ...to), { status: 1, stderr: /there is no switch/ });
  t.match(run('explain', 'abc', ...to), { status: 1, stderr: /the id is a number/ });
  t.match(run('switch', 'clear', 'batch', ...to), { status: 0 });
  t.match(run('switch', 'passthrough', 'on', ...to), { status: 0 });
  t.same((await client.query('SELECT 7 AS n')).rows, [{ n: 7 }], 'passthrough lets all pass');
  child.kill('SIGINT');
  await ended(child);
});

t.test('a second TERM ends at once', async (t) => {
  const postgres = await withPostgres();
  t.teardown(() => postgres.stop());
  const port = await freePort();
  const file = temporaryFile(
    'c.yaml',
    JSON.stringify({
      listen: { port },
      ops: { port: 0 },
      auth: { method: 'trust' },
      databases: { '*': { hosts: [`127.0.0.1:${postgres.port}`], tls: { mode: 'disable' } } },
    }),
  );
  t.teardown(file.remove);
  const { child, output } = await start(['serve', '--config', file.path], 'listening');
  const client = await connect(port);
  await client.query(OCCUPY);
  child.kill('SIGTERM');
  await until(() => output().includes('draining'), 'draining in the log');
  child.kill('SIGTERM');
  t.equal(await ended(child), 0);
});
