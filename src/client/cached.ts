/**
 * A session's way past the database: recognises the read that has arrived, asks the cache for it, and keeps a copy of what the server answers
 * when the cache has not got it. Made by client/session when its database has a cache.
 *
 * The one idea: what is answered is a group of messages (client/group), and only while the client holds no server: then nothing of it has
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
import * as encode from '../protocol/encode.ts';
import type { Frame, FrameReader } from '../protocol/frame.ts';
import { ClientMessage, ServerMessage, Status } from '../protocol/messages.ts';
import type { ServerPool } from '../server/pool.ts';
import type { Settings } from '../server/settings.ts';
import { shapeText } from '../sql/shape.ts';
import type { Verdict } from '../sql/verdict.ts';
import { type Asker, findGroup, found, groupFound, NOTHING, PARSED, piecesOf, type StatementGroup } from './group.ts';

export interface CachedClient extends Asker {
  readonly pool: ServerPool;
  /** 0 is critical. */
  readonly rank: number;
  /** What is known of the request that begins with `message`. */
  verdictOf(message: Frame): Verdict | null;
  /** What it waited for has come, or will not: the held message is to be handled again. */
  onAnswered(): void;
  /** The database is asked often enough by others: the held message is refused. */
  onMissRefused(): void;
  /** Asks the database what the client has asked for once more, for the cache alone: to keep it as `fill`, or to see what it says. */
  askAgain(request: Buffer, fill: Fill | null, done: (answer: Buffer | null) => void): void;
}

/** 'answer': by `entry`; 'wait': the message is to be held; 'go': to a server; 'refuse': it is too much for the database. */
export type Asked =
  | { kind: 'answer'; entry: Entry; group: StatementGroup }
  | { kind: 'wait' }
  | { kind: 'go' }
  | { kind: 'refuse' };

const HEADER = 5;
const GO: Asked = { kind: 'go' };
const WAIT: Asked = { kind: 'wait' };
const REFUSE: Asked = { kind: 'refuse' };

export class CachedReads implements Leader {
  readonly #client: CachedClient;
  readonly #cache: Cache;
  readonly #identities: Identities;
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
  #group: StatementGroup = { rest: 0, hasDescription: false, prefix: NOTHING };
  /** The request that is handled next is for the database, whatever the cache may have. */
  #isAlone = false;
  /** Monotonic ms of the last write. */
  wroteAt = Number.NEGATIVE_INFINITY;

  constructor(client: CachedClient, cache: Cache, identities: Identities, reader: FrameReader) {
    this.#client = client;
    this.#cache = cache;
    this.#identities = identities;
    this.#reader = reader;
  }

  get cache(): Cache {
    return this.#cache;
  }

  get rank(): number {
    return this.#client.rank;
  }

  /** What it has asked for. */
  get group(): StatementGroup {
    return this.#group;
  }

