/**
 * How many connections several pools may have together: those on one host, those of one database, those of one user
 * (`serversMax`, `pool.sizeTotal`, `users.*.serversMax`), so that fifty users cannot open a thousand. Called by
 * server/pool before it connects.
 *
 * The one idea: at the cap, an idle server of the pool that has most of them makes room; when none is idle, the pool
 * stands in a queue, and a pool that holds more servers than the neediest there gives one up when it becomes free. Where there
 * are more pools than servers they take turns, TURN_MS each.
 */
import type { Clock } from '../util/clock.ts';

/** What a cap needs to know of a pool. */
export interface Tenant {
  /** Servers open or being opened. */
  readonly serverCount: number;
  readonly idleCount: number;
  /** When the newest of its servers was opened. */
  readonly openedAt: number;
  /** Closes the server that has been idle longest. */
  evictIdle(): void;
  /** There is room: connect now. */
  onRoom(): void;
}

/** Who has one server keeps it for so long, even from who has none: connecting is not to be most of what they do. */
const TURN_MS = 100;

export class Cap {
  serversMax: number;
  /** Connections open or being opened. */
  count = 0;
  /** Idle servers closed to make room for another pool. */
  evictions = 0;
  readonly #tenants = new Set<Tenant>();
  /** Pools that want a connection and found no room, oldest first. */
  readonly #queue = new Set<Tenant>();

  constructor(serversMax: number) {
    this.serversMax = serversMax;
  }

  /** There is room that nobody stands in the queue for. */
  get hasSpare(): boolean {
    return this.count < this.serversMax && this.#queue.size === 0;
  }

  get isUnused(): boolean {
    return this.#tenants.size === 0 && this.count === 0;
  }

  join(tenant: Tenant): void {
    this.#tenants.add(tenant);
  }

  part(tenant: Tenant): void {
    this.#tenants.delete(tenant);
    this.#queue.delete(tenant);
  }

  /** Takes room for one more connection of `tenant`; false: it stands in the queue and will be told. */
  take(tenant: Tenant): boolean {
    if (this.count >= this.serversMax && !this.#evict(tenant)) {
      this.#queue.add(tenant);
      return false;
    }
    this.count++;
    this.#queue.delete(tenant);
    return true;
  }

  /** A connection of `tenant` is gone, which has had its turn: others that have as few come first. */
  release(tenant: Tenant): void {
    this.count--;
    if (this.count >= this.serversMax) return;
    const next = this.#neediest((each) => each.serverCount + (each === tenant ? 1 : 0));
    if (next === null) return;
    this.#queue.delete(next);
    next.onRoom();
  }

  /** A tenant no longer wants what it stands in the queue for. */
  leaveQueue(tenant: Tenant): void {
    this.#queue.delete(tenant);
  }

  /**
   * Should `tenant`, which has `count` servers with the one to spare or to hand on, give that up for another in the queue? Not if
   * it then has fewer; but who has none is next after a while.
   */
  owes(tenant: Tenant, count: number, clock: Clock): boolean {
    if (this.#queue.size === 0) return false;
    const next = this.#neediest((each) => (each === tenant ? Number.POSITIVE_INFINITY : each.serverCount));
    if (next === null || next === tenant) return false;
    if (next.serverCount > 0 || count > 1) return count > next.serverCount + 1;
    return clock.now() - tenant.openedAt >= TURN_MS;
  }

  /** Of those in the queue the one that has least, the oldest of several; null: nobody is there. */
  #neediest(countOf: (tenant: Tenant) => number): Tenant | null {
    let neediest: Tenant | null = null;
    let least = Number.POSITIVE_INFINITY;
    for (const tenant of this.#queue) {
      const count = countOf(tenant);
      if (neediest !== null && count >= least) continue;
      neediest = tenant;
      least = count;
      if (least === 0) break;
    }
    return neediest;
  }

  /** Is someone else in the queue, so that a server should not stay idle? */
  hasQueue(tenant: Tenant): boolean {
    for (const waiting of this.#queue) if (waiting !== tenant) return true;
    return false;
  }

  #evict(forTenant: Tenant): boolean {
    let richest: Tenant | null = null;
    for (const tenant of this.#tenants) {
      if (tenant === forTenant || tenant.idleCount === 0) continue;
      if (richest === null || tenant.serverCount > richest.serverCount) richest = tenant;
    }
    if (richest === null) return false;
    this.evictions++;
    richest.evictIdle();
    return this.count < this.serversMax;
  }
}

/** All caps that hold for one pool: there is room when each has some. */
export class Room {
  readonly #tenant: Tenant;
  readonly #caps: readonly Cap[];

  constructor(tenant: Tenant, caps: readonly Cap[]) {
    this.#tenant = tenant;
    this.#caps = caps;
  }

  join(): void {
    for (const cap of this.#caps) cap.join(this.#tenant);
  }

  part(): void {
    for (const cap of this.#caps) cap.part(this.#tenant);
  }

  /** Takes room for one more connection; false: the pool stands in the queue of the first cap that has none. */
  take(): boolean {
    for (const [index, cap] of this.#caps.entries()) {
      if (cap.take(this.#tenant)) continue;
      for (const taken of this.#caps.slice(0, index)) taken.release(this.#tenant);
      return false;
    }
    return true;
  }

  /** As take, but neither takes an idle server from another pool nor stands in a queue: for what nobody waits for. */
  takeSpare(): boolean {
    for (const cap of this.#caps) if (!cap.hasSpare) return false;
    return this.take();
  }

  release(): void {
    for (const cap of this.#caps) cap.release(this.#tenant);
  }

  leaveQueue(): void {
    for (const cap of this.#caps) cap.leaveQueue(this.#tenant);
  }

  /** Asked for every request. */
  owes(count: number, clock: Clock): boolean {
    for (const cap of this.#caps) if (cap.owes(this.#tenant, count, clock)) return true;
    return false;
  }

  get hasQueue(): boolean {
    for (const cap of this.#caps) if (cap.hasQueue(this.#tenant)) return true;
    return false;
  }
}

/** Caps by name, of databases or of users. */
export class Caps {
  readonly #caps = new Map<string, Cap>();
  #maxOf: (name: string) => number = () => 0;

  of(name: string): Cap {
    let cap = this.#caps.get(name);
    if (cap === undefined) {
      cap = new Cap(this.#max(name));
      this.#caps.set(name, cap);
    }
    return cap;
  }

  #max(name: string): number {
    return this.#maxOf(name) || Number.POSITIVE_INFINITY;
  }

  /** From here on `maxOf` tells how many servers there may be; 0: any number. */
  configure(maxOf: (name: string) => number): void {
    this.#maxOf = maxOf;
    for (const [name, cap] of this.#caps) cap.serversMax = this.#max(name);
  }

  /** Forgets those that no pool has any more. */
  sweep(): void {
    for (const [name, cap] of this.#caps) if (cap.isUnused) this.#caps.delete(name);
  }
}
