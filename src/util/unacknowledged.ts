/**
 * Which of this machine's TCP connections send in vain: the other side has not acknowledged it, again and again. For
 * server/silence, which asks seldom.
 *
 * Node cannot set TCP_USER_TIMEOUT, and without it Linux tries for a quarter of an hour; but it tells how often it has tried
 * (proc(5), /proc/net/tcp: tx_queue and retrnsmt). Where there is no such file nothing is known.
 */
import { readFile } from 'node:fs/promises';

/** Retransmissions: the sixth is sent after some 13 s, with the least timeout there is (200 ms, doubled each time). */
const RETRIES_MIN = 5;

/** Local ports of connections whose last bytes were sent so often in vain. */
export async function unacknowledgedPorts(): Promise<ReadonlySet<number>> {
  const tables = await Promise.all(
    ['/proc/net/tcp', '/proc/net/tcp6'].map((file) => readFile(file, 'utf8').catch(() => '')),
  );
  return new Set(tables.flatMap(portsIn));
}

/** `table`: the text of such a file; its first line is a heading. */
export function portsIn(table: string): number[] {
  const ports: number[] = [];
  for (const line of table.split('\n').slice(1)) {
    // sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt …
    const [, local, , , queues, , retries] = line.trim().split(/\s+/);
    if (retries === undefined || queues!.startsWith('00000000:')) continue;
    if (Number.parseInt(retries, 16) >= RETRIES_MIN) ports.push(Number.parseInt(local!.split(':')[1]!, 16));
  }
  return ports;
}
