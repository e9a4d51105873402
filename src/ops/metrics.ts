/**
 * Every metric in one table: name, help, type, labels, and how to read it from a snapshot. Rendered at scrape by
 * prom-client; nothing is counted here. docs/metrics.md is generated from the table.
 *
 * Names: prefix pgweir_, base units, _total for counters; labels of low cardinality, never SQL text.
 */
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { Registry } from 'prom-client';
import { type Gate, shedReasons } from '../guard/gate.ts';
import type { Lane } from '../guard/permit.ts';
import type { Cluster } from '../server/cluster.ts';
import { pinReasons, timeLimits } from '../server/counts.ts';
import { holdStates } from '../server/hold.ts';
import { type HostRole, roles } from '../server/lineage.ts';
import type { ServerPool } from '../server/pool.ts';
import { refusalReasons } from '../server/refusals.ts';
import { type Histogram, together } from '../util/histogram.ts';
import { bypassMetrics } from './bypass.ts';
import { cacheMetrics } from './caches.ts';
import { breakerStates, breakersOf } from './hosts.ts';
import { creditMetrics } from './ledgers.ts';
import type { Snapshot } from './snapshot.ts';

/** States of sessions that count as another. */
const shownStates: Record<string, string> = {
  syncing: 'active',
  settling: 'active',
  sharing: 'active',
  queued: 'waiting',
  subscribing: 'waiting',
};

type Labels = Record<string, string>;
type Sample = readonly [labels: Labels, value: number];

export interface Metric {
  name: string;
  help: string;
  type: 'counter' | 'gauge';
  labels: readonly string[];
  /** What stands for several pools together: their sum, or the greatest. */
  together?: 'max';
  read(snapshot: Snapshot): Iterable<Sample>;
}

export interface HistogramMetric {
  name: string;
  help: string;
  labels: readonly string[];
  read(snapshot: Snapshot): Iterable<readonly [Labels, Histogram]>;
}

/** Pools (or databases) that have series of their own, the oldest; the others are told together: users are without bound, series are not. */
const POOLS_SHOWN = 12;
const OTHERS = '(others)';

/** Folds the samples of all but POOLS_SHOWN databases and users into one for each set of other labels, by `add`. */
function bounded<Value>(
  samples: Iterable<readonly [Labels, Value]>,
  add: (sum: Value, value: Value) => Value,
): (readonly [Labels, Value])[] {
  const shown = new Set<string>();
  const folded = new Map<string, readonly [Labels, Value]>();
  const kept: (readonly [Labels, Value])[] = [];
  for (const sample of samples) {
    const [labels, value] = sample;
    const { database, user } = labels;
    const party = `${database}\0${user}`;
    if (database === undefined || shown.has(party) || shown.size < POOLS_SHOWN) {
      shown.add(party);
      kept.push(sample);
      continue;
    }
    const told = { ...labels, database: OTHERS, ...(user !== undefined && { user: OTHERS }) };
    const key = JSON.stringify(told);
    const before = folded.get(key);
    folded.set(key, [told, before === undefined ? value : add(before[1], value)]);
  }
  return [...kept, ...folded.values()];
}

const lag = monitorEventLoopDelay({ resolution: 10 });
lag.enable();

/** How late timers were since the last scrape, in ms: this percentile of it. */
export function lagMs(percentile: number): number {
  return Math.max(0, lag.percentile(percentile) - LAG_RESOLUTION_NS) / 1e6;
}
const LAG_RESOLUTION_NS = 10_000_000;

const nameOf = (pool: ServerPool): Labels => ({ database: pool.database, user: pool.user });
const one = (value: number): Sample[] => [[{}, value]];

function perPool(value: (pool: ServerPool) => number): Metric['read'] {
  return ({ pools }) => pools.map((pool) => [nameOf(pool), value(pool)] as const);
}

function perPoolAnd<Key extends string>(
  label: string,
  keys: readonly Key[],
  value: (pool: ServerPool, key: Key) => number,
): Metric['read'] {
  return ({ pools }) =>
    pools.flatMap((pool) => keys.map((key) => [{ ...nameOf(pool), [label]: key }, value(pool, key)] as const));
}

