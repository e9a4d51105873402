/**
 * What those are told who get no server of a pool: ERROR 53000 with a number, the class, the reason, and when to come
 * again. Made by server/pool; asked by it, and through it by client/session and client/turn.
 *
 * The one idea: a refusal is a value that says what was missing and what can be done about it; whoever makes one counts it.
 */
import { error, type Refusal, SqlState } from '../protocol/sqlstate.ts';
import type { ServerLoginError } from './login.ts';

export type RefusalReason =
  | 'wait'
  | 'queue'
  | 'pinned'
  | 'connect'
  | 'limit'
  | 'deadline'
  | 'overload'
  | 'throttle'
  | 'credits'
  | 'switch'
  | 'hold'
  | 'breaker'
  /** The cache has not got the answer, and may not ask the database for more (cache/misses). */
  | 'misses';

export const refusalReasons: readonly RefusalReason[] = [
  'wait',
  'queue',
  'pinned',
  'connect',
  'limit',
  'deadline',
  'overload',
  'throttle',
  'credits',
  'switch',
  'hold',
  'breaker',
  'misses',
];

/** Who is refused. `zone`: of the host's reserve; '' when it has none. `advice`: what can be done about it; '' when nobody knows. */
export interface Refused {
  className?: string;
  zone?: string;
  advice?: string;
}

/** Clients come back after so long, and not all at once. */
const RETRY_MS = 300;
const RETRY_SPREAD_MS = 900;

let nextRefusalId = 1;

export class Refusals {
  readonly #database: string;
  readonly #user: string;
  readonly #counts: Record<RefusalReason, number>;

  /** `counts`: of the pool, by reason. */
  constructor(database: string, user: string, counts: Record<RefusalReason, number>) {
    this.#database = database;
    this.#user = user;
    this.#counts = counts;
  }

  /** Makes the ERROR 53000 that refused work of a class gets, and counts it. */
  make(reason: RefusalReason, why: string, { className = 'normal', zone = '', advice = '' }: Refused = {}): Refusal {
    this.#counts[reason]++;
    const retryMs = Math.round(RETRY_MS + Math.random() * RETRY_SPREAD_MS);
    const id = nextRefusalId++;
    return error(SqlState.InsufficientResources, `request refused: ${why}`, {
      id,
      reason,
      detail: `id=${id} class=${className} reason=${reason}${zone === '' ? '' : ` zone=${zone}`} database=${this.#database} user=${this.#user}`,
      hint: `${advice === '' ? '' : `${advice}; `}retry after ${retryMs} ms`,
    });
  }

  /** No server is open, and none can be opened. */
  unreachable(failure: ServerLoginError): Refusal {
    return this.make('connect', `no server can be reached: ${failure.message}`, { advice: failure.advice });
  }

  /** It has waited for as long as anybody may. `failure`: why no further server can be opened. */
  late(waitMax: number, failure: ServerLoginError | null): Refusal {
    const why = `no server became free within ${waitMax} ms (pool.waitMax, query_wait_timeout)`;
    if (failure === null) return this.make('wait', why);
    return this.make('wait', `${why}, and none can be opened: ${failure.message}`, { advice: failure.advice });
  }
}
