/**
 * The door to the stream of changes of one database (server/changes-worker): who commits what, whichever way it came. Opened by cache/wal through app.
 *
 * The one idea: it is either heard of in order and without a gap, or it ends, and whoever listens must believe that anything has changed.
 */
import { randomBytes } from 'node:crypto';
import { messageOf } from '../util/errors.ts';
import { startWorker } from '../util/worker.ts';
import type { TableName } from './decoding.ts';
import type { ServerTarget } from './login.ts';

/** What is heard. */
export type Heard =
  /** From here on every commit is told. */
  | { kind: 'started' }
  /** It may not be visible to others yet. `xid`: its lower 32 bits. */
  | { kind: 'commit'; xid: number; tables: TableName[] | 'all' }
  /** Everything that was flushed before this position in the WAL has been told. */
  | { kind: 'position'; lsn: bigint }
  | { kind: 'ended'; problem: string; sqlstate: string };

export interface WorkerTask {
  target: ServerTarget;
  password: string | undefined;
  slot: string;
}

export interface Changes {
  /** Asks for the position; the answer is told. */
  ping(): void;
  close(): void;
}

const HEAP_MB = 128;

/** Calls `hear` until it has said that it ended, which is the last that it says. */
export function openChanges(target: ServerTarget, password: string | undefined, hear: (heard: Heard) => void): Changes {
  let isOver = false;
  const task: WorkerTask = { target, password, slot: `pgweir_${randomBytes(8).toString('hex')}` };
  const worker = startWorker(import.meta.url, 'changes', {
    workerData: task,
    resourceLimits: { maxOldGenerationSizeMb: HEAP_MB },
  });
  worker.unref();
  const end = (problem: string) => {
    if (isOver) return;
    isOver = true;
    void worker.terminate();
    hear({ kind: 'ended', problem, sqlstate: '' });
  };
  worker.on('message', (heard: Heard) => {
    if (isOver) return;
    if (heard.kind === 'ended') {
      isOver = true;
      void worker.terminate();
    }
    hear(heard);
  });
  worker.on('error', (thrown) => end(messageOf(thrown)));
  worker.on('exit', () => end('the worker has ended'));
  return {
    ping: () => worker.postMessage('ping'),
    close: () => {
      isOver = true;
      void worker.terminate();
    },
  };
}
