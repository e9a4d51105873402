/**
 * Slows down who guesses passwords: after too many failed logins as one user from one address, and ten times as many from an address
 * as whomever, more of them are refused for a while, before anything is asked of them. Kept by client/listener.
 *
 * The one idea: several services may share an address (a load balancer, a NAT). One of them that has a wrong password shuts out nobody
 * but itself: what is refused is not counted, and users who have logged in from there before are let through. IPv6 addresses count by
 * their /64, which one attacker has for himself.
 */
import { LRUCache } from 'lru-cache';
import type { AuthConfig } from '../config/schema.ts';

const PLACES_MAX = 20_000;
/** Failures as any user, for each as one. */
const USERS_PER_ADDRESS = 10;

interface Failures {
  count: number;
  since: number;
}

export class FailedLogins {
  #max = 0;
  #windowMs = 0;
  /** Logins refused for it. */
  refused = 0;
  readonly #counts = new LRUCache<string, Failures>({ max: PLACES_MAX });
  readonly #known = new LRUCache<string, true>({ max: PLACES_MAX });

  /** From here on `max` failures count for `window` ms; 0: any number is let pass. */
  configure({ max, window }: AuthConfig['failures']): void {
    this.#max = max;
    this.#windowMs = window;
  }

  /** How long `user` must wait at this address (null: a Unix socket), in ms; 0: not at all. */
  waitOf(address: string | null, user: string, now: number): number {
    if (this.#max === 0 || address === null) return 0;
    const place = placeOf(address);
    const pair = pairOf(place, user);
    if (this.#known.has(pair)) return 0;
    const waitMs = Math.max(this.#left(pair, this.#max, now), this.#left(place, this.#max * USERS_PER_ADDRESS, now));
    if (waitMs > 0) this.refused++;
    return waitMs;
  }

  #left(key: string, max: number, now: number): number {
    const found = this.#counts.get(key);
    return found === undefined || found.count < max ? 0 : Math.max(0, found.since + this.#windowMs - now);
  }

  /** `user` has not been proved. */
  onFailure(address: string | null, user: string, now: number): void {
    if (this.#max === 0 || address === null) return;
    const place = placeOf(address);
    for (const key of [place, pairOf(place, user)]) {
      const found = this.#counts.get(key);
      if (found !== undefined && now - found.since < this.#windowMs) found.count++;
      else this.#counts.set(key, { count: 1, since: now });
    }
  }

  onSuccess(address: string | null, user: string): void {
    if (this.#max > 0 && address !== null) this.#known.set(pairOf(placeOf(address), user), true);
  }
}

const pairOf = (place: string, user: string) => `${place} ${user}`;

function placeOf(address: string): string {
  if (!address.includes(':') || address.startsWith('::ffff:')) return address;
  const [head = [], tail = []] = address.split('::').map((part) => part.split(':').filter(Boolean));
  const zeroes = Array<string>(Math.max(0, 8 - head.length - tail.length)).fill('0');
  return [...head, ...zeroes, ...tail].slice(0, 4).join(':');
}
