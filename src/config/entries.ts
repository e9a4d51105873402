/**
 * What the configuration says of a database or of a user, by the name that a client has given: the entry of that name, or
 * that of "*". Called by app, server/pools and client/secrets. Pure.
 *
 * The one idea: a pool is of a database and of the user that its servers log in as, but how it is has up to three sources: the
 * database, the user of its servers, and its clients as far as it is about their waiting (as in PgBouncer). Clients for whom these
 * are the same entries share a pool.
 *
 * Invariant: names are the clients' to choose, so only what a record itself has counts.
 */
import type { AuthQueryConfig, Config, DatabaseConfig, PoolConfig, UserConfig } from './schema.ts';

/** Names in `users` whose settings a pool has: of the user that its servers log in as, and of its clients; '' for none. */
export type Entry = [user: string, client: string];

/** What a user of servers, and what a client may have otherwise than its database says (as in PgBouncer). */
const SERVER_KEYS = [
  'mode',
  'size',
  'sizeReserve',
  'reserveAfter',
  'queryMax',
  'transactionMax',
  'idleInTransactionMax',
] as const satisfies (keyof UserConfig['pool'])[];
const CLIENT_KEYS = ['waitMax', 'clientIdleMax'] as const satisfies (keyof UserConfig['pool'])[];

/** Null: there is no such database. */
export function databaseOf({ databases }: Config, name: string): DatabaseConfig | null {
  return own(databases, name) ?? databases['*'] ?? null;
}

/** Has the database an entry of its own? */
export function isNamed({ databases }: Config, name: string): boolean {
  return Object.hasOwn(databases, name);
}

/** Null: nothing is said of this user. */
export function userOf({ users }: Config, name: string): UserConfig | null {
  return own(users, name) ?? users['*'] ?? null;
}

/** How secrets of users of a database are asked of it; null: they are not. */
export function authQueryOf(config: Config, database: string): AuthQueryConfig | null {
  return databaseOf(config, database)?.authQuery ?? config.auth.query;
}

/** Where the control user of the entry `name` asks what is about a host, and not about one database. */
export function controlDatabaseOf(name: string, { dbname }: DatabaseConfig): string {
  return dbname ?? (name === '*' ? 'postgres' : name);
}

/**
 * Which of `users` have settings for a pool: that of the user that servers log in as, and that of the client where it says how
 * long clients wait or idle.
 */
export function entryOf({ users }: Config, user: string, client: string): Entry {
  const find = (name: string, keys: readonly string[]) => {
    const found = Object.hasOwn(users, name) ? name : '*';
    const pool: object = own(users, found)?.pool ?? {};
    return keys.some((key) => key in pool) ? found : '';
  };
  return [find(user, SERVER_KEYS), find(client, CLIENT_KEYS)];
}

/** Settings of the pools of a database, for users of an `entry`. */
export function poolConfigOf({ users }: Config, { pool }: DatabaseConfig, [user, client]: Entry): PoolConfig {
  const { waitMax: _, clientIdleMax: __, ...servers } = own(users, user)?.pool ?? {};
  const { waitMax, clientIdleMax } = { ...pool, ...own(users, client)?.pool };
  const merged: PoolConfig = Object.assign({ ...pool }, servers, { waitMax, clientIdleMax });
  return { ...merged, sizeMin: Math.min(merged.sizeMin, merged.size) };
}

/** What `record` itself has by a name that clients may choose. */
function own<T>(record: Readonly<Record<string, T>>, name: string): T | null {
  return Object.hasOwn(record, name) ? record[name]! : null;
}
