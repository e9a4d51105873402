/**
 * The gates of hosts that are one database together, as server/cluster sees them. Made by app.
 *
 * The one idea: while there is no primary the gates keep who waits, by class, and decide who is next when there is one; when that is
 * another host, those who wait go there.
 */
import type { Admission } from './admission.ts';
import type { Gate, Outage } from './gate.ts';

export class Door {
  readonly #admission: Admission;
  readonly #addresses: readonly string[];
  /** The host whose gate keeps everybody at the moment. */
  #held: string | null = null;
  #outage: Outage | null = null;

  constructor(admission: Admission, addresses: readonly string[]) {
    this.#admission = admission;
    this.#addresses = addresses;
  }

  /** Those that have been in use. */
  *#gates(): Iterable<Gate> {
    for (const address of this.#addresses) {
      const gate = this.#admission.gates.get(address);
      if (gate !== undefined) yield gate;
    }
  }

  /** Requests that wait at them, and their bytes. */
  get waiting(): number {
    let sum = 0;
    for (const gate of this.#gates()) sum += gate.waiting;
    return sum;
  }

  get waitingBytes(): number {
    let sum = 0;
    for (const gate of this.#gates()) sum += gate.waitingBytes;
    return sum;
  }

  /** Servers of the host at `address` that may be at work. */
  limitOf(address: string): number {
    return this.#admission.isEnforced ? this.#admission.gateOf(address).limit : Number.POSITIVE_INFINITY;
  }

  /** Of the host at `address` only: the others may be somebody else's primary. */
  setOutage(address: string, outage: Outage | null, now: number): void {
    const before = this.#held;
    this.#held = outage === null ? null : address;
    this.#outage = outage;
    if (before !== null && before !== this.#held) this.#admission.gateOf(before).setOutage(null, now);
    if (outage !== null) this.#admission.gateOf(address).setOutage(outage, now);
  }

  /** Who waits is for another door to judge, which may have said so already. */
  close(now: number): void {
    if (this.#held === null) return;
    if (this.#admission.gateOf(this.#held).outage === this.#outage) this.setOutage(this.#held, null, now);
  }

  /** The primary is not at `address` any more. */
  moveFrom(address: string, now: number): void {
    this.#admission.gateOf(address).moveAll(now);
  }
}
