/**
 * Where answers to hasty clients are kept for a moment: refusals of who asks again at once, again and again, and the welcome of
 * those who leave on a refusal and come back (node-postgres throws a connection away after any error, and opens another). One
 * for the whole process, ticked by guard/admission.
 *
 * The one idea: who is held keeps a connection of its application's pool, and others wait behind it there until nobody wants
 * their answers any more. So a few retries are let be, and so is coming back; only what would not end by itself is slowed
 * down, and everything hasty when this process is late itself. Being held is an entry in a wheel of slots, and no timer.
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
/** Refusals in a row that are answered at once: of a first attempt and the usual three retries. */
const PATIENCE = 4;
/** Clients of one kind that may leave on a refusal within a second. */
const LEAVERS_MAX = 500;
const LEAVERS_MS = 1_000;
/** An event loop that is later than this has too much to do, for so long. */
const LATE_MS = 20;
const LATE_FOR_MS = 1_000;
/** Kinds of clients whose leaving is remembered. */
const PARTIES_MAX = 1_000;

export class Tarpit {
  readonly #random: () => number;
  readonly #slots: Entry[][] = Array.from({ length: SLOTS }, () => []);
  #at = 0;
  #doneAt = -1;
  /** Until when hasty clients are not let be at all. */
  #lateUntil = 0;
  #bounds: TarpitBounds = { least: 0, most: 0 };
  readonly #leavers = new LRUCache<string, { count: number; since: number }>({ max: PARTIES_MAX });
  /** Clients held now, and since the start: for a retry, for coming back, and because there is no database. */
  held = 0;
  readonly counts = { retries: 0, reconnects: 0, outage: 0 };

  /** `random`: from 0 to 1. */
  constructor(random: () => number = Math.random) {
    this.#random = random;
  }

  configure(bounds: TarpitBounds): void {
    this.#bounds = bounds;
  }

  /** Who asks again within this time after a refusal is hasty, in ms. */
  get hasteMs(): number {
    return this.#bounds.least;
  }

  /**
   * Ms to hold a refusal for a client that has been refused `haste` times in a row and asked again at once each time; 0:
   * answer now. Longer each time, and not the same for any two, so that they do not come back together.
   */
  delayOf(haste: number, now: number): number {
    const patience = now < this.#lateUntil ? 1 : PATIENCE;
    return haste < patience || this.#bounds.least === 0 ? 0 : this.#delay(haste - patience);
  }

  #delay(times: number): number {
    const { least, most } = this.#bounds;
    return least + this.#random() * Math.max(0, Math.min(most, least * 2 ** (times + 1)) - least);
  }

  /** Ms to hold a refusal while there is no database: everybody asks again, and for nothing. */
  delayOfOutage(): number {
    return this.#bounds.most * (0.5 + this.#random() / 2);
  }

  /** A client of this kind has left right after a refusal. */
  left(party: string, now: number): void {
    const leaver = this.#leavers.get(party);
    if (leaver === undefined || now - leaver.since > LEAVERS_MS) this.#leavers.set(party, { count: 1, since: now });
    else leaver.count++;
  }

  /** Somebody has left right after a refusal. */
  get hasLeavers(): boolean {
    return this.#leavers.size > 0;
  }

  /** Ms to hold a client of this kind that has just come. */
  delayOfNewcomer(party: string, now: number): number {
    const leaver = this.#leavers.get(party);
    if (leaver === undefined || this.#bounds.least === 0) return 0;
    if (now - leaver.since > this.#bounds.most) {
      this.#leavers.delete(party);
      return 0;
    }
    return leaver.count > LEAVERS_MAX || now < this.#lateUntil ? this.#delay(0) : 0;
  }

  /** Calls `release` in `ms`, unless the returned function is called before. */
  hold(ms: number, why: keyof Tarpit['counts'], release: () => void): () => void {
    const ticks = Math.max(1, Math.ceil(ms / SLOT_MS));
    const entry: Entry = { release, turns: Math.floor((ticks - 1) / SLOTS) };
    this.#slots[(this.#at + ticks) % SLOTS]!.push(entry);
    this.held++;
    this.counts[why]++;
    return () => {
      if (entry.release === null) return;
      entry.release = null;
      this.held--;
    };
  }

  /** Lets go of everybody whose time has come. Called every 20 ms or so. `lagMs`: how late the event loop is. */
  tick(now: number, lagMs: number): void {
    if (lagMs > LATE_MS) this.#lateUntil = now + LATE_FOR_MS;
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
