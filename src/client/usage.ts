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
 * Invariant: at most SERVICES_MAX services, USES_MAX shapes of each and ALL_USES_MAX together, PERIODS_MAX hours, ROWS_MAX rows in
 * each: what is beyond goes on the account of OTHERS, or of no shape.
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
  /** Null: not known. The parser may not have spoken yet. */
  nature: Nature | null;
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
  /** The class of its last request; '': not known. */
  className: string;
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
const ALL_USES_MAX = 10_000;
/** Tables of one service in an hour. */
const TABLES_MAX = 100;
const PERIODS_MAX = 48;
const ROWS_MAX = 1_000;
const PERIOD_MS = 3_600_000;
const OTHERS = '(others)';

const zero = (): Sum => ({ count: 0, ms: 0, costMs: 0 });

const isNothing = ({ count, ms }: Readonly<Sum>) => count === 0 && ms === 0;

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
  readonly #room: { uses: number };
  readonly #uses = new Map<number, Use>();
  /** The one that was asked for last: often it is the next as well. */
  #last: Use | null = null;

  /** `room`: how many uses more there may be, over all services. */
  constructor(name: ServiceName, natureOf: (number: number) => Nature | null, room: { uses: number }) {
    this.name = name;
    this.#natureOf = natureOf;
    this.#room = room;
  }

  /** What it asks for with statements of the shape with this number; 0: not known. */
  useOf(number: number): Use {
    if (this.#last?.number === number) return this.#last;
    const known = this.#uses.get(number);
    if (known !== undefined) {
      this.#last = known;
      return known;
    }
    if (number !== 0 && (this.#uses.size >= USES_MAX || this.#room.uses <= 0)) return this.useOf(0);
    this.#room.uses--;
    const use = { number, nature: this.#natureOf(number), now: zero(), before: zero() };
    this.#uses.set(number, use);
    return use;
  }

  get uses(): Iterable<Use> {
    return this.#uses.values();
  }

  /** What was not known when it was asked for may be by now. */
  #refresh(use: Use): void {
    if (use.number !== 0 && (use.nature === null || use.nature.kind === null))
      use.nature = this.#natureOf(use.number) ?? use.nature;
  }

  /** Of this hour so far, by table; null: it has asked for nothing. */
  sum(): ServicePeriod | null {
    const sum: ServicePeriod = { ...this.name, ...zero(), className: this.className, tables: [] };
    const tables = new Map<string, TableSum>();
    for (const use of this.#uses.values()) {
      this.#refresh(use);
      const { nature, now } = use;
      add(sum, now);
      const named = new Map<string, boolean>();
      for (const reference of isNothing(now) ? [] : (nature?.tables ?? [])) {
        const table = nameOf(reference);
        named.set(table, reference.isWritten || (named.get(table) ?? false));
      }
      for (const [table, isWritten] of named) {
        const known = tables.get(table) ?? { table, reads: 0, writes: 0, ms: 0 };
        tables.set(table, known);
        // What has begun in an hour before, and ends in this one, is at work in both.
        const times = Math.max(1, now.count);
        if (isWritten) known.writes += times;
        else known.reads += times;
        known.ms += now.ms;
      }
    }
    sum.tables = [...tables.values()];
    return isNothing(sum) ? null : sum;
  }

  /** The hour is over. Gives whether anything was asked for in it, or in the one before. */
  turn(): boolean {
    this.#last = null;
    for (const [number, { now, before }] of this.#uses) {
      if (isNothing(now)) {
        this.#uses.delete(number);
        this.#room.uses++;
      }
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
  readonly #room = { uses: ALL_USES_MAX };
  /** Of this hour, before a restart in it. */
  #carried: Period | null = null;
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
    const service = new Service(name, this.#natureOf, this.#room);
    this.#services.set(key, service);
    return service;
  }

  /** Ends the hour when it is over. */
  tick(): void {
    const now = this.#wall();
    // A clock that was set back ends it as well.
    if (now >= this.#from && now - this.#from < PERIOD_MS) return;
    this.#past.push(this.#current());
    if (this.#past.length > PERIODS_MAX) this.#past.shift();
    this.#from = now;
    this.#carried = null;
    for (const [key, service] of this.#services) if (!service.turn()) this.#services.delete(key);
    this.generation++;
  }

  #current(): Period {
    const services = [...this.#services.values()].flatMap((service) => service.sum() ?? []);
    services.sort((a, b) => b.ms - a.ms);
    let rows = 0;
    for (const service of services) {
      service.tables = service.tables
        .sort((a, b) => b.ms - a.ms)
        .slice(0, Math.min(TABLES_MAX, Math.max(0, ROWS_MAX - rows)));
      rows += service.tables.length;
    }
    const current = { from: this.#from, to: this.#wall(), services };
    return this.#carried === null ? current : merged(this.#carried, current);
  }

  /** All that is known from `since` (wall-clock ms) on, in whole hours; the last is not over. */
  periods(since = 0): Period[] {
    return [...this.#past, this.#current()].filter(({ to }) => to >= since);
  }

  /** What was known before a restart: the hour that it has cut goes on. */
  restore(periods: readonly Period[]): void {
    const kept = periods.filter(({ from, to }) => from <= to && to <= this.#from).slice(-PERIODS_MAX);
    const last = kept.at(-1);
    if (last !== undefined && this.#from - last.from < PERIOD_MS) {
      this.#carried = last;
      this.#from = last.from;
      kept.pop();
    }
    this.#past.push(...kept);
  }

  /** The share of the last hour that the current one does not cover, from 0 to 1: so much of the one before still counts. */
  get shareOfBefore(): number {
    return Math.max(0, 1 - (this.#wall() - this.#from) / PERIOD_MS);
  }
}

/** Two parts of one hour. */
function merged(a: Period, b: Period): Period {
  const services = new Map<string, ServicePeriod>();
  for (const each of [...a.services, ...b.services]) {
    const key = JSON.stringify([each.host, each.database, each.user, each.application]);
    const known = services.get(key);
    if (known === undefined) {
      services.set(key, { ...each });
      continue;
    }
    add(known, each);
    known.className = each.className || known.className;
    const tables = new Map(known.tables.map((row) => [row.table, { ...row }]));
    for (const row of each.tables) {
      const { reads = 0, writes = 0, ms = 0 } = tables.get(row.table) ?? {};
      tables.set(row.table, { ...row, reads: reads + row.reads, writes: writes + row.writes, ms: ms + row.ms });
    }
    known.tables = [...tables.values()];
  }
  const most = [...services.values()].sort((x, y) => y.ms - x.ms).slice(0, SERVICES_MAX);
  return { from: a.from, to: b.to, services: most };
}

/** What one session asks for, on the account of its service. */
export class Account {
  readonly #usage: Usage;
  readonly #pool: ServerPool;
  readonly #user: string;
  #service: Service | null = null;
  #settings: Settings | null = null;
  #target: unknown = null;
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
    const { target } = this.#pool;
    if (
      this.#service !== null &&
      this.#settings === settings &&
      this.#target === target &&
      this.#generation === this.#usage.generation
    )
      return this.#service;
    this.#settings = settings;
    this.#target = target;
    this.#generation = this.#usage.generation;
    this.#service = this.#usage.serviceOf({
      host: this.#pool.cluster.name,
      database: target.database,
      user: this.#user,
      application: settings.reported.get('application_name') ?? '',
    });
    return this.#service;
  }

  /** A statement is sent to a server. What begins or ends a transaction takes time, but is none. */
  begin({ number, nature, control }: Verdict, settings: Settings): void {
    if (control !== null && this.#use !== null) return;
    const use = this.#serviceAs(settings).useOf(control === null ? number : 0);
    if (control === null) use.now.count++;
    if (use.nature === null && use.number === number) use.nature = nature;
    if (this.#use === null || this.#use.number === 0) this.#use = use;
    else if (use !== this.#use) {
      this.#more ??= [this.#use];
      if (this.#more.length < MORE_MAX) this.#more.push(use);
    }
  }

  /** The server has done all that was sent to it, in `ms`, at a cost of `costMs`. */
  end(ms: number, costMs: number, className: string): void {
    const use = this.#use;
    if (use === null) return;
    const uses = this.#more;
    this.forget();
    if (uses === null) return this.#pay(use, ms, costMs, className);
    for (const each of uses) this.#pay(each, ms / uses.length, costMs / uses.length, className);
  }

  #pay(use: Use, ms: number, costMs: number, className: string): void {
    let service = this.#service!;
    let inForce = use;
    // The hour has ended since it began, and its service or shape may have been let go.
    if (this.#generation !== this.#usage.generation) {
      service = this.#usage.serviceOf(service.name);
      inForce = service.useOf(use.number);
      inForce.nature ??= use.nature;
    }
    service.className = className;
    inForce.now.ms += ms;
    inForce.now.costMs += costMs;
  }

  /** What its server was at work for is lost with it. */
  forget(): void {
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
