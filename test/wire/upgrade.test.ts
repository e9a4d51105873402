/**
 * Another process takes over while clients come, ask, and cancel: nobody is refused, nobody who is there is dropped, and cancel
 * requests that reach the new process find their way. The program that is built, as a process of its own; and sockets from systemd.
 */
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type pg from 'pg';
import t, { type Test } from 'tap';
import { cleanEnvironment } from '../fixtures/drivers/programs.ts';
import { connect, until, withPostgres } from '../fixtures/stack.ts';

const CLI = ['--import', 'tsx', join(import.meta.dirname, '../../src/cli.ts')];
const LOADS = 6;
const postgres = await withPostgres();
t.after(() => postgres.stop());

interface Started {
  port: number;
  opsPort: number;
  log: () => string;
  file: string;
}

/** Starts `pgweir serve` with a configuration of its own; all its processes are ended when `t` ends. */
async function serve(t: Test): Promise<Started> {
  const folder = mkdtempSync(join(tmpdir(), 'pgweir-upgrade-'));
  const file = join(folder, 'pgweir.yaml');
  const config = {
    listen: { port: 0, socketDir: folder },
    ops: { port: 0 },
    state: { dir: folder },
    auth: { method: 'trust', admins: ['postgres'] },
    databases: { postgres: { hosts: [`127.0.0.1:${postgres.port}`], tls: { mode: 'disable' } } },
  };
  writeFileSync(file, JSON.stringify(config));
  const child = spawn(process.execPath, [...CLI, 'serve', '--config', file], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: cleanEnvironment(),
  });
  let text = '';
  for (const stream of [child.stdout!, child.stderr!]) stream.on('data', (chunk: Buffer) => (text += chunk.toString()));
  t.teardown(async () => {
    for (const [, pid] of text.matchAll(/"pid":(\d+)/g)) end(Number(pid));
    end(child.pid!);
    await until(() => child.exitCode !== null || child.signalCode !== null, 'the process to end');
    rmSync(folder, { recursive: true, force: true });
  });
  await until(() => /"listening"/.test(text) || child.exitCode !== null, `the start: ${text}`, 30_000);
  const [, port, opsPort] = /"port":(\d+),"opsPort":(\d+)/.exec(text)!;
  return { port: Number(port), opsPort: Number(opsPort), log: () => text, file };
}

function end(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch {
    // It has ended.
  }
}

const upgrade = async (port: number): Promise<string> => {
  const console = await connect(port, { database: 'pgweir' });
  let notice = '';
  console.on('notice', ({ message }) => {
    notice = message ?? '';
  });
  try {
    await console.query('UPGRADE');
  } finally {
    await console.end();
  }
  return notice;
};

t.test(
  'an upgrade under load, twice: no connect fails, no client is dropped, cancels arrive',
  { timeout: 120_000 },
  async (t) => {
    const { port, opsPort, log } = await serve(t);
    const failures: unknown[] = [];
    let connects = 0;
    let isOver = false;
    const load = async () => {
      while (!isOver) {
        try {
          const client = await connect(port);
          await client.query('SELECT 1');
          await client.end();
          connects++;
        } catch (thrown) {
          failures.push(thrown);
        }
      }
    };
    const loads = Array.from({ length: LOADS }, load);
    const old = await connect(port);
    await old.query('CREATE TEMP TABLE mine AS SELECT 7 AS n');
    await old.query('BEGIN');
    t.match(await upgrade(port), /^process \d+ takes over/);
    const before = connects;
    await until(() => connects > before + 50, 'clients of the new process');
    t.same(
      (await old.query('SELECT n FROM mine')).rows,
      [{ n: 7 }],
      'a client of the old one goes on in its transaction',
    );
    await old.query('COMMIT');

    // The request reaches the new process; its client is the old one's.
    const cancel = async (client: pg.Client) => {
      const running = client.query('SELECT pg_sleep(30)').catch((thrown: { code: string }) => thrown.code);
      await sleep(300);
      const key = client as unknown as { processID: number; secretKey: number };
      const socket = net.connect(port, '127.0.0.1');
      const request = Buffer.alloc(16);
      for (const [at, value] of [16, 80877102, key.processID, key.secretKey].entries())
        request.writeInt32BE(value, 4 * at);
      socket.end(request);
      return running;
    };
    t.equal(await cancel(old), '57014', 'a cancel request is passed on');
    const second = await connect(port);
    t.equal(await cancel(second), '57014', 'one of the new process finds its client there');

    const [, firstPid] = /"pid":(\d+),"msg":"another process takes over"/.exec(log())!;
    t.match(await upgrade(port), /^process \d+ takes over/, 'the new process is upgraded in turn');
    t.equal(await cancel(old), '57014', 'a cancel request is passed on by two');
    t.same((await second.query('SELECT 1 AS one')).rows, [{ one: 1 }]);
    const status = await fetch(`http://127.0.0.1:${opsPort}/readyz`);
    t.equal(status.status, 200, 'the HTTP port is that of the newest');
    isOver = true;
    await Promise.all(loads);
    t.same(failures, [], `none of ${connects} connects failed`);
    t.ok(connects > 100, `${connects} connects`);
    await second.end();
    const isThere = (pid: number) => {
      try {
        return process.kill(pid, 0);
      } catch {
        return false;
      }
    };
    await until(() => !isThere(Number(firstPid)), 'the process in the middle to end, whose clients have left');
    t.same((await old.query('SELECT n FROM mine')).rows, [{ n: 7 }], 'the first one is still there for its client');
    await old.end();
    t.comment(`${connects} connects over two upgrades, ${failures.length} failed`);
  },
);

t.test('an upgrade that fails changes nothing', async (t) => {
  const { port, file } = await serve(t);
  const client = await connect(port);
  writeFileSync(file, 'nonsense: true');
  await t.rejects(upgrade(port), { code: '0A000', message: /the new process ended with code 1/ });
  t.same((await client.query('SELECT 1 AS one')).rows, [{ one: 1 }]);
  await (await connect(port)).end();
  await client.end();
});

t.test('sockets from systemd', async (t) => {
  const listening = net.createServer().listen(0, '127.0.0.1');
  await until(() => listening.listening, 'a socket');
  const { port } = listening.address() as net.AddressInfo;
  const { fd } = (listening as unknown as { _handle: { fd: number } })._handle;
  // systemd says the process id, which only a shell in between can know.
  const child = spawn(
    'sh',
    ['-c', 'LISTEN_PID=$$ exec "$0" "$@"', process.execPath, ...CLI, 'serve', '--config', config(t)],
    {
      stdio: ['ignore', 'pipe', 'inherit', fd],
      env: { ...cleanEnvironment(), LISTEN_FDS: '1', LISTEN_FDNAMES: 'clients' },
    },
  );
  let text = '';
  child.stdout!.on('data', (chunk: Buffer) => (text += chunk.toString()));
  t.teardown(() => end(child.pid!));
  listening.close();
  // It waits in the queue of the socket until somebody serves it.
  const client = await connect(port);
  t.same((await client.query('SELECT 1 AS one')).rows, [{ one: 1 }]);
  await client.end();
  t.match(text, new RegExp(`"port":${port}`));
});

function config(t: Test): string {
  const folder = mkdtempSync(join(tmpdir(), 'pgweir-upgrade-'));
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  const file = join(folder, 'pgweir.yaml');
  const databases = { postgres: { hosts: [`127.0.0.1:${postgres.port}`], tls: { mode: 'disable' } } };
  writeFileSync(file, JSON.stringify({ listen: { port: 0 }, ops: { port: 0 }, auth: { method: 'trust' }, databases }));
  return file;
}
