/**
 * Switches: what people set by hand in an incident, by the class that they are for, or by their own name when they are for
 * requests of any class. Owned by guard/admission, which tells the gates.
 *
 *     on ──set──▶ off │ hold │ 25 %  ──on, clear, or its time is over──▶ 1 5 10 25 50 100 % ──▶ on
 *
 * The one idea: closing takes effect at once, opening never does. What has been shut out comes back in steps, each of which
 * must hold for a while; when the database does worse meanwhile, a step is taken back.
 *
 * Invariants: a switch that nobody has touched is what the configuration says; nothing opens at once, be it by hand, because its time
 * is over, or by a reload, and a restart changes none of that. What the configuration says at a start takes effect at once.
 */

/** 'off': refused. 'hold': waits. A number: this share of the requests passes. */
export type Position = 'on' | 'off' | 'hold' | number;

/** What somebody has set. Times are wall-clock ms, because they outlive the process. */
export interface Setting {
  position: Position;
  /** When it ends by itself; null: never. */
  until: number | null;
  reason: string;
  actor: string;
  at: number;
}

/** What is kept over a restart: what is set, and the share that passes of what comes back. */
export interface SavedSwitches {
  settings: Iterable<readonly [string, Setting]>;
  ramps: Iterable<readonly [string, number]>;
}

/** 'good': the database does not mind. 'wait': no step further for now. 'bad': it does worse. */
export type Weather = 'good' | 'wait' | 'bad';

/** What passes: a share, or nothing but everything waits. */
export type Valve = number | 'hold';

const STEPS = [0.01, 0.05, 0.1, 0.25, 0.5, 1];
/** How long a step must hold before the next. */
const DWELL_MS = 20_000;
/** How long the database must do worse before a step is taken back. */
const STEP_BACK_MS = 5_000;
/** How long it takes from nothing to all, when nothing is in the way. */
const RAMP_MS = DWELL_MS * (STEPS.length - 1);

interface Ramp {
  step: number;
  /** Monotonic ms. */
  since: number;
}

export class Switches {
  #base: ReadonlyMap<string, Position> = new Map();
  #own: readonly string[] = [];
  readonly #settings = new Map<string, Setting>();
  readonly #ramps = new Map<string, Ramp>();

  /** What the configuration says; `own` are those that are for requests of any class. */
  configure(base: ReadonlyMap<string, Position>, own: readonly string[], now: number): void {
    const names = new Set([...this.#base.keys(), ...base.keys()]);
    const before = new Map([...names].map((name) => [name, this.valveOf(name)]));
    this.#base = base;
    this.#own = own;
    // What passes as before goes on as it was, a ramp included.
    for (const [name, valve] of before) if (this.valveOf(name) !== valve) this.#change(name, valve, now);
  }

  /** Those for requests of any class that do not let all pass. */
  get turned(): ReadonlySet<string> {
    return new Set(this.#own.filter((name) => this.valveOf(name) !== 1));
  }

  /** What has been set by hand. */
  get settings(): ReadonlyMap<string, Setting> {
    return this.#settings;
  }

  /** What comes back, and the share of it that passes. */
  get ramps(): ReadonlyMap<string, number> {
    return new Map([...this.#ramps].map(([name, { step }]) => [name, STEPS[step]!]));
  }

  /** As they were before a restart. What was over long ago is forgotten: it would have come back by now. */
  restore({ settings, ramps }: SavedSwitches, now: number, wall: number): void {
    for (const [name, setting] of settings) {
      if (setting.until === null || wall < setting.until + RAMP_MS) this.#settings.set(name, setting);
    }
    for (const [name, share] of ramps) {
      const step = STEPS.findIndex((each) => each >= share);
      if (step < STEPS.length - 1) this.#ramps.set(name, { step, since: now });
    }
  }

  set(name: string, setting: Setting, now: number): void {
    const before = this.valveOf(name);
    this.#settings.set(name, setting);
    this.#change(name, before, now);
  }

  /** Back to the configuration. */
  clear(name: string, now: number): void {
    const before = this.valveOf(name);
    this.#settings.delete(name);
    this.#change(name, before, now);
  }

  positionOf(name: string): Position {
    return this.#settings.get(name)?.position ?? this.#base.get(name) ?? 'on';
  }

  /** What several of them together let pass. */
  tightest(names: readonly string[]): Valve {
    let least: Valve = 1;
    for (const name of names) {
      const valve = this.valveOf(name);
      if (valve === 0) return 0;
      if (valve === 'hold' || least === 'hold') least = 'hold';
      else least = Math.min(least, valve);
    }
    return least;
  }

  /** What passes at the moment. */
  valveOf(name: string): Valve {
    const ramp = this.#ramps.get(name);
    const position = this.positionOf(name);
    if (position === 'hold') return 'hold';
    const share = position === 'on' ? 1 : position === 'off' ? 0 : position;
    return ramp === undefined ? share : Math.min(share, STEPS[ramp.step]!);
  }

  /** Ends what is over, and goes on with what comes back, as the weather allows. True: something changed. */
  tick(now: number, wall: number, weather: Weather): boolean {
    let isChanged = false;
    for (const [name, { until }] of [...this.#settings]) {
      if (until === null || wall < until) continue;
      this.clear(name, now);
      isChanged = true;
    }
    for (const [name, ramp] of [...this.#ramps]) {
      const elapsed = now - ramp.since;
      if (weather === 'wait') continue;
      const isHealthy = weather === 'good';
      if (isHealthy ? elapsed < DWELL_MS : ramp.step > 0 && elapsed < STEP_BACK_MS) continue;
      ramp.since = now;
      const step = isHealthy ? ramp.step + 1 : Math.max(0, ramp.step - 1);
      isChanged ||= step !== ramp.step;
      ramp.step = step;
      if (step === STEPS.length - 1) this.#ramps.delete(name);
    }
    return isChanged;
  }

  #change(name: string, before: Valve, now: number): void {
    this.#ramps.delete(name);
    const after = this.valveOf(name);
    const isOpening = after !== 'hold' && (before === 'hold' || after > before);
    if (!isOpening) return;
    const from = before === 'hold' ? 0 : before;
    const step = STEPS.findIndex((share) => share > from);
    if (STEPS[step]! < after) this.#ramps.set(name, { step, since: now });
  }
}
