/**
 * The tables of PgBouncer's console, in its columns, types and order, so that exporters and runbooks work unchanged. Called by ops/console.
 *
 * What has no counterpart here (peers, DNS zones) is an empty table, never an error: a script that reads it goes on.
 * Source: PgBouncer's manual, "Admin console", and admin.c of 1.25.
 */
import type { Socket } from 'node:net';
import { memoryUsage } from 'node:process';
import type { Session } from '../client/session.ts';
import * as encode from '../protocol/encode.ts';
import type { ServerConnection } from '../server/connection.ts';
import type { ServerPool } from '../server/pool.ts';
import type { Snapshot } from './snapshot.ts';
import { version } from './version.ts';

export type Value = string | number | null;
export interface Table {
  columns: { name: string; oid: number }[];
  rows: Value[][];
}

/** Columns as `name` (text), `name i` (int4) or `name n` (numeric). */
export function columns(text: string): Table['columns'] {
  const oids: Record<string, number> = { i: encode.Oid.int4, n: encode.Oid.numeric };
  return text
    .trim()
    .split(/\s*,\s*/)
    .map((column) => {
      const [name, type] = column.split(' ') as [string, string?];
      return { name, oid: oids[type ?? ''] ?? encode.Oid.text };
    });
}

const poolColumns = columns(`database, user, cl_active i, cl_waiting i, cl_active_cancel_req i, cl_waiting_cancel_req i,
  sv_active i, sv_active_cancel i, sv_being_canceled i, sv_idle i, sv_used i, sv_tested i, sv_login i, maxwait i,
  maxwait_us i, pool_mode, load_balance_hosts`);
const socketColumns = columns(`type, user, database, replication, state, addr, port i, local_addr, local_port i,
  connect_time, request_time, wait i, wait_us i, close_needed i, ptr, link, remote_pid i, tls, application_name,
  prepared_statements i, id i`);
const databaseColumns = columns(`name, host, port i, database, force_user, pool_size i, min_pool_size i,
  reserve_pool_size i, server_lifetime i, pool_mode, load_balance_hosts, max_connections i, current_connections i,
  max_client_connections i, current_client_connections i, paused i, disabled i`);
const bufferColumns = columns(
  'recv_pos i, pkt_pos i, pkt_remain i, send_pos i, send_remain i, pkt_avail i, send_avail i',
);
const userColumns =
  columns(`name, pool_size, reserve_pool_size, pool_mode, max_user_connections i, current_connections i,
  max_user_client_connections i, current_client_connections i`);
const totals = [
  'server_assignment_count',
  'xact_count',
  'query_count',
  'bytes_received',
  'bytes_sent',
  'xact_time',
  'query_time',
  'wait_time',
  'client_parse_count',
  'server_parse_count',
  'bind_count',
  'client_login_count',
];
/** SHOW STATS says total_received where SHOW STATS_TOTALS says bytes_received. */
const totalsInStats = totals.map((name) => `total_${name.replace('bytes_', '')}`);
const averagesInStats = totals.map(
  (name) => `avg_${name.replace('bytes_received', 'recv').replace('bytes_sent', 'sent')}`,
);
const numerics = (names: readonly string[]) => columns(['database', ...names.map((name) => `${name} n`)].join(','));

const CONSOLE = 'pgbouncer';

