/**
 * The console: the databases `pgbouncer` and `pgweir`, with PgBouncer's commands and exactly its columns, so that
 * exporters and runbooks work unchanged. Simple protocol only, as there. A client gets here after its login
 * (client/listener hands it over); what it may do depends on auth.admins and auth.readers.
 *
 * Tables of PgBouncer are in ops/pgbouncer; ours are CLASSES, SWITCHES, LEDGERS, HOSTS, BREAKERS, CACHE, CACHE_SHAPES, EVENTS,
 * BYPASS, SHAPES and REFUSALS. Besides: SET SWITCH, RELOAD, and what ops/controls does.
 */
import { randomBytes } from 'node:crypto';
import { linger } from '../client/linger.ts';
import type { ClientIdentity } from '../client/login.ts';
import type { AuthConfig } from '../config/schema.ts';
import { shedReasons } from '../guard/gate.ts';
import * as encode from '../protocol/encode.ts';
import { emptyFrame, FrameReader } from '../protocol/frame.ts';
import { ClientMessage } from '../protocol/messages.ts';
import { error, fatal, type Refusal, SqlState } from '../protocol/sqlstate.ts';
import type { Clock } from '../util/clock.ts';
import { messageOf } from '../util/errors.ts';
import { BYPASS_COLUMNS, bypassRows } from './bypass.ts';
import { CACHE_COLUMNS, CACHE_SHAPE_COLUMNS, cacheRows, cacheShapeRows } from './caches.ts';
import type { Controls, ShutdownMode } from './controls.ts';
import type { Events } from './events.ts';
import { BREAKER_COLUMNS, breakerRows, HOST_COLUMNS, hostRows } from './hosts.ts';
import { REFUSAL_COLUMNS, refusalRows } from './journal.ts';
import { LEDGER_COLUMNS, ledgerRows } from './ledgers.ts';
import { type ConsoleClient, columns, pgbouncerTable, type Table, time, type Value } from './pgbouncer.ts';
import { SHAPE_COLUMNS, shapeRows } from './shapes.ts';
import type { Snapshot } from './snapshot.ts';
import { durationOf, effectOf, percent, positionOf, type Switchboard, type SwitchRow } from './switchboard.ts';
import { version } from './version.ts';

const COMMAND_MAX = 64 * 1024;

type Answer = { tag: string; table?: Table; notice?: string };

export interface ConsoleActions {
  controls: Controls;
  /** Gives problems; none means it worked. */
  reload(): string[];
  /** Gives the process id of the one that takes over; rejects with why there is none. */
  upgrade(): Promise<number>;
  switches: Switchboard;
  events: Events;
  clock: Clock;
}

const DRIVER_SETTINGS =
  /^(session\s+characteristics|names|application_name|bytea_output|client_encoding|client_min_messages|datestyle|default_transaction_isolation|extra_float_digits|intervalstyle|standard_conforming_strings|statement_timeout|time\s*zone|timezone)\b/i;

function notSet(what: string): Refusal {
  return error(SqlState.FeatureNotSupported, `the console sets nothing: ${what}`, {
    hint: 'change the configuration file and say RELOAD; switches are set by SET SWITCH',
  });
}

const switchColumns = columns('name, class, state, passes, until, actor, reason, requests_share, work_share');
/** SET SWITCH name = value FOR 10m BECAUSE 'text' */
const SET_SWITCH =
  /^set\s+switch\s+"?([\w-]+)"?\s*(?:=|to|\s)\s*'?([\w.%]+)'?(?:\s+for\s+(\w+))?(?:\s+because\s+'([^']*)')?$/i;
const classColumns = columns(`host, class, priority, limit, at_work i, permits i, waiting i, offered n, admitted n,
  ${shedReasons.map((reason) => `shed_${reason} n`).join(', ')}, retries n, observed n, mean_us n, overloaded i`);
export class Console {
  readonly #snapshot: () => Snapshot;
  readonly #actions: ConsoleActions;
  readonly clients = new Set<ConsoleClient>();
  readonly counts = { logins: 0, commands: 0 };

  constructor(snapshot: () => Snapshot, actions: ConsoleActions) {
    this.#snapshot = snapshot;
    this.#actions = actions;
  }

  /** Takes over a client that asked for the console; or says why it may not use it. */
  open(client: ClientIdentity, auth: AuthConfig): Refusal | null {
    const { id, socket, user, database } = client;
    const isAdmin = auth.admins.includes(user);
    const [, application = ''] = client.settings.findLast(([name]) => name === 'application_name') ?? [];
    const known: ConsoleClient = { id, user, database, socket, application, connectedAt: Date.now() };
    if (!isAdmin && !auth.readers.includes(user))
      return fatal(SqlState.InsufficientPrivilege, `user "${user}" may not use the console`, {
        hint: 'see auth.admins and auth.readers',
      });
    socket.on('error', () => {}).on('close', () => this.clients.delete(known));
    this.clients.add(known);
    this.counts.logins++;
    socket.write(welcome());
    this.#serve(client, isAdmin);
    return null;
  }

  close(): void {
    for (const { socket } of this.clients) socket.destroy();
  }

