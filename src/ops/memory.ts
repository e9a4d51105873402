/**
 * What pgweir has learned and keeps over a restart: how long statements take when all is well (guard/baselines), and what
 * they spend of a reserve (credits/ledger); who was the primary; who has asked for what (client/usage); and at a clean end what of
 * the shared cache has been told of every write (cache/caches). Made and called by app.
 *
 * The one idea: a restart in the middle of a throttled hour must not learn that slow is normal.
 */
import { z } from 'zod';
import type { Period } from '../client/usage.ts';
import type { Admission } from '../guard/admission.ts';
import { messageOf } from '../util/errors.ts';
import { periodsSchema } from './coupling.ts';
import type { StateDir } from './state.ts';

const FILE = 'baselines.json';
const LEDGERS = 'ledgers.json';
const LINEAGES = 'lineages.json';
const COUPLING = 'coupling.json';
const TOLD = 'told.json';
const savedSchema = z.record(z.string(), z.array(z.tuple([z.number(), z.number(), z.number()])));
const learnedSchema = z.record(
  z.string(),
  z.record(
    z.string(),
    z.object({
      kappa: z.number().positive(),
      background: z.number(),
      kappaVariance: z.number().nonnegative(),
      backgroundVariance: z.number().nonnegative(),
    }),
  ),
);
/** Who was the primary, by the addresses of all its hosts. */
const lineagesSchema = z.record(
  z.string(),
  z.object({ systemId: z.string(), timeline: z.number().int().positive(), address: z.string() }),
);
type Lineages = z.output<typeof lineagesSchema>;
const toldSchema = z.record(z.string(), z.number());
type Told = z.output<typeof toldSchema>;

/** By the address of a host and the name of its ledger. */
type LearnedByHost = z.output<typeof learnedSchema>;

export class Memory {
  readonly #admission: Admission;
  readonly #state: StateDir;
  readonly #onProblem: (message: string) => void;
  #isHandedOver = false;
  #saving: Promise<void> = Promise.resolve();
  /** What was known of ledgers. */
  readonly learned: LearnedByHost;
  readonly #lineages: Lineages;
  /** Who has asked for what. */
  readonly usage: readonly Period[];
  /** What the last process had told of every write when it ended (Caches.told); nothing, if nobody knows. */
  readonly told: Told;

  /** Remembers at once. */
  constructor(admission: Admission, state: StateDir, onProblem: (message: string) => void) {
    this.#admission = admission;
    this.#state = state;
    this.#onProblem = onProblem;
    const saved = state.load(FILE, savedSchema);
    if (saved !== null) admission.restoreBaselines(saved);
    this.learned = state.load(LEDGERS, learnedSchema) ?? {};
    this.#lineages = state.load(LINEAGES, lineagesSchema) ?? {};
    this.usage = state.load(COUPLING, periodsSchema) ?? [];
    this.told = this.#takeTold();
  }

  /** It holds once: whoever is killed from here on leaves nothing of the kind. */
  #takeTold(): Told {
    const told = this.#state.load(TOLD, toldSchema) ?? {};
    return Object.keys(told).length === 0 || this.#saveTold({}) ? told : {};
  }

  /** The end: these have been told of every write. */
  saveTold(told: Told): void {
    if (this.#state.isKept && !this.#isHandedOver) this.#saveTold(told);
  }

  #saveTold(told: Told): boolean {
    try {
      this.#state.save(TOLD, told);
      return true;
    } catch (thrown) {
      this.#onProblem(`what the shared cache was told could not be saved: ${messageOf(thrown)}`);
      return false;
    }
  }

  /**
   * What is known of the primary of these hosts. If a host has been added or taken out since, what was known of the others holds: of
   * several that which is newest.
   */
  lineageOf(addresses: readonly string[]): Lineages[string] | null {
    const own = this.#lineages[addresses.join()];
    if (own !== undefined) return own;
    const related = Object.entries(this.#lineages).filter(([key]) =>
      key.split(',').some((each) => addresses.includes(each)),
    );
    return related.map(([, lineage]) => lineage).sort((a, b) => b.timeline - a.timeline)[0] ?? null;
  }

  /** A primary was found. That is written down before anything is sent to it, or at least tried: who is killed must know. */
  saveLineage(key: string, lineage: Lineages[string]): void {
    this.#lineages[key] = lineage;
    if (!this.#state.isKept || this.#isHandedOver) return;
    try {
      this.#state.save(LINEAGES, this.#lineages);
    } catch (thrown) {
      this.#onProblem(`who is the primary could not be saved: ${messageOf(thrown)}`);
    }
  }

  /** Another process writes the same files from here on. */
  handOver(): void {
    this.#isHandedOver = true;
  }

  /** Writes down what is known by now. Never throws. */
  save(learned: LearnedByHost, usage: () => readonly Period[]): Promise<void> {
    // One after the other: they write the same files.
    this.#saving = this.#saving.then(() => this.#save(learned, usage));
    return this.#saving;
  }

  async #save(learned: LearnedByHost, usage: () => readonly Period[]): Promise<void> {
    if (!this.#state.isKept || this.#isHandedOver) return;
    try {
      await this.#state.saveLater(COUPLING, usage());
      if (!this.#admission.isConfigured) return;
      await this.#state.saveLater(FILE, this.#admission.saveBaselines());
      await this.#state.saveLater(LEDGERS, learned);
    } catch (thrown) {
      this.#onProblem(`what was learned could not be saved: ${messageOf(thrown)}`);
    }
  }
}
