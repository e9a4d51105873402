/**
 * One connection for each database that secrets are asked of (`auth.query`), at most ASKERS_MAX: names of databases are the
 * clients' to choose, before they have proved anything. Made by client/secrets.
 */
import type { Clock } from '../util/clock.ts';
import { Asker } from './asker.ts';
import type { ControlConnection } from './control.ts';

const ASKERS_MAX = 100;

export class Askers {
  readonly #clock: Clock;
  readonly #askers = new Map<string, Asker>();

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** The one for the place that `key` stands for; `open` connects to it. */
  at(key: string, open: () => Promise<ControlConnection>): Asker {
    let asker = this.#askers.get(key);
    if (asker !== undefined) return asker;
    const [oldest] = this.#askers;
    if (this.#askers.size >= ASKERS_MAX && oldest !== undefined) {
      oldest[1].close();
      this.#askers.delete(oldest[0]);
    }
    asker = new Asker(open, this.#clock);
    this.#askers.set(key, asker);
    return asker;
  }

  /** What is being asked is answered; what is asked from here on is asked anew. */
  retire(): void {
    for (const asker of this.#askers.values()) asker.retire();
    this.#askers.clear();
  }

  close(): void {
    for (const asker of this.#askers.values()) asker.close();
    this.#askers.clear();
  }
}
