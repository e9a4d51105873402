/**
 * What a session is made with: its own, and the house, which is what all sessions of a process have in common: whom they ask and whom they
 * tell. Made by client/listener, handed to client/session.
 */
import type net from 'node:net';
import type { Cache } from '../cache/cache.ts';
import type { Fill } from '../cache/flight.ts';
import type { Identities } from '../cache/key.ts';
import type { Admission } from '../guard/admission.ts';
import type { Refusal } from '../protocol/sqlstate.ts';
import type { ServerPool } from '../server/pool.ts';
import type { Settings } from '../server/settings.ts';
import type { Judge, Verdict } from '../sql/verdict.ts';
import type { Clock } from '../util/clock.ts';
import type { Cancelable, CancelKey } from './cancel.ts';
import type { Session } from './session.ts';
import type { Usage } from './usage.ts';

export interface SessionHouse {
  judge: Judge;
  clock: Clock;
  admission: Admission;
  identities: Identities;
  /** The read cache of the database of a pool; null: it has none. */
  cacheOf: (pool: ServerPool) => Cache | null;
  /** Asks once more what a session has asked, for the cache alone (client/errand). */
  runErrand: (session: Session, request: Buffer, fill: Fill | null, done: (answer: Buffer | null) => void) => void;
  /** The client that was told this process id; null: it is nobody's. */
  holderOf: (pid: number) => Cancelable | null;
  /** Who asks for what. */
  usage: Usage;
  journal: SessionJournal;
  onEnd: (session: Session) => void;
  onBug: (where: string, thrown: unknown) => void;
}

/** Who writes down what people may want to know of single requests (ops/journal). */
export interface SessionJournal {
  /** Statements that take so long are slow. */
  readonly slowMs: number;
  /** One of the shape with this number (0: not known) has taken `ms`; `verdict`: what is known of it. */
  onSlow(session: Session, shape: number, ms: number, verdict: Verdict | null): void;
  /** It was refused after it had waited since `since` (monotonic ms; 0: it has not waited). */
  onRefused(session: Session, refusal: Refusal, verdict: Verdict | null, since: number): void;
}

export interface SessionOptions {
  id: number;
  socket: net.Socket;
  user: string;
  key: CancelKey;
  pool: ServerPool;
  settings: Settings;
  /** Bytes of the largest message. */
  messageMax: number;
  /** The class that its client asked for, or ''. */
  wantedClass: string;
  house: SessionHouse;
}
