/**
 * How many clients there are of each database and of each user, and whether there may be one more. Owned by client/listener, which knows how
 * many there are in all.
 */
import { fatal, type Refusal, SqlState } from '../protocol/sqlstate.ts';

/** Whom a client counts for. */
interface Counted {
  readonly database: string;
  readonly user: string;
}

export class Headcount {
  readonly #ofDatabase = new Map<string, number>();
  readonly #ofUser = new Map<string, number>();

  add({ database, user }: Counted): void {
    change(this.#ofDatabase, database, 1);
    change(this.#ofUser, user, 1);
  }

  remove({ database, user }: Counted): void {
    change(this.#ofDatabase, database, -1);
    change(this.#ofUser, user, -1);
  }

  /** Counts a client; gives what takes that back, once. */
  hold({ database, user }: Counted): () => void {
    const counted = { database, user };
    this.add(counted);
    let isCounted = true;
    return () => {
      if (isCounted) this.remove(counted);
      isCounted = false;
    };
  }

  /** Why there may be no more clients of this database, or of this user, than `max` (0: any number); null: there may. */
  refuse({ database, user }: Counted, max: { database: number; user: number }): Refusal | null {
    if (max.database > 0 && of(this.#ofDatabase, database) >= max.database)
      return tooMany(`database "${database}"`, 'databases.*.clientsMax (max_db_client_connections)', max.database);
    if (max.user > 0 && of(this.#ofUser, user) >= max.user)
      return tooMany(`role "${user}"`, 'users.*.clientsMax (max_user_client_connections)', max.user);
    return null;
  }
}

function of(counts: Map<string, number>, name: string): number {
  return counts.get(name) ?? 0;
}

function change(counts: Map<string, number>, name: string, by: number): void {
  const count = of(counts, name) + by;
  if (count > 0) counts.set(name, count);
  else counts.delete(name);
}

function tooMany(what: string, key: string, limit: number): Refusal {
  return fatal(SqlState.TooManyConnections, `too many connections for ${what}`, {
    detail: `${limit} are connected to this proxy`,
    hint: `raise ${key}, or connect later`,
  });
}
