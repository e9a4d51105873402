/** What /status.json says and `pgweir status` prints: the state of the proxy in one page. Called by ops/http. */
import { shedReasons } from '../guard/gate.ts';
import type { Position, Valve } from '../guard/switches.ts';
import type { Stranger } from './bypass.ts';
import { CACHE_COLUMNS, CACHE_SHAPE_COLUMNS, cacheRows, cacheShapeRows } from './caches.ts';
import type { Events, Happening } from './events.ts';
import type { History } from './history.ts';
import { breakersOf } from './hosts.ts';
import { LEDGER_COLUMNS, ledgerRows } from './ledgers.ts';
import { lagMs } from './metrics.ts';
import { type ShapeStatus, topShapes } from './shapes.ts';
import type { Snapshot } from './snapshot.ts';
import type { Switchboard } from './switchboard.ts';
import { type Judged, type Verdict, verdictOf } from './verdict.ts';
import { version } from './version.ts';

export interface Status {
  version: string;
  /** Seconds since the start. */
  uptime: number;
  isReady: boolean;
  isReloadOk: boolean;
  isPaused: boolean;
  isPassthrough: boolean;
  admission: string;
  bugs: number;
  /** Since the start. */
  queries: number;
  /** How late timers of the process are, at the 99th percentile. */
  lagMs: number;
  /** What all of it comes to, and what has happened last. */
  verdict: Verdict;
  events: readonly Happening[];
  clients: { now: number; max: number; held: number };
  pools: PoolStatus[];
  hosts: HostStatus[];
  /** As SHOW LEDGERS. */
  ledgers: Record<string, string | number | null>[];
  /** As SHOW CACHE, and SHOW CACHE_SHAPES. */
  caches: Record<string, string | number | null>[];
  cacheShapes: Record<string, string | number | null>[];
  /** Who works on the hosts past this proxy. */
  bypass: readonly Stranger[];
  /** As SHOW SHAPES. */
  shapes: ShapeStatus[];
  classes: ClassStatus[];
  switches: SwitchStatus[];
}

interface PoolStatus {
  database: string;
  user: string;
  mode: string;
  clients: number;
  waiting: number;
  active: number;
  idle: number;
  connecting: number;
  pinned: number;
  /** Why the last connection attempt failed; '' when it did not. */
  failure: string;
}

interface HostStatus {
  host: string;
  /** Null: there is no control user to find it out. */
  role: string | null;
  /** Why it is refused or cannot be reached, or why a circuit breaker is not closed; ''. */
  problem: string;
  /** What happens to requests while there is no primary: open, holding, refusing, releasing. */
  hold: string;
  /** Circuit breakers that are not closed. */
  breakers: string[];
  connections: number;
  connectionsMax: number;
  atWork: number;
  /** Null: no limit. */
  limit: number | null;
  /** How long statements take relative to what is normal. */
  slowdown: number;
}

interface ClassStatus {
  host: string;
  name: string;
  priority: string;
  atWork: number;
  waiting: number;
  isOverloaded: boolean;
  offered: number;
  admitted: number;
  shed: Record<string, number>;
  retries: number;
  /** Of the time that a server works for one of its requests, in ms. */
  meanMs: number;
  /** Requests per second over the last minute, on all hosts. */
  rates: { offered: number; admitted: number; shed: number };
}

interface SwitchStatus {
  name: string;
  class: string | null;
  position: Position;
  passes: Valve;
  /** ISO 8601; null: it stays. */
  until: string | null;
  actor: string | null;
  reason: string | null;
  /** Shares of the last minute, from 0 to 1. */
  requests: number;
  work: number;
}

const EVENTS_SHOWN = 20;

const namesIn = (columns: string) => columns.split(',').map((column) => column.trim().split(' ')[0]!);
const ledgerNames = namesIn(LEDGER_COLUMNS);
const cacheNames = namesIn(CACHE_COLUMNS);
const shapeNames = namesIn(CACHE_SHAPE_COLUMNS);