/** The table that `SHOW what` gives; null: PgBouncer has no such. */
export function pgbouncerTable(what: string, snapshot: Snapshot): Table | null {
  switch (what) {
    case 'version':
      return { columns: columns('version'), rows: [[`pgweir ${version}`]] };
    case 'pools':
      return {
        columns: poolColumns,
        rows: [...snapshot.pools.map((pool) => poolRow(pool, snapshot)), consolePoolRow(snapshot)],
      };
    case 'clients':
      return { columns: socketColumns, rows: clientRows(snapshot) };
    case 'servers':
      return { columns: socketColumns, rows: serverRows(snapshot) };
    case 'sockets':
    case 'active_sockets':
      return { columns: [...socketColumns, ...bufferColumns], rows: socketRows(snapshot, what === 'active_sockets') };
    case 'databases':
      return { columns: databaseColumns, rows: databaseRows(snapshot) };
    case 'users':
      return { columns: userColumns, rows: userRows(snapshot) };
    case 'stats':
      return {
        columns: numerics([...totalsInStats, ...averagesInStats]),
        rows: perDatabase(snapshot).map(([name, sums]) => [name, ...sums, ...averages(sums, snapshot)]),
      };
    case 'stats_totals':
      return { columns: numerics(totals), rows: perDatabase(snapshot).map(([name, sums]) => [name, ...sums]) };
    case 'stats_averages':
      return {
        columns: numerics(totals.map((name, index) => (index < totals.length - 4 ? name : `avg_${name}`))),
        rows: perDatabase(snapshot).map(([name, sums]) => [name, ...averages(sums, snapshot)]),
      };
    case 'totals':
      return { columns: columns('name, value n'), rows: totalRows(snapshot) };
    case 'state':
      return {
        columns: columns('key, value'),
        rows: [
          ['active', snapshot.isPaused || snapshot.isSuspended ? 'no' : 'yes'],
          ['paused', snapshot.isPaused ? 'yes' : 'no'],
          ['suspended', snapshot.isSuspended ? 'yes' : 'no'],
        ],
      };
    case 'lists':
      return { columns: columns('list, items i'), rows: lists(snapshot) };
    case 'config':
      return { columns: columns('key, value, default, changeable'), rows: configRows(snapshot) };
    case 'mem':
      return { columns: columns('name, size i, used i, free i, memtotal i'), rows: memoryRows() };
    case 'peers':
      return { columns: columns('peer_id i, host, port i, pool_size i'), rows: [] };
    case 'peer_pools':
      return {
        columns: columns('peer_id i, cl_active_cancel_req i, cl_waiting_cancel_req i, sv_active_cancel i, sv_login i'),
        rows: [],
      };
    case 'dns_hosts':
      return { columns: columns('hostname, ttl i, addrs'), rows: [] };
    case 'dns_zones':
      return { columns: columns('zonename, serial i, count i'), rows: [] };
    default:
      return null;
  }
}

function poolRow(pool: ServerPool, { sessions, now }: Snapshot): Value[] {
  const active = pool.servers().filter(({ state }) => state === 'active');
  const canceling = pool.servers().filter(({ server }) => server.isCanceling).length;
  const clients = [...sessions].filter((session) => session.pool === pool);
  const oldest = pool.waiters.first;
  const waitUs = oldest === null ? 0 : Math.round((now - oldest.waitingSince) * 1000);
  return [
    pool.database,
    pool.user,
    clients.length - pool.waiters.size,
    pool.waiters.size,
    0,
    0,
    active.length,
    canceling,
    0,
    pool.idle.size,
    pool.cleaning.size,
    0,
    pool.connecting,
    Math.floor(waitUs / 1e6),
    waitUs % 1e6,
    pool.config.mode,
    null,
  ];
}

/** As PgBouncer shows its console. */
function consolePoolRow({ consoleClients }: Snapshot): Value[] {
  return [CONSOLE, CONSOLE, consoleClients.size, ...Array<number>(12).fill(0), 'statement', null];
}

export function time(ms: number): string {
  return `${new Date(ms).toISOString().slice(0, 19).replace('T', ' ')} UTC`;
}

/** A client of the console, which has no server. */
export interface ConsoleClient {
  id: number;
  user: string;
  database: string;
  socket: Socket;
  application: string;
  connectedAt: number;
}

function clientRows(snapshot: Snapshot): Value[][] {
  return [
    ...[...snapshot.sessions].map((session) => clientRow(session, snapshot)),
    ...[...snapshot.consoleClients].map(consoleRow),
  ];
}

function consoleRow({ id, user, database, socket, application, connectedAt }: ConsoleClient): Value[] {
  const at = time(connectedAt);
  const place = [
    socket.remoteAddress ?? 'unix',
    socket.remotePort ?? 0,
    socket.localAddress ?? 'unix',
    socket.localPort ?? 0,
  ];
  const tls = 'encrypted' in socket ? 'TLS' : '';
  return ['C', user, database, 'none', 'active', ...place, at, at, 0, 0, 0, `c${id}`, '', 0, tls, application, 0, id];
}

function serverRows(snapshot: Snapshot): Value[][] {
  return [...snapshot.pools, ...snapshot.standbyPools].flatMap((pool) =>
    pool.servers().map(({ server, state }) => serverRow(pool, server, state, snapshot)),
  );
}

