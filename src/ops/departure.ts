/**
 * How a process goes without breaking off what its clients do: drained (TERM), or with another one in its place (UPGRADE). Made by
 * app; called by cli through app, by the console and over HTTP.
 *
 *     here ──UPGRADE──▶ replaced ──the last client has left, or drain.clients──▶ draining ──▶ stopped
 *      │ ▲                 │
 *      │ └─no successor────┘
 *      └──TERM──▶ draining ──no transaction is open, or drain.timeout──▶ stopped
 *
 * The one idea: who is served goes on being served, and only newcomers are another's; every wait has an end of its own.
 *
 * Invariants: only one successor is started at a time; from the moment it is ready nothing of ours is written to `state.dir`.
 */
import type { Config } from '../config/schema.ts';
import type { Clock } from '../util/clock.ts';
import { messageOf } from '../util/errors.ts';
import type { Logger } from './log.ts';

export interface DepartureHouse {
  config: () => Config['drain'];
  clock: Clock;
  log: Logger;
  /** SHUTDOWN waits for clients or servers. */
  isShuttingDown: () => boolean;
  /** No new clients, and those without a transaction are told to go. True: none is left. */
  drain: () => boolean;
  /** Clients, and who is logging in. */
  clients: () => number;
  /** Starts the process that takes over; gives its id. Null: nobody knows how. */
  startSuccessor: (() => Promise<number>) | null;
  /** Another process listens, and writes what is kept, from here on. */
  handOver: () => void;
  closeOps: () => Promise<void>;
  stop: () => Promise<void>;
  /** All is over after a successor was started: ends the process. */
  onGone: () => void;
}

type State =
  /** As usual. */
  | 'here'
  /** Another process has taken over, or is being started. */
  | 'replaced'
  | 'draining';

const DRAIN_CHECK_MS = 50;
/** Time for the answer to who has asked for an upgrade over HTTP. */
const ANSWER_MS = 500;

export class Departure {
  readonly #house: DepartureHouse;
  #state: State = 'here';

  constructor(house: DepartureHouse) {
    this.#house = house;
  }

  /** No new clients are wanted: TERM, or SHUTDOWN that waits. */
  get isEnding(): boolean {
    return this.#state === 'draining' || this.#house.isShuttingDown();
  }

  /** Everything is being ended at once: there is nothing left to wait for. */
  cut(): void {
    this.#state = 'draining';
  }

  /** TERM: not ready, no new clients, idle clients told to go, transactions finished within the limit. */
  async drain(): Promise<void> {
    if (this.#state === 'draining') return;
    this.#state = 'draining';
    const { config, clock, log, drain, stop } = this.#house;
    const { delay, timeout } = config();
    log.info({ delay, timeout }, 'draining');
    await sleep(delay);
    const until = clock.now() + timeout;
    while (!drain() && clock.now() < until) await sleep(DRAIN_CHECK_MS);
    await stop();
  }

  /** Another process takes over. Gives its id; rejects with why there is none, and then nothing has changed. */
  async upgrade(): Promise<number> {
    const { startSuccessor, log } = this.#house;
    if (startSuccessor === null) throw new Error('only pgweir serve --config can be upgraded');
    if (this.#state !== 'here' || this.isEnding) throw new Error('it is ending already');
    this.#state = 'replaced';
    try {
      const pid = await startSuccessor();
      log.info({ pid }, 'another process takes over');
      void this.#leave();
      return pid;
    } catch (thrown) {
      if (this.#state === 'replaced') this.#state = 'here';
      log.error({ problem: messageOf(thrown) }, 'no other process takes over');
      throw thrown;
    }
  }

  /** Serves who is there until they leave, or have had their time. */
  async #leave(): Promise<void> {
    const { config, clock, clients, handOver, closeOps, onGone } = this.#house;
    handOver();
    await sleep(ANSWER_MS);
    await closeOps();
    const until = clock.now() + config().clients;
    while (clients() > 0 && this.#state === 'replaced' && clock.now() < until) await sleep(DRAIN_CHECK_MS);
    if (this.#state !== 'replaced') return; // TERM has come.
    await this.drain();
    onGone();
  }
}

function sleep(ms: number): Promise<void> {
  return new Promise((done) => setTimeout(done, ms));
}
