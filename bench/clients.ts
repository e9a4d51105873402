/** Clients as applications have them, rude ones, and the work that they ask for. Used by bench/overload and bench/incident-b. */
import type { Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import type { EmbeddedPostgres } from '../src/embedded.ts';
import { median } from './stats.ts';

/** After this an attempt is given up. */
export const TIMEOUT_MS = 2_000;
/** Connections of one application. */
const APP_POOL = 40;
const ROWS = 200_000;

/** How many rows of generate_series a backend counts in one millisecond of a whole processor. */
export async function calibrate(postgres: EmbeddedPostgres): Promise<number> {
  const client = new pg.Client({ host: '127.0.0.1', port: postgres.port, user: 'postgres', database: 'postgres' });
  await client.connect();
  await client.query('CREATE TABLE items AS SELECT n AS id, 0 AS touched FROM generate_series(1, 10000) n');
  await client.query('CREATE UNIQUE INDEX ON items (id)');
  const times: number[] = [];
  for (let lap = 0; lap < 15; lap++) {
    const before = performance.now();
    await client.query(`SELECT count(*) FROM generate_series(1, ${ROWS})`);
    times.push(performance.now() - before);
  }
  await client.end();
  await sleep(200); // Its backend is gone by then.
  return ROWS / median(times);
}

/** The connections of one application: at most APP_POOL, and those that had an error are thrown away (as in pg-pool). */
export class AppPool {
  readonly #options: pg.ClientConfig;
  readonly #idle: pg.Client[] = [];
  readonly #waiting: ((isClosed: boolean) => void)[] = [];
  #open = 0;
  isClosed = false;
  /** Attempts that were not answered. */
  failures = 0;

  constructor(port: number, name: string) {
    this.#options = { host: '127.0.0.1', port, user: 'postgres', database: 'postgres', application_name: name };
  }

  /** Runs one statement, within TIMEOUT_MS from here on. True: it was answered. */
  async attempt(sql: string): Promise<boolean> {
    const end = performance.now() + TIMEOUT_MS;
    if (this.#idle.length === 0 && this.#open >= APP_POOL) await this.#turn(end);
    if (this.isClosed || performance.now() >= end) return false;
    let client = this.#idle.pop();
    let isGood = false;
    try {
      if (client === undefined) {
        this.#open++;
        client = new pg.Client(this.#options);
        client.on('error', () => {});
        await before(client.connect(), end);
      }
      await before(client.query(sql), end);
      isGood = true;
    } catch {
      // Refused, lost, or too late: the connection is thrown away whatever it was.
    }
    if (isGood) this.#idle.push(client!);
    else {
      if (!this.isClosed) this.failures++;
      this.#open--;
      streamOf(client!).destroy();
    }
    this.#waiting.shift()?.(false);
    return isGood;
  }

  #turn(end: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(give, end - performance.now());
      const waiting = this.#waiting;
      function give() {
        clearTimeout(timer);
        const at = waiting.indexOf(give);
        if (at >= 0) waiting.splice(at, 1);
        resolve();
      }
      waiting.push(give);
    });
  }

  close(): void {
    this.isClosed = true;
    for (const client of this.#idle) streamOf(client).destroy();
    for (const give of [...this.#waiting]) give(true);
  }
}

const streamOf = (client: pg.Client) => (client as unknown as { connection: { stream: Socket } }).connection.stream;

function before<T>(work: Promise<T>, end: number): Promise<T> {
  work.catch(() => {});
  let timer: NodeJS.Timeout;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error('too late')), Math.max(0, end - performance.now()));
  });
  return Promise.race([work, late]).finally(() => clearTimeout(timer));
}
