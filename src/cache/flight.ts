/**
 * One answer on its way, and who waits for it: whoever asks the same question meanwhile need not ask the database. Pure. Owned by cache/cache.
 *
 * The one idea: one asks, the others wait for the same bytes; if nothing comes of it, the one who has waited longest asks next.
 *
 * Invariant: everybody who waits is called once, or leaves.
 */
import type { Versions } from './backend.ts';
import { Collector } from './collector.ts';
import type { Entry } from './entry.ts';
import type { Stamp } from './freshness.ts';
import type { Misses, MissWaiter } from './misses.ts';
import type { ShapeRecord } from './shapes.ts';

/** Waits for what somebody else has asked for. */
export interface Follower {
  /** The answer; null: there is none to be had this way, ask again. */
  onFilled(entry: Entry | null): void;
}

/** More than these do not wait for one answer. */
export const FOLLOWERS_MAX = 1_000;

/** Where a question is: it goes from one to the next, and need not stop at each. */
export type Stage =
  /** The backend is being asked. */
  | 'backend'
  /** The database is asked often enough by others: it waits for its turn. */
  | 'turn'
  | 'database'
  /** It has been answered, or will not be. */
  | 'over';

/** Who asks first; everybody else follows. */
export interface Leader extends MissWaiter, Follower {}

/** One question that is not answered yet; and what is to become of the answer. */
export class Fill {
  readonly key: string;
  readonly shape: ShapeRecord;
  stamp: Stamp;
  /** What may be given if the database cannot answer. */
  readonly stale: Entry | null;
  readonly collector: Collector;
  readonly followers: Follower[] = [];
  /** Of a server. */
  readonly weight: number;
  readonly leader: Leader | null;
  stage: Stage = 'database';
  /** The guard that has let it through, and is to be told of its end. */
  guard: Misses | null = null;
  /** What the backend has for it; null: it is not asked, or does not know. */
  versions: Versions | null = null;
  digest: Buffer | null = null;
  /** Monotonic ms. */
  askedAt: number;

  constructor(options: {
    key: string;
    shape: ShapeRecord;
    stamp: Stamp;
    stale: Entry | null;
    leader: Leader | null;
    entryMax: number;
    now: number;
  }) {
    this.key = options.key;
    this.shape = options.shape;
    this.weight = options.shape.weight;
    this.stamp = options.stamp;
    this.stale = options.stale;
    this.leader = options.leader;
    this.collector = new Collector(options.entryMax);
    this.askedAt = options.now;
  }

  leave(follower: Follower): void {
    const at = this.followers.indexOf(follower);
    if (at !== -1) this.followers.splice(at, 1);
  }

  /** Tells everybody who waits. */
  tell(entry: Entry | null): void {
    for (const follower of this.followers.splice(0)) follower.onFilled(entry);
  }
}
