/** A query on a database: one row of the value and, if there is a second column, its time. */
import { numberOf, type Reading, type Source, timeOf } from './source.ts';

export class SqlSource implements Source {
  readonly #query: () => Promise<(string | null)[][]>;
  readonly #now: () => number;

  constructor(query: () => Promise<(string | null)[][]>, now: () => number) {
    this.#query = query;
    this.#now = now;
  }

  async read(): Promise<Reading[]> {
    const readings: Reading[] = [];
    for (const [value, time] of await this.#query()) {
      if (value === null || value === undefined) continue;
      const number = numberOf(value, 'the first column');
      if (number === null) continue;
      readings.push({ value: number, observedAt: time ? timeOf(time, 'the second column') : this.#now() });
    }
    return readings.sort((a, b) => a.observedAt - b.observedAt);
  }
}
