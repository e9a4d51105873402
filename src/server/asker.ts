/**
 * Questions to one database by a user of the proxy's own, a few of them now and then: one connection, opened when somebody asks, used by one
 * question after the other, and closed when nobody has asked for a while. Made by server/askers for `auth.query`.
 */
import type { Clock } from '../util/clock.ts';
import type { ControlConnection } from './control.ts';

const IDLE_MS = 30_000;
/** Who waited behind a question that could not be asked is told the same, for so long. */
const FAILED_MS = 1_000;

export class Asker {
  readonly #open: () => Promise<ControlConnection>;
  readonly #clock: Clock;
  #connection: ControlConnection | null = null;
  #failure: { at: number; why: unknown } | null = null;
  #last: Promise<unknown> = Promise.resolve();
  #cancelIdle: (() => void) | null = null;

  constructor(open: () => Promise<ControlConnection>, clock: Clock) {
    this.#open = open;
    this.#clock = clock;
  }

  /** Gives the rows. Rejects when it cannot be asked. */
  ask(sql: string, values: readonly string[]): Promise<(string | null)[][]> {
    const answer = this.#last.then(() => this.#askNow(sql, values));
    this.#last = answer.catch(() => {});
    return answer;
  }

  async #askNow(sql: string, values: readonly string[]): Promise<(string | null)[][]> {
    const failure = this.#failure;
    if (failure !== null && this.#clock.now() - failure.at < FAILED_MS) throw failure.why;
    this.#failure = null;
    this.#cancelIdle?.();
    try {
      // A connection that was kept may have died meanwhile: that says nothing of the question.
      if (this.#connection !== null)
        return await this.#connection.query(sql, values).catch(() => this.#anew(sql, values));
      return await this.#anew(sql, values);
    } catch (thrown) {
      this.close();
      this.#failure = { at: this.#clock.now(), why: thrown };
      throw thrown;
    } finally {
      this.#cancelIdle = this.#clock.after(IDLE_MS, () => this.close());
    }
  }

  async #anew(sql: string, values: readonly string[]): Promise<(string | null)[][]> {
    this.close();
    const connection = await this.#open();
    this.#connection = connection;
    return connection.query(sql, values);
  }

  /** Closes once all that was asked is answered. */
  retire(): void {
    void this.#last.then(() => this.close());
  }

  close(): void {
    this.#cancelIdle?.();
    this.#connection?.close();
    this.#connection = null;
  }
}
