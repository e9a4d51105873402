/**
 * The console: the databases `pgbouncer` and `pgweir`, with PgBouncer's commands and exactly its columns, so that
 * exporters and runbooks work unchanged. Simple protocol only, as there. A client gets here after its login
 * (client/listener hands it over); what it may do depends on auth.admins and auth.readers.
 *
 * Supported: SHOW VERSION | POOLS | CLIENTS | SERVERS | STATS | STATS_TOTALS | STATS_AVERAGES | DATABASES | LISTS |
 * CONFIG | HELP | STATE | CLASSES | SWITCHES | LEDGERS | HOSTS | BREAKERS | CACHE | CACHE_SHAPES | EVENTS | BYPASS | SHAPES | REFUSALS (ours), SET SWITCH, RELOAD, and what ops/controls does.
 */
import { randomBytes } from 'node:crypto';
import type { ClientIdentity } from '../client/login.ts';
import type { Session } from '../client/session.ts';
import type { AuthConfig } from '../config/schema.ts';
import { shedReasons } from '../guard/gate.ts';
import * as encode from '../protocol/encode.ts';
import { emptyFrame, FrameReader } from '../protocol/frame.ts';
import { ClientMessage } from '../protocol/messages.ts';
import { error, fatal, type Refusal, SqlState } from '../protocol/sqlstate.ts';
import type { ServerConnection } from '../server/connection.ts';
import type { ServerPool } from '../server/pool.ts';
import { BYPASS_COLUMNS, bypassRows } from './bypass.ts';
import { CACHE_COLUMNS, CACHE_SHAPE_COLUMNS, cacheRows, cacheShapeRows } from './caches.ts';
import type { Controls, ShutdownMode } from './controls.ts';
import type { Events } from './events.ts';
import { BREAKER_COLUMNS, breakerRows, HOST_COLUMNS, hostRows } from './hosts.ts';
import { REFUSAL_COLUMNS, refusalRows } from './journal.ts';
import { LEDGER_COLUMNS, ledgerRows } from './ledgers.ts';
import { SHAPE_COLUMNS, shapeRows } from './shapes.ts';
import type { Snapshot } from './snapshot.ts';
import { durationOf, effectOf, percent, positionOf, type Switchboard, type SwitchRow } from './switchboard.ts';
import { version } from './version.ts';

const consoleDatabases: readonly string[] = ['pgbouncer', 'pgweir'];
const COMMAND_MAX = 64 * 1024;

type Value = string | number | null;
interface Table {
  columns: { name: string; oid: number }[];
  rows: Value[][];
}
type Answer = { tag: string; table?: Table; notice?: string };

export interface ConsoleActions {
  controls: Controls;
  /** Gives problems; none means it worked. */
  reload(): string[];
  switches: Switchboard;
  events: Events;
}

/** Columns as `name` (text), `name i` (int4) or `name n` (numeric). */
function columns(text: string): Table['columns'] {
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
const switchColumns = columns('name, class, state, passes, until, actor, reason, requests_share, work_share');
/** SET SWITCH name = value FOR 10m BECAUSE 'text' */
const SET_SWITCH =
  /^set\s+switch\s+"?([\w-]+)"?\s*(?:=|to|\s)\s*'?([\w.%]+)'?(?:\s+for\s+(\w+))?(?:\s+because\s+'([^']*)')?$/i;
const classColumns = columns(`host, class, priority, limit, at_work i, permits i, waiting i, offered n, admitted n,
  shed_switch n, shed_credits n, shed_throttle n, shed_queue n, shed_wait n, shed_deadline n, shed_overload n, retries n, observed n, mean_us n, overloaded i`);
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

export class Console {
  readonly #snapshot: () => Snapshot;
  readonly #actions: ConsoleActions;
  readonly #sockets = new Set<ClientIdentity['socket']>();

  constructor(snapshot: () => Snapshot, actions: ConsoleActions) {
    this.#snapshot = snapshot;
    this.#actions = actions;
  }

