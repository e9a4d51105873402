/** Any HTTP address that answers with JSON: the value, and its time, by JSON pointer (RFC 6901). */
import { getJson, numberOf, type Reading, type Source, timeOf } from './source.ts';

export class HttpSource implements Source {
  readonly #url: string;
  readonly #value: string;
  readonly #time: string | null;
  readonly #now: () => number;

  /** `time` null: what it says is of now. */
  constructor(url: string, value: string, time: string | null, now: () => number) {
    this.#url = url;
    this.#value = value;
    this.#time = time;
    this.#now = now;
  }

  async read(signal: AbortSignal): Promise<Reading[]> {
    const answer = await getJson(this.#url, signal);
    const value = numberOf(at(answer, this.#value), `what is at ${this.#value}`);
    if (value === null) return [];
    const observedAt = this.#time === null ? this.#now() : timeOf(at(answer, this.#time), `what is at ${this.#time}`);
    return [{ value, observedAt }];
  }
}

function at(node: unknown, pointer: string): unknown {
  const steps = pointer.split('/').slice(1);
  return steps.reduce<unknown>(
    (inner, step) =>
      typeof inner === 'object' && inner !== null
        ? (inner as Record<string, unknown>)[step.replaceAll('~1', '/').replaceAll('~0', '~')]
        : undefined,
    node,
  );
}
