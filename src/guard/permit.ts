/**
 * One class at one gate, and the right to have one server at work for it. Owned by guard/gate.
 *
 * The one idea: what a class has had is counted in the time that servers have worked for it, by weight (`pass`). Each
 * permit is charged with what its statement should take at once, and with the rest when it is known, so that a class with long
 * statements does not get more of them because none has ended yet.
 */
import { Histogram } from '../util/histogram.ts';
import { type Class, priorities } from './classes.ts';
import { ClassQueue, type ShedReason } from './queue.ts';
import { Retries } from './retries.ts';
import type { Valve } from './switches.ts';

/** Plain counters of one class, read at scrape time. */
export interface ClassCounts {
  offered: number;
  admitted: number;
  shed: Record<ShedReason, number>;
  /** Asked again after a refusal, of those that could not be admitted at once. */
  retries: number;
  /** Admitted because the gate only observes, but would have waited or been shed. */
  observed: number;
  /** Time in which servers worked for it. */
  workMs: number;
}

/** How many samples the mean remembers. */
const MEAN_SAMPLES = 32;
/** What is paid in advance for what nothing is known of. */
export const UNKNOWN_MS = 20;
/** What `of late` is: the weight of what was falls to 1/e in it. */
const RECENT_MS = 2_000;

export class Lane {
  readonly rank: number;
  readonly queue: ClassQueue;
  readonly retries = new Retries();
  /** Its permits, and those of them whose servers are at work. */
  permits = 0;
  atWork = 0;
  /** Work done for it, in ms by weight: who has least is next among equals. */
  pass = 0;
  /** What a switch lets pass: a share, or nothing but all of it waits. */
  valve: Valve = 1;
  #passed = 0;
  #recent = 0;
  #recentSince = 0;
  /** Recent mean of the time that a server works for one permit, in ms. */
  meanMs = 0;
  /** Recent mean of what one permit costs: what its statements take in calm, in ms; 0: not known. */
  costMs = 0;
  #samples = 0;
  /** How long its requests have waited to be admitted, in seconds. */
  readonly waits = new Histogram();
  readonly counts: ClassCounts = {
    offered: 0,
    admitted: 0,
    shed: { switch: 0, credits: 0, throttle: 0, queue: 0, wait: 0, deadline: 0, overload: 0, hold: 0 },
    retries: 0,
    observed: 0,
    workMs: 0,
  };

  constructor(of: Class) {
    this.rank = priorities.indexOf(of.priority);
    this.queue = new ClassQueue(of);
  }

  get class(): Class {
    return this.queue.class;
  }

  /** Nobody has a permit or waits for one. */
  get isIdle(): boolean {
    return this.permits === 0 && this.queue.size === 0;
  }

