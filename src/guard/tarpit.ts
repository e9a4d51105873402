/**
 * Where answers to hasty clients are kept for a moment: a refusal to what was refused a moment ago, and the welcome of who
 * comes back right after leaving in anger (node-postgres throws a connection away after any error, and opens another). One
 * for the whole process, ticked by guard/admission.
 *
 * The one idea: a wheel of slots, one for each tick; holding somebody is an entry in a slot and no timer.
 *
 * Invariants: nobody is held for longer than `most`; as many can be held as there are clients, because each is held for one
 * answer at a time.
 */
import { LRUCache } from 'lru-cache';

/** Its delays in ms: the least, and the most after several attempts; 0: nobody is held. */
export interface TarpitBounds {
  least: number;
  most: number;
}

interface Entry {
  release: (() => void) | null;
  /** Turns of the wheel that are left. */
  turns: number;
}

const SLOT_MS = 20;
const SLOTS = 128;
/** Kinds of clients whose leaving is remembered. */
const PARTIES_MAX = 1_000;

export class Tarpit {
  readonly #random: () => number;
  readonly #slots: Entry[][] = Array.from({ length: SLOTS }, () => []);
  #at = 0;
  #doneAt = -1;
  #bounds: TarpitBounds = { least: 0, most: 0 };
  readonly #leavers = new LRUCache<string, { count: number; at: number }>({ max: PARTIES_MAX });
  /** Clients held now, and since the start: for a retry, and for coming back. */
  held = 0;
  readonly counts = { retries: 0, reconnects: 0 };

  /** `random`: from 0 to 1. */
  constructor(random: () => number = Math.random) {
    this.#random = random;
  }

  configure(bounds: TarpitBounds): void {
    this.#bounds = bounds;
  }

  /**
   * Ms to hold the refusal of what was refused `refusals` times before, the last time `sinceMs` before it came; 0: answer now,
   * because it has waited by itself. Longer after each refusal, and not the same for any two, so that they do not come
   * back together.
   */
  delayOf(refusals: number, sinceMs: number): number {
    const { least, most } = this.#bounds;
    if (refusals === 0 || sinceMs >= least) return 0;
    const longest = Math.min(most, least * 2 ** refusals);
    return least + this.#random() * Math.max(0, longest - least);
  }

  /** A client of this kind has left right after a refusal. */
  left(party: string, now: number): void {
    const leaver = this.#leavers.get(party);
    if (leaver === undefined) this.#leavers.set(party, { count: 1, at: now });
    else Object.assign(leaver, { count: leaver.count + 1, at: now });
  }

  /** Somebody has left right after a refusal. */
  get hasLeavers(): boolean {
    return this.#leavers.size > 0;
  }

  /** Ms to hold a client of this kind that has just come; as many are held as have left. */
  delayOfNewcomer(party: string, now: number): number {
    const leaver = this.#leavers.get(party);
    if (leaver === undefined) return 0;
    const isStale = now - leaver.at > this.#bounds.most;
    if (isStale || --leaver.count === 0) this.#leavers.delete(party);
    return isStale ? 0 : this.delayOf(1, 0);
  }

  /** Calls `release` in `ms`, unless the returned function is called before. */
  hold(ms: number, why: keyof Tarpit['counts'], release: () => void): () => void {
    const ticks = Math.max(1, Math.ceil(ms / SLOT_MS));
    const entry: Entry = { release, turns: Math.floor(ticks / SLOTS) };
    this.#slots[(this.#at + ticks) % SLOTS]!.push(entry);
    this.held++;
    this.counts[why]++;
    return () => {
      if (entry.release === null) return;
      entry.release = null;
      this.held--;
    };
  }

  /** Lets go of everybody whose time has come. Called every 20 ms or so. */
  tick(now: number): void {
    if (this.#doneAt < 0) this.#doneAt = now;
    for (; this.#doneAt + SLOT_MS <= now; this.#doneAt += SLOT_MS) {
      this.#at = (this.#at + 1) % SLOTS;
      const slot = this.#slots[this.#at]!;
      if (slot.length === 0) continue;
      this.#slots[this.#at] = [];
      for (const entry of slot) {
        if (entry.turns-- > 0) {
          this.#slots[this.#at]!.push(entry);
          continue;
        }
        const { release } = entry;
        if (release === null) continue;
        entry.release = null;
        this.held--;
        release();
      }
    }
  }
}