  /** Takes over a client that asked for the console; false when it asked for something else. */
  open(client: ClientIdentity, auth: AuthConfig): boolean {
    if (!consoleDatabases.includes(client.database)) return false;
    const { socket, user } = client;
    const isAdmin = auth.admins.includes(user);
    socket.on('error', () => {}).on('close', () => this.#sockets.delete(socket));
    if (!isAdmin && !auth.readers.includes(user)) {
      const refusal = fatal(SqlState.InsufficientPrivilege, `user "${user}" may not use the console`, {
        hint: 'see auth.admins and auth.readers',
      });
      socket.end(encode.errorResponse(refusal));
      socket.resume();
      return true;
    }
    this.#sockets.add(socket);
    socket.write(welcome());
    this.#serve(client, isAdmin);
    return true;
  }

  close(): void {
    for (const socket of this.#sockets) socket.destroy();
  }

  #serve({ socket, rest, user }: ClientIdentity, isAdmin: boolean): void {
    const reader = new FrameReader((_, size) => size, COMMAND_MAX);
    const frame = emptyFrame();
    let isBusy = false;
    const work = async () => {
      if (isBusy) return;
      isBusy = true;
      for (let found = reader.next(frame); found !== 'starved'; found = reader.next(frame)) {
        const isQuery = found === 'frame' && frame.type === ClientMessage.Query;
        if (found === 'frame' && frame.type === ClientMessage.Terminate) return void socket.end();
        if (!isQuery) {
          const refusal = fatal(SqlState.ProtocolViolation, 'the console speaks the simple protocol only');
          return void socket.end(encode.errorResponse(refusal));
        }
        const command = frame.source.toString('utf8', frame.start + 5, frame.end - 1);
        socket.write(await this.#answer(command, isAdmin ? user : null));
      }
      isBusy = false;
    };
    const onData = (chunk: Buffer) => {
      reader.push(chunk);
      work().catch(() => socket.destroy());
    };
    socket.on('data', onData);
    if (rest.length > 0) onData(rest);
    socket.resume();
  }

  /** `admin`: the name of who asks, if it is an administrator. */
  async #answer(command: string, admin: string | null): Promise<Buffer> {
    const answer = await this.#run(command.replace(/;\s*$/, '').trim(), admin);
    if ('sqlstate' in answer) return Buffer.concat([encode.errorResponse(answer), encode.readyForQuery()]);
    const parts: Buffer[] = [];
    if (answer.notice !== undefined) parts.push(encode.notice(answer.notice));
    if (answer.table !== undefined) {
      parts.push(encode.rowDescription(answer.table.columns), ...answer.table.rows.map((row) => encode.dataRow(row)));
    }
    return Buffer.concat([...parts, encode.commandComplete(answer.tag), encode.readyForQuery()]);
  }

  async #run(command: string, admin: string | null): Promise<Answer | Refusal> {
    const [verb = '', ...rest] = command.split(/\s+/);
    const argument = rest.join(' ');
    const name = argument.replaceAll(/["']/g, '');
    switch (verb.toLowerCase()) {
      case 'show':
        return this.#show(name.toLowerCase()) ?? unknownCommand(command);
      case 'set':
        if (rest[0]?.toLowerCase() === 'switch') return admin === null ? notAdmin() : this.#setSwitch(command, admin);
        // Drivers set client_encoding, datestyle and the like as they connect.
        return { tag: 'SET' };
      case 'pause':
      case 'resume':
      case 'reload':
      case 'reconnect':
      case 'wait_close':
      case 'disable':
      case 'enable':
      case 'kill':
      case 'kill_client':
      case 'suspend':
      case 'shutdown':
        if (admin === null) return notAdmin();
        return this.#act(verb.toLowerCase(), name);
      default:
        return unknownCommand(command);
    }
  }

  #setSwitch(command: string, actor: string): Answer | Refusal {
    const [, name, value, time, reason] = SET_SWITCH.exec(command) ?? [];
    const position = value === undefined ? undefined : positionOf(value.toLowerCase());
    const forMs = time === undefined ? null : durationOf(time.toLowerCase());
    if (name === undefined || position === undefined || forMs === undefined) {
      return error(SqlState.SyntaxError, 'invalid SET SWITCH', {
        hint: "SET SWITCH name = on | off | hold | 25% | default [FOR 10m] [BECAUSE 'text']",
      });
    }
    const { switches } = this.#actions;
    const row = switches.find(name);
    const done = switches.set({ name, position, forMs, reason: reason ?? '', actor });
    if ('problem' in done) return error(SqlState.InvalidParameterValue, done.problem, { hint: 'see SHOW SWITCHES' });
    const notices = [row === null ? '' : `it touches ${effectOf(row)}`, done.warning];
    return { tag: 'SET SWITCH', notice: notices.filter((text) => text !== '').join('; ') };
  }

  async #act(verb: string, name: string): Promise<Answer | Refusal> {
    const { controls } = this.#actions;
    const tag = verb.toUpperCase();
    if (verb === 'shutdown') {
      const mode = shutdownModes[name.toLowerCase()];
      if (mode === undefined) return unknownCommand(`${verb} ${name}`);
      controls.shutDown(mode);
      return { tag };
    }
    if (verb === 'kill_client') {
      const id = Number(name.replace(/^c/, ''));
      return controls.killClient(id)
        ? { tag }
        : error(SqlState.InvalidParameterValue, `client not found: ${name}`, { hint: 'see the ids of SHOW CLIENTS' });
    }
    if (verb === 'suspend' && name !== '') return unknownCommand(`${verb} ${name}`);
    if (verb === 'resume' && controls.isShuttingDown) return error(SqlState.FeatureNotSupported, 'shutting down');
    const database = name === '' ? null : name;
    const { config, isPaused, isSuspended } = this.#snapshot();
    if (database === null && (verb === 'disable' || verb === 'enable'))
      return error(SqlState.SyntaxError, `a database is required`, { hint: `${tag} <db>` });
    if (database !== null && !(database in config.databases) && !('*' in config.databases)) {
      return error(SqlState.InvalidCatalogName, `no such database: ${database}`);
    }
    if (verb === 'reload') {
      const problems = this.#actions.reload();
      return problems.length === 0
        ? { tag: 'RELOAD' }
        : error(SqlState.InvalidParameterValue, 'the configuration was not reloaded; the old one stays in force', {
            detail: problems.join('\n'),
          });
    }
    if ((verb === 'pause' || verb === 'suspend') && (isPaused || isSuspended) && database === null)
      return error(SqlState.FeatureNotSupported, 'already suspended/paused');
    await this.#control(verb, database);
    return { tag };
  }

