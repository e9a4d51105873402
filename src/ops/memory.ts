/**
 * What pgweir has learned and keeps over a restart: how long statements take when all is well (guard/baselines). Made and
 * called by app.
 *
 * The one idea: a restart in the middle of a throttled hour must not learn that slow is normal.
 */
import { z } from 'zod';
import type { Admission } from '../guard/admission.ts';
import { messageOf } from '../util/errors.ts';
import type { StateDir } from './state.ts';

const FILE = 'baselines.json';
const savedSchema = z.record(z.string(), z.array(z.tuple([z.number(), z.number(), z.number()])));

export class Memory {
  readonly #admission: Admission;
  readonly #state: StateDir;
  readonly #onProblem: (message: string) => void;

  /** Remembers at once. */
  constructor(admission: Admission, state: StateDir, onProblem: (message: string) => void) {
    this.#admission = admission;
    this.#state = state;
    this.#onProblem = onProblem;
    const saved = state.load(FILE, savedSchema);
    if (saved !== null) admission.restoreBaselines(saved);
  }

  /** Writes down what is known by now. Never throws. */
  async save(): Promise<void> {
    if (!this.#state.isKept || !this.#admission.isConfigured) return;
    try {
      await this.#state.saveLater(FILE, this.#admission.saveBaselines());
    } catch (thrown) {
      this.#onProblem(`what is normal could not be saved: ${messageOf(thrown)}`);
    }
  }
}
