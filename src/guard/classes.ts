/**
 * Which class a request belongs to. Called by client/session for each request that wants a server, while admission is
 * on.
 *
 * The one idea: rules are asked in the order of the configuration and the first that holds decides. What they ask about
 * a client does not change while it is connected, so that part is asked once (`narrow`); only tags of the statement are
 * asked about anew.
 *
 * A class with `users` is for these only: nobody else comes into it by any rule, nor by asking for it.
 */
import { BlockList, isIPv6 } from 'node:net';
import type { ClassConfig, ClassMatch } from '../config/schema.ts';

/** Priorities, highest first. */
export const priorities = ['critical', 'normal', 'batch', 'deferrable'] as const;
type Priority = (typeof priorities)[number];

/** A class of requests, and how it is treated. Times in ms. */
export interface Class {
  name: string;
  priority: Priority;
  /** Its share of the servers' time among classes of the same priority, relative to theirs. */
  weight: number;
  /** Shares of the limit: what it gets whatever the others want, and the most that it may have. */
  floor: number;
  ceiling: number;
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

/** Tags of a statement (sqlcommenter): its value by name. */
export type Tags = ReadonlyMap<string, string>;

interface Rule {
  class: Class;
  users: ReadonlySet<string> | null;
  matches: readonly Match[];
}

interface Match {
  holdsFor(client: ClientTraits): boolean;
  tags: readonly (readonly [name: string, value: string])[];
}

/** The rules that may hold for one client, in order: what is left to ask is the tags. */
export interface Narrowed {
  rules: readonly { class: Class; tags: Match['tags'] }[];
}

const normal: Omit<Class, 'name'> = {
  priority: 'normal',
  weight: 1,
  floor: 0,
  ceiling: 1,
  serversMax: Number.POSITIVE_INFINITY,
  queueMax: 1000,
  waitMax: 5000,
  deadline: 0,
  isFifo: false,
};

/** The class of what no rule matches. */
const DEFAULT = 'normal';

export class Classes {
  /** In the order of the configuration; the default is last, unless it is configured. */
  readonly all: readonly Class[];
  /** Some rule asks about tags. */
  readonly hasTags: boolean;
  readonly #rules: readonly Rule[];
  readonly #default: Class;

  constructor(configs: readonly ClassConfig[]) {
    this.#rules = configs.map((config) => ({
      class: classOf(config),
      users: config.users === undefined ? null : new Set(config.users),
      matches: config.match.map(matchOf),
    }));
    const classes = this.#rules.map((rule) => rule.class);
    const configured = classes.find(({ name }) => name === DEFAULT);
    this.#default = configured ?? { name: DEFAULT, ...normal };
    this.all = configured === undefined ? [...classes, this.#default] : classes;
    this.hasTags = configs.some(({ match }) => match.some(({ tag }) => tag !== undefined));
  }

  /** Asks what can be asked about a client once and for all. */
  narrow(client: ClientTraits): Narrowed {
    const allowed = this.#rules.filter(({ users }) => users === null || users.has(client.user));
    // Asking for a class works only where its users are listed: a name alone proves nothing.
    const wanted = allowed.find((rule) => rule.users !== null && rule.class.name === client.wanted);
    if (wanted !== undefined) return { rules: [{ class: wanted.class, tags: [] }] };
    const rules = allowed.flatMap((rule) =>
      rule.matches.filter((match) => match.holdsFor(client)).map(({ tags }) => ({ class: rule.class, tags })),
    );
    const decided = rules.findIndex(({ tags }) => tags.length === 0);
    if (decided >= 0) return { rules: rules.slice(0, decided + 1) };
    return { rules: [...rules, { class: this.#default, tags: [] }] };
  }

  /** The class of a request with these tags. */
  classOf({ rules }: Narrowed, tags: Tags | null): Class {
    for (const rule of rules) {
      if (rule.tags.every(([name, value]) => tags?.get(name) === value)) return rule.class;
    }
    return this.#default;
  }
}

function classOf(config: ClassConfig): Class {
  return {
    name: config.name,
    priority: config.priority,
    weight: config.weight,
    floor: config.floor,
    ceiling: config.ceiling,
    serversMax: config.serversMax ?? Number.POSITIVE_INFINITY,
    queueMax: config.queue.max,
    waitMax: config.queue.waitMax,
    deadline: config.deadline,
    isFifo: config.order === 'fifo',
  };
}

function matchOf({ user, database, application, address, tag }: ClassMatch): Match {
  const applicationPattern = application === undefined ? null : globOf(application);
  const network = address === undefined ? null : networkOf(address);
  return {
    tags: Object.entries(tag ?? {}),
    holdsFor: (client) =>
      (user === undefined || user === client.user) &&
      (database === undefined || database === client.database) &&
      (applicationPattern === null || applicationPattern.test(client.application)) &&
      (network === null || (client.address !== undefined && network(client.address))),
  };
}

/** `*` stands for any characters. */
function globOf(pattern: string): RegExp {
  const parts = pattern.split('*').map((part) => part.replaceAll(/[\\^$.*+?()[\]{}|]/g, String.raw`\$&`));
  return new RegExp(`^${parts.join('.*')}$`, 's');
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
