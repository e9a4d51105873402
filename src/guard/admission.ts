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

type Mode = Config['admission']['mode'];

export class Admission {
  classes: Classes = new Classes([]);
  mode: Mode = 'observe';
  isOn = false;
  #limit = Number.POSITIVE_INFINITY;
  readonly #gates = new Map<string, Gate>();

  constructor(config: Config) {
    this.configure(config);
  }

  configure({ admission, limit, classes, instances }: Config): void {
    this.isOn = classes.length > 0 || limit.mode !== 'off';
    this.mode = admission.mode;
    this.classes = new Classes(classes);
    // Several instances stand before the same host: together they are to stay within the limit.
    this.#limit = limit.mode === 'fixed' ? Math.max(1, Math.floor(limit.max / instances)) : Number.POSITIVE_INFINITY;
    for (const gate of this.#gates.values()) gate.configure(this.classes.all, this.#isEnforced, this.#limit);
  }

  get #isEnforced(): boolean {
    return this.isOn && this.mode === 'enforce';
  }

  /** The gate of the host at `address`. */
  gateOf(address: string): Gate {
    let gate = this.#gates.get(address);
    if (gate === undefined) {
      gate = new Gate(this.classes.all, this.#isEnforced, this.#limit);
      this.#gates.set(address, gate);
    }
    return gate;
  }

  /** Sheds and admits what time brings. */
  tick(now: number): void {
    for (const gate of this.#gates.values()) gate.tick(now);
  }

  /** All gates by the address of their host, for ops. */
  get gates(): ReadonlyMap<string, Gate> {
    return this.#gates;
  }
}
