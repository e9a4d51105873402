/**
 * Random histories of one cache: questions, answers that come late, writes through the proxy and past it, rollbacks, changes of definitions and
 * of roles, a backend that fails and comes back, gaps in the stream of changes. After every answer that the cache gives: would the
 * consistency of its rule have allowed it?
 */
import fc from 'fast-check';
import t from 'tap';
import type { Found, Space } from '../../src/cache/backend.ts';
import { Cache, type Stream } from '../../src/cache/cache.ts';
import type { Entry } from '../../src/cache/entry.ts';
import type { Fill } from '../../src/cache/flight.ts';
import { Freshness, type Table } from '../../src/cache/freshness.ts';
import { Identities } from '../../src/cache/key.ts';
import { Store } from '../../src/cache/store.ts';
import { Views } from '../../src/cache/views.ts';
import type { Consistency } from '../../src/config/schema.ts';
import * as encode from '../../src/protocol/encode.ts';
import { Relations } from '../../src/sql/relations.ts';
import { FakeClock } from '../fixtures/clock.ts';

const TABLES = [20_001, 20_002, 20_003];
const NAMES = ['a', 'b', 'c'];
const TTL = 10_000;
const LAG_MAX = 200;

const relations = new Relations({
  relations: TABLES.map((oid, at) => [oid, 'public', NAMES[at], 'r', 'p', 'f', 'f', null]),
  parents: [],
  cascades: [],
  functions: [],
  types: [],
  operators: [],
  digest: [['x']],
});

/** What an answer says: how many commits each of its tables had seen, and whose it is. */
interface Said {
  role: string;
  seen: number[];
}

function answerOf(said: Said): Buffer {
  return Buffer.concat([
    encode.rowDescription([{ name: 'said', oid: encode.Oid.text }]),
    encode.dataRow([JSON.stringify(said)]),
    encode.commandComplete('SELECT 1'),
    encode.readyForQuery(),
  ]);
}

function saidIn({ body, descriptionEnd }: Entry): Said {
  const at = descriptionEnd + 5 + 2;
  return JSON.parse(body.toString('utf8', at + 4, at + 4 + body.readInt32BE(at)));
}

interface Commit {
  at: number;
  number: number;
}

interface Write {
  session: number;
  tables: number[];
  stage: 'sent' | 'committed';
}

/** A database that counts the commits of each table, and everything that lies between it and its clients. */
class World {
  readonly clock = new FakeClock();
  readonly freshness: Freshness;
  readonly cache: Cache;
  /** Commits of each table, visible. */
  readonly commits = TABLES.map(() => 0);
  /** Commits through the proxy that were acknowledged, by table; and by session and table. */
  readonly acked = TABLES.map(() => 0);
  readonly own = new Map<string, number>();
  /** When each commit became visible. */
  readonly visible: Commit[][] = TABLES.map(() => []);
  readonly wroteAt = new Map<number, number>();
  readonly roles = ['reader', 'reader', 'writer'];
  readonly writes: Write[] = [];
  readonly fills: { fill: Fill; said: Said | null; tables: number[]; role: string }[] = [];
  /** Events of the stream that are on their way. */
  readonly events: { tables: number[]; isVisible: boolean; isHeard: boolean; settled: Table[] }[] = [];
  readonly space = new FakeSpace(this);
  isStreaming = true;
  heardUntil = 0;
  hits = 0;
  readonly consistency: Consistency;
  readonly identities = new Identities();

  constructor(consistency: Consistency, hasBackend: boolean) {
    this.consistency = consistency;
    this.freshness = new Freshness((oids) => {
      if (hasBackend) this.space.invalidate(oids);
    });
    const stream: Stream = { isReliable: (now) => this.isStreaming && now - this.heardUntil <= LAG_MAX };
    const rule = { tables: ['*'], hint: false, ttl: TTL, staleWhileRevalidate: 0, staleIfError: 0, consistency };
    const views = new Views(relations, () => {});
    this.cache = new Cache({
      database: 'db',
      config: {
        mode: 'on',
        memoryMax: 1e6,
        entryMax: 1e5,
        missesMax: 0.5,
        verify: 0,
        inTransactions: 'off',
        wal: { lagMax: LAG_MAX },
        sets: {},
        backend: undefined,
      },
      rules: [rule],
      store: new Store(1e6),
      freshness: this.freshness,
      schema: () => ({ relations, views }),
      onDefined: () => {},
      stream,
      servers: 100,
      space: hasBackend ? (this.space as unknown as Space) : null,
      clock: this.clock,
      random: () => 0.5,
    });
  }

