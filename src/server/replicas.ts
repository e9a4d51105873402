/**
 * Reads on standbys: which pool of a standby a read may go to. One for each pool of the primary, where `reads` is not `primary`; asked by
 * client/session.
 *
 * The one idea: a standby is good enough for a client if it has all that had been committed when the client last wrote. The primary
 * says, from time to time, how far its log is; a standby that has replayed that has everything from before it was asked
 * (server/cluster, `freshAsOf`). So nobody waits for a log position, and nobody is asked for one.
 */
import type { HostConfig } from '../config/schema.ts';
import type { Cluster } from './cluster.ts';
import type { ServerPool } from './pool.ts';

export interface ReplicasOptions {
  cluster: Cluster;
  /** The pool of the same database and user on a standby. */
  poolAt: (host: HostConfig) => ServerPool;
  /** How old what a standby has may be, in ms. */
  lagMax: number;
  /** Are reads to go there at the moment? */
  isWanted: () => boolean;
}

export class Replicas {
  readonly #options: ReplicasOptions;
  #turn = 0;
  /** Reads sent to standbys. */
  count = 0;

  constructor(options: ReplicasOptions) {
    this.#options = options;
  }

  /** For a client that has last written at `since` (monotonic ms); null: the primary. Standbys take turns. */
  choose(since: number, now: number): ServerPool | null {
    const { cluster, lagMax, isWanted, poolAt } = this.#options;
    if (!isWanted()) return null;
    const { hosts } = cluster;
    const oldest = Math.max(since, now - lagMax);
    for (let tries = hosts.length; tries > 0; tries--) {
      const host = hosts[this.#turn++ % hosts.length]!;
      if (cluster.freshAsOf(host) > oldest) return poolAt(host);
    }
    return null;
  }
}
