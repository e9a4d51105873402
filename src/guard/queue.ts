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
import type { Attempt } from './retries.ts';

/** What a request tells of itself. */
export interface Request {
  readonly class: Class;
  /** Applications of one class take turns. */
  readonly application: string;
  /** Ms after which its client does not want it any more, as far as it has said; 0: it has not. */
  readonly deadline: number;
  /** Bytes of its client's that are kept while it waits. */
  readonly bytes: number;
  /** The number of the shape of its statement, when it is all that it will ask for; else 0. */
  readonly shape: number;
  /** How often its client has been refused in a row, asking again at once each time. */
  readonly haste: number;
  /** A number that the same request, asked again by the same application, has as well. */
  fingerprint(): number;
  onAdmit(permit: Permit): void;
  onShed(shed: Shed, now: number): void;
  /** It waits here no longer: its host is another one. */
  onMoved(now: number): void;
}

/** It is refused. `delayMs`: its client has been hasty; keep the answer for so long. */
export interface Shed {
  reason: ShedReason;
  delayMs: number;
}

/** Why a request is not admitted. */
export type ShedReason =
  /** Somebody has switched its class off (guard/switches). */
  | 'switch'
  /** The host may not spend more at the moment (guard/budget). */
  | 'credits'
  /** Its application is refused most of the time anyway (guard/retries). */
  | 'throttle'
  /** The class has as many waiting as it may. */
  | 'queue'
  /** It has waited for as long as it may. */
  | 'wait'
  /** Its deadline has passed, or would. */
  | 'deadline'
  /** Its class is overloaded: it has waited for too long to be worth it. */
  | 'overload'
  /** There is no primary, and as many wait for one as may. */
  | 'hold';

/** One request that waits. */
export class Ticket implements Link<Ticket> {
  chain: Chain<Ticket> | null = null;
  before: Ticket | null = null;
  behind: Ticket | null = null;
  readonly request: Request;
  readonly attempt: Attempt;
  /** Ms that a server is expected to work for it. */
  readonly cost: number;
  /** Where it waits, until it does not. */
  queue: ClassQueue | null = null;
  /** Monotonic ms since when its waiting counts. */
  since: number;
  /** Monotonic ms after which it is of no use to anybody. */
  readonly expiresAt: number;

  constructor(request: Request, since: number, attempt: Attempt, cost: number) {
    this.request = request;
    this.attempt = attempt;
    this.cost = cost;
    this.since = since;
    const { deadline } = request.class;
    const limits = [deadline, request.deadline].filter((ms) => ms > 0);
    this.expiresAt = since + Math.min(...limits, Number.POSITIVE_INFINITY);
  }
}

/** The least target: the wait that is no overload. */
const TARGET_MIN_MS = 5;
/** The target as a share of what the class allows itself (its deadline, else its longest wait). */
const TARGET_SHARE = 0.1;
/** A burst passes: only who is overloaded for so long sheds, in ms. */
const SHED_AFTER_MS = 1_000;

/** Applications that have somebody waiting, in the order of their turns. */
type Turns = Map<string, Chain<Ticket>>;

export class ClassQueue {
  class: Class;
  readonly #first: Turns = new Map();
  /** Retries beyond what their application may: they go behind everybody's first attempts. */
  readonly #surplus: Turns = new Map();
  size = 0;
  /** Of all who wait. */
  bytes = 0;
  /** Ms that a server is expected to work for all who wait. */
  cost = 0;
  #isOverloaded = false;
  #overloadedSince = 0;
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
    const turns = ticket.attempt.isSurplus ? this.#surplus : this.#first;
    let chain = turns.get(application);
    if (chain === undefined) {
      chain = new Chain<Ticket>();
      turns.set(application, chain);
    }
    chain.push(ticket);
    ticket.queue = this;
    this.size++;
    this.bytes += bytes;
    this.cost += ticket.cost;
  }

  /** `ticket` waits no longer. False: it did not. */
  remove(ticket: Ticket): boolean {
    const { application, bytes } = ticket.request;
    const turns = ticket.attempt.isSurplus ? this.#surplus : this.#first;
    const chain = turns.get(application);
    if (chain === undefined || ticket.chain !== chain) return false;
    chain.remove(ticket);
    ticket.queue = null;
    this.size--;
    this.bytes -= bytes;
    this.cost = this.size === 0 ? 0 : this.cost - ticket.cost;
    if (chain.size === 0) turns.delete(application);
    if (this.size === 0) this.#isOverloaded = false;
    return true;
  }

  /** Takes out the next to be admitted; null: nobody waits. */
  next(): Ticket | null {
    const turns = this.#first.size > 0 ? this.#first : this.#surplus;
    const turn = turns.entries().next();
    if (turn.done) return null;
    const [application, chain] = turn.value;
    const ticket = (this.#isOverloaded && !this.class.isFifo ? chain.last : chain.first)!;
    this.remove(ticket);
    if (chain.size > 0) {
      turns.delete(application); // To the end of the turns.
      turns.set(application, chain);
    }
    return ticket;
  }

  *#chains(): Iterable<Chain<Ticket>> {
    yield* this.#first.values();
    yield* this.#surplus.values();
  }

  /** Takes out everybody. */
  empty(reason: ShedReason): [Ticket, ShedReason][] {
    const all = [...this.#chains()].flatMap((chain) => [...chain]);
    for (const ticket of all) this.remove(ticket);
    return all.map((ticket) => [ticket, reason]);
  }

  /**
   * Judges whether the class is overloaded, and takes out everybody who is not to wait any longer. `intervalMs`: a queue that
   * has not been empty for so long may be.
   */
  expire(now: number, intervalMs: number): [Ticket, ShedReason][] {
    const found: [Ticket, ShedReason][] = [];
    let oldest = now;
    for (const chain of this.#chains()) oldest = Math.min(oldest, chain.first!.since);
    // Alone, the oldest stands in nobody's way.
    const wasOverloaded = this.#isOverloaded;
    this.#isOverloaded = this.size > 1 && now - this.#emptyAt > intervalMs && now - oldest > this.targetMs;
    if (this.#isOverloaded && !wasOverloaded) this.#overloadedSince = now;
    for (const chain of [...this.#chains()]) {
      for (const ticket of chain) {
        const reason = this.#reasonAgainst(ticket, now);
        if (reason === null) continue;
        this.remove(ticket);
        found.push([ticket, reason]);
      }
    }
    return found;
  }

  /** There is no primary that anybody could be given: takes out those whose deadline has passed. */
  expireHeld(now: number): [Ticket, ShedReason][] {
    const found = [...this.#chains()].flatMap((chain) => [...chain]).filter(({ expiresAt }) => now >= expiresAt);
    for (const ticket of found) this.remove(ticket);
    return found.map((ticket) => [ticket, 'deadline']);
  }

  /** The wait so far was nobody's fault here: it does not count. */
  forgive(now: number): void {
    for (const chain of this.#chains()) for (const ticket of chain) ticket.since = now;
    this.#emptyAt = now;
    this.#isOverloaded = false;
  }

  #reasonAgainst(ticket: Ticket, now: number): ShedReason | null {
    const waited = now - ticket.since;
    if (now >= ticket.expiresAt) return 'deadline';
    if (waited >= this.class.waitMax) return 'wait';
    const isLasting = this.#isOverloaded && now - this.#overloadedSince >= SHED_AFTER_MS;
    return isLasting && !this.class.isFifo && waited > 2 * this.targetMs ? 'overload' : null;
  }
}
