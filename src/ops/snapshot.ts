/** What app shows to the rest of ops: references to live counters and lists, read and never changed. */

import type { Caches } from '../cache/caches.ts';
import type { AuthQuery } from '../client/auth-query.ts';
import type { ClientCounts } from '../client/listener.ts';
import type { Session } from '../client/session.ts';
import type { Usage } from '../client/usage.ts';
import type { Users } from '../client/users.ts';
import type { Config } from '../config/schema.ts';
import type { HostCredits } from '../credits/host.ts';
import type { PollCounts } from '../credits/poller.ts';
import type { Gate } from '../guard/gate.ts';
import type { Health } from '../guard/health.ts';
import type { Tarpit } from '../guard/tarpit.ts';
import type { Cluster } from '../server/cluster.ts';
import type { Host } from '../server/hosts.ts';
import type { ServerPool } from '../server/pool.ts';
import type { Bypass } from './bypass.ts';
import type { Journal } from './journal.ts';
import type { ConsoleClient } from './pgbouncer.ts';

export interface Snapshot {
  config: Config;
  /** Monotonic ms. */
  now: number;
  /** Wall-clock ms. */
  startedAt: number;
  reloadedAt: number;
  isReloadOk: boolean;
  isPaused: boolean;
  isSuspended: boolean;
  isDisabled: (database: string) => boolean;
  isReady: boolean;
  clientsMax: number;
  /** Sockets open, logging in, and with a replication connection. */
  open: number;
  loggingIn: number;
  /** Logins refused because others from their address had failed. */
  refusedAddresses: number;
  replications: number;
  counts: ClientCounts;
  cancels: { matched: number; unknown: number };
  sessions: ReadonlySet<Session>;
  consoleClients: ReadonlySet<ConsoleClient>;
  /** Since the start. */
  consoleCounts: { logins: number; commands: number };
  pools: readonly ServerPool[];
  /** Of standbys, for reads. */
  standbyPools: readonly ServerPool[];
  hosts: readonly Host[];
  clusters: readonly Cluster[];
  /** Of what hosts answer, by address. */
  breakers: ReadonlyMap<string, Health>;
  parser: { parsed: number; refused: number; killed: number };
  /** By the address of their host. */
  gates: ReadonlyMap<string, Gate>;
  tarpit: Tarpit;
  /** By the address of their host; and samples by the name of their source. */
  credits: ReadonlyMap<string, HostCredits>;
  sources: ReadonlyMap<string, PollCounts>;
  isPassthrough: boolean;
  caches: Caches;
  bypass: Bypass;
  usage: Usage;
  journal: Journal;
  /** Prepared statements known, over all clients. */
  statements: number;
  users: Users;
  authQuery: AuthQuery;
}