function perClass(value: (lane: Lane, gate: Gate) => number): Metric['read'] {
  return ({ gates }) =>
    [...gates].flatMap(([host, gate]) =>
      gate.lanes.map((lane) => [{ host, class: lane.class.name }, value(lane, gate)] as const),
    );
}

function perCluster(value: (cluster: Cluster) => number): Metric['read'] {
  return ({ clusters }) => clusters.map((cluster) => [{ hosts: cluster.name }, value(cluster)] as const);
}

/** Hosts that several databases have are told once. */
function perMember(samples: (role: HostRole, labels: Labels) => Sample[]): Metric['read'] {
  return ({ clusters }) =>
    [...new Map(clusters.flatMap(({ roles: of }) => [...of]))].flatMap(([host, role]) => samples(role, { host }));
}

const classLabels = ['host', 'class'];
const poolLabels = ['database', 'user'];

export const metrics: readonly Metric[] = [
  {
    name: 'pgweir_clients',
    help: 'Clients logged in, by what they are doing.',
    type: 'gauge',
    labels: ['state'],
    read({ sessions, loggingIn, replications }) {
      const states = new Map<string, number>([
        ['idle', 0],
        ['waiting', 0],
        ['active', 0],
        ['login', loggingIn],
        ['replication', replications],
      ]);
      for (const { state } of sessions) {
        const shown = shownStates[state] ?? state;
        if (states.has(shown)) states.set(shown, states.get(shown)! + 1);
      }
      return [...states].map(([state, count]) => [{ state }, count] as const);
    },
  },
  {
    name: 'pgweir_clients_limit',
    help: 'listen.clientsMax.',
    type: 'gauge',
    labels: [],
    read: ({ clientsMax }) => one(clientsMax),
  },
  {
    name: 'pgweir_client_connections_total',
    help: 'Connections accepted from clients.',
    type: 'counter',
    labels: [],
    read: ({ counts }) => one(counts.accepted),
  },
  {
    name: 'pgweir_client_connections_refused_total',
    help: 'Connections refused because of listen.clientsMax.',
    type: 'counter',
    labels: [],
    read: ({ counts }) => one(counts.refused),
  },
  {
    name: 'pgweir_login_failures_total',
    help: 'Logins of clients that failed.',
    type: 'counter',
    labels: [],
    read: ({ counts }) => one(counts.loginFailures),
  },
  {
    name: 'pgweir_logins_total',
    help: 'Logins of clients that succeeded.',
    type: 'counter',
    labels: poolLabels,
    read: perPool((pool) => pool.counts.logins),
  },
  {
    name: 'pgweir_cancel_requests_total',
    help: 'Cancel requests, by whether their key was one of ours.',
    type: 'counter',
    labels: ['key'],
    read: ({ cancels }) => [
      [{ key: 'known' }, cancels.matched],
      [{ key: 'unknown' }, cancels.unknown],
    ],
  },
  {
    name: 'pgweir_bugs_total',
    help: 'Sessions ended by a bug in the proxy.',
    type: 'counter',
    labels: [],
    read: ({ counts }) => one(counts.bugs),
  },
  {
    name: 'pgweir_servers',
    help: 'Server connections, by state.',
    type: 'gauge',
    labels: [...poolLabels, 'state'],
    read: perPoolAnd('state', ['active', 'idle', 'cleaning', 'connecting'] as const, (pool, state) =>
      state === 'connecting' ? pool.connecting : pool[state].size,
    ),
  },
  {
    name: 'pgweir_servers_limit',
    help: 'pool.size.',
    type: 'gauge',
    labels: poolLabels,
    read: perPool((pool) => pool.config.size),
  },
  {
    name: 'pgweir_host_servers',
    help: 'Server connections per host, over all pools.',
    type: 'gauge',
    labels: ['host'],
    read: ({ hosts }) => hosts.map((host) => [{ host: host.address }, host.count] as const),
  },
  {
    name: 'pgweir_host_servers_limit',
    help: 'serversMax of the host.',
    type: 'gauge',
    labels: ['host'],
    read: ({ hosts }) => hosts.map((host) => [{ host: host.address }, host.serversMax] as const),
  },
  {
    name: 'pgweir_host_role',
    help: '1 for what each host is, as the control user sees it: refused is a primary that must not be written to.',
    type: 'gauge',
    labels: ['host', 'role'],
    read: perMember(({ role }, labels) => roles.map((each) => [{ ...labels, role: each }, Number(role === each)])),
  },
  {
    name: 'pgweir_host_lag_seconds',
    help: 'How far a standby is behind in replaying what it has received.',
    type: 'gauge',
    labels: ['host'],
    read: perMember(({ finding }, labels) => (finding?.lagMs == null ? [] : [[labels, finding.lagMs / 1000]])),
  },
  {
    name: 'pgweir_primary_moves_total',
    help: 'Times that another host became the primary.',
    type: 'counter',
    labels: ['hosts'],
    read: perCluster(({ moves }) => moves),
  },
  {
    name: 'pgweir_hold_state',
    help: '1 for what happens to requests: open, holding (there is no primary), refusing (for too long), releasing (it is back).',
    type: 'gauge',
    labels: ['hosts', 'state'],
    read: ({ clusters }) =>
      clusters.flatMap(({ name, hold }) =>
        holdStates.map((state) => [{ hosts: name, state }, Number(hold.state === state)] as const),
      ),
  },
  {
    name: 'pgweir_hold_requests',
    help: 'Requests that wait because there is no primary.',
    type: 'gauge',
    labels: ['hosts'],
    read: perCluster(({ hold, held }) => (hold.isClosed ? held : 0)),
  },
  {
    name: 'pgweir_hold_requests_total',
    help: 'Requests that had to wait for a primary, by what became of them: they ran, or were refused.',
    type: 'counter',
    labels: ['hosts', 'end'],
    read: ({ clusters }) =>
      clusters.flatMap(({ name, hold: { counts } }) => [
        [{ hosts: name, end: 'released' }, counts.released] as const,
        [{ hosts: name, end: 'refused' }, counts.refused] as const,
      ]),
  },
  {
    name: 'pgweir_hold_outages_total',
    help: 'Times that there was no primary.',
    type: 'counter',
    labels: ['hosts'],
    read: perCluster(({ hold }) => hold.counts.outages),
  },
  {
    name: 'pgweir_hold_outage_seconds_total',
    help: 'Time without a primary.',
    type: 'counter',
    labels: ['hosts'],
    read: ({ clusters, now }) =>
      clusters.map(({ name, hold }) => [{ hosts: name }, (hold.counts.outageMs + hold.outageMs(now)) / 1000] as const),
  },
  {
    name: 'pgweir_breaker_state',
    help: '1 for the state of each circuit breaker: connect (no connection can be opened) and health (answers say that the host cannot).',
    type: 'gauge',
    labels: ['host', 'breaker', 'state'],
    read: (snapshot) =>
      breakersOf(snapshot).flatMap(({ host, breaker, state }) =>
        breakerStates.map((each) => [{ host, breaker, state: each }, Number(state === each)] as const),
      ),
  },
  {
    name: 'pgweir_breaker_opened_total',
    help: 'Times that a circuit breaker has opened.',
    type: 'counter',
    labels: ['host', 'breaker'],
    read: (snapshot) => breakersOf(snapshot).map(({ host, breaker, opened }) => [{ host, breaker }, opened] as const),
  },
  {
    name: 'pgweir_server_silent_closed_total',
    help: 'Servers closed because they owed an answer and nobody was there any more.',
    type: 'counter',
    labels: ['host'],
    read: ({ hosts }) => hosts.map(({ address, silence }) => [{ host: address }, silence.closed] as const),
  },
  {
    name: 'pgweir_timeouts_total',
    help: 'Time limits that ended something (pool.queryMax, transactionMax, idleInTransactionMax, clientIdleMax, connectMax; deadline: a statement_timeout that a silent server did not keep; cancel: a server closed because a cancel request did not help).',
    type: 'counter',
    labels: [...poolLabels, 'limit'],
    read: perPoolAnd('limit', timeLimits, (pool, limit) => pool.counts.timeouts[limit]),
  },
  {
    name: 'pgweir_login_timeouts_total',
    help: 'Logins of clients that took longer than listen.loginTimeout.',
    type: 'counter',
    labels: [],
    read: ({ counts }) => one(counts.loginTimeouts),
  },
  {
    name: 'pgweir_server_failures_total',
    help: 'Answers that speak of the server’s own health (SQLSTATE 08, 53, 57P01 to 57P03, time limits), and servers lost at work.',
    type: 'counter',
    labels: poolLabels,
    read: perPool((pool) => pool.counts.failures),
  },
  {
    name: 'pgweir_logins_refused_total',
    help: 'Logins refused because others from their address had failed (auth.failures).',
    type: 'counter',
    labels: [],
    read: ({ refusedAddresses }) => [[{}, refusedAddresses] as const],
  },
  {
    name: 'pgweir_host_evictions_total',
    help: 'Idle servers closed to make room for another pool of the host.',
    type: 'counter',
    labels: ['host'],
    read: ({ hosts }) => hosts.map((host) => [{ host: host.address }, host.evictions] as const),
  },
  {
    name: 'pgweir_server_connects_total',
    help: 'Attempts to connect to a server.',
    type: 'counter',
    labels: poolLabels,
    read: perPool((pool) => pool.counts.connects),
  },
  {
    name: 'pgweir_server_connect_failures_total',
    help: 'Attempts to connect to a server that failed.',
    type: 'counter',
    labels: poolLabels,
    read: perPool((pool) => pool.counts.connectFailures),
  },
  {
    name: 'pgweir_replica_reads_total',
    help: 'Reads that went to a standby (reads).',
    type: 'counter',
    labels: poolLabels,
    read: perPool(({ replicas }) => replicas?.count ?? 0),
  },
  {
    name: 'pgweir_listeners',
    help: 'Clients that listen by the connection which listens for all of a pool, each once for each of its channels.',
    type: 'gauge',
    labels: poolLabels,
    read: perPool(({ channels }) => channels.size),
  },
  {
    name: 'pgweir_notifications_total',
    help: 'Notifications: received on that connection, delivered to clients; lost: times that the connection was.',
    type: 'counter',
    labels: [...poolLabels, 'what'],
    read: perPoolAnd('what', ['received', 'delivered', 'lost'] as const, ({ channels }, what) => channels.counts[what]),
  },
  {
    name: 'pgweir_shared_requests_total',
    help: 'Short reads that ran on a server in line with those of other clients (pool.share).',
    type: 'counter',
    labels: poolLabels,
    read: perPool((pool) => pool.counts.shared),
  },
  {
    name: 'pgweir_waiting',
    help: 'Requests that wait for a server.',
    type: 'gauge',
    labels: poolLabels,
    read: perPool((pool) => pool.waiters.size),
  },
  {
    name: 'pgweir_wait_oldest_seconds',
    help: 'How long the oldest waiting request has waited.',
    type: 'gauge',
    labels: poolLabels,
    together: 'max',
    read: ({ pools, now }) =>
      pools.map(
        (pool) =>
          [nameOf(pool), pool.waiters.first === null ? 0 : (now - pool.waiters.first.waitingSince) / 1000] as const,
      ),
  },
  {
    name: 'pgweir_refused_total',
    help: 'Requests refused with 53000, by reason.',
    type: 'counter',
    labels: [...poolLabels, 'reason'],
    read: perPoolAnd('reason', refusalReasons, (pool, reason) => pool.counts.refused[reason]),
  },
  {
    name: 'pgweir_pinned',
    help: 'Servers pinned to one client each.',
    type: 'gauge',
    labels: poolLabels,
    read: perPool((pool) => pool.pinned),
  },
  {
    name: 'pgweir_pins_total',
    help: 'Pins, by reason.',
    type: 'counter',
    labels: [...poolLabels, 'reason'],
    read: perPoolAnd('reason', pinReasons, (pool, reason) => pool.counts.pins[reason]),
  },
  {
    name: 'pgweir_transactions_total',
    help: 'Transactions that ended, those of single statements included.',
    type: 'counter',
    labels: poolLabels,
    read: perPool((pool) => pool.counts.transactions),
  },
  {
    name: 'pgweir_queries_total',
    help: 'Statements sent to servers (Query, Execute, FunctionCall).',
    type: 'counter',
    labels: poolLabels,
    read: perPool((pool) => pool.counts.queries),
  },
  {
    name: 'pgweir_query_seconds_total',
    help: 'Time in which servers ran statements.',
    type: 'counter',
    labels: poolLabels,
    read: perPool((pool) => pool.counts.queryMs / 1000),
  },
  {
    name: 'pgweir_transaction_seconds_total',
    help: 'Time in which clients held a server.',
    type: 'counter',
    labels: poolLabels,
    read: perPool((pool) => pool.counts.transactionMs / 1000),
  },
  {
    name: 'pgweir_server_errors_total',
    help: 'Errors that servers answered with.',
    type: 'counter',
    labels: poolLabels,
    read: perPool((pool) => pool.counts.errors),
  },
  {
    name: 'pgweir_received_bytes_total',
    help: 'Bytes received from servers.',
    type: 'counter',
    labels: poolLabels,
    read: perPool((pool) => pool.counts.received),
  },
  {
    name: 'pgweir_sent_bytes_total',
    help: 'Bytes sent to servers.',
    type: 'counter',
    labels: poolLabels,
    read: perPool((pool) => pool.counts.sent),
  },
  {
    name: 'pgweir_client_parses_total',
    help: 'Parse messages of clients.',
    type: 'counter',
    labels: poolLabels,
    read: perPool((pool) => pool.counts.clientParses),
  },
  {
    name: 'pgweir_server_parses_total',
    help: 'Parse messages sent to servers.',
    type: 'counter',
    labels: poolLabels,
    read: perPool((pool) => pool.counts.serverParses),
  },
  {
    name: 'pgweir_binds_total',
    help: 'Bind messages of clients.',
    type: 'counter',
    labels: poolLabels,
    read: perPool((pool) => pool.counts.binds),
  },
  {
    name: 'pgweir_prepared_statements',
    help: 'Distinct prepared statements known, over all clients.',
    type: 'gauge',
    labels: [],
    read: ({ statements }) => one(statements),
  },
  ...creditMetrics,
  {
    name: 'pgweir_passthrough',
    help: '1 when the panic lever is pulled: no admission, no sharing.',
    type: 'gauge',
    labels: [],
    read: ({ isPassthrough }) => one(Number(isPassthrough)),
  },
  {
    name: 'pgweir_admission_limit',
    help: 'Most servers of the host at work at a time; +Inf without a limit.',
    type: 'gauge',
    labels: ['host'],
    read: ({ gates }) => [...gates].map(([host, gate]) => [{ host }, gate.limit] as const),
  },
  {
    name: 'pgweir_admission_latency_ratio',
    help: 'How long statements take, relative to what is normal for their shapes; 1 unless limit.mode is adaptive.',
    type: 'gauge',
    labels: ['host'],
    read: ({ gates }) => [...gates].map(([host, gate]) => [{ host }, gate.ratio] as const),
  },
  {
    name: 'pgweir_class_priority',
    help: '1 for the priority that a class has.',
    type: 'gauge',
    labels: [...classLabels, 'priority'],
    read: ({ gates }) =>
      [...gates].flatMap(([host, { lanes }]) =>
        lanes.map(({ class: { name, priority } }) => [{ host, class: name, priority }, 1] as const),
      ),
  },
  {
    name: 'pgweir_class_offered_total',
    help: 'Requests that asked to be admitted.',
    type: 'counter',
    labels: classLabels,
    read: perClass((lane) => lane.counts.offered),
  },
  {
    name: 'pgweir_class_admitted_total',
    help: 'Requests that were admitted.',
    type: 'counter',
    labels: classLabels,
    read: perClass((lane) => lane.counts.admitted),
  },
  {
    name: 'pgweir_class_shed_total',
    help: 'Requests that were refused (53000), by reason.',
    type: 'counter',
    labels: [...classLabels, 'reason'],
    read: ({ gates }) =>
      [...gates].flatMap(([host, gate]) =>
        gate.lanes.flatMap((lane) =>
          shedReasons.map((reason) => [{ host, class: lane.class.name, reason }, lane.counts.shed[reason]] as const),
        ),
      ),
  },
  {
    name: 'pgweir_class_retries_total',
    help: 'Requests that could not be admitted at once, and had been refused to the same application a moment before.',
    type: 'counter',
    labels: classLabels,
    read: perClass((lane) => lane.counts.retries),
  },
  {
    name: 'pgweir_tarpit_clients',
    help: 'Hasty clients whose answer is kept for a moment.',
    type: 'gauge',
    labels: [],
    read: ({ tarpit }) => [[{}, tarpit.held]],
  },
  {
    name: 'pgweir_tarpit_total',
    help: 'Answers that were kept for a moment: refusals of instant retries, welcomes after leaving on a refusal, and refusals while there is no database.',
    type: 'counter',
    labels: ['why'],
    read: ({ tarpit }) => [
      [{ why: 'retry' }, tarpit.counts.retries],
      [{ why: 'reconnect' }, tarpit.counts.reconnects],
      [{ why: 'outage' }, tarpit.counts.outage],
    ],
  },
  {
    name: 'pgweir_class_observed_total',
    help: 'Requests that ran, but would have waited or been refused with admission.mode enforce.',
    type: 'counter',
    labels: classLabels,
    read: perClass((lane) => lane.counts.observed),
  },
  {
    name: 'pgweir_class_passing_ratio',
    help: 'What a switch lets pass of a class: 0 when it is off, or everything waits.',
    type: 'gauge',
    labels: classLabels,
    read: perClass((lane) => (lane.valve === 'hold' ? 0 : lane.valve)),
  },
  {
    name: 'pgweir_class_waiting',
    help: 'Requests that wait to be admitted.',
    type: 'gauge',
    labels: classLabels,
    read: perClass((lane) => lane.queue.size),
  },
  {
    name: 'pgweir_class_at_work',
    help: 'Servers at work.',
    type: 'gauge',
    labels: classLabels,
    read: perClass((lane) => lane.atWork),
  },
  {
    name: 'pgweir_class_permits',
    help: 'Servers held, those of clients that think in a transaction or are pinned included.',
    type: 'gauge',
    labels: classLabels,
    read: perClass((lane) => lane.permits),
  },
  {
    name: 'pgweir_class_work_seconds_total',
    help: 'Time in which servers were at work.',
    type: 'counter',
    labels: classLabels,
    read: perClass((lane) => lane.counts.workMs / 1000),
  },
  ...cacheMetrics,
  ...bypassMetrics,
  {
    name: 'pgweir_parser_texts_total',
    help: 'Statement shapes given to the SQL parser, by outcome.',
    type: 'counter',
    labels: ['outcome'],
    read: ({ parser }) =>
      (['parsed', 'refused', 'killed'] as const).map((outcome) => [{ outcome }, parser[outcome]] as const),
  },
  {
    name: 'pgweir_auth_queries_total',
    help: 'Questions for the secret of a user that auth.users has not, by outcome.',
    type: 'counter',
    labels: ['outcome'],
    read: ({ authQuery: { counts } }) => [
      [{ outcome: 'answered' }, counts.asked - counts.failed],
      [{ outcome: 'failed' }, counts.failed],
    ],
  },
  {
    name: 'pgweir_event_loop_lag_seconds',
    help: 'How late timers of the event loop were, since the last scrape.',
    type: 'gauge',
    labels: ['percentile'],
    read: () =>
      (['50', '99', '100'] as const).map((percentile) => [{ percentile }, lagMs(Number(percentile)) / 1000] as const),
  },
  {
    name: 'pgweir_cpu_seconds_total',
    help: 'CPU time of the process.',
    type: 'counter',
    labels: [],
    read: () => one((process.cpuUsage().user + process.cpuUsage().system) / 1e6),
  },
  {
    name: 'pgweir_resident_memory_bytes',
    help: 'Resident memory of the process.',
    type: 'gauge',
    labels: [],
    read: () => one(process.memoryUsage.rss()),
  },
  {
    name: 'pgweir_start_time_seconds',
    help: 'When the process started, since the Unix epoch.',
    type: 'gauge',
    labels: [],
    read: ({ startedAt }) => one(startedAt / 1000),
  },
  {
    name: 'pgweir_config_reload_success',
    help: '1 when the last reload of the configuration worked.',
    type: 'gauge',
    labels: [],
    read: ({ isReloadOk }) => one(Number(isReloadOk)),
  },
  {
    name: 'pgweir_config_reload_time_seconds',
    help: 'When the configuration in force was loaded, since the Unix epoch.',
    type: 'gauge',
    labels: [],
    read: ({ reloadedAt }) => one(reloadedAt / 1000),
  },
  {
    name: 'pgweir_ready',
    help: '1 when /readyz says so.',
    type: 'gauge',
    labels: [],
    read: ({ isReady }) => one(Number(isReady)),
  },
];