  snapshot(tables: number[], role: string): Said {
    return { role, seen: tables.map((table) => this.commits[table]!) };
  }

  // --- Reading --------------------------------------------------------------------------------------------------

  ask(session: number, tables: number[]): void {
    const role = this.roles[session]!;
    const now = this.clock.now();
    const wroteAt = this.wroteAt.get(session) ?? Number.NEGATIVE_INFINITY;
    const reported = new Map([
      ['session_authorization', role],
      ['search_path', 'public'],
    ]);
    const identity = this.identities.of('db', role, { reported, custom: new Map() });
    const key = `${identity.id} S${tables.join()}`;
    const least = this.least(session, tables);
    const check = (entry: Entry) => this.check(entry, tables, role, least);
    const entry = this.cache.find(key, false, wroteAt, now);
    if (entry !== null) return check(entry);
    const leader = {
      rank: 0,
      onTurn: () => this.begin(missed.kind === 'no' || missed.kind === 'refused' ? null : missed.fill, tables, role),
      onRefused() {},
      onFilled: (given: Entry | null) => given !== null && check(given),
    };
    const missed = this.cache.miss(
      {
        key,
        identity,
        text: tables.join(),
        number: 1 + tables.reduce((sum, table) => sum + 2 ** table, 0),
        shape: () => tables.join(),
        reading: {
          refusal: '',
          relations: tables.map((table) => ({ schema: '', name: NAMES[table]! })),
          functions: [],
          types: [],
          operators: [],
          members: [],
        },
        isVolatile: () => false,
        wroteAt,
      },
      leader,
      now,
    );
    if (missed.kind === 'fill') this.begin(missed.fill, tables, role);
  }

  begin(fill: Fill | null, tables: number[], role: string): void {
    if (fill !== null) this.fills.push({ fill, said: null, tables, role });
  }

  /** The least that an answer must have seen of each table: what its consistency promises to whoever asks now. */
  least(session: number, tables: number[]): number[] {
    const now = this.clock.now();
    return tables.map((table) => {
      switch (this.consistency) {
        case 'ttl':
          return 0;
        case 'session':
          return this.own.get(`${session} ${table}`) ?? 0;
        case 'proxy':
          return this.acked[table]!;
        default:
          return this.visible[table]!.filter(({ at }) => at < now - LAG_MAX).at(-1)?.number ?? 0;
      }
    });
  }

  check(entry: Entry, tables: number[], role: string, least: number[]): void {
    this.hits++;
    const said = saidIn(entry);
    if (said.role !== role) throw new Error(`${role} was given what ${said.role} had asked for`);
    tables.forEach((table, at) => {
      if (said.seen[at]! < least[at]!)
        throw new Error(
          `${this.consistency}: table ${table} at ${said.seen[at]}, and at least ${least[at]} was promised`,
        );
      if (said.seen[at]! > this.commits[table]!) throw new Error('an answer from the future');
      // Of what was committed longer ago than an answer lives nothing may be missing.
      const old =
        this.visible[table]!.filter(({ at: when }) => when < this.clock.now() - TTL * 1.1).at(-1)?.number ?? 0;
      if (said.seen[at]! < old) throw new Error(`an answer older than its ttl`);
    });
  }

  /** The database takes its snapshot for a question that is under way; or its answer arrives. */
  answer(index: number, fails: boolean): void {
    const asked = this.fills[index % this.fills.length];
    if (asked === undefined) return;
    if (asked.said === null && !fails) {
      asked.said = this.snapshot(asked.tables, asked.role);
      return;
    }
    this.fills.splice(this.fills.indexOf(asked), 1);
    if (asked.said !== null && !fails) asked.fill.collector.add(answerOf(asked.said));
    this.cache.end(asked.fill, this.clock.now());
  }