  async #control(verb: string, database: string | null): Promise<void> {
    const { controls } = this.#actions;
    switch (verb) {
      case 'pause':
        return controls.pause(database);
      case 'resume':
        return controls.resume(database);
      case 'reconnect':
        return controls.reconnect(database);
      case 'wait_close':
        return controls.waitClose(database);
      case 'disable':
        return controls.disable(database!);
      case 'enable':
        return controls.enable(database!);
      case 'kill':
        return controls.kill(database);
      default:
        return controls.suspend();
    }
  }

  #show(what: string): Answer | null {
    const snapshot = this.#snapshot();
    const table = (of: Table): Answer => ({ tag: 'SHOW', table: of });
    switch (what) {
      case 'help':
        return { tag: 'SHOW', notice: HELP };
      case 'version':
        return table({ columns: columns('version'), rows: [[`pgweir ${version}`]] });
      case 'pools':
        return table({ columns: poolColumns, rows: snapshot.pools.map((pool) => poolRow(pool, snapshot)) });
      case 'clients':
        return table({
          columns: socketColumns,
          rows: [...snapshot.sessions].map((session) => clientRow(session, snapshot)),
        });
      case 'servers':
        return table({
          columns: socketColumns,
          rows: [...snapshot.pools, ...snapshot.standbyPools].flatMap((pool) =>
            pool.servers().map(({ server, state }) => serverRow(pool, server, state, snapshot)),
          ),
        });
      case 'databases':
        return table({ columns: databaseColumns, rows: databaseRows(snapshot) });
      case 'stats':
        return table({
          columns: numerics([...totalsInStats, ...averagesInStats]),
          rows: perDatabase(snapshot).map(([name, sums]) => [name, ...sums, ...averages(sums, snapshot)]),
        });
      case 'stats_totals':
        return table({ columns: numerics(totals), rows: perDatabase(snapshot).map(([name, sums]) => [name, ...sums]) });
      case 'stats_averages':
        return table({
          columns: numerics(totals.map((name, index) => (index < totals.length - 4 ? name : `avg_${name}`))),
          rows: perDatabase(snapshot).map(([name, sums]) => [name, ...averages(sums, snapshot)]),
        });
      case 'switches':
        return table({ columns: switchColumns, rows: this.#actions.switches.rows().map(switchRow) });
      case 'ledgers':
        return table({ columns: columns(LEDGER_COLUMNS), rows: ledgerRows(snapshot) });
      case 'state':
        return table({
          columns: columns('key, value'),
          rows: [
            ['active', snapshot.isPaused || snapshot.isSuspended ? 'no' : 'yes'],
            ['paused', snapshot.isPaused ? 'yes' : 'no'],
            ['suspended', snapshot.isSuspended ? 'yes' : 'no'],
          ],
        });
      case 'hosts':
        return table({ columns: columns(HOST_COLUMNS), rows: hostRows(snapshot) });
      case 'breakers':
        return table({ columns: columns(BREAKER_COLUMNS), rows: breakerRows(snapshot) });
      case 'cache':
        return table({ columns: columns(CACHE_COLUMNS), rows: cacheRows(snapshot) });
      case 'cache_shapes':
        return table({ columns: columns(CACHE_SHAPE_COLUMNS), rows: cacheShapeRows(snapshot) });
      case 'bypass':
        return table({ columns: columns(BYPASS_COLUMNS), rows: bypassRows(snapshot.bypass) });
      case 'shapes':
        return table({ columns: columns(SHAPE_COLUMNS), rows: shapeRows(snapshot) });
      case 'refusals':
        return table({ columns: columns(REFUSAL_COLUMNS), rows: refusalRows(snapshot.journal) });
      case 'events':
        return table({
          columns: columns('id n, at, kind, subject, what, actor'),
          rows: this.#actions.events
            .since()
            .map(({ id, at, kind, subject, what, actor }) => [id, at, kind, subject, what, actor]),
        });
      case 'classes':
        return table({ columns: classColumns, rows: classRows(snapshot) });
      case 'lists':
        return table({ columns: columns('list, items i'), rows: lists(snapshot) });
      case 'config':
        return table({ columns: columns('key, value, default, changeable'), rows: configRows(snapshot) });
      default:
        return setting(what);
    }
  }
}

