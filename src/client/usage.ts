/**
 * Who asks the database for what, and how long it works for them: by service and by shape of statement. Sessions count here; ops/coupling and
 * the status read it.
 *
 *     session ── Account ──▶ Service ──▶ Use of a shape, this hour and the one before ──hour is over──▶ Period, by table
 *
 * The one idea: a statement costs two additions, on objects that its session has at hand; what its text names is looked up
 * when somebody wants to know.
 *
 * A service is an application_name, or a user where there is none, in a database. What the cache answers costs the database
 * nothing, and is not counted.
 *
 * Invariant: at most SERVICES_MAX services, USES_MAX shapes of each, PERIODS_MAX hours, ROWS_MAX rows in each: what is beyond
 * goes on the account of OTHERS, or of no shape.
 */
import type { ServerPool } from '../server/pool.ts';
import type { Settings } from '../server/settings.ts';
import type { Nature, Verdict } from '../sql/verdict.ts';

/** Statements, ms of a server, and ms that they would have taken in calm (guard/baselines). */
interface Sum {
  count: number;
  ms: number;
  costMs: number;
}

/** What one service has asked for, of one shape; number 0: of all that are not known. */
export interface Use {
  readonly number: number;
  /** Null: not known, or not wanted. The parser may not have spoken yet. */
  readonly nature: Nature | null;
  readonly now: Sum;
  readonly before: Sum;
}

export interface ServiceName {
  readonly host: string;
  readonly database: string;
  readonly user: string;
  /** '': it gives none. */
  readonly application: string;
}

/** What a service has asked of one table in an hour. Statements that name several tables count in each. */
interface TableSum {
  table: string;
  reads: number;
  writes: number;
  ms: number;
}

export interface ServicePeriod extends ServiceName, Sum {
  tables: TableSum[];
}

export interface Period {
  /** Wall-clock ms. */
  from: number;
  to: number;
  services: ServicePeriod[];
}

const SERVICES_MAX = 500;
const USES_MAX = 1_000;
const PERIODS_MAX = 48;
const ROWS_MAX = 1_000;
const PERIOD_MS = 3_600_000;
const OTHERS = '(others)';

const zero = (): Sum => ({ count: 0, ms: 0, costMs: 0 });

function add(to: Sum, { count, ms, costMs }: Readonly<Sum>): void {
  to.count += count;
  to.ms += ms;
  to.costMs += costMs;
}

export class Service {
  readonly name: ServiceName;
  /** The class of its last request; '': not known. */
  className = '';
  readonly #natureOf: (number: number) => Nature | null;
  readonly #uses = new Map<number, Use>();
  /** The one that was asked for last: often it is the next as well. */
  #last: Use | null = null;

  constructor(name: ServiceName, natureOf: (number: number) => Nature | null) {
    this.name = name;
    this.#natureOf = natureOf;
  }