  // --- Writing --------------------------------------------------------------------------------------------------

  write(session: number, tables: number[]): void {
    this.writes.push({ session, tables, stage: 'sent' });
    this.cache.space?.announce(tables.map((table) => TABLES[table]!));
  }

  /** It commits in the database; then its client hears of it. Or it is rolled back. */
  go(index: number, isRolledBack: boolean): void {
    const write = this.writes[index % this.writes.length];
    if (write === undefined) return;
    if (write.stage === 'sent' && !isRolledBack) {
      write.stage = 'committed';
      this.commit(write.tables, true);
      return;
    }
    this.writes.splice(this.writes.indexOf(write), 1);
    const oids = write.tables.map((table) => TABLES[table]!);
    this.freshness.bump(oids);
    this.cache.space?.settle(oids);
    this.wroteAt.set(write.session, this.clock.now());
    if (write.stage !== 'committed') return;
    for (const table of write.tables) {
      this.acked[table] = Math.max(this.acked[table]!, this.commits[table]!);
      this.own.set(`${write.session} ${table}`, this.commits[table]!);
    }
  }

  /** A commit, which the stream tells of before it is visible, or after. */
  commit(tables: number[], isVisible: boolean): void {
    if (isVisible) this.show(tables);
    this.events.push({ tables, isVisible, isHeard: false, settled: [] });
  }

  show(tables: number[]): void {
    for (const table of tables) {
      const number = ++this.commits[table]!;
      this.visible[table]!.push({ at: this.clock.now(), number });
    }
  }

  /** The stream moves: an event is heard of, or turns out to be visible. */
  hear(index: number): void {
    const event = this.events[index % this.events.length];
    if (event === undefined) return;
    if (!event.isHeard) {
      // In order.
      const first = this.events.find((each) => !each.isHeard)!;
      first.isHeard = true;
      if (!this.isStreaming) return;
      first.settled = first.tables.map((table) => this.freshness.table(TABLES[table]!));
      for (const table of first.settled) {
        table.unsettled++;
        this.freshness.bump([table.oid]);
      }
      return;
    }
    if (!event.isVisible) {
      event.isVisible = true;
      this.show(event.tables);
      return;
    }
    this.events.splice(this.events.indexOf(event), 1);
    for (const table of event.settled) {
      table.unsettled--;
      this.freshness.bump([table.oid]);
    }
  }

  /** The position is compared: everything until now has been heard, if it has. */
  look(): void {
    if (this.isStreaming && this.events.every(({ isHeard }) => isHeard)) this.heardUntil = this.clock.now();
  }

  gap(): void {
    this.isStreaming = !this.isStreaming;
    for (const event of this.events) {
      for (const table of event.settled) table.unsettled--;
      event.settled = [];
    }
    this.freshness.bump('all');
    this.heardUntil = Number.NEGATIVE_INFINITY;
  }
}

/** A backend that does what the real one promises, and loses what the real one loses. */
class FakeSpace {
  readonly backend = {
    budget: 15,
    hasRoom: () => this.isUp,
    after: (ms: number, run: () => void) => this.#world.clock.after(ms, run),
  };
  readonly #world: World;
  isUp = true;
  #mustRotate = false;
  #epoch = 1n;
  #versions = new Map<number, bigint>();
  #markers = new Map<number, number>();
  #answers = new Map<string, { content: Found['content']; versions: NonNullable<Found['versions']> }>();
  readonly waiting: (() => void)[] = [];

  constructor(world: World) {
    this.#world = world;
  }

  mayRead(): boolean {
    return this.isUp && !this.#mustRotate;
  }

  #now(oids: readonly number[]): NonNullable<Found['versions']> {
    return { epoch: this.#epoch, of: oids.map((oid) => ({ oid, version: this.#versions.get(oid) ?? 0n })) };
  }

