/**
 * Who may have a server of one host, and when: the only place that decides. Called by client/session at the first
 * statement of a transaction that reaches a server, and when it is over; ticked by app.
 *
 *     decide ─┬─▶ admit(permit) ─────────────────▶ permit.end ─┐
 *             ├─▶ wait ──▶ onAdmit / onShed ◀── the next one ──┘
 *             └─▶ shed(reason)
 *
 * The one idea: one permit is one server. As many are at work at a time as the limit says; a transaction whose client
 * thinks is not at work, and is never asked again. Who is next: classes below their floor first, then strictly by
 * priority, and among equals the one whose servers have worked least for its weight (stride scheduling: Waldspurger and
 * Weihl, 1995).
 *
 * Invariants, checked by the simulation in test/sim: no class is admitted beyond its ceiling; a class does not wait
 * while a lower one is admitted, unless it is at its ceiling or the lower one below its floor; permits are conserved;
 * nobody is admitted after its deadline.
 */
import type { Class } from './classes.ts';
import { fixedLimit, type Limit } from './limit.ts';
import { Lane, Permit, type PermitHost } from './permit.ts';
import { type Request, type ShedReason, Ticket } from './queue.ts';
import type { Valve } from './switches.ts';

export type Decision =
  /** It may run. `isWarned`: the gate only observes, and would have let it wait or shed it. */
  | { kind: 'admit'; permit: Permit; isWarned: boolean }
  /** `onAdmit` or `onShed` will be called, unless it leaves before. */
  | { kind: 'wait'; ticket: Ticket }
  | { kind: 'shed'; reason: ShedReason };

export const shedReasons: readonly ShedReason[] = ['switch', 'queue', 'wait', 'deadline', 'overload'];

/** Bytes of one class's requests that are kept while they wait. */
const QUEUE_BYTES_MAX = 16 * 1024 * 1024;

export class Gate implements PermitHost {
  #lanes: readonly Lane[] = [];
  #isEnforced = false;
  #limit: Limit = fixedLimit(Number.POSITIVE_INFINITY);
  #isDispatching = false;

  constructor(classes: readonly Class[], isEnforced: boolean, limit: Limit) {
    this.configure(classes, isEnforced, limit);
  }

  get lanes(): readonly Lane[] {
    return this.#lanes;
  }

