/**
 * How much work the proxy has given a host, over the last hour, so that what a late sample says can be set against the work
 * of its own time. Written every second, read by credits/ledger.
 *
 * Work is counted in seconds of one server at what its statements take in calm (guard/baselines): queueing inside the database
 * makes statements longer, but costs nothing.
 */
const STEP_MS = 1_000;
const STEPS = 3_900;

export class WorkLog {
  /** Work since the start, at each step. */
  readonly #sums = new Float64Array(STEPS);
  #firstStep = 0;
  /** The newest step that is written; -1: none. */
  #lastStep = -1;

  /** By `now` (monotonic ms) it is `sum` (s) in all. Steps that were missed are filled in. */
  add(now: number, sum: number): void {
    const step = Math.floor(now / STEP_MS);
    if (this.#lastStep < 0) {
      this.#firstStep = step;
      this.#lastStep = step - 1;
    }
    const before = this.#lastStep < this.#firstStep ? sum : this.#at(this.#lastStep);
    const from = Math.max(this.#lastStep, step - STEPS);
    for (let at = from + 1; at <= step; at++)
      this.#sums[at % STEPS] = before + ((sum - before) * (at - from)) / (step - from);
    if (step === this.#lastStep) this.#sums[step % STEPS] = sum;
    this.#lastStep = Math.max(step, this.#lastStep);
  }

  #at(step: number): number {
    const oldest = Math.max(this.#firstStep, this.#lastStep - STEPS + 1);
    return this.#sums[Math.min(Math.max(step, oldest), this.#lastStep) % STEPS]!;
  }

  /** From when on it is known (monotonic ms). */
  get since(): number {
    return Math.max(this.#firstStep, this.#lastStep - STEPS + 1) * STEP_MS;
  }

  /** Work (s) done between two times (monotonic ms). */
  between(from: number, to: number): number {
    return this.#sumAt(to) - this.#sumAt(from);
  }

  #sumAt(time: number): number {
    if (this.#lastStep < 0) return 0;
    const step = Math.floor(time / STEP_MS);
    const share = time / STEP_MS - step;
    return this.#at(step) * (1 - share) + this.#at(step + 1) * share;
  }
}
