/**
 * What is in force for all hosts: the classes, and a gate for each host. Made by app, which configures and ticks it;
 * asked by client/turn.
 *
 * The one idea: with neither classes nor a limit configured there is nothing to decide, and the data path does not come
 * here (`isOn`).
 */
import type { Config } from '../config/schema.ts';
import { Classes } from './classes.ts';
import { Gate } from './gate.ts';
import { AdaptiveLimit, fixedLimit, type Limit } from './limit.ts';

type Mode = Config['admission']['mode'];

export class Admission {
  classes: Classes = new Classes([]);
  mode: Mode = 'observe';
  isOn = false;
  #bounds: Config['limit'] = { mode: 'off', min: 1, max: 1 };
  readonly #gates = new Map<string, Gate>();
  readonly #adaptive = new Map<string, AdaptiveLimit>();

  constructor(config: Config) {
    this.configure(config);
  }

  configure({ admission, limit, classes, instances }: Config): void {
    this.isOn = classes.length > 0 || limit.mode !== 'off';
    this.mode = admission.mode;
    this.classes = new Classes(classes);
    // Several instances stand before the same host: together they are to stay within the limit.
    const share = (max: number) => Math.max(1, Math.floor(max / instances));
    this.#bounds = { mode: limit.mode, min: share(limit.min), max: share(limit.max) };
    for (const [address, gate] of this.#gates)
      gate.configure(this.classes.all, this.#isEnforced, this.#limitOf(address));
  }

  get #isEnforced(): boolean {
    return this.isOn && this.mode === 'enforce';
  }

  /** The gate of the host at `address`. */
  gateOf(address: string): Gate {
    let gate = this.#gates.get(address);
    if (gate === undefined) {
      gate = new Gate(this.classes.all, this.#isEnforced, this.#limitOf(address));
      this.#gates.set(address, gate);
    }
    return gate;
  }

  /** The limit of the host at `address`; one that adapts keeps what it has learned. */
  #limitOf(address: string): Limit {
    const { mode, min, max } = this.#bounds;
    if (mode !== 'adaptive') return fixedLimit(mode === 'fixed' ? max : Number.POSITIVE_INFINITY);
    let limit = this.#adaptive.get(address);
    if (limit === undefined) {
      limit = new AdaptiveLimit(min, max);
      this.#adaptive.set(address, limit);
    }
    limit.setBounds(min, max);
    return limit;
  }

  /** Latencies of statements are compared with what is normal for their shapes. */
  get isAdaptive(): boolean {
    return this.#bounds.mode === 'adaptive';
  }

  /** Sheds and admits what time brings. `lagMs`: how late the event loop is. */
  tick(now: number, lagMs: number): void {
    for (const gate of this.#gates.values()) gate.tick(now, lagMs);
  }

  /** All gates by the address of their host, for ops. */
  get gates(): ReadonlyMap<string, Gate> {
    return this.#gates;
  }
}
