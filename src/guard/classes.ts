/**
 * Which class a request belongs to. Called by client/session for each request that wants a server, while admission is
 * on.
 *
 * The one idea: rules are asked in the order of the configuration and the first that holds decides. What they ask about
 * a client does not change while it is connected, so that part is asked once (`narrow`); only what they ask about the
 * statement (tags, shape, kind, table) is asked anew.
 *
 * A class with `users` is for these only: nobody else comes into it by any rule, nor by asking for it. The class
 * `health` is for pings and upkeep: pools that are refused one throw their connections away, and open new ones.
 */
import { BlockList, isIPv6 } from 'node:net';
import type { ClassConfig, ClassMatch, SwitchConfig } from '../config/schema.ts';
import { cut, numberOf, Tokens } from '../sql/shape.ts';
import type { Verdict } from '../sql/verdict.ts';
import { globOf } from '../util/glob.ts';

/** Priorities, highest first. */
export const priorities = ['critical', 'normal', 'batch', 'deferrable'] as const;
type Priority = (typeof priorities)[number];

/** A class of requests, and how it is treated. Times in ms. */
export interface Class {
  name: string;
  /** The switches that say what of it may pass: the tightest rules. */
  switches: readonly string[];
  priority: Priority;
  /** Its share of the servers' time among classes of the same priority, relative to theirs. */
  weight: number;
  /** Shares of the limit: what it gets whatever the others want, and the most that it may have. */
  floor: number;
  ceiling: number;
  /** Servers that it gets, however small its floor is. */
  floorServers: number;
  /** Most servers at work for it. */
  serversMax: number;
  queueMax: number;
  waitMax: number;
  /** From the request's arrival; 0: none. */
  deadline: number;
  /** Oldest first, always; otherwise youngest first while it is overloaded. */
  isFifo: boolean;
}

/** What is known of a client. */
export interface ClientTraits {
  user: string;
  database: string;
  application: string;
  /** IP address; undefined for a Unix socket. */
  address: string | undefined;
  /** What it asked for by `options=-c pgweir.class=…`; '' when it did not. */
  wanted: string;
}

/** What rules ask about a statement. */
export type StatementTraits = Pick<Verdict, 'tags' | 'number' | 'nature' | 'isUpkeep'>;

interface Rule {
  class: Class;
  users: ReadonlySet<string> | null;
  matches: readonly Match[];
}

interface Match {
  holdsFor(client: ClientTraits): boolean;
  /** Null: any statement will do. */
  holdsIn: ((statement: StatementTraits) => boolean) | null;
}

/** What may hold for one client, in order: what is left to ask is about the statement. */
export interface Narrowed {
  rules: readonly { name: string; class: Class; holdsIn: Match['holdsIn'] }[];
  /** Switches that are for requests of any class. */
  switches: readonly { name: string; holdsIn: Match['holdsIn'] }[];
}

type Treatment = Omit<Class, 'name' | 'switches'>;

const normal: Treatment = {
  priority: 'normal',
  weight: 1,
  floor: 0,
  floorServers: 0,
  ceiling: 1,
  serversMax: Number.POSITIVE_INFINITY,
  queueMax: 1000,
  waitMax: 5000,
  deadline: 0,
  isFifo: false,
};

/** The class of what no rule matches, and that of upkeep. */
const DEFAULT = 'normal';
const HEALTH = 'health';
const NO_RULE = 'no rule matches';
/** Upkeep needs little, and gets it: one server whatever the limit says, and never more than a tenth of it. */
const health: Treatment = {
  ...normal,
  priority: 'critical',
  floorServers: 1,
  ceiling: 0.1,
  waitMax: 1000,
};

export class Classes {
  /** In the order of the configuration; what is not configured is last: the default, and that of upkeep. */
  readonly all: readonly Class[];
  readonly #rules: readonly Rule[];
  /** Switches for requests of any class that are not on: these requests are classes of their own meanwhile. */
  turned: ReadonlySet<string> = new Set();
  /** Requests that each of these switches would have touched. */
  readonly hits = new Map<string, number>();
  readonly #default: Class;
  readonly #health: Class;
  readonly #switches: readonly { name: string; match: Match }[];
  readonly #parts = new Map<string, Class>();

