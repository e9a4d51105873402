/**
 * Switches as people handle them: by name, with a reason, for a time; kept over a restart and written down. Made by app,
 * used by ops/console.
 *
 * The one idea: a switch takes effect before it is saved, because in an incident that is the order; that it could not be
 * saved is said to whoever has set it.
 *
 * In `state.dir`: switches.json is what is set now, audit.jsonl has a line for every change.
 */
import { appendFileSync, existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import type { Config } from '../config/schema.ts';
import type { Admission } from '../guard/admission.ts';
import type { Position, Setting, Valve } from '../guard/switches.ts';
import type { Clock } from '../util/clock.ts';
import { messageOf } from '../util/errors.ts';

/** What somebody wants. `position` null: back to the configuration. */
export interface Wish {
  name: string;
  position: Position | null;
  forMs: number | null;
  reason: string;
  actor: string;
}

export interface SwitchRow {
  name: string;
  class: string;
  position: Position;
  valve: Valve;
  setting: Setting | null;
  /** Share of the requests, and of the servers' time, that its class has had so far. */
  requests: number;
  work: number;
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
  isPassthrough: z.boolean(),
});

/** The panic lever: no admission, no sharing, plain pooling. */
const PASSTHROUGH = 'passthrough';

export class Switchboard {
  readonly #admission: Admission;
  readonly #config: () => Config;
  readonly #clock: Clock;
  readonly #dir: string | null;
  /** What was wrong with what had been saved; '' when nothing was. */
  problem = '';

  /** `dir`: where to keep what is set; null: nowhere. */
  constructor(admission: Admission, config: () => Config, clock: Clock, dir: string | null) {
    this.#admission = admission;
    this.#config = config;
    this.#clock = clock;
    this.#dir = dir;
    this.#load();
  }

  /** Does what somebody wants. Gives what went wrong; '' when nothing did. */
  set(wish: Wish): { problem: string } | { warning: string } {
    const { name, position } = wish;
    const now = this.#clock.now();
    if (name === PASSTHROUGH) {
      if (position !== 'on' && position !== 'off' && position !== null) return { problem: 'passthrough is on or off' };
      this.#admission.setPassthrough(position === 'on', this.#config());
      return { warning: this.#save(wish) };
    }
    const of = this.#classOf(name);
    if (of === null) return { problem: `there is no switch and no class "${name}"` };
    const { switches } = this.#admission;
    if (position === null) switches.clear(of, now);
    else switches.set(of, this.#settingOf(wish, position), now);
    this.#admission.applySwitches();
    return { warning: this.#save(wish) };
  }

  #settingOf({ forMs, reason, actor }: Wish, position: Position): Setting {
    const at = this.#clock.wall();
    return { position, until: forMs === null ? null : at + forMs, reason, actor, at };
  }

  #classOf(name: string): string | null {
    const configured = this.#config().switches[name]?.class;
    if (configured !== undefined) return configured;
    return this.#admission.classes.all.some((each) => each.name === name) ? name : null;
  }

  /** Every class with its switch. */
  rows(): SwitchRow[] {
    const { switches, classes, gates } = this.#admission;
    const names = new Map(Object.entries(this.#config().switches).map(([name, each]) => [each.class, name]));
    const sums = new Map<string, { offered: number; workMs: number }>();
    const all = { offered: 0, workMs: 0 };
    for (const { lanes } of gates.values()) {
      for (const { class: of, counts } of lanes) {
        const sum = sums.get(of.name) ?? { offered: 0, workMs: 0 };
        sums.set(of.name, sum);
        for (const each of [sum, all]) {
          each.offered += counts.offered;
          each.workMs += counts.workMs;
        }
      }
    }
    return classes.all.map(({ name }) => ({
      name: names.get(name) ?? name,
      class: name,
      position: switches.positionOf(name),
      valve: switches.valveOf(name),
      setting: switches.settings.get(name) ?? null,
      requests: (sums.get(name)?.offered ?? 0) / Math.max(1, all.offered),
      work: (sums.get(name)?.workMs ?? 0) / Math.max(1, all.workMs),
    }));
  }

  #load(): void {
    if (this.#dir === null) return;
    const file = join(this.#dir, 'switches.json');
    if (!existsSync(file)) return;
    try {
      const { settings, isPassthrough } = savedSchema.parse(JSON.parse(readFileSync(file, 'utf8')));
      this.#admission.switches.restore(settings);
      this.#admission.setPassthrough(isPassthrough, this.#config());
    } catch (thrown) {
      // Better without what was set than not at all.
      renameSync(file, `${file}.bad`);
      this.problem = `${file} could not be read, and is ${file}.bad now: ${messageOf(thrown)}`;
    }
  }

  #save(wish: Wish): string {
    if (this.#dir === null) return 'it will be forgotten at a restart, because state.dir is not set';
    try {
      mkdirSync(this.#dir, { recursive: true });
      const file = join(this.#dir, 'switches.json');
      const { switches, isPassthrough } = this.#admission;
      writeFileSync(`${file}.new`, JSON.stringify({ settings: [...switches.settings], isPassthrough }));
      renameSync(`${file}.new`, file);
      const line = { at: new Date(this.#clock.wall()).toISOString(), ...wish };
      appendFileSync(join(this.#dir, 'audit.jsonl'), `${JSON.stringify(line)}\n`);
      return '';
    } catch (thrown) {
      return `it could not be saved: ${messageOf(thrown)}`;
    }
  }
}
