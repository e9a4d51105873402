/**
 * How often a key was asked for of late, roughly: decides whether an answer is worth the place of another (TinyLFU: Einziger,
 * Friedman, Manes, "TinyLFU: A Highly Efficient Cache Admission Policy", 2017). Used by cache/store.
 *
 * The one idea: four counters of four bits for each key, found by hash; the least of them is the estimate; all are halved when enough has
 * been counted, so that what was popular once is forgotten.
 */
const ROWS = 4;
const COUNT_MAX = 15;
/** Counts, per counter in a row, after which all are halved. */
const SAMPLES = 10;

export class Sketch {
  readonly #counters: Uint8Array;
  readonly #mask: number;
  #left: number;

  /** For about `keys` keys at a time. */
  constructor(keys: number) {
    const width = 2 ** Math.ceil(Math.log2(Math.max(keys, 64)));
    this.#counters = new Uint8Array(ROWS * width);
    this.#mask = width - 1;
    this.#left = SAMPLES * width;
  }

  count(key: string): void {
    let hash = hashOf(key);
    for (let row = 0; row < ROWS; row++) {
      const at = row * (this.#mask + 1) + (hash & this.#mask);
      if (this.#counters[at]! < COUNT_MAX) this.#counters[at]!++;
      hash = remix(hash);
    }
    if (--this.#left === 0) this.#age();
  }

  estimate(key: string): number {
    let hash = hashOf(key);
    let least = COUNT_MAX;
    for (let row = 0; row < ROWS; row++) {
      least = Math.min(least, this.#counters[row * (this.#mask + 1) + (hash & this.#mask)]!);
      hash = remix(hash);
    }
    return least;
  }

  #age(): void {
    const counters = this.#counters;
    for (let at = 0; at < counters.length; at++) counters[at]! >>= 1;
    this.#left = (SAMPLES * (this.#mask + 1)) / 2;
  }
}

/** FNV-1a over the last characters: keys that are alike differ in their parameters, at the end. */
function hashOf(key: string): number {
  let hash = 0x811c9dc5 ^ key.length;
  for (let at = Math.max(0, key.length - 48); at < key.length; at++)
    hash = Math.imul(hash ^ key.charCodeAt(at), 0x01000193);
  return remix(hash);
}

/** The finalizer of MurmurHash3. */
function remix(hash: number): number {
  let mixed = hash ^ (hash >>> 16);
  mixed = Math.imul(mixed, 0x85ebca6b);
  mixed ^= mixed >>> 13;
  mixed = Math.imul(mixed, 0xc2b2ae35);
  return (mixed ^ (mixed >>> 16)) >>> 0;
}