  /** What it asks for with statements of the shape with this number; 0: not known. */
  useOf(number: number): Use {
    if (this.#last?.number === number) return this.#last;
    const known = this.#uses.get(number);
    if (known !== undefined) {
      this.#last = known;
      return known;
    }
    if (number !== 0 && this.#uses.size >= USES_MAX) return this.useOf(0);
    const use = { number, nature: this.#natureOf(number), now: zero(), before: zero() };
    this.#uses.set(number, use);
    return use;
  }

  get uses(): Iterable<Use> {
    return this.#uses.values();
  }

  /** Of this hour so far, by table; null: it has asked for nothing. */
  sum(): ServicePeriod | null {
    const sum: ServicePeriod = { ...this.name, ...zero(), tables: [] };
    const tables = new Map<string, TableSum>();
    for (const { nature, now } of this.#uses.values()) {
      add(sum, now);
      const named = new Map<string, boolean>();
      for (const reference of now.count === 0 ? [] : (nature?.tables ?? [])) {
        const table = nameOf(reference);
        named.set(table, reference.isWritten || (named.get(table) ?? false));
      }
      for (const [table, isWritten] of named) {
        const known = tables.get(table) ?? { table, reads: 0, writes: 0, ms: 0 };
        tables.set(table, known);
        if (isWritten) known.writes += now.count;
        else known.reads += now.count;
        known.ms += now.ms;
      }
    }
    sum.tables = [...tables.values()];
    return sum.count === 0 ? null : sum;
  }

  /** The hour is over. Gives whether anything was asked for in it, or in the one before. */
  turn(): boolean {
    this.#last = null;
    for (const [number, { now, before }] of this.#uses) {
      if (now.count === 0 && now.ms === 0) this.#uses.delete(number);
      Object.assign(before, now);
      Object.assign(now, zero());
    }
    return this.#uses.size > 0;
  }
}

/** public is where nearly all of them are: it goes without saying. */
function nameOf({ schema, name }: { schema: string; name: string }): string {
  return schema === '' || schema === 'public' ? name : `${schema}.${name}`;
}

export class Usage {
  readonly #services = new Map<string, Service>();
  readonly #natureOf: (number: number) => Nature | null;
  readonly #wall: () => number;
  /** Hours that are over, oldest first. */
  readonly #past: Period[] = [];
  #from: number;
  /** Sessions look their service up again when it changes: services may have been dropped. */
  generation = 0;

  /** `natureOf`: what is known of the shape with a number. */
  constructor(natureOf: (number: number) => Nature | null, wall: () => number) {
    this.#natureOf = natureOf;
    this.#wall = wall;
    this.#from = wall();
  }

  get services(): Iterable<Service> {
    return this.#services.values();
  }

  serviceOf(name: ServiceName): Service {
    const key = `${name.host}\0${name.database}\0${name.user}\0${name.application}`;
    const known = this.#services.get(key);
    if (known !== undefined) return known;
    if (this.#services.size >= SERVICES_MAX && name.application !== OTHERS)
      return this.serviceOf({ ...name, user: OTHERS, application: OTHERS });
    const service = new Service(name, this.#natureOf);
    this.#services.set(key, service);
    return service;
  }

  /** The class of its last request; '': not known. */
  classOf({ host, database, user, application }: ServiceName): string {
    return this.#services.get(`${host}\0${database}\0${user}\0${application}`)?.className ?? '';
  }

  /** Ends the hour when it is over. */
  tick(): void {
    const now = this.#wall();
    // A clock that was set back ends it as well.
    if (now >= this.#from && now - this.#from < PERIOD_MS) return;
    this.#past.push(this.#current());
    if (this.#past.length > PERIODS_MAX) this.#past.shift();
    this.#from = now;
    for (const [key, service] of this.#services) if (!service.turn()) this.#services.delete(key);
    this.generation++;
  }

  #current(): Period {
    const services = [...this.#services.values()].flatMap((service) => service.sum() ?? []);
    services.sort((a, b) => b.ms - a.ms);
    let rows = 0;
    for (const service of services) {
      service.tables = service.tables.sort((a, b) => b.ms - a.ms).slice(0, Math.max(0, ROWS_MAX - rows));
      rows += service.tables.length;
    }
    return { from: this.#from, to: this.#wall(), services };
  }

  /** All that is known from `since` (wall-clock ms) on, in whole hours; the last is not over. */
  periods(since = 0): Period[] {
    return [...this.#past, this.#current()].filter(({ to }) => to >= since);
  }

  /** What was known before a restart. */
  restore(periods: readonly Period[]): void {
    this.#past.push(...periods.slice(-PERIODS_MAX));
  }

  /** The share of the last hour that the current one does not cover, from 0 to 1: so much of the one before still counts. */
  get shareOfBefore(): number {
    return Math.max(0, 1 - (this.#wall() - this.#from) / PERIOD_MS);
  }
}

/** What one session asks for, on the account of its service. */
export class Account {
  readonly #usage: Usage;
  readonly #pool: ServerPool;
  readonly #user: string;
  #service: Service | null = null;
  #settings: Settings | null = null;
  #generation = -1;
  /** What its server is at work for; of more than one, all. */
  #use: Use | null = null;
  #more: Use[] | null = null;

  constructor(usage: Usage, pool: ServerPool, user: string) {
    this.#usage = usage;
    this.#pool = pool;
    this.#user = user;
  }

  #serviceAs(settings: Settings): Service {
    if (this.#service !== null && this.#settings === settings && this.#generation === this.#usage.generation)
      return this.#service;
    this.#settings = settings;
    this.#generation = this.#usage.generation;
    this.#service = this.#usage.serviceOf({
      host: this.#pool.cluster.name,
      database: this.#pool.target.database,
      user: this.#user,
      application: settings.reported.get('application_name') ?? '',
    });
    return this.#service;
  }

  /** A statement is sent to a server. What begins or ends a transaction takes time, but is none. */
  begin({ number, control }: Verdict, settings: Settings): void {
    if (control !== null && this.#use !== null) return;
    const use = this.#serviceAs(settings).useOf(control === null ? number : 0);
    if (control === null) use.now.count++;
    if (this.#use === null || this.#use.number === 0) this.#use = use;
    else if (use !== this.#use) {
      this.#more ??= [this.#use];
      if (this.#more.length < MORE_MAX) this.#more.push(use);
    }
  }

  /** The server has done all that was sent to it, in `ms`, at a cost of `costMs`. */
  end(ms: number, costMs: number, className: string): void {
    const uses = this.#more;
    if (this.#use !== null) {
      this.#service!.className = className;
      if (uses === null) {
        this.#use.now.ms += ms;
        this.#use.now.costMs += costMs;
      } else
        for (const { now } of uses) {
          now.ms += ms / uses.length;
          now.costMs += costMs / uses.length;
        }
    }
    this.#use = null;
    this.#more = null;
  }

  /** A read that shared a server has taken `ms`. */
  ride(number: number, ms: number, costMs: number, settings: Settings, className: string): void {
    const service = this.#serviceAs(settings);
    service.className = className;
    const { now } = service.useOf(number);
    now.count++;
    now.ms += ms;
    now.costMs += costMs;
  }
}

/** Different shapes in one batch that share its time; the rest goes to these. */
const MORE_MAX = 64;