  /**
   * It has less than its floor: now, and of late. A floor of a tenth of a server is a tenth of the time, not the first turn
   * whenever none is at work.
   */
  isBelowFloor(limit: number, now: number): boolean {
    const floor = this.floorOf(limit);
    return this.atWork < floor && (floor >= 1 || this.#recentAt(now) < floor);
  }

  /** Servers at work on average, of late. */
  #recentAt(now: number): number {
    return this.atWork + (this.#recent - this.atWork) * Math.exp((this.#recentSince - now) / RECENT_MS);
  }

  /** `by` servers more, or less, are at work for it. */
  change(by: 1 | -1, now: number): void {
    this.#recent = this.#recentAt(now);
    this.#recentSince = now;
    this.atWork += by;
  }

  /** Servers at work that it gets whatever others want. */
  floorOf(limit: number): number {
    return Number.isFinite(limit) ? Math.max(this.class.floorServers, this.class.floor * limit) : 0;
  }

  /** Whole servers of its floor: these it gets although the limit is reached, because others may hold theirs for long. */
  reserveOf(limit: number): number {
    return Math.round(this.floorOf(limit));
  }

  /** Most servers at work; at least one: what may not run at all is for switches. */
  ceilingOf(limit: number): number {
    const { ceiling, serversMax } = this.class;
    return Math.min(serversMax, ceiling < 1 ? Math.max(1, Math.floor(ceiling * limit)) : Number.POSITIVE_INFINITY);
  }

  /** Does the switch let the next request pass? Of a share of 25 % every fourth does. */
  passes(): boolean {
    if (this.valve === 'hold') return true;
    this.#passed += this.valve;
    if (this.#passed < 1) return false;
    this.#passed -= 1;
    return true;
  }

  /** A permit has had its server at work for `ms` in all, at a cost of `costMs`. */
  learn(ms: number, costMs: number): void {
    this.#samples = Math.min(this.#samples + 1, MEAN_SAMPLES);
    this.meanMs += (ms - this.meanMs) / this.#samples;
    this.costMs += (costMs - this.costMs) / this.#samples;
  }
}

/** Who has given a permit. */
export interface PermitHost {
  onRoom(now: number): void;
  /** A statement of the shape with this number (0: not known) has taken `ms`. Gives what it costs: what it takes in calm. */
  onSample(shape: number, ms: number): number;
  /** Work of this rank has been given out, or given back (guard/budget). */
  charge(rank: number, ms: number): void;
}

export class Permit {
  readonly lane: Lane;
  readonly #host: PermitHost;
  #state: 'working' | 'resting' | 'ended' = 'working';
  #since: number;
  /** What the lane has been charged with in advance, and how long the server has worked. */
  #charged: number;
  #workedMs = 0;
  /** What has been paid for in advance and not been used yet, and what has been used, in ms. */
  #prepaid: number;
  #costMs = 0;
  /** Of what it has worked, that of statements which are done. */
  #sampledMs = 0;

  /** `cost`: ms that its server is expected to work for it. */
  constructor(lane: Lane, now: number, host: PermitHost, cost: number) {
    this.lane = lane;
    this.#host = host;
    this.#since = now;
    this.#charged = cost;
    this.#prepaid = cost || UNKNOWN_MS;
    host.charge(lane.rank, this.#prepaid);
    lane.permits++;
    lane.change(1, now);
    lane.pass += this.#charged / lane.class.weight;
  }

  /** Its server has nothing to do: its client thinks, in a transaction or pinned. */
  rest(now: number): void {
    if (this.#state !== 'working') return;
    this.#state = 'resting';
    this.#stopWork(now);
    this.#host.onRoom(now);
  }

  /**
   * A statement of the shape with this number (0: not known) has taken `ms`. `rank`: whose it was, on a shared server.
   * Gives what it has cost: what it takes in calm.
   */
  sample(shape: number, ms: number, rank = this.lane.rank): number {
    this.#sampledMs += ms;
    const cost = this.#host.onSample(shape, ms);
    this.#pay(rank, cost);
    return cost;
  }

  #pay(rank: number, cost: number): void {
    const paid = rank === this.lane.rank ? Math.min(this.#prepaid, cost) : 0;
    this.#prepaid -= paid;
    this.#costMs += cost;
    this.#host.charge(rank, cost - paid);
  }

  /** Its client asks for more. Nobody is made to wait within a transaction: it may hold locks. */
  work(now: number): void {
    if (this.#state !== 'resting') return;
    this.#state = 'working';
    this.#since = now;
    this.lane.change(1, now);
  }

  /** The transaction is over, however it ended. Ending it again does nothing. */
  end(now: number): void {
    if (this.#state === 'ended') return;
    if (this.#state === 'working') this.#stopWork(now);
    this.#state = 'ended';
    this.lane.permits--;
    // What it was at when its client or its server went has cost something as well.
    this.#pay(this.lane.rank, Math.max(0, this.#workedMs - this.#sampledMs));
    this.#host.charge(this.lane.rank, -this.#prepaid);
    this.#prepaid = 0;
    this.lane.learn(this.#workedMs, this.#costMs);
    this.#host.onRoom(now);
  }

  #stopWork(now: number): void {
    const { lane } = this;
    const ms = now - this.#since;
    lane.change(-1, now);
    lane.counts.workMs += ms;
    lane.pass += (ms - this.#charged) / lane.class.weight;
    this.#charged = 0;
    this.#workedMs += ms;
  }
}
