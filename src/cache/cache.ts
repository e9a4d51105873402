/**
 * The read cache of one database: answers that are kept and given again. Asked by client/cached for each read whose client holds no server.
 *
 *     find ──▶ an entry: it is sent, and nothing else happens
 *     miss ──▶ no        the statement runs as without a cache: why is counted
 *              follow    somebody asks the same already: wait for his answer
 *              wait      the database is asked often enough by others at present (cache/misses)
 *              fill      it runs, and a copy of its answer is kept
 *
 * The one idea: what is found is only believed if nothing has been written to its tables since it was asked for (cache/freshness),
 * and what is not found never costs the database more than it can bear.
 *
 * Invariants: nothing is kept that no rule names; losing any part of the cache makes misses, never errors.
 */
import { createHash } from 'node:crypto';
import { LRUCache } from 'lru-cache';
import type { CacheConfig, CacheRule, Consistency } from '../config/schema.ts';
import type { Reading } from '../sql/reading.ts';
import { type Relation, type Relations, schemasOf } from '../sql/relations.ts';
import type { Clock } from '../util/clock.ts';
import type { Space } from './backend.ts';
import { type Entry, isDue } from './entry.ts';
import type { Enveloped } from './envelope.ts';
import { Fill, FOLLOWERS_MAX, type Leader } from './flight.ts';
import type { Freshness, Stamp, Table } from './freshness.ts';
import { hasVolatileString, type Identity } from './key.ts';
import { Misses, type MissWaiter } from './misses.ts';
import { Need } from './need.ts';
import { type Hint, hintIn, policyFor } from './policy.ts';
import { type Judgement, PENDING, ShapeRecord } from './shapes.ts';
import type { Store } from './store.ts';
import type { Views } from './views.ts';

/** A read that was not found. */
export interface Question {
  readonly key: string;
  readonly identity: Identity;
  /** The whole text, Latin-1. */
  readonly text: string;
  /** The number of its shape, and the shape as text. */
  readonly number: number;
  readonly shape: () => string;
  /** What its tree says; null: the parser has not spoken. */
  readonly reading: Reading | null;
  /** One of its parameters means another time each day. */
  readonly isVolatile: () => boolean;
  /** Monotonic ms of the last write of its session. */
  readonly wroteAt: number;
}

export type Missed =
  | { kind: 'no' }
  | { kind: 'wait'; fill: Fill }
  | { kind: 'fill'; fill: Fill }
  | { kind: 'refused'; stale: Entry | null };

const NO: Missed = { kind: 'no' };

/** What it hears of writes by, beside its own sessions. */
export interface Stream {
  /** Every write is heard of within the time that the configuration gives. */
  isReliable(now: number): boolean;
}

export interface CacheOptions {
  database: string;
  config: CacheConfig;
  rules: readonly CacheRule[];
  store: Store;
  freshness: Freshness;
  /** What there is in the database, and the tables behind its views; null: not known. */
  schema: () => { relations: Relations; views: Views } | null;
  /** The catalogue is to be read again. */
  onDefined: () => void;
  stream: Stream;
  /** Its place in the cache that a fleet shares; null: there is none. */
  space: Space | null;
  clock: Clock;
  /** Servers that a pool of this database has at most. */
  servers: number;
  random?: () => number;
}

const SHAPES_MAX = 5_000;
const SPOILED_MAX = 20_000;
/** An answer that could not be kept is not waited for by others, and not tried again, for so long. */
const SPOILED_MS = 10_000;
/** Fills of statements that were answered from the cache within this time are more than the database is used to. */
const GUARDED_MS = 300_000;
/** Answers of a shape that could not be explained, after which it is not kept any more. */
const STRIKES = 3;
/** TTLs differ by this share, so that what was filled together is not asked for together. */
const JITTER = 0.1;
/** What the database answers sooner is not asked of the backend. */
const BACKEND_MIN_MS = 1.5;
/** How long the backend is waited for, in the time that the database takes; and at least. */
const DEADLINE_SHARE = 0.25;
const DEADLINE_MIN_MS = 2;
/** ms that what others have kept is believed where all writes through proxies are promised: one of them may have missed one. */
const PROXY_AGE_MS = 30_000;

