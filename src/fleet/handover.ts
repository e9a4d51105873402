/**
 * Handing over to another process without refusing a connection: listening sockets come from whoever started this one (systemd,
 * or the process before), and go to the process that comes after. Called by cli.
 *
 *     UPGRADE ─▶ successor started with the same sockets ─▶ it listens ─▶ this one stops accepting, serves its clients until they leave
 *                        └─ it ends, or is not ready in time: stopped, and nothing has changed
 *
 * The one idea: a listening socket is the kernel's, with its queue; while both processes have it nobody who connects is lost. Cancel
 * requests reach the successor, whose clients they are not about: it passes them back to the process before by the channel that
 * Node lays between the two, and that to the one before it.
 *
 * Sockets are named as systemd names them (sd_listen_fds(3)): LISTEN_FDS, LISTEN_FDNAMES, and LISTEN_PID, which here is the parent's.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import type { Server } from 'node:net';

/** Descriptors of listening sockets: for clients, and for HTTP. */
export interface ListeningSockets {
  clients?: number;
  ops?: number;
}

type Environment = Record<string, string | undefined>;
/** What successor and predecessor say to each other. */
type Message = { kind: 'ready' } | { kind: 'cancel'; key: string };

const FIRST_FD = 3;
const READY_MS = 30_000;

/** What was inherited, and forgotten in `environment`: it is not for our children. */
export function inheritedSockets(environment: Environment = process.env): ListeningSockets {
  const { LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES = '' } = environment;
  for (const name of ['LISTEN_PID', 'LISTEN_FDS', 'LISTEN_FDNAMES']) delete environment[name];
  if (LISTEN_PID !== String(process.pid) && !(LISTEN_PID === String(process.ppid) && process.send !== undefined))
    return {};
  const names = LISTEN_FDNAMES.split(':');
  const sockets: ListeningSockets = {};
  for (let index = 0; index < Number(LISTEN_FDS); index++) {
    const name = names[index] === 'ops' ? 'ops' : 'clients';
    sockets[name] ??= FIRST_FD + index;
  }
  return sockets;
}

/** The descriptor of a server that listens. */
export function descriptorOf(server: Pick<Server, 'listening'>): number {
  const { fd } = (server as unknown as { _handle: { fd: number } })._handle;
  if (fd < 0) throw new Error('listening sockets cannot be handed over on this system');
  return fd;
}

/**
 * Starts the same program again, from where it is now, with these sockets. Resolves when it listens; rejects with why it does not.
 * `cancel`: for requests that are about this process' clients.
 */
export async function startSuccessor(
  sockets: Required<ListeningSockets>,
  cancel: (key: Buffer) => void,
): Promise<number> {
  const names = Object.keys(sockets);
  const environment: Environment = {
    ...process.env,
    LISTEN_PID: String(process.pid),
    LISTEN_FDS: String(names.length),
    LISTEN_FDNAMES: names.join(':'),
  };
  const child = spawn(process.execPath, [...process.execArgv, ...process.argv.slice(1)], {
    env: environment,
    stdio: ['ignore', 'inherit', 'inherit', ...Object.values(sockets), 'ipc'],
    detached: true,
  });
  child.on('message', (message: Message) => {
    if (message.kind === 'cancel') cancel(Buffer.from(message.key, 'base64'));
  });
  await readyOrEnded(child);
  child.unref();
  (child.channel as { unref(): void } | null)?.unref();
  return child.pid!;
}

async function readyOrEnded(child: ChildProcess): Promise<void> {
  let late: NodeJS.Timeout | undefined;
  const isReady = new Promise<void>((done) => {
    child.on('message', (message: Message) => message.kind === 'ready' && done());
  });
  const hasEnded = once(child, 'exit').then(([code, signal]) => {
    throw new Error(`the new process ended with ${signal ?? `code ${code}`}: its log says why`);
  });
  const hasFailed = once(child, 'error').then(([thrown]) => {
    throw thrown;
  });
  const isLate = new Promise<never>((_, reject) => {
    late = setTimeout(() => reject(new Error(`the new process does not listen after ${READY_MS / 1000} s`)), READY_MS);
  });
  try {
    await Promise.race([isReady, hasEnded, hasFailed, isLate]);
  } catch (thrown) {
    child.kill('SIGKILL');
    throw thrown;
  } finally {
    clearTimeout(late);
    hasEnded.catch(() => {});
    hasFailed.catch(() => {});
  }
}

/** The process before, where there is one. */
export const predecessor = {
  /** This process listens. */
  tellReady(): void {
    tell({ kind: 'ready' });
    process.channel?.unref();
  },
  /** A cancel request that is about nobody here. */
  cancel(key: Buffer): void {
    tell({ kind: 'cancel', key: key.toString('base64') });
  },
};

function tell(message: Message): void {
  if (process.send === undefined || !process.connected) return;
  process.send(message, undefined, {}, () => {}); // It may be gone by now.
}