export const histograms: readonly HistogramMetric[] = [
  {
    name: 'pgweir_class_wait_seconds',
    help: 'How long requests waited to be admitted.',
    labels: classLabels,
    read: ({ gates }) =>
      [...gates].flatMap(([host, gate]) =>
        gate.lanes.map((lane) => [{ host, class: lane.class.name }, lane.waits] as const),
      ),
  },
  {
    name: 'pgweir_wait_seconds',
    help: 'How long requests waited for a server.',
    labels: poolLabels,
    read: ({ pools }) => pools.map((pool) => [nameOf(pool), pool.waits] as const),
  },
];

export class Metrics {
  readonly #snapshot: () => Snapshot;
  readonly #registry = new Registry();

  constructor(snapshot: () => Snapshot) {
    this.#snapshot = snapshot;
    for (const metric of metrics)
      this.#register(metric, metric.type, (now) =>
        bounded(metric.read(now), metric.together === 'max' ? Math.max : (a, b) => a + b).map(([labels, value]) => ({
          labels,
          value,
        })),
      );
    for (const metric of histograms)
      this.#register(metric, 'histogram', (now) =>
        bounded(metric.read(now), together).flatMap(([labels, histogram]) => buckets(metric.name, labels, histogram)),
      );
  }

  /** prom-client renders anything that has this shape; values are read when it asks. */
  #register(metric: { name: string; help: string }, type: string, read: (snapshot: Snapshot) => object[]): void {
    const { name, help } = metric;
    this.#registry.registerMetric({
      name,
      help,
      type,
      aggregator: 'sum',
      get: async () => ({ name, help, type, aggregator: 'sum', values: read(this.#snapshot()) }),
    } as never);
  }

  get contentType(): string {
    return this.#registry.contentType;
  }

  /** The text that a scrape gets. */
  async render(): Promise<string> {
    const text = await this.#registry.metrics();
    lag.reset();
    return text;
  }
}

function buckets(name: string, labels: Labels, histogram: Histogram): object[] {
  let count = 0;
  const cumulative = histogram.bounds.map((bound, index) => {
    count += histogram.counts[index]!;
    return { metricName: `${name}_bucket`, labels: { ...labels, le: String(bound) }, value: count };
  });
  return [
    ...cumulative,
    { metricName: `${name}_bucket`, labels: { ...labels, le: '+Inf' }, value: histogram.count },
    { metricName: `${name}_sum`, labels, value: histogram.sum },
    { metricName: `${name}_count`, labels, value: histogram.count },
  ];
}
