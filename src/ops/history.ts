/**
 * The last hour as numbers: what the dashboard draws, and rates for the verdict. Made by app, which ticks it.
 *
 * The one idea: a sample every five seconds into rings of one size, so that memory is bounded whatever happens: POINTS numbers for each of SERIES_MAX
 * series at most.
 */
import type { Snapshot } from './snapshot.ts';

export const SAMPLE_MS = 5_000;
const POINTS = 720;
const SERIES_MAX = 300;

/** As /history.json: for each moment (wall-clock ms) a value in each series; null: there was none. */
export interface HistoryView {
  at: number[];
  series: Record<string, (number | null)[]>;
}

export class History {
  readonly #at: number[] = [];
  readonly #series = new Map<string, (number | null)[]>();
  /** Series that there was no room for. */
  dropped = 0;

  sample(snapshot: Snapshot, wall: number): void {
    this.#at.push(wall);
    if (this.#at.length > POINTS) this.#at.shift();
    const now = valuesOf(snapshot);
    for (const [name, values] of this.#series) {
      values.push(now.get(name) ?? null);
      if (values.length > POINTS) values.shift();
      now.delete(name);
    }
    for (const [name, value] of now) {
      if (this.#series.size >= SERIES_MAX) {
        this.dropped++;
        continue;
      }
      this.#series.set(name, [...new Array<null>(this.#at.length - 1).fill(null), value]);
    }
    // Nothing of it is left.
    for (const [name, values] of this.#series) if (values.every((value) => value === null)) this.#series.delete(name);
  }

  /** What came after `since`, wall-clock ms. */
  view(since: number): HistoryView {
    const from = this.#at.findIndex((at) => at > since);
    const first = from === -1 ? this.#at.length : from;
    const series = [...this.#series].map(([name, values]) => [name, values.slice(first)] as const);
    return { at: this.#at.slice(first), series: Object.fromEntries(series) };
  }

  /** By how much a counter has grown per second over about the last `seconds`; 0: not known. */
  rate(name: string, seconds = 60): number {
    const values = this.#series.get(name) ?? [];
    const steps = Math.min(Math.round((1_000 * seconds) / SAMPLE_MS), values.length - 1);
    if (steps < 1) return 0;
    const [last, first] = [values.at(-1), values.at(-1 - steps)];
    const spent = this.#at.at(-1)! - this.#at.at(-1 - steps)!;
    return last == null || first == null || spent <= 0 ? 0 : Math.max(0, (1_000 * (last - first)) / spent);
  }
}

/** Names are `what/of whom`; those of counters end in _total. */
function valuesOf({ credits, gates, pools, caches, sessions }: Snapshot): Map<string, number> {
  const values = new Map<string, number>([['clients/', sessions.size]]);
  const add = (name: string, value: number) => values.set(name, (values.get(name) ?? 0) + value);
  for (const [host, { ledgers }] of credits)
    for (const { config, estimate } of ledgers)
      if (estimate !== null) values.set(`balance/${config.name} of ${host}`, Number(estimate.balance.toPrecision(6)));
  for (const [host, gate] of gates) {
    values.set(`at_work/${host}`, gate.atWork);
    if (Number.isFinite(gate.limit)) values.set(`limit/${host}`, Number(gate.limit.toFixed(1)));
    for (const { class: of, queue, counts } of gate.lanes) {
      add(`offered_total/${of.name}`, counts.offered);
      add(`admitted_total/${of.name}`, counts.admitted);
      add(
        `shed_total/${of.name}`,
        Object.values(counts.shed).reduce((sum, count) => sum + count, 0),
      );
      add(`waiting/${of.name}`, queue.size);
    }
  }
  for (const pool of pools) {
    add('queries_total/', pool.counts.queries);
    add('waiting_for_server/', pool.waiters.size);
  }
  for (const { counts } of caches.all) {
    add('cache_hits_total/', counts.hits + counts.fromBackend + counts.stale + counts.followed);
    add('cache_misses_total/', counts.misses);
  }
  return values;
}
