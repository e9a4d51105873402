/**
 * The coupling audit: which services share what in the database. Made from client/usage for `pgweir coupling`, /coupling.json and the dashboard;
 * kept over a restart by app.
 *
 * The one idea: services that never call each other may still bring each other down, by a table that one writes and the other
 * reads, or by the capacity of one host. Who asks for what already passes through here; it only has to be added up.
 *
 * Limits: tables are named as statements name them; what the proxy's cache answers is not seen, nor what views, functions and
 * triggers touch, nor who works past the proxy (these are listed as `bypass`).
 */
import { z } from 'zod';
import type { Period, ServiceName } from '../client/usage.ts';
import { printable } from '../util/printable.ts';
import type { Stranger } from './bypass.ts';
import { table } from './remote.ts';
import type { Snapshot } from './snapshot.ts';
import { percent } from './switchboard.ts';

/** What a class is sure to get of its host (config classes.*.floor), from 0 to 1. */
type FloorOf = (className: string) => number;

interface CoupledService {
  service: string;
  host: string;
  database: string;
  user: string;
  application: string;
  /** The class of its last request; ''. */
  class: string;
  statements: number;
  /** Of servers, for it. */
  ms: number;
  /** Of all that is done on its host, from 0 to 1. */
  share: number;
  reads: string[];
  writes: string[];
}

interface CoupledTable {
  table: string;
  host: string;
  database: string;
  ms: number;
  writers: string[];
  readers: string[];
}

/** If `service` took all that its host can do: who would get only what is set aside for its class. */
interface Hurt {
  service: string;
  hurt: { service: string; ms: number; class: string; floor: number }[];
}

export interface Coupling {
  /** ISO 8601: the time that it is about, in whole hours. */
  from: string;
  to: string;
  services: CoupledService[];
  /** Tables that more than one service uses: most used first. */
  shared: CoupledTable[];
  /** Tables that one service writes and another reads. */
  couplings: { table: string; database: string; writer: string; reader: string }[];
  hurt: Hurt[];
  bypass: readonly Stranger[];
}

const period = z.object({
  from: z.number(),
  to: z.number(),
  services: z.array(
    z.object({
      host: z.string(),
      database: z.string(),
      user: z.string(),
      application: z.string(),
      count: z.number(),
      ms: z.number(),
      costMs: z.number(),
      className: z.string(),
      tables: z.array(z.object({ table: z.string(), reads: z.number(), writes: z.number(), ms: z.number() })),
    }),
  ),
});
/** What is kept in the state directory. */
export const periodsSchema = z.array(period);

/** What is shown of each list. */
const LIST_MAX = 200;

interface Found extends CoupledService {
  tables: Map<string, { reads: number; writes: number; ms: number }>;
}

/** What is known from `since` (wall-clock ms) on, in whole hours. */
export function couplingAt({ usage, config, bypass }: Snapshot, since: number): Coupling {
  return couplingOf(usage.periods(since), {
    floorOf: (className) => config.classes.find(({ name }) => name === className)?.floor ?? 0,
    bypass: bypass.strangers,
  });
}

/** Adds up `periods`. */
export function couplingOf(
  periods: readonly Period[],
  { floorOf, bypass }: { floorOf: FloorOf; bypass: readonly Stranger[] },
): Coupling {
  const found = addUp(periods);
  const total = new Map<string, number>();
  for (const { host, ms } of found) total.set(host, (total.get(host) ?? 0) + ms);
  const services = found.map(({ tables, ...service }) => {
    const names = [...tables].sort(([a], [b]) => a.localeCompare(b));
    return {
      ...service,
      ms: Math.round(service.ms),
      share: service.ms / Math.max(total.get(service.host)!, 1e-9),
      reads: names.filter(([, { reads }]) => reads > 0).map(([table]) => table),
      writes: names.filter(([, { writes }]) => writes > 0).map(([table]) => table),
    };
  });
  const shared = sharedTables(found);
  return {
    from: new Date(periods[0]?.from ?? 0).toISOString(),
    to: new Date(periods.at(-1)?.to ?? 0).toISOString(),
    services,
    shared,
    couplings: couplingsOf(shared),
    hurt: hurtOf(services, floorOf),
    bypass,
  };
}

