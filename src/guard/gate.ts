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
import { type Budget, unlimited } from './budget.ts';
import type { Class } from './classes.ts';
import { FixedLimit, type Limit } from './limit.ts';
import { Lane, Permit, type PermitHost, UNKNOWN_MS } from './permit.ts';
import { type Request, type Shed, type ShedReason, Ticket } from './queue.ts';
import type { Attempt } from './retries.ts';
import type { Valve } from './switches.ts';
import { Tarpit } from './tarpit.ts';

export type Decision =
  /**
   * It may run. `isWarned`: the gate only observes, and would have let it wait or shed it. `isPoor`: so would the budget, if
   * it did not only warn.
   */
  | { kind: 'admit'; permit: Permit; isWarned: boolean; isPoor: boolean }
  /** `onAdmit` or `onShed` will be called, unless it leaves before. */
  | { kind: 'wait'; ticket: Ticket }
  | ({ kind: 'shed' } & Shed);

export const shedReasons: readonly ShedReason[] = [
  'switch',
  'credits',
  'throttle',
  'queue',
  'wait',
  'deadline',
  'overload',
  'hold',
];

/** While a host has no primary: requests wait for one. */
export interface Outage {
  /** May a request with so many bytes wait as well? */
  mayHold(bytes: number): boolean;
}

/** What is in force at a gate. */
export interface GateRules {
  classes: readonly Class[];
  /** Requests wait and are shed; otherwise the gate only counts what it would do. */
  isEnforced: boolean;
  limit: Limit;
  /** Retries allowed for each first attempt (guard/retries). */
  retryRatio: number;
  /** What the switches let pass of a class. */
  valveOf: (of: Class) => Valve;
  /** What the host may spend. */
  budget: Budget;
}

/** Servers at work and their limit (null: none) on the host, and what holds for one class; times in ms. */
export interface GateInputs {
  limit: number | null;
  atWork: number;
  /** How long statements take, relative to what is normal. */
  slowdown: number;
  zone: string;
  classAtWork?: number;
  waiting?: number;
  queueMax?: number;
  waitMax?: number;
  isOverloaded?: boolean;
  floor?: number;
  ceiling?: number | null;
  /** What its switch lets pass. */
  switch?: Valve;
  meanMs?: number;
  costMs?: number;
}

/** Bytes of one class's requests that are kept while they wait. */
const QUEUE_BYTES_MAX = 16 * 1024 * 1024;
/** A queue that is not empty for so long may be overloaded, in ms; and in means of the longest work (controlled delay: interval). */
const INTERVAL_MIN_MS = 100;
const INTERVAL_MEANS = 3;
/** A host that nobody has asked for so long is not in use. */
const USED_MS = 60_000;

export class Gate implements PermitHost {
  #lanes: readonly Lane[] = [];
  #isEnforced = false;
  #limit: Limit = new FixedLimit(Number.POSITIVE_INFINITY);
  #retryRatio = 0;
  #valveOf: GateRules['valveOf'] = () => 1;
  #budget: Budget = unlimited;
  #outage: Outage | null = null;
  #isDispatching = false;
  /** What had been asked here at the last tick, and when the last of it was. */
  #offered = 0;
  #askedAt = Number.NEGATIVE_INFINITY;
  readonly #tarpit: Tarpit;

