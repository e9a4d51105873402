/**
 * The clusters of all databases: databases on the same hosts, asked by the same control user, live on one (server/cluster). Made
 * and ticked by app; asked by server/pools and client/secrets for where a database is.
 *
 * The one idea: a host is found out about once, whatever number of databases is on it, and an outage is one outage for all of
 * them; so a cluster is known by what it is made from, and a changed configuration leads to another one.
 *
 * Invariants: one is forgotten only when neither the configuration leads to it nor a pool is on it; its hosts are asked through a
 * database that is configured, as long as there is one.
 */

import { controlDatabaseOf } from '../config/entries.ts';
import type { Config, DatabaseConfig, HostConfig } from '../config/schema.ts';
import type { Clock } from '../util/clock.ts';
import { Cluster, type ClusterOptions } from './cluster.ts';
import type { HoldConfig } from './hold.ts';
import { addressOf } from './hosts.ts';
import type { Lineage } from './lineage.ts';
import type { Targets } from './targets.ts';

type Databases = Config['databases'];

export interface ClustersOptions {
  clock: Clock;
  targets: Targets;
  /** Keeps who waits at the hosts with these addresses. */
  doorOf: (addresses: readonly string[]) => ClusterOptions['door'];
  /** What is remembered of the last primary of these. */
  lineageOf: (addresses: readonly string[]) => Lineage | null;
  /** There is another primary, or another timeline, at `addresses`. */
  onLineage: (addresses: string, lineage: Lineage) => void;
  onEvent: ClusterOptions['onEvent'];
}

interface Kept {
  cluster: Cluster;
  /** The database that the control user logs in to, and what it is configured as. */
  entrance: Entrance;
}

interface Entrance {
  config: DatabaseConfig;
  database: string;
}

const PROBE_MS = 1_000;
/** Where standbys are read from, hosts are asked so often in the time that their lag may be. */
const PROBES_IN_LAG = 4;

export class Clusters {
  readonly #options: ClustersOptions;
  /** By what they are made from. */
  readonly #clusters = new Map<string, Kept>();

  constructor(options: ClustersOptions) {
    this.#options = options;
  }

  *[Symbol.iterator](): Iterator<Cluster> {
    for (const { cluster } of this.#clusters.values()) yield cluster;
  }

  /** The one that `database` lives on. */
  of(config: DatabaseConfig, database: string): Cluster {
    return this.#keptOf(config, database).cluster;
  }

  #keptOf(config: DatabaseConfig, database: string): Kept {
    const { hosts, control, tls, reads, lagMax } = config;
    const addresses = hosts.map(addressOf);
    const key = JSON.stringify([addresses.join(), control, tls, reads, lagMax]);
    const known = this.#clusters.get(key);
    if (known !== undefined) return known;
    const { clock, targets, doorOf, lineageOf, onLineage, onEvent } = this.#options;
    const openControl = (host: HostConfig) => {
      const { entrance } = kept;
      return targets.openControl(entrance.config, entrance.database, host);
    };
    const cluster = new Cluster({
      hosts,
      hold: config.hold,
      door: doorOf(addresses),
      clock,
      probeMs: reads === 'primary' ? PROBE_MS : Math.min(PROBE_MS, lagMax / PROBES_IN_LAG),
      openControl: control === undefined ? null : openControl,
      lineage: lineageOf(addresses),
      onLineage: (lineage) => onLineage(addresses.join(), lineage),
      onEvent,
    });
    const kept: Kept = { cluster, entrance: { config, database: controlDatabaseOf(database, config) } };
    this.#clusters.set(key, kept);
    return kept;
  }

  /** One host of which nothing is found out, and that nobody is held for. It is not kept. */
  alone(host: HostConfig): Cluster {
    return new Cluster({
      hosts: [host],
      hold: { for: 0, requestsMax: 0, bytesMax: 0 },
      door: {
        waiting: 0,
        waitingBytes: 0,
        limitOf: () => Number.POSITIVE_INFINITY,
        setOutage() {},
        moveFrom() {},
        close() {},
      },
      clock: this.#options.clock,
      probeMs: PROBE_MS,
      openControl: null,
      lineage: null,
      onLineage() {},
      onEvent() {},
    });
  }

  /** What databases on the same hosts decide together. */
  configure(databases: Databases): void {
    const entrances = new Map<Kept, Entrance[]>();
    for (const [name, config] of Object.entries(databases)) {
      const kept = this.#keptOf(config, name);
      const entrance = { config, database: controlDatabaseOf(name, config) };
      entrances.set(kept, [...(entrances.get(kept) ?? []), entrance]);
    }
    for (const [kept, all] of entrances) {
      kept.cluster.hold.config = holdOf(all.map(({ config }) => config.hold));
      // Where they have been asked so far, if that is still there.
      const same = all.find(({ database }) => database === kept.entrance.database);
      kept.entrance = same ?? all[0]!;
      if (same === undefined) kept.cluster.askAnew();
    }
  }

  /** Forgets those that neither the configuration nor a pool has any more. */
  sweep(databases: Databases): void {
    const kept = new Set(Object.entries(databases).map(([name, each]) => this.of(each, name)));
    for (const [key, { cluster }] of this.#clusters) {
      if (kept.has(cluster) || !cluster.isUnused) continue;
      cluster.close();
      this.#clusters.delete(key);
    }
  }

  /** Runs SQL as the control user, on a connection of its own to the primary. */
  async query(
    config: DatabaseConfig,
    database: string,
    sql: string,
    values?: readonly string[],
  ): Promise<(string | null)[][]> {
    const { primary } = this.of(config, database);
    const connection = await this.#options.targets.openControl(config, database, primary);
    try {
      return await connection.query(sql, values);
    } finally {
      connection.close();
    }
  }

  /** Addresses of the primaries that cannot be reached. */
  get missing(): Set<string> {
    const closed = [...this].filter(({ hold }) => hold.isClosed);
    return new Set(closed.map(({ primary }) => addressOf(primary)));
  }

  tick(now: number): void {
    for (const cluster of this) cluster.tick(now);
  }

  close(): void {
    for (const cluster of this) cluster.close();
  }
}

/** They are held for as long as any of them wants. */
function holdOf(all: readonly HoldConfig[]): HoldConfig {
  return {
    for: Math.max(...all.map((hold) => hold.for)),
    requestsMax: Math.max(...all.map((hold) => hold.requestsMax)),
    bytesMax: Math.max(...all.map((hold) => hold.bytesMax)),
  };
}
