/**
 * The replication connections of one listener: those that are open, and those whose server is being opened. Owned by client/listener.
 */
import type { Secret, ServerTarget } from '../server/login.ts';
import type { ServerPool } from '../server/pool.ts';
import type { CancelKeys } from './cancel.ts';
import type { ClientIdentity } from './login.ts';
import { Replication } from './replication.ts';

/** What a replication connection needs. */
export interface ReplicationLogin {
  target: ServerTarget;
  secret: Secret;
  connectMs: number;
}

export class Replications {
  readonly #keys: CancelKeys;
  readonly #open = new Set<Replication>();
  #opening = 0;

  constructor(keys: CancelKeys) {
    this.#keys = keys;
  }

  get size(): number {
    return this.#open.size;
  }

  get opening(): number {
    return this.#opening;
  }

  /** Joins a client that has logged in to a server of its own. `onGone` is called when it has gone, or, before this throws, when that fails. */
  async open(
    client: ClientIdentity,
    pool: ServerPool,
    loginFor: () => Promise<ReplicationLogin>,
    onGone: () => void,
  ): Promise<void> {
    const { socket, rest, settings, user } = client;
    const key = this.#keys.issue(client.minor);
    let replication: Replication | null = null;
    this.#opening++;
    const onEnd = () => {
      onGone();
      if (replication === null || !this.#open.delete(replication)) return;
      this.#keys.revoke(replication);
    };
    const join = async () => {
      const { target, ...login } = await loginFor();
      return Replication.open({
        socket,
        key,
        rest,
        user,
        database: pool.database,
        target: { ...target, parameters: [...settings, ...target.parameters] },
        ...login,
        onEnd,
      });
    };
    try {
      replication = await join().finally(() => this.#opening--);
      if (replication === null) return onEnd(); // The client has gone.
      this.#keys.hold(replication);
      this.#open.add(replication);
      pool.counts.pins.replication++;
    } catch (thrown) {
      onEnd();
      throw thrown;
    }
  }

  /** Ends those of some databases. */
  end(isMeant: (database: string) => boolean): void {
    for (const replication of this.#open) if (isMeant(replication.database)) replication.end();
  }
}
