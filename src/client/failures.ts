/**
 * Slows down who guesses passwords: an address with too many failed logins is refused for a while, before anything is asked of
 * it. Kept by client/listener.
 *
 * The one idea: several services may share an address (a load balancer, a NAT), so users who have logged in from it before are not
 * kept out by what others do there. IPv6 addresses count by their /64, which one attacker has for himself.
 */
import { LRUCache } from 'lru-cache';

const ADDRESSES_MAX = 10_000;
const KNOWN_MAX = 20_000;

export class FailedLogins {
  max = 0;
  windowMs = 0;
  /** Logins refused for it. */
  refused = 0;
  readonly #counts = new LRUCache<string, { failures: number; since: number }>({ max: ADDRESSES_MAX });
  readonly #known = new LRUCache<string, true>({ max: KNOWN_MAX });

  /** How long `user` must wait at this address, in ms; 0: not at all. */
  waitOf(address: string | undefined, user: string, now: number): number {
    if (this.max === 0 || address === undefined) return 0;
    const place = placeOf(address);
    const found = this.#counts.get(place);
    if (found === undefined || found.failures < this.max || this.#known.has(`${place} ${user}`)) return 0;
    const waitMs = found.since + this.windowMs - now;
    if (waitMs > 0) this.refused++;
    else this.#counts.delete(place);
    return Math.max(0, waitMs);
  }

  /** Somebody has not proved to be who he says. */
  onFailure(address: string | undefined, now: number): void {
    if (this.max === 0 || address === undefined) return;
    const place = placeOf(address);
    const found = this.#counts.get(place);
    if (found !== undefined && now - found.since < this.windowMs) found.failures++;
    else this.#counts.set(place, { failures: 1, since: now });
  }

  onSuccess(address: string | undefined, user: string): void {
    if (this.max > 0 && address !== undefined) this.#known.set(`${placeOf(address)} ${user}`, true);
  }
}

function placeOf(address: string): string {
  if (!address.includes(':') || address.startsWith('::ffff:')) return address;
  const [head = [], tail = []] = address.split('::').map((part) => part.split(':').filter(Boolean));
  return [...head, ...Array<string>(Math.max(0, 8 - head.length - tail.length)).fill('0'), ...tail]
    .slice(0, 4)
    .join(':');
}