  constructor(rules: GateRules, tarpit = new Tarpit()) {
    this.#tarpit = tarpit;
    this.configure(rules);
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

  /** How the reserve of the host is doing; '' when it has none. */
  get zone(): string {
    return this.#budget.zone;
  }

  /** What decisions about a class rest on at the moment. */
  inputsOf(className: string): GateInputs {
    const lane = this.#lanes.find(({ class: { name } }) => name === className);
    const finite = (value: number) => (Number.isFinite(value) ? value : null);
    const inputs = {
      limit: finite(this.limit),
      atWork: this.atWork,
      slowdown: Number(this.ratio.toFixed(2)),
      zone: this.zone,
    };
    if (lane === undefined) return inputs;
    const { queue, valve, meanMs, costMs } = lane;
    return {
      ...inputs,
      classAtWork: lane.atWork,
      waiting: queue.size,
      queueMax: lane.class.queueMax,
      waitMax: lane.class.waitMax,
      isOverloaded: queue.isOverloaded,
      floor: Number(lane.floorOf(this.#limit.value).toFixed(2)),
      ceiling: finite(lane.ceilingOf(this.#limit.value)),
      switch: valve,
      meanMs: Number(meanMs.toFixed(2)),
      costMs: Number(costMs.toFixed(2)),
    };
  }

  /** Somebody has asked here of late. */
  isInUse(now: number): boolean {
    return now - this.#askedAt < USED_MS || this.atWork > 0 || this.waiting > 0;
  }

  /** Servers at work now. */
  get atWork(): number {
    let sum = 0;
    for (const { atWork } of this.#lanes) sum += atWork;
    return sum;
  }

  /**
   * Changes what is in force; classes keep what is known of them by their names. Classes that are gone stay until their last
   * request is over.
   */
  configure({ classes, isEnforced, limit, retryRatio, valveOf, budget }: GateRules): void {
    const former = new Set(this.#lanes);
    const lanes = classes.map((each) => {
      const lane = this.#lanes.find(({ class: of }) => of.name === each.name && of.priority === each.priority);
      if (lane === undefined) return new Lane(each);
      former.delete(lane);
      lane.queue.class = each;
      return lane;
    });
    const leaving = [...former].filter((lane) => !lane.isIdle);
    this.#lanes = [...lanes, ...leaving];
    this.#isEnforced = isEnforced;
    this.#limit = limit;
    this.#retryRatio = retryRatio;
    this.#valveOf = valveOf;
    this.#budget = budget;
    this.turnValves();
  }

  /** May `request` have a server? */
  decide(request: Request, now: number): Decision {
    const lane = this.#laneOf(request.class);
    lane.counts.offered++;
    // Who was idle has not saved up anything: it starts beside those who were not.
    if (lane.isIdle) lane.pass = Math.max(lane.pass, this.#leastPass(lane));
    if (!lane.passes()) return this.#shed(lane, 'switch', request, this.#attemptOf(lane, request, now), now);
    if (this.#isHeld) return this.#hold(lane, request, now);
    const isFree = this.#isFreeFor(lane, now);
    if (!isFree && (this.#isEnforced || lane.valve === 'hold')) return this.#queue(lane, request, now);
    if (!isFree) lane.counts.observed++;
    lane.retries.admitted(request.application, now);
    const isPoor = this.#budget.warns(lane.rank);
    return { kind: 'admit', permit: this.#admit(lane, now, 0, this.#costOf(lane, request)), isWarned: !isFree, isPoor };
  }

  /** Lets `request` wait, if that is worth it. */
  #queue(lane: Lane, request: Request, now: number): Decision {
    const attempt = this.#attemptOf(lane, request, now);
    const reason = this.#reasonAgainst(lane, request, attempt, now);
    if (reason !== null) return this.#shed(lane, reason, request, attempt, now);
    const ticket = new Ticket(request, now, attempt, this.#costOf(lane, request));
    lane.queue.push(ticket);
    return { kind: 'wait', ticket };
  }

  /** The host cannot be reached, and who is next is decided here when it can be. */
  get #isHeld(): boolean {
    return this.#outage !== null && this.#isEnforced;
  }

  #hold(lane: Lane, request: Request, now: number): Decision {
    const attempt = this.#attemptOf(lane, request, now);
    if (!this.#outage!.mayHold(request.bytes)) return this.#shed(lane, 'hold', request, attempt, now);
    const ticket = new Ticket(request, now, attempt, this.#costOf(lane, request));
    lane.queue.push(ticket);
    return { kind: 'wait', ticket };
  }

  /** Why everybody is kept here; null: nobody is. */
  get outage(): Outage | null {
    return this.#outage;
  }

  /** The host has no primary any more, or again (null): what has waited starts anew. */
  setOutage(outage: Outage | null, now: number): void {
    if (this.#outage !== null && outage === null) for (const { queue } of this.#lanes) queue.forgive(now);
    this.#outage = outage;
    this.dispatch(now);
  }

  /** The primary is another host: who waits here is to wait there. */
  moveAll(now: number): void {
    // The highest first: that is the order in which they are admitted there.
    for (const { queue } of [...this.#lanes].sort((a, b) => a.rank - b.rank))
      for (const [{ request }] of queue.empty('hold')) request.onMoved(now);
  }

  /** Requests that wait, and their bytes. */
  get waiting(): number {
    return this.#lanes.reduce((sum, { queue }) => sum + queue.size, 0);
  }

  get waitingBytes(): number {
    return this.#lanes.reduce((sum, { queue }) => sum + queue.bytes, 0);
  }

  /** Why `request` shall not even wait; null: it may. */
  #reasonAgainst(lane: Lane, request: Request, attempt: Attempt, now: number): ShedReason | null {
    const { queue } = lane;
    const { queueMax, deadline, waitMax } = lane.class;
    // A switch that holds keeps all there is; nobody is overloaded because of it.
    const isHeld = lane.valve === 'hold';
    if (!isHeld && queue.isOverloaded && lane.retries.isThrottled(request.application, now)) return 'throttle';
    // Half of the queue is for first attempts.
    if (queue.size >= (attempt.isSurplus ? queueMax / 2 : queueMax)) return 'queue';
    if (queue.bytes + request.bytes > QUEUE_BYTES_MAX) return 'queue';
    return !isHeld && this.#waitOf(lane) > (deadline || waitMax) ? 'overload' : null;
  }

  #attemptOf(lane: Lane, request: Request, now: number): Attempt {
    const attempt = lane.retries.arrive(request.application, request.fingerprint(), now, this.#retryRatio);
    if (attempt.isRetry) lane.counts.retries++;
    return attempt;
  }

  /** Ms that a server is expected to work for `request`: what its shape takes, else what its class does. */
  #costOf(lane: Lane, { shape }: Request): number {
    return this.#limit.baselines.costOf(shape) || lane.meanMs;
  }

  /** Ms that a newcomer would wait at the least, with all servers working for its class. */
  #waitOf(lane: Lane): number {
    return lane.queue.cost / Math.max(1, Math.min(this.limit, lane.ceilingOf(this.limit)));
  }

  /** May a request of this class share a server that is at work already? Not ahead of anybody who waits. */
  mayShare(of: Class): boolean {
    const lane = this.#laneOf(of);
    if (lane.valve !== 1) return false;
    if (!this.#isEnforced) return true;
    if (this.#isHeld) return false;
    if (!this.#budget.isOpenFor(lane.rank)) return false;
    return lane.atWork <= lane.ceilingOf(this.limit) && !this.#hasWaiting(lane.rank);
  }

  /** May a request of this class have a server at once? */
  hasRoom(of: Class, now: number): boolean {
    const lane = this.#laneOf(of);
    return lane.valve === 1 && (!this.#isEnforced || this.#isFreeFor(lane, now));
  }

  /** Admits a request of this class that has room (`hasRoom`). */
  admit(of: Class, now: number): Permit {
    const lane = this.#laneOf(of);
    lane.counts.offered++;
    return this.#admit(lane, now, 0, lane.meanMs);
  }

  /** A request of this class shares a server that is at work already. */
  countShared(of: Class): void {
    const { counts } = this.#laneOf(of);
    counts.offered++;
    counts.admitted++;
  }

  /** Some switch has changed. */
  turnValves(): void {
    for (const lane of this.#lanes) lane.valve = this.#valveOf(lane.class);
  }

  /** Its client has gone, or cancelled it. */
  leave(ticket: Ticket): void {
    ticket.queue?.remove(ticket);
  }

  /** Everything that time brings. `lagMs`: how late the event loop is. */
  tick(now: number, lagMs = 0): void {
    let offered = 0;
    for (const { counts } of this.#lanes) offered += counts.offered;
    if (offered !== this.#offered) this.#askedAt = now;
    this.#offered = offered;
    this.#limit.tick(now, this.#isBound, lagMs);
    const interval = this.#intervalMs;
    for (const lane of this.#lanes) {
      if (lane.queue.size === 0) continue;
      const isPoor = this.#isEnforced && !this.#isHeld && !this.#budget.isOpenFor(lane.rank);
      const over = () => (this.#isHeld ? lane.queue.expireHeld(now) : lane.queue.expire(now, interval));
      for (const [ticket, reason] of lane.valve === 0 ? lane.queue.empty('switch') : over()) {
        this.#shedTicket(lane, ticket, isPoor && reason !== 'switch' ? 'credits' : reason, now);
      }
    }
    this.dispatch(now);
  }

  /** For how long somebody may have to wait although nothing is wrong: until the longest that run are done. */
  get #intervalMs(): number {
    let longest = 0;
    for (const { meanMs } of this.#lanes) longest = Math.max(longest, meanMs);
    return Math.max(INTERVAL_MIN_MS, INTERVAL_MEANS * longest);
  }

  /** The limit keeps somebody waiting, or would. */
  get #isBound(): boolean {
    // Who waits for credits or a switch says nothing of the limit.
    const waits = (lane: Lane) => lane.queue.size > 0 && lane.valve !== 'hold' && this.#budget.isOpenFor(lane.rank);
    return this.atWork >= this.limit || this.#lanes.some(waits);
  }

  /** A permit's server is at work no longer. */
  onRoom(now: number): void {
    this.dispatch(now);
  }

  /** A statement of the shape with this number has taken `ms`. */
  onSample(shape: number, ms: number): number {
    if (shape === 0) return ms;
    this.#limit.sample(shape, ms, this.atWork);
    return this.#limit.baselines.costOf(shape) || ms;
  }

  charge(rank: number, ms: number): void {
    this.#budget.charge(rank, ms);
  }

  /** What one request of this class costs of late, in ms. */
  costOf(className: string): number {
    return this.#lanes.find(({ class: { name } }) => name === className)?.costMs || UNKNOWN_MS;
  }

  /** Ms of work that waits and is not critical. */
  get backlogMs(): number {
    let sum = 0;
    for (const lane of this.#lanes) if (lane.rank > 0) sum += lane.queue.cost;
    return sum;
  }

  /** Admits who is next, as long as there is room. */
  dispatch(now: number): void {
    if (this.#isDispatching) return; // Whoever is admitted may end at once.
    this.#isDispatching = true;
    try {
      for (let lane = this.#next(now); lane !== null; lane = this.#next(now)) {
        const ticket = lane.queue.next()!;
        const { request, cost } = ticket;
        // It would come too late: not worth starting.
        if (now + cost >= ticket.expiresAt) this.#shedTicket(lane, ticket, 'deadline', now);
        else {
          lane.retries.admitted(request.application, now);
          request.onAdmit(this.#admit(lane, now, now - ticket.since, cost));
        }
      }
    } finally {
      this.#isDispatching = false;
    }
  }

  #laneOf(of: Class): Lane {
    const lane = this.#lanes.find(({ class: { name } }) => name === of.name);
    if (lane !== undefined) return lane;
    // A client that was classed before the configuration changed, or the part of a class that a switch is for.
    const added = new Lane(of);
    added.valve = this.#valveOf(of);
    this.#lanes = [...this.#lanes, added];
    return added;
  }

  #admit(lane: Lane, now: number, waitMs: number, cost: number): Permit {
    lane.counts.admitted++;
    lane.waits.observe(waitMs / 1000);
    return new Permit(lane, now, this, cost);
  }

  #leastPass(lane: Lane): number {
    let least = Number.POSITIVE_INFINITY;
    for (const other of this.#lanes) {
      if (other.rank === lane.rank && !other.isIdle && other.pass < least) least = other.pass;
    }
    return least === Number.POSITIVE_INFINITY ? 0 : least;
  }

  #shed(lane: Lane, reason: ShedReason, request: Request, attempt: Attempt, now: number): Decision {
    return { kind: 'shed', ...this.#count(lane, reason, request, attempt, now, 0) };
  }

  #shedTicket(lane: Lane, { request, attempt, since }: Ticket, reason: ShedReason, now: number): void {
    request.onShed(this.#count(lane, reason, request, attempt, now, now - since), now);
  }

  /** Counts a refusal, and says how long its answer is to be kept. */
  #count(lane: Lane, reason: ShedReason, request: Request, attempt: Attempt, now: number, waitedMs: number): Shed {
    lane.counts.shed[reason]++;
    const delayMs = Math.max(0, this.#tarpit.delayOf(request.haste, now) - waitedMs);
    lane.retries.refused(request.application, attempt, now + delayMs);
    return { reason, delayMs };
  }

  /** A newcomer of this class may start at once: there is room, and nobody has a better claim to it. */
  #isFreeFor(lane: Lane, now: number): boolean {
    if (lane.valve === 'hold' || this.#isHeld) return false;
    if (!this.#hasRoomFor(lane) || lane.queue.size > 0) return false;
    const next = this.#next(now);
    return next === null || this.#isBefore(lane, next, now);
  }

  /** The class whose turn it is, of those that wait; null: nobody, or there is no room. */
  #next(now: number): Lane | null {
    if (this.#isHeld) return null;
    let best: Lane | null = null;
    for (const lane of this.#lanes) {
      if (lane.queue.size === 0 || lane.valve === 'hold') continue;
      // Who waits although the gate only observes was held by a switch, or came before: nothing keeps it any more.
      if (this.#isEnforced && !this.#hasRoomFor(lane)) continue;
      if (best === null || this.#isBefore(lane, best, now)) best = lane;
    }
    return best;
  }

  /** Its budget, its ceiling and the limit allow one more, or its floor promises it. */
  #hasRoomFor(lane: Lane): boolean {
    if (!this.#budget.isOpenFor(lane.rank)) return false;
    if (lane.atWork >= lane.ceilingOf(this.limit)) return false;
    return this.atWork < this.limit || lane.atWork < lane.reserveOf(this.limit);
  }

  /** Floors first, then priority, then who has had least. */
  #isBefore(a: Lane, b: Lane, now: number): boolean {
    const isBelowA = a.isBelowFloor(this.limit, now);
    const isBelowB = b.isBelowFloor(this.limit, now);
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
