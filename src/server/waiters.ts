/**
 * Those who wait for a server of one pool, oldest first. Made and called by server/pool; ops looks at its length and its
 * head; each waiter is a session (client/session) and is called back once.
 *
 *     push ──▶ waits ──remove──▶ served, or gone
 *                └──refuse…──▶ told why not
 *
 * The one idea: waiting counts only while somebody could have been served. What was held, because there was no primary or
 * the pool was paused, begins to wait when that is over (`serveFrom`), so an outage does not end in a flood of refusals.
 *
 * Invariants: `bytes` is the sum over those in it; whoever is refused has left it before it hears of that.
 */
import type { Refusal } from '../protocol/sqlstate.ts';
import { Chain, type Link } from '../util/chain.ts';
import type { ServerConnection } from './connection.ts';
import type { Line, Wish } from './line.ts';
import type { Settings } from './settings.ts';

/** Someone who waits for a server. */
export interface Waiter extends Link<Waiter> {
  waitingSince: number;
  /** Preferred: a server that has these settings already. */
  readonly settings: Settings;
  /** The read that it waits with, if that may ride on a server with others. */
  readonly wish: Wish | null;
  /** Bytes that are kept of it; ms after which nobody wants the answer any more, 0: not known. */
  readonly heldBytes: number;
  readonly deadline: number;
  onLease(server: ServerConnection): void;
  /** Its read is to ride. */
  onBoard(line: Line): void;
  onRefused(refusal: Refusal): void;
}

export class Waiters extends Chain<Waiter> {
  /** Of the requests that wait. */
  bytes = 0;
  readonly #onEmpty: () => void;
  /** Since when waiting counts: before, requests were held. */
  #servedFrom = Number.NEGATIVE_INFINITY;

  /** `onEmpty` is called when nobody waits any more. */
  constructor(onEmpty: () => void) {
    super();
    this.#onEmpty = onEmpty;
  }

  override push(waiter: Waiter): void {
    super.push(waiter);
    this.bytes += waiter.heldBytes;
  }

  override remove(waiter: Waiter): void {
    super.remove(waiter);
    if (this.size === 0) this.#onEmpty();
    this.bytes -= waiter.heldBytes;
  }

  /** From here on they can be served. */
  serveFrom(now: number): void {
    this.#servedFrom = now;
  }

  /** Did it wait already when nobody could be served? */
  wasHeld({ waitingSince }: Waiter): boolean {
    return waitingSince < this.#servedFrom;
  }

  /** Refuses who has waited for `waitMax` ms. */
  refuseLate(now: number, waitMax: number, refuse: () => Refusal): void {
    for (let waiter = this.first; waiter !== null; waiter = this.first) {
      if (now - Math.max(waiter.waitingSince, this.#servedFrom) < waitMax) return;
      this.remove(waiter);
      waiter.onRefused(refuse());
    }
  }

  /** Refuses those whose own deadline has passed. */
  refuseOverdue(now: number, refuse: () => Refusal): void {
    for (const waiter of this) {
      if (waiter.deadline === 0 || now - waiter.waitingSince < waiter.deadline) continue;
      this.remove(waiter);
      waiter.onRefused(refuse());
    }
  }

  refuseAll(refuse: () => Refusal): void {
    for (const waiter of this) {
      this.remove(waiter);
      waiter.onRefused(refuse());
    }
  }
}