const HELP = `Console usage
\tSHOW HELP|CONFIG|DATABASES|POOLS|CLIENTS|SERVERS|VERSION|STATE|LISTS|STATS|STATS_TOTALS|STATS_AVERAGES|CLASSES|SWITCHES|LEDGERS|HOSTS|BREAKERS|CACHE|CACHE_SHAPES|EVENTS|BYPASS|SHAPES|REFUSALS
\tSET SWITCH <name> = on|off|hold|<n>%|default [FOR <n>s|m|h] [BECAUSE '<text>']
\tRELOAD
\tPAUSE [<db>]
\tRESUME [<db>]
\tRECONNECT [<db>]
\tWAIT_CLOSE [<db>]
\tDISABLE <db>
\tENABLE <db>
\tKILL [<db>]
\tKILL_CLIENT <client_id>
\tSUSPEND
\tSHUTDOWN
\tSHUTDOWN WAIT_FOR_SERVERS|WAIT_FOR_CLIENTS`;

const shutdownModes: Readonly<Record<string, ShutdownMode>> = {
  '': 'now',
  wait_for_servers: 'servers',
  wait_for_clients: 'clients',
};

function notAdmin(): Refusal {
  return error(SqlState.InsufficientPrivilege, 'admin access needed', { hint: 'see auth.admins' });
}