/** The services that take most; what the others have asked for is one more. Sorted by time. */
function addUp(periods: readonly Period[]): Found[] {
  const services = new Map<string, Found>();
  for (const { services: each } of periods) {
    for (const { host, database, user, application, className, count, ms, tables } of each) {
      const key = JSON.stringify([host, database, user, application]);
      let known = services.get(key);
      if (known === undefined) {
        known = foundNothing({ host, database, user, application });
        services.set(key, known);
      }
      known.class = className || known.class;
      known.statements += count;
      known.ms += ms;
      for (const row of tables) addTable(known.tables, row.table, row);
    }
  }
  const all = [...services.values()].sort((a, b) => b.ms - a.ms);
  const shown = all.slice(0, LIST_MAX);
  const names = new Map<string, Found[]>();
  for (const each of shown) names.set(shortOf(each), [...(names.get(shortOf(each)) ?? []), each]);
  for (const service of shown) service.service = labelOf(service, names.get(shortOf(service))!);
  // Of what is left out no table is named: together they would seem to share everything.
  const rest = new Map<string, Found>();
  for (const { host, database, statements, ms } of all.slice(LIST_MAX)) {
    const key = JSON.stringify([host, database]);
    const sum = rest.get(key) ?? foundNothing({ host, database, user: OTHERS, application: OTHERS });
    rest.set(key, sum);
    sum.service = `${OTHERS}@${database}`;
    sum.statements += statements;
    sum.ms += ms;
  }
  return [...shown, ...rest.values()];
}

const OTHERS = '(others)';

function foundNothing(name: ServiceName): Found {
  return { service: '', ...name, class: '', statements: 0, ms: 0, share: 0, reads: [], writes: [], tables: new Map() };
}

function addTable(
  to: Found['tables'],
  table: string,
  { reads, writes, ms }: { reads: number; writes: number; ms: number },
) {
  const sum = to.get(table) ?? { reads: 0, writes: 0, ms: 0 };
  to.set(table, { reads: sum.reads + reads, writes: sum.writes + writes, ms: sum.ms + ms });
}

const shortOf = ({ application, user }: ServiceName) => application || user;

/** The shortest name that only it has, of those with the same application. */
function labelOf(service: ServiceName, alike: readonly ServiceName[]): string {
  const { application, user, database, host } = service;
  const short = shortOf(service);
  if (alike.length === 1) return short;
  const isOne = (same: (other: ServiceName) => boolean) => alike.filter(same).length === 1;
  if (isOne((other) => other.database === database)) return `${short}@${database}`;
  if (isOne((other) => other.user === user && other.database === database)) return `${short}/${user}@${database}`;
  return `${short}/${user}@${database}@${host}${application === '' ? ' (no application_name)' : ''}`;
}

/** What of tables is used by more than one service; the system's catalogue is everybody's. */
function sharedTables(services: readonly Found[]): CoupledTable[] {
  const all = new Map<string, CoupledTable & { users: Set<string> }>();
  for (const { service, host, database, tables } of services) {
    for (const [table, { reads, writes, ms }] of tables) {
      if (/^(pg_|information_schema\.)/.test(table)) continue;
      const key = JSON.stringify([host, database, table]);
      const known = all.get(key) ?? { table, host, database, ms: 0, writers: [], readers: [], users: new Set() };
      all.set(key, known);
      known.ms += Math.round(ms);
      known.users.add(service);
      if (writes > 0) known.writers.push(service);
      if (reads > 0) known.readers.push(service);
    }
  }
  return [...all.values()]
    .filter(({ users }) => users.size > 1)
    .sort((a, b) => b.ms - a.ms)
    .slice(0, LIST_MAX)
    .map(({ users: _, ...table }) => table);
}

/** Those of the tables that are used most come first, and no more than are shown: pairs grow with the square. */
function couplingsOf(shared: readonly CoupledTable[]): Coupling['couplings'] {
  const couplings: Coupling['couplings'] = [];
  for (const { table, database, writers, readers } of shared)
    for (const writer of writers)
      for (const reader of readers) {
        if (couplings.length >= LIST_MAX) return couplings;
        if (reader !== writer) couplings.push({ table, database, writer, reader });
      }
  return couplings;
}

