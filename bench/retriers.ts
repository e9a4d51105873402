/**
 * A crowd of clients that ask again at once, whatever the answer, in a process of its own. Used by bench/failover.
 *
 * Bare sockets: thousands of drivers would need more processor than what is measured. A client that is disconnected connects
 * again at once; at most so many attempts a second in all, or the crowd would only measure itself.
 */
import { type ChildProcess, fork } from 'node:child_process';
import net from 'node:net';
import * as encode from '../src/protocol/encode.ts';
import { quantile } from './stats.ts';

/** What has happened since it was asked last. */
export interface CrowdCounts {
  answered: number;
  failed: number;
  /** ms; NaN: nobody was answered. */
  p99: number;
}

export interface Crowd {
  take(): Promise<CrowdCounts>;
  stop(): Promise<void>;
}

/** Each client reads one row, thinks for a second or so, and reads again. */
const THINK_MS = 1_000;
/** All together try so often in a second at most. */
const ATTEMPTS_MAX = 4_000;

export async function retryAtOnce(port: number, clients: number): Promise<Crowd> {
  const child = fork(import.meta.filename, [String(port), String(clients)], { execArgv: process.execArgv });
  return {
    async take() {
      child.send('take');
      return await answer(child);
    },
    async stop() {
      child.disconnect();
      await new Promise((done) => child.once('exit', done));
    },
  };
}

function answer(child: ChildProcess): Promise<CrowdCounts> {
  return new Promise((resolve) => child.once('message', (counts) => resolve(counts as CrowdCounts)));
}

/** READY FOR QUERY and ErrorResponse at the end of a chunk are all that is looked for. */
class Client {
  readonly #port: number;
  readonly #crowd: Attempts;
  #socket: net.Socket | null = null;
  #askedAt = 0;
  #hasFailed = false;

  constructor(port: number, crowd: Attempts) {
    this.#port = port;
    this.#crowd = crowd;
  }

  connect(): void {
    const socket = net.connect({ port: this.#port, host: '127.0.0.1', noDelay: true });
    this.#socket = socket;
    this.#askedAt = performance.now();
    this.#hasFailed = false;
    socket.write(
      encode.startup(encode.Version.v3_0, [
        ['user', 'postgres'],
        ['database', 'postgres'],
      ]),
    );
    socket
      .on('data', (chunk) => this.#onData(chunk))
      .on('error', () => {})
      .on('close', () => {
        if (!this.#hasFailed) this.#crowd.failed++;
        this.#crowd.soon(() => this.connect());
      });
  }

  #onData(chunk: Buffer): void {
    if (chunk.includes('SERROR\0') || chunk.includes('SFATAL\0')) {
      this.#hasFailed = true;
      this.#crowd.failed++;
      if (chunk.includes('SFATAL\0')) return void this.#socket!.destroy();
      return this.#crowd.soon(() => this.#ask());
    }
    if (chunk.length < 6 || chunk[chunk.length - 6] !== 0x5a) return;
    if (chunk.includes('SELECT 1\0')) this.#crowd.answered(performance.now() - this.#askedAt);
    setTimeout(() => this.#ask(), THINK_MS * (0.5 + Math.random()));
  }

  #ask(): void {
    if (this.#socket!.destroyed) return;
    this.#askedAt = performance.now();
    this.#hasFailed = false;
    this.#socket!.write(encode.query('SELECT 1'));
  }
}

class Attempts {
  failed = 0;
  times: number[] = [];
  #left = 0;
  readonly #next: (() => void)[] = [];

  constructor() {
    setInterval(() => {
      this.#left = ATTEMPTS_MAX / 100;
      while (this.#left > 0 && this.#next.length > 0) {
        this.#left--;
        this.#next.shift()!();
      }
    }, 10);
  }

  answered(ms: number): void {
    this.times.push(ms);
  }

  /** Runs `attempt` in a moment. */
  soon(attempt: () => void): void {
    this.#next.push(attempt);
  }
}

if (process.argv[1] === import.meta.filename) {
  const [port, clients] = process.argv.slice(2).map(Number) as [number, number];
  const attempts = new Attempts();
  for (let n = 0; n < clients; n++) attempts.soon(() => new Client(port, attempts).connect());
  process.on('message', () => {
    const counts: CrowdCounts = {
      answered: attempts.times.length,
      failed: attempts.failed,
      p99: quantile(attempts.times, 0.99),
    };
    attempts.failed = 0;
    attempts.times = [];
    process.send!(counts);
  });
  process.on('disconnect', () => process.exit(0));
}
