/**
 * Prepared statements of the protocol, shared by all clients. A client's name stands for a Statement (text and
 * parameter types); a Statement has one name on every server that knows it. Called by client/session.
 *
 * The one idea: names are the pool's, so a statement that one client prepared on a server serves every other client that
 * prepared the same text. `StatementBook` finds the Statement of a text, `ServerStatements` says what one server has.
 *
 * A Statement whose plan became invalid ("cached plan must not change result type") is forgotten: the next Parse of
 * its text makes a new Statement with a new name, and therefore a real Parse on every server.
 */
import { createHash } from 'node:crypto';
import { LRUCache } from 'lru-cache';
import type { Verdict } from '../sql/verdict.ts';

/** Statements that no client has prepared at the moment, but that servers may still have. */
const UNUSED_MAX = 10_000;
/** Literals that become the time of their Parse: a statement that has one is nobody else's. */
const clockLiteral = /'\s*(now|today|tomorrow|yesterday|allballs)\s*'/i;

/** A longer text is known by its digest, so that it is not kept twice. */
const KEY_MAX = 8 * 1024;

const PREFIX = 'pgweir_';
let nextId = 1;

/** Could this be a name that a Statement has on servers? */
export function isOurs(name: string): boolean {
  return name.startsWith(PREFIX);
}

export class Statement {
  /** Its name on every server. */
  readonly name: string;
  /** The body of its Parse message behind the name: text, zero, parameter types. */
  readonly body: Buffer;
  readonly key: string;
  verdict: Verdict;
  /** When it was judged (`Judge.generation`). */
  generation = -1;
  /** Names of clients that stand for it. */
  users = 0;
  /** The RowDescription (or NoData) that a server gave first; a later one that differs is an error for the client. */
  description: Buffer | null = null;
  isForgotten = false;
  /** Some server has taken its Parse. */
  isVerified = false;

  /** The settings that its names were looked up with (Settings.planKey). */
  readonly planSettings: string;
  /** It is the client's that has prepared it, and nobody else's: what it means is not known from its text and settings. */
  readonly isOwn: boolean;
  #text: { text: string; types: string } | null = null;

  constructor(id: number, key: string, body: Buffer, verdict: Verdict, planSettings: string, isOwn: boolean) {
    this.name = PREFIX + id;
    this.key = key;
    this.body = body;
    this.verdict = verdict;
    this.planSettings = planSettings;
    this.isOwn = isOwn;
  }

  /** Its text, and the types of its parameters as they came: Latin-1, kept once somebody has asked. */
  get text(): string {
    return this.#cut().text;
  }

  get types(): string {
    return this.#cut().types;
  }

  #cut(): { text: string; types: string } {
    if (this.#text === null) {
      const end = this.body.indexOf(0);
      this.#text = { text: this.body.toString('latin1', 0, end), types: this.body.toString('latin1', end + 1) };
    }
    return this.#text;
  }
}

