/**
 * A session's way past the database: recognises the read that has arrived, asks the cache for it, and keeps a copy of what the server answers
 * when the cache has not got it. Made by client/session when its database has a cache; the cache hears by it what the session writes
 * (client/written).
 *
 * The one idea: what is answered is one statement asked for as a whole (client/question), and only while the client holds no server: then nothing of it has
 * been sent anywhere.
 */
import type { Cache, Missed } from '../cache/cache.ts';
import type { Entry } from '../cache/entry.ts';
import type { Fill, Leader } from '../cache/flight.ts';
import {
  extendedKey,
  hasVolatileParameter,
  type Identities,
  type Identity,
  plainText,
  simpleKey,
} from '../cache/key.ts';
import type { Frame, FrameReader } from '../protocol/frame.ts';
import { ClientMessage, Status } from '../protocol/messages.ts';
import { error, type Refusal, SqlState } from '../protocol/sqlstate.ts';
import type { ServerPool } from '../server/pool.ts';
import type { Settings } from '../server/settings.ts';
import { shapeText } from '../sql/shape.ts';
import type { Verdict } from '../sql/verdict.ts';
import type { Alone } from './alone.ts';
import { type Block, seesCommitted } from './block.ts';
import { type Form, findQuestion, NOTHING, piecesOf, type Question, requestOf } from './question.ts';
import { type AskingAgain, verify } from './verify.ts';
import { Written } from './written.ts';

export interface CachedClient extends AskingAgain {
  readonly pool: ServerPool;
  readonly settings: Settings;
  /** 0 is critical. */
  readonly rank: number;
  /** The cache has not got what `message` asks for: from here on its class matters. */
  classify(message: Frame): void;
  /** What it waited for has come, or will not: the held message is to be handled again. */
  onWaited(): void;
  /** The held message is refused. */
  onRefused(refusal: Refusal): void;
}

/** What a client is to have yet of an answer that was cut off; `isAnswered`: with that it is whole. */
export interface Rest {
  pieces: readonly Buffer[];
  isAnswered: boolean;
}

/** 'answer': by `entry`; 'wait': the message is to be held; 'go': to a server; 'refuse': it is too much for the database. */
export type Asked =
  | { kind: 'answer'; entry: Entry; form: Form }
  | { kind: 'wait' }
  | { kind: 'go' }
  | { kind: 'refuse'; refusal: Refusal };

const HEADER = 5;
const GO: Asked = { kind: 'go' };
const WAIT: Asked = { kind: 'wait' };
/** Nobody waits longer for what somebody else has asked for. */
const FETCH_MS = 5_000;

export class CachedReads implements Leader {
  readonly #client: CachedClient;
  readonly #cache: Cache;
  readonly #identities: Identities;
  readonly #alone: Alone;
  readonly #reader: FrameReader;
  /** The settings that `#identity` is made from. */
  #settings: Settings | null = null;
  #identity: Identity | null = null;
  /** What it has asked the database for, and a copy of which is kept. */
  #fill: Fill | null = null;
  /** Somebody else's, for which it waits. */
  #followed: Fill | null = null;
  /** What it has waited for. */
  #given: Entry | null = null;
  /** Messages that were sent since it has asked; some were behind its own. */
  #sent = 0;
  #hasMore = false;
  /** Bytes of the server that are kept back: should it fail, an old answer is given instead. */
  #kept: Buffer[] = [];
  /** What it has asked for, or waits for. */
  #form: Form = { rest: 0, hasDescription: false, prefix: NOTHING };
  /** The request that is handled next is for the database, whatever the cache may have. */
  #isAlone = false;
  /** Monotonic ms of the last write. */
  #wroteAt = Number.NEGATIVE_INFINITY;
  /** What it has written, or may have, since it was last known to have ended. */
  readonly written: Written;

  constructor(client: CachedClient, cache: Cache, identities: Identities, alone: Alone, reader: FrameReader) {
    this.#client = client;
    this.#cache = cache;
    this.#identities = identities;
    this.#alone = alone;
    this.#reader = reader;
    this.written = new Written(cache);
  }

  get cache(): Cache {
    return this.#cache;
  }

  get rank(): number {
    return this.#client.rank;
  }

  /** What it has asked for. */
  get form(): Form {
    return this.#form;
  }

