/**
 * The requests of one class that wait to be admitted. Owned by guard/gate.
 *
 * The one idea: a queue that never empties helps nobody. As long as it does now and then it is first in, first out; when
 * it has not for an interval, and its oldest has waited for longer than the target, the class is overloaded: then the
 * youngest goes first, who may still make it, and whoever has waited for twice the target is shed (controlled delay and
 * adaptive LIFO: Maurer, "Fail at Scale", ACM Queue 2015). Classes with order fifo are exempt from both.
 *
 * Applications of a class take turns, so that one of them cannot starve another.
 *
 * Invariant: at most `queueMax` requests wait; nobody is taken out after its deadline.
 */
import { Chain, type Link } from '../util/chain.ts';
import type { Class } from './classes.ts';
import type { Permit } from './permit.ts';

/** What a request tells of itself. */
export interface Request {
  class: Class;
  /** Applications of one class take turns. */
  application: string;
  /** Ms after which its client does not want it any more, as far as it has said; 0: it has not. */
  deadline: number;
  /** Bytes of its client's that are kept while it waits. */
  bytes: number;
  onAdmit(permit: Permit): void;
  onShed(reason: ShedReason): void;
}

/** Why a request is not admitted. */
export type ShedReason =
  /** Somebody has switched its class off (guard/switches). */
  | 'switch'
  /** The class has as many waiting as it may. */
  | 'queue'
  /** It has waited for as long as it may. */
  | 'wait'
  /** Its deadline has passed, or would. */
  | 'deadline'
  /** Its class is overloaded: it has waited for too long to be worth it. */
  | 'overload';

/** One request that waits. */
export class Ticket implements Link<Ticket> {
  chain: Chain<Ticket> | null = null;
  before: Ticket | null = null;
  behind: Ticket | null = null;
  readonly request: Request;
  /** Where it waits, until it does not. */
  queue: ClassQueue | null = null;
  /** Monotonic ms. */
  readonly since: number;
  /** Monotonic ms after which it is of no use to anybody. */
  readonly expiresAt: number;

  constructor(request: Request, since: number) {
    this.request = request;
    this.since = since;
    const { deadline } = request.class;
    const limits = [deadline, request.deadline].filter((ms) => ms > 0);
    this.expiresAt = since + Math.min(...limits, Number.POSITIVE_INFINITY);
  }
}

/** A queue that has not been empty for so long may be overloaded, in ms. */
const INTERVAL_MS = 100;
/** The least target: the wait that is no overload. */
const TARGET_MIN_MS = 5;
/** The target as a share of what the class allows itself (its deadline, else its longest wait). */
const TARGET_SHARE = 0.1;

export class ClassQueue {
  class: Class;
  /** By application, those with somebody waiting, in the order of their turns. */
  readonly #turns = new Map<string, Chain<Ticket>>();
  size = 0;
  /** Of all who wait. */
  bytes = 0;
  #isOverloaded = false;
  /** When it was last empty. */
  #emptyAt = 0;

  constructor(of: Class) {
    this.class = of;
  }

  /** The youngest goes first, and who has waited for long is shed. */
  get isOverloaded(): boolean {
    return this.#isOverloaded;
  }

  get targetMs(): number {
    return Math.max(TARGET_MIN_MS, TARGET_SHARE * (this.class.deadline || this.class.waitMax));
  }

  push(ticket: Ticket): void {
    if (this.size === 0) this.#emptyAt = ticket.since;
    const { application, bytes } = ticket.request;
    let chain = this.#turns.get(application);
    if (chain === undefined) {
      chain = new Chain<Ticket>();
      this.#turns.set(application, chain);
    }
    chain.push(ticket);
    ticket.queue = this;
    this.size++;
    this.bytes += bytes;
  }

  /** `ticket` waits no longer. False: it did not. */
  remove(ticket: Ticket): boolean {
    const { application, bytes } = ticket.request;
    const chain = this.#turns.get(application);
    if (chain === undefined || ticket.chain !== chain) return false;
    chain.remove(ticket);
    ticket.queue = null;
    this.size--;
    this.bytes -= bytes;
    if (chain.size === 0) this.#turns.delete(application);
    if (this.size === 0) this.#isOverloaded = false;
    return true;
  }

  /** Takes out the next to be admitted; null: nobody waits. */
  next(): Ticket | null {
    const turn = this.#turns.entries().next();
    if (turn.done) return null;
    const [application, chain] = turn.value;
    const ticket = (this.#isOverloaded && !this.class.isFifo ? chain.last : chain.first)!;
    this.remove(ticket);
    if (chain.size > 0) {
      this.#turns.delete(application); // To the end of the turns.
      this.#turns.set(application, chain);
    }
    return ticket;
  }

  /** Takes out everybody. */
  empty(reason: ShedReason): [Ticket, ShedReason][] {
    const all = [...this.#turns.values()].flatMap((chain) => [...chain]);
    for (const ticket of all) this.remove(ticket);
    return all.map((ticket) => [ticket, reason]);
  }

  /** Judges whether the class is overloaded, and takes out everybody who is not to wait any longer. */
  expire(now: number): [Ticket, ShedReason][] {
    const found: [Ticket, ShedReason][] = [];
    let oldest = now;
    for (const chain of this.#turns.values()) oldest = Math.min(oldest, chain.first!.since);
    // Alone, the oldest stands in nobody's way.
    this.#isOverloaded = this.size > 1 && now - this.#emptyAt > INTERVAL_MS && now - oldest > this.targetMs;
    for (const chain of [...this.#turns.values()]) {
      for (const ticket of chain) {
        const reason = this.#reasonAgainst(ticket, now);
        if (reason === null) continue;
        this.remove(ticket);
        found.push([ticket, reason]);
      }
    }
    return found;
  }

  #reasonAgainst(ticket: Ticket, now: number): ShedReason | null {
    const waited = now - ticket.since;
    if (now >= ticket.expiresAt) return 'deadline';
    if (waited >= this.class.waitMax) return 'wait';
    return this.#isOverloaded && !this.class.isFifo && waited > 2 * this.targetMs ? 'overload' : null;
  }
}
