/**
 * What is known of users: by which clients prove who they are, and what servers are logged in to with as them. From the userlist
 * (`auth.users`), and of databases with `auth.query` from the database itself. Made by app, asked by client/login through the
 * listener and by server/pools through app.
 *
 * The one idea: one secret serves both ends. Who has proved to know it on one side lets us prove the same on the other, where the
 * secret itself, or what the proof has left, allows it.
 *
 * Invariant: a database is only asked for a user that is not listed, and nobody gets the secret of another's name.
 */
import { isDeepStrictEqual } from 'node:util';
import { LRUCache } from 'lru-cache';
import { authQueryOf, databaseOf } from '../config/entries.ts';
import type { Config, DatabaseConfig } from '../config/schema.ts';
import { SqlState } from '../protocol/sqlstate.ts';
import type { Asker } from '../server/asker.ts';
import { Askers } from '../server/askers.ts';
import type { Clusters } from '../server/clusters.ts';
import { openControl } from '../server/control.ts';
import { addressOf } from '../server/hosts.ts';
import type { Secret } from '../server/login.ts';
import type { Targets } from '../server/targets.ts';
import type { Clock } from '../util/clock.ts';
import { messageOf } from '../util/errors.ts';
import { AuthQuery } from './auth-query.ts';
import type { Users } from './users.ts';

export interface SecretsOptions {
  /** As it is now: it is another one after a reload. */
  config: () => Config;
  clock: Clock;
  targets: Targets;
  clusters: Clusters;
  users: Users;
  /** A database cannot be asked. */
  onProblem: (database: string, problem: string) => void;
}

const MISSING_MAX = 1_000;
const MISSING_MS = 10_000;

export class Secrets {
  readonly #options: SecretsOptions;
  readonly #askers: Askers;
  /** Databases that there are not, with monotonic ms of when that was said; and who was asked last, to take as long there. */
  readonly #missing = new LRUCache<string, number>({ max: MISSING_MAX });
  #lastAsked: Asker | null = null;
  #users: Users;
  /** What is known of users by `auth.query`; made anew when that changes. */
  #authQuery: AuthQuery;

  constructor(options: SecretsOptions) {
    this.#options = options;
    this.#askers = new Askers(options.clock);
    this.#users = options.users;
    this.#authQuery = this.#makeAuthQuery();
  }

  /** The userlist. */
  get users(): Users {
    return this.#users;
  }

  get authQuery(): AuthQuery {
    return this.#authQuery;
  }

  /** By which users of `database` are asked for who are not listed; null: there are none. */
  authQueryOf(database: string): AuthQuery | null {
    return authQueryOf(this.#options.config(), database) === null ? null : this.#authQuery;
  }

  /** What to log in to a server as `user` with. */
  async of({ passwordFile }: DatabaseConfig, database: string, user: string): Promise<Secret> {
    if (passwordFile !== undefined)
      return { kind: 'password', password: await this.#options.targets.passwordIn(passwordFile) };
    const isListed = this.#users.get(user) !== null;
    const asked = isListed ? null : this.#authQuery.known(database, user);
    const keys = asked?.keys ?? this.#users.keys(user);
    const secret = asked?.secret ?? this.#users.get(user);
    if (secret?.kind === 'password') return { kind: 'password', password: secret.password };
    if (secret?.kind === 'md5') return secret;
    return keys === null ? { kind: 'none' } : { kind: 'keys', keys };
  }

  #makeAuthQuery(): AuthQuery {
    return new AuthQuery((database, user) => this.#ask(database, user), this.#options.clock);
  }

  /** By `auth.query`, on a connection that is kept for each database while it is asked. */
  async #ask(asked: string, user: string): Promise<string | null> {
    const { clock, targets, clusters, onProblem } = this.#options;
    const all = this.#options.config();
    const query = authQueryOf(all, asked);
    if (query === null) return null;
    const database = query.database ?? asked;
    // Whether there is such a database is told, by words or by time, to those who have proved who they are.
    if (clock.now() - (this.#missing.get(database) ?? Number.NEGATIVE_INFINITY) < MISSING_MS) {
      await this.#lastAsked?.ask(query.sql, [user]).catch(() => {});
      return null;
    }
    const config = databaseOf(all, database) ?? Object.values(all.databases)[0]!;
    const at = clusters.of(config, database).primary;
    const asker = this.#askers.at(JSON.stringify([database, query.user, addressOf(at)]), async () => {
      const listed = this.#users.get(query.user);
      const own = listed?.kind === 'password' ? listed.password : undefined;
      const password = query.passwordFile === undefined ? own : await targets.passwordIn(query.passwordFile);
      const target = targets.of(database, query.user, config, at);
      return openControl(target, password, { options: '-c search_path=pg_catalog' });
    });
    let row: (string | null)[] | undefined;
    try {
      [row] = await asker.ask(query.sql, [user]);
    } catch (thrown) {
      if ((thrown as { code?: string }).code === SqlState.InvalidCatalogName) {
        this.#missing.set(database, clock.now());
        return null;
      }
      onProblem(database, messageOf(thrown));
      throw thrown;
    }
    this.#lastAsked = asker;
    // A name that is another's would let one in with the password of somebody else.
    return row === undefined || row[0] !== user ? null : (row[1] ?? '');
  }

  /** The configuration is another one than `before`, and `users` is its userlist. */
  reload(users: Users, before: Config): void {
    users.inherit(this.#users);
    this.#users = users;
    this.#askers.retire();
    this.#lastAsked = null;
    this.#missing.clear();
    if (!isDeepStrictEqual(queriesOf(before), queriesOf(this.#options.config())))
      this.#authQuery = this.#makeAuthQuery();
  }

  close(): void {
    this.#askers.close();
  }
}

/** All that secrets are asked by. */
function queriesOf({ auth, databases }: Config) {
  return [auth.query, Object.entries(databases).map(([name, { authQuery }]) => [name, authQuery])];
}
