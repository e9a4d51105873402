/**
 * The door to the parser worker: bounded, watched, replaceable. Called by sql/verdict for shapes that tokens alone
 * cannot judge, once per shape.
 *
 * The one idea: hostile SQL may kill or hang the parser, and that costs one shape its judgement and nobody anything
 * else. A watchdog ends a worker that takes too long; the text it was on is never tried again by its shape
 * (sql/verdict remembers 'opaque'); a new worker starts with the next text.
 */
import type { Worker } from 'node:worker_threads';
import type { Clock } from '../util/clock.ts';
import { startWorker } from '../util/worker.ts';
import type { Reading } from './reading.ts';

/**
 * What a statement is for, as far as its text says; of several the strongest. 'write': it changes rows or locks them.
 * 'ddl': it changes what there is. 'other': everything else, such as SET, VACUUM or CALL.
 */
export type Kind = 'read' | 'write' | 'ddl' | 'other';

/** A table as a statement names it; `schema` is '' where it names none. Names of CTEs count as well. */
export interface TableReference {
  schema: string;
  name: string;
  /** Its rows are changed or locked. */
  isWritten: boolean;
}

/** What the parser found in a text. */
export interface Syntax {
  /** False: the text is no SQL that Postgres 18 takes. */
  isParsed: boolean;
  /** Names of the functions and procedures called, qualified as written, without pg_catalog. */
  functions: string[];
  /** Makes a temporary table, view or sequence. */
  isTemporary: boolean;
  /** How many statements there are. */
  count: number;
  /** Runs code that cannot be judged from the text. */
  isOpaque: boolean;
  kind: Kind;
  tables: TableReference[];
  /** What it reads, for the read cache; null: it could not be parsed. */
  reading: Reading | null;
}

export const SQL_BYTES_MAX = 16 * 1024;
const QUEUE_MAX = 1000;
/** Of texts that nobody waits for. */
const LATER_MAX = 200;
const WATCHDOG_MS = 250;
/** A first text also pays for loading the module. */
const LOADING_MS = 10_000;
const STACK_MB = 4;
const HEAP_MB = 128;

/** `isFinal`: the same text would give the same again. */
type Done = (syntax: Syntax | null, isFinal: boolean) => void;

interface Job {
  sql: string;
  done: Done;
}

export class Parser {
  readonly #clock: Clock;
  #worker: Worker | null = null;
  #isLoaded = false;
  readonly #waiting: Job[] = [];
  /** What is only to be known one day: parsed while nothing else waits. */
  readonly #later: Job[] = [];
  #running: Job | null = null;
  #cancelWatchdog: (() => void) | null = null;
  #isClosed = false;
  /** Texts parsed, refused because the queue was full, and workers ended by a text. */
  readonly counts = { parsed: 0, refused: 0, killed: 0 };

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** Calls `done` later with what was found, or with null when the text could not be judged. Never throws. */
  parse(sql: string, done: Done): void {
    this.#enter(this.#waiting, QUEUE_MAX, sql, done);
  }

  /** As `parse`, for what no server waits for: it comes behind everything else, and there are fewer places. */
  parseLater(sql: string, done: Done): void {
    this.#enter(this.#later, LATER_MAX, sql, done);
  }

  #enter(queue: Job[], max: number, sql: string, done: Done): void {
    if (this.#isClosed || sql.length > SQL_BYTES_MAX || queue.length >= max) {
      this.counts.refused++;
      queueMicrotask(() => done(null, sql.length > SQL_BYTES_MAX));
      return;
    }
    queue.push({ sql, done });
    this.#next();
  }

  /** Ends the worker; texts still waiting are answered with null. */
  async close(): Promise<void> {
    this.#isClosed = true;
    const worker = this.#worker;
    this.#end(null);
    for (const job of [...this.#waiting.splice(0), ...this.#later.splice(0)]) job.done(null, false);
    await worker?.terminate();
  }

  #next(): void {
    if (this.#running !== null) return;
    const job = this.#waiting.shift() ?? this.#later.shift();
    if (job === undefined) return;
    this.#running = job;
    this.#worker ??= this.#start();
    this.#worker.postMessage({ id: 1, sql: job.sql });
    // When it was this thread that was slow, the answer is already there: let it in first.
    const bark = () => setImmediate(() => this.#running === job && this.#kill());
    this.#cancelWatchdog = this.#clock.after(this.#isLoaded ? WATCHDOG_MS : LOADING_MS, bark);
  }

  #start(): Worker {
    const worker = startWorker(import.meta.url, 'parser', {
      resourceLimits: { stackSizeMb: STACK_MB, maxOldGenerationSizeMb: HEAP_MB },
    });
    worker.unref();
    worker.on('message', ({ id, syntax }: { id: number; syntax: Syntax }) => {
      if (worker !== this.#worker) return;
      if (id === 0) this.#isLoaded = true;
      else this.#finish(syntax);
    });
    const lost = () => {
      if (worker === this.#worker) this.#kill();
    };
    worker.on('error', lost);
    worker.on('exit', lost);
    return worker;
  }

  #kill(): void {
    this.counts.killed++;
    void this.#worker?.terminate();
    this.#end(null);
    this.#next();
  }

  #finish(syntax: Syntax): void {
    this.counts.parsed++;
    const job = this.#running;
    this.#running = null;
    this.#cancelWatchdog?.();
    job?.done(syntax, true);
    this.#next();
  }

  #end(syntax: null): void {
    this.#worker = null;
    this.#isLoaded = false;
    this.#cancelWatchdog?.();
    const job = this.#running;
    this.#running = null;
    job?.done(syntax, !this.#isClosed);
  }
}