  /** There is something to give when the database cannot answer. */
  get hasOld(): boolean {
    return (this.#fill?.stale ?? null) !== null;
  }

  /** Its client has been told a part of the server's answer. */
  get #hasPassed(): boolean {
    return (
      this.#hasMore ||
      this.#fill?.stale === null ||
      (this.#fill?.collector.isDecided === true && !this.#fill.collector.isError)
    );
  }

  /** A copy is being made of what the server answers. */
  get isFilling(): boolean {
    return this.#fill !== null;
  }

  get #ownIdentity(): Identity {
    const { settings, pool } = this.#client;
    if (this.#settings !== settings) {
      this.#settings = settings;
      this.#identity = this.#identities.of(pool.database, pool.user, settings);
    }
    return this.#identity!;
  }

  /** What becomes of the request that begins with `message`? `block`: the transaction that no server knows of. */
  ask(message: Frame, block: Block, now: number): Asked {
    const { settings } = this.#client;
    const isInBlock = block !== 'none';
    if (settings.isOpaque) return GO;
    if (isInBlock && (this.#cache.config.inTransactions !== 'on' || !seesCommitted(block, settings))) return GO;
    if (this.#isAlone) {
      this.#isAlone = false;
      return GO;
    }
    if (this.#fill !== null) return this.#fill.stage === 'database' ? GO : WAIT;
    const question = mayRead(message) ? findQuestion(message, this.#reader, this.#alone) : null;
    if (question === null) return GO;
    const { hasDescription, isExtended, text, types, values } = question;
    const plain = plainText(text);
    const key = isExtended
      ? extendedKey(this.#ownIdentity, plain, types, values.toString('latin1'))
      : simpleKey(this.#ownIdentity, plain);
    const given = this.#given;
    this.#given = null;
    const cache = this.#cache;
    const isOurs = given !== null && given.key === key && (!hasDescription || given.descriptionEnd > 0);
    const entry = isOurs ? given : cache.find(key, hasDescription, this.#wroteAt, now);
    if (entry !== null) {
      if (!isOurs && cache.isDue(entry, now)) this.#refresh(entry, question, message, now);
      else if (cache.isToVerify()) verify(cache, entry, question, requestOf(question, message), this.#client);
      return { kind: 'answer', entry, form: question };
    }
    if (isInBlock) return GO;
    return this.#miss(key, question, message, now);
  }

  #miss(key: string, question: Question, message: Frame, now: number): Asked {
    const { rest, hasDescription, prefix, text, isExtended, values } = question;
    this.#client.classify(message);
    const verdict = this.#alone.verdictOf(message);
    if (verdict === null || verdict.read === 0) return GO;
    this.#form = { rest, hasDescription, prefix };
    this.#sent = 0;
    this.#hasMore = false;
    const missed: Missed = this.#cache.miss(
      {
        key,
        identity: this.#ownIdentity,
        text,
        number: verdict.number,
        shape: () => shapeText(text),
        reading: verdict.nature?.reading ?? null,
        isVolatile: () => isExtended && hasVolatileParameter(values),
        wroteAt: this.#wroteAt,
      },
      this,
      now,
    );
    switch (missed.kind) {
      case 'no':
        return GO;
      case 'fill':
        this.#fill = missed.fill;
        return GO;
      case 'wait':
        if (missed.fill.leader === this) this.#fill = missed.fill;
        else this.#followed = missed.fill;
        return WAIT;
      case 'refused':
        if (missed.stale === null) return { kind: 'refuse', refusal: this.#refuseMiss() };
        this.#cache.countStaleOnError(missed.stale, now);
        return { kind: 'answer', entry: missed.stale, form: this.#form };
      default:
        return missed satisfies never;
    }
  }

  #refuseMiss(): Refusal {
    const why = 'the cache has not got it, and the database is asked as often as it can bear (cache.missesMax)';
    return this.#client.pool.refuse('misses', why);
  }

  /** The request in hand is asked again, for the cache alone: its client has an old answer already. */
  #refresh(entry: Entry, question: Question, message: Frame, now: number): void {
    const fill = this.#cache.refresh(entry, now);
    if (fill === null) return;
    this.#client.askAgain(requestOf(question, message), fill, () => {});
  }

  // --- While it waits -------------------------------------------------------------------------------------------

  onFilled(entry: Entry | null): void {
    this.#fill = null;
    this.#followed = null;
    this.#given = entry;
    this.#client.onWaited();
  }

  onTurn(): void {
    this.#client.onWaited();
  }

  onRefused(): void {
    this.#client.onRefused(this.#refuseMiss());
  }

  /** Somebody else's question may take longer than its own client wants to wait (0: not known). 'own': it asks for itself. */
  tire(waitedMs: number, deadlineMs: number, now: number): 'waits' | 'own' | Refusal {
    if (deadlineMs > 0 && waitedMs > deadlineMs)
      return error(SqlState.QueryCanceled, 'canceling statement due to statement timeout');
    if (waitedMs <= FETCH_MS) return 'waits';
    this.end(now);
    this.#isAlone = true;
    return 'own';
  }

  /** Another session asks for it: that of a refresh. */
  adopt(fill: Fill): void {
    this.#fill = fill;
  }

  // --- While it is answered -------------------------------------------------------------------------------------

  /**
   * The server has answered `bytes`: gives what the client is to have of it. With an old answer in hand the beginning is kept back
   * until it shows whether the server can answer at all.
   */
  pass(bytes: Buffer, now: number): readonly Buffer[] {
    const { collector, stale } = this.#fill!;
    const wasDecided = collector.isDecided && !collector.isError;
    collector.add(bytes);
    if (stale === null || wasDecided || this.#hasMore) return [...this.#kept.splice(0), bytes];
    this.#kept.push(bytes);
    if (!collector.isDecided || (collector.isError && !collector.isOver)) return [];
    const old = collector.isError ? this.staleFor(collector.sqlstate, now) : null;
    const kept = this.#kept.splice(0);
    return old === null ? kept : piecesOf(old, this.#form, Status.Idle);
  }

  /** A message is sent to the server: behind its own ones nothing can be answered in the server's place any more. */
  noteSent(): void {
    if (++this.#sent > this.#form.rest + 1) this.#hasMore = true;
  }

  /**
   * An old answer for a request that is refused, or whose server could not answer, with this SQLSTATE; null: there is none, or the error is
   * not of a kind that it helps against.
   */
  staleFor(sqlstate: string, now: number): Entry | null {
    const stale = this.#fill?.stale ?? null;
    if (stale === null || !isOutage(sqlstate) || now >= stale.errorUntil) return null;
    this.#cache.countStaleOnError(stale, now);
    return stale;
  }

  /**
   * The server was lost. If it had told nothing of a read that was all it did, what was kept of that will do.
   */
  lose(now: number): Rest {
    this.written.end();
    const old = this.staleFor(SqlState.AdminShutdown, now);
    const isAnswered = old !== null && !this.#hasPassed;
    const pieces = isAnswered ? piecesOf(old, this.#form, Status.Idle) : this.#kept.splice(0);
    this.end(now);
    return { pieces, isAnswered };
  }

  /** Nothing more comes for what was asked: it is kept, or given up. */
  end(now: number): void {
    this.#followed?.leave(this);
    this.#followed = null;
    this.#given = null;
    this.#kept = [];
    const fill = this.#fill;
    if (fill === null) return;
    this.#fill = null;
    this.#cache.end(fill, now);
  }

  // --- What it writes -------------------------------------------------------------------------------------------

  /** A text with this verdict is sent. */
  noteRunning(verdict: Verdict): void {
    if (verdict.read === 0) this.written.add(verdict, this.#ownIdentity);
  }

  /** Its transaction has ended. */
  endWrite(now: number): void {
    if (!this.written.isPending) return;
    this.written.end();
    this.#wroteAt = now;
  }
}

/** The first byte of the texts that may be reads: SELECT, WITH, VALUES, TABLE, and what may stand before them. */
const reading = new Set([...' \t\r\n(/-sSwWvVtT'].map((character) => character.charCodeAt(0)));

/** A quick look: most of what is not a read goes on at once. */
function mayRead({ type, source, start, isStart, isEnd }: Frame): boolean {
  if (!isStart || !isEnd) return false;
  if (type === ClientMessage.Query) return reading.has(source[start + HEADER]!);
  return type === ClientMessage.Parse || type === ClientMessage.Bind;
}

/** The database, or the way to it, is at fault, and not the request, its rights, or who has cancelled it. */
function isOutage(sqlstate: string): boolean {
  return /^(08|53|57P0[123]|58)/.test(sqlstate);
}