export class StatementBook {
  readonly #used = new Map<string, Statement>();
  readonly #unused = new LRUCache<string, Statement>({
    max: UNUSED_MAX,
    maxSize: 64 * 1024 * 1024,
    sizeCalculation: (s) => s.body.length + 1,
  });

  /**
   * The Statement for the body of a Parse message, in a session with the given plan settings (what decides which
   * tables its names mean); `judge` is asked only when the text is new. `isCertain`: these are the settings that a server will
   * understand it by; otherwise it is the client's own.
   */
  find(body: Buffer, planSettings: string, isCertain: boolean, judge: (body: Buffer) => Verdict): Statement {
    // Latin-1 keeps bytes apart. The key is as long as the text, but shared by everybody who uses it.
    const text = body.toString('latin1');
    const isOwn = !isCertain || clockLiteral.test(text);
    const key = `${text.length > KEY_MAX ? createHash('sha256').update(body).digest('base64') : text}${planSettings}${isOwn ? nextId : ''}`;
    const known = this.#used.get(key) ?? this.#unused.get(key);
    if (known !== undefined) return known;
    const statement = new Statement(nextId++, key, Buffer.from(body), judge(body), planSettings, isOwn);
    this.#unused.set(key, statement);
    return statement;
  }

  /** A client's name stands for `statement` from here on. */
  use(statement: Statement): void {
    if (statement.users++ > 0 || statement.isForgotten) return;
    this.#unused.delete(statement.key);
    this.#used.set(statement.key, statement);
  }

  /** A client's name no longer stands for `statement`. */
  unuse(statement: Statement): void {
    if (--statement.users > 0 || statement.isForgotten) return;
    this.#used.delete(statement.key);
    this.#unused.set(statement.key, statement);
  }

  /** The next Parse of this text shall be a real one, on every server. */
  forget(statement: Statement): void {
    if (statement.isForgotten) return;
    statement.isForgotten = true;
    if (this.#used.get(statement.key) === statement) this.#used.delete(statement.key);
    this.#unused.delete(statement.key);
  }

  /** As `forget`, for all. */
  forgetAll(): void {
    for (const statement of [...this.#used.values(), ...this.#unused.values()]) this.forget(statement);
  }

  get size(): number {
    return this.#used.size + this.#unused.size;
  }
}

/**
 * 'pending': its Parse is not answered. 'changed': its rows no longer have the shape that clients were told of. 'dummy':
 * its name stands for another text, made only to be given up.
 */
export type Presence = 'pending' | 'ready' | 'changed' | 'dummy';

const NONE: Statement[] = [];

/** What one server has, in the order of use. */
export class ServerStatements {
  readonly #max: () => number;
  readonly #present = new Map<Statement, Presence>();

  /** `max`: may change at a reload. */
  constructor(max: () => number) {
    this.#max = max;
  }

  get size(): number {
    return this.#present.size;
  }

  /** Its name stands for it on the server, or will. */
  has(statement: Statement): boolean {
    const presence = this.#present.get(statement);
    return presence !== undefined && presence !== 'dummy';
  }

  /** It is there, as clients were told of it. */
  isReady(statement: Statement): boolean {
    return this.#present.get(statement) === 'ready';
  }

  isDummy(statement: Statement): boolean {
    return this.#present.get(statement) === 'dummy';
  }

  isChanged(statement: Statement): boolean {
    return this.#present.get(statement) === 'changed';
  }

  /** Marks `statement` as used just now. */
  touch(statement: Statement): void {
    // The youngest entry of a Map is its last; most statements are used again and again, so do nothing when alone.
    const presence = this.#present.get(statement);
    if (this.#present.size > 1 && presence !== undefined) {
      this.#present.delete(statement);
      this.#present.set(statement, presence);
    }
  }

  /** Its Parse has been sent; or its name is what `presence` says. */
  add(statement: Statement, presence: Presence = 'pending'): void {
    this.#present.set(statement, presence);
  }

  /** What was there before changes to `presence`, if it still is. */
  become(statement: Statement, presence: Presence): void {
    if (this.#present.has(statement)) this.#present.set(statement, presence);
  }

  /** Its Close has been sent. Gives what it is if that fails, to be handed to `add`. */
  remove(statement: Statement): Presence {
    const presence = this.#present.get(statement);
    this.#present.delete(statement);
    return settled(presence);
  }

  /** The server dropped all that it had (DEALLOCATE ALL, DISCARD ALL); what was sent after that comes later. */
  clear(): void {
    for (const [statement, presence] of this.#present) if (presence !== 'pending') this.#present.delete(statement);
  }

  /** DEALLOCATE ALL is on its way: from here on the server has none. */
  takeAll(): [Statement, Presence][] {
    const all = [...this.#present].map(([statement, presence]): [Statement, Presence] => [
      statement,
      settled(presence),
    ]);
    this.#present.clear();
    return all;
  }

  /**
   * The statements to close before another can be added: none while there is room, several after `max` has become smaller. `spared`: so
   * many that were used last stay, whatever `max` is.
   */
  victims(spared: number): Statement[] {
    const { size } = this.#present;
    const surplus = Math.min(size + 1 - this.#max(), size - spared);
    if (surplus <= 0) return NONE;
    const victims: Statement[] = [];
    for (const statement of this.#present.keys()) {
      victims.push(statement);
      if (victims.length === surplus) break;
    }
    return victims;
  }
}

/** What a statement is once its Parse has been answered. */
function settled(presence: Presence | undefined): Presence {
  return presence === undefined || presence === 'pending' ? 'ready' : presence;
}