export class Cache {
  readonly database: string;
  readonly freshness: Freshness;
  readonly misses: Misses;
  readonly store: Store;
  /** Its place in the cache that a fleet shares; null: there is none. */
  space: Space | null;
  readonly counts = {
    hits: 0,
    stale: 0,
    staleOnError: 0,
    misses: 0,
    followed: 0,
    refused: 0,
    bypassed: 0,
    would: 0,
    unkept: 0,
    fromBackend: 0,
    verified: 0,
    differed: 0,
  };
  /** Hits and misses by table, for metrics. */
  readonly tables = new Map<string, { hits: number; misses: number }>();
  /** What hits have saved, or would have, in ms of a server's time. */
  savedMs = 0;
  readonly need = new Need();
  /** ms of the oldest stale answer that was given since the last look. */
  #oldestStaleMs = 0;
  /** An answer is being compared at the moment. */
  isVerifying = false;
  #config: CacheConfig;
  #rules: readonly CacheRule[];
  #servers: number;
  readonly #options: CacheOptions;
  readonly #shapes = new LRUCache<string, ShapeRecord>({ max: SHAPES_MAX });
  /** What was judged last: requests of one shape come in rows. */
  readonly #last = { number: 0, identity: null as Identity | null, definitions: -1, shape: null as ShapeRecord | null };
  readonly #fills = new Map<string, Fill>();
  /** Those that wait for their turn. */
  readonly #turns = new Map<Fill, MissWaiter>();
  readonly #spoiled = new LRUCache<string, number>({ max: SPOILED_MAX });
  readonly #random: () => number;

  constructor(options: CacheOptions) {
    this.#options = options;
    this.#config = options.config;
    this.#rules = options.rules;
    this.database = options.database;
    this.freshness = options.freshness;
    this.store = options.store;
    this.#random = options.random ?? Math.random;
    this.space = options.space;
    this.#servers = options.servers;
    this.misses = new Misses(options.servers * options.config.missesMax);
  }

  get isServing(): boolean {
    return this.#config.mode === 'on';
  }

  get config(): CacheConfig {
    return this.#config;
  }

  /** What there is in the database; null: not known. */
  get relations(): Relations | null {
    return this.#options.schema()?.relations ?? null;
  }

  /** A client has changed definitions or rights. */
  redefine(): void {
    this.freshness.redefine();
    this.#options.onDefined();
  }

  /** What is to be said about the load that misses are, or would be. */
  get warning(): string {
    return this.isServing ? this.need.verdict(this.misses.max, this.#servers) : '';
  }

  get filling(): number {
    return this.#fills.size;
  }

  get shapes(): Iterable<ShapeRecord> {
    return this.#shapes.values();
  }

  // --- Finding --------------------------------------------------------------------------------------------------

  /**
   * The answer to the question with this key, if it is there and may be given to a session that last wrote at `wroteAt`. The caller
   * must look whether it `isDue`, and have it asked for again.
   */
  find(key: string, wantsDescription: boolean, wroteAt: number, now: number): Entry | null {
    const entry = this.store.get(key);
    if (entry === undefined || (wantsDescription && entry.descriptionEnd === 0 && this.isServing)) return null;
    if (!this.#isValid(entry, wroteAt, now)) return null;
    if (now >= entry.staleUntil) return null;
    if (!this.isServing) {
      this.counts.would++;
      entry.shape.countHit(now);
      this.savedMs += entry.shape.usualMs;
      return null;
    }
    this.#count(entry, now);
    return entry;
  }

  #count(entry: Entry, now: number): void {
    const { shape } = entry;
    if (now < entry.freshUntil) {
      this.counts.hits++;
      this.#countSpared(shape, now);
    } else {
      this.counts.stale++;
      shape.stale++;
      shape.hitAt = now;
      this.#noteAge(entry, now);
    }
    for (const name of namesOf(shape.judgement)) this.#table(name).hits++;
  }

  #countSpared(shape: ShapeRecord, now: number): void {
    shape.countHit(now);
    this.savedMs += shape.usualMs;
    this.need.spare(shape.usualMs * shape.weight);
  }

