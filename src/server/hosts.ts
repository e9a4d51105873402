/**
 * The hosts, by address: how many connections each has (server/cap), how it is connected to, and what it means that it
 * says nothing. Made by server/pools; called by server/pool and its rooms.
 */
import type { HostConfig } from '../config/schema.ts';
import { unacknowledgedPorts } from '../util/unacknowledged.ts';
import { Cap } from './cap.ts';
import { Connector } from './connector.ts';
import { Silence } from './silence.ts';

export class Host extends Cap {
  readonly address: string;
  /** What it means that it says nothing. */
  readonly silence = new Silence(unacknowledgedPorts);
  /** Opens its connections. */
  readonly connector = new Connector();

  constructor(address: string, serversMax: number) {
    super(serversMax);
    this.address = address;
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
