/**
 * The HTTP API of Prometheus (and of what speaks like it): instant queries ("HTTP API", Prometheus documentation).
 *
 * The time of an instant query is when it was asked, not when the value was taken; so `timestamp(query)` is asked as well,
 * which knows for plain selectors. Exporters that set no timestamps show old values as new: say so with `lag`.
 */
import { getJson, numberOf, type Reading, type Source } from './source.ts';

interface Answer {
  status?: string;
  error?: string;
  data?: { resultType?: string; result?: unknown };
}

export class PrometheusSource implements Source {
  readonly #url: string;
  readonly #query: string;

  constructor(url: string, query: string) {
    this.#url = url.replace(/\/$/, '');
    this.#query = query;
  }

  async read(signal: AbortSignal): Promise<Reading[]> {
    const [value, time] = await Promise.all([
      this.#ask(this.#query, signal),
      this.#ask(`timestamp(${this.#query})`, signal).catch(() => null),
    ]);
    if (value === null) return [];
    const number = numberOf(value[1], 'the value');
    const at = time === null ? value[0] : Number(time[1]);
    return number === null ? [] : [{ value: number, observedAt: 1000 * at }];
  }

  /** Time in s, and value; null: no series, which is how Prometheus says that there is no value. */
  async #ask(query: string, signal: AbortSignal): Promise<[number, string] | null> {
    const url = `${this.#url}/api/v1/query?query=${encodeURIComponent(query)}`;
    const { status, error, data } = (await getJson(url, signal)) as Answer;
    if (status !== 'success') throw new Error(`Prometheus says: ${error ?? 'nothing'}`);
    if (data?.resultType === 'scalar') return data.result as [number, string];
    if (data?.resultType !== 'vector' || !Array.isArray(data.result))
      throw new Error(`the query gives a ${data?.resultType}, not one value`);
    if (data.result.length > 1) throw new Error(`the query gives ${data.result.length} series, not one`);
    return data.result.length === 0 ? null : (data.result[0] as { value: [number, string] }).value;
  }
}
