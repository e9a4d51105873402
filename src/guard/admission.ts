/**
 * What is in force for all hosts: the classes, and a gate for each host. Made by app, which configures and ticks it;
 * asked by client/turn.
 *
 * The one idea: with neither classes nor a limit configured there is nothing to decide, and the data path does not come
 * here (`isOn`).
 */
import type { Config } from '../config/schema.ts';
import { Baselines, type SavedBaseline } from './baselines.ts';
import { type Budget, unlimited } from './budget.ts';
import { type Class, Classes } from './classes.ts';
import { Gate, type GateRules } from './gate.ts';
import { AdaptiveLimit, FixedLimit, type Limit } from './limit.ts';
import { Switches, type Valve, type Weather } from './switches.ts';
import { Tarpit } from './tarpit.ts';

/** Statements that take this much longer than normal are a reason not to let more in. */
const RATIO_MAX = 1.2;

type Mode = Config['admission']['mode'];

export class Admission {
  classes: Classes = new Classes([]);
  mode: Mode = 'observe';
  isOn = false;
  /** There is something to decide, unless the panic lever is pulled. */
  isConfigured = false;
  /** Somebody has pulled the panic lever. */
  isPassthrough = false;
  readonly switches = new Switches();
  readonly tarpit = new Tarpit();
  #bounds: Config['limit'] = { mode: 'off', min: 1, max: 1 };
  readonly #gates = new Map<string, Gate>();
  readonly #adaptive = new Map<string, AdaptiveLimit>();
  /** What is known of each host's statements, whatever limits it. */
  readonly #baselines = new Map<string, Baselines>();
  #retryRatio = 0;
  /** What a host may spend, by its address; those that are not here are not limited. */
  #budgets: ReadonlyMap<string, Budget> = new Map();

  /** `now`: monotonic ms, as everywhere. */
  constructor(config: Config, now: number) {
    this.configure(config, now);
  }

  configure({ admission, limit, classes, instances, switches }: Config, now: number): void {
    this.isConfigured = classes.length > 0 || limit.mode !== 'off' || this.#budgets.size > 0;
    this.isOn = this.isConfigured && !this.isPassthrough;
    this.mode = admission.mode;
    this.classes = new Classes(classes, switches);
    // Several instances stand before the same host: together they are to stay within the limit.
    const share = (max: number) => Math.max(1, Math.floor(max / instances));
    this.#bounds = { mode: limit.mode, min: share(limit.min), max: share(limit.max) };
    this.#retryRatio = admission.retries.ratio;
    this.tarpit.configure({ least: admission.retries.tarpit, most: admission.retries.tarpitMax });
    for (const [address, gate] of this.#gates) gate.configure(this.#rulesOf(address));
    this.switches.configure(
      new Map(Object.entries(switches).map(([name, each]) => [each.class ?? name, each.state])),
      Object.keys(switches).filter((name) => switches[name]!.match !== undefined),
      now,
    );
    this.applySwitches();
  }

  get isEnforced(): boolean {
    return this.isOn && this.mode === 'enforce';
  }

  /** The gate of the host at `address`. */
  gateOf(address: string): Gate {
    let gate = this.#gates.get(address);
    if (gate === undefined) {
      gate = new Gate(this.#rulesOf(address), this.tarpit);
      this.#gates.set(address, gate);
    }
    return gate;
  }

  #rulesOf(address: string): GateRules {
    return {
      classes: this.classes.all,
      isEnforced: this.isEnforced,
      limit: this.#limitOf(address),
      retryRatio: this.#retryRatio,
      valveOf: (of) => this.#valveOf(of),
      budget: this.#budgets.get(address) ?? unlimited,
    };
  }

  /** Before `configure`: what hosts may spend. */
  setBudgets(budgets: ReadonlyMap<string, Budget>): void {
    this.#budgets = budgets;
  }

  /** What the switches let pass of a class; of one that is gone with a configuration, all. */
  #valveOf({ switches }: Class): Valve {
    const isThere = this.classes.all.some(({ name }) => name === switches[0]);
    return this.isPassthrough || !isThere ? 1 : this.switches.tightest(switches);
  }

  /** The limit of the host at `address`; one that adapts keeps what it has learned. */
  #limitOf(address: string): Limit {
    const { mode, min, max } = this.#bounds;
    const baselines = this.#baselinesOf(address);
    if (mode !== 'adaptive') return new FixedLimit(mode === 'fixed' ? max : Number.POSITIVE_INFINITY, baselines);
    let limit = this.#adaptive.get(address);
    if (limit === undefined) {
      limit = new AdaptiveLimit(min, max, baselines);
      this.#adaptive.set(address, limit);
    }
    limit.setBounds(min, max);
    return limit;
  }

  #baselinesOf(address: string): Baselines {
    let baselines = this.#baselines.get(address);
    if (baselines === undefined) {
      baselines = new Baselines();
      this.#baselines.set(address, baselines);
    }
    return baselines;
  }

  /** What is normal for each host's statements, by address. */
  saveBaselines(): Record<string, SavedBaseline[]> {
    return Object.fromEntries([...this.#baselines].map(([address, baselines]) => [address, baselines.save()]));
  }

  restoreBaselines(saved: Readonly<Record<string, readonly SavedBaseline[]>>): void {
    for (const [address, baselines] of Object.entries(saved)) this.#baselinesOf(address).restore(baselines);
  }

  /** Sheds and admits what time brings. `wall`: wall-clock ms; `lagMs`: how late the event loop is. */
  tick(now: number, wall: number, lagMs: number): void {
    if (this.switches.tick(now, wall, this.#weatherAt(now))) this.applySwitches();
    for (const gate of this.#gates.values()) gate.tick(now, lagMs);
    this.tarpit.tick(now, lagMs);
  }

  /**
   * Bad: a host is slower than normal, or a class has more than it can have. Wait: a host is short of credits. A host that everybody
   * has left for another does not count.
   */
  #weatherAt(now: number): Weather {
    const all = [...this.#gates.values()];
    const inUse = all.filter((gate) => gate.isInUse(now));
    let isShort = false;
    for (const gate of inUse.length > 0 ? inUse : all) {
      if (gate.ratio > RATIO_MAX || gate.lanes.some((lane) => lane.queue.isOverloaded)) return 'bad';
      isShort ||= gate.zone === 'RED' || gate.zone === 'BLACK';
    }
    return isShort ? 'wait' : 'good';
  }

  /** Tells the gates what the switches say. */
  applySwitches(): void {
    this.classes.turned = this.isPassthrough ? new Set() : this.switches.turned;
    for (const gate of this.#gates.values()) gate.turnValves();
  }

  /** The panic lever: plain pooling, without admission and sharing. Caps of hosts stay. */
  setPassthrough(isPassthrough: boolean, config: Config, now: number): void {
    this.isPassthrough = isPassthrough;
    this.configure(config, now);
  }

  /** All gates by the address of their host, for ops. */
  get gates(): ReadonlyMap<string, Gate> {
    return this.#gates;
  }
}