function named(names: readonly string[], rows: (string | number | null)[][]): Record<string, string | number | null>[] {
  return rows.map((row) => Object.fromEntries(names.map((name, at) => [name, row[at]!])));
}

export interface StatusSources {
  switches: Switchboard;
  history: History;
  events: Events;
}

export function statusOf(snapshot: Snapshot, { switches, history, events }: StatusSources, wall: number): Status {
  const judged = judgedOf(snapshot, switches, history, wall);
  return { ...judged, verdict: verdictOf(judged), events: events.since().slice(-EVENTS_SHOWN) };
}

function judgedOf(snapshot: Snapshot, switches: Switchboard, history: History, wall: number): Judged {
  const { config, counts, gates } = snapshot;
  const breakers = breakersOf(snapshot);
  return {
    version,
    uptime: Math.round((wall - snapshot.startedAt) / 1000),
    isReady: snapshot.isReady,
    isReloadOk: snapshot.isReloadOk,
    isPaused: snapshot.isPaused,
    isPassthrough: snapshot.isPassthrough,
    admission: config.admission.mode,
    bugs: counts.bugs,
    queries: snapshot.pools.reduce((sum, pool) => sum + pool.counts.queries, 0),
    lagMs: lagMs(99),
    clients: { now: snapshot.sessions.size, max: snapshot.clientsMax, held: snapshot.tarpit.held },
    pools: snapshot.pools.map((pool) => ({
      database: pool.database,
      user: pool.user,
      mode: pool.config.mode,
      clients: pool.clients,
      waiting: pool.waiters.size,
      active: pool.active.size,
      idle: pool.idle.size,
      connecting: pool.connecting,
      pinned: pool.pinned,
      failure: pool.lastFailure,
    })),
    hosts: snapshot.hosts.map((host) => {
      const gate = gates.get(host.address);
      const cluster = snapshot.clusters.find(({ roles }) => roles.has(host.address));
      const role = cluster?.isProbed ? cluster.roles.get(host.address)! : null;
      const open = breakers.filter((each) => each.host === host.address && each.state !== 'closed');
      return {
        host: host.address,
        role: role?.role ?? null,
        problem: role?.why || open.map(({ why }) => why).join('; '),
        hold: cluster?.hold.state ?? 'open',
        breakers: open.map(({ breaker, state }) => `${breaker} ${state}`),
        connections: host.count,
        connectionsMax: host.serversMax,
        atWork: gate?.atWork ?? 0,
        limit: gate !== undefined && Number.isFinite(gate.limit) ? gate.limit : null,
        slowdown: gate?.ratio ?? 1,
      };
    }),
    ledgers: named(ledgerNames, ledgerRows(snapshot)),
    caches: named(cacheNames, cacheRows(snapshot)),
    cacheShapes: named(shapeNames, cacheShapeRows(snapshot)),
    bypass: snapshot.bypass.strangers,
    shapes: topShapes(snapshot),
    classes: [...gates].flatMap(([host, { lanes }]) =>
      lanes.map(({ class: of, queue, atWork, meanMs, counts: { offered, admitted, shed, retries } }) => ({
        host,
        name: of.name,
        priority: of.priority,
        atWork,
        waiting: queue.size,
        isOverloaded: queue.isOverloaded,
        offered,
        admitted,
        shed: Object.fromEntries(shedReasons.map((reason) => [reason, shed[reason]])),
        retries,
        meanMs,
        rates: {
          offered: history.rate(`offered_total/${of.name}`),
          admitted: history.rate(`admitted_total/${of.name}`),
          shed: history.rate(`shed_total/${of.name}`),
        },
      })),
    ),
    switches: switches.rows().map(({ setting, valve, ...row }) => ({
      ...row,
      passes: valve,
      until: setting === null || setting.until === null ? null : new Date(setting.until).toISOString(),
      actor: setting?.actor ?? null,
      reason: setting?.reason ?? null,
    })),
  };
}
