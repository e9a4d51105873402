/**
 * What a host may spend, beside how many of its servers may be at work: handed to guard/gate by app, which has it from
 * credits/host.
 *
 * The one idea: work is paid for when it starts, at what it should cost, and settled when it is done; so nobody can spend what
 * has not been there, by more than one statement's worth.
 */
export interface Budget {
  /** May something of this rank (guard/classes `priorities`, 0 is critical) start now? */
  isOpenFor(rank: number): boolean;
  /** Work of this rank: ms of one server; negative: less than was thought. */
  charge(rank: number, ms: number): void;
  /** Something of this rank would not start if warnings were meant. */
  warns(rank: number): boolean;
  /** How its reserve is doing, in a word for refusals and switches; '' when it has none. */
  readonly zone: string;
}

/** No host has one unless it is configured. */
export const unlimited: Budget = {
  isOpenFor: () => true,
  charge() {},
  warns: () => false,
  zone: '',
};