  constructor(configs: readonly ClassConfig[], switches: Readonly<Record<string, SwitchConfig>> = {}) {
    this.#rules = configs.map((config) => ({
      class: classOf(config),
      users: config.users === undefined ? null : new Set(config.users),
      matches: config.match.map(matchOf),
    }));
    const classes = this.#rules.map((rule) => rule.class);
    const find = (name: string, otherwise: Treatment) =>
      classes.find((each) => each.name === name) ?? { name, switches: [name], ...otherwise };
    this.#switches = Object.entries(switches).flatMap(([name, { match }]) =>
      match === undefined ? [] : [{ name, match: matchOf(match) }],
    );
    this.#default = find(DEFAULT, normal);
    this.#health = find(HEALTH, health);
    this.all = [...new Set([...classes, this.#default, this.#health])];
  }

  /** Asks what can be asked about a client once and for all. */
  narrow(client: ClientTraits): Narrowed {
    const allowed = this.#rules.filter(({ users }) => users === null || users.has(client.user));
    // Asking for a class works only where its users are listed: a name alone proves nothing.
    const wanted = allowed.find((rule) => rule.users !== null && rule.class.name === client.wanted);
    const switches = this.#switches
      .filter(({ match }) => match.holdsFor(client))
      .map(({ name, match: { holdsIn } }) => ({ name, holdsIn }));
    if (wanted !== undefined)
      return { rules: [{ name: 'the client asks for it', class: wanted.class, holdsIn: null }], switches };
    const rules = allowed.flatMap((rule) =>
      rule.matches.flatMap(({ holdsFor, holdsIn }, at) =>
        holdsFor(client) ? [{ name: `classes.${rule.class.name}.match[${at}]`, class: rule.class, holdsIn }] : [],
      ),
    );
    const decided = rules.findIndex(({ holdsIn }) => holdsIn === null);
    if (decided >= 0) return { rules: rules.slice(0, decided + 1), switches };
    return { rules: [...rules, { name: NO_RULE, class: this.#default, holdsIn: null }], switches };
  }

  /** The class of a request for this statement; null: nothing is known of it. `isAlone`: no transaction is open around it. */
  classOf(narrowed: Narrowed, statement: StatementTraits | null, isAlone: boolean): Class {
    // A transaction that begins with upkeep may go on with anything.
    if (statement?.isUpkeep && isAlone) return this.#health;
    const { rules, switches } = narrowed;
    let found = rules.find((rule) => holds(rule, statement))?.class ?? this.#default;
    for (const each of switches) {
      if (!holds(each, statement)) continue;
      if (statement !== null) this.hits.set(each.name, (this.hits.get(each.name) ?? 0) + 1);
      if (this.turned.has(each.name)) found = this.#partOf(found, each.name);
    }
    return found;
  }

  /** What has put a request into the class that `classOf` gives, in a few words. */
  ruleOf({ rules }: Narrowed, statement: StatementTraits | null, isAlone: boolean): string {
    if (statement?.isUpkeep && isAlone) return 'it is upkeep';
    return rules.find((rule) => holds(rule, statement))?.name ?? NO_RULE;
  }

  /** The part of a class that a switch is for. */
  #partOf(of: Class, by: string): Class {
    const name = `${of.name}/${by}`;
    let part = this.#parts.get(name);
    if (part === undefined) {
      part = { ...of, name, switches: [...of.switches, by], floor: 0, floorServers: 0 };
      this.#parts.set(name, part);
    }
    return part;
  }
}

function holds({ holdsIn }: Pick<Match, 'holdsIn'>, statement: StatementTraits | null): boolean {
  return holdsIn === null || (statement !== null && holdsIn(statement));
}

function classOf(config: ClassConfig): Class {
  return {
    name: config.name,
    switches: [config.name],
    priority: config.priority,
    weight: config.weight,
    floor: config.floor,
    floorServers: 0,
    ceiling: config.ceiling,
    serversMax: config.serversMax ?? Number.POSITIVE_INFINITY,
    queueMax: config.queue.max,
    waitMax: config.queue.waitMax,
    deadline: config.deadline,
    isFifo: config.order === 'fifo',
  };
}

function matchOf(config: ClassMatch): Match {
  const { user, database, application, address } = config;
  const isApplication = application === undefined ? null : globOf(application);
  const network = address === undefined ? null : networkOf(address);
  return {
    holdsIn: statementMatchOf(config),
    holdsFor: (client) =>
      (user === undefined || user === client.user) &&
      (database === undefined || database === client.database) &&
      (isApplication === null || isApplication(client.application)) &&
      (network === null || (client.address !== undefined && network(client.address))),
  };
}

function statementMatchOf({ tag, shape, kind, table }: ClassMatch): Match['holdsIn'] {
  const asked: ((statement: StatementTraits) => boolean)[] = [];
  for (const [name, value] of Object.entries(tag ?? {})) asked.push(({ tags }) => tags?.get(name) === value);
  if (shape !== undefined) {
    const wanted = shapeNumberOf(shape);
    asked.push(({ number }) => number === wanted);
  }
  if (kind !== undefined) asked.push(({ nature }) => nature?.kind === kind);
  if (table !== undefined) {
    const [schema, name] = table.includes('.') ? (table.split('.') as [string, string]) : [null, table];
    // Of a statement that writes, the tables that it only reads are not meant.
    const mustWrite = kind === 'write';
    asked.push(
      ({ nature }) =>
        nature?.tables.some(
          (each) => each.name === name && (schema === null || each.schema === schema) && (!mustWrite || each.isWritten),
        ) ?? false,
    );
  }
  if (asked.length === 0) return null;
  return (statement) => asked.every((holds) => holds(statement));
}

/** The number of the shape that an example of a statement has. */
function shapeNumberOf(sql: string): number {
  const tokens = new Tokens();
  const source = Buffer.from(sql);
  cut(tokens, source, 0, source.length);
  return numberOf(tokens);
}

/** Is an address in the network `text` (CIDR, or one address)? */
function networkOf(text: string): (address: string) => boolean {
  const [network, prefix] = text.split('/') as [string, string?];
  const list = new BlockList();
  const family = isIPv6(network) ? 'ipv6' : 'ipv4';
  list.addSubnet(network, prefix === undefined ? (family === 'ipv6' ? 128 : 32) : Number(prefix), family);
  return (address) => {
    const plain = address.replace(/^::ffff:(?=\d+\.)/, ''); // IPv4 on a socket for both.
    return list.check(plain, isIPv6(plain) ? 'ipv6' : 'ipv4');
  };
}