function unknownCommand(command: string): Refusal {
  return error(SqlState.SyntaxError, `invalid command '${command}', use SHOW HELP;`);
}

/** Settings that drivers ask for as they connect. */
function setting(name: string): Answer | null {
  const values: Record<string, string> = {
    client_encoding: 'UTF8',
    default_transaction_isolation: 'read committed',
    standard_conforming_strings: 'on',
    datestyle: 'ISO',
    timezone: 'GMT',
    'transaction isolation level': 'read committed',
  };
  const value = values[name];
  return value === undefined
    ? null
    : { tag: 'SHOW', table: { columns: columns(name.replaceAll(' ', '_')), rows: [[value]] } };
}

function welcome(): Buffer {
  const parameters = {
    server_version: `${version}/pgweir`,
    client_encoding: 'UTF8',
    server_encoding: 'UTF8',
    standard_conforming_strings: 'on',
    is_superuser: 'on',
  };
  return Buffer.concat([
    encode.authenticationOk,
    ...Object.entries(parameters).map(([name, value]) => encode.parameterStatus(name, value)),
    encode.backendKeyData(randomBytes(8).toString('latin1')),
    encode.readyForQuery(),
  ]);
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

function switchRow({ name, class: of, position, valve, setting, requests, work }: SwitchRow): Value[] {
  return [
    name,
    of,
    typeof position === 'number' ? percent(position) : position,
    valve === 'hold' ? 'hold' : percent(valve),
    setting === null || setting.until === null ? null : time(setting.until),
    setting?.actor ?? null,
    setting?.reason ?? null,
    percent(requests),
    percent(work),
  ];
}

/** Ours alone: what each class is given on each host. */
function classRows({ gates }: Snapshot): Value[][] {
  return [...gates].flatMap(([host, gate]) =>
    gate.lanes.map((lane) => [
      host,
      lane.class.name,
      lane.class.priority,
      Number.isFinite(gate.limit) ? String(gate.limit) : 'none',
      lane.atWork,
      lane.permits,
      lane.queue.size,
      lane.counts.offered,
      lane.counts.admitted,
      ...shedReasons.map((reason) => lane.counts.shed[reason]),
      lane.counts.retries,
      lane.counts.observed,
      Math.round(lane.meanMs * 1000),
      Number(lane.queue.isOverloaded),
    ]),
  );
}

function time(ms: number): string {
  return `${new Date(ms).toISOString().slice(0, 19).replace('T', ' ')} UTC`;
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

function databaseRows({ config, pools, isPaused, isDisabled }: Snapshot): Value[][] {
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
      0,
      Math.round(database.pool.lifetimeMax / 1000),
      database.pool.mode,
      null,
      database.serversMax,
      own.reduce((sum, pool) => sum + pool.serverCount, 0),
      0,
      own.reduce((sum, pool) => sum + pool.clients, 0),
      Number(isPaused || own.some((pool) => pool.isPaused)),
      Number(isDisabled(name)),
    ];
  });
}

/** Sums per database in the order of `totals`; times in microseconds. */
function perDatabase({ pools }: Snapshot): [string, number[]][] {
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
  return [...sums];
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

function lists({ config, pools, sessions, loggingIn, users }: Snapshot): Value[][] {
  const free = pools.reduce((sum, pool) => sum + pool.idle.size, 0);
  const used = pools.reduce((sum, pool) => sum + pool.active.size + pool.cleaning.size, 0);
  return [
    ['databases', Object.keys(config.databases).length],
    ['users', users.size],
    ['peers', 0],
    ['pools', pools.length],
    ['peer_pools', 0],
    ['free_clients', 0],
    ['used_clients', sessions.size],
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
    ['max_user_connections', 0, '0', 'no'],
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