  read(key: Buffer, oids: readonly number[], _: number, done: (found: Found) => void): void {
    // It looks when the command arrives, and answers later.
    const versions = this.#now(oids);
    const found = this.#answers.get(key.toString('hex'));
    const isSame = JSON.stringify(found?.versions, big) === JSON.stringify(versions, big);
    this.waiting.push(() =>
      done(this.isUp ? { content: isSame ? found!.content : null, versions } : { content: null, versions: null }),
    );
  }

  store(content: NonNullable<Found['content']>, versions: NonNullable<Found['versions']>): void {
    if (!this.mayRead() || versions.of.some(({ oid }) => (this.#markers.get(oid) ?? 0) > 0)) return;
    this.#answers.set(content.key.toString('hex'), { content, versions });
  }

  #tell(oids: readonly number[], marker: number): void {
    if (!this.isUp) {
      this.#mustRotate = true;
      return;
    }
    for (const oid of oids) {
      this.#versions.set(oid, (this.#versions.get(oid) ?? 0n) + 1n);
      this.#markers.set(oid, Math.max(0, (this.#markers.get(oid) ?? 0) + marker));
    }
  }

  announce(oids: readonly number[]): void {
    this.#tell(oids, 1);
  }

  settle(oids: readonly number[]): void {
    this.#tell(oids, -1);
  }

  invalidate(oids: readonly number[] | 'all'): void {
    if (oids !== 'all') return this.#tell(oids, 0);
    if (this.isUp) this.#epoch++;
    else this.#mustRotate = true;
  }

  fail(): void {
    this.isUp = !this.isUp;
    if (!this.isUp || !this.#mustRotate) return;
    this.#epoch++;
    this.#mustRotate = false;
    this.#markers.clear();
  }
}

const big = (_: string, value: unknown) => (typeof value === 'bigint' ? String(value) : value);

type Step = { kind: string; a: number; b: number; isOdd: boolean };

function play(consistency: Consistency, hasBackend: boolean, steps: readonly Step[]): World {
  const world = new World(consistency, hasBackend);
  const { space } = world;
  for (const { kind, a, b, isOdd } of steps) {
    const tables = isOdd ? [a % 3] : [...new Set([a % 3, b % 3])].sort();
    switch (kind) {
      case 'ask':
        world.ask(b % 3, tables);
        break;
      case 'answer':
        if (world.fills.length > 0) world.answer(a, b % 16 === 0);
        break;
      case 'write':
        world.write(b % 3, tables);
        break;
      case 'go':
        if (world.writes.length > 0) world.go(a, b % 8 === 0);
        break;
      case 'behind':
        world.commit(tables, isOdd);
        break;
      case 'hear':
        if (world.events.length > 0) world.hear(a);
        break;
      case 'backend':
        space.waiting.splice(0, 1)[0]?.();
        break;
      case 'time':
        world.clock.advance(a % 7 === 0 ? TTL / 2 : a % 40);
        world.look();
        break;
      case 'rare':
        if (a % 4 === 0) world.freshness.redefine();
        else if (a % 4 === 1) world.roles[b % 3] = isOdd ? 'reader' : 'writer';
        else if (a % 4 === 2) space.fail();
        else if (consistency === 'wal') world.gap();
        break;
      default:
    }
  }
  return world;
}

const kinds = [
  'ask',
  'ask',
  'ask',
  'ask',
  'answer',
  'answer',
  'answer',
  'write',
  'go',
  'go',
  'behind',
  'hear',
  'hear',
  'hear',
  'backend',
  'backend',
  'time',
  'rare',
];
const step = fc.record({
  kind: fc.constantFrom(...kinds),
  a: fc.nat(1000),
  b: fc.nat(1000),
  isOdd: fc.boolean(),
});

for (const consistency of ['ttl', 'session', 'proxy', 'wal'] as const) {
  for (const hasBackend of [false, true]) {
    t.test(`consistency ${consistency}${hasBackend ? ', with a backend' : ''}: no history breaks its promise`, (t) => {
      let hits = 0;
      fc.assert(
        fc.property(fc.array(step, { minLength: 40, maxLength: 160 }), (steps) => {
          hits += play(consistency, hasBackend, steps).hits;
        }),
        { numRuns: 1_500 },
      );
      t.ok(hits > 100, `${hits} answers from the cache`);
      t.end();
    });
  }
}
