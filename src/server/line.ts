/**
 * Several clients' short reads in flight on one server, in order. Made by server/lines, boarded by client/session.
 *
 *     sent      [a: Query] [b: Bind Execute Sync] [c: Query]      one system call for what arrives in one turn
 *     answered  a's rows, Z · b's rows, Z · c's rows, Z           each reply judged by the head of the queue
 *
 * The one idea: a request that is one autocommit read leaves nothing behind on its server, so the next may be sent
 * before its answer is there. Nothing else may ride: no transaction, no write, no session effect (sql/read).
 *
 * Why riders cannot touch each other:
 * - every entry of the queue (protocol/outstanding) has its rider as its owner, and replies go to the owner;
 * - every ride ends with its own ReadyForQuery, and an error discards no further than its own Sync;
 * - riders have the very settings of the server; statements have names of the pool's; the unnamed ones are replaced;
 * - a CancelRequest hits whatever runs when it arrives, so it is sent only when its rider is alone on the server.
 *
 * Invariants: a line has at most RIDERS_MAX riders and BACKLOG_MAX_MS of expected work; nobody boards behind a head
 * that takes longer than SLOW_MS; the line ends, and its server goes back to the pool, when the last rider has left.
 */
import type { Clock } from '../util/clock.ts';
import { CANCEL_MS, type Owner, type ServerConnection } from './connection.ts';
import type { ReadCost } from './reads.ts';
import type { Settings } from './settings.ts';
import type { Statement } from './statements.ts';

/** A client's session whose request rides. It is the owner of the entries of its request. */
export interface Rider extends Owner {
  /** Bytes that it has been given so far. */
  readonly delivered: number;
  /** Of its class (guard/classes). */
  readonly rank: number;
  /** Its answer, of the shape with this number, has been delivered whole, after ms of its server that would have been `costMs` in calm. */
  onRideEnd(shape: number, ms: number, costMs: number): void;
}

/** What a read asks of the server that it rides on. */
export interface Wish {
  cost: ReadCost;
  /** The named statement that it runs, which the server must have. */
  statement: Statement | null;
}

interface Ride {
  rider: Rider;
  cost: ReadCost;
  expectedMs: number;
  /** `rider.delivered` at the start. */
  before: number;
  isCancelWanted: boolean;
}

/** Requests in flight on one server. */
const RIDERS_MAX = 16;
/** Expected work of all of them together. */
const BACKLOG_MAX_MS = 20;
/** A head that takes longer turns out not to be short. */
const SLOW_MS = 20;

export class Line implements Owner {
  readonly server: ServerConnection;
  readonly #clock: Clock;
  readonly #onRoom: (line: Line) => void;
  readonly #onEnd: (line: Line) => void;
  readonly #rides: Ride[] = [];
  /** What its server is at work by (guard/gate), ended with the line. */
  permit: { sample(shape: number, ms: number, rank: number): number; end(now: number): void } | null = null;
  #backlogMs = 0;
  /** Since when the server works for the head. */
  #headSince = 0;
  /** Nobody boards any more: someone is to be cancelled. */
  #isClosed = false;

  /** `onRoom` is called when a rider has left, `onEnd` when the last has. */
  constructor(
    server: ServerConnection,
    clock: Clock,
    { onRoom, onEnd }: { onRoom: (line: Line) => void; onEnd: (line: Line) => void },
  ) {
    this.server = server;
    this.#clock = clock;
    this.#onRoom = onRoom;
    this.#onEnd = onEnd;
    server.holder = this;
  }

  get size(): number {
    return this.#rides.length;
  }

  get backlogMs(): number {
    return this.#backlogMs;
  }

