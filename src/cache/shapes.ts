/**
 * What is known of the statements of one shape: whether their answers may be kept, for how long, which tables they read, and what keeping
 * them has been worth. Made by cache/cache, shown by the console.
 *
 * The one idea: the parse tree and the catalogue are asked once for a shape and a search path, not for each text.
 */
import type { Freshness, Stamp, Table } from './freshness.ts';
import type { Policy } from './policy.ts';

export type Judgement =
  /** The parser has not spoken, or the catalogue has not been read. */
  | { kind: 'pending' }
  | { kind: 'refused'; why: string }
  | { kind: 'kept'; policy: Policy; tables: readonly Table[]; names: readonly string[] };

export const PENDING: Judgement = { kind: 'pending' };

export class ShapeRecord {
  /** The statement without its values. */
  readonly text: string;
  judgement: Judgement = PENDING;
  /** The definitions that it was judged by. */
  definitions = -1;
  /** Its answers have differed from those of the database: why; '': they have not. */
  distrust = '';
  strikes = 0;
  hits = 0;
  /** Stale, while it is asked for again; and because the database could not answer. */
  stale = 0;
  staleOnError = 0;
  misses = 0;
  /** What hits have saved, in ms of a server's time. */
  savedMs = 0;
  /** How long the database usually takes, in ms; 0: it was not asked yet. */
  usualMs = 0;
  /** Monotonic ms of the last answer from the cache. */
  hitAt = Number.NEGATIVE_INFINITY;

  constructor(text: string) {
    this.text = text;
  }

  learn(ms: number): void {
    this.usualMs = this.usualMs === 0 ? ms : this.usualMs + (ms - this.usualMs) / MEAN_SAMPLES;
  }

  /** Of a server, that asking takes: short reads share one. */
  get weight(): number {
    return this.usualMs > 0 && this.usualMs <= SHARED_MS ? 1 / SHARED_READS : 1;
  }

  countHit(now: number): void {
    this.hits++;
    this.savedMs += this.usualMs;
    this.hitAt = now;
  }

  /** The versions of its tables now; it must be kept. */
  stamp(freshness: Freshness): Stamp {
    return freshness.stamp(this.judgement.kind === 'kept' ? this.judgement.tables : []);
  }
}

const MEAN_SAMPLES = 32;
/** Reads below this time ride on a server with others (server/reads), about so many at a time. */
const SHARED_MS = 10;
const SHARED_READS = 8;
