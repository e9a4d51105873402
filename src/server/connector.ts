/**
 * Connecting to one host, for all pools: at most two at a time, and seldom while it cannot be reached. Owned by server/hosts,
 * called by server/opener.
 *
 * The one idea: a database that comes back must not be trampled on. A circuit breaker (opossum) stands around connecting; while
 * it is open everybody gets the last failure at once, and one attempt a second finds out whether that still holds. What is wrong
 * with one user or one database only does not count against the host.
 */
import CircuitBreaker from 'opossum';
import { type LoggedIn, ServerLoginError } from './login.ts';

const CONNECTS_MAX = 2;
const RESET_MS = 1_000;
const JITTER = 0.2;
const BREAKER = {
  // Each attempt has a limit of its own (pool.connectMax).
  timeout: false,
  errorThresholdPercentage: 50,
  volumeThreshold: 3,
  rollingCountTimeout: 10_000,
  rollingCountBuckets: 10,
  rollingPercentilesEnabled: false,
  enableSnapshots: false,
} as const;

export type BreakerState = 'closed' | 'open' | 'half-open';

export class Connector {
  readonly #breaker: CircuitBreaker<[() => Promise<LoggedIn>], LoggedIn>;
  readonly #waiting: (() => void)[] = [];
  /** Attempts under way. */
  running = 0;
  /** Times that the breaker has opened. */
  opened = 0;
  #failure: ServerLoginError | null = null;

  constructor() {
    this.#breaker = new CircuitBreaker((open: () => Promise<LoggedIn>) => open(), {
      ...BREAKER,
      // Proxies that were started together do not come back together.
      resetTimeout: RESET_MS * (1 + JITTER * (Math.random() - 0.5)),
      errorFilter: (failure: unknown) => failure instanceof ServerLoginError && !isOfHost(failure),
    });
    this.#breaker.on('open', () => this.opened++);
  }

  get state(): BreakerState {
    return this.#breaker.opened ? 'open' : this.#breaker.halfOpen ? 'half-open' : 'closed';
  }

  /** Why the last attempt failed; '' when it did not. */
  get why(): string {
    return this.#failure?.message ?? '';
  }

  /** Runs `attempt` when it is its turn. Rejects with what it throws; while the breaker is open, with the last of that. */
  async open(attempt: () => Promise<LoggedIn>): Promise<LoggedIn> {
    if (this.running >= CONNECTS_MAX) await new Promise<void>((go) => this.#waiting.push(go));
    else this.running++;
    try {
      const loggedIn = await this.#breaker.fire(attempt);
      this.#failure = null;
      return loggedIn;
    } catch (thrown) {
      if (this.#failure !== null && (thrown as { code?: string }).code === 'EOPENBREAKER') throw this.#failure;
      if (thrown instanceof ServerLoginError && isOfHost(thrown)) this.#failure = thrown;
      throw thrown;
    } finally {
      const next = this.#waiting.shift();
      if (next === undefined) this.running--;
      else next();
    }
  }

  /** The host has been heard of elsewhere: it is tried again at once. */
  reset(): void {
    this.#breaker.close();
  }

  close(): void {
    this.#breaker.shutdown();
  }
}

/**
 * It is the host that cannot be reached, or does not take anybody: no answer, or one that it is starting or stopping. All else is about
 * one user, one database, or how it is configured here.
 */
export function isOfHost({ isSilent, sqlstate }: ServerLoginError): boolean {
  return isSilent || /^(57P0[123]|08)/.test(sqlstate);
}
