/**
 * Switches as people handle them: by name, with a reason, for a time; kept over a restart and written down. Made by app,
 * used by ops/console and ops/http.
 *
 * The one idea: a switch takes effect before it is saved, because in an incident that is the order; that it could not be
 * saved is said to whoever has set it.
 *
 * In `state.dir`: switches.json is what is set now, audit.jsonl has a line for every change.
 */
import { z } from 'zod';
import type { Config } from '../config/schema.ts';
import type { Admission } from '../guard/admission.ts';
import type { Position, Setting, Valve } from '../guard/switches.ts';
import type { Clock } from '../util/clock.ts';
import { messageOf } from '../util/errors.ts';
import type { Share, Shares } from './shares.ts';
import type { StateDir } from './state.ts';

/** What somebody wants. `position` null: back to the configuration. */
export interface Wish {
  name: string;
  position: Position | null;
  forMs: number | null;
  reason: string;
  actor: string;
}

export interface SwitchRow extends Share {
  name: string;
  /** The class that it is for; null: what its `match` says. */
  class: string | null;
  position: Position;
  valve: Valve;
  setting: Setting | null;
}

const savedSchema = z.object({
  settings: z.array(
    z.tuple([
      z.string(),
      z.object({
        position: z.union([z.enum(['on', 'off', 'hold']), z.number().min(0).max(1)]),
        until: z.number().nullable(),
        reason: z.string(),
        actor: z.string(),
        at: z.number(),
      }),
    ]),
  ),
  /** Files of earlier versions have none. */
  ramps: z.array(z.tuple([z.string(), z.number().min(0).max(1)])).default([]),
  isPassthrough: z.boolean(),
});

export interface SwitchboardHouse {
  admission: Admission;
  config: () => Config;
  clock: Clock;
  state: StateDir;
  shares: Shares;
  /** What nobody is there to be told. */
  onProblem: (message: string) => void;
}

const FILE = 'switches.json';
/** The panic lever: no admission, no sharing, plain pooling. */
const PASSTHROUGH = 'passthrough';
const DURATION_MAX_MS = 366 * 24 * 3_600_000;
const DURATION_UNITS: Readonly<Record<string, number>> = { s: 1_000, m: 60_000, h: 3_600_000 };

export class Switchboard {
  readonly #admission: Admission;
  readonly #config: () => Config;
  readonly #clock: Clock;
  readonly #state: StateDir;
  readonly #shares: Shares;
  readonly #onProblem: (message: string) => void;
  /** What was written last, or could not be. */
  #saved: string;
  #isHandedOver = false;

  constructor({ admission, config, clock, state, shares, onProblem }: SwitchboardHouse) {
    this.#admission = admission;
    this.#config = config;
    this.#clock = clock;
    this.#state = state;
    this.#shares = shares;
    this.#onProblem = onProblem;
    const saved = state.load(FILE, savedSchema);
    if (saved !== null) {
      const now = clock.now();
      admission.switches.restore(saved, now, clock.wall());
      admission.setPassthrough(saved.isPassthrough, config(), now);
    }
    this.#saved = JSON.stringify(this.#kept);
  }