/** Buffers are the system's and Node's here: nothing of them is shown. */
function socketRows(snapshot: Snapshot, isActive: boolean): Value[][] {
  const state = socketColumns.findIndex(({ name }) => name === 'state');
  const empty = bufferColumns.map(() => 0);
  return [...clientRows(snapshot), ...serverRows(snapshot)]
    .filter((row) => !isActive || !['idle', 'used'].includes(String(row[state])))
    .map((row) => [...row, ...empty]);
}

/** Those of auth.users, and those with settings of their own; of others nothing is known before they log in. */
function userRows({ config, users, pools, sessions, consoleClients }: Snapshot): Value[][] {
  const clients = [...sessions, ...consoleClients];
  const names = new Set([...users.names, ...Object.keys(config.users), ...clients.map(({ user }) => user)]);
  names.delete('*');
  return [...names].map((name) => {
    const user = Object.hasOwn(config.users, name) ? config.users[name] : config.users['*'];
    return [
      name,
      user?.pool.size?.toString() ?? '',
      user?.pool.sizeReserve?.toString() ?? '',
      user?.pool.mode ?? null,
      user?.serversMax ?? 0,
      pools.reduce((sum, pool) => sum + (pool.user === name ? pool.serverCount : 0), 0),
      user?.clientsMax ?? 0,
      clients.filter(({ user: of }) => of === name).length,
    ];
  });
}

function totalRows(snapshot: Snapshot): Value[][] {
  const all = perDatabase(snapshot);
  return totalsInStats.map((name, at) => [name, all.reduce((sum, [, sums]) => sum + sums[at]!, 0)]);
}

/** In bytes: of V8's heap, and of what lies outside it. */
function memoryRows(): Value[][] {
  const { heapTotal, heapUsed, external, arrayBuffers, rss } = memoryUsage();
  return [
    ['heap', 1, heapUsed, heapTotal - heapUsed, heapTotal],
    ['external', 1, external, 0, external],
    ['array_buffers', 1, arrayBuffers, 0, arrayBuffers],
    ['resident', 1, rss, 0, rss],
  ];
}

function clientRow(session: Session, { now }: Snapshot): Value[] {
  const { socket } = session;
  const waitUs = session.isWaiting ? Math.round((now - session.waitingSince) * 1000) : 0;
  const state = session.isWaiting ? 'waiting' : session.workingServer === null ? 'idle' : 'active';
  return [
    'C',
    session.user,
    session.database,
    'none',
    state,
    socket.remoteAddress ?? 'unix',
    socket.remotePort ?? 0,
    socket.localAddress ?? 'unix',
    socket.localPort ?? 0,
    time(session.connectedAt),
    time(Date.now() - (now - session.changedAt)),
    Math.floor(waitUs / 1e6),
    waitUs % 1e6,
    0,
    `c${session.id}`,
    session.workingServer === null ? '' : `s${session.workingServer.id}`,
    0,
    'encrypted' in socket ? 'TLS' : '',
    session.settings.reported.get('application_name') ?? '',
    session.preparedCount,
    session.id,
  ];
}

function serverRow(pool: ServerPool, server: ServerConnection, state: string, { sessions, now }: Snapshot): Value[] {
  const { host } = server.target;
  const shown = server.isCanceling ? 'active_cancel' : state === 'cleaning' ? 'used' : state;
  const client = [...sessions].find((session) => session.workingServer === server);
  return [
    'S',
    pool.user,
    pool.database,
    'none',
    shown,
    host.host,
    host.port,
    server.localAddress,
    server.localPort,
    time(Date.now() - (now - server.openedAt)),
    time(Date.now() - (now - server.changedAt)),
    0,
    0,
    Number(server.isDoomed),
    `s${server.id}`,
    client === undefined ? '' : `c${client.id}`,
    server.pid,
    server.isTls ? 'TLS' : '',
    server.settings.reported.get('application_name') ?? '',
    server.statements.size,
    server.id,
  ];
}

function databaseRows(snapshot: Snapshot): Value[][] {
  const { config, consoleClients } = snapshot;
  const own = [CONSOLE, null, config.listen.port, CONSOLE, CONSOLE, 2, 0, 0, 0, 'statement', null, 0, 0];
  return [...namedRows(snapshot), [...own, config.listen.databaseClientsMax, consoleClients.size, 0, 0]];
}

