/**
 * Secrets of users that no file has: asked of the database itself (PgBouncer's auth_query). Made by client/secrets, asked by it and by client/login for
 * what to log in to a server with.
 *
 *     asked ──▶ known for KNOWN_MS (or: there is none, for UNKNOWN_MS) ──▶ asked again
 *                  └─ a login has failed ──▶ asked again by the next one, RETRY_MS later at the earliest
 *
 * The one idea: a storm of logins is one question for each user, and one connection for each database. A password that was
 * changed is found by the login that fails, not only when time is up.
 *
 * Invariant: at most USERS_MAX users are kept, and QUESTIONS_MAX questions wait; what is beyond is told that nobody can be asked.
 */
import { LRUCache } from 'lru-cache';
import type { Keys } from '../protocol/scram.ts';
import type { Clock } from '../util/clock.ts';
import { readSecret, type UserSecret } from './users.ts';

/** Asks the database for what it has for a user; '': it has no password (any more); null: there is no such user. Rejects when it cannot be asked. */
export type AskSecret = (database: string, user: string) => Promise<string | null>;

interface Known {
  /** Null: there is no such user. */
  secret: UserSecret | null;
  text: string | null;
  askedAt: number;
  /** A client has failed with it. */
  isDoubted: boolean;
  /** What a client proved to have. */
  keys: Keys | null;
}

const KNOWN_MS = 60_000;
const UNKNOWN_MS = 5_000;
const RETRY_MS = 1_000;
const USERS_MAX = 10_000;
const QUESTIONS_MAX = 1_000;
/** How many times are remembered; nobody is kept waiting for longer than this, whatever they were. */
const TIMES = 32;
const PAUSE_MAX_MS = 20;

export class AuthQuery {
  readonly #ask: AskSecret;
  readonly #clock: Clock;
  readonly #known = new LRUCache<string, Known>({ max: USERS_MAX });
  readonly #asking = new Map<string, Promise<Known>>();
  /** How long questions took of late, in ms. */
  readonly #took: number[] = [];
  /** Questions, and those of them that failed. */
  readonly counts = { asked: 0, failed: 0 };

  constructor(ask: AskSecret, clock: Clock) {
    this.#ask = ask;
    this.#clock = clock;
  }

  /** What `user` of `database` has; null: nothing. Rejects when the database cannot be asked, and nothing is known from before. */
  async find(database: string, user: string): Promise<UserSecret | null> {
    const key = keyOf(database, user);
    const known = this.#known.get(key);
    if (known !== undefined && !this.#isDue(known)) {
      await this.pause();
      return known.secret;
    }
    try {
      return (await this.#askOnce(key, database, user)).secret;
    } catch (thrown) {
      // Who was somebody a minute ago is not refused because the database is gone: it would refuse others by itself.
      if (known?.secret) return known.secret;
      throw thrown;
    }
  }

  /** As long as a question takes: who is known already cannot be told by time. */
  async pause(): Promise<void> {
    const ms = this.#took[Math.floor(Math.random() * this.#took.length)] ?? 0;
    if (ms > 0) await new Promise<void>((resolve) => this.#clock.after(ms, resolve));
  }

  #isDue({ secret, askedAt, isDoubted }: Known): boolean {
    const age = this.#clock.now() - askedAt;
    return age >= (isDoubted ? RETRY_MS : secret === null ? UNKNOWN_MS : KNOWN_MS);
  }

  #askOnce(key: string, database: string, user: string): Promise<Known> {
    const asking = this.#asking.get(key);
    if (asking !== undefined) return asking;
    if (this.#asking.size >= QUESTIONS_MAX) return Promise.reject(new Error('too many others are being asked for'));
    const question = this.#learn(key, database, user).finally(() => this.#asking.delete(key));
    this.#asking.set(key, question);
    return question;
  }

  async #learn(key: string, database: string, user: string): Promise<Known> {
    this.counts.asked++;
    const askedAt = this.#clock.now();
    let text: string | null;
    try {
      text = await this.#ask(database, user);
    } catch (thrown) {
      this.counts.failed++;
      throw thrown;
    }
    this.#took.push(Math.min(this.#clock.now() - askedAt, PAUSE_MAX_MS));
    if (this.#took.length > TIMES) this.#took.shift();
    const before = this.#known.get(key);
    const isSame = before !== undefined && before.text === text;
    const known: Known = {
      // A verifier that was made of a password in clear text is not made again.
      secret: isSame ? before.secret : text === null ? null : readSecret(text),
      text,
      askedAt: this.#clock.now(),
      isDoubted: false,
      keys: isSame ? before.keys : null,
    };
    this.#known.set(key, known);
    return known;
  }

  /** A login as `user` has failed: the password may be a new one. */
  doubt(database: string, user: string): void {
    const known = this.#known.get(keyOf(database, user));
    if (known !== undefined) known.isDoubted = true;
  }

  /** Remembers what a client proved to have. */
  remember(database: string, user: string, keys: Keys): void {
    const known = this.#known.get(keyOf(database, user));
    if (known !== undefined) known.keys = keys;
  }

  /** What is known of `user` without asking. */
  known(database: string, user: string): { secret: UserSecret | null; keys: Keys | null } {
    return this.#known.peek(keyOf(database, user)) ?? { secret: null, keys: null };
  }
}

const keyOf = (database: string, user: string) => `${database}\0${user}`;