  /** May a read of a client with these settings board? */
  suits(settings: Settings, { cost, statement }: Wish): boolean {
    const { server } = this;
    return (
      server.settings === settings &&
      (statement === null || server.statements.isReady(statement)) &&
      !this.#isClosed &&
      !server.isDoomed &&
      server.isWritable &&
      this.#rides.length < RIDERS_MAX &&
      this.#backlogMs + cost.meanMs <= BACKLOG_MAX_MS &&
      (this.#rides.length === 0 || this.#clock.now() - this.#headSince < SLOW_MS)
    );
  }

  /** `rider` boards: from here on, and up to its Query or Sync, it sends to the server. */
  board(rider: Rider, cost: ReadCost): void {
    if (this.#rides.length === 0) this.#headSince = this.#clock.now();
    const expectedMs = cost.meanMs;
    this.#rides.push({ rider, cost, expectedMs, before: rider.delivered, isCancelWanted: false });
    this.#backlogMs += expectedMs;
  }

  /** The client of `rider` has gone: its answers are nobody's, and what it runs is cancelled if it is alone. */
  abandon(rider: Rider): void {
    this.server.outstanding.abandon(rider);
    this.cancel(rider);
  }

  /** Cancels what `rider` has sent, when nobody else is on the server: until then the wish waits, or comes to nothing. */
  cancel(rider: Rider): void {
    for (const ride of this.#rides) if (ride.rider === rider) ride.isCancelWanted = true;
    this.#isClosed = true;
    this.#cancelIfAlone();
  }

  /**
   * What time brings. A cancel request that reaches Postgres between two statements, before it has read the next, is
   * ignored there, so it is repeated. What has run for longer than `queryMax` ms (0: no limit) is cancelled as well, and
   * its server closed when that does not help, or cannot be tried because of those behind. Gives the limit that has just
   * been exceeded.
   */
  tick(now: number, queryMax: number): 'query' | 'cancel' | null {
    const head = this.#rides[0];
    if (head === undefined) return null;
    const elapsed = now - this.#headSince;
    if (queryMax === 0 || elapsed <= queryMax) {
      this.#cancelIfAlone();
      return null;
    }
    if (elapsed > queryMax + CANCEL_MS) {
      this.server.close('a shared read beyond pool.queryMax could not be cancelled');
      return 'cancel';
    }
    const isNew = !head.isCancelWanted;
    this.cancel(head.rider);
    return isNew ? 'query' : null;
  }

  #cancelIfAlone(): void {
    if (this.#rides.length === 1 && this.#rides[0]!.isCancelWanted) this.server.cancel(this);
  }

  // --- From the server ------------------------------------------------------------------------------------------

  /** A ReadyForQuery has been delivered: the head's ride is over. */
  onReady(): void {
    const ride = this.#rides.shift();
    if (ride === undefined) return;
    const now = this.#clock.now();
    const { rider, cost } = ride;
    const ms = now - this.#headSince;
    cost.add(ms, rider.delivered - ride.before);
    const costMs = this.permit?.sample(cost.number, ms, rider.rank) ?? ms;
    this.#headSince = now;
    this.#backlogMs = this.#rides.length === 0 ? 0 : this.#backlogMs - ride.expectedMs;
    rider.onRideEnd(cost.number, ms, costMs);
    if (this.#isClosed) this.#cancelIfAlone();
    else this.#onRoom(this);
  }

  /** What belongs to no request, such as a notice, is the head's. */
  deliver(bytes: Buffer): boolean {
    return this.#rides[0]?.rider.deliver(bytes) ?? true;
  }

  onProgress(): void {
    if (this.server.outstanding.isLost)
      return this.server.close('the server sent a reply that does not fit any request');
    if (this.#rides.length === 0 && this.server.isFree) this.#end();
  }

  #end(): void {
    const { permit } = this;
    this.permit = null;
    this.#onEnd(this);
    permit?.end(this.#clock.now());
  }

  onWritable(): void {}

  onParameter(name: string, value: string): void {
    this.#rides[0]?.rider.onParameter(name, value);
  }

  onTag(): void {}

  onLost(reason: string, isTold: boolean): void {
    const rides = this.#rides.splice(0);
    for (const [index, { rider }] of rides.entries()) rider.onLost(reason, isTold && index === 0);
    this.#end();
  }
}
