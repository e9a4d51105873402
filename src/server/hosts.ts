/**
 * How many connections each host has over all pools (`serversMax`), so that fifty users cannot open a thousand.
 * Called by server/pool before it connects.
 *
 * The one idea: at the cap, an idle server of the pool that has most of them makes room; when none is idle, the pool
 * stands in a queue, and a pool that holds more servers than the first there gives one up when it becomes free.
 */
import type { HostConfig } from '../config/schema.ts';
import { unacknowledgedPorts } from '../util/unacknowledged.ts';
import { Connector } from './connector.ts';
import { Silence } from './silence.ts';

/** What a host needs to know of a pool. */
export interface Tenant {
  /** Servers open or being opened. */
  readonly serverCount: number;
  readonly idleCount: number;
  /** Closes the server that has been idle longest. */
  evictIdle(): void;
  /** There is room: connect now. */
  onRoom(): void;
}

export class Host {
  readonly address: string;
  serversMax: number;
  /** Connections open or being opened. */
  count = 0;
  /** Idle servers closed to make room for another pool. */
  evictions = 0;
  /** What it means that it says nothing. */
  readonly silence = new Silence(unacknowledgedPorts);
  /** Opens its connections. */
  readonly connector = new Connector();
  readonly #tenants = new Set<Tenant>();
  /** Pools that want a connection and found no room, oldest first. */
  readonly #queue = new Set<Tenant>();

  constructor(address: string, serversMax: number) {
    this.address = address;
    this.serversMax = serversMax;
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

  /** A connection of some tenant is gone. */
  release(): void {
    this.count--;
    if (this.count >= this.serversMax) return;
    const [next] = this.#queue;
    if (next === undefined) return;
    this.#queue.delete(next);
    next.onRoom();
  }

  /** A tenant no longer wants what it stands in the queue for. */
  leaveQueue(tenant: Tenant): void {
    this.#queue.delete(tenant);
  }

  /** Should `tenant`, which has a server to spare or to hand on, give it up for the first in the queue? */
  owes(tenant: Tenant): boolean {
    const [next] = this.#queue;
    return next !== undefined && next !== tenant && tenant.serverCount > next.serverCount + 1;
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

/** What a host is known by. */
export function addressOf({ host, port }: Pick<HostConfig, 'host' | 'port'>): string {
  return `${host}:${port}`;
}

/** All hosts by address. */
export class Hosts {
  readonly #hosts = new Map<string, Host>();
  #instances = 1;

  #share(max: number): number {
    return Math.max(1, Math.floor(max / this.#instances));
  }

  /** The host at the address of `config`; the smallest cap that any database asks for counts. */
  get(config: HostConfig, serversMax: number): Host {
    const address = addressOf(config);
    const max = config.serversMax ?? serversMax;
    let host = this.#hosts.get(address);
    if (host === undefined) {
      host = new Host(address, this.#share(max));
      this.#hosts.set(address, host);
    }
    return host;
  }

  /** Sets the caps anew (reload): the smallest of all databases on a host counts, divided among `instances`. */
  setCaps(caps: Iterable<readonly [HostConfig, number]>, instances: number): void {
    this.#instances = instances;
    const smallest = new Map<string, number>();
    for (const [config, serversMax] of caps) {
      const address = addressOf(config);
      const max = config.serversMax ?? serversMax;
      smallest.set(address, Math.min(max, smallest.get(address) ?? max));
    }
    for (const [address, max] of smallest) {
      const host = this.#hosts.get(address);
      if (host === undefined) this.#hosts.set(address, new Host(address, this.#share(max)));
      else host.serversMax = this.#share(max);
    }
  }

  [Symbol.iterator](): Iterator<Host> {
    return this.#hosts.values();
  }
}
