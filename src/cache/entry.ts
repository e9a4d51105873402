/**
 * One answer that is kept: the messages of the server as they came, and when they count for how long. Made by cache/collector, kept by
 * cache/store, sent by client/cached.
 *
 * The one idea: the bytes are those of the server, one after the other in one buffer, so that a hit is a write of one slice:
 *
 *     T … | D … D … C | Z I
 *         └ descriptionEnd
 */
import type { Consistency } from '../config/schema.ts';
import type { Stamp } from './freshness.ts';
import type { ShapeRecord } from './shapes.ts';

export interface Entry {
  readonly key: string;
  readonly body: Buffer;
  /** Where the RowDescription ends; 0: there is none, and who wants one cannot have this. */
  readonly descriptionEnd: number;
  readonly stamp: Stamp;
  readonly shape: ShapeRecord;
  readonly consistency: Consistency;
  /** Monotonic ms when it was asked for, and how long that took. */
  readonly askedAt: number;
  readonly costMs: number;
  /** Monotonic ms: until when it is fresh; may be shown while it is asked for again; may be shown when that fails. */
  readonly freshUntil: number;
  readonly staleUntil: number;
  readonly errorUntil: number;
}

/** What an entry takes besides its body and key, in bytes: measured over a million of them. */
const OVERHEAD = 400;

export function sizeOf({ key, body }: Pick<Entry, 'key' | 'body'>): number {
  return body.length + key.length + OVERHEAD;
}

/** Times what it has cost, before its end, within which it may be due: longer happens once in a million times. */
const EARLY_MAX = 14;

/**
 * Is it time to ask for it anew? When it is stale; and at random somewhat before, the sooner the longer the database takes, so that what is
 * asked for often does not expire (XFetch with β = 1: Vattani, Chierichetti, Lowenstein, VLDB 2015).
 */
export function isDue({ freshUntil, costMs }: Entry, now: number, random: () => number): boolean {
  if (now >= freshUntil) return true;
  if (now < freshUntil - EARLY_MAX * costMs) return false;
  return now - costMs * Math.log(1 - random()) >= freshUntil;
}
