/**
 * Memory per idle client: `npm run bench:idle`. Starts an embedded Postgres and the built proxy, logs CLIENTS clients
 * in (no TLS), lets each run one named prepared statement over 8 servers, and prints the proxy's resident memory per
 * client when all are idle. Then every client asks once more, and must be answered.
 *
 * The clients are raw sockets in another process, so that only the proxy's memory is measured.
 */
import { fork, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { startEmbeddedPostgres } from '../src/embedded.ts';
import { int32, message, startup, Version } from '../src/protocol/encode.ts';

const CLIENTS = Number(process.env.CLIENTS ?? 10_000);
const SERVERS = 8;
const PARALLEL = 64;
const LIMIT_KIB = 6;

const login = startup(Version.v3_0, [
  ['user', 'postgres'],
  ['database', 'postgres'],
]);
const zero = Buffer.alloc(2);
const ask = Buffer.concat([message(0x42, '\0s\0', zero, zero, zero), message(0x45, '\0', int32(0)), message(0x53)]);
const first = Buffer.concat([message(0x50, 's\0SELECT 1\0', zero), ask]);

if (process.argv[2] === 'clients') await beClients(Number(process.argv[3]));
else await measure();

/** Child: opens all clients, says so, asks with each again when told to, and says how many were answered. */
async function beClients(port: number): Promise<void> {
  const sockets: net.Socket[] = [];
  const inTurns = async (work: (index: number) => Promise<void>) => {
    let next = 0;
    const worker = async () => {
      while (next < CLIENTS) await work(next++);
    };
    await Promise.all(Array.from({ length: PARALLEL }, worker));
  };
  const exchange = (socket: net.Socket, bytes: Buffer) =>
    new Promise<void>((resolve, reject) => {
      const onData = (chunk: Buffer) => {
        if (chunk.at(-6) !== 0x5a) return; // ReadyForQuery comes last.
        socket.off('data', onData);
        resolve();
      };
      socket.on('data', onData).once('error', reject);
      socket.write(bytes);
    });
  await inTurns(async (index) => {
    const socket = net.connect(port, '127.0.0.1');
    sockets[index] = socket;
    await once(socket, 'connect');
    await exchange(socket, login);
    await exchange(socket, first);
  });
  process.send!('idle');
  await once(process, 'message');
  let answered = 0;
  await inTurns(async (index) => {
    await exchange(sockets[index]!, ask);
    answered++;
  });
  process.send!(answered);
  await once(process, 'message');
  process.exit(0);
}

async function measure(): Promise<void> {
  const postgres = await startEmbeddedPostgres({ dataDir: null, settings: { fsync: 'off' } });
  const config = join(mkdtempSync(join(tmpdir(), 'pgweir-bench-')), 'config.yaml');
  const port = 7432;
  writeFileSync(
    config,
    JSON.stringify({
      listen: { port, clientsMax: CLIENTS + 100 },
      ops: { port: 0 },
      log: { level: 'warn' },
      auth: { method: 'trust' },
      databases: {
        '*': {
          hosts: [`127.0.0.1:${postgres.port}`],
          tls: { mode: 'disable' },
          pool: { size: SERVERS, queueMax: CLIENTS },
        },
      },
    }),
  );
  // As `pgweir`, `npm start` and the image run it.
  const flags = [`--max-semi-space-size=${process.env.SEMI_SPACE ?? 8}`];
  const proxy = spawn(process.execPath, [...flags, 'dist/cli.js', 'serve', '-c', config], { stdio: 'inherit' });
  await untilListening(port);
  const before = rssKib(proxy.pid!);
  const clients = fork(fileURLToPath(import.meta.url), ['clients', String(port)], { execArgv: process.execArgv });
  await once(clients, 'message');
  const after = rssKib(proxy.pid!);
  clients.send('again');
  const [answered] = (await once(clients, 'message')) as [number];
  const again = rssKib(proxy.pid!);
  clients.send('end');
  proxy.kill('SIGTERM');
  await postgres.stop();
  const each = (after - before) / CLIENTS;
  console.log(`clients ${CLIENTS}, servers ${SERVERS}, answered ${answered}`);
  console.log(
    `resident memory: ${before} KiB without clients, ${after} KiB with idle clients, ${again} KiB after another query each`,
  );
  console.log(`per idle client: ${each.toFixed(2)} KiB (limit ${LIMIT_KIB})`);
  process.exit(answered === CLIENTS && each < LIMIT_KIB ? 0 : 1);
}

function rssKib(pid: number): number {
  return Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))![1]);
}

async function untilListening(port: number): Promise<void> {
  for (let tries = 0; tries < 200; tries++) {
    const socket = net.connect(port, '127.0.0.1');
    const isOpen = await new Promise<boolean>((resolve) =>
      socket.once('connect', () => resolve(true)).once('error', () => resolve(false)),
    );
    socket.destroy();
    if (isOpen) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error('the proxy does not listen');
}
