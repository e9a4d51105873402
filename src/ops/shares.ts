/**
 * What share of the requests, and of the servers' time, each class has had of late: what a switch would touch. Ticked by
 * app, asked by ops/switchboard.
 */
import type { Gate } from '../guard/gate.ts';

export interface Share {
  /** From 0 to 1. */
  requests: number;
  work: number;
}

interface Sum {
  offered: number;
  workMs: number;
  /** Its time and requests are part of the whole; otherwise they are counted in some class already. */
  isClass: boolean;
}

/** Ticks that are looked back on. */
const WINDOW = 6;

export class Shares {
  readonly #gates: () => Iterable<Gate>;
  readonly #hits: () => ReadonlyMap<string, number>;
  /** Sums since the start by class, oldest first. */
  readonly #past: Map<string, Sum>[] = [new Map()];

  /** `hits`: requests that switches for any class would have touched, by their names. */
  constructor(gates: () => Iterable<Gate>, hits: () => ReadonlyMap<string, number>) {
    this.#gates = gates;
    this.#hits = hits;
  }

  /** Called every 10 seconds. */
  tick(): void {
    this.#past.push(this.#sums());
    if (this.#past.length > WINDOW) this.#past.shift();
  }

  /** By class, and by the names of switches that are for any class, in the last minute or so. */
  now(): Map<string, Share> {
    const before = this.#past[0]!;
    const all = { offered: 0, workMs: 0 };
    const rise = [...this.#sums()].map(([name, { offered, workMs, isClass }]) => {
      const old = before.get(name);
      const risen = { offered: offered - (old?.offered ?? 0), workMs: workMs - (old?.workMs ?? 0) };
      if (isClass) {
        all.offered += risen.offered;
        all.workMs += risen.workMs;
      }
      return [name, risen] as const;
    });
    const share = (part: number, whole: number) => (whole > 0 ? Math.min(1, Math.max(0, part) / whole) : 0);
    return new Map(
      rise.map(([name, { offered, workMs }]) => [
        name,
        { requests: share(offered, all.offered), work: share(workMs, all.workMs) },
      ]),
    );
  }

  #sums(): Map<string, Sum> {
    const sums = new Map<string, Sum>();
    const add = (name: string, offered: number, workMs: number, isClass: boolean) => {
      const sum = sums.get(name);
      sums.set(name, { offered: (sum?.offered ?? 0) + offered, workMs: (sum?.workMs ?? 0) + workMs, isClass });
    };
    for (const [name, count] of this.#hits()) add(name, count, 0, false);
    for (const { lanes } of this.#gates()) {
      for (const { class: of, counts } of lanes) {
        add(of.name, counts.offered, counts.workMs, true);
        // What was a class of its own while a switch was turned has worked for that switch.
        for (const name of of.switches.slice(1)) add(name, 0, counts.workMs, false);
      }
    }
    return sums;
  }
}