  /** There is something to give when the database cannot answer. */
  get hasOld(): boolean {
    return (this.#fill?.stale ?? null) !== null;
  }

  /** Its client has been told a part of the server's answer. */
  get hasPassed(): boolean {
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

  get identity(): Identity {
    const { settings, pool } = this.#client;
    if (this.#settings !== settings) {
      this.#settings = settings;
      this.#identity = this.#identities.of(pool.database, pool.user, settings);
    }
    return this.#identity!;
  }

  /** What becomes of the request that begins with `message`? `isInBlock`: in a transaction that has only begun. */
  ask(message: Frame, isInBlock: boolean, now: number): Asked {
    if (this.#isAlone) {
      this.#isAlone = false;
      return GO;
    }
    if (this.#fill !== null) return this.#fill.stage === 'database' ? GO : WAIT;
    if (!mayRead(message) || !findGroup(message, this.#reader, this.#client)) return GO;
    const { hasDescription, isExtended, text, types, source, valuesStart, valuesEnd } = found;
    const plain = plainText(text);
    const key = isExtended
      ? extendedKey(this.identity, plain, types, source.toString('latin1', valuesStart, valuesEnd))
      : simpleKey(this.identity, plain);
    const given = this.#given;
    this.#given = null;
    const cache = this.#cache;
    const isOurs = given !== null && given.key === key && (!hasDescription || given.descriptionEnd > 0);
    const entry = isOurs ? given : cache.find(key, hasDescription, this.wroteAt, now);
    if (entry !== null) {
      const group = groupFound();
      if (!isOurs && cache.isDue(entry, now)) this.#refresh(entry, message, now);
      else if (cache.isToVerify()) this.#verify(entry, group, message);
      return { kind: 'answer', entry, group };
    }
    if (isInBlock) return GO;
    return this.#miss(key, message, now);
  }

  #miss(key: string, message: Frame, now: number): Asked {
    const { text, isExtended, source, valuesStart, valuesEnd } = found;
    const verdict = this.#client.verdictOf(message);
    if (verdict === null || verdict.read === 0) return GO;
    this.#group = groupFound();
    this.#sent = 0;
    this.#hasMore = false;
    const missed: Missed = this.#cache.miss(
      {
        key,
        identity: this.identity,
        text,
        number: verdict.number,
        shape: () => shapeText(text),
        reading: verdict.nature?.reading ?? null,
        isVolatile: () => isExtended && hasVolatileParameter(source.subarray(valuesStart, valuesEnd)),
        wroteAt: this.wroteAt,
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
        if (missed.stale === null) return REFUSE;
        this.#cache.countStaleOnError(missed.stale, now);
        return { kind: 'answer', entry: missed.stale, group: this.#group };
      default:
        return missed satisfies never;
    }
  }

  /** The request in hand is asked again, for the cache alone: its client has an old answer already. */
  #refresh(entry: Entry, message: Frame, now: number): void {
    const fill = this.#cache.refresh(entry, now);
    if (fill === null) return;
    this.#client.askAgain(this.#requestFrom(message), fill, () => {});
  }

  /** Is it what the database says? If not, it is asked once more: it may say something else each time. */
  #verify(entry: Entry, group: StatementGroup, message: Frame): void {
    const request = this.#requestFrom(message);
    const prefix = group.prefix.length > 0 ? PARSED : NOTHING;
    const given = Buffer.concat(piecesOf(entry, { ...group, prefix }, Status.Idle));
    const cache = this.#cache;
    const client = this.#client;
    cache.isVerifying = true;
    client.askAgain(request, null, (answer) => {
      cache.isVerifying = false;
      if (answer === null || !isAnswer(answer)) return;
      if (answer.equals(given)) return cache.onVerified(entry, 'same');
      cache.isVerifying = true;
      client.askAgain(request, null, (again) => {
        cache.isVerifying = false;
        if (again !== null && isAnswer(again)) cache.onVerified(entry, again.equals(answer) ? 'other' : 'volatile');
      });
    });
  }

  /** The request that was found, as somebody asks it who has prepared nothing. */
  #requestFrom({ source, start, end }: Frame): Buffer {
    if (!found.isExtended) return Buffer.from(source.subarray(start, end));
    return Buffer.concat([
      encode.parse('', Buffer.from(`${found.text}\0${found.types}`, 'latin1')),
      encode.message(ClientMessage.Bind, '\0\0', found.source.subarray(found.valuesStart, found.valuesEnd)),
      ...(found.hasDescription ? [encode.message(ClientMessage.Describe, 'P\0')] : []),
      encode.message(ClientMessage.Execute, '\0', encode.int32(0)),
      encode.sync,
    ]);
  }

  // --- While it waits -------------------------------------------------------------------------------------------

  onFilled(entry: Entry | null): void {
    this.#fill = null;
    this.#followed = null;
    this.#given = entry;
    this.#client.onAnswered();
  }

  onTurn(): void {
    this.#client.onAnswered();
  }

  onRefused(): void {
    this.#client.onMissRefused();
  }

  /** It has waited long enough for somebody else's answer, and asks for itself. */
  goAlone(now: number): void {
    this.end(now);
    this.#isAlone = true;
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
    if (stale === null || wasDecided || this.#hasMore) return [...this.takeKept(), bytes];
    this.#kept.push(bytes);
    if (!collector.isDecided || (collector.isError && !collector.isOver)) return [];
    const old = collector.isError ? this.staleFor(collector.sqlstate, now) : null;
    const kept = this.#kept.splice(0);
    return old === null ? kept : piecesOf(old, this.#group, Status.Idle);
  }

  /** A message is sent to the server: behind its own ones nothing can be answered in the server's place any more. */
  noteSent(): void {
    if (++this.#sent > this.#group.rest + 1) this.#hasMore = true;
  }

  /** What was kept back, when nothing more will come. */
  takeKept(): readonly Buffer[] {
    return this.#kept.splice(0);
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

/** Neither an error nor a refusal. */
function isAnswer(answer: Buffer): boolean {
  return answer[0] !== ServerMessage.ErrorResponse && !answer.includes(FAILED);
}

/** ErrorResponse behind Parse and Bind, which are answered first. */
const FAILED = Buffer.concat([encode.bindComplete, Buffer.from('E')]);