function namedRows({ config, pools, isPaused, isDisabled }: Snapshot): Value[][] {
  return Object.entries(config.databases).map(([name, database]) => {
    const [host] = database.hosts;
    const own = pools.filter(
      (pool) => pool.database === name || (name === '*' && !(pool.database in config.databases)),
    );
    return [
      name,
      host!.host,
      host!.port,
      database.dbname ?? name,
      database.user ?? null,
      database.pool.size,
      database.pool.sizeMin,
      database.pool.sizeReserve,
      Math.round(database.pool.lifetimeMax / 1000),
      database.pool.mode,
      null,
      database.pool.sizeTotal,
      own.reduce((sum, pool) => sum + pool.serverCount, 0),
      database.clientsMax ?? config.listen.databaseClientsMax,
      own.reduce((sum, pool) => sum + pool.clients, 0),
      Number(isPaused || own.some((pool) => pool.isPaused)),
      Number(isDisabled(name)),
    ];
  });
}

/** Sums per database in the order of `totals`; times in microseconds. The console is one of them, as it is for PgBouncer. */
function perDatabase({ pools, consoleCounts }: Snapshot): [string, number[]][] {
  const sums = new Map<string, number[]>();
  for (const { database, counts } of pools) {
    const own = [
      counts.leases,
      counts.transactions,
      counts.queries,
      counts.received,
      counts.sent,
      counts.transactionMs * 1000,
      counts.queryMs * 1000,
      counts.waitMs * 1000,
      counts.clientParses,
      counts.serverParses,
      counts.binds,
      counts.logins,
    ].map(Math.round);
    const before = sums.get(database);
    sums.set(database, before === undefined ? own : before.map((sum, index) => sum + own[index]!));
  }
  const { logins, commands } = consoleCounts;
  const ofConsole: Partial<Record<string, number>> = {
    xact_count: commands,
    query_count: commands,
    client_login_count: logins,
  };
  return [...sums, [CONSOLE, totals.map((name) => ofConsole[name] ?? 0)]];
}

/** Averages since the start: counts per second, times per event. */
function averages(sums: readonly number[], { startedAt }: Snapshot): number[] {
  const seconds = Math.max(1, (Date.now() - startedAt) / 1000);
  const [leases, transactions, queries] = sums as [number, number, number];
  return sums.map((sum, index) => {
    const events = { xact_time: transactions, query_time: queries, wait_time: leases }[totals[index]!] ?? seconds;
    return Math.round(sum / Math.max(1, events));
  });
}

function lists({ config, pools, sessions, consoleClients, loggingIn, users }: Snapshot): Value[][] {
  const free = pools.reduce((sum, pool) => sum + pool.idle.size, 0);
  const used = pools.reduce((sum, pool) => sum + pool.active.size + pool.cleaning.size, 0);
  return [
    ['databases', Object.keys(config.databases).length],
    ['users', users.size],
    ['peers', 0],
    ['pools', pools.length],
    ['peer_pools', 0],
    ['free_clients', 0],
    ['used_clients', sessions.size + consoleClients.size],
    ['login_clients', loggingIn],
    ['free_servers', free],
    ['used_servers', used],
    ['dns_names', 0],
    ['dns_zones', 0],
    ['dns_queries', 0],
    ['dns_pending', 0],
  ];
}

/** PgBouncer's names for what its exporter reads, then our own keys. */
function configRows({ config }: Snapshot): Value[][] {
  const rows: Value[][] = [
    ['max_client_conn', config.listen.clientsMax, '5000', 'yes'],
    ['max_user_connections', config.users['*']?.serversMax ?? 0, '0', 'yes'],
    ['listen_port', config.listen.port, '6432', 'no'],
  ];
  const walk = (node: unknown, path: string) => {
    if (typeof node === 'object' && node !== null)
      for (const [key, value] of Object.entries(node)) walk(value, path === '' ? key : `${path}.${key}`);
    else
      rows.push([
        path,
        /password/i.test(path) ? '(set)' : String(node),
        null,
        /^listen\.(host|port|socketDir)$/.test(path) ? 'no' : 'yes',
      ]);
  };
  walk(config, '');
  return rows;
}
