/**
 * Reads the stream of changes of one database, by a temporary slot with the plugin test_decoding, in a worker thread: one statement may change millions of
 * rows. See server/changes, which sends nothing but 'ping' and is sent what `Heard` says.
 *
 * The one idea: of each change only the names of its tables are looked at, and they are told once, when their transaction has committed.
 *
 * Protocol: "Streaming Replication Protocol" in the Postgres manual.
 */
import { parentPort, workerData } from 'node:worker_threads';
import type { Heard, WorkerTask } from './changes.ts';
import { openClient } from './control.ts';
import { Decoder } from './decoding.ts';

const XLOG_DATA = 0x77;
const KEEPALIVE = 0x6b;
/** Of XLogData: its type, the positions where it starts and where the WAL ends, the time. */
const DATA_START = 25;
/** Microseconds between 1970 and 2000. */
const EPOCH_2000 = 946_684_800_000_000n;

const { target, password, slot } = workerData as WorkerTask;
const tell = (heard: Heard) => parentPort!.postMessage(heard);

interface Connection {
  on(event: 'copyData', listener: (message: { chunk: Buffer }) => void): void;
  once(event: 'replicationStart', listener: () => void): void;
  sendCopyFromChunk(chunk: Buffer): void;
}

try {
  const client = await openClient(target, password, { replication: 'database' });
  const { connection } = client as unknown as { connection: Connection };
  const end = (thrown?: { message?: string; code?: string }) => {
    tell({ kind: 'ended', problem: thrown?.message ?? 'the connection was closed', sqlstate: thrown?.code ?? '' });
    process.exit();
  };
  client.on('error', end);
  client.on('end', () => end());
  // Dropped by the server when the connection ends, so that it never keeps WAL for nobody.
  await client.query(`CREATE_REPLICATION_SLOT "${slot}" TEMPORARY LOGICAL test_decoding NOEXPORT_SNAPSHOT`);
  const decoder = new Decoder((xid, tables) => tell({ kind: 'commit', xid, tables }));
  let position = 0n;
  const report = (wantsReply: boolean) => {
    const message = Buffer.alloc(34);
    message[0] = 0x72;
    for (const at of [1, 9, 17]) message.writeBigUInt64BE(position, at);
    message.writeBigInt64BE(BigInt(Date.now()) * 1000n - EPOCH_2000, 25);
    message[33] = wantsReply ? 1 : 0;
    connection.sendCopyFromChunk(message);
  };
  const moveTo = (lsn: bigint) => {
    if (lsn <= position) return;
    position = lsn;
    tell({ kind: 'position', lsn });
  };
  connection.once('replicationStart', () => tell({ kind: 'started' }));
  connection.on('copyData', ({ chunk }) => {
    if (chunk[0] === XLOG_DATA) {
      decoder.add(chunk.toString('utf8', DATA_START, Math.min(chunk.length, DATA_START + Decoder.PREFIX_MAX)));
      moveTo(chunk.readBigUInt64BE(1));
    } else if (chunk[0] === KEEPALIVE) {
      moveTo(chunk.readBigUInt64BE(1));
      report(false);
    }
  });
  parentPort!.on('message', () => report(true));
  client
    .query(`START_REPLICATION SLOT "${slot}" LOGICAL 0/0 ("include-xids" 'on', "skip-empty-xacts" 'on')`)
    .then(() => end(), end);
} catch (thrown) {
  const { message, code } = thrown as { message: string; code?: string };
  tell({ kind: 'ended', problem: message, sqlstate: code ?? '' });
}