  #serve({ socket, rest, user }: ClientIdentity, isAdmin: boolean): void {
    const reader = new FrameReader((_, size) => size, COMMAND_MAX);
    const frame = emptyFrame();
    let isBusy = false;
    const work = async () => {
      if (isBusy) return;
      isBusy = true;
      socket.pause(); // What comes meanwhile waits in the system's buffers.
      for (let found = reader.next(frame); found !== 'starved'; found = reader.next(frame)) {
        const isQuery = found === 'frame' && frame.type === ClientMessage.Query;
        if (!isQuery) {
          const isOver = found === 'frame' && frame.type === ClientMessage.Terminate;
          const refusal = fatal(SqlState.ProtocolViolation, 'the console speaks the simple protocol only');
          socket.off('data', onData).end(isOver ? Buffer.alloc(0) : encode.errorResponse(refusal));
          return linger(socket, this.#actions.clock);
        }
        const command = frame.source.toString('utf8', frame.start + 5, frame.end - 1);
        socket.write(await this.#answer(command, isAdmin ? user : null));
      }
      isBusy = false;
      socket.resume();
    };
    const onData = (chunk: Buffer) => {
      reader.push(chunk);
      work().catch(() => socket.destroy());
    };
    socket.on('data', onData);
    if (rest.length > 0) onData(rest);
    else socket.resume();
  }

  /** `admin`: the name of who asks, if it is an administrator. */
  async #answer(command: string, admin: string | null): Promise<Buffer> {
    this.counts.commands++;
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
        // What drivers say as they connect.
        return DRIVER_SETTINGS.test(argument) ? { tag: 'SET' } : notSet(argument);
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
      case 'upgrade':
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
    if (verb === 'upgrade') return this.#upgrade();
    if (verb === 'kill_client') {
      const id = Number(name.replace(/^c/, ''));
      const hint = 'see the ids of SHOW CLIENTS';
      if (!Number.isInteger(id) || name === '')
        return error(SqlState.ProtocolViolation, `invalid client pointer supplied: ${name}`, { hint });
      return controls.killClient(id)
        ? { tag }
        : error(SqlState.ProtocolViolation, `client not found: ${name}`, { hint });
    }
    if (verb === 'suspend' && name !== '') return unknownCommand(`${verb} ${name}`);
    if (verb === 'resume' && controls.isShuttingDown)
      return error(SqlState.ProtocolViolation, 'pooler is shutting down');
    const database = name === '' ? null : name;
    const { config, isPaused, isSuspended } = this.#snapshot();
    if (database === null && (verb === 'disable' || verb === 'enable'))
      return error(SqlState.SyntaxError, `a database is required`, { hint: `${tag} <db>` });
    if (database !== null && !Object.hasOwn(config.databases, database) && !('*' in config.databases)) {
      return error(SqlState.ProtocolViolation, `no such database: ${database}`, { hint: 'see SHOW DATABASES' });
    }
    if (verb === 'reload') {
      const problems = this.#actions.reload();
      return problems.length === 0
        ? { tag: 'RELOAD' }
        : error(SqlState.ConfigFileError, 'RELOAD failed, see logs for additional details', {
            detail: problems.join('\n'),
            hint: 'the old configuration stays in force',
          });
    }
    if ((verb === 'pause' || verb === 'suspend') && (isPaused || isSuspended) && database === null)
      return error(SqlState.FeatureNotSupported, 'already suspended/paused');
    await this.#control(verb, database);
    return { tag };
  }

  async #upgrade(): Promise<Answer | Refusal> {
    try {
      return {
        tag: 'UPGRADE',
        notice: `process ${await this.#actions.upgrade()} takes over; this one serves its clients until they leave`,
      };
    } catch (thrown) {
      return error(SqlState.FeatureNotSupported, messageOf(thrown), { hint: 'nothing has changed' });
    }
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

  #show(what: string): Answer | Refusal | null {
    const snapshot = this.#snapshot();
    const table = (of: Table): Answer => ({ tag: 'SHOW', table: whole(of) });
    switch (what) {
      case 'help':
        return { tag: 'SHOW', notice: HELP };
      case 'switches':
        return table({ columns: switchColumns, rows: this.#actions.switches.rows().map(switchRow) });
      case 'ledgers':
        return table({ columns: columns(LEDGER_COLUMNS), rows: ledgerRows(snapshot) });
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
      case 'fds':
        return error(SqlState.FeatureNotSupported, 'sockets are not shown', {
          hint: 'UPGRADE hands them over to the version that is installed now',
        });
      default: {
        const known = pgbouncerTable(what, snapshot);
        return known === null ? setting(what) : table(known);
      }
    }
  }
}

/** A row with more or fewer values than it has columns breaks its reader: throws. */
function whole(table: Table): Table {
  const bad = table.rows.find((row) => row.length !== table.columns.length);
  if (bad !== undefined) throw new Error(`${bad.length} values for ${table.columns.length} columns`);
  return table;
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
\tSHUTDOWN WAIT_FOR_SERVERS|WAIT_FOR_CLIENTS
\tUPGRADE`;

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