  /** Most servers at work at a time. */
  get limit(): number {
    return Math.round(this.#limit.value);
  }

  /** How long statements take at the moment, relative to what is normal for them; 1 while that is not watched. */
  get ratio(): number {
    return this.#limit.ratio;
  }

  /** Servers at work now. */
  get atWork(): number {
    let sum = 0;
    for (const { atWork } of this.#lanes) sum += atWork;
    return sum;
  }

  /**
   * Changes what is in force; classes keep what is known of them by their names. `isEnforced`: requests wait and are shed;
   * otherwise the gate only counts what it would do. Classes that are gone stay until their last request is over.
   */
  configure(classes: readonly Class[], isEnforced: boolean, limit: Limit): void {
    const former = new Set(this.#lanes);
    const lanes = classes.map((each) => {
      const lane = this.#lanes.find(({ class: of }) => of.name === each.name && of.priority === each.priority);
      if (lane === undefined) return new Lane(each);
      former.delete(lane);
      lane.queue.class = each;
      return lane;
    });
    const leaving = [...former].filter((lane) => !lane.isIdle);
    for (const lane of leaving) lane.valve = 1; // Its switch is gone with its class.
    this.#lanes = [...lanes, ...leaving];
    this.#isEnforced = isEnforced;
    this.#limit = limit;
  }

  /** May `request` have a server? */
  decide(request: Request, now: number): Decision {
    const lane = this.#laneOf(request.class);
    lane.counts.offered++;
    // Who was idle has not saved up anything: it starts beside those who were not.
    if (lane.isIdle) lane.pass = Math.max(lane.pass, this.#leastPass(lane));
    if (!lane.passes()) return this.#shed(lane, 'switch');
    const isHeld = lane.valve === 'hold';
    const isFree = this.#isFreeFor(lane);
    if (isFree || !(this.#isEnforced || isHeld)) {
      if (!isFree) lane.counts.observed++;
      return { kind: 'admit', permit: this.#admit(lane, now, 0), isWarned: !isFree };
    }
    const { queue } = lane;
    const isFull = queue.size >= lane.class.queueMax || queue.bytes + request.bytes > QUEUE_BYTES_MAX;
    if (isFull) return this.#shed(lane, 'queue');
    if (this.#waitOf(lane) > (lane.class.deadline || lane.class.waitMax)) return this.#shed(lane, 'overload');
    const ticket = new Ticket(request, now);
    lane.queue.push(ticket);
    return { kind: 'wait', ticket };
  }

  /** Ms that a newcomer would wait at the least, with all servers working for its class. */
  #waitOf(lane: Lane): number {
    return (lane.queue.size * lane.meanMs) / Math.max(1, Math.min(this.limit, lane.ceilingOf(this.limit)));
  }

  /** May a request of this class share a server that is at work already? Not ahead of anybody who waits. */
  mayShare(of: Class): boolean {
    const lane = this.#laneOf(of);
    if (lane.valve !== 1) return false;
    if (!this.#isEnforced) return true;
    return lane.atWork <= lane.ceilingOf(this.limit) && !this.#hasWaiting(lane.rank);
  }

  /** May a request of this class have a server at once? */
  hasRoom(of: Class): boolean {
    const lane = this.#laneOf(of);
    return lane.valve === 1 && (!this.#isEnforced || this.#isFreeFor(lane));
  }

  /** Admits a request of this class that has room (`hasRoom`). */
  admit(of: Class, now: number): Permit {
    const lane = this.#laneOf(of);
    lane.counts.offered++;
    return this.#admit(lane, now, 0);
  }

  /** A request of this class shares a server that is at work already. */
  countShared(of: Class): void {
    const { counts } = this.#laneOf(of);
    counts.offered++;
    counts.admitted++;
  }

  /** Sets what the switch of a class lets pass. */
  setValve(name: string, valve: Valve): void {
    for (const lane of this.#lanes) if (lane.class.name === name) lane.valve = valve;
  }

  /** Its client has gone, or cancelled it. */
  leave(ticket: Ticket): void {
    ticket.queue?.remove(ticket);
  }

  /** Everything that time brings. `lagMs`: how late the event loop is. */
  tick(now: number, lagMs = 0): void {
    this.#limit.tick(now, this.#isBound, lagMs);
    for (const lane of this.#lanes) {
      if (lane.queue.size === 0) continue;
      for (const [ticket, reason] of lane.valve === 0 ? lane.queue.empty('switch') : lane.queue.expire(now)) {
        lane.counts.shed[reason]++;
        ticket.request.onShed(reason);
      }
    }
    this.dispatch(now);
  }

  /** The limit keeps somebody waiting, or would. */
  get #isBound(): boolean {
    return this.atWork >= this.limit || this.#lanes.some((lane) => lane.queue.size > 0);
  }

  /** A permit's server is at work no longer. */
  onRoom(now: number): void {
    this.dispatch(now);
  }

  /** A statement of the shape with this number has taken `ms`. */
  onSample(shape: number, ms: number): void {
    this.#limit.sample(shape, ms, this.atWork);
  }

  /** Admits who is next, as long as there is room. */
  dispatch(now: number): void {
    if (this.#isDispatching) return; // Whoever is admitted may end at once.
    this.#isDispatching = true;
    try {
      for (let lane = this.#next(); lane !== null; lane = this.#next()) {
        const ticket = lane.queue.next()!;
        // It would come too late: not worth starting.
        if (now + lane.meanMs >= ticket.expiresAt) {
          lane.counts.shed.deadline++;
          ticket.request.onShed('deadline');
        } else ticket.request.onAdmit(this.#admit(lane, now, now - ticket.since));
      }
    } finally {
      this.#isDispatching = false;
    }
  }

  #laneOf(of: Class): Lane {
    const lane = this.#lanes.find(({ class: { name } }) => name === of.name);
    if (lane !== undefined) return lane;
    // A client that was classed before the configuration changed.
    const added = new Lane(of);
    this.#lanes = [...this.#lanes, added];
    return added;
  }

  #admit(lane: Lane, now: number, waitMs: number): Permit {
    lane.counts.admitted++;
    lane.waits.observe(waitMs / 1000);
    return new Permit(lane, now, this);
  }

  #leastPass(lane: Lane): number {
    let least = Number.POSITIVE_INFINITY;
    for (const other of this.#lanes) {
      if (other.rank === lane.rank && !other.isIdle && other.pass < least) least = other.pass;
    }
    return least === Number.POSITIVE_INFINITY ? 0 : least;
  }

  #shed(lane: Lane, reason: ShedReason): Decision {
    lane.counts.shed[reason]++;
    return { kind: 'shed', reason };
  }

  /** A newcomer of this class may start at once: there is room, and nobody has a better claim to it. */
  #isFreeFor(lane: Lane): boolean {
    if (lane.valve === 'hold') return false;
    if (!this.#hasRoomFor(lane) || lane.queue.size > 0) return false;
    const next = this.#next();
    return next === null || this.#isBefore(lane, next);
  }

  /** The class whose turn it is, of those that wait; null: nobody, or there is no room. */
  #next(): Lane | null {
    let best: Lane | null = null;
    for (const lane of this.#lanes) {
      if (lane.queue.size === 0 || lane.valve === 'hold') continue;
      // Who waits although the gate only observes was held by a switch, or came before: nothing keeps it any more.
      if (this.#isEnforced && !this.#hasRoomFor(lane)) continue;
      if (best === null || this.#isBefore(lane, best)) best = lane;
    }
    return best;
  }

  /** Its ceiling and the limit allow one more, or its floor promises it. */
  #hasRoomFor(lane: Lane): boolean {
    if (lane.atWork >= lane.ceilingOf(this.limit)) return false;
    return this.atWork < this.limit || lane.atWork < lane.reserveOf(this.limit);
  }

  /** Floors first, then priority, then who has had least. */
  #isBefore(a: Lane, b: Lane): boolean {
    const isBelowA = a.atWork < a.floorOf(this.limit);
    const isBelowB = b.atWork < b.floorOf(this.limit);
    if (isBelowA !== isBelowB) return isBelowA;
    if (a.rank !== b.rank) return a.rank < b.rank;
    return a.pass < b.pass;
  }

  #hasWaiting(rank: number): boolean {
    for (const lane of this.#lanes) {
      const isHeldBack = lane.valve === 'hold' || lane.atWork >= lane.ceilingOf(this.limit);
      if (lane.queue.size > 0 && lane.rank <= rank && !isHeldBack) return true;
    }
    return false;
  }
}