  #noteAge(entry: Entry, now: number): void {
    this.#oldestStaleMs = Math.max(this.#oldestStaleMs, now - entry.askedAt);
  }

  takeOldestStaleMs(): number {
    const age = this.#oldestStaleMs;
    this.#oldestStaleMs = 0;
    return age;
  }

  #table(name: string): { hits: number; misses: number } {
    let table = this.tables.get(name);
    if (table === undefined) {
      table = { hits: 0, misses: 0 };
      this.tables.set(name, table);
    }
    return table;
  }

  /** Is the answer that is being given to be compared with that of the database? One at a time. */
  isToVerify(): boolean {
    return !this.isVerifying && this.#config.verify > 0 && this.#random() < this.#config.verify;
  }

  /**
   * What the database has said instead of `entry`: the same; something else; or something else each time. What has been written to
   * meanwhile says nothing.
   */
  onVerified(entry: Entry, found: 'same' | 'other' | 'volatile'): void {
    if (!this.freshness.mayKeep(entry.stamp)) return;
    if (found === 'same') {
      this.counts.verified++;
      return;
    }
    this.counts.differed++;
    this.store.delete(entry.key);
    // A write that has just been made may not have been heard of yet.
    this.#options.clock.after(this.#config.wal.lagMax, () => this.#suspect(entry, found));
  }

  /** Nobody has heard of a write that would explain it. Once may be chance: of what bypasses the proxy only `wal` hears. */
  #suspect({ shape, stamp, consistency }: Entry, found: 'other' | 'volatile'): void {
    if (!this.freshness.mayKeep(stamp)) return;
    const isPromised = consistency === 'wal' && this.#isHeard(consistency, this.#options.clock.now());
    if (found === 'other' && !isPromised) return;
    if (++shape.strikes < STRIKES) return;
    shape.distrust =
      found === 'volatile'
        ? 'not kept: its answer was another each time, and no write was heard of'
        : 'not kept: its answer was not that of the database, and no write was heard of';
  }

  isDue(entry: Entry, now: number): boolean {
    return isDue(entry, now, this.#random);
  }

  #isValid(entry: Entry, wroteAt: number, now: number): boolean {
    const { freshness } = this;
    if (entry.stamp.definitions !== freshness.definitions || entry.shape.distrust !== '') return false;
    switch (entry.consistency) {
      case 'ttl':
        return true;
      case 'session':
        return entry.askedAt > wroteAt || freshness.isCurrent(entry.stamp);
      case 'proxy':
        return freshness.isCurrent(entry.stamp);
      case 'wal':
        return freshness.isCurrent(entry.stamp) && this.#isHeard(entry.consistency, now);
      default:
        return entry.consistency satisfies never;
    }
  }

  /** Are the writes heard of that this consistency is about? If not, nobody may be given what another has asked for. */
  #isHeard(consistency: Consistency, now: number): boolean {
    return consistency !== 'wal' || this.#options.stream.isReliable(now);
  }

  /** The answer that may be given because the database has none: too old, but nobody is known to have written since. */
  staleOnError(key: string, wroteAt: number, now: number): Entry | null {
    const entry = this.store.peek(key);
    if (!this.isServing || entry === undefined || now >= entry.errorUntil) return null;
    return this.#isValid(entry, wroteAt, now) ? entry : null;
  }

  countStaleOnError(entry: Entry, now: number): void {
    this.counts.staleOnError++;
    entry.shape.staleOnError++;
    this.#noteAge(entry, now);
  }

  // --- Not finding ----------------------------------------------------------------------------------------------

  /** What is to be done about a question whose answer is not there. */
  miss(question: Question, asker: Leader, now: number): Missed {
    const shape = this.#shapeOf(question);
    const { judgement } = shape;
    if (judgement.kind !== 'kept' || shape.distrust !== '') return this.#bypass();
    if (hasVolatileString(question.text) || question.isVolatile()) return this.#bypass();
    if (!this.#isHeard(judgement.policy.consistency, now)) return this.#bypass();
    if (!this.isServing) return this.#pretend(question, shape, judgement, now);
    const { key } = question;
    if (this.#spoiled.size > 0 && (this.#spoiled.get(key) ?? 0) > now) return this.#bypass();
    const flying = this.#fills.get(key);
    if (flying !== undefined) {
      // Who matters more does not wait behind somebody who may have to.
      const isBehind = asker.rank < (flying.leader?.rank ?? 0);
      if (isBehind || flying.followers.length >= FOLLOWERS_MAX || flying.askedAt <= question.wroteAt)
        return this.#bypass();
      flying.followers.push(asker);
      this.counts.followed++;
      return { kind: 'wait', fill: flying };
    }
    const stale = this.staleOnError(key, question.wroteAt, now);
    const stamp = shape.stamp(this.freshness);
    const fill = new Fill({ key, shape, stamp, stale, leader: asker, entryMax: this.#config.entryMax, now });
    this.#fills.set(key, fill);
    if (this.#askBackend(fill, question, judgement)) return { kind: 'wait', fill };
    return this.#askDatabase(fill, now);
  }

  /** What the shared cache knows is asked for first, if that is quicker than the database. */
  #askBackend(fill: Fill, { key, identity }: Question, { tables }: Judgement & { kind: 'kept' }): boolean {
    const { space } = this;
    const usual = fill.shape.usualMs;
    if (space === null || (usual > 0 && usual < BACKEND_MIN_MS)) return false;
    const digest = digestOf(key, identity, this.relations?.digest ?? '');
    if (!space.mayRead(digest) || !space.backend.hasRoom(0)) return false;
    fill.stage = 'backend';
    fill.digest = digest;
    const { budget } = space.backend;
    const deadline = usual === 0 ? budget : Math.min(budget, Math.max(DEADLINE_MIN_MS, usual * DEADLINE_SHARE));
    // From half of the time on the database is asked as well, and the first answer counts.
    const stopHedging = space.backend.after(deadline / 2, () => this.#goOn(fill));
    space.read(digest, oidsOf(tables), deadline, ({ content, versions }) => {
      stopHedging();
      fill.versions = versions;
      if (content !== null) this.#take(fill, content);
      this.#goOn(fill);
    });
    return true;
  }

  /** The backend has the answer: everybody gets it, who asks first as well unless he has gone on to the database. */
  #take(fill: Fill, content: Enveloped): void {
    const now = this.#options.clock.now();
    const { key, shape, stamp, leader } = fill;
    const { judgement } = shape;
    if (fill.stage === 'over' || judgement.kind !== 'kept' || !this.freshness.mayKeep(stamp)) return;
    if (!this.#isHeard(judgement.policy.consistency, now)) return;
    const age = Math.max(0, this.#options.clock.wall() - content.createdAt);
    const { body, descriptionEnd, costMs } = content;
    const entry = this.#entryOf(key, shape, judgement, stamp, { body, descriptionEnd, askedAt: now - age, costMs });
    if (now >= entry.freshUntil || age > backendAgeOf(entry.consistency)) return;
    if (shape.usualMs === 0) shape.learn(content.costMs);
    // Too late to spare anything, if the database is being asked already.
    if (fill.stage === 'backend') {
      this.counts.fromBackend++;
      this.#countSpared(shape, now);
      for (const name of judgement.names) this.#table(name).hits++;
    }
    this.store.set(entry);
    if (fill.stage === 'database') return fill.tell(entry);
    this.#finish(fill);
    leader?.onFilled(entry);
    fill.tell(entry);
  }

  /** The backend has not answered, in time or at all. */
  #goOn(fill: Fill): void {
    if (fill.stage !== 'backend') return;
    const now = this.#options.clock.now();
    const asked = this.#askDatabase(fill, now);
    if (asked.kind === 'fill') fill.leader?.onTurn();
    else if (asked.kind === 'refused') fill.leader?.onRefused();
  }

  /** The database is to be asked: at once, or when it is its turn. */
  #askDatabase(fill: Fill, now: number): Missed {
    const { shape } = fill;
    this.counts.misses++;
    shape.misses++;
    this.need.miss(shape.usualMs * shape.weight);
    for (const name of namesOf(shape.judgement)) this.#table(name).misses++;
    const isHot = now - fill.shape.hitAt < GUARDED_MS;
    const { weight } = fill;
    if (isHot && !this.misses.enter(weight)) {
      const turn: MissWaiter = {
        rank: fill.leader?.rank ?? 0,
        onTurn: () => {
          this.#turns.delete(fill);
          fill.guard = this.misses;
          this.#begin(fill);
          fill.leader?.onTurn();
        },
        onRefused: () => {
          this.counts.refused++;
          fill.leader?.onRefused();
        },
      };
      if (!this.misses.wait(turn, weight, now)) {
        this.counts.refused++;
        this.#finish(fill);
        fill.tell(null);
        return { kind: 'refused', stale: fill.stale };
      }
      this.#turns.set(fill, turn);
      fill.stage = 'turn';
      return { kind: 'wait', fill };
    }
    if (isHot) fill.guard = this.misses;
    this.#begin(fill);
    return { kind: 'fill', fill };
  }

  /** The stamp is that of now, since the database has not been asked yet. */
  #begin(fill: Fill): void {
    fill.stage = 'database';
    fill.askedAt = this.#options.clock.now();
    fill.stamp = fill.shape.stamp(this.freshness);
  }

  #finish(fill: Fill): void {
    if (fill.stage === 'turn') {
      this.misses.leave(this.#turns.get(fill)!);
      this.#turns.delete(fill);
    }
    fill.stage = 'over';
    if (this.#fills.get(fill.key) === fill) this.#fills.delete(fill.key);
  }

  #bypass(): Missed {
    this.counts.bypassed++;
    return NO;
  }

  /** Only observing: what would have been kept is remembered without its bytes. */
  #pretend({ key }: Question, shape: ShapeRecord, judgement: Judgement & { kind: 'kept' }, now: number): Missed {
    this.counts.misses++;
    shape.misses++;
    const nothing = { body: NOTHING, descriptionEnd: 0, askedAt: now, costMs: 0 };
    this.store.set(this.#entryOf(key, shape, judgement, shape.stamp(this.freshness), nothing));
    return NO;
  }

  /** An answer that is stale, but not too old, is asked for again: by whoever is given it. Null: somebody does already. */
  refresh(entry: Entry, now: number): Fill | null {
    const { key, shape } = entry;
    if (this.#fills.has(key) || shape.judgement.kind !== 'kept' || !this.misses.enter(shape.weight)) return null;
    const stamp = shape.stamp(this.freshness);
    const fill = new Fill({ key, shape, stamp, stale: null, leader: null, entryMax: this.#config.entryMax, now });
    fill.guard = this.misses;
    this.#fills.set(key, fill);
    return fill;
  }

  /** The database has answered, or will not: `fill.collector` says which. */
  end(fill: Fill, now: number): void {
    if (fill.stage === 'over') return;
    const wasAsked = fill.stage === 'database';
    this.#finish(fill);
    const { key, collector, shape } = fill;
    const isWhole = collector.state === 'whole';
    const ms = now - fill.askedAt;
    const usual = shape.usualMs;
    if (isWhole) shape.learn(ms);
    if (wasAsked) fill.guard?.end(fill.weight, ms, isWhole ? usual : 0);
    const entry = isWhole ? this.#keep(fill, now) : null;
    if (collector.state === 'spoiled' && !collector.isError) this.#spoiled.set(key, now + SPOILED_MS);
    fill.tell(entry);
  }

  #keep(fill: Fill, now: number): Entry | null {
    const { key, collector, shape, stamp } = fill;
    const { judgement } = shape;
    const isKept = judgement.kind === 'kept' && this.#isHeard(judgement.policy.consistency, now);
    if (!isKept || !this.freshness.mayKeep(stamp)) {
      this.counts.unkept++;
      return null;
    }
    const { descriptionEnd } = collector;
    const { askedAt } = fill;
    const costMs = now - askedAt;
    const body = collector.take();
    const entry = this.#entryOf(key, shape, judgement, stamp, { body, descriptionEnd, askedAt, costMs });
    this.store.set(entry);
    const { digest, versions } = fill;
    if (digest !== null && versions !== null) {
      const { clock } = this.#options;
      const ttlMs = Math.min(entry.freshUntil - now, backendAgeOf(entry.consistency));
      this.space?.store(
        { key: digest, createdAt: clock.wall() - costMs, ttlMs, costMs, descriptionEnd, body },
        versions,
      );
    }
    return entry;
  }

  #entryOf(
    key: string,
    shape: ShapeRecord,
    { policy }: Judgement & { kind: 'kept' },
    stamp: Stamp,
    answer: Pick<Entry, 'body' | 'descriptionEnd' | 'askedAt' | 'costMs'>,
  ): Entry {
    const ttl = policy.ttl * (1 + JITTER * (2 * this.#random() - 1));
    const freshUntil = answer.askedAt + ttl;
    const staleUntil = freshUntil + policy.staleWhileRevalidate;
    const errorUntil = staleUntil + policy.staleIfError;
    // All of one form, and written out: made by a spread they cost a hit a quarter more (measured).
    const { body, descriptionEnd, askedAt, costMs } = answer;
    return {
      key,
      body,
      descriptionEnd,
      stamp,
      shape,
      consistency: policy.consistency,
      askedAt,
      costMs,
      freshUntil,
      staleUntil,
      errorUntil,
    };
  }

  // --- Judging --------------------------------------------------------------------------------------------------

  #shapeOf(question: Question): ShapeRecord {
    const { identity, number, text } = question;
    const hint = hintIn(text);
    const last = this.#last;
    if (
      hint === null &&
      last.number === number &&
      last.identity === identity &&
      last.definitions === this.freshness.definitions
    )
      return last.shape!;
    const id = `${number} ${identity.role} ${identity.searchPath} ${hint === null ? '' : JSON.stringify(hint)}`;
    let shape = this.#shapes.get(id);
    if (shape === undefined) {
      shape = new ShapeRecord(question.shape());
      this.#shapes.set(id, shape);
    }
    if (shape.judgement.kind === 'pending' || shape.definitions !== this.freshness.definitions) {
      shape.definitions = this.freshness.definitions;
      const schema = this.#options.schema();
      shape.judgement =
        schema === null || question.reading === null ? PENDING : this.#judge(question.reading, identity, hint, schema);
    }
    const isKnown = hint === null && shape.judgement.kind !== 'pending';
    if (isKnown) Object.assign(last, { number, identity, shape, definitions: shape.definitions });
    return shape;
  }

  #judge(
    reading: Reading,
    identity: Identity,
    hint: Hint | null,
    { relations, views }: { relations: Relations; views: Views },
  ): Judgement {
    const refused = (why: string): Judgement => ({ kind: 'refused', why });
    if (reading.refusal !== '') return refused(reading.refusal);
    const unsteady = relations.refusalOf(reading);
    if (unsteady !== '') return refused(unsteady);
    const path = schemasOf(identity.searchPath ?? '', identity.role);
    const named: Relation[] = [];
    for (const each of reading.relations) {
      const found = relations.resolve(each, path);
      if (typeof found === 'string') return refused(found);
      named.push(found);
    }
    const policy = policyFor(this.#rules, named, hint);
    if (typeof policy === 'string') return refused(policy);
    const bases = views.basesOf(named);
    if (bases === null) return PENDING;
    if (typeof bases === 'string') return refused(bases);
    return {
      kind: 'kept',
      policy,
      tables: bases.map(({ oid }) => this.freshness.table(oid)),
      names: [...new Set(named.map(({ name }) => name))],
    };
  }

  // --- The rest -------------------------------------------------------------------------------------------------

  /** What was judged by other rules is judged anew, and what was kept by them is dropped here; others judge by theirs. */
  configure(config: CacheConfig, rules: readonly CacheRule[], servers: number): void {
    const isSame = config.mode === this.#config.mode && JSON.stringify(rules) === JSON.stringify(this.#rules);
    this.#servers = servers;
    this.misses.max = servers * config.missesMax;
    this.#config = config;
    if (isSame) return;
    this.#rules = rules;
    this.#shapes.clear();
    this.#last.number = 0;
    this.freshness.redefineHere();
  }

  tick(now: number): void {
    this.misses.tick(now);
    this.need.tick(now);
  }
}

const NOTHING: Buffer = Buffer.alloc(0);

/** The question for those who share a cache, asked of a database with these definitions: keys are of this process only. */
function digestOf(key: string, { id, digest }: Identity, definitions: string): Buffer {
  return createHash('sha256').update(digest).update(definitions).update(key.slice(id.length), 'latin1').digest();
}

function backendAgeOf(consistency: Consistency): number {
  return consistency === 'proxy' ? PROXY_AGE_MS : Number.POSITIVE_INFINITY;
}

function oidsOf(tables: readonly Table[]): readonly number[] {
  return tables.map(({ oid }) => oid);
}

function namesOf(judgement: Judgement): readonly string[] {
  return judgement.kind === 'kept' ? judgement.names : [];
}