/** Those that take most are the dangerous ones; of the others, those that take most are hurt most. */
function hurtOf(services: readonly CoupledService[], floorOf: FloorOf): Hurt[] {
  return services
    .slice(0, HURT_MAX)
    .map(({ service, host }) => ({
      service,
      hurt: services
        .filter((other) => other.service !== service && other.host === host)
        .slice(0, HURT_MAX)
        .map((other) => ({ service: other.service, ms: other.ms, class: other.class, floor: floorOf(other.class) })),
    }))
    .filter(({ hurt }) => hurt.length > 0);
}

const HURT_MAX = 20;

const list = (names: readonly string[]) =>
  (names.length > 6 ? `${names.slice(0, 6).join(', ')} and ${names.length - 6} more` : names.join(', ')) || '-';

type Table = { title: string; columns: string[]; rows: string[][] };

function tablesOf({ services, shared, couplings, hurt, bypass }: Coupling): Table[] {
  const tables: Table[] = [
    {
      title: 'Services',
      columns: ['service', 'class', 'share of database time', 'statements', 'reads', 'writes'],
      rows: services.map((each) => [
        each.service,
        each.class || '-',
        percent(each.share),
        `${each.statements}`,
        list(each.reads),
        list(each.writes),
      ]),
    },
    {
      title: 'Written by one, read by another',
      columns: ['table', 'writer', 'reader'],
      rows: couplings.map(({ table, writer, reader }) => [table, writer, reader]),
    },
    {
      title: 'Shared tables',
      columns: ['table', 'database', 'ms of servers', 'writers', 'readers'],
      rows: shared.map(({ table, database, ms, writers, readers }) => [
        table,
        database,
        `${ms}`,
        list(writers),
        list(readers),
      ]),
    },
    {
      title: 'If one service took all that its host can do, these would get what is set aside for their class',
      columns: ['service', 'hurt'],
      rows: hurt.map(({ service, hurt: others }) => [
        service,
        list(others.map((each) => `${each.service} (${each.floor === 0 ? 'nothing' : percent(each.floor)})`)),
      ]),
    },
    {
      title: 'Past the proxy',
      columns: ['application', 'user', 'host', 'backends', 'busy'],
      rows: bypass.map((each) => [each.application, each.user, each.host, `${each.backends}`, `${each.busy}`]),
    },
  ];
  return tables
    .filter(({ rows }) => rows.length > 0)
    .map(({ rows, ...table }) => ({ ...table, rows: rows.map((row) => row.map(printable)) }));
}

/** For a terminal. */
export function couplingText(coupling: Coupling): string {
  const parts = tablesOf(coupling).map(({ title, columns, rows }) => `${title}\n${table(columns, rows)}`);
  return [`${coupling.from} to ${coupling.to}`, ...parts].join('\n\n');
}

export function couplingMarkdown(coupling: Coupling): string {
  const cell = (text: string) => text.replaceAll('\\', '\\\\').replaceAll('|', '\\|');
  const parts = tablesOf(coupling).map(({ title, columns, rows }) => {
    const line = (cells: string[]) => `| ${cells.map(cell).join(' | ')} |`;
    return [`## ${title}`, '', line(columns), line(columns.map(() => '---')), ...rows.map(line)].join('\n');
  });
  return [`# Coupling, ${coupling.from} to ${coupling.to}`, ...parts].join('\n\n');
}

/** For Graphviz: services are boxes, tables ellipses; an arrow goes the way that data goes. */
export function couplingDot({ services }: Coupling): string {
  const quote = (text: string) => `"${text.replaceAll('\\', '\\\\').replaceAll('"', '\\"')}"`;
  const edges = services.flatMap(({ service, database, reads, writes }) => [
    ...writes.map((table) => `  ${quote(`s:${service}`)} -> ${quote(`t:${database}.${table}`)};`),
    ...reads.map((table) => `  ${quote(`t:${database}.${table}`)} -> ${quote(`s:${service}`)};`),
  ]);
  const tables = new Map(
    services.flatMap(({ database, reads, writes }) =>
      [...reads, ...writes].map((table) => [`t:${database}.${table}`, table] as const),
    ),
  );
  return [
    'digraph coupling {',
    '  rankdir=LR;',
    ...services.map(
      ({ service, share }) =>
        `  ${quote(`s:${service}`)} [shape=box, label=${quote(`${service}, ${percent(share)}`)}];`,
    ),
    ...[...tables].map(([id, label]) => `  ${quote(id)} [shape=ellipse, label=${quote(label)}];`),
    ...edges,
    '}',
  ].join('\n');
}