  /** Writes down what has changed by itself. */
  tick(): void {
    if (!this.#state.isKept || this.#isHandedOver || JSON.stringify(this.#kept) === this.#saved) return;
    try {
      this.#write();
    } catch (thrown) {
      this.#onProblem(`switches could not be saved: ${messageOf(thrown)}`);
    }
  }

  /** Another process writes the same files from here on. */
  handOver(): void {
    this.#isHandedOver = true;
  }

  /** Why nothing with this name can be set; null: it can. */
  problemOf(name: string): string | null {
    if (name === PASSTHROUGH || this.#keyOf(name) !== null) return null;
    return `there is no switch and no class "${name}" (pgweir switch list)`;
  }

  /** Does what somebody wants. Gives what went wrong, or what they should know ('' when nothing). */
  set(wish: Wish): { problem: string } | { warning: string } {
    const { name, position } = wish;
    const now = this.#clock.now();
    if (name === PASSTHROUGH) {
      if (position !== 'on' && position !== 'off' && position !== null) return { problem: 'passthrough is on or off' };
      if (wish.forMs !== null)
        return { problem: 'passthrough has no time limit: it is on until somebody sets it to off' };
      this.#admission.setPassthrough(position === 'on', this.#config(), now);
      return { warning: this.#save(wish) };
    }
    const key = this.#keyOf(name);
    if (key === null) return { problem: this.problemOf(name)! };
    const { switches } = this.#admission;
    if (position === null) switches.clear(key, now);
    else switches.set(key, this.#settingOf(wish, position), now);
    this.#admission.applySwitches();
    return { warning: this.#save(wish) };
  }

  /** The switch with this name, or of the class with this name, as it is now; null: there is none. */
  find(name: string): SwitchRow | null {
    return this.rows().find((row) => row.name === name || row.class === name) ?? null;
  }

  get isPassthrough(): boolean {
    return this.#admission.isPassthrough;
  }

  #settingOf({ forMs, reason, actor }: Wish, position: Position): Setting {
    const at = this.#clock.wall();
    return { position, until: forMs === null ? null : at + forMs, reason, actor, at };
  }

  /** What guard/switches knows it by: its class, or its own name if it has a match instead. */
  #keyOf(name: string): string | null {
    const { switches } = this.#config();
    if (Object.hasOwn(switches, name)) return switches[name]!.class ?? name;
    return this.#admission.classes.all.some((each) => each.name === name) ? name : null;
  }

  /** Every class with its switch, and every switch with a match. */
  rows(): SwitchRow[] {
    const { switches, classes } = this.#admission;
    const configured = Object.entries(this.#config().switches);
    const names = new Map(configured.map(([name, each]) => [each.class, name]));
    const shares = this.#shares.now();
    const row = (name: string, key: string, of: string | null, share: Share | undefined): SwitchRow => ({
      name,
      class: of,
      position: switches.positionOf(key),
      valve: switches.valveOf(key),
      setting: switches.settings.get(key) ?? null,
      requests: share?.requests ?? 0,
      work: share?.work ?? 0,
    });
    return [
      ...classes.all.map(({ name }) => row(names.get(name) ?? name, name, name, shares.get(name))),
      ...configured
        .filter(([, { match }]) => match !== undefined)
        .map(([name]) => row(name, name, null, shares.get(name))),
    ];
  }

  #save(wish: Wish): string {
    if (!this.#state.isKept) return 'it will be forgotten at a restart, because state.dir is not set';
    if (this.#isHandedOver) return 'it holds for the clients that this process still has: another has taken over';
    try {
      this.#write();
      this.#state.append('audit.jsonl', { at: new Date(this.#clock.wall()).toISOString(), ...wish });
      return '';
    } catch (thrown) {
      return `it could not be saved: ${messageOf(thrown)}`;
    }
  }

  /** What outlives a restart. */
  get #kept(): z.output<typeof savedSchema> {
    const { switches, isPassthrough } = this.#admission;
    return { settings: [...switches.settings], ramps: [...switches.ramps], isPassthrough };
  }

  /** Throws when it cannot be written; that is tried again when there is something else to write. */
  #write(): void {
    const kept = this.#kept;
    this.#saved = JSON.stringify(kept);
    this.#state.save(FILE, kept);
  }
}

/** What a word means as a position: on, off, hold, 25%; null for default: as configured; undefined: nothing. */
export function positionOf(word: string): Position | null | undefined {
  if (word === 'on' || word === 'off' || word === 'hold') return word;
  if (word === 'default') return null;
  const share = /^(\d+(?:\.\d+)?)%$/.exec(word);
  return share === null || Number(share[1]) > 100 ? undefined : Number(share[1]) / 100;
}

/** Ms of a duration such as 90s, 10m or 2h; undefined: it is none, or longer than a year. */
export function durationOf(text: string): number | undefined {
  const [, amount, unit] = /^(\d+)([smh])$/.exec(text) ?? [];
  const ms = amount === undefined ? Number.NaN : Number(amount) * DURATION_UNITS[unit!]!;
  return ms <= DURATION_MAX_MS ? ms : undefined;
}

export const percent = (share: number) => `${Math.round(share * 1000) / 10}%`;

/** What a switch touches, in words. */
export function effectOf({ requests, work }: Share): string {
  return `${percent(requests)} of the requests and ${percent(work)} of the servers’ time in the last minute`;
}
