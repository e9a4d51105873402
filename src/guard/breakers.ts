/**
 * The circuit breakers of all hosts (guard/health), by address. Made and ticked by app; a pool is given that of its host.
 *
 * The one idea: a breaker judges by answers, so where there is nobody who could answer it must not judge: of those hosts it
 * forgets what it has seen.
 *
 * Invariant: once made, a breaker stays: pools hold it.
 */
import { Health, type HealthConfig } from './health.ts';

export class Breakers {
  readonly #breakers = new Map<string, Health>();
  #config: HealthConfig;

  constructor(config: HealthConfig) {
    this.#config = config;
  }

  /** By the address of their host. */
  get all(): ReadonlyMap<string, Health> {
    return this.#breakers;
  }

  /** That of the host at `address`. */
  at(address: string): Health {
    let breaker = this.#breakers.get(address);
    if (breaker === undefined) {
      breaker = new Health(this.#config);
      this.#breakers.set(address, breaker);
    }
    return breaker;
  }

  /** A new configuration holds from here on; what was seen stays. */
  configure(config: HealthConfig): void {
    this.#config = config;
    for (const breaker of this.#breakers.values()) breaker.config = config;
  }

  /** Moves on. `isExcused`: nothing is to be learned from the host at an address. `onChange` hears of every change of state. */
  tick(
    now: number,
    isExcused: (address: string) => boolean,
    onChange: (address: string, breaker: Health) => void,
  ): void {
    for (const [address, breaker] of this.#breakers) {
      if (isExcused(address)) breaker.reset();
      else if (breaker.tick(now)) onChange(address, breaker);
    }
  }
}
